"""What have processes used: CPU seconds, and memory in octets?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.servers import forget_peak, peak, resident


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time the processes have used since they began, in all threads ever.

    The kernel's CPU clock of a process (clock_getcpuclockid(3)) counts nanoseconds, where
    /proc/PID/stat counts ticks of 10 ms. Raises OSError if one has ended.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def proportional_bytes(pid: int) -> int:
    """Memory of a process, pages shared with others divided among them (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@dataclass(frozen=True)
class Memory:
    """What processes take together, in octets. peak: the most that each was resident, summed up."""

    rss: int
    pss: int
    peak: int


def memory(pids: Iterable[int]) -> Memory:
    """What these processes take now. Raises OSError or ServerError if one has ended."""
    some = [*pids]
    return Memory(
        sum(map(resident, some)), sum(map(proportional_bytes, some)), sum(map(peak, some))
    )


def forget_peaks(pids: Iterable[int]) -> None:
    """Have the peak of each process begin anew, where this user may."""
    for pid in pids:
        with contextlib.suppress(OSError):
            forget_peak(pid)
