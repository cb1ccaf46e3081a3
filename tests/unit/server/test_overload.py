"""Is it said once that there is not enough of something, and once that there is again?"""

from __future__ import annotations

import logging

import pytest

from gsmtpd.metrics import Counter, Counters, Overload
from gsmtpd.server.overload import Overloads


class Thread:
    """An SMTP thread's view of what it has not enough of. lasting: what is still so."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.row = self.counters.row(self.counters.take(1)[0])
        self.overloads = Overloads(self.row)
        self.lasting: set[Overload] = set()

    def enter(self, kind: Overload, text: str = "too many") -> None:
        self.lasting.add(kind)
        self.overloads.enter(kind, lambda: kind in self.lasting, f"{text}: %d", 7)

    @property
    def now(self) -> int:
        return self.counters.any(Counter.OVERLOAD)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_said_once_on_entering_and_once_on_leaving(caplog: pytest.LogCaptureFixture) -> None:
    thread = Thread()
    for _ in range(1000):
        thread.enter(Overload.CLIENTS)
        thread.overloads.look()
    assert told(caplog) == ["too many: 7"]
    assert Overload.CLIENTS in thread.overloads
    assert thread.now == Overload.CLIENTS
    thread.lasting.clear()
    for _ in range(3):
        thread.overloads.look()
    assert told(caplog) == ["too many: 7", "max_clients: enough again"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert Overload.CLIENTS not in thread.overloads
    assert thread.now == 0


def test_it_is_said_anew_each_time(caplog: pytest.LogCaptureFixture) -> None:
    thread = Thread()
    for _ in range(2):
        thread.enter(Overload.MEMORY)
        thread.lasting.clear()
        thread.overloads.look()
    assert told(caplog) == ["too many: 7", "max_memory: enough again"] * 2


def test_each_kind_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    thread = Thread()
    for kind in Overload:
        thread.enter(kind, kind.words[0])
    assert thread.now == sum(Overload)
    thread.lasting -= {Overload.DESCRIPTORS}
    thread.overloads.look()
    assert thread.now == sum(Overload) - Overload.DESCRIPTORS
    assert told(caplog)[-1] == "file descriptors: enough again"
    assert len(told(caplog)) == len(Overload) + 1


def test_the_last_to_enter_says_how_long_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """Of many addresses that have too many connections the last one is asked for."""
    thread = Thread()
    thread.overloads.enter(Overload.CLIENTS_PER_IP, lambda: False, "%s has too many", "192.0.2.1")
    thread.overloads.enter(Overload.CLIENTS_PER_IP, lambda: True, "%s has too many", "192.0.2.2")
    thread.overloads.look()
    assert told(caplog) == ["192.0.2.1 has too many"]
    assert thread.now == Overload.CLIENTS_PER_IP
