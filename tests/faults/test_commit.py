"""Is a message stored once and wholly when the connection is lost around its COMMIT?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from pymysql.connections import Connection

from gsmtpd.faultlab.mysql_proxy import Action, MySQLProxy, Point
from tests.accounting import Client, Ledger, Mail, MySQLTable, rows, send, to_several
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store


class Way(NamedTuple):
    """gsmtpd, which reaches its database through the proxy only.

    lane: whether the SMTP thread stores mail by itself.
    """

    daemon: Gsmtpd
    proxy: MySQLProxy
    table: MySQLTable
    lane: bool

    def arm(self, point: Point, action: Action, **more: float) -> None:
        """Have a fault happen to the next mail, which goes the way it should."""
        if self.lane:
            self.daemon.wait_for_lane()
        self.proxy.arm(point, action, **more)  # type: ignore[arg-type]


@pytest.fixture(params=["writer threads", "lane"])
def way(mariadb: MariaDB, schema: str, request: pytest.FixtureRequest) -> Iterator[Way]:
    lane = request.param == "lane"
    with MySQLProxy(mariadb.address) as proxy:
        host, user = f"127.0.0.1:{proxy.port}", least_rights(mariadb, schema)
        settings = mysql_store(mariadb, schema, host=host, connections=2 if lane else 1, **user)
        with Gsmtpd(settings) as daemon:
            yield Way(daemon, proxy, MySQLTable(mariadb, schema), lane)


def least_rights(server: MariaDB, schema: str) -> dict[str, str]:
    """A user with the rights that gsmtpd asks for and no others."""
    server.query("CREATE OR REPLACE USER commits IDENTIFIED BY 'secret'")
    server.query(f"GRANT SELECT, INSERT ON {schema}.new_mail TO commits")
    return {"user": "commits", "password": "secret"}


def deliver(way: Way, ledger: Ledger, mail: Mail) -> int:
    """One attempt, noted; its code."""
    with Client(way.daemon.address) as client:
        reply = client.hello().deliver(mail)
    ledger.note(mail, reply, True)
    return reply.code


def test_a_commit_whose_reply_is_lost_is_acknowledged_and_stored_once(way: Way) -> None:
    ledger = Ledger()
    for _ in range(3):
        way.arm(Point.COMMIT_REPLY, Action.KILL)
        assert deliver(way, ledger, to_several()) == 250
    assert len(way.proxy.happened) == 3
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_a_commit_that_never_arrived_is_not_acknowledged_or_done_again(way: Way) -> None:
    ledger = Ledger()
    mail = to_several()
    way.arm(Point.BEFORE_COMMIT, Action.KILL)
    while deliver(way, ledger, mail) != 250:
        assert len(ledger.attempts) < 5
    assert len(way.proxy.happened) == 1
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_a_connection_cut_while_the_commit_is_carried_out(way: Way) -> None:
    """The server may not be done with it when gsmtpd looks: no answer may be given too early."""
    ledger = Ledger()
    for _ in range(20):
        way.arm(Point.BEFORE_COMMIT, Action.CUT)
        assert deliver(way, ledger, to_several()) == 250
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_a_commit_that_arrives_late_does_no_harm(way: Way) -> None:
    ledger = Ledger()
    way.arm(Point.BEFORE_COMMIT, Action.HOLD, seconds=1.0)
    assert deliver(way, ledger, to_several()) == 250
    time.sleep(0.2)
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_behind_a_balancer_nobody_elses_session_is_ended(mariadb: MariaDB, schema: str) -> None:
    """The connection made after the fault leads to another server, where numbers are others'."""
    ledger = Ledger()
    with contextlib.ExitStack() as stack:
        second = stack.enter_context(MariaDB())
        make_schema(second, schema)
        user = least_rights(second, schema)
        least_rights(mariadb, schema)
        proxy = stack.enter_context(MySQLProxy(mariadb.address))
        host = f"127.0.0.1:{proxy.port}"
        settings = mysql_store(mariadb, schema, host=host, connections=1, **user)
        beyond = thread_id(second) + 20
        while thread_id(mariadb) < beyond:
            pass
        daemon = stack.enter_context(Gsmtpd(settings))
        first, mail = to_several(), to_several()
        ledger.note(first, send(daemon.address, first)[0], True)
        # The upkeep thread has a connection as well, which it used at the start only.
        used = "SELECT id FROM information_schema.processlist WHERE user = 'commits'"
        ((number,),) = mariadb.query(f"{used} ORDER BY time_ms LIMIT 1")
        bystander = stack.enter_context(numbered(second, number, schema, user))
        proxy.server = second.address
        proxy.arm(Point.BEFORE_COMMIT, Action.CUT)
        ledger.note(mail, send(daemon.address, mail)[0], True)
        assert len(proxy.happened) == 1
        bystander.ping()
        stored = rows(MySQLTable(mariadb, schema)) + rows(MySQLTable(second, schema))
    known = {attempt.reply.id for attempt in ledger.acknowledged if attempt.reply}
    ledger.check(row for row in stored if row.hash in known)


def thread_id(server: MariaDB) -> int:
    """The number of a new connection; the next one has the next."""
    with server.connect() as connection:
        return connection.thread_id()


def numbered(server: MariaDB, number: int, schema: str, user: dict[str, str]) -> Connection:
    """A connection with this number. Raises AssertionError where it was given already."""
    while thread_id(server) < number - 1:
        pass
    connection = server.connect(database=schema, **user)
    assert connection.thread_id() == number
    return connection
