"""How was it in the last hour? The totals of all counters once a second, in shared memory.

The master writes, and any process that was forked from it reads, without a lock: each sample has
its number in front and behind, so one that is being overwritten is seen, and left out.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from typing import NamedTuple

from gsmtpd.metrics import CELLS

KEPT = 3600  # samples
_HEAD = 3  # its number, Unix time and monotonic time
_WIDTH = _HEAD + CELLS + 1  # and its number again
_NONE = -1  # in place of a number: no sample, or half a one
_NS = 1_000_000_000


class Sample(NamedTuple):
    """What the counters were. time: Unix time; at: monotonic; both in seconds.

    cells: each total, by `Counter`, `Reason` and the histograms; those of BITS are bits.
    """

    time: float
    at: float
    cells: Sequence[int]


class History:
    """A ring of the last `kept` samples. Make it before the fork."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._cells = memoryview(mmap.mmap(-1, (1 + kept * _WIDTH) * 8)).cast("q")
        # The first cell: how many were ever written.
        for number in range(kept):
            self._slot(number)[0] = _NONE

    def _slot(self, number: int) -> memoryview[int]:
        start = 1 + number % self._kept * _WIDTH
        return self._cells[start : start + _WIDTH]

    def add(self, cells: Sequence[int]) -> None:
        """Keep the totals `cells`, as of now. For the master only."""
        number = self._cells[0]
        slot = self._slot(number)
        slot[0] = _NONE
        slot[1], slot[2] = time.time_ns(), time.monotonic_ns()
        for place, value in enumerate(cells, _HEAD):
            slot[place] = value
        slot[-1] = number
        slot[0] = number
        self._cells[0] = number + 1

    def latest(self) -> Sample | None:
        """The newest sample; None if there is none."""
        written = self._cells[0]
        for number in range(written - 1, max(written - 3, -1), -1):
            if (sample := self._read(number)) is not None:
                return sample
        return None

    def ends(self, seconds: int) -> list[Sample]:
        """The sample of about `seconds` ago, or the oldest there is, and the newest."""
        newest = self._cells[0] - 1
        oldest = max(newest - min(seconds, self._kept - 2), 0)
        read = map(self._read, sorted({oldest, newest}) if newest >= 0 else ())
        return [sample for sample in read if sample is not None]

    def since(self, seconds: int, step: int = 1) -> list[Sample]:
        """Each `step`-th sample of the last `seconds`, oldest first, and the one before those.

        So there are the two ends of each step. The same samples are chosen whenever it is asked.
        """
        written = self._cells[0]
        last = (written - 1) // step * step
        first = max(last - (seconds + step - 1) // step * step, written - self._kept, 0)
        first = -(-first // step) * step
        read = (self._read(number) for number in range(first, written, step))
        return [sample for sample in read if sample is not None]

    def _read(self, number: int) -> Sample | None:
        slot = self._slot(number)
        begun = slot[0]
        values = slot.tolist()
        if begun != number or values[-1] != number or slot[0] != number:
            return None
        return Sample(values[1] / _NS, values[2] / _NS, values[_HEAD:-1])
