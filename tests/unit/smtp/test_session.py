"""What does a session ask of its driver, and where are its limits? The dialogs have the rest."""

from __future__ import annotations

import tracemalloc

import pytest

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.events import MessageReceived, RecipientAsked
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.states import State
from tests.dialogs import HOST_NAME
from tests.dialogs.pure import PureClient

RULES = Rules(HOST_NAME)
HELO = b"HELO client.example.org\r\n"
MAIL = b"MAIL FROM:<sender@example.org>\r\n"
RCPT = b"RCPT TO:<u@example.com>\r\n"
U = Mailbox("u", "example.com")
SENDER = Mailbox("sender", "example.org")


def codes(wire: bytes) -> list[int]:
    """The codes of the replies in `wire`, each reply once."""
    lines = wire.split(b"\r\n")[:-1]
    return [int(line[:3]) for line in lines if line[3:4] == b" "]


def begun(rules: Rules = RULES) -> PureClient:
    """A client that has a transaction with one recipient."""
    client = PureClient(rules)
    client.send(HELO + MAIL + RCPT)
    return client


def in_data(rules: Rules = RULES) -> PureClient:
    """A client that was told to send its message."""
    client = begun(rules)
    assert codes(client.send(b"DATA\r\n")) == [354]
    return client


# The greeting and the output


def test_the_greeting_comes_first_and_once() -> None:
    session = Session(RULES)
    assert session.take_output() == b"220 mx.example.com ESMTP gsmtpd\r\n"
    assert session.take_output() == b""


def test_the_output_gathers_until_it_is_taken() -> None:
    session = Session(RULES)
    session.receive(HELO)
    session.receive(b"NOOP\r\nRSET\r\n")
    assert codes(session.take_output()) == [220, 250, 250, 250]
    assert session.take_output() == b""


# Events


def test_events_of_a_transaction() -> None:
    session = Session(RULES)
    assert session.receive(b"EHLO client.example.org\r\n" + MAIL) is None
    session.take_output()
    assert session.receive(b"RCPT TO:<u@EXAMPLE.com>\r\n") == RecipientAsked(U)
    assert session.waiting
    assert session.take_output() == b""
    assert session.answer(reply.RECIPIENT_OK) is None
    assert not session.waiting
    assert session.take_output() == reply.RECIPIENT_OK.wire
    assert session.receive(b"DATA\r\n") is None
    assert session.state is State.DATA
    assert session.take_output() == reply.START_DATA.wire
    envelope = Envelope("client.example.org", True, SENDER, (U,))
    assert session.receive(b"text\r\n.\r\n") == MessageReceived(envelope, b"text\r\n")
    assert session.take_output() == b""
    assert session.answer(reply.OK) is None
    assert session.take_output() == reply.OK.wire
    assert session.state is State.READY


@pytest.mark.parametrize(
    ("commands", "envelope"),
    [
        (HELO + MAIL + RCPT, Envelope("client.example.org", False, SENDER, (U,))),
        (b"EHLO  [192.0.2.1] \r\n" + MAIL + RCPT, Envelope("[192.0.2.1]", True, SENDER, (U,))),
        (b"HELO a\r\nEHLO b\r\n" + MAIL + RCPT, Envelope("b", True, SENDER, (U,))),
        (b"EHLO a\r\nHELO b\r\n" + MAIL + RCPT, Envelope("b", False, SENDER, (U,))),
        (b"HELO \xff\r\n" + MAIL + RCPT, Envelope("\ufffd", False, SENDER, (U,))),
        (b"HELO h\xc3\xb6st\r\n" + MAIL + RCPT, Envelope("höst", False, SENDER, (U,))),
        (b"HELO a\r\nMAIL FROM:<>\r\n" + RCPT, Envelope("a", False, None, (U,))),
        (b"HELO a\r\n" + MAIL + RCPT + RCPT, Envelope("a", False, SENDER, (U, U))),
        (
            b"HELO a\r\n" + MAIL + b'RCPT TO:<Postmaster>\r\nRCPT TO:<@x:"v\\w"@example.com>\r\n',
            Envelope("a", False, SENDER, (POSTMASTER, Mailbox("vw", "example.com"))),
        ),
        (
            b"HELO a\r\n" + MAIL + b"RCPT TO:<v@example.net>\r\n" + RCPT + b"RCPT TO:<>\r\n",
            Envelope("a", False, SENDER, (U,)),
        ),
        (
            b"HELO a\r\nMAIL FROM:<sender@example.org> BODY=8BITMIME SMTPUTF8 SIZE=9\r\n" + RCPT,
            Envelope("a", False, SENDER, (U,), True, "8BITMIME"),
        ),
        # What was forgotten, or refused, leaves no trace.
        (
            b"HELO a\r\nMAIL FROM:<> SMTPUTF8\r\nRCPT TO:<v@example.com>\r\nRSET\r\n" + MAIL + RCPT,
            Envelope("a", False, SENDER, (U,)),
        ),
        (
            b"HELO a\r\n" + MAIL + b"MAIL FROM:<> SMTPUTF8\r\n" + RCPT,
            Envelope("a", False, SENDER, (U,)),
        ),
        (
            b"HELO a\r\nMAIL FROM:<v@> SMTPUTF8\r\n" + MAIL + RCPT + b"EHLO\r\n",
            Envelope("a", False, SENDER, (U,)),
        ),
    ],
)
def test_envelope(commands: bytes, envelope: Envelope) -> None:
    client = PureClient()
    client.send(commands)
    client.send(b"DATA\r\n")
    client.send(b".\r\n")
    assert client.events[-1] == MessageReceived(envelope, b"")


