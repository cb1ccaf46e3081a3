"""Does received_emails count every message once, whatever comes in between?

A real MariaDB.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gsmtpd.storage import counter
from gsmtpd.storage.counter import Counter, counter_chore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_link import Link, OnMySQL
from tests.servers import MariaDB, wait_for

SQL = Callable[..., list[tuple]]


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> SQL:
    """Executes a statement in the schema."""

    def execute(statement: str, *arguments: object) -> list[tuple]:
        return mariadb.query(statement, arguments or None, database=schema)

    return execute


@pytest.fixture
def new_link(mariadb: MariaDB, schema: str) -> Iterator[Callable[[], Link]]:
    """Makes links, as to several hosts."""
    made: list[Link] = []

    def make() -> Link:
        host = Host("localhost", unix_socket=str(mariadb.socket))
        made.append(Link(Database((host,), "root", "", schema)))
        return made[-1]

    yield make
    for link in made:
        link.close()


@pytest.fixture
def link(new_link: Callable[[], Link]) -> Link:
    return new_link()


def received(sql: SQL) -> int:
    """What is counted and what is not yet."""
    ((counted, waiting),) = sql(
        "SELECT (SELECT setting_value FROM gm2_setting WHERE setting_name = 'received_emails'),"
        " (SELECT COALESCE(SUM(messages), 0) FROM gm2_received)"
    )
    return int(counted) + int(waiting)


def counted(sql: SQL) -> int:
    """received_emails."""
    query = "SELECT setting_value FROM gm2_setting WHERE setting_name = 'received_emails'"
    return int(sql(query)[0][0])


def test_what_came_is_added_to_what_is_counted(sql: SQL, link: Link) -> None:
    sql("UPDATE gm2_setting SET setting_value = 1000")
    sql("INSERT INTO gm2_received (messages) VALUES (1), (20), (300)")
    counter_chore(link).step()
    assert counted(sql) == 1321
    assert sql("SELECT * FROM gm2_received") == []
    counter_chore(link).step()
    assert counted(sql) == 1321


def test_many_rows_take_several_steps(
    sql: SQL, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_AT_ONCE", 10)
    sql("INSERT INTO gm2_received (messages) SELECT 2 FROM seq_1_to_25")
    chore = counter_chore(link)
    assert [chore.step(), chore.step(), chore.step()] == [0, 0, 1]
    assert counted(sql) == 50


def test_a_counter_that_is_missing_is_made(sql: SQL, link: Link) -> None:
    sql("DELETE FROM gm2_setting")
    sql("INSERT INTO gm2_received (messages) VALUES (7)")
    counter_chore(link).step()
    assert counted(sql) == 7


def test_the_counter_of_guerrilla_smtpd(sql: SQL, link: Link) -> None:
    """Its value is a text there."""
    sql("ALTER TABLE gm2_setting MODIFY setting_value varchar(255) NOT NULL")
    sql("UPDATE gm2_setting SET setting_value = '3999999999'")
    sql("INSERT INTO gm2_received (messages) VALUES (7)")
    counter_chore(link).step()
    assert counted(sql) == 4000000006


@pytest.mark.parametrize("table", ["gm2_received", "gm2_setting"])
def test_without_the_tables_nothing_is_done(
    sql: SQL, link: Link, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    sql(f"DROP TABLE {table}")
    assert counter_chore(link).step() == 600
    assert caplog.text == ""


def test_parallel_writers_and_several_hosts(
    mariadb: MariaDB, schema: str, sql: SQL, new_link: Callable[[], Link]
) -> None:
    """Some writers roll back; none ever waits for those who count."""
    inserted: list[int] = []
    failed: list[Exception] = []
    stopped = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with mariadb.connect(database=schema) as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
            for _ in range(200):
                number, commits = chance.randrange(1, 500), chance.random() < 0.8
                connection.begin()
                try:
                    cursor.execute("INSERT INTO gm2_received (messages) VALUES (%s)", (number,))
                except Exception as error:
                    failed.append(error)
                time.sleep(chance.choice([0, 0, 0.002]))
                if commits:
                    connection.commit()
                    inserted.append(number)
                else:
                    connection.rollback()

    def count() -> None:
        chore = counter_chore(new_link())
        while not stopped.is_set():
            chore.step()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    counters = [threading.Thread(target=count) for _ in range(3)]
    for thread in writers + counters:
        thread.start()
    for thread in writers:
        thread.join()
    stopped.set()
    for thread in counters:
        thread.join()
    counter_chore(new_link()).step()
    assert failed == []
    assert counted(sql) == sum(inserted)


def test_writers_need_not_wait_while_it_is_added_up(
    mariadb: MariaDB, schema: str, sql: SQL, link: Link
) -> None:
    sql("INSERT INTO gm2_received (messages) VALUES (1), (2)")
    with mariadb.connect(database=schema) as writer, writer.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
        with link.transaction():
            link.execute("DELETE FROM gm2_received WHERE id IN (1, 2)")
            cursor.execute("INSERT INTO gm2_received (messages) VALUES (4)")
    assert sql("SELECT messages FROM gm2_received") == [(4,)]


class Held:
    """A counter whose row somebody holds, so that it stops in the middle of its transaction."""

    def __init__(self, mariadb: MariaDB, schema: str, link: Link) -> None:
        self.mariadb = mariadb
        self.schema = schema
        self.link = link

    def run(self, meanwhile: Callable[[], None]) -> None:
        """Let it step, do something in the middle, and let go."""
        number = self.link.value("SELECT CONNECTION_ID()")
        chore = OnMySQL("received_emails", self.link, Counter(self.link).step)
        with self.mariadb.connect(database=self.schema) as other, other.cursor() as cursor:
            other.begin()
            cursor.execute("SELECT * FROM gm2_setting FOR UPDATE")
            thread = threading.Thread(target=chore.step)
            thread.start()
            wait_for(lambda: self._is_adding(number))
            meanwhile()
            thread.join()
            other.rollback()

    def _is_adding(self, number: int) -> bool:
        found = self.mariadb.query(
            "SELECT 1 FROM information_schema.processlist WHERE id = %s AND info LIKE 'UPDATE%%'",
            (number,),
        )
        return bool(found)


@pytest.fixture
def held(mariadb: MariaDB, schema: str, link: Link) -> Held:
    return Held(mariadb, schema, link)


def test_a_connection_killed_in_the_middle(mariadb: MariaDB, sql: SQL, link: Link, held: Held):
    sql("INSERT INTO gm2_received (messages) VALUES (1), (20)")
    number = link.value("SELECT CONNECTION_ID()")
    held.run(lambda: mariadb.query("KILL CONNECTION %s", (number,)) and None)
    assert (counted(sql), received(sql)) == (0, 21)
    counter_chore(link).step()
    assert (counted(sql), received(sql)) == (21, 21)


def test_a_counter_that_somebody_holds(
    sql: SQL, link: Link, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    sql("INSERT INTO gm2_received (messages) VALUES (1), (20)")
    held.run(lambda: sql("INSERT INTO gm2_received (messages) VALUES (300)") and None)
    assert (counted(sql), received(sql)) == (0, 321)
    counter_chore(link).step()
    assert (counted(sql), received(sql)) == (321, 321)
    assert caplog.text == ""
