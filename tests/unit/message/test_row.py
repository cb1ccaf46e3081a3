"""Which rows does a message become? The headers that are read have their own tests."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.message.row import COLUMNS, WIDTHS, Message, Row, RowMaker
from gsmtpd.message.trace import delivery_fields, received
from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.schema import statements

U = Mailbox("u", "example.com")
V = Mailbox("v", "other.example")
SENDER = Mailbox("sender", "example.org")
CONTENT = (
    b"From: Joe <joe@example.org>\r\n"
    b"To: all@example.com\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"Message-ID: <1@example.org>\r\n"
    b"Reply-To: reply@example.org\r\n"
    b"Sender: list@example.org\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"\r\n"
    b"Body\r\n"
)
ENVELOPE = Envelope("client.example.org", True, SENDER, (U,))
MESSAGE = Message("0123456789abcdef" * 2, ENVELOPE, CONTENT, "192.0.2.1", 1_700_000_000.9)


def rows(message: Message = MESSAGE, primary_domain: str | None = None) -> list[Row]:
    """The rows of `message` on mx.example.com."""
    return list(RowMaker("mx.example.com", primary_domain).rows(message))


def enveloped(**changes: Any) -> Message:
    """The message with another envelope."""
    return MESSAGE._replace(envelope=ENVELOPE._replace(**changes))


def test_the_columns_are_those_of_the_table() -> None:
    names = (
        "date from to subject body charset mail spam_score hash content_type recipient has_attach"
        " ip_addr return_path helo is_tls message_id reply_to sender mail_encoding content_hash"
        " size"
    )
    assert sorted(COLUMNS) == sorted(names.split())


def test_the_widths_are_those_of_our_own_schema() -> None:
    (table,) = [sql for sql in statements("mysql") if "TABLE IF NOT EXISTS `new_mail`" in sql]
    widths = dict(re.findall(r"^  `([a-z_]+)` varchar\(([0-9]+)\)", table, re.MULTILINE))
    # One of a few words of our own.
    del widths["mail_encoding"]
    assert {name: str(width) for name, width in WIDTHS.items()} == widths


def test_a_row() -> None:
    (row,) = rows()
    front = delivery_fields("u@example.com", "sender@example.org") + received(
        ENVELOPE, "192.0.2.1", "mx.example.com", MESSAGE.id, MESSAGE.received_at
    )
    assert row == Row(
        date="2023-11-14 22:13:20",
        from_="joe@example.org",
        to="u@example.com",
        subject="Grüße",
        body="Body\n",
        charset="utf-8",
        spam_score=0.0,
        hash="0123456789abcdef" * 2,
        content_type="text/plain; charset=utf-8",
        recipient="u@example.com",
        has_attach=0,
        ip_addr="192.0.2.1",
        return_path="sender@example.org",
        helo="client.example.org",
        is_tls=0,
        message_id="<1@example.org>",
        reply_to="reply@example.org",
        sender="list@example.org",
        mail_encoding="",
        content_hash=sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        mail=front.encode() + CONTENT,
    )


def test_a_row_for_each_recipient_in_order() -> None:
    made = rows(enveloped(recipients=(V, U, V)))
    assert [row.recipient for row in made] == [
        "v@other.example",
        "u@example.com",
        "v@other.example",
    ]
    assert [row.to for row in made] == [row.recipient for row in made]
    for row in made:
        assert row.mail.startswith(f"Delivered-To: {row.recipient}\r\n".encode())
        # No recipient sees another.
        others = {"u@example.com", "v@other.example"} - {row.recipient}
        assert not any(other.encode() in row.mail for other in others)
    assert len({row.hash for row in made}) == len({row.content_hash for row in made}) == 1


@pytest.mark.parametrize(
    ("recipient", "primary", "to", "stored"),
    [
        (U, None, "u@example.com", "u@example.com"),
        (U, "main.example", "u@main.example", "u@example.com"),
        (POSTMASTER, None, "postmaster@mx.example.com", "postmaster@mx.example.com"),
        (POSTMASTER, "main.example", "postmaster@main.example", "postmaster@mx.example.com"),
        (Mailbox('"a b"', "[IPv6:::1]"), None, '"a b"@[IPv6:::1]', '"a b"@[IPv6:::1]'),
        (Mailbox("ü", "bücher.example"), None, "ü@bücher.example", "ü@bücher.example"),
    ],
)
def test_to_and_recipient(recipient: Mailbox, primary: str | None, to: str, stored: str) -> None:
    (row,) = rows(enveloped(recipients=(recipient,)), primary)
    assert (row.to, row.recipient) == (to, stored)
    assert row.mail.startswith(f"Delivered-To: {stored}\r\n".encode())


def test_the_null_sender() -> None:
    (row,) = rows(enveloped(sender=None)._replace(content=b"\r\nBounce\r\n"))
    assert row.return_path == row.from_ == ""
    assert b"\r\nReturn-Path: <>\r\n" in row.mail


def test_from_is_the_reverse_path_where_no_header_says_it() -> None:
    (row,) = rows(MESSAGE._replace(content=b"Subject: x\r\n\r\n"))
    assert row.from_ == "sender@example.org"


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\x00\xff\r\n.\r\nx", b"a\nb\rc", b"no end"])
def test_the_octets_are_never_changed(content: bytes) -> None:
    (row,) = rows(MESSAGE._replace(content=content))
    assert row.mail.endswith(b"2023 22:13:20 +0000\r\n" + content)
    assert row.size == len(content)
    assert row.content_hash == sha256(content).hexdigest()


def test_tls_is_told() -> None:
    (row,) = rows(enveloped(tls="TLSv1.2:ECDHE-RSA-AES128-GCM-SHA256"))
    assert row.is_tls == 1
    assert b" with ESMTPS (TLSv1.2:ECDHE-RSA-AES128-GCM-SHA256) id " in row.mail


def test_helo_is_one_printable_line() -> None:
    (row,) = rows(enveloped(helo="a\x00b\tc\x1bd\u2028e\x85f ö"))
    assert row.helo == "a?b?c?d?e?f ö"


def test_long_values_are_cut_to_their_columns() -> None:
    long = b"x" * 5000
    fields = [b"From: %s@example.org", b"Subject: %s", b"Message-ID: <%s>", b"Reply-To: %s@a",
              b"Sender: %s@a", b"Content-Type: text/%s; charset=%s"]  # fmt: skip
    content = b"\r\n".join(field.replace(b"%s", long) for field in fields) + b"\r\n\r\n"
    (row,) = rows(enveloped(helo="h" * 400)._replace(content=content))
    named: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    for column, width in WIDTHS.items():
        assert len(named[column]) <= width, column
    assert row.subject == "x" * 255
    assert row.helo == "h" * 255
    assert row.mail.endswith(content)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=300), st.booleans())
def test_every_message_becomes_its_rows(content: bytes, helo: str, utf8: bool) -> None:
    message = enveloped(helo=helo, recipients=(U, V), smtputf8=utf8)._replace(content=content)
    for row in rows(message):
        named: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
        for column, width in WIDTHS.items():
            text = named[column]
            assert len(text) <= width
            text.encode()  # no surrogates
            assert "\n" not in text
        assert row.mail.endswith(content)
