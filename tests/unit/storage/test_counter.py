"""Does received_emails count each message once, whatever breaks off?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pymysql
import pytest

from gsmtpd.storage import counter
from gsmtpd.storage.counter import TakenError, counter_chore, fold
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_link import Link
from tests.servers import MariaDB

Sql = Callable[..., list[tuple]]


@pytest.fixture
def database(mariadb: MariaDB, schema: str) -> Database:
    return Database((Host("localhost", unix_socket=str(mariadb.socket)),), "root", "", schema)


@pytest.fixture
def link(database: Database) -> Iterator[Link]:
    made = Link(database)
    yield made
    made.close()


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> Sql:
    return lambda statement, *arguments: mariadb.query(statement, arguments, database=schema)


def came(sql: Sql, *messages: int) -> None:
    for number in messages:
        sql(f"INSERT INTO gm2_received (messages) VALUES ({number})")


def received(sql: Sql) -> int:
    return int(
        sql("SELECT setting_value FROM gm2_setting WHERE setting_name = 'received_emails'")[0][0]
    )


def waiting(sql: Sql) -> int:
    return int(sql("SELECT COALESCE(SUM(messages), 0) FROM gm2_received")[0][0])


def test_what_came_is_counted(link: Link, sql: Sql) -> None:
    came(sql, 3, 1, 500)
    assert fold(link) == 3
    assert (received(sql), waiting(sql)) == (504, 0)
    assert fold(link) == 0
    came(sql, 7)
    assert fold(link) == 1
    assert (received(sql), waiting(sql)) == (511, 0)


def test_a_setting_that_is_missing_is_made(link: Link, sql: Sql) -> None:
    sql("DELETE FROM gm2_setting")
    came(sql, 5)
    fold(link)
    assert received(sql) == 5


def test_no_more_than_so_many_at_once(
    link: Link, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_AT_ONCE", 10)
    came(sql, *[2] * 25)
    chore = counter_chore(link)
    pauses = [chore.step() for _ in range(3)]
    assert pauses[:2] == [0.0, 0.0]
    assert pauses[2] > 0
    assert (received(sql), waiting(sql)) == (50, 0)


def test_what_another_host_has_counted_is_left_to_it(
    link: Link, database: Database, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    came(sql, 1, 2, 3)
    original = Link.execute

    def late(self: Link, statement: str, *arguments: object) -> int:
        if statement.startswith("DELETE"):
            sql("DELETE FROM gm2_received ORDER BY id LIMIT 1")
            monkeypatch.setattr(Link, "execute", original)
        return original(self, statement, *arguments)

    monkeypatch.setattr(Link, "execute", late)
    with pytest.raises(TakenError):
        fold(link)
    assert (received(sql), waiting(sql)) == (0, 5)
    fold(link)
    assert (received(sql), waiting(sql)) == (5, 0)


@pytest.mark.parametrize("broken", ["DELETE", "UPDATE"])
def test_a_connection_killed_in_between_changes_nothing(
    mariadb: MariaDB, link: Link, sql: Sql, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    came(sql, 1, 2, 3)
    original = Link.execute

    def killed(self: Link, statement: str, *arguments: object) -> int:
        done = original(self, statement, *arguments)
        if statement.startswith(broken):
            mariadb.query(f"KILL CONNECTION {self.value('SELECT CONNECTION_ID()')}")
        return done

    monkeypatch.setattr(Link, "execute", killed)
    with pytest.raises(pymysql.err.Error):
        fold(link)
    assert (received(sql), waiting(sql)) == (0, 6)
    monkeypatch.setattr(Link, "execute", original)
    link.close()
    fold(link)
    assert (received(sql), waiting(sql)) == (6, 0)


def test_beside_writers_and_another_host(database: Database, sql: Sql, mariadb: MariaDB) -> None:
    """Two count at once what four writers tell, some of which is rolled back."""
    stop = threading.Event()
    told: list[int] = []

    def write(number: int) -> None:
        with mariadb.connect(database=database.database, autocommit=False) as connection:
            for n in range(100):
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO gm2_received (messages) VALUES (%s)", (n,))
                if (n + number) % 5:
                    connection.commit()
                    told.append(n)
                else:
                    connection.rollback()

    def count() -> None:
        link = Link(database)
        chore = counter_chore(link)
        while not stop.is_set():
            chore.step()
        chore.close()

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    counters = [threading.Thread(target=count) for _ in range(2)]
    for thread in (*writers, *counters):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in counters:
        thread.join()
    assert received(sql) + waiting(sql) == sum(told)
    assert received(sql) > 0


def test_writers_do_not_wait_for_it(link: Link, sql: Sql) -> None:
    came(sql, 1, 2)
    with link.transaction():
        link.execute("DELETE FROM gm2_received")
        link.execute("UPDATE gm2_setting SET setting_value = setting_value + 3")
        came(sql, 4)  # which would end with error 1205 if it waited
    assert waiting(sql) == 4


def test_without_the_tables_there_is_nothing_to_do(
    link: Link, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    sql("DROP TABLE gm2_received")
    chore = counter_chore(link)
    assert chore.step() > 1
    assert caplog.records == []
    sql("CREATE TABLE gm2_received (id bigint AUTO_INCREMENT PRIMARY KEY, messages int)")
    came(sql, 9)
    chore.step()
    assert received(sql) == 9
