"""What do the Magic 8 Ball and who is away answer?"""

from __future__ import annotations

from pathlib import Path

import pytest

from gsmtpd.handlers.autoreply import AutoReply
from gsmtpd.handlers.loading import SHIPPED, load
from gsmtpd.handlers.magic8ball import ANSWERS, Magic8Ball
from tests.handled import CONTENT, HOSTILE, mail_of, prepared, with_fields


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_handler_can_be_had(name: str) -> None:
    assert load(name, "").__module__.startswith("gsmtpd.handlers.")


def test_the_ball_answers_the_subject_alike_at_each_try() -> None:
    texts = set()
    for attempt in (1, 2):
        mail = mail_of(attempt=attempt)
        prepared(Magic8Ball).handle(mail)
        assert mail.answer is not None
        texts.add(mail.answer.text)
    (text,) = texts
    assert "Will it rain?" in text
    assert any(answer in text for answer in ANSWERS)


def test_the_ball_has_more_than_one_answer() -> None:
    texts = set()
    for number in range(50):
        mail = mail_of(b"\r\n", delivery=f"{number:032x}")
        prepared(Magic8Ball).handle(mail)
        assert mail.answer is not None
        texts.add(mail.answer.text)
    assert len(texts) > 5


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        (["To: ball@example.com"], {}),
        (["To: =?utf-8?q?B=C3=A4ll?= <BALL@Example.Com>, x@y"], {}),
        (["Cc: x@y,\r\n ball@example.com"], {}),
        (["Resent-To: ball@example.com"], {}),
        (["To: real@example.com"], {"mailbox": "real@example.com"}),
    ],
)
def test_who_is_named_replies(fields: list[str], facts: dict[str, str]) -> None:
    mail = mail_of(("\r\n".join(fields) + "\r\n\r\n").encode(), **facts)
    prepared(AutoReply, text="I am away.", subject="Away").handle(mail)
    assert mail.answer == ("I am away.", "Away")


@pytest.mark.parametrize(
    "field",
    [
        *("To: all@example.com", "Bcc:", "X: ball@example.com", "To: a.ball@example.com"),
        *("To: ball@example.com.example.net", "To: ball+x@example.com", "To: ballXexample.com"),
        "Subject: ball@example.com",
    ],
)
def test_who_is_not_named_is_silent(field: str) -> None:
    mail = mail_of(f"{field}\r\n\r\nTo: ball@example.com\r\n".encode())
    prepared(AutoReply, text="I am away.").handle(mail)
    assert mail.answer is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_recipient_is_no_pattern(text: str) -> None:
    mail = mail_of(recipient=f"{text}@(.*)+$")
    prepared(AutoReply, text="I am away.").handle(mail)
    assert mail.answer is not None  # for its mailbox
    mail = mail_of(with_fields("X: y"), recipient=".*", mailbox="(")
    prepared(AutoReply, text="I am away.").handle(mail)
    assert mail.answer is None


def test_the_text_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "away.txt"
    path.write_text("Ich bin\nnicht da – bis Montag.\n", "utf-8")
    mail = mail_of(CONTENT)
    prepared(AutoReply, text_file=str(path)).handle(mail)
    assert mail.answer == ("Ich bin\nnicht da – bis Montag.\n", None)


def test_bad_settings_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    (tmp_path / "empty").write_bytes(b" \n")
    for settings, said in (
        ({}, "autoreply needs text"),
        ({"text": "a", "text_file": "/b"}, "autoreply needs text"),
        ({"text_file": "away.txt"}, "text_file = away.txt: write its full path"),
        ({"text_file": "/no/such"}, "text_file = /no/such: No such file"),
        ({"text_file": f"{tmp_path}/latin"}, "no text in UTF-8"),
        ({"text_file": f"{tmp_path}/empty"}, "there is no text"),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            prepared(AutoReply, **settings)
        assert "\n" not in str(raised.value)
