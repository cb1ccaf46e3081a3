"""Is a dead database host left alone, the next one used, and the first one used again?

Real servers, or a port that only counts who knocks.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pymysql
import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import mysql_hosts
from gsmtpd.storage.base import Outcome
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_hosts import Hosts
from tests.accounting import MySQLTable, rows
from tests.conftest import make_schema
from tests.servers import MariaDB, free_port, wait_for

SCHEMA = "hosts"
STORED, AWAY = Outcome.STORED, Outcome.AWAY


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[MariaDB, MariaDB]]:
    with MariaDB(durable=True) as first, MariaDB(durable=True) as second:
        yield first, second


@pytest.fixture
def pair(servers: tuple[MariaDB, MariaDB]) -> tuple[MariaDB, MariaDB]:
    """Two servers that run, with an empty table each, and a user who may not write if read-only."""
    for server in servers:
        if not server.running:
            server.start()
        server.query("SET GLOBAL read_only=0")
        make_schema(server, SCHEMA)
        server.query("CREATE OR REPLACE USER mail@localhost IDENTIFIED BY ''")
        server.query(f"GRANT SELECT, INSERT ON {SCHEMA}.* TO mail@localhost")
    return servers


def host_of(server: MariaDB) -> Host:
    return Host("localhost", unix_socket=str(server.socket))


@pytest.fixture
def hosts_of() -> Iterator[Callable[..., Hosts]]:
    """Makes Hosts of servers or hosts."""
    made: list[Hosts] = []

    def make(*hosts: Host, **options: object) -> Hosts:
        made.append(Hosts(Database(hosts, "mail", "", SCHEMA), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for hosts in made:
        hosts.close()


@pytest.fixture
def store(pair: tuple[MariaDB, MariaDB]) -> Iterator[MySQLStore]:
    """Writes to the first of the pair, or else to the second."""
    database = Database(tuple(map(host_of, pair)), "mail", "", SCHEMA)
    made = MySQLStore(database, RowMaker("mx.example.com"), 2)
    yield made
    made.close()


def message(name: object) -> Message:
    mailbox = Mailbox("b", "example.com")
    envelope = Envelope("x", True, mailbox, (mailbox,))
    return Message(str(name), envelope, b"x\r\n", "192.0.2.1", 1_700_000_000.0)


def write(store: MySQLStore, *names: object) -> list[object]:
    return [*store.write([store.encode(message(name)) for name in names])]


def stored(server: MariaDB) -> list[str]:
    return [row.hash for row in rows(MySQLTable(server, SCHEMA))]


class Door:
    """A port where everybody is counted, and turned away."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.knocks = 0
        threading.Thread(target=self._open, daemon=True).start()

    @property
    def host(self) -> Host:
        return Host(*self._listener.getsockname())

    def _open(self) -> None:
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()
                self.knocks += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_dead_host_is_not_hammered(hosts_of) -> None:
    with closing(Door()) as door:
        hosts = hosts_of(door.host)
        began = time.monotonic()
        for _ in range(200):
            with pytest.raises(pymysql.err.OperationalError):
                hosts.connect()
            time.sleep(0.01)
        seconds = time.monotonic() - began
        # Pauses of 0.25, 0.5, 1, 2, 2, ... seconds.
        assert 2 <= door.knocks <= 4 + seconds / mysql_hosts.PROBE_AT_MOST
        assert not hosts.can_write()


def test_what_is_wrong_is_said_at_once_while_the_breaker_is_open(hosts_of) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    with silent:
        hosts = hosts_of(Host(*silent.getsockname()))
        with pytest.raises(pymysql.err.OperationalError) as first:
            hosts.connect()
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(pymysql.err.OperationalError) as again:
                hosts.connect()
            assert again.value.args[0] == first.value.args[0]
        assert time.monotonic() - began < mysql_hosts.CONNECT_TIMEOUT


def test_the_breakers_are_told_of(pair, hosts_of) -> None:
    told: list[int] = []
    dead = Host("127.0.0.1", free_port())
    hosts = hosts_of(host_of(pair[0]), dead, host_of(pair[1]), on_away=told.append)
    hosts.failed(dead, pymysql.err.OperationalError(2003, "no"))
    assert told == [2]
    hosts.failed(host_of(pair[0]), pymysql.err.OperationalError(1290, "no"))
    assert told[:2] == [2, 3]
    wait_for(lambda: told[-1] == 2)  # the first one takes a write


