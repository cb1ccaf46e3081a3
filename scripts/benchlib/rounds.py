"""In which order are peers measured? In turn, round after round, and never the same one first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scripts.benchlib.clocks import forget_peaks
from scripts.benchlib.latency import Pace
from scripts.benchlib.peers import MARIADB_DEFAULTS, PEERS, Builder, Options, Peer
from scripts.benchlib.results import Results, median
from scripts.benchlib.runs import measure, wait
from scripts.benchlib.scenarios import Scenario
from scripts.benchlib.tables import progress
from tests.servers import MariaDB, MissingProgramError, ServerError

WARM_UP = 200


@dataclass(frozen=True)
class Amount:
    """How much of each. messages: in a run of small ones.

    waits: rounds at half the rate, or 0; seconds: how long each of them is.
    """

    rounds: int
    messages: int
    waits: int = 0
    seconds: float = 1.0


def rotated(peers: Sequence[Peer], round_: int) -> list[Peer]:
    """The peers, beginning with another in each round."""
    first = round_ % len(peers) if peers else 0
    return [*peers[first:], *peers[:first]]


class Bench:
    """The running peers and what became of them; everything ends with the exit stack."""

    def __init__(
        self, options: Options, stack: contextlib.ExitStack, builders: dict[str, Builder] = PEERS
    ) -> None:
        self.results = Results()
        self.options = options
        self._builders = builders
        self._stack = stack
        self._databases: list[MariaDB] = []
        self._peers: dict[str, Peer] = {}

    def database(self) -> MariaDB:
        """The one MariaDB all peers share, durable and sized as shipped, started when asked."""
        if not self._databases:
            server = MariaDB(durable=True, options=MARIADB_DEFAULTS)
            self._databases.append(self._stack.enter_context(server))
        return self._databases[0]

    def build(self, name: str) -> Peer:
        """A new peer, not started. Raises ServerError."""
        return self._builders[name](self.options, self.database)

    def running(self, names: Iterable[str]) -> list[Peer]:
        """Those of the named peers that run, started now where they were not."""
        for name in names:
            gone = name in self.results.skipped or name in self.results.failed
            if name not in self._peers and not gone:
                self._start(name)
        return [self._peers[name] for name in names if name in self._peers]

    def _start(self, name: str) -> None:
        try:
            peer = self.build(name)
            self._stack.enter_context(peer.server)
        except MissingProgramError as error:
            self.results.skipped[name] = str(error)
        except ServerError as error:
            self.results.failed[name] = str(error)
        else:
            self._peers[name] = peer

    def compare(self, names: Sequence[str], scenario: Scenario, amount: Amount) -> None:
        """All rounds of a scenario, after a short run of each peer to warm up."""
        count = scenario.count(amount.messages)
        for peer in self.running(names):
            forget_peaks(peer.server.pids())
            self._measure(peer, scenario, min(WARM_UP, count), 0)
        for round_ in range(1, amount.rounds + 1):
            progress(f"{scenario.title}: round {round_} of {amount.rounds}")
            for peer in rotated(self.running(names), round_):
                self._measure(peer, scenario, count, round_)
        for round_ in range(1, amount.waits + 1):
            progress(f"{scenario.title}: at half the rate: round {round_} of {amount.waits}")
            for peer in rotated(self.running(names), round_):
                self._wait(peer, scenario, amount.seconds, round_)
        progress("")

    def _measure(self, peer: Peer, scenario: Scenario, messages: int, round_: int) -> None:
        """One run, kept unless it is round 0."""
        with self.judging(peer, scenario.title):
            run = measure(peer, scenario, messages, round_)
            self.results.runs += [run] * bool(round_)

    def _wait(self, peer: Peer, scenario: Scenario, seconds: float, round_: int) -> None:
        """One run at half the rate that this peer has reached."""
        runs = self.results.runs_of(peer.name, scenario.name).values()
        rate = median([run.rate for run in runs]) / 2
        how = Pace(max(1, round(rate * seconds)), rate)
        with self.judging(peer, f"{scenario.title}, at half the rate"):
            self.results.waits.append(wait(peer, scenario, how, round_))

    @contextlib.contextmanager
    def judging(self, peer: Peer, what: str) -> Iterator[None]:
        """A peer that fails within is ended, named as failed, and out of all that follows."""
        try:
            yield
        except ServerError as error:
            self.results.failed[peer.name] = f"{what}: {error}"
            self._peers.pop(peer.name, None)
            peer.server.close()