def test_nothing_is_executed_before_the_answer() -> None:
    session = Session(RULES)
    event = session.receive(HELO + MAIL + RCPT + b"RSET\r\nNOOP\r\nQUIT\r\n")
    assert event == RecipientAsked(U)
    assert codes(session.take_output()) == [220, 250, 250]
    # A driver should not read on now; what it read already is kept.
    assert session.receive(b"") is None
    assert session.answer(reply.NOT_SERVED) is None
    assert codes(session.take_output()) == [550, 250, 250, 221]


def test_an_answer_brings_the_next_event() -> None:
    session = Session(RULES)
    assert session.receive(HELO + MAIL + RCPT + b"RCPT TO:<v@example.com>\r\n") == RecipientAsked(U)
    following = session.answer(reply.RECIPIENT_OK)
    assert following == RecipientAsked(Mailbox("v", "example.com"))


def test_what_comes_during_an_event_is_kept_in_order() -> None:
    session = Session(RULES)
    assert session.receive(HELO + MAIL + RCPT) is not None
    assert session.receive(b"NO") is None
    assert session.receive(b"OP\r\nVR") is None
    assert session.buffered == len(b"NOOP\r\nVR")
    session.answer(reply.RECIPIENT_OK)
    session.receive(b"FY x\r\n")
    assert codes(session.take_output()) == [220, 250, 250, 250, 250, 252]


def test_an_answer_without_a_question_is_a_fault_of_ours() -> None:
    session = Session(RULES)
    with pytest.raises(RuntimeError):
        session.answer(reply.OK)
    session.receive(HELO + MAIL + RCPT)
    session.answer(reply.RECIPIENT_OK)
    with pytest.raises(RuntimeError):
        session.answer(reply.RECIPIENT_OK)


@pytest.mark.parametrize("answer", [reply.STORAGE_TROUBLE, reply.NO_SPACE])
def test_trouble_of_the_store_ends_the_transaction_only(answer: Reply) -> None:
    client = PureClient(store=lambda _: answer)
    client.send(HELO + MAIL + RCPT)
    client.send(b"DATA\r\n")
    assert client.send(b".\r\n") == answer.wire
    assert codes(client.send(RCPT + MAIL + RCPT)) == [503, 250, 250]
    assert not client.session.closing


def test_an_answer_of_421_closes() -> None:
    for commands in (RCPT, RCPT + b"DATA\r\n"):
        session = Session(RULES)
        event = session.receive(HELO + MAIL + commands)
        if commands != RCPT:
            assert event is not None
            assert session.answer(reply.RECIPIENT_OK) is None
            session.take_output()
            assert session.receive(b".\r\nNOOP\r\n") is not None
        session.take_output()
        assert session.answer(reply.SHUTTING_DOWN) is None
        assert session.take_output() == reply.SHUTTING_DOWN.wire
        assert session.farewell == reply.SHUTTING_DOWN
        assert session.receive(b"NOOP\r\n") is None
        assert session.take_output() == b""


# The end


def test_close_forgets_all() -> None:
    client = in_data()
    client.send(b"half a mess")
    client.session.close(reply.TIMED_OUT)
    assert client.session.farewell == reply.TIMED_OUT
    assert client.session.buffered == 0
    assert client.send(b"age\r\n.\r\nNOOP\r\n") == reply.TIMED_OUT.wire
    assert client.messages == []


