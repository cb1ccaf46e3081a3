"""Are there always partitions for new mail, and do those of old mail go?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from gsmtpd.message.row import Message, RowMaker, date_of
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.session import Envelope
from gsmtpd.storage.base import Outcome, StoreError
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_link import Link
from gsmtpd.storage.partitions import AHEAD, HOUR, LAST, Partitions, clause, conversion
from gsmtpd.storage.retention import Times
from gsmtpd.storage.schema import statements
from tests.servers import MariaDB

NOW = 1_800_000_000.0 // HOUR * HOUR + 600  # ten minutes past an hour
WITH_PDF = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\nx\r\n--b\r\nContent-Type: application/pdf\r\n\r\nx\r\n--b--\r\n"
)
Sql = Callable[..., list[tuple]]
Make = Callable[..., Partitions]


class Clock:
    """What time it is here."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(mariadb: MariaDB, schema: str) -> Database:
    """One whose mail table has partitions from NOW on."""
    mariadb.query("DROP TABLE new_mail", database=schema)
    mariadb.query(statements("mysql", partitions=clause(NOW))[0], database=schema)
    return Database((Host("localhost", unix_socket=str(mariadb.socket)),), "root", "", schema)


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> Sql:
    return lambda statement, *arguments: mariadb.query(statement, arguments, database=schema)


@pytest.fixture
def link(database: Database) -> Iterator[Link]:
    made = Link(database)
    yield made
    made.close()


@pytest.fixture
def make(link: Link, clock: Clock) -> Make:
    return lambda *keep: Partitions(link, Times(*keep), clock)


def names(sql: Sql) -> list[str]:
    return [
        str(name)
        for (name,) in sql(
            "SELECT partition_name FROM information_schema.partitions WHERE table_schema ="
            " DATABASE() AND table_name = 'new_mail' ORDER BY partition_ordinal_position"
        )
    ]


def message(number: int, at: float, content: bytes = b"x\r\n") -> Message:
    boxes = Mailbox("u", "example.com"), Mailbox("v", "example.com")
    envelope = Envelope("x", True, None, boxes)
    return Message(f"{number:032x}", envelope, content, "192.0.2.1", at)


def store(database: Database, *messages: Message) -> None:
    made = MySQLStore(database, RowMaker("mx.example.com"), 1, warn=False)
    assert made.write([made.encode(each) for each in messages]) == [Outcome.STORED] * len(messages)
    made.close()


def hours_of(sql: Sql) -> list[str]:
    """The hours, of those of the mails stored, for which there is mail."""
    return [str(date) for (date,) in sql("SELECT DISTINCT `date` FROM new_mail ORDER BY `date`")]


def test_a_new_table_has_hours_ahead_and_one_for_the_rest(database: Database, sql: Sql) -> None:
    found = names(sql)
    assert len(found) == AHEAD + 1
    assert found[-1] == LAST
    assert found[0] == time.strftime("p%Y%m%d%H", time.gmtime(NOW))
    assert found[-2] == time.strftime("p%Y%m%d%H", time.gmtime(NOW + (AHEAD - 1) * HOUR))


def test_mail_goes_into_the_partition_of_its_hour(database: Database, sql: Sql) -> None:
    store(database, message(1, NOW), message(2, NOW + HOUR), message(3, NOW - 9 * HOUR))
    first, second, *_ = names(sql)
    assert len(sql(f"SELECT 1 FROM new_mail PARTITION ({first})")) == 4  # and all before
    assert len(sql(f"SELECT 1 FROM new_mail PARTITION ({second})")) == 2


def test_mail_beyond_all_hours_is_stored_and_sorted_in(
    database: Database, make: Make, clock: Clock, sql: Sql
) -> None:
    """As when nobody has looked after the table for a week."""
    late = NOW + (AHEAD + 100) * HOUR
    store(database, message(1, late), message(2, late + HOUR), message(3, NOW))
    assert len(sql(f"SELECT 1 FROM new_mail PARTITION ({LAST})")) == 4
    clock.now = late
    make(None).step()
    assert sql(f"SELECT 1 FROM new_mail PARTITION ({LAST})") == []
    name = time.strftime("p%Y%m%d%H", time.gmtime(late + HOUR))
    assert len(sql(f"SELECT 1 FROM new_mail PARTITION ({name})")) == 2
    assert len(sql("SELECT 1 FROM new_mail")) == 6


def test_hours_are_made_ahead(make: Make, clock: Clock, sql: Sql) -> None:
    partitions = make(None)
    for _ in range(100):
        partitions.step()
        found = names(sql)
        assert found[-1] == LAST
        assert found[-2] >= time.strftime("p%Y%m%d%H", time.gmtime(clock.now + 23 * HOUR))
        clock.now += HOUR
    assert found == sorted(found)  # "plast" behind all digits
    assert len(found) > 140  # nothing is kept for a limited time, so nothing goes


