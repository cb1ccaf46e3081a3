"""Does a ChunkReader take the octets that BDAT announced, all of them and no more?"""

from __future__ import annotations

import tracemalloc

from hypothesis import example, given
from hypothesis import strategies as st

from gsmtpd.smtp import reply
from gsmtpd.smtp.framing import ChunkReader

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6)
cuts = st.lists(st.integers(1, 30), max_size=30)


def pieces(wire: bytes, lengths: list[int]) -> list[bytes]:
    """`wire` in pieces of those lengths, and the rest in one."""
    cut = []
    for length in lengths:
        cut.append(wire[:length])
        wire = wire[length:]
    return [*filter(None, cut), wire]


@given(sizes, st.binary(max_size=300), cuts, st.integers(0, 200))
@example([0], b"", [], 0)
@example([5, 0, 5], b"0123456789abc", [1] * 13, 10)
@example([5, 5], b"0123456789", [], 9)
def test_chunks(chunks: list[int], octets: bytes, lengths: list[int], limit: int) -> None:
    """Against slices of the whole; each chunk is fed what is left, cut anywhere."""
    total = sum(chunks)
    octets = octets.ljust(total, b"x")
    reader = ChunkReader(limit)
    waiting = pieces(octets, lengths)
    taken = 0
    for number, size in enumerate(chunks):
        last = number == len(chunks) - 1
        reader.expect(size, last)
        rest = None
        while rest is None:
            rest = reader.feed(waiting.pop(0) if waiting else b"")
            if rest is None:
                assert reader.size < taken + size
            assert reader.kept <= limit
        waiting.insert(0, rest)
        taken += size
        assert (reader.size, reader.chunk, reader.last) == (taken, size, last)
        assert reader.too_big is (taken > limit)
        assert reader.kept == (0 if reader.too_big else taken)
    assert b"".join(waiting) == octets[total:]
    if not reader.too_big:
        assert reader.content() == octets[:total]


@given(st.integers(0, 50), st.integers(0, 50))
def test_dropped(before: int, behind: int) -> None:
    reader = ChunkReader(1000)
    reader.expect(before + behind, last=True)
    reader.feed(b"x" * before)
    reader.drop()
    assert (reader.dropped, reader.too_big, reader.kept) == (True, True, 0)
    assert reader.feed(b"x" * behind + b"rest") == b"rest"
    assert (reader.too_big, reader.kept, reader.size) == (True, 0, before + behind)


def test_what_is_refused_is_not_kept() -> None:
    reader = ChunkReader(0, reply.MAIL_FIRST)
    reader.expect(1 << 30, last=False)
    tracemalloc.start()
    try:
        for _ in range((1 << 30) // (1 << 20) - 1):
            assert reader.feed(bytes(1 << 20)) is None
        assert reader.feed(bytes(1 << 20) + b"NOOP\r\n") == b"NOOP\r\n"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * (1 << 20)
    assert reader.refusal == reply.MAIL_FIRST


def test_chunks_in_the_smallest_pieces_take_linear_time() -> None:
    """A message is gathered in place; 200,000 copies of it would take minutes."""
    reader = ChunkReader(1 << 20)
    for _ in range(200_000):
        reader.expect(1, last=False)
        assert reader.feed(b"x") == b""
    assert reader.content() == b"x" * 200_000
