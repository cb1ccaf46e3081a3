"""Are there hours ahead, and do old ones go, while mail comes in and others read?

A real MariaDB; the clock is ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gsmtpd.storage import partitions
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_link import Link, OnMySQL
from gsmtpd.storage.mysql_shelf import MySQLShelf
from gsmtpd.storage.partitions import Partitions, clause, conversion
from gsmtpd.storage.retention import LATE, Retention, Times
from gsmtpd.storage.schema import statements
from tests.servers import MariaDB, wait_for

HOUR = 3600
NOW = 1_760_000_000 // HOUR * HOUR + 600
SQL = Callable[..., list[tuple]]
INSERT = (
    "INSERT INTO new_mail (`date`, `from`, `to`, subject, body, charset, mail, spam_score, hash,"
    " content_type, recipient, has_attach, ip_addr) VALUES (%s, '', '', '', '', '', 'mail', 0, %s,"
    " '', 'b@example.com', 0, '')"
)


def text(second: float) -> str:
    """Unix time as the column `date` has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


def link_to(mariadb: MariaDB, schema: str, user: str = "root") -> Link:
    """A new link."""
    host = Host("localhost", unix_socket=str(mariadb.socket))
    return Link(Database((host,), user, "", schema))


class Hourly:
    """A table by the hour and a chore that looks after it, at the time `now`."""

    def __init__(self, sql: SQL, link: Link) -> None:
        self.sql = sql
        self.link = link
        self.now = float(NOW)
        self.chore = self.with_keep(None)

    def with_keep(self, keep: float | None, hours: int = 6) -> OnMySQL:
        """Look after it with that time to keep mail."""
        work = Partitions(self.link, keep, hours, clock=lambda: self.now)
        self.chore = OnMySQL("partitions", self.link, work.step)
        return self.chore

    def settle(self) -> None:
        """Call the chore until it has nothing to do for long."""
        for _ in range(1000):
            if self.chore.step() > 1:
                return
        raise AssertionError("the chore never ends")

    def insert(self, date: float, hash_: str = "", attached: int = 0) -> int:
        """A mail that was received at `date`; its number."""
        before = self.ids()
        self.sql(INSERT, text(date), hash_)
        (number,) = self.ids() - before
        for position in range(attached):
            self.sql("INSERT INTO mail_attachment VALUES (%s, %s, '', '', 0, '')", number, position)
        return number

    def ids(self) -> set[int]:
        """The mail that is there."""
        return {number for (number,) in self.sql("SELECT mail_id FROM new_mail")}

    def names(self) -> list[str]:
        """The partitions."""
        return [
            name
            for (name,) in self.sql(
                "SELECT partition_name FROM information_schema.partitions WHERE table_schema ="
                " DATABASE() AND table_name = 'new_mail' ORDER BY partition_ordinal_position"
            )
        ]

    def count(self, partition: str) -> int:
        """How much mail is in a partition."""
        return self.sql(f"SELECT COUNT(*) FROM new_mail PARTITION (`{partition}`)")[0][0]


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> SQL:
    """Executes a statement in the schema."""

    def execute(statement: str, *arguments: object) -> list[tuple]:
        return mariadb.query(statement, arguments or None, database=schema)

    return execute


@pytest.fixture
def link(mariadb: MariaDB, schema: str) -> Iterator[Link]:
    made = link_to(mariadb, schema)
    yield made
    made.close()


@pytest.fixture
def hourly(sql: SQL, link: Link) -> Hourly:
    sql("DROP TABLE new_mail")
    for statement in statements("mysql", "new_mail", clause(NOW, 6)):
        sql(statement)
    return Hourly(sql, link)