def test_a_last_partition_that_was_taken_away_comes_again(
    make: Make, clock: Clock, sql: Sql
) -> None:
    sql(f"ALTER TABLE new_mail DROP PARTITION {LAST}")
    clock.now += 40 * HOUR
    make(None).step()
    assert names(sql)[-1] == LAST


def test_hours_that_are_over_go_with_their_attachments(
    database: Database, make: Make, clock: Clock, sql: Sql
) -> None:
    store(database, *(message(n, NOW + n * HOUR, WITH_PDF) for n in range(5)))
    assert len(sql("SELECT 1 FROM mail_attachment")) == 10
    partitions = make(2.0 * HOUR)
    clock.now = NOW + 4 * HOUR  # ten past: mail of the hour before last may be younger than 2 h
    while partitions.step() < 1:
        pass
    kept = [date_of(NOW + n * HOUR) for n in (2, 3, 4)]
    assert hours_of(sql) == kept
    attached = sql("SELECT DISTINCT mail_id FROM mail_attachment ORDER BY mail_id")
    assert attached == sql("SELECT mail_id FROM new_mail ORDER BY mail_id")
    assert len(attached) == 6


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        ((None,), 0),
        ((HOUR, [("example.com", None)]), 0),
        ((HOUR, [("example.com", 8.0 * HOUR)]), 2),
        ((8.0 * HOUR, [("example.com", HOUR)]), 2),
    ],
)
def test_the_longest_time_decides(
    make: Make, clock: Clock, sql: Sql, keep: tuple, gone: int
) -> None:
    before = names(sql)
    clock.now = NOW + 10 * HOUR
    make(*keep).step()
    assert names(sql)[:20] == before[gone : gone + 20]


def test_partitions_of_others_stay(make: Make, clock: Clock, sql: Sql) -> None:
    first = names(sql)[0]
    sql(f"ALTER TABLE new_mail REORGANIZE PARTITION {first} INTO (PARTITION old VALUES LESS THAN"
        " ('2020-01-01'), PARTITION older VALUES LESS THAN"
        f" ('{date_of(NOW // HOUR * HOUR + HOUR)}'))")  # fmt: skip
    clock.now += 30 * HOUR
    make(HOUR).step()
    assert names(sql)[:2] == ["old", "older"]


def test_a_table_without_partitions_is_said_to_be_one(
    make: Make, sql: Sql, database: Database
) -> None:
    sql("DROP TABLE new_mail")
    sql(statements("mysql")[0])
    store(database, message(1, NOW), message(2, NOW + 200 * HOUR))
    partitions = make(HOUR)
    with pytest.raises(StoreError, match="has no partitions; convert it"):
        partitions.step()
    sql(conversion("new_mail", NOW))
    assert len(names(sql)) == AHEAD + 1
    assert len(sql("SELECT 1 FROM new_mail")) == 4
    partitions.step()


def test_one_host_at_a_time(make: Make, database: Database, clock: Clock, sql: Sql) -> None:
    other = Link(database)
    assert other.alone()
    clock.now += 40 * HOUR
    before = names(sql)
    partitions = make(HOUR)
    partitions.step()
    assert names(sql) == before
    other.close()
    time.sleep(0.2)
    partitions.step()
    assert names(sql) != before


def test_a_long_reader_does_not_stop_mail(
    database: Database, make: Make, clock: Clock, mariadb: MariaDB
) -> None:
    """Its lock on the table makes our ALTER give up; behind which writers would queue."""
    store(database, message(1, NOW))
    clock.now += 40 * HOUR
    stored = threading.Event()
    with mariadb.connect(database=database.database, autocommit=False) as reader:
        with reader.cursor() as cursor:
            cursor.execute("SELECT * FROM new_mail")
        failed: list[pymysql.err.Error] = []

        def alter() -> None:
            try:
                make(HOUR).step()
            except pymysql.err.Error as error:
                failed.append(error)

        def write() -> None:
            store(database, message(2, clock.now))
            stored.set()

        altering, writing = threading.Thread(target=alter), threading.Thread(target=write)
        altering.start()
        time.sleep(0.2)
        writing.start()
        # The reader stays; nobody but our giving up lets the mail through.
        assert stored.wait(20)
        altering.join()
        writing.join()
    assert [error.args[0] for error in failed] == [1205]


def test_the_conversion_in_the_manual_is_ours() -> None:
    page = Path(__file__).parents[3] / "man" / "gsmtpd-schema.5"
    text = page.read_text("utf-8").replace("\\(ga", "`").replace("\\(aq", "'").replace("\\-", "-")
    assert "DROP PRIMARY KEY" in " ".join(text.split())
