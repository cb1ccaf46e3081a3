"""Can an operator forget about it? Workers killed, reloads and a stop, all under load."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.accounting import Ledger, Load, MySQLTable, Row, rows, send, to_several, with_token
from tests.functional.test_daemon import STOP, Daemon, alive
from tests.servers import MariaDB, descendants, find_program, mysql_store, wait_for

SECONDS = 30  # of killing, and of reloading
EACH = 1.0
TO_SOURCE = "source@example.com"


class Source:
    """smtp-source, again and again: it gives up at the first connection that is lost."""

    def __init__(self, address: tuple[str, int], sessions: int) -> None:
        self._command = [
            *(find_program("smtp-source"), "-s", str(sessions), "-m", "2000", "-l", "4096"),
            *("-f", "a@example.org", "-t", TO_SOURCE, f"{address[0]}:{address[1]}"),
        ]
        self._thread = threading.Thread(target=self._run)
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self.said: list[str] = []
        self.runs = 0

    def _run(self) -> None:
        while not self._ended.is_set():
            self.runs += 1
            with subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True) as process:
                self._process = process
                self.said.append(process.communicate()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join()


class Watched(Daemon):
    """A daemon in the background, all whose processes that were ever seen are known."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.seen: set[int] = set()

    def look(self) -> list[int]:
        """The workers there are now."""
        workers = descendants(self.pid)
        self.seen |= {self.pid, *workers}
        return workers


@pytest.fixture
def settings(mariadb: MariaDB, schema: str) -> dict[str, Any]:
    return mysql_store(mariadb, schema) | {"server": {"processes": 2}}


@pytest.fixture
def daemon(settings: dict[str, Any]) -> Iterator[Watched]:
    with Watched(settings) as running:
        yield running


def every_second(seconds: int) -> Iterator[int]:
    """A number each second, at the second."""
    began = time.monotonic()
    for number in range(seconds):
        time.sleep(max(0.0, began + number * EACH - time.monotonic()))
        yield number


def of_the_account(table: MySQLTable) -> list[Row]:
    """The rows of the accounting clients: smtp-source notes nothing that could be held to."""
    return [row for row in rows(table) if row.recipient != TO_SOURCE]


def test_killed_and_reloaded_and_stopped_under_load(
    daemon: Watched, settings: dict[str, Any], mariadb: MariaDB, schema: str
) -> None:
    ledger = Ledger()
    killed = []
    with Source(daemon.address, 20) as source:
        with Load(daemon.address, ledger, make=to_several) as load:
            for _ in every_second(SECONDS):
                wait_for(daemon.look)  # one that died young is replaced a little later
                killed.append(random.choice(daemon.look()))
                os.kill(killed[-1], signal.SIGKILL)
            load.wait_for(100)
            acknowledged = len(ledger.acknowledged)
            lost = sum(attempt.reply is None for attempt in ledger.attempts)

            names = []
            for number in every_second(SECONDS):
                daemon.look()
                names.append(f"mx{number}.example.com")
                server = {"processes": 1 + number % 3, "host_name": names[-1]}
                daemon.configure(settings | {"server": server})
                os.kill(daemon.pid, signal.SIGHUP)
            load.wait_for(100)
            last = f"by {names[-1]} with".encode()
            table = MySQLTable(mariadb, schema)
            wait_for(lambda: any(last in row.mail for row in rows(table)[-1000:]))
            reloads = daemon.log.read_text().count("reloaded ")

            daemon.log.rename(daemon.path / "old.log")
            os.kill(daemon.pid, signal.SIGUSR1)
            load.wait_for(100)
            wait_for(lambda: daemon.log.exists() and "result=accepted" in daemon.log.read_text())
        assert source.runs > 1
        daemon.look()
        # smtp-source is still at it, and is refused from here on.
        refused = [text for text in source.said if "refused" in text]
        os.kill(daemon.pid, signal.SIGTERM)
        wait_for(lambda: not any(map(alive, daemon.seen)), STOP)

    old = (daemon.path / "old.log").read_text()
    assert acknowledged > 100
    assert lost > 0, "no client noticed that workers were killed: was there any load?"
    assert len(set(killed)) == SECONDS
    assert reloads >= SECONDS - 1, "each HUP is a reload, unless two come at once"
    assert load.refused == 0
    assert not refused
    assert re.findall("level=error(?!.*by SIGKILL).*", old) == []
    assert "Traceback" not in old + daemon.log.read_text()
    ledger.check(of_the_account(MySQLTable(mariadb, schema)))
    lines = (old + daemon.log.read_text()).count("result=accepted")
    assert lines >= len(ledger.acknowledged)
    for left in (daemon.pid_file, daemon.path / "control"):
        assert not left.exists()
    assert not listening_on(daemon.port)


def listening_on(port: int) -> bool:
    """Whether any process has a socket that listens on `port`, by the kernel's own list."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines
    )


def test_a_start_behind_all_that_works(daemon: Watched) -> None:
    """The same files, ports and sockets can be had again at once."""
    for _ in range(3):
        pids = [daemon.pid, *daemon.look()]
        os.kill(daemon.pid, signal.SIGTERM)
        wait_for(lambda: not any(map(alive, pids)), STOP)  # noqa: B023
        daemon.start()
        assert send(daemon.address, with_token())[0].code == 250
