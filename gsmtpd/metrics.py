"""How much? Counters in shared memory, plain integers that one thread each writes."""

from __future__ import annotations

import mmap
from enum import IntEnum


class Counter(IntEnum):
    """What is counted."""

    CLIENTS = 0  # connections open now
    ACCEPTED = 1  # messages answered with 250
    REFUSED = 2  # messages answered with 4xx or 5xx after their final dot
    RECEIVED_BYTES = 3  # octets of accepted messages
    TURNED_AWAY = 4  # connections answered with 421 because there were too many


class Counters:
    """A table of 64-bit integers, a row per SMTP thread, that survives a fork in shared memory.

    Make it before the fork; each thread then writes its own row only, so no lock is needed.
    """

    def __init__(self, rows: int) -> None:
        self._width = len(Counter)
        self._cells = memoryview(mmap.mmap(-1, rows * self._width * 8)).cast("q")

    def row(self, number: int) -> memoryview[int]:
        """The row `number` (0, 1, …), to be indexed by `Counter`."""
        return self._cells[number * self._width : (number + 1) * self._width]

    def total(self, counter: Counter) -> int:
        """The sum of `counter` over all rows."""
        return sum(self._cells[counter :: self._width])

    def reset(self, number: int) -> None:
        """Forget what the dead owner of row `number` had open; what it counted stays."""
        self._cells[number * self._width + Counter.CLIENTS] = 0
