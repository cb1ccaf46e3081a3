"""Does mail survive that gsmtpd's own processes are killed?"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.accounting import (
    Client,
    Gone,
    Ledger,
    Load,
    MySQLTable,
    Table,
    rows,
    send,
    table_of,
    to_several,
    with_token,
)
from tests.servers import Gsmtpd, freeze, mysql_store, wait_for

BACK = 20.0  # seconds until a killed worker is replaced, on a busy machine

Kept = tuple[Gsmtpd, Table]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile: clients that come are the other worker's."""
    try:
        freeze(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(params=["sqlite", "mariadb"])
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    """A daemon with two workers, and what it stores."""
    two = {"server": {"processes": 2}}
    if request.param == "sqlite":
        with Gsmtpd(two) as daemon:
            yield daemon, table_of(daemon)
    else:
        mariadb, schema = map(request.getfixturevalue, ("mariadb", "schema"))
        with Gsmtpd(mysql_store(mariadb, schema) | two) as daemon:
            yield daemon, MySQLTable(mariadb, schema)


def test_workers_killed_under_load(kept: Kept) -> None:
    daemon, table = kept
    ledger = Ledger()
    killed = []
    with Load(daemon.address, ledger, make=to_several) as load:
        for number in range(4):
            load.wait_for(100)
            workers = daemon.workers
            killed.append(workers[number % len(workers)])
            os.kill(killed[-1], signal.SIGKILL)
            wait_for(lambda: len(daemon.workers) == 2 and killed[-1] not in daemon.workers, BACK)
    assert set(killed).isdisjoint(daemon.workers)
    ledger.check(rows(table))
    assert any(a.reply is None for a in ledger.attempts), "no client noticed: was there any load?"


def test_the_clients_of_the_other_worker_do_not_notice(kept: Kept) -> None:
    daemon, _ = kept
    one, other = daemon.workers
    with stopped(other):
        lost = [Client(daemon.address).hello() for _ in range(5)]
    with stopped(one):
        safe = [Client(daemon.address).hello() for _ in range(5)]
    os.kill(one, signal.SIGKILL)
    wait_for(lambda: len(daemon.workers) == 2 and one not in daemon.workers, BACK)
    for client in lost:
        with pytest.raises(Gone):
            client.deliver(with_token())
    assert [client.deliver(with_token()).code for client in safe] == [250] * 5
    for client in lost + safe:
        client.close()


def test_the_clients_of_a_killed_worker_no_longer_count() -> None:
    limit = 20
    with Gsmtpd({"limits": {"max_clients": limit}}) as daemon:
        clients = [Client(daemon.address) for _ in range(limit)]
        for client in clients[: limit // 2]:
            assert client.reply().code == 220
        (worker,) = daemon.workers
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: daemon.workers not in ([], [worker]), BACK)
        for client in clients:
            client.close()
        assert send(daemon.address, with_token())[0].code == 250


def test_a_killed_master_takes_its_workers_along() -> None:
    ledger = Ledger()
    with Gsmtpd({"server": {"processes": 2}}) as daemon, Client(daemon.address) as client:
        workers = daemon.workers
        client.hello()
        for _ in range(3):
            mail = with_token()
            ledger.note(mail, client.deliver(mail), True)
        os.kill(daemon.pid, signal.SIGKILL)
        # The worker says goodbye to its client when it notices.
        assert client.reply().text.startswith("421 4.3.2 ")
        client.close()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in workers))
        ledger.check(rows(table_of(daemon)))
    assert len(ledger.acknowledged) == 3
