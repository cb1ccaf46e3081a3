"""Would the fault lab notice? Each build here breaks a promise on purpose, and must be found out.

Real gsmtpds and a real MariaDB; the healthy build goes through the same faults without a violation.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.check import VIOLATIONS, Report, check
from gsmtpd.faultlab.mysql_proxy import Action, MySQLProxy, Point
from gsmtpd.faultlab.senders import Senders
from gsmtpd.faultlab.stored import MySQLAddress, mysql_rows
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for

ANSWERS_BEFORE_COMMIT = """
import threading, time
from gsmtpd.storage.base import Outcome
from gsmtpd.storage.mysql import MySQLStore
really = MySQLStore.write
def write(self, letters):
    def later():
        time.sleep(0.3)
        really(self, letters)
    threading.Thread(target=later, daemon=True).start()
    return [Outcome.STORED] * len(letters)
MySQLStore.write = write
"""
EACH_ROW_ALONE = """
from gsmtpd.storage import mysql
mysql._STATEMENT_BYTES = 1
"""
NEVER_BEGINS = f"""{EACH_ROW_ALONE}
from gsmtpd.storage.mysql_pool import SteadyDBConnection
SteadyDBConnection.begin = lambda self: None
"""
# As DBUtils does with a cursor where it knows of no transaction: the rest goes to a new session.
CONNECTS_AGAIN = f"""{EACH_ROW_ALONE}
import pymysql
from gsmtpd.storage.mysql_connection import _socket_to
from gsmtpd.storage.mysql_wire import Connection
really = Connection.execute
def execute(self, *arguments):
    try:
        really(self, *arguments)
    except pymysql.err.OperationalError:
        self.statements.clear()
        self.connect(_socket_to(self.to_host, 5))
        really(self, *arguments)
Connection.execute = execute
"""
REFUSES_FOR_GOOD = """
from gsmtpd.server import connection
from gsmtpd.smtp.reply import Reply
for outcome in connection.OUTCOMES:
    connection.OUTCOMES[outcome] = Reply(554, "5.3.0", "Cannot store mail")
"""
FORGETS_RECIPIENTS = """
from gsmtpd.message.row import RowMaker
really = RowMaker.rows
RowMaker.rows = lambda self, *arguments: iter([*really(self, *arguments)][:1])
"""
STORES_TWICE = """
import uuid
from gsmtpd.storage.mysql import MySQLStore
really = MySQLStore.write
def write(self, letters):
    again = [
        letter._replace(message=letter.message._replace(id=uuid.uuid4().hex), form=None)
        for letter in letters
    ]
    really(self, again)
    return really(self, letters)
MySQLStore.write = write
"""
CHANGES_AN_OCTET = """
from gsmtpd.message.row import RowMaker
really = RowMaker.rows
def rows(self, *arguments):
    for row in really(self, *arguments):
        yield row._replace(mail=row.mail[:-3] + b"!" + row.mail[-2:])
