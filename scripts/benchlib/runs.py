"""What does one run of the load against one peer measure, and was every message kept?"""

from __future__ import annotations

import time
from dataclasses import dataclass

from scripts.benchlib import load
from scripts.benchlib.clocks import cpu_seconds, memory
from scripts.benchlib.latency import Pace, Paced, pace
from scripts.benchlib.peers import Peer
from scripts.benchlib.scenarios import Scenario
from tests.servers import ServerError

SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """All that was taken, as fast as it was. Times are seconds, for all messages together.

    rss, pss, peak: octets of all processes of the server at the end.
    """

    round: int
    peer: str
    scenario: str
    messages: int
    seconds: float
    server_cpu: float
    database_cpu: float | None
    load_cpu: float
    rows: int | None
    rss: int = 0
    pss: int = 0
    peak: int = 0

    @property
    def rate(self) -> float:
        """Messages per second on the wall."""
        return self.messages / self.seconds

    def each(self, seconds: float) -> float:
        """Microseconds per message."""
        return seconds / self.messages * 1e6

    @property
    def server_us(self) -> float:
        """CPU of the server in microseconds per message."""
        return self.each(self.server_cpu)

    @property
    def database_us(self) -> float | None:
        """CPU of the database in microseconds per message, where there is one."""
        return None if self.database_cpu is None else self.each(self.database_cpu)


@dataclass(frozen=True)
class Wait(Paced):
    """How long replies to the final dot took at a steady rate.

    rate: messages per second that were begun. server_cpu: seconds.
    """

    round: int
    peer: str
    scenario: str
    rate: float
    server_cpu: float


class _Watch:
    """The CPU that a peer and its database use from now on. Raises ServerError as they end."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._pids = peer.server.pids()
        self._database = [peer.database.pid] if peer.database else []
        self._before = cpu_seconds(self._pids), cpu_seconds(self._database)

    def used(self) -> tuple[float, float | None]:
        """Seconds of the server, and of the database if there is one."""
        time.sleep(SETTLE_SECONDS)  # the last connections are still being closed
        try:
            after = cpu_seconds(self._pids), cpu_seconds(self._database)
        except OSError:
            raise self._peer.server.error("lost a process during the run") from None
        if set(self._peer.server.pids()) != set(self._pids):
            raise self._peer.server.error("has other processes than before the run")
        database = after[1] - self._before[1] if self._database else None
        return after[0] - self._before[0], database


def measure(peer: Peer, scenario: Scenario, messages: int, round_: int = 0) -> Run:
    """One run at full speed. Raises ServerError when anything at all was not as it should be."""
    watch = _Watch(peer)
    sent = load.send(peer.server.port, scenario, messages, secure=peer.secure)
    server_cpu, database_cpu = watch.used()
    taken = memory(peer.server.pids())
    return Run(
        round=round_,
        peer=peer.name,
        scenario=scenario.name,
        messages=messages,
        seconds=sent.seconds,
        server_cpu=server_cpu,
        database_cpu=database_cpu,
        load_cpu=sent.cpu,
        rows=verify(peer, messages),
        rss=taken.rss,
        pss=taken.pss,
        peak=taken.peak,
    )


def wait(peer: Peer, scenario: Scenario, how: Pace, round_: int = 0) -> Wait:
    """One run at a steady rate. Raises ServerError as `measure` does."""
    watch = _Watch(peer)
    paced = pace(peer.server.port, scenario, how, secure=peer.secure)
    server_cpu, _ = watch.used()
    verify(peer, how.messages)
    return Wait(
        **vars(paced),
        round=round_,
        peer=peer.name,
        scenario=scenario.name,
        rate=how.rate,
        server_cpu=server_cpu,
    )


def verify(peer: Peer, messages: int) -> int | None:
    """Count what was kept, raise ServerError unless it is all that was sent, and remove it."""
    if peer.store is None:
        return None
    rows = peer.store.rows()
    peer.store.clear()
    if rows != messages:
        raise ServerError(f"{messages} messages were sent, {rows} rows are there")
    return rows
