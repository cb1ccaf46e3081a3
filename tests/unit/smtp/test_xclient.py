"""What does XCLIENT say, and what does a session make of it (Postfix's XCLIENT_README)?"""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.smtp import reply
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.events import MessageReceived
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.states import State
from gsmtpd.smtp.xclient import ATTRIBUTES, ClientNamed, parse_xclient
from tests.dialogs import HOST_NAME
from tests.dialogs.pure import PureClient

MAIL = b"MAIL FROM:<>\r\nRCPT TO:<u@example.com>\r\nBDAT 0 LAST\r\n"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("ADDR=192.0.2.7", {"ip": "192.0.2.7"}),
        ("addr=192.0.2.7", {"ip": "192.0.2.7"}),
        ("ADDR=IPV6:2001:db8::7", {"ip": "2001:db8::7"}),
        ("ADDR=ipv6:2001:0DB8:0:0::7", {"ip": "2001:db8::7"}),
        ("ADDR=2001:db8::7", {"ip": "2001:db8::7"}),
        ("ADDR=::ffff:192.0.2.7", {"ip": "192.0.2.7"}),
        ("ADDR=IPV6:fe80::1%eth0", {"ip": "fe80::1"}),
        ("ADDR=[UNAVAILABLE]", {}),
        ("HELO=client.example", {"helo": "client.example"}),
        ("HELO=a+20b+2Bc+3Dd", {"helo": "a b+c=d"}),
        ("HELO=h+C3+B6st", {"helo": "höst"}),
        ("HELO=+FF", {"helo": "\ufffd"}),
        ("HELO=[192.0.2.7]", {"helo": "[192.0.2.7]"}),
        ("HELO=[UNAVAILABLE]", {}),
        ("PROTO=SMTP", {"esmtp": False}),
        ("PROTO=esmtp", {"esmtp": True}),
        ("PROTO=[unavailable]", {}),
        ("NAME=client.example", {"name": "client.example"}),
        ("NAME=[UNAVAILABLE]", {"name": ""}),
        ("NAME=[TEMPUNAVAIL]", {"name": ""}),
        ("PORT=65535 LOGIN=joe DESTADDR=192.0.2.25 DESTPORT=25", {}),
        ("PORT=[UNAVAILABLE] DESTADDR=[UNAVAILABLE] DESTPORT=[TEMPUNAVAIL]", {}),
        (
            " NAME=c.example  ADDR=192.0.2.7 PROTO=SMTP HELO=x ",
            {"ip": "192.0.2.7", "name": "c.example", "helo": "x", "esmtp": False},
        ),
        ("HELO=" + "x" * 255, {"helo": "x" * 255}),
    ],
)
def test_good(argument: str, said: dict[str, Any]) -> None:
    assert parse_xclient(argument) == ClientNamed(**said)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        " ",
        "ADDR",
        "ADDR=",
        "=192.0.2.7",
        "ADDR = 192.0.2.7",
        "ADDR=192.0.2.256",
        "ADDR=192.0.2",
        "ADDR=3221225991",
        "ADDR=client.example",
        "ADDR=192.0.2.7/32",
        "ADDR=192.0.2.7 ADDR=192.0.2.7",
        "ADDR=192.0.2.7 addr=192.0.2.8",
        "ADDR=192.0.2.7 FOO=x",
        "ADDR=192.0.2.7 FOO",
        "PROTO=LMTP",
        "PROTO=HTTP",
        "PORT=x",
        "PORT=-1",
        "PORT=65536",
        "PORT=0x19",
        "DESTPORT=999999",
        "DESTADDR=nowhere",
        "HELO=a+2",
        "HELO=a+zz",
        "HELO=a=b",
        "HELO=h\u00f6st",
        "HELO=a\x00b",
        "HELO=" + "x" * 256,
        "NAME=" + "x" * 256,
        "HELO=" + "+C3+B6" * 128,
    ],
)
def test_bad(argument: str) -> None:
    assert parse_xclient(argument) is None


def xtext(text: str) -> str:
    """`text` as RFC 3461 section 4 has it."""
    return "".join(
        chr(octet) if 0x21 <= octet <= 0x7E and octet not in b"+=" else f"+{octet:02X}"
        for octet in text.encode()
    )


names = st.text(min_size=1, max_size=60).filter(
    lambda text: text.upper() not in ("[UNAVAILABLE]", "[TEMPUNAVAIL]")
)
utf8 = names.filter(lambda text: text.isprintable() and len(text.encode()) <= 255)


@given(utf8, st.ip_addresses(), st.booleans(), st.permutations(range(3)))
def test_what_is_said_is_understood(
    helo: str, ip: ipaddress.IPv4Address | ipaddress.IPv6Address, esmtp: bool, order: list[int]
) -> None:
    mapped = getattr(ip, "ipv4_mapped", None)
    words = [
        f"ADDR={'IPV6:' if ip.version == 6 else ''}{ip}",
        f"HELO={xtext(helo)}",
        f"PROTO={'ESMTP' if esmtp else 'SMTP'}",
    ]
    said = parse_xclient(" ".join(words[number] for number in order))
    expected = str(mapped or ip).partition("%")[0]
    assert said == ClientNamed(ip=expected, helo=helo, esmtp=esmtp)


