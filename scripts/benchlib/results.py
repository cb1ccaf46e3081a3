"""What came of it all, and how is that kept in a file?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.benchlib.peers import PEERS
from scripts.benchlib.runs import Run, Wait


class WrongFileError(Exception):
    """Not a file that --json has written."""


@dataclass(frozen=True)
class Idle:
    """A peer without and with idle clients, in one round. rates: messages a second.

    rss, pss: octets of all processes of the one with them, after the run; rss_before, pss_before:
    of the same before the clients came.
    """

    round: int
    peer: str
    scenario: str
    clients: int
    rate_without: float
    rate_with: float
    cpu_without: float
    cpu_with: float
    rss: int
    pss: int
    rss_before: int
    pss_before: int


@dataclass(frozen=True)
class Start:
    """Seconds from exec to the first greeting."""

    round: int
    peer: str
    seconds: float


@dataclass
class Results:
    """Everything that was measured.

    tables: the scenarios that a table is made of. grown: `sessions` and `octets` → the scenarios
    in which those grow. skipped, failed: peer → why.
    """

    facts: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    idle: list[Idle] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    grown: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def runs_of(self, peer: str, scenario: str) -> dict[int, Run]:
        """Round → run."""
        return {r.round: r for r in self.runs if (r.peer, r.scenario) == (peer, scenario)}

    def waits_of(self, peer: str, scenario: str) -> list[Wait]:
        """The runs at half the rate."""
        return [w for w in self.waits if (w.peer, w.scenario) == (peer, scenario)]

    def peers(self, scenario: str) -> list[str]:
        """Those with runs in this scenario, in their usual order."""
        usual = [*PEERS]
        named = {run.peer for run in self.runs if run.scenario == scenario}
        return [name for name in usual if name in named] + sorted(named.difference(usual))

    def last_round(self) -> int:
        """The greatest number of a round."""
        each = (self.runs, self.waits, self.idle, self.starts)
        return max((one.round for some in each for one in some), default=0)

    def add(self, other: Results) -> None:
        """What was measured at another time, as further rounds."""
        last = self.last_round()
        for name in ("runs", "waits", "idle", "starts"):
            more = [replace(one, round=one.round + last) for one in getattr(other, name)]
            getattr(self, name).extend(more)
        self.tables = [*dict.fromkeys(self.tables + other.tables)]
        for axis, names in other.grown.items():
            self.grown[axis] = [*dict.fromkeys(self.grown.get(axis, []) + names)]
        self.facts = self.facts or other.facts
        self.skipped |= other.skipped
        self.failed |= other.failed


Value = Callable[[Run], float | None]


def ratios(
    value: Value, mine: dict[int, Run], base: dict[int, Run], base_value: Value | None = None
) -> list[float]:
    """The value of each run to that of the other peer's run of the same round."""
    its = base_value or value
    pairs = [(value(mine[number]), its(base[number])) for number in mine if number in base]
    return [a / b for a, b in pairs if a is not None and b]


def median(values: Sequence[float]) -> float:
    """The median; 0.0 of none."""
    return statistics.median(values) if values else 0.0


def to_json(results: Results, more: dict[str, Any]) -> str:
    """All of it; more: what is derived from it, for people, and not read again."""
    derived = [
        {"messages_per_second": run.rate, "server_cpu_us_per_message": run.server_us}
        for run in results.runs
    ]
    everything = asdict(results)
    for run, extra in zip(everything["runs"], derived, strict=True):
        run.update(extra)
    return json.dumps(everything | more, indent=1, ensure_ascii=False)


def from_files(paths: Iterable[Path]) -> Results:
    """What such files hold, the later ones as further rounds. Raises WrongFileError."""
    results = Results()
    for path in paths:
        results.add(_from_file(path))
    return results


def _from_file(path: Path) -> Results:
    try:
        said = json.loads(path.read_text())
        lists: dict[str, type[Any]] = {"runs": Run, "waits": Wait, "idle": Idle, "starts": Start}
        rest = ("facts", "grown", "tables", "skipped", "failed")
        read: dict[str, Any] = {name: said[name] for name in rest}
        for name, kind in lists.items():
            read[name] = [_one(kind, one) for one in said[name]]
        return Results(**read)
    except OSError as error:
        raise WrongFileError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise WrongFileError(f"{path} was not written by scripts/bench --json") from None


def _one(kind: type[Any], said: dict[str, Any]) -> Any:
    return kind(**{name: said[name] for name in kind.__dataclass_fields__})