def test_leaving_is_said_at_the_next_command() -> None:
    client = in_data()
    client.session.leaving = True
    # Mail past its final dot still gets its 250.
    assert codes(client.send(b"text\r\n.\r\n")) == [250]
    assert not client.session.closing
    assert client.send(b"NOOP\r\n") == reply.SHUTTING_DOWN.wire
    assert client.session.closing


def test_leaving_spares_no_half_command() -> None:
    client = PureClient()
    client.send(HELO + b"NO")
    client.session.leaving = True
    assert client.send(b"OP\r\nQUIT\r\n") == reply.SHUTTING_DOWN.wire


# Limits


@pytest.mark.parametrize("errors", [1, 3, 10])
def test_errors(errors: int) -> None:
    client = PureClient(Rules(HOST_NAME, max_errors=errors))
    assert codes(client.send(HELO)) == [220, 250]
    assert codes(client.send(b"FOO\r\n" * (errors - 1))) == [500] * (errors - 1)
    assert client.send(b"FOO\r\n") == reply.TOO_MANY_ERRORS.wire
    assert client.session.farewell == reply.TOO_MANY_ERRORS


@pytest.mark.parametrize("refused", [b"RSET x", b"DATA", b"MAIL FROM:<a>", b"EXPN a", b"", b"EHLO"])
def test_errors_of_each_kind_count(refused: bytes) -> None:
    client = PureClient()
    client.send(HELO)
    assert client.send((refused + b"\r\n") * 10).endswith(reply.TOO_MANY_ERRORS.wire)


def test_lines_too_long_count_as_errors() -> None:
    client = PureClient()
    client.send(HELO)
    said = codes(client.send(*[b"x" * 5000 + b"\r\n"] * 10))
    assert said == [500] * 9 + [421]


@pytest.mark.parametrize(
    "junk",
    [
        b"NOOP",
        b"RSET",
        b"HELP",
        b"VRFY x",
        b"HELO x",
        b"EHLO x",
        b"MAIL FROM:<> SIZE=99999999",
    ],
)
def test_commands_without_mail(junk: bytes) -> None:
    client = PureClient(Rules(HOST_NAME, max_commands=5))
    client.send(HELO)
    assert 421 not in codes(client.send((junk + b"\r\n") * 3))
    assert client.send(junk + b"\r\n") == reply.TOO_MANY_COMMANDS.wire
    assert client.session.farewell == reply.TOO_MANY_COMMANDS


def test_refused_recipients_are_commands_without_mail() -> None:
    client = PureClient(Rules(HOST_NAME, max_commands=5))
    client.send(HELO + MAIL)
    wrong = b"RCPT TO:<u@example.net>\r\n"
    assert codes(client.send(wrong * 4)) == [550, 550, 550, 421]


@pytest.mark.parametrize(("answer", "forgiven"), [(reply.OK, True), (reply.STORAGE_TROUBLE, False)])
def test_only_mail_that_was_taken_forgives(answer: Reply, forgiven: bool) -> None:
    rules = Rules(HOST_NAME, max_errors=3, max_commands=3)
    client = PureClient(rules, store=lambda _: answer)
    client.send(HELO + b"FOO\r\nFOO\r\nNOOP\r\n" + MAIL + RCPT)
    client.send(b"DATA\r\n")
    client.send(b".\r\n")
    assert codes(client.send(b"NOOP\r\n")) == [250 if forgiven else 421]
    client = PureClient(rules, store=lambda _: answer)
    client.send(HELO + b"FOO\r\nFOO\r\n" + MAIL + RCPT)
    client.send(b"DATA\r\n")
    client.send(b".\r\n")
    assert codes(client.send(b"FOO\r\n")) == [500 if forgiven else 421]


def test_long_sessions_with_mail_have_no_other_limit() -> None:
    client = PureClient(Rules(HOST_NAME, max_commands=3))
    client.send(HELO)
    for _ in range(20):
        assert codes(client.send(MAIL + RCPT + b"DATA\r\n"))[-1] == 354
        assert codes(client.send(b".\r\nNOOP\r\n")) == [250, 250]


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_recipients_over_the_limit(limit: int) -> None:
    client = PureClient(Rules(HOST_NAME, max_recipients=limit))
    client.send(HELO + MAIL)
    assert codes(client.send(RCPT * (limit + 30))) == [250] * limit + [452] * 30
    client.send(b"DATA\r\n")
    assert codes(client.send(b".\r\n")) == [250]
    message = client.events[-1]
    assert isinstance(message, MessageReceived)
    assert message.envelope.recipients == (U,) * limit


