"""Is each reply what RFC 5321 section 4.2 and RFC 2034 say a reply is?"""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply, queued
from tests.servers import ROOT

CANNED = {name: value for name, value in vars(reply).items() if isinstance(value, Reply)}
LINE = re.compile(rb"[2-5][0-5][0-9][ -](?:[245]\.[0-9]{1,3}\.[0-9]{1,3} )?[\x20-\x7e]+")


@pytest.mark.parametrize(
    ("made", "wire"),
    [
        (Reply(250, "2.0.0", "Ok"), b"250 2.0.0 Ok\r\n"),
        (Reply(354, "", "Go on"), b"354 Go on\r\n"),
        (Reply(250, "", "mx", "SIZE 1", "HELP"), b"250-mx\r\n250-SIZE 1\r\n250 HELP\r\n"),
        (Reply(214, "2.0.0", "a", "b"), b"214-2.0.0 a\r\n214 2.0.0 b\r\n"),
        (Reply(250, "", "mx ü.example"), b"250 mx ?.example\r\n"),
        (queued("abc"), b"250 2.0.0 OK: queued as abc\r\n"),
    ],
)
def test_wire(made: Reply, wire: bytes) -> None:
    assert made.wire == wire


@pytest.mark.parametrize("text", ["a\r\nb", "a\nb", "a\r", "\n"])
def test_a_line_cannot_end_its_reply(text: str) -> None:
    with pytest.raises(ValueError, match="CR or LF"):
        Reply(250, "2.0.0", "fine", text)


@given(st.text())
def test_no_text_adds_a_line(text: str) -> None:
    try:
        wire = Reply(550, "5.7.1", text).wire
    except ValueError:
        return
    assert wire.startswith(b"550 5.7.1 ")
    assert len(wire.splitlines()) == 1 or b"\x0b" in wire or b"\x0c" in wire
    assert wire.count(b"\r") == wire.count(b"\n") == 1


@pytest.mark.parametrize(
    ("code", "positive"), [(214, True), (250, True), (354, True), (421, False), (554, False)]
)
def test_positive(code: int, positive: bool) -> None:
    assert Reply(code, "", "x").positive is positive


def test_a_reply_is_a_value() -> None:
    assert Reply(250, "2.0.0", "Ok") == reply.OK
    assert Reply(250, "2.0.0", "Ok.") != reply.OK
    assert hash(Reply(250, "2.0.0", "Ok")) == hash(reply.OK)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reply.OK.code = 550  # type: ignore[misc]
    assert str(reply.OK) == "250 2.0.0 Ok"
    assert str(reply.START_DATA) == "354 End data with <CR><LF>.<CR><LF>"


@pytest.mark.parametrize("name", CANNED)
def test_canned(name: str) -> None:
    canned = CANNED[name]
    for line in canned.wire.split(b"\r\n")[:-1]:
        assert LINE.fullmatch(line)
        assert len(line) + 2 <= 512  # RFC 5321 section 4.5.3.1.5
    if canned.code == 354:
        assert canned.enhanced == ""
    else:
        assert canned.enhanced[0] == str(canned.code)[0]  # RFC 2034 section 4


def test_every_canned_reply_stands_once() -> None:
    # INTERNAL_ERROR and STORAGE_TROUBLE share their codes, and no two share their text.
    assert len({str(canned) for canned in CANNED.values()}) == len(CANNED)


@pytest.mark.parametrize("name", CANNED)
def test_the_document_has_each_of_them(name: str) -> None:
    canned = CANNED[name]
    code = " ".join(filter(None, (str(canned.code), canned.enhanced)))
    assert code in (ROOT / "docs/protocol.md").read_text("utf-8")


def test_trouble_of_ours_is_never_permanent() -> None:
    ours = [
        *("STORAGE_TROUBLE", "NO_SPACE", "NO_MEMORY", "INTERNAL_ERROR", "SHUTTING_DOWN"),
        *("TOO_MANY_CLIENTS", "UNAVAILABLE"),
    ]
    assert {CANNED[name].code // 100 for name in ours} == {4}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (reply.TOO_MANY_ERRORS, "421 4.7.0"),
        (reply.TOO_MANY_COMMANDS, "421 4.7.0"),
        (reply.TOO_MANY_MESSAGES, "421 4.7.0"),
        (reply.TIMED_OUT, "421 4.4.2"),
        (reply.SESSION_TOO_LONG, "421 4.4.2"),
        (reply.SHUTTING_DOWN, "421 4.3.2"),
        (reply.TOO_MANY_CLIENTS, "421 4.3.2"),
        (reply.STORAGE_TROUBLE, "451 4.3.0"),
        (reply.INTERNAL_ERROR, "451 4.3.0"),
        (reply.NO_SPACE, "452 4.3.1"),
    ],
)
def test_what_a_server_says_of_itself(said: Reply, code: str) -> None:
    assert f"{said.code} {said.enhanced}" == code
