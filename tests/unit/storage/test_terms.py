"""What may somebody look for, and since when?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gsmtpd.storage import terms
from gsmtpd.storage.moments import moment


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-22", "2026-11-22 00:00:00"),
        ("2026-11-22T09:30:00Z", "2026-11-22 09:30:00"),
        ("2026-11-22 09:30", "2026-11-22 09:30:00"),
        ("2026-11-22T09:30:00+02:00", "2026-11-22 07:30:00"),
        ("0900-01-01", "0900-01-01 00:00:00"),
    ],
)
def test_a_moment(text: str, meant: str) -> None:
    assert moment(text) == meant


@pytest.mark.parametrize(
    "text", ["", "now", "2026-13-01", "0001-01-01T00:00:00+23:00", "12", "999999999d"]
)
def test_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; write UTC as 2026-11-22"):
        moment(text)


def test_an_age() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    meant = datetime.fromisoformat(moment("15m")).replace(tzinfo=UTC)
    assert before <= meant + timedelta(minutes=15) <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["nope", "@example.com", "joe@", "@", "postmaste"])
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address; write one like user@example.com"):
        terms.address(text)


@pytest.mark.parametrize("text", ["a@b", "Postmaster", '"a@b"@[127.0.0.1]'])
def test_an_address(text: str) -> None:
    assert terms.address(text) == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [("<a@b>", "a@b"), ('<"a>b"@c>', '"a>b"@c'), ("<a@b", "<a@b"), ("<@>", "<@>")],
)
def test_an_address_in_brackets(text: str, meant: str) -> None:
    assert terms.mailbox(text) == terms.address(text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [("example.com", "example.com"), ("@example.com", "example.com"), ("@", "@")],
)
def test_a_domain(text: str, meant: str) -> None:
    assert terms.domain(text) == meant


def test_a_text_has_a_bound() -> None:
    """SQLite refuses patterns of 50,000 octets."""
    assert terms.text("x" * terms.MAX_TEXT)
    with pytest.raises(ValueError, match="say 320 characters at most"):
        terms.text("x" * (terms.MAX_TEXT + 1))


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_no_text(text: str) -> None:
    with pytest.raises(ValueError, match="say some text, or leave it out"):
        terms.text(text)