def test_a_killed_host_is_left_for_the_next_and_taken_again(pair, store) -> None:
    first, second = pair
    assert write(store, 1) == [STORED]
    first.kill()
    assert write(store, 2) == [STORED]
    assert write(store, 3) == [STORED]
    first.start()

    def is_back() -> bool:
        write(store, "again")
        return "again" in stored(first)

    wait_for(is_back)
    assert stored(first)[0] == "1"
    assert stored(second)[:2] == ["2", "3"]


def test_all_connections_leave_a_host_together(pair, store) -> None:
    """What another thread found out counts for a connection that lies in the pool."""
    first, second = pair
    with store._connection(), store._connection():
        pass  # two lie in the pool now
    first.query("SET GLOBAL read_only=1")
    assert write(store, 1) == [STORED]
    with store._connection() as one, store._connection() as two:
        led = [mysql_hosts_of(one), mysql_hosts_of(two)]
    assert led == [host_of(second)] * 2
    assert stored(second) == ["1"]


def mysql_hosts_of(pooled) -> Host:
    return pooled._con._con.to_host


@pytest.mark.parametrize("code", [1290, 1836, 1792, 1047, 3100])
def test_a_host_that_cannot_write_now_is_left(pair, hosts_of, code: int) -> None:
    hosts = hosts_of(*map(host_of, pair))
    hosts.failed(host_of(pair[0]), pymysql.err.OperationalError(code, "no"))
    with closing(hosts.connect()) as connection:
        assert connection.to_host == host_of(pair[1])


def test_a_read_only_host_stays_away_until_it_takes_a_write(pair, hosts_of) -> None:
    only = host_of(pair[0])
    hosts = hosts_of(only)
    pair[0].query("SET GLOBAL read_only=1")
    hosts.failed(only, pymysql.err.OperationalError(1290, "read-only"))
    time.sleep(2 * mysql_hosts.PROBE_FIRST)
    assert not hosts.can_write()
    with pytest.raises(pymysql.err.OperationalError, match="read-only"):
        hosts.connect()
    with closing(hosts.connect(reads_only=True)) as connection:
        assert connection.to_host == only
    pair[0].query("SET GLOBAL read_only=0")
    wait_for(hosts.can_write)
    hosts.connect().close()


def test_no_host_at_all(pair, store) -> None:
    for server in pair:
        server.kill()
    assert write(store, 1, 2) == [AWAY, AWAY]
    assert not store.can_write()
    pair[1].start()
    wait_for(store.can_write)
    assert write(store, 1) == [STORED]


def test_a_host_that_flaps_is_not_gone_back_to_at_once(pair, hosts_of) -> None:
    first, second = map(host_of, pair)
    hosts = hosts_of(first, second)
    began = time.monotonic()
    hosts.failed(first, pymysql.err.OperationalError(2013, "lost"))
    wait_for(lambda: not hosts.leaves(first))
    assert time.monotonic() - began >= mysql_hosts.STEADY


def test_a_host_that_nobody_can_watch_is_not_left(
    hosts_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no thread, the breaker would never close again."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hosts = hosts_of(Host("127.0.0.1", free_port()))
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(pymysql.err.OperationalError):
        hosts.connect()
    assert hosts.can_write()


def test_a_connection_with_a_lock_is_to_a_host_that_writes(pair, hosts_of) -> None:
    """A replica that lags would not know what was drained to its primary."""
    hosts = hosts_of(*map(host_of, pair), lock="a lock")
    pair[0].query("SET GLOBAL read_only=1")
    with closing(hosts.connect()) as connection:
        assert connection.to_host == host_of(pair[1])


# --- which ids are stored -------------------------------------------------------------------------


def test_known_ids(pair, store) -> None:
    assert write(store, 1, 2) == [STORED, STORED]
    assert store.known(["1", "2", "3"]) == {"1", "2"}


def test_known_ids_are_asked_over_a_fresh_connection(pair, store) -> None:
    assert write(store, 1) == [STORED]
    pair[0].kill()
    pair[0].start()
    wait_for(lambda: not store._hosts.leaves(host_of(pair[0])))
    assert store.known(["1", "2"]) == {"1"}
