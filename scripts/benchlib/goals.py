"""Which goals are met?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchlib.peers import BASELINE
from scripts.benchlib.results import Results, Value, median, ratios
from scripts.benchlib.runs import Run
from scripts.benchlib.tables import spread

NULL, SQLITE, MARIADB, AIOSMTPD = (
    *("gsmtpd-null", "gsmtpd-sqlite", "gsmtpd-mariadb"),
    "aiosmtpd-mariadb",
)
SMALL, MEDIUM, CROWD = "4k-one", "75k-one", "4k-one-500"
SCENARIOS = (SMALL, MEDIUM, CROWD)
PEERS = (BASELINE, NULL, SQLITE, MARIADB, AIOSMTPD)
PACED = (NULL, SQLITE, MARIADB)
PACED_SCENARIOS = (SMALL, MEDIUM)
IDLE_PEERS = (NULL, MARIADB)
IDLE_CLIENTS = 10_000
START_PEERS = (NULL, SQLITE, MARIADB)


@dataclass(frozen=True)
class Goal:
    """What is wanted, and what was reached in each round. most: it is to be at most `bound`."""

    title: str
    bound: float
    most: bool
    values: Sequence[float]
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the bound; None if nothing was measured."""
        if not self.values:
            return None
        middle = median(self.values)
        return middle <= self.bound if self.most else middle >= self.bound

    @property
    def wanted(self) -> str:
        """For a cell."""
        return f"{'≤' if self.most else '≥'} {self.bound:g}{self.unit}"

    def as_json(self) -> dict[str, Any]:
        """With what was made of it."""
        return asdict(self) | {"values": [*self.values], "met": self.met}


def _server(run: Run) -> float:
    return run.server_us


def _rate(run: Run) -> float:
    return run.rate


def _database(run: Run) -> float | None:
    return run.database_us


def judged(results: Results) -> list[Goal]:
    """All goals, with what was reached, if it was measured."""
    return [
        *_beside_smtp_sink(results),
        *_others(results),
        *_idle(results),
        *_starts(results),
        *_replies(results),
    ]


def _beside_smtp_sink(results: Results) -> Iterator[Goal]:
    def goal(title: str, bound: float, peer: str, value: Value, where: str = SMALL) -> Goal:
        mine, base = results.runs_of(peer, where), results.runs_of(BASELINE, where)
        its = _server if value is _database else value
        each = ratios(value, mine, base, its)
        return Goal(f"{title} × {BASELINE}'s, {where}", bound, value is not _rate, each)

    yield goal("null: CPU", 0.9, NULL, _server)
    yield goal("null: messages/s", 1.1, NULL, _rate)
    yield goal("MariaDB: CPU of gsmtpd", 1.2, MARIADB, _server)
    yield goal("MariaDB: CPU of MariaDB", 0.5, MARIADB, _database)
    yield goal("MariaDB: messages/s", 0.6, MARIADB, _rate)
    yield goal("MariaDB: messages/s", 0.65, MARIADB, _rate, CROWD)
    yield goal("MariaDB: CPU of gsmtpd", 1.5, MARIADB, _server, MEDIUM)


def _others(results: Results) -> Iterator[Goal]:
    # Messages per CPU second: the more of them, the less CPU a message takes.
    ours, theirs = (results.runs_of(peer, SMALL) for peer in (MARIADB, AIOSMTPD))
    title = f"MariaDB: messages per CPU second × aiosmtpd's, {SMALL}"
    yield Goal(title, 6, False, ratios(_server, theirs, ours))


def _idle(results: Results) -> Iterator[Goal]:
    for peer in IDLE_PEERS:
        some = [i for i in results.idle if i.peer == peer and i.clients == IDLE_CLIENTS]
        what = f"{peer}, {IDLE_CLIENTS} idle clients"
        for kind in ("rss", "pss"):
            megabytes = [getattr(one, kind) / 1e6 for one in some]
            yield Goal(f"{what}: {kind.upper()}", 100, True, megabytes, " MB")
        each = [one.rate_with / one.rate_without for one in some]
        yield Goal(f"{what}: messages/s × those without", 0.9, False, each)


def _starts(results: Results) -> Iterator[Goal]:
    for peer in START_PEERS:
        each = [start.seconds for start in results.starts if start.peer == peer]
        yield Goal(f"{peer}: start to the first greeting", 0.3, True, each, " s")


def _replies(results: Results) -> Iterator[Goal]:
    for where in PACED_SCENARIOS:
        for peer in PACED:
            each = [wait.p99 * 1e3 for wait in results.waits_of(peer, where)]
            title = f"{peer}: p99 of the reply, half the rate, {where}"
            yield Goal(title, 50, True, each, " ms")


def table(goals: Sequence[Goal]) -> list[list[str]]:
    """Goal, what was reached, and whether that is enough; those not measured are left out."""
    rows = [["goal", "wanted", "reached", ""]]
    for goal in goals:
        if goal.values:
            reached = spread(goal.values, ".1f" if goal.bound >= 10 else ".2f")
            rows.append([goal.title, goal.wanted, reached, "met" if goal.met else "MISSED"])
    return rows
