"""Which fields stand in front of a message, and are they understood? (RFC 5321 section 4.4)"""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.message.trace import Front, delivery_fields, parse_front, protocol, received
from gsmtpd.smtp.address import POSTMASTER, Mailbox, parse_path
from gsmtpd.smtp.envelope import Envelope

U = Mailbox("u", "example.com")
V = Mailbox("v", "example.com")
SENDER = Mailbox("sender", "example.org")
PLAIN = Envelope("client.example.org", True, SENDER, (U,))
MOMENT = 1_700_000_000.9  # Tue, 14 Nov 2023 22:13:20 UTC and a bit


def field(envelope: Envelope = PLAIN, ip: str = "192.0.2.1") -> str:
    """The Received field of a message with the id "id1"."""
    return received(envelope, ip, "mx.example.com", "id1", MOMENT)


def unfolded(text: str) -> str:
    """`text` on one line (RFC 5322 section 2.2.3)."""
    assert text.endswith("\r\n")
    return text[:-2].replace("\r\n", "")


def test_received() -> None:
    assert field() == (
        "Received: from client.example.org (unknown [192.0.2.1])\r\n"
        "\tby mx.example.com with ESMTP id id1\r\n"
        "\tfor <u@example.com>;\r\n"
        "\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384"
LMTP = PLAIN._replace(lmtp=True)
UTF8 = PLAIN._replace(smtputf8=True)
HELO = PLAIN._replace(esmtp=False)
# RFC 3848, RFC 6531 section 4.3; there is no name for HELO with TLS.
PROTOCOLS = [
    (HELO, "SMTP"),
    (HELO._replace(tls=TLS), f"SMTP ({TLS})"),
    (PLAIN, "ESMTP"),
    (PLAIN._replace(tls=TLS), f"ESMTPS ({TLS})"),
    (UTF8, "UTF8SMTP"),
    (UTF8._replace(tls=TLS), f"UTF8SMTPS ({TLS})"),
    (LMTP, "LMTP"),
    (LMTP._replace(tls=TLS), f"LMTPS ({TLS})"),
    (LMTP._replace(smtputf8=True), "UTF8LMTP"),
    (LMTP._replace(smtputf8=True, tls=TLS), f"UTF8LMTPS ({TLS})"),
]


@pytest.mark.parametrize(
    ("envelope", "said"), [*PROTOCOLS, (PLAIN._replace(body="8BITMIME"), "ESMTP")]
)
def test_protocol(envelope: Envelope, said: str) -> None:
    assert protocol(envelope) == said.partition(" ")[0]
    assert f" with {said} id " in unfolded(field(envelope))


def test_a_proxy_knows_the_name_of_the_clients_host() -> None:
    text = field(PLAIN._replace(client_name="host.example.net"))
    assert text.startswith("Received: from client.example.org (host.example.net [192.0.2.1])\r\n")
    assert "(a?b??c [192.0.2.1])\r\n" in field(PLAIN._replace(client_name="a b\r\nc"))


@pytest.mark.parametrize(
    ("recipients", "said"),
    [
        ((U,), "for <u@example.com>"),
        ((POSTMASTER,), "for <postmaster>"),
        ((Mailbox('"a b"', "example.com"),), 'for <"a b"@example.com>'),
        # No recipient may see another.
        ((U, V), None),
        ((U, U), None),
    ],
)
def test_for_one_recipient_only(recipients: tuple[Mailbox, ...], said: str | None) -> None:
    text = unfolded(field(PLAIN._replace(recipients=recipients)))
    assert re.findall(r"for <.*>", text) == ([said] if said else [])
    assert ("example.com>" in text) == (said is not None and "@" in said)


@pytest.mark.parametrize(
    ("ip", "said"),
    [("192.0.2.1", "[192.0.2.1]"), ("2001:db8::1", "[IPv6:2001:db8::1]")],
)
def test_address_literals(ip: str, said: str) -> None:
    assert f"(unknown {said})" in field(ip=ip)


@pytest.mark.parametrize(
    ("helo", "said"),
    [
        ("client.example.org", "client.example.org"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("höst.example", "höst.example"),
        # A name that would forge the comment, another clause or another field.
        ("a (b [192.0.2.9]) by mx", "a??b?[192.0.2.9]??by?mx"),
        ("a\r\nX: y", "a??X:?y"),
        ("a\x00\x1b\x7f\x85\u2028", "a????\u2028"),
        ("\xa0\ud7ff\ud800\udfff\ue000\U0010ffff", "\xa0\ud7ff??\ue000\U0010ffff"),
        ("", ""),
        ("x" * 300, "x" * 255),
    ],
)
def test_helo(helo: str, said: str) -> None:
    assert field(PLAIN._replace(helo=helo)).startswith(
        f"Received: from {said} (unknown [192.0.2.1])\r\n"
    )


@pytest.mark.parametrize("second", [0.0, 951782400.0, 1_700_000_000.9, 4_000_000_000.0])
def test_the_date_is_utc(second: float) -> None:
    text = received(PLAIN, "192.0.2.1", "mx", "id", second)
    date = text.rpartition(";\r\n\t")[2].strip()
    assert parsedate_to_datetime(date) == datetime.fromtimestamp(int(second), UTC)
    assert date.endswith(" +0000")


@pytest.mark.parametrize(
    ("recipient", "reverse_path", "said"),
    [
        (
            "u@example.com",
            "sender@example.org",
            "Delivered-To: u@example.com\r\nReturn-Path: <sender@example.org>\r\n",
        ),
        ("u@example.com", "", "Delivered-To: u@example.com\r\nReturn-Path: <>\r\n"),
        (
            '"a b"@[127.0.0.1]',
            "ü@example.org",
            'Delivered-To: "a b"@[127.0.0.1]\r\nReturn-Path: <ü@example.org>\r\n',
        ),
    ],
)
def test_delivery_fields(recipient: str, reverse_path: str, said: str) -> None:
    assert delivery_fields(recipient, reverse_path) == said


@given(st.binary(max_size=505).map(lambda octets: octets.decode("utf-8", "replace")))
def test_no_helo_breaks_the_field(helo: str) -> None:
    text = field(PLAIN._replace(helo=helo))
    assert text.count("\r") == text.count("\n") == text.count("\r\n") == 4
    assert re.fullmatch(r"Received: from \S* \(unknown \[192\.0\.2\.1\]\)", text.split("\r\n")[0])
    assert all(len(line.encode()) <= 998 for line in text.split("\r\n"))
    parsed = email.message_from_bytes(text.encode() + b"\r\n", policy=email.policy.compat32)
    assert parsed.keys() == ["Received"]


# --- reading them again -------------------------------------------------------------------------

HOST = "mx.example.com"
ID = "0123456789abcdef" * 2
MESSAGE = Message(ID, PLAIN, b"Subject: x\r\n\r\nx\r\n", "192.0.2.1", MOMENT)

_LOCAL = st.one_of(
    st.text("abcXYZ019!#$%&'*+/=?^_`{|}~-\xfc\u65e5\U0001f4ec", min_size=1, max_size=12),
    st.text(" ab@<>().,:;[]\xfc'", max_size=12).map(lambda text: f'"{text}"'),
    st.text(' ab@"', max_size=8).map(lambda text: '"' + re.sub(r"(.)", r"\\\1", text) + '"'),
)
_DOMAIN = st.sampled_from(
    ["example.com", "a.b-c.EXAMPLE", "b\xfccher.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "x"]
)
_MAILBOX = st.one_of(
    st.just("<postmaster>"), st.builds("<{}@{}>".format, _LOCAL, _DOMAIN)
).map(parse_path).filter(lambda mailbox: mailbox is not None)  # fmt: skip
_HELO = st.text(
    st.characters(min_codepoint=0x21, exclude_characters="()\x7f", exclude_categories=("Cs", "Cc")),
    min_size=1,
    max_size=255,
)
_ENVELOPE = st.builds(
    lambda kind, **fields: Envelope(**fields, **kind),
    # SMTPUTF8 and LMTP have no form without extensions.
    kind=st.sampled_from([envelope._asdict() for envelope, _ in PROTOCOLS]).map(
        lambda kind: {name: kind[name] for name in ("esmtp", "smtputf8", "lmtp", "tls")}
    ),
    helo=_HELO,
    sender=st.none() | _MAILBOX,
    recipients=st.lists(_MAILBOX, min_size=1, max_size=3).map(tuple),
    client_name=st.just("") | _HELO.filter(lambda name: name != "unknown"),
)
_MESSAGE = st.builds(
    Message,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    envelope=_ENVELOPE,
    content=st.binary(max_size=20),
    client_ip=st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
    received_at=st.floats(0, 250_000_000_000),
)


def mails(message: Message, host: str = HOST) -> list[bytes]:
    """The column `mail` of each row of `message`."""
    return [row.mail for row in RowMaker(host).rows(message)]


@settings(deadline=None)
@given(_MESSAGE)
@example(MESSAGE)
def test_what_the_fields_say_is_understood(message: Message) -> None:
    envelope = message.envelope
    for recipient, mail in zip(envelope.recipients, mails(message), strict=True):
        front = parse_front(mail)
        alone = len(envelope.recipients) == 1
        if recipient is POSTMASTER and not alone:
            recipient = Mailbox("postmaster", HOST)  # nothing tells the one from the other
        assert front == Front(
            envelope._replace(recipients=(recipient,)),
            message.client_ip,
            HOST,
            message.id,
            int(message.received_at),
            alone,
            len(mail) - len(message.content),
        )


@pytest.mark.parametrize(("envelope", "said"), PROTOCOLS)
def test_the_protocol_is_understood(envelope: Envelope, said: str) -> None:
    (mail,) = mails(MESSAGE._replace(envelope=envelope))
    assert f" with {said} id ".encode() in mail
    front = parse_front(mail)
    assert front is not None
    assert front.envelope == envelope


def again(front: Front, octets: bytes) -> bytes:
    """The mail that has these fields in front of the same message."""
    envelope = front.envelope
    if not front.alone:
        envelope = envelope._replace(recipients=envelope.recipients * 2)
    message = Message(
        front.id, envelope, octets[front.size :], front.client_ip, float(front.received_at)
    )
    return mails(message, front.host_name)[0]


@settings(deadline=None)
@given(_MESSAGE, st.data())
def test_other_fields_are_not_ours(message: Message, data: st.DataObject) -> None:
    """What is understood is what would be written, to the octet."""
    octets = bytearray(data.draw(st.sampled_from(mails(message))))
    size = len(octets) - len(message.content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, size - 1))
        octets[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    front = parse_front(bytes(octets))
    assert front is None or again(front, bytes(octets)) == octets


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_helo_is_understood_as_it_was_written(helo: str) -> None:
    (mail,) = mails(MESSAGE._replace(envelope=PLAIN._replace(helo=helo)))
    front = parse_front(mail)
    assert front is not None
    assert again(front, mail) == mail


def test_no_part_of_the_fields_is_enough() -> None:
    (mail,) = mails(MESSAGE)
    size = len(mail) - len(MESSAGE.content)
    assert [n for n in range(len(mail)) if parse_front(mail[:n]) is not None] == [
        *range(size, len(mail))
    ]
    assert parse_front(mail.replace(b"\r\n", b"\n")) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda mail: b"Received: from x by y; Tue, 14 Nov 2023 22:13:20 +0000\r\n" + mail,
        lambda mail: b"\r\n" + mail,
        lambda mail: mail.replace(b"Delivered-To: ", b"Delivered-To:"),
        lambda mail: mail.replace(b"Delivered-To: u@", b"Delivered-To: v@"),
        lambda mail: mail.replace(b"(unknown ", b"(two words "),
        lambda mail: mail.replace(b"(unknown ", b"("),
        lambda mail: mail.replace(b" with ESMTP", b" with ESMTPSA"),
        lambda mail: mail.replace(b" with ESMTP", b" with ESMTPS"),
        lambda mail: mail.replace(b" with ESMTP", b" with ESMTP (TLSv1.3:X)"),
        lambda mail: mail.replace(b" with ESMTP", b" with ESMTPS ()"),
        lambda mail: mail.replace(b" with ESMTP", b" with ESMTPS (using TLSv1.3)"),
        lambda mail: mail.replace(b" with ESMTP", b" with LMTPA"),
        lambda mail: mail.replace(b" with ESMTP", b" with SMTPS (TLSv1.3:X)"),
        lambda mail: mail.replace(b"Tue, 14", b"Mon, 14"),
        lambda mail: mail.replace(b"14 Nov", b"31 Nov"),
        lambda mail: mail.replace(b"14 Nov", b"14 Nob"),
        lambda mail: mail.replace(b"+0000", b"+0100"),
        lambda mail: mail.replace(b"Return-Path: <s", b"Return-Path: <\xffs"),
        lambda mail: mail.replace(ID.encode(), b"17"),
        lambda mail: b"",
    ],
)
def test_fields_of_others(change) -> None:
    (mail,) = mails(MESSAGE)
    assert change(mail) != mail
    assert parse_front(change(mail)) is None


@given(st.binary(max_size=300))
def test_any_octets_are_not_ours(octets: bytes) -> None:
    assert parse_front(octets) is None
