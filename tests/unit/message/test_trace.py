"""Which fields stand in front of a message? (RFC 5321 section 4.4)"""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.message.trace import delivery_fields, protocol, received
from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.session import Envelope

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


@pytest.mark.parametrize(
    ("envelope", "said"),
    [
        (PLAIN, "ESMTP"),
        (PLAIN._replace(esmtp=False), "SMTP"),
        (PLAIN._replace(smtputf8=True), "UTF8SMTP"),
        (PLAIN._replace(body="8BITMIME"), "ESMTP"),
    ],
)
def test_protocol(envelope: Envelope, said: str) -> None:
    assert protocol(envelope) == said
    assert f" with {said} id " in unfolded(field(envelope))


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
