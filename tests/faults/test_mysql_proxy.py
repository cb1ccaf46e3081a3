"""Do the faults of the proxy happen where they should, as they should, and not otherwise?"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pymysql
import pytest
from pymysql.connections import Connection

from gsmtpd.faultlab.mysql_proxy import Action, MySQLProxy, Point
from tests.servers import MariaDB, ServerError, wait_for

LOST = {2003, 2006, 2013}
names = (f"n{number}" for number in itertools.count())

Way = tuple[MySQLProxy, MariaDB]


@pytest.fixture(scope="module")
def database(mariadb: MariaDB) -> Iterator[MariaDB]:
    mariadb.create_database("proxied")
    mariadb.query("CREATE TABLE proxied.t (name VARCHAR(20), part INT, content LONGBLOB)")
    yield mariadb
    mariadb.query("DROP DATABASE proxied")


@pytest.fixture
def way(database: MariaDB) -> Iterator[Way]:
    with MySQLProxy(database.address) as proxy:
        yield proxy, database


def client(proxy: MySQLProxy, **options: object) -> Connection:
    """A connection by way of the proxy. Raises pymysql.err.OperationalError."""
    defaults = {"read_timeout": 30, "connect_timeout": 30, "ssl_disabled": True}
    return pymysql.connect(
        **{"host": "127.0.0.1", "port": proxy.port, "user": "root", "database": "proxied"}
        | defaults
        | options
    )


def transaction(connection: Connection, name: str, contents: Sequence[bytes] = (b"", b"")) -> None:
    """Insert rows with that name, one by one, and commit them."""
    connection.begin()
    with connection.cursor() as cursor:
        for part, content in enumerate(contents):
            cursor.execute("INSERT INTO t VALUES (%s, %s, %s)", (name, part, content))
    connection.commit()


def attempt(proxy: MySQLProxy, name: str, **options: object) -> int:
    """The error number of a transaction on a connection of its own, 0 where it succeeded."""
    try:
        with client(proxy, **options) as connection:
            transaction(connection, name)
    except pymysql.MySQLError as failure:
        return failure.args[0]
    return 0


def stored(database: MariaDB, name: str) -> int:
    """How many rows of a transaction there are."""
    return database.query("SELECT COUNT(*) FROM proxied.t WHERE name = %s", (name,))[0][0]


POINTS = [*Point]
SOON = {"read_timeout": 3, "connect_timeout": 3}  # seconds
STATEMENTS = [point for point in POINTS if point not in (Point.CONNECT, Point.COMMIT_REPLY)]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_connection_is_lost_for_both(way: Way, point: Point) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(point, Action.KILL)
    assert attempt(proxy, name) in LOST
    assert [(h.point, h.action) for h in proxy.happened] == [(point, Action.KILL)]
    assert stored(database, name) == (2 if point is Point.COMMIT_REPLY else 0)
    wait_for(lambda: sessions(database) == 0)
    wait_for(lambda: proxy.connections == 0)
    assert attempt(proxy, name) == 0  # it happens once


def sessions(database: MariaDB) -> int:
    """How many sessions the server has by way of the proxy."""
    ((number,),) = database.query(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE db = 'proxied'"
    )
    return number


@pytest.mark.parametrize("point", POINTS)
def test_a_dropped_packet_leaves_a_silent_connection(way: Way, point: Point) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(point, Action.DROP)
    assert attempt(proxy, name, **SOON) in LOST
    assert stored(database, name) == (2 if point is Point.COMMIT_REPLY else 0)
    assert proxy.connections == 1  # its server knows nothing of the client's end
    assert sessions(database) == (point is not Point.CONNECT)
    assert attempt(proxy, next(names)) == 0  # others are not concerned
    proxy.heal()
    wait_for(lambda: sessions(database) == 0)
    wait_for(lambda: proxy.connections == 0)
    assert stored(database, name) == (2 if point is Point.COMMIT_REPLY else 0)


@pytest.mark.parametrize("point", POINTS)
def test_a_delayed_packet_comes_late_but_comes(way: Way, point: Point) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(point, Action.DELAY, seconds=0.3)
    began = time.monotonic()
    assert attempt(proxy, name) == 0
    assert time.monotonic() - began >= 0.3
    assert stored(database, name) == 2


@pytest.mark.parametrize("point", POINTS)
def test_nothing_passes_a_black_hole_until_it_is_healed(way: Way, point: Point) -> None:
    proxy, database = way
    name = next(names)
    with client(proxy, **SOON) as other, ThreadPoolExecutor(1) as executor:
        proxy.arm(point, Action.BLACK_HOLE)
        waiting = executor.submit(attempt, proxy, name)
        wait_for(lambda: proxy.happened)
        assert stored(database, name) == (2 if point is Point.COMMIT_REPLY else 0)
        assert attempt(proxy, next(names), **SOON) in LOST
        with pytest.raises(pymysql.MySQLError):
            other.ping(reconnect=False)
        assert not waiting.done()
        proxy.heal()
        assert waiting.result(30) == 0
    assert stored(database, name) == 2


def test_a_black_hole_opens_when_told(way: Way) -> None:
    proxy, database = way
    with client(proxy) as connection, ThreadPoolExecutor(1) as executor:
        proxy.black_hole()
        proxy.black_hole()
        name = next(names)
        waiting = executor.submit(transaction, connection, name)
        assert attempt(proxy, next(names), **SOON) in LOST
        assert stored(database, name) == 0
        proxy.heal()
        waiting.result(30)
        assert stored(database, name) == 2


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("then", [None, Action.KILL])
def test_a_function_is_called_in_the_middle(way: Way, point: Point, then: Action | None) -> None:
    proxy, database = way
    name = next(names)
    seen = []

    def look() -> Action | None:
        seen.append(stored(database, name))
        return then

    proxy.arm(point, Action.CALL, function=look)
    failure = attempt(proxy, name)
    assert seen == [2 if point is Point.COMMIT_REPLY else 0]
    assert failure == 0 if then is None else failure in LOST
    expected = 2 if then is None or point is Point.COMMIT_REPLY else 0
    assert stored(database, name) == expected


def test_a_function_that_fails_is_told_at_the_end(database: MariaDB) -> None:
    with (
        pytest.raises(ServerError, match="modulo by zero"),
        MySQLProxy(database.address) as proxy,
    ):
        proxy.arm(Point.BEFORE_COMMIT, Action.CALL, function=lambda: 1 // 0)
        assert attempt(proxy, next(names)) in LOST
        assert attempt(proxy, next(names)) == 0


@pytest.mark.parametrize("point", STATEMENTS)
@pytest.mark.parametrize("number", [1213, 1205, 1290, 1047])
def test_an_error_is_answered_and_the_server_rolls_back(
    way: Way, point: Point, number: int
) -> None:
    proxy, database = way
    name = next(names)
    with client(proxy) as connection:
        proxy.arm(point, Action.ERROR, errno=number)
        with pytest.raises(pymysql.MySQLError) as caught:
            transaction(connection, name)
        assert caught.value.args[0] == number
        connection.begin()  # the connection is as good as before, and its transaction is over
        connection.commit()
        assert stored(database, name) == 0
        transaction(connection, name)
    assert stored(database, name) == 2


def test_a_server_with_too_many_connections(way: Way) -> None:
    proxy, _ = way
    proxy.arm(Point.CONNECT, Action.ERROR, errno=1040, times=2)
    assert [attempt(proxy, next(names)) for _ in range(3)] == [1040, 1040, 0]


def test_a_client_is_cut_off_while_its_commit_is_carried_out(way: Way) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(Point.BEFORE_COMMIT, Action.CUT)
    assert attempt(proxy, name) in LOST
    wait_for(lambda: stored(database, name) == 2)
    wait_for(lambda: proxy.connections == 0)


@pytest.mark.parametrize("how", ["later", "heal"])
def test_a_commit_is_held_until_its_client_is_long_gone(way: Way, how: str) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(Point.BEFORE_COMMIT, Action.HOLD, seconds=1 if how == "later" else 1000)
    assert attempt(proxy, name) in LOST
    assert stored(database, name) == 0
    if how == "heal":
        proxy.heal()
    wait_for(lambda: stored(database, name) == 2)


def test_a_held_commit_of_a_session_that_was_killed_does_nothing(way: Way) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(Point.BEFORE_COMMIT, Action.HOLD, seconds=1000)
    with contextlib.suppress(pymysql.MySQLError), client(proxy) as connection:
        number = connection.thread_id()
        transaction(connection, name)
    database.query(f"KILL CONNECTION {number}")
    wait_for(lambda: sessions(database) == 0)
    proxy.heal()
    wait_for(lambda: proxy.connections == 0)
    assert stored(database, name) == 0


@pytest.mark.parametrize("action", [Action.ERROR, Action.CUT, Action.HOLD])
def test_what_cannot_be_is_refused(way: Way, action: Action) -> None:
    with pytest.raises(ValueError, match=action.name):
        way[0].arm(Point.COMMIT_REPLY, action)


def test_a_refused_commit_is_none(way: Way) -> None:
    """A COMMIT that the server answers with an error was not carried out."""
    proxy, database = way
    proxy.arm(Point.COMMIT_REPLY, Action.KILL)
    proxy.arm(Point.BEFORE_COMMIT, Action.ERROR, errno=1213)
    assert attempt(proxy, next(names)) == 1213
    assert [happened.point for happened in proxy.happened] == [Point.BEFORE_COMMIT]
    assert proxy.armed == 1
    proxy.disarm()
    assert proxy.armed == 0
    assert attempt(proxy, next(names)) == 0


def test_the_second_insert_of_one_transaction_is_meant(way: Way) -> None:
    proxy, database = way
    name = next(names)
    proxy.arm(Point.BETWEEN_INSERTS, Action.KILL)
    with client(proxy) as connection:
        transaction(connection, name, [b""])
        transaction(connection, name, [b""])
        assert not proxy.happened
        assert stored(database, name) == 2
        with pytest.raises(pymysql.MySQLError):
            transaction(connection, name, [b"", b""])
    assert stored(database, name) == 2


def test_new_connections_are_refused_until_it_is_healed(way: Way) -> None:
    proxy, database = way
    name = next(names)
    with client(proxy) as connection:
        proxy.refuse()
        assert attempt(proxy, name) == 2003
        transaction(connection, name)  # those that there were live on
        proxy.heal()
    assert attempt(proxy, name) == 0
    assert stored(database, name) == 4


def test_all_connections_are_reset_when_told(way: Way) -> None:
    proxy, database = way
    with client(proxy) as one, client(proxy) as other:
        one.begin()
        proxy.reset()
        for connection in (one, other):
            with pytest.raises(pymysql.MySQLError):
                connection.ping(reconnect=False)
    wait_for(lambda: sessions(database) == 0)


def test_a_server_that_is_killed_in_the_middle() -> None:
    with MariaDB(durable=True) as server, MySQLProxy(server.address) as proxy:
        server.create_database("proxied")
        server.query("CREATE TABLE proxied.t (name VARCHAR(20), part INT, content LONGBLOB)")
        proxy.arm(Point.BEFORE_COMMIT, Action.CALL, function=server.kill)
        assert attempt(proxy, "before") in LOST
        assert attempt(proxy, "away") in LOST
        server.start()

        def kill() -> Action:
            server.kill()
            return Action.KILL

        proxy.arm(Point.COMMIT_REPLY, Action.CALL, function=kill)
        assert attempt(proxy, "after") in LOST
        server.start()
        assert [stored(server, name) for name in ("before", "away", "after")] == [0, 0, 2]
        assert attempt(proxy, "again") == 0


@pytest.fixture(scope="module")
def large(database: MariaDB) -> Iterator[MariaDB]:
    """`database`, which takes statements of more than one packet."""
    ((before,),) = database.query("SELECT @@global.max_allowed_packet")
    database.query("SET GLOBAL max_allowed_packet = 64 * 1024 * 1024")
    yield database
    database.query(f"SET GLOBAL max_allowed_packet = {before}")


@pytest.mark.parametrize("size", [1 << 20, (1 << 24) - 100, 1 << 24, 17 << 20, 33 << 20])
def test_statements_and_rows_of_any_size_pass(way: Way, large: MariaDB, size: int) -> None:
    proxy, _ = way
    name = next(names)
    content = b"xyz'\\\n\0" * (size // 14)  # some octets are escaped
    with client(proxy, max_allowed_packet=64 << 20) as connection:
        transaction(connection, name, [content])
        with connection.cursor() as cursor:
            cursor.execute("SELECT content FROM t WHERE name = %s", (name,))
            assert cursor.fetchall() == ((content,),)
    large.query("DELETE FROM proxied.t WHERE name = %s", (name,))


@pytest.mark.parametrize("exactly", [(1 << 24) - 1, (1 << 24) - 2, (1 << 25) - 2])
def test_statements_that_fill_their_packets(way: Way, large: MariaDB, exactly: int) -> None:
    """A payload of 2^24-1 octets is followed by an empty packet."""
    proxy, _ = way
    name = next(names)
    statement = f"INSERT INTO t VALUES ('{name}', 1, '')".encode()
    with client(proxy, max_allowed_packet=64 << 20) as connection:
        connection.query(statement + b" " * (exactly - 1 - len(statement)))
        connection.commit()
        proxy.arm(Point.ANY, Action.ERROR, errno=1153)
        with pytest.raises(pymysql.MySQLError, match="1153"):
            connection.query(statement + b" " * (exactly - 1 - len(statement)))
        connection.ping(reconnect=False)
    assert stored(large, name) == 1


@pytest.mark.parametrize("action", [Action.KILL, Action.ERROR])
def test_a_large_statement_is_refused_or_cut(way: Way, large: MariaDB, action: Action) -> None:
    proxy, _ = way
    name = next(names)
    proxy.arm(Point.BETWEEN_INSERTS, action, errno=1213)
    with client(proxy, max_allowed_packet=64 << 20) as connection:
        with pytest.raises(pymysql.MySQLError) as caught:
            transaction(connection, name, [b"", b"x" * (17 << 20)])
        if action is Action.ERROR:
            assert caught.value.args[0] == 1213
            transaction(connection, name)
    assert stored(large, name) == (2 if action is Action.ERROR else 0)


def test_many_connections_at_once(way: Way) -> None:
    """Each has its own state: what is armed so many times happens so many times."""
    proxy, database = way
    mine = [next(names) for _ in range(64)]
    proxy.arm(Point.BEFORE_COMMIT, Action.ERROR, errno=1213, times=5)
    proxy.arm(Point.BETWEEN_INSERTS, Action.KILL, times=4)
    proxy.arm(Point.COMMIT_REPLY, Action.DELAY, seconds=0.2, times=6)
    with ThreadPoolExecutor(16) as executor:
        failures = [*executor.map(lambda name: attempt(proxy, name), mine)]
    assert failures.count(1213) == 5
    assert sum(failure in LOST for failure in failures) == 4
    assert failures.count(0) == 55
    for name, failure in zip(mine, failures, strict=True):
        assert stored(database, name) == (0 if failure else 2)
    assert len(proxy.happened) == 15


def test_nothing_is_left_behind(database: MariaDB) -> None:
    with MySQLProxy(database.address) as proxy:
        connection = client(proxy)
        proxy.black_hole()
    with pytest.raises(pymysql.MySQLError):
        connection.ping(reconnect=False)
    assert not [t for t in threading.enumerate() if t.name == "mysql-proxy"]
    wait_for(lambda: sessions(database) == 0)
