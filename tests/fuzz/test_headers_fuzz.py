"""Whatever the octets: no exception, valid Unicode on one line, and an end in linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.message import charsets
from gsmtpd.message import headers as module
from gsmtpd.message.charsets import to_text
from gsmtpd.message.headers import MAX_HEADER, cut, read_headers
from gsmtpd.message.words import MAX_VALUE

NAMES = [b"From", b"Subject", b"Message-ID", b"Reply-To", b"Sender", b"Content-Type", b"Received"]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\n\t", b" ", b"\t", b":", b";", b",", b"<",
    b">", b"(", b")", b'"', b"\\", b"@", b"[", b"]", b".", b"'", b"=", b"?", b"=?", b"?=", b"?Q?",
    b"?b?", b"=?utf-8?Q?", b"=?utf-8?B?", b"=?utf-7?Q?+2AA-?=", b"=?gb2312?B?1tA=?=",
    b"=?iso-2022-jp?B?", b"=?iso-2022-kr?q?=1B$)C=0E?=",
    b"=C3", b"=BC", b"_", b"YQ==", b"\xc3\xbc", b"\xfc", b"\x00",
    b"\x1b$B", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xff", b"joe@example.com", b"a", b"Joe", b"; ",
    b"charset=", b"charset*=utf-8''", b"text/plain", b"boundary=", b"From ", b"X:",
    *[name + b": " for name in NAMES],
]  # fmt: skip
SPECIAL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

pieces = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join)
octets = st.one_of(pieces, st.binary(max_size=300), st.text(max_size=200).map(str.encode))


def check(content: bytes) -> None:
    headers = read_headers(content)
    for value in headers[:-1]:
        assert isinstance(value, str)
        value.encode("utf-8")
        assert SPECIAL.search(value) is None
        assert value == value.strip()
        assert len(value) <= 2 * MAX_VALUE
    for address in (headers.from_, headers.reply_to, headers.sender):
        assert address == "" or re.fullmatch(r"[^@]+@[^@]+|\".*\"@[^@]+", address)
    assert headers.received <= content.lower().count(b"received")


@settings(max_examples=400, deadline=None)
@given(octets)
def test_any_octets(content: bytes) -> None:
    check(content)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), octets), max_size=8))
def test_any_octets_in_fields(fields: list[tuple[bytes, bytes]]) -> None:
    check(b"\r\n".join(name + b": " + body for name, body in fields))


@settings(max_examples=200, deadline=None)
@given(octets)
def test_a_body_says_nothing(body: bytes) -> None:
    section = b"From: Joe <joe@example.com>\r\nX-Any: thing\r\n"
    assert read_headers(section + b"\r\n" + body) == read_headers(section)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*" \t:;,<>()\"\\@[].'=?-", "a@b.example", "a", "J"]), max_size=12))
def test_the_short_way_to_an_address_finds_what_the_long_way_finds(parts: list[str]) -> None:
    body = "".join(parts)
    short = module._match_ordinary(body)
    if short is not None and "=?" not in short[0]:
        assert module._first_address(body) == module._address(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100), st.sampled_from(sorted(charsets._CODECS)) | st.text(max_size=20))
def test_to_text_gives_valid_unicode(content: bytes, charset: str) -> None:
    to_text(content, charset).encode("utf-8")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ae\u0301\u200d\ufe0f語👩", max_size=80), st.integers(0, 90))
def test_cut_is_a_prefix_that_fits(text: str, length: int) -> None:
    result = cut(text, length)
    assert text.startswith(result)
    assert min(len(text), length) - 32 <= len(result) <= length


FRONTS = [b"", b"X:", b"Subject: a", b"From: @ ", b'From: "@', b"From: <a@", b"Content-Type: a/b;"]
UNITS = [
    b"a:", b"a:\n", b"\r\n ", b"\r\n", b"\n", b"\r", b" ", b"\t", b"(", b"((@ ", b")(", b"<", b"<@",
    b"@", b"a@", b" @ .", b",", b", @", b";", b":", b'"', b'\\"', b'"\\', b"[", b"a@[", b"\\",
    b"=?", b"=?a", b"=?a?q?", b"=?a?q?x", b"=?a?b?a?= ", b"=?a?q?=41?= =?b?q?=41?=", b"?=", b"=",
    b"=?utf-7?q?+2AA-?= ", b"=?gb2312?b?1tA=?=", b";a=", b';a="', b"; ", b";charset", b"\xc3",
    b"\xff", b"a", b"a.", b"'", b"From:", b"From:\n", b"From \n", b"received:a\n", b"Subject:\r\n ",
    b"\x00",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("front", FRONTS)
def test_hostile_repetition_ends(front: bytes, unit: bytes) -> None:
    # Without a clock: in the square of 64 KiB this test would take minutes.
    content = front + unit * (2 * MAX_HEADER // len(unit))
    check(content)
    check(content[:MAX_HEADER] + b"x\r\n\r\n")
    check(content[:1000] + b"\r\nSubject: " + content[:MAX_VALUE] + b"\r\nSender: " + content)