@contextmanager
def mail_comes_in(mariadb: MariaDB, schema: str, date: Callable[[], float]) -> Iterator[list[str]]:
    """Insert mail all the time, from several connections; the errors."""
    errors: list[str] = []
    stopped = threading.Event()

    def insert() -> None:
        with mariadb.connect(database=schema) as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION lock_wait_timeout = 20")
            while not stopped.wait(0.001):
                try:
                    connection.begin()
                    cursor.execute(INSERT, (text(date()), "h"))
                    connection.commit()
                except Exception as error:
                    errors.append(str(error))
                    connection.rollback()

    threads = [threading.Thread(target=insert) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


# --- the table ------------------------------------------------------------------------------------


def test_a_table_by_the_hour_takes_and_finds_mail(hourly: Hourly) -> None:
    numbers = [hourly.insert(NOW + n * HOUR, f"{n:032x}") for n in (-9, 0, 0, 1, 6, 7, 1000)]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert hourly.sql("SELECT mail_id FROM new_mail WHERE hash = %s", f"{6:032x}") == [(5,)]
    plan = hourly.sql("EXPLAIN SELECT mail_id FROM new_mail WHERE hash = 'x'")[0]
    assert "hash" in plan
    first, *_, last = hourly.names()
    assert first == time.strftime("p%Y%m%d%H", time.gmtime(NOW))
    assert len(hourly.names()) == 8
    assert (hourly.count(first), hourly.count(last)) == (3, 2)


def test_a_table_without_hours_is_converted(sql: SQL, link: Link) -> None:
    hourly = Hourly(sql, link)
    before = [hourly.insert(NOW - 1000 * HOUR), hourly.insert(NOW), hourly.insert(NOW + HOUR)]
    sql(conversion("new_mail", NOW))
    assert hourly.ids() == {*before}
    assert hourly.insert(NOW) == before[-1] + 1
    hourly.settle()
    assert len(hourly.names()) == 50


def test_a_table_without_hours_is_said_once(
    sql: SQL, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    chore = Hourly(sql, link).with_keep(HOUR)
    assert [chore.step(), chore.step()] == [600, 600]
    (record,) = caplog.records
    assert "ADD PRIMARY KEY (`mail_id`, `date`) PARTITION BY" in record.getMessage()


# --- hours come and go ----------------------------------------------------------------------------


def test_days_go_by(hourly: Hourly) -> None:
    """Each hour has mail, none is ever in the last partition, and old mail goes by the hour."""
    hourly.with_keep(3 * HOUR)
    mails: dict[int, float] = {}
    for _ in range(40):
        hourly.now += HOUR
        mails[hourly.insert(hourly.now)] = hourly.now
        hourly.settle()
        assert hourly.count("pmax") == 0
        kept = {number for number, date in mails.items() if date > hourly.now - 3 * HOUR}
        assert kept <= hourly.ids()
        assert len(hourly.ids()) <= 5
        assert 7 <= len(hourly.names()) <= 13
    assert len(mails) == 40


def test_an_hour_goes_when_all_its_mail_is_too_old(hourly: Hourly) -> None:
    hourly.with_keep(2 * HOUR)
    last_of_its_hour = hourly.insert(NOW // HOUR * HOUR + HOUR - 1)
    hourly.insert(NOW + 5 * HOUR)
    hourly.now = NOW // HOUR * HOUR + 3 * HOUR + LATE - 1
    hourly.settle()
    assert last_of_its_hour in hourly.ids()
    hourly.now += 1
    hourly.settle()
    assert last_of_its_hour not in hourly.ids()


def test_it_sleeps_until_there_is_something_to_do(hourly: Hourly) -> None:
    hourly.with_keep(2 * HOUR)
    hourly.settle()
    hourly.now = NOW // HOUR * HOUR + 3 * HOUR + LATE - 90
    hourly.settle()
    names = hourly.names()
    hourly.now += hourly.chore.step()
    hourly.settle()
    assert hourly.names() == names[1:]


def test_nothing_goes_where_some_is_kept_for_ever(hourly: Hourly) -> None:
    kept = hourly.insert(NOW)
    hourly.with_keep(Times(HOUR, [("example.com", None)]).longest)
    hourly.now += 100 * HOUR
    hourly.settle()
    assert hourly.ids() == {kept}
    assert len(hourly.names()) == 15


def test_attachments_go_with_their_hour(hourly: Hourly) -> None:
    """And not those of other mail, though their numbers are in between."""
    kept = set()
    for n in range(250):
        old, young = hourly.insert(NOW, attached=1), hourly.insert(NOW + 5 * HOUR, attached=1)
        if n % 50 == 0:
            kept |= {young}
        else:
            hourly.sql("DELETE FROM mail_attachment WHERE mail_id = %s", young)
        assert old < young
    hourly.with_keep(2 * HOUR)
    hourly.now += 4 * HOUR
    hourly.settle()
    assert {number for (number,) in hourly.sql("SELECT mail_id FROM mail_attachment")} == kept
    assert len(hourly.ids()) == 250


def test_without_a_table_of_attachments(hourly: Hourly) -> None:
    hourly.sql("DROP TABLE mail_attachment")
    hourly.insert(NOW)
    hourly.with_keep(2 * HOUR)
    hourly.now += 4 * HOUR
    hourly.settle()
    assert hourly.ids() == set()


@pytest.mark.parametrize("newest", [0, 5, 100])
def test_no_number_is_given_out_twice(mariadb: MariaDB, hourly: Hourly, newest: int) -> None:
    """MariaDB forgets the highest where its partition goes, or is divided."""
    numbers = [hourly.insert(NOW), hourly.insert(NOW + newest * HOUR)]
    hourly.with_keep(2 * HOUR)
    for _ in range(4):
        hourly.now += 60 * HOUR
        hourly.settle()
        numbers.append(hourly.insert(hourly.now))
        hourly.sql("DELETE FROM new_mail")
        hourly.sql("FLUSH TABLES")
    assert numbers == sorted({*numbers})
    assert numbers[-1] == 6


# --- mail in the last partition -------------------------------------------------------------------


def test_a_little_mail_in_the_last_partition_is_moved(
    hourly: Hourly, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has added hours for long."""
    hourly.now += 100 * HOUR
    numbers = [hourly.insert(hourly.now - n * HOUR) for n in range(3)]
    hourly.settle()
    assert hourly.ids() == {*numbers}
    assert hourly.count("pmax") == 0
    assert hourly.insert(hourly.now) == 4
    assert "moving 3 mails out of pmax" in caplog.text
    assert len(hourly.names()) == 15


def test_much_mail_in_the_last_partition_stays_and_is_deleted_by_row(
    hourly: Hourly, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_FEW", 3)
    hourly.with_keep(2 * HOUR)
    hourly.now += 100 * HOUR
    for n in range(4):
        hourly.insert(hourly.now + n)
    hourly.settle()
    hourly.settle()
    assert hourly.count("pmax") == 4
    (record,) = [each for each in caplog.records if "much mail" in each.getMessage()]
    hourly.now += 6 * HOUR
    retention = Retention(
        MySQLShelf(hourly.link), Times(2 * HOUR), drops=True, clock=lambda: hourly.now
    )
    while hourly.ids():
        retention.step()
    hourly.insert(hourly.now)
    hourly.settle()
    assert hourly.count("pmax") == 0


def test_the_advice_for_much_mail_is_good(
    hourly: Hourly, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_FEW", 0)
    hourly.now += 100 * HOUR
    hourly.insert(hourly.now)
    hourly.settle()
    hourly.sql("ALTER TABLE" + caplog.records[-1].getMessage().partition("ALTER TABLE")[2])
    hourly.settle()
    assert hourly.count("pmax") == 0
    assert len(hourly.ids()) == 1


def test_a_table_whose_last_partition_ends(hourly: Hourly) -> None:
    """It refuses what is later, until it has one that takes all."""
    hourly.sql("ALTER TABLE new_mail DROP PARTITION pmax")
    hourly.settle()
    assert hourly.names()[-1] == "pmax"
    hourly.insert(NOW + 1000 * HOUR)


# --- others at the table --------------------------------------------------------------------------


def test_mail_comes_in_while_hours_come_and_go(
    mariadb: MariaDB, schema: str, hourly: Hourly
) -> None:
    """None is refused and no number is given out twice, not even if rows have to be moved."""
    hourly.with_keep(2 * HOUR)
    with mail_comes_in(mariadb, schema, lambda: hourly.now) as errors:
        for hours in (1, 1, 1, 50, 1, 1, 50):
            hourly.now += hours * HOUR
            some_more = max(hourly.ids(), default=0) + 20
            wait_for(lambda: max(hourly.ids(), default=0) > some_more)  # noqa: B023
            hourly.settle()
    assert errors == []
    ids = [number for (number,) in hourly.sql("SELECT mail_id FROM new_mail")]
    assert len(ids) == len({*ids}) > 10
    assert hourly.count("pmax") == 0


def test_a_long_reader_keeps_hours_from_going_but_no_mail_from_coming(
    mariadb: MariaDB, schema: str, hourly: Hourly, caplog: pytest.LogCaptureFixture
) -> None:
    old = hourly.insert(NOW)
    hourly.with_keep(2 * HOUR)
    hourly.now += 4 * HOUR
    with mariadb.connect(database=schema) as reader, reader.cursor() as cursor:
        reader.begin()
        cursor.execute("SELECT * FROM new_mail")
        with mail_comes_in(mariadb, schema, lambda: hourly.now) as errors:
            hourly.settle()
        assert old in hourly.ids()
        assert len(hourly.ids()) > 10
        assert errors == []
        (record,) = caplog.records
        assert "in use all the time" in record.getMessage()
        reader.rollback()
    hourly.settle()
    assert old not in hourly.ids()


def test_nobody_waits_while_it_is_tried_at_first(
    mariadb: MariaDB, schema: str, hourly: Hourly
) -> None:
    """Whoever had to wait for our lock would fail at once."""
    hourly.with_keep(2 * HOUR)
    hourly.now += 4 * HOUR
    tried = 0
    with mariadb.connect(database=schema) as reader, reader.cursor() as cursor:
        reader.begin()
        cursor.execute("SELECT * FROM new_mail")
        with mariadb.connect(database=schema) as writer, writer.cursor() as insert:
            insert.execute("SET SESSION lock_wait_timeout = 0")
            done = threading.Event()

            def insert_all_the_time() -> None:
                while not done.is_set():
                    insert.execute(INSERT, (text(hourly.now), ""))

            thread = threading.Thread(target=insert_all_the_time)
            thread.start()
            while hourly.chore.step() < 0.2 and tried < 10:
                tried += 1
            done.set()
            thread.join()
            insert.execute(INSERT, (text(hourly.now), ""))
        reader.rollback()
    assert tried == 10


def test_one_host_at_a_time(mariadb: MariaDB, schema: str, hourly: Hourly) -> None:
    other = link_to(mariadb, schema)
    assert other.alone()
    hourly.with_keep(HOUR)
    old = hourly.insert(NOW)
    hourly.now += 9 * HOUR
    assert hourly.chore.step() == 10
    assert hourly.ids() == {old}
    other.close()


def test_missing_rights_are_said_once(
    mariadb: MariaDB, schema: str, hourly: Hourly, caplog: pytest.LogCaptureFixture
) -> None:
    user = f"p_{schema}"
    mariadb.query(f"CREATE USER {user}@localhost")
    mariadb.query(f"GRANT SELECT, INSERT, DELETE ON `{schema}`.* TO {user}@localhost")
    old = hourly.insert(NOW)
    link = link_to(mariadb, schema, user)
    chore = OnMySQL("partitions", link, Partitions(link, HOUR, clock=lambda: NOW + 9 * HOUR).step)
    try:
        pauses = [chore.step() for _ in range(4)]
        assert pauses[-2:] == [600, 600]
        (record,) = caplog.records
        assert "GRANT" in record.getMessage()
        assert hourly.ids() == {old}
        mariadb.query(f"GRANT LOCK TABLES, ALTER, CREATE, DROP ON `{schema}`.* TO {user}@localhost")
        chore.close()
        while hourly.ids():
            assert chore.step() < 600
    finally:
        chore.close()
        mariadb.query(f"DROP USER {user}@localhost")
