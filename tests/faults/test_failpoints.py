"""Is acknowledged mail stored, whatever step of a message's life a worker dies at?"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from gsmtpd.failpoints import STEPS
from gsmtpd.workers import AT_ONCE
from tests.accounting import (
    Gone,
    Ledger,
    Load,
    MySQLTable,
    Row,
    count,
    rows,
    send,
    table_of,
    to_several,
    with_token,
)
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for

IN_THE_SPOOL = {"spooling", "spooled", "draining", "drained"}
IN_MYSQL = {"after_begin", "between_inserts", "before_commit"}


def put(directory: Path, step: str, action: str) -> Path:
    """Have the next process that passes `step` do so; the file, which is gone once one does."""
    file = directory / step
    file.with_suffix(".new").write_text(action)
    file.with_suffix(".new").rename(file)
    return file


def die_at(daemon: Gsmtpd, load: Load, directory: Path, steps: list[str]) -> None:
    """Have a worker die at each of `steps`."""
    for step in steps:
        load.wait_for(5)
        time.sleep(AT_ONCE)  # one that dies earlier is replaced later, and later each time
        file = put(directory, step, "die")

        def is_taken(file: Path = file) -> bool:
            with contextlib.suppress(Gone, OSError):
                send(daemon.address, with_token())  # a client that has just connected
            return not file.exists()

        wait_for(is_taken)
    load.wait_for(5)
    wait_for(lambda: daemon.status()["replaced"] == len(steps))


@pytest.mark.parametrize("connections", [1, 4], ids=["writer threads", "lane"])
def test_a_worker_dies_at_each_step(
    mariadb: MariaDB, schema: str, tmp_path: Path, connections: int
) -> None:
    ledger = Ledger()
    steps = [step for step in STEPS if step not in IN_THE_SPOOL]
    store = mysql_store(mariadb, schema, connections=connections)
    settings = store | {"server": {"processes": 2}}
    armed = {"GSMTPD_FAILPOINTS": str(tmp_path)}
    with (
        Gsmtpd(settings, variables=armed) as daemon,
        Load(daemon.address, ledger, make=to_several) as load,
    ):
        die_at(daemon, load, tmp_path, steps)
    check(ledger, rows(MySQLTable(mariadb, schema)))


def test_a_worker_dies_at_each_step_with_sqlite(tmp_path: Path) -> None:
    ledger = Ledger()
    steps = [step for step in STEPS if step not in IN_THE_SPOOL | IN_MYSQL]
    with Gsmtpd(variables={"GSMTPD_FAILPOINTS": str(tmp_path)}) as daemon:
        with Load(daemon.address, ledger, make=to_several) as load:
            die_at(daemon, load, tmp_path, steps)
        check(ledger, rows(table_of(daemon)))


def check(ledger: Ledger, stored: list[Row]) -> None:
    """Hold the account against what is stored, but for what `is_taken` sent."""
    ours = {attempt.mail.content for attempt in ledger.attempts}
    ledger.check(row for row in stored if row.content in ours)


def test_a_step_that_raises_is_a_4xx(mariadb: MariaDB, schema: str, tmp_path: Path) -> None:
    table = MySQLTable(mariadb, schema)
    armed = {"GSMTPD_FAILPOINTS": str(tmp_path)}
    with Gsmtpd(mysql_store(mariadb, schema, connections=1), variables=armed) as daemon:
        for step in ("dot", "before_begin", "between_inserts", "before_commit"):
            passed = put(tmp_path, step, "raise")
            mail = with_token(recipients=["a@example.com", "b@example.com"])
            reply = send(daemon.address, mail)[0]
            assert not passed.exists(), step
            # A COMMIT that failed for no known reason is looked up, and then sent once more.
            assert reply.code == (250 if step == "before_commit" else 451), (step, reply)
        assert send(daemon.address, with_token())[0].code == 250
    assert count(table) == 3


def test_a_lane_that_raises_leaves_its_batch_to_others(
    mariadb: MariaDB, schema: str, tmp_path: Path
) -> None:
    table = MySQLTable(mariadb, schema)
    armed = {"GSMTPD_FAILPOINTS": str(tmp_path)}
    with Gsmtpd(mysql_store(mariadb, schema), variables=armed) as daemon:
        for step in ("before_begin", "after_begin", "between_inserts", "before_commit"):
            daemon.wait_for_lane()
            passed = put(tmp_path, step, "raise")
            mail = with_token(recipients=["a@example.com", "b@example.com"])
            assert send(daemon.address, mail)[0].code == 250
            assert not passed.exists(), step
            wait_for(lambda step=step: f"failpoint {step}" in daemon.log.read_text())
    assert count(table) == 8


@pytest.mark.parametrize("connections", [1, 4], ids=["writer threads", "lane"])
def test_a_step_that_stalls(
    mariadb: MariaDB, schema: str, tmp_path: Path, connections: int
) -> None:
    armed = {"GSMTPD_FAILPOINTS": str(tmp_path)}
    settings = mysql_store(mariadb, schema, connections=connections)
    with Gsmtpd(settings, variables=armed) as daemon:
        if connections > 1:
            daemon.wait_for_lane()
        put(tmp_path, "before_commit", "stall 1")
        began = time.monotonic()
        assert send(daemon.address, with_token())[0].code == 250
        assert time.monotonic() - began >= 1


def test_they_are_off_without_the_variable(tmp_path: Path) -> None:
    with Gsmtpd() as daemon, contextlib.chdir(tmp_path):
        put(tmp_path, "dot", "die")
        assert send(daemon.address, with_token())[0].code == 250
        assert "failpoints" not in daemon.log.read_text()
    assert (tmp_path / "dot").exists()
