"""Does acknowledged mail survive a power cut, when the disk forgets all that was not synced?

The files lie on a disk that does (`LossyFS`). Under load the power goes: everything on the machine
is killed and the disk loses what was not synced, either all of it or, torn in pieces, a part. Each
case has its control, with one sync less, which must be seen to lose mail: it shows that the disk
forgets, and that the account finds out. POWER_CUTS in the environment says how often the power goes
in each case: 3 times, if nothing is said.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.faultlab.lossyfs import LossyFS
from gsmtpd.faultlab.lossyfs_disk import KEEPS, Loss
from tests.accounting import (
    Client,
    Ledger,
    Load,
    Mail,
    MySQLTable,
    Row,
    SQLiteTable,
    Table,
    count,
    rows,
    with_token,
)
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, Server, merge, mysql_store, wait_for

CUTS = int(os.environ.get("POWER_CUTS", "3"))
SCHEMA = "mail"
TRIES = 20
RECIPIENTS = [f"{name}@example.com" for name in "abc"]
# Its pages are written all the time, and not only at its next checkpoint: there is more to tear.
EAGER = "--innodb-max-dirty-pages-pct-lwm=0.001"
IMPATIENT = """
import gsmtpd.storage.mysql as mysql, gsmtpd.storage.mysql_connection as connection
connection.READ_TIMEOUT = 1
mysql._LOOKUP_PAUSES = (0.0,)
"""
NO_SYNC = """
import functools, sqlite3
class Careless(sqlite3.Connection):
    def execute(self, sql, *arguments):
        return super().execute(sql.replace("synchronous=FULL", "synchronous=NORMAL"), *arguments)
