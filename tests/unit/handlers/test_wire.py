"""Does the wire hand over whole frames, however they come, and never wait for ever?"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.handlers import wire
from gsmtpd.handlers.wire import Wire, WireError


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire, and the bare other end of it."""
    ours, theirs = socket.socketpair()
    made = Wire(ours)
    yield made, theirs
    made.close()
    theirs.close()


def beside(do: Callable[[], object]) -> threading.Thread:
    """A thread that does it."""
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def soon() -> float:
    return time.monotonic() + 20


# --- frames ---------------------------------------------------------------------------------------


JSON = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "octets"),
    st.one_of(st.integers(), st.text(max_size=9), st.booleans(), st.none()),
    max_size=3,
)


class Slow(socket.socket):
    """Hands over no more octets at a time than the next of `sizes` says, and then one by one."""

    sizes: list[int]

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, self.sizes.pop(0) if self.sizes else 1), flags)


@given(st.lists(st.tuples(JSON, st.binary(max_size=40)), max_size=4), st.lists(st.integers(1, 99)))
def test_frames_in_any_pieces(frames: list[tuple[dict[str, Any], bytes]], sizes: list[int]) -> None:
    """As many as were said, whole, wherever the stream is cut."""
    first, second = socket.socketpair()
    slow = Slow(fileno=second.detach())
    slow.sizes = sizes
    sender, receiver = Wire(first), Wire(slow)
    for frame, octets in frames:
        sender.say(frame, octets)
    sender.close()
    assert [receiver.hear(soon()) for _ in frames] == frames
    with pytest.raises(WireError, match="it is closed"):
        receiver.hear(soon())
    receiver.close()


def test_many_octets_both_ways() -> None:
    """More than any socket holds: nobody waits for what the other has not read."""
    ours, theirs = map(Wire, socket.socketpair())
    octets = bytes(range(256)) * (100_000_000 // 256)

    def echo() -> None:
        theirs.say(*theirs.hear(soon()), until=soon())

    other = beside(echo)
    ours.say({"n": 1}, octets, soon())
    frame, heard = ours.hear(soon())
    other.join()
    assert frame == {"n": 1}
    assert heard == octets
    ours.close()
    theirs.close()


def test_a_long_line_is_a_frame(pair: tuple[Wire, socket.socket]) -> None:
    ours, theirs = pair
    text = "ü\n" * 1_000_000
    beside(lambda: Wire(theirs).say({"text": text}, b"\n\0"))
    assert ours.hear(soon()) == ({"text": text}, b"\n\0")


def test_what_was_said_before_it_was_closed_is_heard(pair: tuple[Wire, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b'{"a": 1}\n{"octets": 2, "b": 2}\nxy')
    theirs.close()
    assert ours.hear() == ({"a": 1}, b"")
    assert ours.hear() == ({"b": 2}, b"xy")
    with pytest.raises(WireError, match="it is closed"):
        ours.hear()


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b'{"a"', b'{"octets": 3}\n', b'{"octets": 3}\nab'])
def test_it_is_closed_within_a_frame(pair: tuple[Wire, socket.socket], begun: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(begun)
    theirs.close()
    with pytest.raises(WireError):
        ours.hear(soon())


def test_nobody_hears(pair: tuple[Wire, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(WireError):
        ours.say({"a": 1})


def test_it_is_closed_here(pair: tuple[Wire, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    for use in (lambda: ours.say({}), lambda: ours.hear()):
        with pytest.raises(WireError):
            use()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n", b"hello\n", b"\xff\xfe\n", b"[]\n", b"3\n", b"null\n", b'"x"\n', b"{\n",
        b'{"octets": "many"}\n', b'{"octets": null}\n', b'{"octets": {}}\n', b'{"octets": 1e999}\n',
        b'{"octets": -1}\n', b"[" * 100_000 + b"\n", b'{"a": ' + b"9" * 10_000 + b"}\n",
    ],
)  # fmt: skip
def test_what_is_no_frame(pair: tuple[Wire, socket.socket], garbage: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(garbage)
    with pytest.raises(WireError, match="a line that is no frame"):
        ours.hear(soon())


def test_a_line_without_an_end(
    pair: tuple[Wire, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_LINE", 1000)
    ours, theirs = pair
    theirs.sendall(b"x" * 1001)
    with pytest.raises(WireError, match="a line without an end"):
        ours.hear(soon())


@pytest.mark.parametrize("begun", [b"", b'{"a"', b'{"octets": 3}\nab'])
def test_nothing_more_comes(pair: tuple[Wire, socket.socket], begun: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(begun)
    with pytest.raises(TimeoutError):
        ours.hear(time.monotonic() + 0.05)


def test_what_comes_drop_by_drop_is_not_waited_for(pair: tuple[Wire, socket.socket]) -> None:
    """The time is for the frame and not for each piece."""
    ours, theirs = pair
    stopped = threading.Event()

    def drip() -> None:
        while not stopped.wait(0.01):
            theirs.send(b" ")

    dripping = beside(drip)
    try:
        with pytest.raises(TimeoutError):
            ours.hear(time.monotonic() + 0.3)
    finally:
        stopped.set()
        dripping.join()


def test_nobody_reads(pair: tuple[Wire, socket.socket]) -> None:
    ours, _ = pair
    with pytest.raises(TimeoutError):
        ours.say({}, b"x" * 10_000_000, time.monotonic() + 0.05)


def test_the_time_is_over_already(pair: tuple[Wire, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"{}\n")
    with pytest.raises(TimeoutError):
        ours.hear(time.monotonic() - 1)
    with pytest.raises(TimeoutError):
        ours.say({}, b"", time.monotonic() - 1)
    assert ours.hear() == ({}, b"")  # nothing is lost by that
