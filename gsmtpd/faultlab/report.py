"""What did the faults do, in figures: for people, for the documents, and as JSON?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gsmtpd.faultlab.drift import Drift
from gsmtpd.faultlab.nemesis import Injection
from gsmtpd.faultlab.tally import QUIET, Tally, percentiles
from gsmtpd.faultlab.trial import NO_FAULT, Trial

_MIB = 2**20
_TELLS = (
    *("attempts", "acknowledged", "refused_4xx", "refused_5xx", "lost_connections", "in_doubt"),
    *("lost", "altered", "partial", "foreign", "same_id", "duplicates", "unexplained_duplicates"),
    *("refused_for_good", "violations"),
)
"""What is added up of the reports of all trials."""


@dataclass(frozen=True)
class Line:
    """A fault in figures.

    times: how often it happened. acknowledged, and replies by code: from the begin of the faults
    until service was back. duplicates, violations: of the trials, None where other faults were in
    them as well. back: the greatest of the seconds from the end of the fault until mail was
    acknowledged again.
    """

    fault: str
    times: int
    acknowledged: int
    codes: dict[int, int]
    lost: int
    doubt: int
    duplicates: int | None
    violations: int | None
    back: float | None


class Figures:
    """What all trials come to. promise: seconds in which service is to be back."""

    def __init__(self, trials: Sequence[Trial], promise: float) -> None:
        self._trials = trials
        self._promise = promise
        self._tally = Tally()
        for trial in trials:
            self._tally.merge(trial.tally)

    @property
    def injections(self) -> list[Injection]:
        """All that was injected."""
        return [done for trial in self._trials for done in trial.injections]

    @property
    def troubles(self) -> list[str]:
        """All that is wrong, a line each; nothing where all that is promised was kept."""
        found = [trouble for trial in self._trials for trouble in trial.troubles]
        for done in self.injections:
            if done.back is not None and done.back > self._promise:
                found.append(f"{done.fault}: back in service only after {done.back:.1f} s")
        return found

    @property
    def drifts(self) -> list[Drift]:
        """Those of all processes that lived long."""
        return [drift for trial in self._trials for drift in trial.drifts]

    def lines(self) -> list[Line]:
        """One for each fault, in the order in which they were injected first."""
        return [self._line(name) for name in dict.fromkeys(d.fault for d in self.injections)]

    def _line(self, name: str) -> Line:
        done = [one for one in self.injections if one.fault == name]
        alone = [trial for trial in self._trials if trial.job.faults == (name,)]
        reports = [trial.report for trial in alone if trial.report is not None]
        backs = [one.back for one in done if one.back is not None]
        return Line(
            name,
            sum(not one.did_not_happen for one in done),
            sum(one.acknowledged for one in done),
            dict(self._tally.codes[name]),
            sum(one.lost for one in done),
            self._tally.doubt[name],
            sum(report.duplicates for report in reports) if reports else None,
            sum(report.violations for report in reports) if reports else None,
            max(backs) if backs else None,
        )

    def totals(self) -> dict[str, int]:
        """The reports of all trials, added up."""
        sums: Counter[str] = Counter(dict.fromkeys(_TELLS, 0))
        for trial in self._trials:
            if trial.report is not None:
                for name in _TELLS:
                    sums[name] += getattr(trial.report, name)
        return dict(sums)

    def replies(self) -> dict[str, dict[str, float]]:
        """Percentiles of the seconds from the end of data to the reply, by what was going on."""
        quiet = [t.tally.seconds[QUIET] for t in self._trials if _is_quiet(t)]
        without = [second for seconds in quiet for second in seconds]
        found = {"without faults": without, "with faults": self._tally.with_faults()}
        return {what: percentiles(seconds) for what, seconds in found.items() if len(seconds)}

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "troubles": self.troubles,
            "totals": self.totals(),
            "replies": self.replies(),
            "faults": [asdict(line) for line in self.lines()],
            "drifts": [asdict(drift) | {"percent": drift.percent} for drift in self.drifts],
            "injections": [asdict(done) for done in self.injections],
            "trials": [
                {
                    "name": trial.job.name,
                    "seed": trial.job.seed,
                    "seconds": trial.seconds,
                    "report": trial.report.as_dict() if trial.report is not None else None,
                }
                for trial in self._trials
            ],
        }

    def text(self, markdown: bool = False) -> str:
        """All of it, for people."""
        parts = [
            _table(_HEAD, map(_cells, self.lines()), markdown),
            "\n".join(_total_lines(self.totals(), markdown)),
            _table(_REPLY_HEAD, _reply_rows(self.replies()), markdown),
        ]
        if self.drifts:
            parts.append(_table(_DRIFT_HEAD, map(_drift_cells, self.drifts), markdown))
        return "\n\n".join(parts)


def _is_quiet(trial: Trial) -> bool:
    """Whether time outside its faults is counted as that of gsmtpd without faults."""
    return trial.job.name == NO_FAULT or bool(trial.job.messages)


_HEAD = (
    *("fault", "times", "acknowledged", "451", "452", "421", "lost"),
    *("in doubt", "duplicates", "violations", "back in s, max"),
)
_REPLY_HEAD = ("end of data to reply", "p50", "p99", "max")
_DRIFT_HEAD = (
    *("process", "watched", "resident first", "last", "drift", "PSS first", "last"),
    *("descriptors first", "last"),
)


def _cells(line: Line) -> list[str]:
    return [
        line.fault,
        str(line.times),
        str(line.acknowledged),
        *(str(line.codes.get(code, 0)) for code in (451, 452, 421)),
        str(line.lost),
        str(line.doubt),
        _or_dash(line.duplicates),
        _or_dash(line.violations),
        "–" if line.back is None else f"{line.back:.2f}",
    ]


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)


def _total_lines(totals: dict[str, int], markdown: bool) -> Iterable[str]:
    for name, value in totals.items():
        words = name.replace("_", " ")
        yield f"* {words}: {value:,}" if markdown else f"{words:>24}: {value:,}"


def _reply_rows(replies: dict[str, dict[str, float]]) -> Iterable[list[str]]:
    for what, found in replies.items():
        yield [what, *(f"{1000 * found[name]:,.0f} ms" for name in ("p50", "p99", "max"))]


def _drift_cells(drift: Drift) -> list[str]:
    return [
        f"{drift.role} {drift.pid}",
        f"{drift.lived:.0f} s",
        *(f"{octets / _MIB:.1f} MiB" for octets in drift.resident),
        f"{drift.percent:+.1f} %",
        *(f"{octets / _MIB:.1f} MiB" for octets in drift.share),
        *(f"{number:g}" for number in drift.descriptors),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], markdown: bool) -> str:
    """A table: with bars for Markdown, else in columns, numbers to the right."""
    body = [*rows]
    if markdown:
        rule = ["---", *("---:" for _ in head[1:])]
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *body)
    )