sqlite3.connect = functools.partial(sqlite3.connect, factory=Careless)
"""


def mail() -> Mail:
    """Up to 20 KB for one to three recipients; sizes vary so that writes begin anywhere."""
    return with_token(random.randrange(200, 20_000), RECIPIENTS[: random.randrange(1, 4)])


def cut_under_load(
    disk: LossyFS, daemon: Gsmtpd, ledger: Ledger, keep: str, machine: Sequence[Server]
) -> Loss:
    """Cut the power of `machine`, whose servers start in their order, while clients send."""
    loss = Loss()
    with Load(daemon.address, ledger, make=mail):
        for seed in range(CUTS):
            send_more(ledger, random.Random(seed).randrange(50, 400))
            loss += cut(machine, disk, keep, seed)
        send_more(ledger, 1)
    return loss


def send_more(ledger: Ledger, number: int) -> None:
    """Wait until so many more are acknowledged."""
    enough = len(ledger.acknowledged) + number
    wait_for(lambda: len(ledger.acknowledged) >= enough, seconds=120)


def cut(machine: Sequence[Server], disk: LossyFS, keep: str, seed: int) -> Loss:
    """The power of `machine` goes and comes again."""
    loss = disk.power_cut(machine, keep, seed=seed)
    disk.remount()
    for server in machine:
        server.start()
    return loss


def assert_only_loses(ledger: Ledger, stored: Sequence[Row]) -> None:
    """Mail is lost, which is what a control is for, and nothing else is wrong."""
    lost = [problem for problem in ledger.problems(stored) if "LOST" in problem]
    assert lost
    assert lost == [*ledger.problems(stored)]


# --- SQLite ---------------------------------------------------------------------------------------


def sqlite_on(disk: LossyFS, durability: str) -> dict[str, Any]:
    """Settings of a gsmtpd whose mail is on that disk."""
    return {"store": {"durability": durability, "sqlite": {"path": disk.path / "mail.db"}}}


def assert_whole(table: Table) -> None:
    """SQLite finds no fault in its file."""
    assert table.query("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("keep", KEEPS)
def test_sqlite_keeps_what_is_acknowledged(keep: str) -> None:
    ledger = Ledger()
    with LossyFS() as disk, Gsmtpd(sqlite_on(disk, "strict")) as daemon:
        loss = cut_under_load(disk, daemon, ledger, keep, [daemon])
        assert loss.writes  # of the commits that were under way
        table = SQLiteTable(disk.path / "mail.db")
        ledger.check(rows(table))
        assert_whole(table)


def test_control_sqlite_with_relaxed_durability_loses() -> None:
    ledger = Ledger()
    with LossyFS() as disk, Gsmtpd(sqlite_on(disk, "relaxed")) as daemon:
        cut_under_load(disk, daemon, ledger, "some", [daemon])
        table = SQLiteTable(disk.path / "mail.db")
        assert_only_loses(ledger, rows(table))
        assert_whole(table)


def test_sqlite_keeps_what_is_acknowledged_after_each_start() -> None:
    """Its journal is a new file then, and no other than that of a first start or of a crash."""
    ledger = Ledger()
    with LossyFS() as disk, Gsmtpd(sqlite_on(disk, "strict")) as daemon:
        for restart in (False, True, False):
            if restart:
                daemon.stop()
                daemon.start()
            with Load(daemon.address, ledger, sessions=1):
                send_more(ledger, 1)
            daemon.kill()
            disk.power_cut()
            disk.remount()
            daemon.start()
            ledger.check(rows(SQLiteTable(disk.path / "mail.db")))


# --- MariaDB --------------------------------------------------------------------------------------


def on_disk(disk: LossyFS, database: MariaDB) -> Table:
    """Give `database` the tables of gsmtpd and move it to that disk, with all it has."""
    make_schema(database, SCHEMA)
    database.stop()
    disk.adopt(database.path / "data")
    database.start()
    return MySQLTable(database, SCHEMA)


def assert_tables_whole(table: Table) -> None:
    """InnoDB finds no fault in them."""
    names = ["new_mail", "mail_attachment", "gm2_setting"]
    found = table.query(f"CHECK TABLE {', '.join(names)} EXTENDED")
    assert [(*row,) for row in found] == [(f"{SCHEMA}.{n}", "check", "status", "OK") for n in names]


@pytest.mark.parametrize(
    ("keep", "whole_machine"), [("nothing", True), ("some", True), ("some", False)]
)
def test_mariadb_keeps_what_is_acknowledged(keep: str, whole_machine: bool) -> None:
    ledger = Ledger()
    with LossyFS() as disk, MariaDB(durable=True, options=[EAGER]) as database:
        table = on_disk(disk, database)
        with Gsmtpd(mysql_store(database, SCHEMA)) as daemon:
            machine = [database, daemon] if whole_machine else [database]
            loss = cut_under_load(disk, daemon, ledger, keep, machine)
        assert loss.writes
        ledger.check(rows(table))
        assert_tables_whole(table)


def test_control_mariadb_that_syncs_once_a_second_loses() -> None:
    """It writes at each commit, which survives its own end, and not that of the machine."""
    ledger = Ledger()
    options = [EAGER, "--innodb-flush-log-at-trx-commit=2"]
    with LossyFS() as disk, MariaDB(durable=True, options=options) as database:
        table = on_disk(disk, database)
        with Gsmtpd(mysql_store(database, SCHEMA)) as daemon:
            cut_under_load(disk, daemon, ledger, "nothing", [database, daemon])
        assert_only_loses(ledger, rows(table))
        assert_tables_whole(table)


def test_a_row_that_is_seen_before_it_is_safe_is_not_acknowledged() -> None:
    """InnoDB shows others what is committed in its memory while the log is still being synced.

    The disk hangs in a COMMIT, whose answer is therefore missed; its mail is looked up and seen.
    """
    ledger = Ledger()
    options = ["--innodb-stats-persistent=OFF"]  # what has to be synced, too, and goes first
    with LossyFS() as disk, MariaDB(durable=True, options=options) as database:
        table = on_disk(disk, database)
        with Gsmtpd(mysql_store(database, SCHEMA), before=IMPATIENT) as daemon:
            for _ in range(TRIES):
                with Load(daemon.address, ledger, sessions=1):
                    send_more(ledger, 20)
                with Client(daemon.address) as client, disk.hanging():
                    doubtful = mail()
                    ledger.note(doubtful, client.hello().deliver(doubtful), dot=True)
                    if "the answer to a COMMIT was lost" in daemon.log.read_text():
                        disk.power_cut([database, daemon])
                        break  # and not earlier, in an INSERT
            else:
                pytest.fail("the disk never hung in a COMMIT")
        disk.remount()
        database.start()
        ledger.check(rows(table))


# --- the spool ------------------------------------------------------------------------------------


def spool_of(daemon: Gsmtpd) -> int:
    """How many messages wait in the spool."""
    return int(daemon.status()["spool"]["messages"])


def spooling(database: MariaDB, folder: Path) -> dict[str, Any]:
    """Settings of a gsmtpd that spools while the database is away."""
    return merge(mysql_store(database, SCHEMA), {"store": {"spool": folder}})


@pytest.mark.parametrize("keep", KEEPS)
def test_the_spool_keeps_what_is_acknowledged(keep: str) -> None:
    ledger = Ledger()
    with LossyFS() as disk, MariaDB() as database:
        make_schema(database, SCHEMA)
        table = MySQLTable(database, SCHEMA)
        database.kill()
        with Gsmtpd(spooling(database, disk.path / "spool")) as daemon:
            assert cut_under_load(disk, daemon, ledger, keep, [daemon]).writes
            assert spool_of(daemon) >= len(ledger.acknowledged)
            database.start()
            wait_for(lambda: count(table))
            cut([daemon], disk, keep, seed=CUTS)  # while it is emptied
            wait_for(lambda: not spool_of(daemon), seconds=120)
        ledger.check(rows(table))


def test_control_a_spool_that_does_not_sync_loses() -> None:
    ledger = Ledger()
    with LossyFS() as disk, MariaDB() as database:
        make_schema(database, SCHEMA)
        database.kill()
        with Gsmtpd(spooling(database, disk.path / "spool"), before=NO_SYNC) as daemon:
            cut_under_load(disk, daemon, ledger, "nothing", [daemon])
            database.start()
            wait_for(lambda: not spool_of(daemon), seconds=120)
        assert_only_loses(ledger, rows(MySQLTable(database, SCHEMA)))
