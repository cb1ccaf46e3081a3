"""How does cost grow with sessions, and with the size of messages?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scripts.benchlib.results import Results, median
from scripts.benchlib.rounds import Amount, Bench
from scripts.benchlib.runs import Run
from scripts.benchlib.scenarios import Scenario, scenario

SESSIONS = (1, 4, 16, 64, 250, 1000)
SIZES = tuple(kilobytes << 10 for kilobytes in (1, 4, 16, 64, 256, 1024, 4096, 10240))
PEERS = ("smtp-sink", "gsmtpd-null", "gsmtpd-sqlite", "gsmtpd-mariadb", "aiosmtpd-mariadb")
FEW = 100  # messages for each session, where there are few of those: they take their time

CPU = "CPU µs per message, server and database"
RATE = "messages/s"
OCTETS = "MB/s"
QUANTITIES: dict[str, Callable[[Run, Scenario], float]] = {
    CPU: lambda run, _: run.server_us + (run.database_us or 0),
    RATE: lambda run, _: run.rate,
    OCTETS: lambda run, of: run.rate * of.size / 1e6,
}


@dataclass(frozen=True)
class Line:
    """A quantity. by: what grows, sessions or octets; points: peer → (how much, median)."""

    title: str
    by: str
    points: dict[str, list[tuple[int, float]]]


def grow(bench: Bench, peers: Sequence[str], many: bool, amount: Amount) -> None:
    """Measure small messages over more and more sessions, then larger and larger ones."""
    by_sessions = [Scenario(4096, many, sessions) for sessions in SESSIONS]
    by_octets = [Scenario(size, many) for size in SIZES]
    for axis, some in (("sessions", by_sessions), ("octets", by_octets)):
        bench.results.grown[axis] = [one.name for one in some]
    for one in dict.fromkeys(by_sessions + by_octets):
        if not bench.results.runs_of(peers[0], one.name):
            few = replace(amount, messages=min(amount.messages, FEW * one.sessions))
            bench.compare(peers, one, few)


def lines(results: Results) -> list[Line]:
    """Each quantity over sessions, and over octets of a message."""
    made = []
    for by, names in results.grown.items():
        for title, value in QUANTITIES.items():
            points: dict[str, list[tuple[int, float]]] = {}
            for one in map(scenario, names):
                for peer in results.peers(one.name):
                    runs = results.runs_of(peer, one.name).values()
                    amount = one.sessions if by == "sessions" else one.size
                    middle = median([value(run, one) for run in runs])
                    points.setdefault(peer, []).append((amount, middle))
            # Others were measured in the table alone, at one or two of these places.
            points = {peer: of for peer, of in points.items() if 2 * len(of) > len(names)}
            if points and not (title == OCTETS and by == "sessions"):
                made.append(Line(title, by, points))
    return made
