"""What were clients told, and how soon, during which fault? Read from the ledgers."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.nemesis import Injection

QUIET = ""
"""What stands for "no fault" among the names of faults."""


def _no_seconds() -> array[float]:
    return array("d")


class Tally:
    """Replies by fault. codes: how many of each. seconds: from the end of data to the reply.

    doubt: attempts whose data had left, and that nobody answered.
    """

    def __init__(self) -> None:
        self.codes: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.seconds: defaultdict[str, array[float]] = defaultdict(_no_seconds)
        self.doubt: Counter[str] = Counter()

    def read(
        self, ledgers: Iterable[Path], injections: Sequence[Injection], since: float = 0.0
    ) -> None:
        """Add what ledgers say, told apart by when it was said. Raises LedgerError.

        since: Unix time from which on a time without a fault counts as one.
        """
        windows = sorted((done.at, done.until, done.fault) for done in injections)
        begins = [begin for begin, _, _ in windows]
        for path in ledgers:
            for step in ledger.read(path, []):
                if step["step"] not in ("reply", "lost", "abandoned", "turned_away"):
                    continue
                said = step["at"]
                # What was sent in a fault, and answered behind it, was answered late by it.
                for at in (said, said - step.get("seconds", 0.0)):
                    place = bisect_right(begins, at) - 1
                    if place >= 0 and at <= windows[place][1]:
                        self._add(windows[place][2], step)
                        break
                else:
                    if said >= since:
                        self._add(QUIET, step)

    def _add(self, fault: str, step: dict[str, object]) -> None:
        code = step.get("code")
        if isinstance(code, int):
            self.codes[fault][code] += 1
        if step.get("phase") == "dot":
            self.doubt[fault] += code is None
            if isinstance(step.get("seconds"), float):
                self.seconds[fault].append(float(str(step["seconds"])))

    def merge(self, other: Tally) -> None:
        """Add what another tally has."""
        for fault, codes in other.codes.items():
            self.codes[fault] += codes
        for fault, seconds in other.seconds.items():
            self.seconds[fault].extend(seconds)
        self.doubt += other.doubt

    def with_faults(self) -> array[float]:
        """The seconds of all faults together."""
        found = array("d")
        for fault, seconds in self.seconds.items():
            if fault != QUIET:
                found.extend(seconds)
        return found


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Their median, 99th percentile and greatest (p50, p99, max); nothing for none."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[last * 99 // 100], "max": ordered[-1]}
