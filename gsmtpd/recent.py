"""What became of mail lately that was not simply stored? A bounded memory, for all workers.

It holds lines of JSON, as the mail log makes them, in a file that is memory and has no name
(memfd_create(2)). Each write appends whole lines, which the kernel does in one step, so no lock is
needed, and what is there outlives the worker that wrote it. The oldest is given back to the system
as a hole in the file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

KEPT = 4 * 2**20  # octets that stay
SLACK = 2**18  # octets beyond, before the oldest are given back
MAX_FOUND = 100  # records of one answer
MAX_ANSWER = 60000  # octets of those, as JSON
_BLOCK = 2**18  # octets that `since` reads at once
_SECTOR = 512  # octets that st_blocks counts in, see inode(7)
_LOST = b'{"lost": '

_log = logging.getLogger(__name__)


class Recent:
    """The memory. Make it before the fork; where the system has none for us it holds nothing.

    A record is a JSON object in ASCII on one line; "keys" are what it is found by, in lower case.
    A line `{"lost": N}` says that N records did not get in.
    """

    def __init__(self) -> None:
        self._file = -1
        self._name = f"{time.time_ns():x}"
        try:
            self._file = os.memfd_create("gsmtpd-recent", os.MFD_CLOEXEC)
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_APPEND)
        except OSError as error:
            _log.warning("gsmtpctl why will know of stored mail only: %s", error.strerror)

    def append(self, lines: bytes) -> None:
        """Add `lines`, each with its end. Where that fails they are lost."""
        with suppress(OSError):
            # A worker that was killed as it wrote has left half a line: ours begins a new one.
            os.write(self._file, b"\n" + lines)
            if os.fstat(self._file).st_blocks * _SECTOR > KEPT + SLACK:
                self.trim()

    def trim(self) -> None:
        """Give back what is older than the last KEPT octets; where that fails, all."""
        with suppress(OSError):
            try:
                self._make_hole()
            except (OSError, ValueError):
                os.ftruncate(self._file, 0)

    def _make_hole(self) -> None:
        first = os.lseek(self._file, 0, os.SEEK_DATA)
        end = os.fstat(self._file).st_size - KEPT
        size = end // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY - first
        if size > 0:
            with mmap.mmap(self._file, size, offset=first) as oldest:
                oldest.madvise(mmap.MADV_REMOVE)  # see madvise(2)

    def find(self, key: str, limit: int = MAX_FOUND) -> list[dict[str, Any]]:
        """The newest records that have `key`, without their keys, the newest last.

        limit: how many at most; nor are they more than MAX_ANSWER octets of JSON.
        """
        found: list[dict[str, Any]] = []
        room = MAX_ANSWER
        for record in self._having(key.lower()):
            room -= len(json.dumps(record)) + 2
            if len(found) == limit or room < 0:
                break
            found.append(record)
        return found[::-1]

    def since(self, position: str) -> tuple[list[dict[str, Any]], str, int]:
        """The records behind `position`, the oldest first, without their keys, and where they end.

        position: "" for the end, else what was given back before; one of another server is its
        beginning. No more than MAX_ANSWER octets of JSON: there may be more at once. The third is
        how many were lost meanwhile, about. Raises ValueError.
        """
        name, _, place = position.partition("-")
        if position and not (name.isalnum() and place.isascii() and place.isdigit()):
            raise ValueError('events takes the "position" of the answer before, or nothing')
        try:
            size = os.fstat(self._file).st_size
            start = int(place) if name == self._name else 0
            start = start if position and start <= size else size
            # What is being written now may be there in part only, so: behind a whole line.
            first = max(start, size - KEPT) if position else max(0, size - _BLOCK)
            octets = os.pread(self._file, _BLOCK, first)
        except (OSError, OverflowError):
            return [], position, 0
        if not position:
            return [], self._position(first + octets.rfind(b"\n") + 1), 0
        found, used, lost = _taken(octets)
        if not used and len(octets) == _BLOCK:
            used, lost = _BLOCK, 1  # a record that is longer than that: on, into the midst of it
        lost += bool(first > start) * max(1, (first - start) * (len(found) + 1) // max(used, 1))
        return found, self._position(first + used), lost

    def _position(self, offset: int) -> str:
        return f"{self._name}-{offset}"

    def began(self) -> str | None:
        """The time of the oldest record, if older ones were given back; else None."""
        octets, cut = self._read()
        for line in octets.split(b"\n", 100)[:-1] if cut else ():
            record = _record(line)
            if record is not None and "time" in record:
                return str(record["time"])
        return None

    def lost(self) -> int:
        """How many records did not get in."""
        octets, _ = self._read()
        count, at = 0, octets.find(_LOST)
        while at >= 0:
            end = octets.find(b"\n", at)
            record = _record(octets[at:end])
            count += record["lost"] if record is not None else 0
            at = octets.find(_LOST, end)
        return count

    def _having(self, key: str) -> Iterator[dict[str, Any]]:
        """The records with `key`, the newest first."""
        octets, _ = self._read()
        needle = json.dumps(key).encode()
        at = octets.rfind(needle)
        while at >= 0:
            start, end = octets.rfind(b"\n", 0, at) + 1, octets.find(b"\n", at)
            record = _record(octets[start:end])
            # A client may have said the same elsewhere, as in HELO.
            if record is not None and key in record.pop("keys", ()):
                yield record
            at = octets.rfind(needle, 0, start)

    def _read(self) -> tuple[bytes, bool]:
        """The whole lines of the last KEPT octets; whether there were more."""
        try:
            size = os.fstat(self._file).st_size
            start = max(0, size - KEPT)
            octets = os.pread(self._file, size - start, start)
        except OSError:
            return b"", False
        first = octets.find(b"\n") + 1 if start else 0
        return octets[first : octets.rfind(b"\n") + 1], start > 0

    def close(self) -> None:
        """Forget all."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _taken(octets: bytes) -> tuple[list[dict[str, Any]], int, int]:
    """The first records in `octets`, how many octets those are, and how many were lost.

    It may begin within a line, which is none then.
    """
    found: list[dict[str, Any]] = []
    lost = 0
    used = 0
    room = MAX_ANSWER
    while (end := octets.find(b"\n", used)) >= 0:
        record = _record(octets[used:end])
        if record is not None and "time" in record:
            record.pop("keys", None)
            room -= len(json.dumps(record)) + 2
            if room < 0 and found:
                break
            found.append(record)
        elif record is not None:
            lost += record.get("lost", 0)
        used = end + 1
    return found, used, lost


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is none, as half a one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
