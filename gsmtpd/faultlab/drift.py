"""Do gsmtpd's processes take more and more memory, or descriptors, the longer they live?"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

from gsmtpd.faultlab.servers import Gsmtpd

_EVERY = 1.0  # seconds
_FIFTH = 0.2
LONG_LIVED = 1 / 3  # of the time that is looked at


class Sample(NamedTuple):
    """A process at a moment. at: monotonic seconds. pss, rss: octets."""

    at: float
    pid: int
    pss: int
    rss: int
    descriptors: int


@dataclass(frozen=True)
class Drift:
    """How a process changed, from the first fifth of its life behind the warm-up to the last one.

    role: "master" or "worker". lived: seconds behind the warm-up. Medians: of its resident memory
    in octets, of its share of that (PSS), which also changes when others come and go, and of how
    many descriptors it had.
    """

    role: str
    pid: int
    lived: float
    resident: tuple[float, float]
    share: tuple[float, float]
    descriptors: tuple[float, float]

    @property
    def percent(self) -> float:
        """By how much its resident memory grew."""
        before, after = self.resident
        return 100.0 * (after - before) / before


class Watch:
    """Looks at the master and the workers of `gsmtpd` once a second, from entry to exit.

    file: where each look goes as a line of CSV.
    """

    def __init__(self, gsmtpd: Gsmtpd, file: Path) -> None:
        self._gsmtpd = gsmtpd
        self._file = file
        self._samples: dict[int, list[Sample]] = {}
        self._masters: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._file.open("w") as file:
            file.write("unix,pid,pss,rss,descriptors\n")
            while not self._ended.wait(_EVERY):
                self._masters.add(self._gsmtpd.pid)
                for pid in self._gsmtpd.pids():
                    with contextlib.suppress(OSError, KeyError):
                        sample = look(pid)
                        self._samples.setdefault(pid, []).append(sample)
                        file.write(",".join(map(str, (time.time(), *sample[1:]))) + "\n")

    def drifts(self, warm: float) -> list[Drift]:
        """Of all that lived for at least a third of the time behind the warm-up.

        warm: when that was over, in monotonic seconds; at the latest it is when half is over.
        """
        watched = [samples for samples in self._samples.values() if len(samples) > 1]
        if not watched:
            return []
        begin, end = min(s[0].at for s in watched), max(s[-1].at for s in watched)
        warm = min(warm, (begin + end) / 2)
        found = []
        for samples in watched:
            counted = [sample for sample in samples if sample.at >= warm]
            if counted and counted[-1].at - counted[0].at >= (end - warm) * LONG_LIVED:
                role = "master" if samples[0].pid in self._masters else "worker"
                found.append(drift(role, counted))
        return found


def look(pid: int) -> Sample:
    """A process now. Raises OSError if it is gone."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(time.monotonic(), pid, sizes["Pss"], sizes["Rss"], descriptors)


def drift(role: str, samples: Sequence[Sample]) -> Drift:
    """How a process changed over its samples, of which there is at least one."""
    part = max(1, int(len(samples) * _FIFTH))
    first, last = samples[:part], samples[-part:]
    return Drift(
        role,
        samples[0].pid,
        samples[-1].at - samples[0].at,
        (median(s.rss for s in first), median(s.rss for s in last)),
        (median(s.pss for s in first), median(s.pss for s in last)),
        (median(s.descriptors for s in first), median(s.descriptors for s in last)),
    )
