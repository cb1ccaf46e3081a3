"""How much? Counters in shared memory, plain integers that one thread each writes."""

from __future__ import annotations

import mmap
from enum import IntEnum, IntFlag
from functools import reduce
from operator import or_

MAX_ROWS = 65536  # of 112 octets, and a page of memory is taken when it is first written to


class Counter(IntEnum):
    """What is counted."""

    CLIENTS = 0  # connections open now
    ACCEPTED = 1  # messages answered with 250
    REFUSED = 2  # messages answered with 4xx or 5xx after their final dot
    RECEIVED_BYTES = 3  # octets of accepted messages
    TURNED_AWAY = 4  # connections answered with 421 because there were too many
    BEATS = 5  # about one a second from a thread that is well
    DISCARDED = 6  # messages that were taken, and thrown away for all their recipients
    DENIED = 7  # connections answered with 554 because of [clients] deny
    CROWDED = 8  # connections answered with 421 because their address has too many
    OVERLOAD = 9  # what there is not enough of now: bits of Overload, so never summed
    HOSTS_AWAY = 10  # database hosts that are left alone now: a bit for each, so never summed
    HANDLED = 11  # mails that a handler is done with
    HANDLER_FAILED = 12  # calls of a handler that failed, and come again
    HANDLER_DEAD = 13  # mails that a handler is given up for


BITS = (Counter.OVERLOAD, Counter.HOSTS_AWAY)
_OF_NOW = (Counter.CLIENTS, Counter.BEATS, *BITS)  # gone with their owner


class Overload(IntFlag):
    """What there is not enough of."""

    CLIENTS = 1  # max_clients is reached
    CLIENTS_PER_IP = 2  # some address has max_clients_per_ip connections
    MEMORY = 4  # max_memory is reached
    DESCRIPTORS = 8  # the system gives no more files

    @property
    def words(self) -> list[str]:
        """What it is, for people."""
        return [_WORDS[one] for one in self]


_WORDS = {
    Overload.CLIENTS: "max_clients",
    Overload.CLIENTS_PER_IP: "max_clients_per_ip",
    Overload.MEMORY: "max_memory",
    Overload.DESCRIPTORS: "file descriptors",
}


class Counters:
    """A table of 64-bit integers, a row per SMTP thread, that survives a fork in shared memory.

    Make it before the fork. The master alone takes rows and gives them back; each thread then
    writes its own row only, but for HOSTS_AWAY, which is the store's. So each cell has one that
    writes it, and no lock is needed. Row 0 is the master's: what those counted that
    are gone.
    """

    def __init__(self, rows: int = MAX_ROWS) -> None:
        self._width = len(Counter)
        self._cells = memoryview(mmap.mmap(-1, rows * self._width * 8)).cast("q")
        # How many rows from the first on may be in use: what the sums run over.
        self._top = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._top[0] = 1
        self._rows = rows
        self._taken: set[int] = {0}

    def take(self, count: int) -> range:
        """`count` rows for a new worker's threads, one after the other. Raises MemoryError."""
        first = 1
        while not self._taken.isdisjoint(range(first, first + count)):
            first += 1
        rows = range(first, first + count)
        if rows.stop > self._rows:
            raise MemoryError(f"no room for the counters of {count} more SMTP threads")
        self._taken.update(rows)
        self._top[0] = max(self._taken) + 1
        return rows

    def give_back(self, rows: range) -> None:
        """Take over what the owners of `rows`, who are gone, have counted; forget how they did."""
        past = self.row(0)
        for number in rows:
            row = self.row(number)
            for counter in Counter:
                if counter not in _OF_NOW:
                    past[counter] += row[counter]
                row[counter] = 0
        self._taken.difference_update(rows)
        self._top[0] = max(self._taken) + 1

    def row(self, number: int) -> memoryview[int]:
        """The row `number` (0, 1, …), to be indexed by `Counter`."""
        return self._cells[number * self._width : (number + 1) * self._width]

    def total(self, counter: Counter) -> int:
        """The sum of `counter` over all rows."""
        return sum(self._cells[counter : self._top[0] * self._width : self._width])

    def any(self, counter: Counter) -> int:
        """The bits of `counter` that are set in any row."""
        return reduce(or_, self._cells[counter : self._top[0] * self._width : self._width])