def test_recipients_that_were_refused_leave_room() -> None:
    client = PureClient(Rules(HOST_NAME, max_recipients=2))
    client.send(HELO + MAIL)
    said = client.send(RCPT + b"RCPT TO:<u@example.net>\r\n" * 3 + RCPT + RCPT)
    assert codes(said) == [250, 550, 550, 550, 250, 452]


def test_mailmax() -> None:
    client = PureClient(Rules(HOST_NAME, max_messages=2))
    assert b" MAILMAX=2 " in client.send(b"EHLO client.example.org\r\n")
    for _ in range(2):
        # A transaction that came to no message is none.
        client.send(MAIL + RCPT + b"RSET\r\n" + MAIL + RCPT + b"DATA\r\n")
        assert codes(client.send(b".\r\n")) == [250]
    assert client.send(MAIL) == reply.TOO_MANY_MESSAGES.wire
    assert client.session.farewell == reply.TOO_MANY_MESSAGES
    assert len(client.messages) == 2


def line_of(octets: int, verb: bytes) -> bytes:
    """A line that begins with `verb` and has that many octets with its CRLF."""
    return verb + b"x" * (octets - len(verb) - 2) + b"\r\n"


LONG = reply.LINE_TOO_LONG
UNKNOWN = reply.UNKNOWN_PARAMETER


@pytest.mark.parametrize("piece", [1 << 20, 4096, 509, 1])
@pytest.mark.parametrize(
    ("verb", "octets", "said", "closes"),
    [
        (b"NOOP ", 512, reply.OK, False),
        (b"NOOP ", 513, LONG, False),
        (b"NOOP ", 2048, LONG, False),
        (b"NOOP ", 2049, LONG, False),
        (b"NOOP ", 2050, LONG, False),
        (b"NOOP ", 2051, LONG, False),
        (b"", 513, LONG, False),
        (b"MAIL FROM:<> ", 512, UNKNOWN, False),
        (b"MAIL FROM:<> ", 513, UNKNOWN, False),
        (b"mail FROM:<> ", 2048, UNKNOWN, False),
        (b"MAIL FROM:<> ", 2049, LONG, False),
        (b"MAIL FROM:<> ", 2050, LONG, False),
        (b"MAIL FROM:<> ", 2051, LONG, False),
        (b"NOOP ", 65535, LONG, False),
        (b"NOOP ", 65538, LONG, False),
        (b"NOOP ", 65539, LONG, True),
        (b"MAIL FROM:<> ", 65538, LONG, False),
        (b"MAIL FROM:<> ", 65539, LONG, True),
        (b"", 200_000, LONG, True),
    ],
)
def test_long_lines(verb: bytes, octets: int, said: Reply, closes: bool, piece: int) -> None:
    client = PureClient()
    client.send(HELO)
    line = line_of(octets, verb)
    assert len(line) == octets
    assert client.send(*(line[i : i + piece] for i in range(0, octets, piece))) == said.wire
    assert client.session.closing is closes
    if not closes:
        assert client.send(b"NOOP\r\n") == reply.OK.wire


@pytest.mark.parametrize("size", [512, 2048, 65536])
def test_a_long_line_is_skipped_to_its_own_end(size: int) -> None:
    """A CR or LF alone in it is no end, wherever the segments are cut."""
    client = PureClient()
    client.send(HELO)
    said = client.send(b"x" * size, b"\n", b"NOOP\r", b"x", b"RSET\r", b"\r", b"\n", b"NOOP\r\n")
    assert said == (LONG.wire if size > 65000 else LONG.wire + reply.OK.wire)


def test_a_line_without_end_costs_nothing() -> None:
    chunk = b"x" * 65536
    client = PureClient()
    client.send(HELO)
    tracemalloc.start()
    try:
        for _ in range(1024):  # 64 MiB
            client.send(chunk)
            assert client.session.buffered < 4096
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert client.session.farewell == LONG
    assert peak < 2 * 1024 * 1024


def test_a_line_in_small_pieces_costs_its_own_length() -> None:
    client = PureClient()
    client.send(HELO)
    for sent in range(1, 66000):
        client.send(b"x")
        assert client.session.buffered <= min(sent, 2048)
    assert client.session.closing


def test_buffered_counts_what_is_kept() -> None:
    client = in_data(Rules(HOST_NAME, max_size=1000))
    assert client.session.buffered < 10
    client.send(b"x" * 600)
    assert 600 <= client.session.buffered < 610
    # Of a message over the limit nothing is kept.
    client.send(b"x" * 600)
    assert client.session.buffered < 10
    client.send(b"x" * 100_000)
    assert client.session.buffered < 10
    assert client.send(b"\r\n.\r\n") == reply.TOO_BIG.wire
    assert client.session.buffered == 0


