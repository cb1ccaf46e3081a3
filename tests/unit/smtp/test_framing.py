"""Where does a message end, and which octets are it? The tables are the specification."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import pytest

from gsmtpd.smtp.framing import DataReader, has_bare_newline
from tests.dialogs.false_ends import END, FALSE_ENDS, unstuffed

WIRES = [  # what is sent behind 354, what the message is, what is left over
    (b".\r\n", b"", b""),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b"a\r\n.\r\n", b"a\r\n", b""),
    (b"a\r\n\r\n.\r\n", b"a\r\n\r\n", b""),
    (b"a\r\n.\r\nMAIL", b"a\r\n", b"MAIL"),
    (b".\r\n.\r\n", b"", b".\r\n"),
    (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
    # One leading dot of a line is removed (RFC 5321 section 4.5.2), whatever stands behind it.
    (b"..\r\n.\r\n", b".\r\n", b""),
    (b"...\r\n.\r\n", b"..\r\n", b""),
    (b".a\r\n.\r\n", b"a\r\n", b""),
    (b"a\r\n..\r\n.\r\n", b"a\r\n.\r\n", b""),
    (b"a\r\n..b\r\n..\r\n.c\r\n.\r\n", b"a\r\n.b\r\n.\r\nc\r\n", b""),
    (b"..\r\n..\r\n.\r\n", b".\r\n.\r\n", b""),
    (b"a..\r\nb.\r\n.\r\n", b"a..\r\nb.\r\n", b""),
    # Line ends that are none.
    (b"a\n.b\r\n.\r\n", b"a\n.b\r\n", b""),
    (b"a\n..b\r\n.\r\n", b"a\n..b\r\n", b""),
    (b"a\r..b\r\n.\r\n", b"a\r..b\r\n", b""),
    (b"\r\r\n.\r\n", b"\r\r\n", b""),
    (b"\n\r\n.\r\n", b"\n\r\n", b""),
    (b"\r\n.\r\r\n.\r\n", b"\r\n\r\r\n", b""),
    (b".\r\r\n.\r\n", b"\r\r\n", b""),
    (b".\n\r\n.\r\n", b"\n\r\n", b""),
    (b"\r\n.\r.\r\n.\r\n", b"\r\n\r.\r\n", b""),
    (b"\x00\xff\x80\r\n.\r\n", b"\x00\xff\x80\r\n", b""),
    *[
        (b"a" + false + b"b" + END, unstuffed(b"a" + false + b"b") + b"\r\n", b"")
        for false in FALSE_ENDS.values()
    ],
    *[  # right behind 354
        (false + b"b" + END, unstuffed(false + b"b") + b"\r\n", b"")
        for false in FALSE_ENDS.values()
    ],
    *[  # right before the true end
        (b"a" + false + END, unstuffed(b"a" + false) + b"\r\n", b"")
        for false in FALSE_ENDS.values()
    ],
]


def read(pieces: Iterable[bytes], limit: int = 10**6) -> tuple[DataReader, bytes | None]:
    """A reader that was fed `pieces` up to the end of its message, and what stands behind it."""
    reader = DataReader(limit)
    rest: bytes | None = None
    for piece in pieces:
        # What is fed behind the end is none of the reader's.
        rest = reader.feed(piece) if rest is None else rest + piece
    return reader, rest


@pytest.mark.parametrize(("wire", "content", "rest"), WIRES)
def test_whole(wire: bytes, content: bytes, rest: bytes) -> None:
    reader, left = read([wire])
    assert left == rest
    assert reader.content() == content
    assert reader.size == len(content)
    assert not reader.too_big


@pytest.mark.parametrize(("wire", "content", "rest"), WIRES)
def test_byte_by_byte(wire: bytes, content: bytes, rest: bytes) -> None:
    reader, left = read(wire[i : i + 1] for i in range(len(wire)))
    assert (reader.content(), left) == (content, rest)


@pytest.mark.parametrize(("wire", "content", "rest"), WIRES)
def test_every_pair_of_cuts(wire: bytes, content: bytes, rest: bytes) -> None:
    for first in range(len(wire)):
        for second in range(first, len(wire)):
            reader, left = read([wire[:first], wire[first:second], wire[second:]])
            assert (reader.content(), left) == (content, rest), (first, second)


@pytest.mark.parametrize("name", FALSE_ENDS)
def test_no_false_end_ends(name: str) -> None:
    for before in (b"", b"a", b"a\r\n"):
        reader = DataReader(1000)
        assert reader.feed(before + FALSE_ENDS[name]) is None
        assert reader.feed(b"MAIL FROM:<>\r\n") is None


@pytest.mark.parametrize("before", ["\r", "\n", "\r\n..", ".\r", "x"])
def test_the_end_needs_its_whole_self(before: str) -> None:
    reader = DataReader(1000)
    assert reader.feed(before.encode()) is None
    for octet in (b"\r", b"\n", b".", b"\r"):
        assert reader.feed(octet) is None
    assert reader.feed(b"\n") == b""


@pytest.mark.parametrize(
    ("size", "too_big"), [(0, False), (99, False), (100, False), (101, True), (5000, True)]
)
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_limit(size: int, too_big: bool, piece: int) -> None:
    content = (b"x" * size)[: max(size - 2, 0)] + b"\r\n" if size else b""
    wire = content + b".\r\nrest"
    reader, rest = read((wire[i : i + piece] for i in range(0, len(wire), piece)), limit=100)
    assert rest == b"rest"
    assert reader.size == size
    assert reader.too_big is too_big
    if not too_big:
        assert reader.content() == content


def test_stuffed_dots_are_not_counted() -> None:
    reader, rest = read([b"..\r\n" * 20 + b".\r\n"], limit=60)
    assert (rest, reader.size, reader.too_big) == (b"", 60, False)


def test_a_message_that_is_too_big_is_not_kept() -> None:
    chunk = bytes(65536)
    tracemalloc.start()
    try:
        reader = DataReader(1 << 20)
        for _ in range(1024):  # 64 MiB in one line
            assert reader.feed(chunk) is None
        assert reader.feed(END) == b""
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.too_big
    assert reader.size == 64 * 1024 * 1024 + 2
    assert peak < 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("content", "bare"),
    [
        (b"", False),
        (b"a", False),
        (b"a\r\n", False),
        (b"\r\n\r\n", False),
        (b"a\nb", True),
        (b"\n", True),
        (b"\r", True),
        (b"a\r\nb\n", True),
        (b"a\r\r\n", True),
        (b"a\n\r\n", True),
        (b"a\r\n\r", True),
        (b"a\n\rb", True),
        (b"a\x0bb\x0cc\x1cd\x85e", False),
    ],
)
def test_has_bare_newline(content: bytes, bare: bool) -> None:
    assert has_bare_newline(content) is bare
