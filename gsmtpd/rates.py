"""How much a second, and how long did it take? What is made of two samples of the counters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gsmtpd.history import Sample
from gsmtpd.metrics import BATCH_ROWS, COMMIT, TAKEN, Counter, Histogram, Reason

_RATES: dict[str, tuple[int, ...]] = {
    "accepted": TAKEN,
    "refused": (Counter.REFUSED,),
    "discarded": (Counter.DISCARDED,),
    "received_bytes": (Counter.RECEIVED_BYTES,),
    "sessions": (Counter.SESSIONS,),
}
_NOW = {"clients": Counter.CLIENTS, "queue": Counter.QUEUE, "memory": Counter.MEMORY}
_HANDLED = {"handled": Counter.HANDLED, "handler_failed": Counter.HANDLER_FAILED}
SPANS = (10, 60, 300)  # seconds of the rates in a status

COLUMNS = (
    "time", *_RATES, *_NOW, "commits", "commit_seconds", "commit_p95", "batch_rows", *_HANDLED,
    *(f"refused:{reason.word}" for reason in Reason),
)  # fmt: skip
"""Of `rows`. Rates are per second, but time, clients, queue, memory and commit_p95 are values."""


def rows(samples: Sequence[Sample]) -> list[list[Any]]:
    """One row of COLUMNS for each two samples that follow each other, as of the latter."""
    return [_row(before, after) for before, after in pairwise(samples)]


def _row(before: Sample, after: Sample) -> list[Any]:
    seconds = _seconds(before, after)

    def rate(*cells: int) -> float:
        return _short(sum(after.cells[cell] - before.cells[cell] for cell in cells) / seconds)

    commits = _difference(COMMIT, before, after)
    p95 = COMMIT.quantile(commits, 0.95)
    return [
        round(after.time, 3),
        *(rate(*cells) for cells in _RATES.values()),
        *(after.cells[cell] for cell in _NOW.values()),
        _short(sum(commits) / seconds),
        _short(rate(COMMIT.sum) * COMMIT.unit, 6),
        None if p95 is None else _short(p95, 6),
        rate(BATCH_ROWS.sum),
        *map(rate, _HANDLED.values()),
        *map(rate, Reason),
    ]


def _seconds(before: Sample, after: Sample) -> float:
    return max(after.at - before.at, 1e-3)


def _short(value: float, digits: int = 3) -> float:
    """For JSON: a thousandth is enough, and 0 needs no ".0"."""
    rounded = round(value, digits)
    return int(rounded) if rounded == int(rounded) else rounded


def _difference(histogram: Histogram, before: Sample, after: Sample) -> list[int]:
    then, now = histogram.counts(before.cells), histogram.counts(after.cells)
    return [b - a for a, b in zip(then, now, strict=True)]


def per_second(samples: Sequence[Sample]) -> dict[str, float]:
    """What came in a second between the first and the last of `samples`."""
    if len(samples) < 2:
        return dict.fromkeys([*_RATES, "commits"], 0)
    before, after = samples[0], samples[-1]
    seconds = _seconds(before, after)
    rates = {
        name: _short(sum(after.cells[cell] - before.cells[cell] for cell in cells) / seconds)
        for name, cells in _RATES.items()
    }
    return rates | {"commits": _short(sum(_difference(COMMIT, before, after)) / seconds)}


def commits(samples: Sequence[Sample]) -> dict[str, Any]:
    """How long commits took between the first and the last of `samples`, and how many rows each.

    count, median and p95 (seconds, None if there was none), rows_median and rows_mean.
    """
    counts = sizes = [0]
    total = 0
    if len(samples) > 1:
        before, after = samples[0], samples[-1]
        counts = _difference(COMMIT, before, after)
        sizes = _difference(BATCH_ROWS, before, after)
        total = after.cells[BATCH_ROWS.sum] - before.cells[BATCH_ROWS.sum]
    count = sum(counts)
    return {
        "count": count,
        "median": COMMIT.quantile(counts, 0.5),
        "p95": COMMIT.quantile(counts, 0.95),
        "rows_median": BATCH_ROWS.quantile(sizes, 0.5),
        "rows_mean": total / count if count else None,
    }


def reasons(cells: Sequence[int]) -> dict[str, int]:
    """How often each reason was given in all, by its word."""
    return {reason.word: cells[reason] for reason in Reason}
