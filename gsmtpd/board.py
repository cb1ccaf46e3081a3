"""Which sessions are there, and what was slow? What each SMTP thread shows while somebody looks.

A file that is memory and has no name (memfd_create(2)) has a slot for each row of the counters,
which its thread alone writes, about once a second and only if it was asked for lately. So nothing
is made of what nobody reads.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

SLOT = 8192  # octets
ASKED_FOR = 5.0  # seconds behind a question in which the threads go on showing
SHOWN_FOR = 5.0  # seconds after which a slot is too old: its thread has ended, or hangs
_HEAD = struct.Struct("=IIq")  # octets of JSON, their CRC-32, and monotonic nanoseconds
_NS = 1_000_000_000

_log = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What a thread shows. sessions, slowest: values for JSON, those that matter most first."""

    sessions: list[dict[str, Any]]
    slowest: list[dict[str, Any]]


class Slot:
    """One of `board`, for the thread that has the row `number`."""

    def __init__(self, board: Board, number: int) -> None:
        self._board = board
        self._number = number

    @property
    def asked_for(self) -> bool:
        """Whether somebody looks."""
        return self._board.asked

    def show(self, shown: Shown) -> None:
        """Write it, without the last sessions where there is no room for all."""
        self._board.write(self._number, shown)


class Board:
    """The slots of all. Make it before the fork; where the system has no memory it stays empty."""

    def __init__(self) -> None:
        self._asked_at = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._file = -1
        try:
            self._file = os.memfd_create("gsmtpd-board", os.MFD_CLOEXEC)
        except OSError as error:
            _log.warning("gsmtpctl top will know of no sessions: %s", error.strerror)

    def ask(self) -> None:
        """Somebody looks: have the threads write for a while."""
        self._asked_at[0] = time.monotonic_ns()

    @property
    def asked(self) -> bool:
        """Whether somebody has looked lately."""
        asked_at = self._asked_at[0]
        return asked_at > 0 and time.monotonic_ns() - asked_at < ASKED_FOR * _NS

    def write(self, number: int, shown: Shown) -> None:
        """Fill slot `number`. For the thread that has this row only."""
        sessions = list(shown.sessions)
        while True:
            octets = json.dumps({"sessions": sessions, "slowest": shown.slowest}).encode()
            if len(octets) <= SLOT - _HEAD.size:
                break
            if not sessions:
                return
            del sessions[-1]
        head = _HEAD.pack(len(octets), zlib.crc32(octets), time.monotonic_ns())
        with suppress(OSError):
            os.pwrite(self._file, head + octets, number * SLOT)

    def read(self, numbers: Iterable[int]) -> list[Shown]:
        """What the slots `numbers` hold, if it is whole and of now."""
        found = (self._read(number) for number in numbers)
        return [shown for shown in found if shown is not None]

    def _read(self, number: int) -> Shown | None:
        try:
            octets = os.pread(self._file, SLOT, number * SLOT)
        except OSError:
            return None
        if len(octets) < _HEAD.size:
            return None
        size, checksum, written = _HEAD.unpack_from(octets)
        said = octets[_HEAD.size : _HEAD.size + size]
        old = time.monotonic_ns() - written > SHOWN_FOR * _NS
        if old or len(said) != size or zlib.crc32(said) != checksum:
            return None
        return Shown(**json.loads(said))
