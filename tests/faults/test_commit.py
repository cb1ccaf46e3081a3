"""Is a message stored once and wholly when the connection is lost around its COMMIT?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.accounting import Client, Ledger, Mail, MySQLTable, rows, to_several
from tests.faults.proxy import CommitProxy, Fault
from tests.servers import Gsmtpd, MariaDB, mysql_store


class Way(NamedTuple):
    """gsmtpd, which reaches its database through the proxy only."""

    daemon: Gsmtpd
    proxy: CommitProxy
    table: MySQLTable


@pytest.fixture
def way(mariadb: MariaDB, schema: str) -> Iterator[Way]:
    with CommitProxy(mariadb.address) as proxy:
        settings = mysql_store(mariadb, schema, host=f"127.0.0.1:{proxy.port}")
        with Gsmtpd(settings) as daemon:
            yield Way(daemon, proxy, MySQLTable(mariadb, schema))


def deliver(way: Way, ledger: Ledger, mail: Mail) -> int:
    """One attempt, noted; its code."""
    with Client(way.daemon.address) as client:
        reply = client.hello().deliver(mail)
    ledger.note(mail, reply, True)
    return reply.code


def test_a_commit_whose_reply_is_lost_is_acknowledged_and_stored_once(way: Way) -> None:
    ledger = Ledger()
    for _ in range(3):
        way.proxy.arm(Fault.REPLY_LOST)
        assert deliver(way, ledger, to_several()) == 250
    assert len(way.proxy.happened) == 3
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_a_commit_that_never_arrived_is_not_acknowledged_or_done_again(way: Way) -> None:
    ledger = Ledger()
    mail = to_several()
    way.proxy.arm(Fault.COMMIT_LOST)
    while deliver(way, ledger, mail) != 250:
        assert len(ledger.attempts) < 5
    assert way.proxy.happened == [Fault.COMMIT_LOST]
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_a_connection_cut_while_the_commit_is_carried_out(way: Way) -> None:
    """The server may not be done with it when gsmtpd looks: no answer may be given too early."""
    ledger = Ledger()
    for _ in range(20):
        way.proxy.arm(Fault.CUT)
        assert deliver(way, ledger, to_several()) == 250
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_a_commit_that_arrives_late_is_waited_for(way: Way) -> None:
    ledger = Ledger()
    way.proxy.arm(Fault.HELD)
    threading.Timer(1.0, way.proxy.release).start()
    assert deliver(way, ledger, to_several()) == 250
    time.sleep(0.2)
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0
