"""What does who waits for mail hear while the database is away, hangs, or comes late?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.accounting import Mail, send
from tests.servers import Gsmtpd, MariaDB, environment, freeze, merge, mysql_store, wait_for
from tests.status_client import Status, served

TO = "joe@example.com"


@pytest.fixture
def database() -> Iterator[MariaDB]:
    with MariaDB(durable=True) as made:
        made.create_database("mail")
        yield made


@pytest.fixture
def both(database: MariaDB) -> Iterator[tuple[Gsmtpd, Status]]:
    with served(mysql_store(database, "mail")) as (daemon, status):
        daemon.ctl("init-db", "--apply")
        yield daemon, status


def store(daemon: Gsmtpd, subject: str) -> None:
    mail = Mail(f"Subject: {subject}\r\n\r\nx\r\n".encode(), (TO,))
    wait_for(lambda: send(daemon.address, mail)[0].code == 250)


def ctl(daemon: Gsmtpd, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), "wait", *arguments],
        check=False, capture_output=True, text=True, env=environment(), timeout=100,
    )  # fmt: skip


def test_a_database_that_comes_late(
    database: MariaDB, both: tuple[Gsmtpd, Status], background: ThreadPoolExecutor
) -> None:
    daemon, status = both
    database.stop()
    first = status.ask("/api/wait", to=TO, timeout=0.5)
    assert (first.status, first.headers["retry-after"]) == (503, "1")
    assert "no database server answers" in first.json["error"]
    again = {"to": TO, "after": first.json["cursor"], "timeout": 100}
    asked = background.submit(status.get, "/api/wait", **again)
    told = background.submit(ctl, daemon, "--to", TO, "--timeout", "100")
    short = ctl(daemon, "--to", TO, "--timeout", "0.5")
    assert short.returncode == 69
    assert short.stderr.count("no database server answers") == 2, "at first, and at the end"
    assert not asked.done() and not told.done()
    database.start()
    store(daemon, "late")
    assert asked.result()["mail"]["subject"] == "late"
    done = told.result()
    assert (done.returncode, "Subject: late\n" in done.stdout) == (0, True)


def test_a_database_that_goes_while_somebody_waits(
    database: MariaDB, both: tuple[Gsmtpd, Status], background: ThreadPoolExecutor
) -> None:
    daemon, status = both
    waiting = background.submit(status.ask, "/api/wait", to=TO, timeout=6)
    wait_for(lambda: "Sleep" in str(database.query("SHOW PROCESSLIST")))
    database.stop()
    said = waiting.result()
    assert (said.status, [*said.json]) == (503, ["error", "cursor"])
    database.start()
    store(daemon, "behind it")
    found = status.get("/api/wait", to=TO, after=said.json["cursor"])
    assert found["mail"]["subject"] == "behind it"


def test_a_database_that_hangs(database: MariaDB, both: tuple[Gsmtpd, Status]) -> None:
    """It is not waited for beyond the time: else this test would take as long as the driver."""
    daemon, status = both
    assert status.get("/api/wait", to=TO, timeout=0)["mail"] is None
    freeze(database.pid)
    try:
        for timeout in (0, 2):
            said = status.ask("/api/wait", to=TO, timeout=timeout, within=12)
            assert (said.status, [*said.json]) == (503, ["error", "cursor"])
        done = ctl(daemon, "--to", TO, "--timeout", "2")
        assert done.returncode == 69
        assert done.stderr == "gsmtpctl: the store has not answered in time\n"
    finally:
        os.kill(database.pid, signal.SIGCONT)


def test_what_no_waiting_mends(database: MariaDB) -> None:
    wrong = {"store": {"mysql": {"table": "nowhere"}}}
    with served(merge(mysql_store(database, "mail"), wrong)) as (daemon, status):
        said = status.ask("/api/wait", to=TO, timeout=100)
        assert said.status == 503
        assert "there is no table 'nowhere'" in said.json["error"]
        done = ctl(daemon, "--to", TO, "--timeout", "100")
        assert done.returncode == 69
        assert done.stderr.count("there is no table 'nowhere'") == 1


def test_a_mail_file_that_is_not_there_yet(background: ThreadPoolExecutor) -> None:
    daemon = Gsmtpd()
    try:
        told = background.submit(ctl, daemon, "--to", TO, "--timeout", "100")
        done = ctl(daemon, "--to", TO, "--timeout", "0.5")
        assert done.returncode == 69
        assert "no mail file yet" in done.stderr
        assert not told.done()
        daemon.start()
        store(daemon, "the first")
        assert "Subject: the first\n" in told.result().stdout
    finally:
        daemon.stop()


def test_no_address(both: tuple[Gsmtpd, Status]) -> None:
    daemon, _ = both
    done = ctl(daemon, "--to", "nope")
    assert done.returncode == 2
    assert "'nope' is no address; write one like user@example.com" in done.stderr
