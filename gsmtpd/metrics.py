"""How much? Counters in shared memory, plain integers that one thread each writes."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from functools import reduce
from itertools import accumulate
from math import ceil
from operator import or_
from typing import NamedTuple

MAX_ROWS = 65536  # of 568 octets, and a page of memory is taken when it is first written to


class Counter(IntEnum):
    """What is counted."""

    CLIENTS = 0  # connections open now
    ACCEPTED = 1  # messages answered with 250, but for DUPLICATES
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
    SPOOLED = 14  # of those accepted: messages that wait in the spool until they are stored
    DUPLICATES = 15  # messages answered with 250 that were stored already
    SESSIONS = 16  # connections that were taken, in all
    MEMORY = 17  # octets of mail under way, as max_memory counts them, about a second ago
    QUEUE = 18  # messages that waited for a writer, about a second ago


class Reason(IntEnum):
    """Why something was refused. Each is a cell, behind those of `Counter`."""

    RELAY = 19
    NO_SUCH_USER = 20
    NOT_YET = 21  # an address that is not known now
    LOOKUP = 22  # what could not be looked up
    DNSBL = 23
    CLIENT_DENIED = 24
    TOO_MANY_CLIENTS = 25
    TOO_MANY_FROM_YOU = 26
    TOO_BIG = 27
    BARE_NEWLINE = 28
    LOOP = 29
    TOO_MANY_RECIPIENTS = 30
    MEMORY = 31
    STORAGE = 32
    NO_SPACE = 33
    TIMEOUT = 34  # and whoever was too slow
    TOO_MANY_ERRORS = 35  # or commands, or messages
    TLS = 36
    SYNTAX = 37  # what cannot be read, or is out of order
    HOOK = 38
    SHUTDOWN = 39
    OTHER = 40

    @property
    def word(self) -> str:
        """What it is called everywhere."""
        return self.name.lower()


TAKEN = (Counter.ACCEPTED, Counter.DUPLICATES)  # what people call accepted
BITS = (Counter.OVERLOAD, Counter.HOSTS_AWAY)
# Gone with their owner.
_OF_NOW = (Counter.CLIENTS, Counter.BEATS, Counter.MEMORY, Counter.QUEUE, *BITS)


class Histogram(NamedTuple):
    """How values are spread, in cells of a row: one for each bound and what is above, then a sum.

    first: the first cell. bounds: the greatest value of each bucket, whole numbers. unit: what one
    of them is, in seconds, or 1.
    """

    first: int
    bounds: tuple[int, ...]
    unit: float

    @property
    def sum(self) -> int:
        """The cell of the sum."""
        return self.first + len(self.bounds) + 1

    def note(self, row: memoryview[int], value: int) -> None:
        """Count `value` in `row`."""
        row[self.first + bisect_left(self.bounds, value)] += 1
        row[self.sum] += value

    def counts(self, cells: Sequence[int]) -> list[int]:
        """How many values each bucket holds, of the cells of a whole row."""
        return [*cells[self.first : self.sum]]

    def quantile(self, counts: Sequence[int], share: float) -> float | None:
        """The value that `share` (0 to 1) of them do not exceed, interpolated; None if none is.

        What is above the last bound counts as that. It is whole as all values are, rounded up.
        """
        below = [0, *accumulate(counts)]
        if not below[-1]:
            return None
        rank = share * below[-1]
        bucket = min(bisect_left(below, rank, 1) - 1, len(self.bounds))
        if bucket == len(self.bounds):
            return self.bounds[-1] * self.unit
        low = self.bounds[bucket - 1] if bucket else 0
        part = (rank - below[bucket]) / max(counts[bucket], 1)
        return ceil(low + (self.bounds[bucket] - low) * part) * self.unit


_MS = 1000  # microseconds
# Seconds from handing a batch to the database until it is committed; where it was stored.
COMMIT = Histogram(
    len(Counter) + len(Reason),
    (
        *(1 * _MS, 2500, 5 * _MS, 10 * _MS, 25 * _MS, 50 * _MS, 100 * _MS, 250 * _MS, 500 * _MS),
        *(1000 * _MS, 2500 * _MS, 5000 * _MS, 10000 * _MS),
    ),
    1e-6,
)
# Rows that such a batch stored.
BATCH_ROWS = Histogram(COMMIT.sum + 1, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), 1)
CELLS = BATCH_ROWS.sum + 1  # of a row


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


class StoreMeter:
    """What a worker's store writes into `row`, its own. See storage.writer.Meter."""

    def __init__(self, row: memoryview[int]) -> None:
        self._row = row

    def stored(self, rows: int, seconds: float) -> None:
        """A batch of `rows` was committed in so many `seconds`."""
        COMMIT.note(self._row, round(seconds / COMMIT.unit))
        BATCH_ROWS.note(self._row, rows)

    def waits(self, messages: int) -> None:
        """So many wait for a writer now."""
        self._row[Counter.QUEUE] = messages


class Counters:
    """A table of 64-bit integers that survives a fork in shared memory.

    A row has a cell for each `Counter` and `Reason`, and those of the histograms. Each SMTP thread
    has a row, and each worker one more for its store: what commits took, written under the lock
    of its GroupCommitWriter.

    Make it before the fork. The master alone takes rows and gives them back; each thread then
    writes its own row only, but for HOSTS_AWAY, which is the store's. So each cell has one that
    writes it, and no lock is needed. Row 0 is the master's: what those counted that
    are gone.
    """

    def __init__(self, rows: int = MAX_ROWS) -> None:
        self._width = CELLS
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
            raise MemoryError(f"no room for the counters of {count} more threads")
        self._taken.update(rows)
        self._top[0] = max(self._taken) + 1
        return rows

    def give_back(self, rows: range) -> None:
        """Take over what the owners of `rows`, who are gone, have counted; forget how they did."""
        past = self.row(0)
        for number in rows:
            row = self.row(number)
            for cell in range(CELLS):
                if cell not in _OF_NOW:
                    past[cell] += row[cell]
                row[cell] = 0
        self._taken.difference_update(rows)
        self._top[0] = max(self._taken) + 1

    def row(self, number: int) -> memoryview[int]:
        """The row `number` (0, 1, …), to be indexed by `Counter` and `Reason`."""
        return self._cells[number * self._width : (number + 1) * self._width]

    def total(self, cell: int) -> int:
        """The sum of `cell`, a Counter, Reason or one of a histogram, over all rows."""
        return sum(self._cells[cell : self._top[0] * self._width : self._width])

    def any(self, counter: Counter) -> int:
        """The bits of `counter` that are set in any row."""
        return reduce(or_, self._cells[counter : self._top[0] * self._width : self._width])

    def totals(self) -> list[int]:
        """Each cell summed over all rows, or for BITS those that are set in any.

        For the master only: it moves what the dead have counted, and others would see that
        halfway. They find the totals in History.
        """
        rows = [self.row(number).tolist() for number in range(self._top[0])]
        sums = [*map(sum, zip(*rows, strict=True))]
        for counter in BITS:
            sums[counter] = self.any(counter)
        return sums