RowMaker.rows = rows
"""


@pytest.fixture(scope="module")
def database() -> Iterator[MariaDB]:
    """A MariaDB that may be killed: what it has committed is there again."""
    with MariaDB(durable=True) as server:
        yield server


@pytest.fixture
def proxy(database: MariaDB) -> Iterator[MySQLProxy]:
    """A way to an empty table."""
    make_schema(database, "accounted")
    with MySQLProxy(database.address) as made:
        yield made


def settings(database: MariaDB, proxy: MySQLProxy, connections: int = 1) -> dict[str, Any]:
    """With 1 connection writer threads store all mail, whose code the builds spoil."""
    host = f"127.0.0.1:{proxy.port}"
    return mysql_store(database, "accounted", host=host, connections=connections)


def address(database: MariaDB) -> MySQLAddress:
    socket = str(database.socket)
    return MySQLAddress("localhost", 0, socket, "root", "", "accounted", "new_mail")


def judged(database: MariaDB, ledgers: Path) -> Report:
    report = check(ledger.files(ledgers), mysql_rows([address(database)]))
    assert report.acknowledged + report.refused_5xx > 0
    return report


def found(report: Report) -> set[str]:
    return {name for name in VIOLATIONS if getattr(report, name)}


def end(senders: Senders) -> None:
    """Give up soon what a broken build does not take."""
    senders.stop(2.0)


def kill_the_database(database: MariaDB, senders: Senders) -> None:
    senders.wait_for(50)
    database.kill()
    database.start()
    senders.wait_for(20)


def cut_between_inserts(proxy: MySQLProxy, senders: Senders) -> None:
    senders.wait_for(20)
    proxy.arm(Point.BETWEEN_INSERTS, Action.KILL, times=10)
    wait_for(lambda: not proxy.armed, 60)
    senders.wait_for(20)


def kill_the_database_between_inserts(
    database: MariaDB, proxy: MySQLProxy, senders: Senders
) -> None:
    senders.wait_for(20)
    proxy.arm(Point.BETWEEN_INSERTS, Action.CALL, function=database.kill)
    wait_for(lambda: not proxy.armed, 60)
    wait_for(lambda: not database.running, 60)
    database.start()
    senders.wait_for(20)


def fail_between_inserts(proxy: MySQLProxy, senders: Senders) -> None:
    """So often that some are of one mail; by an error for which DBUtils does not connect again."""
    senders.wait_for(20)
    proxy.arm(Point.BETWEEN_INSERTS, Action.ERROR, times=50, errno=1062)
    wait_for(lambda: not proxy.armed, 60)
    senders.wait_for(20)


def cut_at_commit(proxy: MySQLProxy, senders: Senders) -> None:
    """Answers to COMMIT are lost; then there is no database for a while."""
    senders.wait_for(20)
    proxy.arm(Point.COMMIT_REPLY, Action.KILL, times=5)
    wait_for(lambda: not proxy.armed, 60)
    before = senders.refused
    proxy.refuse()
    proxy.reset()  # lanes and writer threads have connections of their own
    wait_for(lambda: senders.refused > before + 5, 60)
    proxy.heal()


def test_the_healthy_build(database: MariaDB, proxy: MySQLProxy, tmp_path: Path) -> None:
    with (
        Gsmtpd(settings(database, proxy, 4), before=EACH_ROW_ALONE) as daemon,
        Senders(daemon.address, tmp_path, 1, sessions=8, rate=400, break_off=0.02) as senders,
    ):
        kill_the_database(database, senders)
        cut_between_inserts(proxy, senders)
        kill_the_database_between_inserts(database, proxy, senders)
        fail_between_inserts(proxy, senders)
        cut_at_commit(proxy, senders)
        (worker,) = daemon.workers
        os.kill(worker, signal.SIGKILL)
        senders.wait_for(200)
    report = judged(database, tmp_path)
    assert report.violations == 0, [*report.lines()]
    assert report.lost_connections and report.refused_4xx and report.abandoned
    assert not report.unacknowledged


def test_250_before_the_commit(database: MariaDB, proxy: MySQLProxy, tmp_path: Path) -> None:
    with Gsmtpd(settings(database, proxy), before=ANSWERS_BEFORE_COMMIT) as daemon:
        with Senders(daemon.address, tmp_path, 2, rate=200) as senders:
            kill_the_database(database, senders)
            end(senders)
        assert daemon.stop() == 0
    assert "lost" in found(judged(database, tmp_path))


def test_without_begin(database: MariaDB, proxy: MySQLProxy, tmp_path: Path) -> None:
    with (
        Gsmtpd(settings(database, proxy), before=NEVER_BEGINS) as daemon,
        Senders(daemon.address, tmp_path, 3, rate=200) as senders,
    ):
        fail_between_inserts(proxy, senders)
        end(senders)
    assert "partial" in found(judged(database, tmp_path))


def test_a_driver_that_connects_again_by_itself(
    database: MariaDB, proxy: MySQLProxy, tmp_path: Path
) -> None:
    with (
        Gsmtpd(settings(database, proxy), before=CONNECTS_AGAIN) as daemon,
        Senders(daemon.address, tmp_path, 3, rate=200) as senders,
    ):
        cut_between_inserts(proxy, senders)
        end(senders)
    assert found(judged(database, tmp_path)) & {"lost", "partial"}


def test_5xx_to_a_fault_of_ours(database: MariaDB, proxy: MySQLProxy, tmp_path: Path) -> None:
    with (
        Gsmtpd(settings(database, proxy), before=REFUSES_FOR_GOOD) as daemon,
        Senders(daemon.address, tmp_path, 4, rate=200) as senders,
    ):
        cut_at_commit(proxy, senders)
        end(senders)
    assert "refused_for_good" in found(judged(database, tmp_path))


@pytest.mark.parametrize(
    ("build", "violation"),
    [
        (FORGETS_RECIPIENTS, "partial"),
        (STORES_TWICE, "unexplained_duplicates"),
        (CHANGES_AN_OCTET, "altered"),
    ],
)
def test_what_is_wrong_without_any_fault(
    database: MariaDB, proxy: MySQLProxy, tmp_path: Path, build: str, violation: str
) -> None:
    with (
        Gsmtpd(settings(database, proxy), before=build) as daemon,
        Senders(daemon.address, tmp_path, 5, messages=60) as senders,
    ):
        assert senders.wait(60)
    assert found(judged(database, tmp_path)) == {violation}
