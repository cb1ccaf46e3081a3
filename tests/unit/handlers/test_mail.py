"""What does a handler read of a mail?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gsmtpd.handlers import Mail
from gsmtpd.message.words import CONTROL
from tests.handled import CONTENT, FACTS, HOSTILE, RECEIVED_AT, front, mail_of, with_fields

MULTIPART = (
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n =?utf-8?q?_an_alle?=\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\nSch\xf6n\r\n"
    b"--b\r\nContent-Type: application/pdf\r\n\r\n%PDF\r\n--b--\r\n"
)


def test_all_its_facts_are_attributes() -> None:
    mail = mail_of()
    names = [name for name in FACTS._fields if name != "received_at"]
    assert [getattr(mail, name) for name in names] == [getattr(FACTS, name) for name in names]
    assert mail.received == datetime.fromtimestamp(RECEIVED_AT, UTC)
    assert mail.received.utcoffset() is not None


def test_what_its_sender_wrote_begins_behind_our_fields() -> None:
    assert mail_of().content == CONTENT
    assert mail_of().raw == front(FACTS) + CONTENT
    assert Mail(FACTS, CONTENT).content == CONTENT  # it has none, where it was imported


def test_it_is_decoded() -> None:
    mail = mail_of(MULTIPART)
    assert mail.subject == mail.header("sUBJECT") == "Grüße an alle"
    assert mail.text.strip() == "Schön"
    assert mail.message["Subject"] == "Grüße an alle"
    assert [part.get_content_type() for part in mail.message.iter_attachments()] == [
        "application/pdf"
    ]


def test_the_fields_alone() -> None:
    mail = mail_of(MULTIPART + b"x" * 1_000_000)
    assert mail.header_message["Subject"].startswith("=?utf-8?q?Gr")
    assert mail.header_message["Delivered-To"] == FACTS.recipient
    assert mail.header_message.get_payload() == ""


def test_the_first_field_of_a_name_is_ours() -> None:
    mail = mail_of(with_fields("Return-Path: <forged@example.net>", "X: 1", "x : 2\r\n 3"))
    assert mail.header("Return-Path") == f"<{FACTS.sender}>"
    assert mail.headers("return-path") == [f"<{FACTS.sender}>", "<forged@example.net>"]
    assert mail.headers("X") == ["1", "2 3"]
    assert mail.header("Y") == ""
    assert mail.headers("Y") == []


def test_what_goes_on_in_the_next_line_is_no_field() -> None:
    mail = mail_of(b"X: a\r\n : b\r\n Y: c\r\nno field\r\nZ: d\r\n\r\nZ: e\r\n")
    assert mail.headers("X") == ["a : b Y: c"]
    assert [mail.headers(name) for name in ("", " Y", "Y", "Z", "no field\r\nZ")] == [[]] * 5


@pytest.mark.parametrize("separator", [b"From joe Mon Jan  1 00:00:00 2024\n", b">From x\n"])
def test_the_separator_of_an_mbox_hides_no_field(separator: bytes) -> None:
    assert mail_of(separator + CONTENT).subject == "Will it rain?"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"no field at all",
        b"Subject:",
        b"\0\xff\x80" * 5000,
        b"Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\n--\r\n",
        b"Content-Type: text/plain; charset=\xff\xfe\r\n\r\n\xff",
        b"Content-Type: text/html\r\n\r\n<" + b"<b" * 5000,
        b"Subject: =?x?b?//?= =?utf-8?q?=ff=00=0a?=\r\n" * 2000,
        *(f"Subject: {each}\r\n\r\n{each}".encode(errors="surrogatepass") for each in HOSTILE),
    ],
    ids=range(9 + len(HOSTILE)),
)
def test_no_content_makes_reading_raise(content: bytes) -> None:
    mail = Mail(FACTS, content)
    for name in ("Subject", "", "a b", "ü", "(", "X\n"):
        assert not CONTROL.search(mail.header(name))
    assert isinstance(mail.text, str)
    mail.text.encode()
    assert not mail.header_message.is_multipart()


def test_notes_are_text_that_a_database_takes() -> None:
    mail = mail_of()
    mail.annotate("who", "a\udcff")
    mail.annotate("how much", 5)  # type: ignore[arg-type]
    assert mail.notes == [("who", "a?"), ("how much", "5")]


def test_a_mail_is_replied_to_once() -> None:
    mail = mail_of()
    mail.reply("Yes.")
    with pytest.raises(ValueError, match="once"):
        mail.reply("No.")
    assert mail.answer is not None
    assert mail.answer.text == "Yes."
