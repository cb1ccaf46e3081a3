"""How many connections has an address, over all processes? Counted in shared memory.

A count-min sketch: each address has a cell in each of two rows, and the smaller one counts. So the
number of addresses costs no memory, and a count is never too low. It is too high where both cells
are shared with others; nobody can bring that about for somebody else, as the hash has a secret key.
"""

from __future__ import annotations

import mmap
import os
import socket
from functools import lru_cache
from hashlib import blake2b
from threading import Lock

_ROW = 8192  # cells; a power of two
_SEAT = 2 * _ROW
_CELL = 2  # octets
_EMPTY = memoryview(bytes(_SEAT * _CELL)).cast("H")
_MAX = 0xFFFF  # of a cell; what is beyond is not counted
_MAPPED = b"\x00" * 10 + b"\xff\xff"  # RFC 4291 section 2.5.5.2


class Crowd:
    """Seats in memory that survives a fork, one for each process, which alone writes to it.

    Make it before the fork. The master takes the seats and gives them back. seats: processes at a
    time; a page of memory is taken when it is first written to.
    """

    def __init__(self, seats: int = 1024) -> None:
        self._cells = memoryview(mmap.mmap(-1, seats * _SEAT * _CELL)).cast("H")
        # How many seats from the first on may be in use: what the sums run over.
        self._top = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._key = os.urandom(16)
        self._seats = seats
        self._taken: set[int] = set()
        # Each connection asks three times at least, and most clients come again.
        self._places = lru_cache(maxsize=4096)(self._hashed)

    def take(self) -> int:
        """A seat for a new worker. Raises MemoryError."""
        number = next((n for n in range(self._seats) if n not in self._taken), None)
        if number is None:
            raise MemoryError(f"no room for the clients of more than {self._seats} processes")
        self._taken.add(number)
        self._top[0] = max(self._taken) + 1
        return number

    def give_back(self, number: int) -> None:
        """The owner of seat `number` is gone: forget its connections."""
        self._cells[number * _SEAT : (number + 1) * _SEAT] = memoryview(bytes(_SEAT * _CELL)).cast(
            "H"
        )
        self._taken.discard(number)
        self._top[0] = max(self._taken, default=-1) + 1

    def seat(self, number: int) -> Seat:
        """The seat `number`, for its owner."""
        cells = self._cells[number * _SEAT : (number + 1) * _SEAT]
        return Seat(self, cells)

    def places(self, ip: str) -> tuple[int, int]:
        """The two cells of an address in a seat."""
        return self._places(ip)

    def _hashed(self, ip: str) -> tuple[int, int]:
        digest = int.from_bytes(blake2b(_owner(ip), digest_size=4, key=self._key).digest())
        return digest % _ROW, _ROW + (digest >> 16) % _ROW

    def count(self, places: tuple[int, int]) -> int:
        """How many connections are counted there, over all seats."""
        cells, end = self._cells, self._top[0] * _SEAT
        one, other = places
        if end == _SEAT:  # a third of the price of the sums, where there is one process
            return min(cells[one], cells[other])
        return min(sum(cells[one:end:_SEAT]), sum(cells[other:end:_SEAT]))


class Seat:
    """What one process counts; its threads may share it."""

    def __init__(self, crowd: Crowd, cells: memoryview[int]) -> None:
        self._crowd = crowd
        self._cells = cells
        self._lock = Lock()

    def enter(self, ip: str) -> int:
        """Count a connection from `ip`; returns how many the address has now, with this one.

        ip: IPv4 or IPv6, perhaps with a scope id, as accept() tells it. IPv6 is counted by /64,
        which is what one customer has at least (RFC 6177); IPv4-mapped addresses are as IPv4.
        """
        places = self._crowd.places(ip)
        cells = self._cells
        with self._lock:
            for place in places:
                if cells[place] < _MAX:
                    cells[place] += 1
        # Written first, read then: of two that enter at once in two processes both are seen.
        return self._crowd.count(places)

    def leave(self, ip: str) -> None:
        """A connection that has entered is closed."""
        cells = self._cells
        with self._lock:
            for place in self._crowd.places(ip):
                if cells[place]:
                    cells[place] -= 1

    def count(self, ip: str) -> int:
        """How many connections the address has, over all processes."""
        return self._crowd.count(self._crowd.places(ip))


def _owner(ip: str) -> bytes:
    """The octets that tell whose address it is."""
    if ":" not in ip:
        return ip.encode()
    try:
        octets = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except OSError:
        return ip.encode()
    if octets.startswith(_MAPPED):
        return socket.inet_ntoa(octets[12:]).encode()
    return octets[:8]
