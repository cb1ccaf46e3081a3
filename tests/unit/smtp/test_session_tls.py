"""What becomes of a session at STARTTLS, and what is forgotten behind it (RFC 3207)?"""

from __future__ import annotations

import pytest

from gsmtpd.smtp import reply
from gsmtpd.smtp.events import MessageReceived, TLSAsked
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.states import State
from tests.dialogs import HOST_NAME
from tests.dialogs.pure import TLS, PureClient

RULES = Rules(HOST_NAME, starttls=True)
REQUIRED = Rules(HOST_NAME, starttls=True, require_tls=True)
LMTP = Rules(HOST_NAME, starttls=True, lmtp=True)
EHLO = b"EHLO client.example.org\r\n"
MAIL = b"MAIL FROM:<sender@example.org>\r\n"
RCPT = b"RCPT TO:<u@example.com>\r\n"
STARTTLS = b"STARTTLS\r\n"


def codes(wire: bytes) -> list[int]:
    """The codes of the replies in `wire`, each reply once."""
    return [int(line[:3]) for line in wire.split(b"\r\n")[:-1] if line[3:4] == b" "]


def secured(rules: Rules = RULES, before: bytes = EHLO) -> PureClient:
    """A client that has said `before`, and then STARTTLS."""
    client = PureClient(rules)
    client.send(before)
    assert client.send(STARTTLS) == reply.START_TLS.wire
    return client


@pytest.mark.parametrize("line", [STARTTLS, b"starttls\r\n", b"STARTTLS \r\n"])
@pytest.mark.parametrize("before", [b"", EHLO, EHLO + MAIL + b"RSET\r\n", b"HELO x\r\n"])
def test_starttls(before: bytes, line: bytes) -> None:
    session = Session(RULES)
    session.receive(before)
    session.take_output()
    assert session.receive(line) == TLSAsked()
    assert session.take_output() == reply.START_TLS.wire
    assert session.waiting
    session.secured(TLS)
    assert not session.waiting
    assert session.take_output() == b""  # no second greeting
    assert (session.state, session.helo, session.tls) == (State.START, "", TLS)


def test_all_that_was_said_before_is_forgotten() -> None:
    client = secured()
    assert codes(client.send(MAIL + RCPT)) == [503, 503]
    assert b"STARTTLS" not in client.send(EHLO)
    assert codes(client.send(b"MAIL FROM:<>\r\n" + RCPT + b"DATA\r\n")) == [250, 250, 354]
    assert codes(client.send(b"text\r\n.\r\n")) == [250]
    message = client.events[-1]
    assert isinstance(message, MessageReceived)
    assert message.envelope.tls == TLS
    assert message.envelope.sender is None
    assert message.envelope.helo == "client.example.org"


def test_what_comes_in_the_clear_before_the_handshake_is_never_executed() -> None:
    """As from a driver that reads on, though it should not (CVE-2011-0411)."""
    session = Session(RULES)
    session.receive(EHLO)
    assert session.receive(STARTTLS) == TLSAsked()
    assert session.receive(EHLO + MAIL) is None
    session.take_output()
    session.secured(TLS)
    assert session.receive(b"NOOP\r\n") is None
    assert session.take_output() == reply.OK.wire
    assert (session.state, session.buffered) == (State.START, 0)


@pytest.mark.parametrize("behind", [b"\r\n", b"x", EHLO, MAIL, b"\x16\x03\x01", STARTTLS, b"QUIT"])
def test_what_stands_behind_starttls_ends_the_session(behind: bytes) -> None:
    client = PureClient(RULES)
    client.send(EHLO)
    assert client.send(STARTTLS + behind) == reply.OUT_OF_TURN.wire
    assert client.session.farewell == reply.OUT_OF_TURN
    assert client.events == []


@pytest.mark.parametrize("rules", [RULES, REQUIRED, LMTP])
def test_starttls_twice(rules: Rules) -> None:
    client = secured(rules, b"")
    assert client.send(STARTTLS) == reply.TLS_ALREADY.wire
    assert client.send(b"STARTTLS now\r\n") == reply.NO_ARGUMENT_ALLOWED.wire


def test_starttls_where_tls_came_first() -> None:
    client = PureClient(Rules(HOST_NAME))
    client.session.secured(TLS)
    assert client.send() == RULES.greeting.wire
    assert b"STARTTLS" not in client.send(EHLO)
    assert client.send(STARTTLS) == reply.TLS_ALREADY.wire
    assert codes(client.send(MAIL + RCPT)) == [250, 250]


def test_the_counts_of_errors_and_commands_are_not_forgotten() -> None:
    client = PureClient(Rules(HOST_NAME, starttls=True, max_errors=3))
    client.send(b"FOO\r\nFOO\r\n")
    client.send(STARTTLS)
    assert client.send(b"FOO\r\n") == reply.TOO_MANY_ERRORS.wire


REFUSED = [b"HELO x", b"MAIL FROM:<>", b"RCPT TO:<u@example.com>", b"DATA", b"RSET", b"VRFY u",
           b"EXPN u", b"HELP"]  # fmt: skip


@pytest.mark.parametrize("command", REFUSED)
def test_where_tls_is_required(command: bytes) -> None:
    client = PureClient(REQUIRED)
    client.send()
    assert client.send(command + b"\r\n") == reply.TLS_FIRST.wire
    client.send(EHLO)
    assert client.send(command + b"\r\n") == reply.TLS_FIRST.wire
    client.send(STARTTLS)
    client.send(EHLO)
    assert client.send(command + b"\r\n") != reply.TLS_FIRST.wire


def test_required_tls_that_came_first() -> None:
    client = PureClient(REQUIRED)
    client.session.secured(TLS)
    assert codes(client.send(EHLO + MAIL + RCPT)) == [220, 250, 250, 250]


def test_a_refusal_for_want_of_tls_is_noted() -> None:
    client = PureClient(REQUIRED)
    client.send(EHLO + MAIL)
    (refusal,) = client.session.refusals
    assert refusal.reply == reply.TLS_FIRST
    assert refusal.about.sender == "<sender@example.org>"


def test_lmtp() -> None:
    client = secured(LMTP, b"LHLO client.example.org\r\n")
    assert codes(client.send(MAIL)) == [503]
    assert codes(client.send(b"LHLO client.example.org\r\n" + MAIL + RCPT + RCPT)) == [250] * 4
    assert codes(client.send(b"BDAT 2 LAST\r\n\r\n")) == [250, 250]
    message = client.events[-1]
    assert isinstance(message, MessageReceived)
    assert message.envelope.lmtp
    assert message.envelope.tls == TLS


def test_whom_a_proxy_speaks_for_is_not_forgotten() -> None:
    client = PureClient(RULES)
    client.session.speaks_for_others = True
    client.send(b"XCLIENT HELO=told\r\n")
    client.send(STARTTLS)
    client.send(EHLO)
    assert client.session.helo == "told"