words = st.one_of(
    st.builds(
        "{}={}".format,
        st.sampled_from([*ATTRIBUTES, "FOO", ""]),
        st.one_of(
            st.sampled_from(["192.0.2.7", "IPV6:::1", "25", "SMTP", "[UNAVAILABLE]", "+41"]),
            st.text(max_size=12),
        ),
    ),
    st.text(max_size=8),
)


@given(st.lists(words, max_size=5).map(" ".join))
def test_whatever_is_said_is_understood_or_refused(argument: str) -> None:
    said = parse_xclient(argument)
    if said is not None and said.ip is not None:
        assert str(ipaddress.ip_address(said.ip)) == said.ip


# --- in a session ---------------------------------------------------------------------------------


def proxy(rules: Rules | None = None) -> PureClient:
    """A client that may speak for others, and has heard the greeting."""
    client = PureClient(rules)
    client.session.speaks_for_others = True
    client.send()
    return client


def envelope(client: PureClient) -> Envelope:
    """The envelope of the message that came last."""
    message = client.events[-1]
    assert isinstance(message, MessageReceived)
    return message.envelope


def test_the_session_begins_anew() -> None:
    client = proxy()
    client.send(b"EHLO proxy.example\r\n")
    assert client.send(b"XCLIENT ADDR=192.0.2.7\r\n") == Rules(HOST_NAME).greeting.wire
    assert client.events == [ClientNamed(ip="192.0.2.7")]
    assert (client.session.state, client.session.helo) == (State.START, "")
    assert client.send(b"MAIL FROM:<>\r\n") == reply.HELO_FIRST.wire


@pytest.mark.parametrize(
    ("said", "greeted", "helo", "esmtp"),
    [
        ([b"ADDR=192.0.2.7"], b"EHLO proxy.example", "proxy.example", True),
        ([b"HELO=client.example"], b"EHLO proxy.example", "client.example", True),
        ([b"HELO=client.example PROTO=SMTP"], b"EHLO proxy.example", "client.example", False),
        ([b"PROTO=SMTP"], b"EHLO proxy.example", "proxy.example", False),
        ([b"PROTO=ESMTP"], b"HELO proxy.example", "proxy.example", True),
        ([b"HELO=[UNAVAILABLE]"], b"EHLO proxy.example", "proxy.example", True),
        # Each says something of its own, the later one of the same thing wins.
        ([b"HELO=one", b"PROTO=SMTP"], b"EHLO proxy.example", "one", False),
        ([b"HELO=one", b"HELO=two"], b"EHLO proxy.example", "two", True),
    ],
)
def test_helo_and_proto(said: list[bytes], greeted: bytes, helo: str, esmtp: bool) -> None:
    client = proxy()
    for attributes in said:
        assert client.send(b"XCLIENT " + attributes + b"\r\n").startswith(b"220 ")
    heard = client.send(greeted + b"\r\n")
    # What is offered is said to the proxy, as it asks for it.
    assert (b"PIPELINING" in heard) is greeted.startswith(b"EHLO")
    client.send(MAIL)
    assert (envelope(client).helo, envelope(client).esmtp) == (helo, esmtp)


def test_a_client_that_is_refused_is_told_and_gone() -> None:
    session = Session(Rules(HOST_NAME))
    session.speaks_for_others = True
    session.take_output()
    assert session.receive(b"XCLIENT ADDR=192.0.2.7\r\nEHLO x\r\n") == ClientNamed(ip="192.0.2.7")
    assert session.answer(reply.CLIENT_DENIED) is None
    assert session.take_output() == reply.CLIENT_DENIED.wire
    assert session.farewell == reply.CLIENT_DENIED


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"XCLIENT HELO=" + b"+41" * 255 + b" NAME=" + b"+41" * 255, 220),
        (b"XCLIENT HELO=" + b"x" * 2048, 500),
        (b"XCLIENT HELO=\xff", 501),
        (b"XCLIENT ADDR=192.0.2.7\nNAME=x", 500),
    ],
)
def test_lines(line: bytes, said: int) -> None:
    assert int(proxy().send(line + b"\r\n")[:3]) == said


def test_those_that_change_nothing_are_junk() -> None:
    client = proxy(Rules(HOST_NAME, max_commands=5))
    for _ in range(4):
        assert client.send(b"XCLIENT NAME=x\r\n").startswith(b"220 ")
    assert client.send(b"XCLIENT NAME=x\r\n") == reply.TOO_MANY_COMMANDS.wire


@pytest.mark.parametrize("refusal", [reply.CLIENT_DENIED, reply.TOO_MANY_FROM_YOU])
def test_no_mail_of_a_client_that_was_refused(refusal: Reply) -> None:
    session = Session(Rules(HOST_NAME))
    session.speaks_for_others = True
    session.receive(b"XCLIENT ADDR=192.0.2.7\r\n")
    session.answer(refusal)
    assert session.receive(b"EHLO x\r\n" + MAIL) is None
    assert session.state is State.START