# Messages


def test_a_message_over_the_limit_is_never_given_to_the_store() -> None:
    client = in_data(Rules(HOST_NAME, max_size=1000))
    assert client.send(b"x" * 998, b"\r\n.\r\n" + MAIL + RCPT) != reply.TOO_BIG.wire
    client.send(b"DATA\r\n")
    assert client.send(b"x" * 999 + b"\r\n.\r\nNOOP\r\n") == reply.TOO_BIG.wire + reply.OK.wire
    assert client.messages == [b"x" * 998 + b"\r\n"]


@pytest.mark.parametrize(
    ("header", "refused"),
    [
        (b"Received: x\r\n" * 99 + b"\r\n", False),
        (b"Received: x\r\n" * 100 + b"\r\n", True),
        (b"Received: x\r\n" * 100, True),
        (b"received:x\r\n" * 50 + b"A: b\r\n" + b"RECEIVED:\r\n" * 50 + b"\r\n", True),
        (b"Received: x\n" * 100 + b"\nbody\r\n", True),
        (b"Received: x\r\n\tReceived: y\r\n" * 60 + b"\r\n", False),
        (b"X-Received: x\r\n" * 200 + b"\r\n", False),
        (b"Received-SPF: x\r\n" * 200 + b"\r\n", False),
        (b"Received: x\r\n" * 99 + b"\r\n" + b"Received: x\r\n" * 99, False),
        (b"A: b\r\n\r\n" + b"Received: x\r\n" * 200, False),
        # A message may have no header at all, and lines that end with LF alone.
        (b"\r\n" + b"Received: x\r\n" * 200, False),
        (b"A: b\n\n" + b"Received: x\n" * 200 + b"\r\n", False),
    ],
)
def test_received_fields(header: bytes, refused: bool) -> None:
    client = in_data()
    said = client.send(header + b".\r\n")
    assert (said == reply.MAIL_LOOP.wire) is refused
    assert client.messages == ([] if refused else [header])
    assert not client.session.closing


@pytest.mark.parametrize("content", [b"a\nb\r\n", b"a\rb\r\n", b"a\r\r\n", b"\n\r\n"])
def test_bare_newlines_can_be_refused(content: bytes) -> None:
    client = in_data(Rules(HOST_NAME, reject_bare_newline=True))
    assert client.send(content, b".\r\nNOOP\r\n") == reply.BARE_NEWLINE.wire
    assert client.session.farewell == reply.BARE_NEWLINE
    assert client.messages == []
    client = in_data()
    assert codes(client.send(content, b".\r\n")) == [250]
    assert client.messages == [content]


# Out of turn (RFC 2920 section 3.1)


@pytest.mark.parametrize("behind", [b"x", b"\r\n", b"Subject: a\r\n\r\nb\r\n.\r\n", b"NOOP\r\n"])
@pytest.mark.parametrize("command", [b"DATA\r\n", b"QUIT\r\n", b"data \r\n"])
def test_out_of_turn(command: bytes, behind: bytes) -> None:
    client = begun()
    assert client.send(command + behind) == reply.OUT_OF_TURN.wire
    assert client.session.farewell == reply.OUT_OF_TURN
    assert client.messages == []


def test_out_of_turn_behind_an_event() -> None:
    client = PureClient()
    client.send(HELO + MAIL)
    assert codes(client.send(RCPT + b"DATA\r\nSubject: x\r\n")) == [250, 554]
    assert client.session.closing


def test_a_data_that_fails_may_have_followers() -> None:
    client = PureClient()
    client.send(HELO + MAIL)
    assert codes(client.send(b"DATA\r\nRSET\r\nDATA x\r\nNOOP\r\n")) == [503, 250, 501, 250]


# Rules


def test_rules_make_replies() -> None:
    rules = Rules("h.example", max_size=70000, max_recipients=123, max_messages=45)
    assert rules.greeting == Reply(220, "", "h.example ESMTP gsmtpd")
    assert rules.helo == Reply(250, "", "h.example")
    assert rules.ehlo(False, False).lines[0] == "h.example"
    assert "SIZE 70000" in rules.ehlo(False, False).lines
    assert "LIMITS MAILMAX=45 RCPTMAX=123" in rules.ehlo(False, False).lines
    # RFC 2034 section 4: no enhanced codes in the greeting and in replies to HELO and EHLO.
    assert {rules.greeting.enhanced, rules.helo.enhanced, rules.ehlo(False, False).enhanced} == {""}
