"""Is mail deleted when it is too old, all of it and no other, whatever else goes on?

Real MariaDB, with and without partitions, and SQLite; the clock is ours.
"""

from __future__ import annotations

import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.storage import sqlite
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_link import Link, OnMySQL
from gsmtpd.storage.mysql_retention import mysql_chore, purge_mysql
from gsmtpd.storage.mysql_shelf import MySQLShelf
from gsmtpd.storage.partitions import clause
from gsmtpd.storage.retention import Retention, Times
from gsmtpd.storage.schema import statements
from gsmtpd.storage.shelf import BEGINNING, Found
from gsmtpd.storage.sqlite_retention import purge_sqlite, sqlite_chore
from gsmtpd.storage.sqlite_shelf import SQLiteShelf
from tests.servers import MariaDB, wait_for

NOW = 1_760_000_000
HOUR = 3600
INSERT = (
    "INSERT INTO new_mail (`date`, `from`, `to`, subject, body, charset, mail, spam_score, hash,"
    " content_type, recipient, has_attach, ip_addr) VALUES ({0}, '', '', '', '', '', 'mail', 0,"
    " '', '', {0}, 0, '')"
)


def text(second: float) -> str:
    """Unix time as the column `date` has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


class Place:
    """A table of mail. sql: executes a statement and returns its rows."""

    mark = "%s"

    def __init__(self, sql: Callable[..., list[tuple]], shelf: Any, purge: Callable) -> None:
        self.sql = sql
        self.shelf = shelf
        self.purge = purge
        self.now = float(NOW)

    def insert(self, date: float | str, recipient: str = "b@example.com", attached: int = 0) -> int:
        """A mail that was received at `date`; its number."""
        date = date if isinstance(date, str) else text(date)
        self.sql(INSERT.format(self.mark), date, recipient)
        number = self.sql("SELECT MAX(mail_id) FROM new_mail")[0][0]
        for position in range(attached):
            self.sql(
                "INSERT INTO mail_attachment (mail_id, position, filename, content_type, size,"
                f" sha256) VALUES ({self.mark}, {self.mark}, '', '', 0, '')",
                number,
                position,
            )
        return number

    def ids(self) -> set[int]:
        """The mail that is there."""
        return {row[0] for row in self.sql("SELECT mail_id FROM new_mail")}

    def attached(self) -> set[int]:
        """The mail of which attachments are known."""
        return {row[0] for row in self.sql("SELECT mail_id FROM mail_attachment")}

    def retention(self, times: Times, drops: bool = False) -> Retention:
        """A retention by this place's clock."""
        return Retention(self.shelf, times, drops, clock=lambda: self.now)


def settle(step: Callable[[], float]) -> None:
    """Call it until it sleeps. A rest behind a step may be long, but then the next is none."""
    asleep = 0
    while asleep < 3:
        asleep = asleep + 1 if step() >= 1 else 0


def link_to(mariadb: MariaDB, schema: str, user: str = "root") -> Link:
    """A new link."""
    host = Host("localhost", unix_socket=str(mariadb.socket))
    return Link(Database((host,), user, "", schema))


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> Callable[..., list[tuple]]:
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
def on_mysql(link: Link, sql: Callable[..., list[tuple]]) -> Place:
    return Place(sql, MySQLShelf(link), lambda *a, **k: purge_mysql(link.database, *a, **k))


@pytest.fixture
def on_partitions(on_mysql: Place) -> Place:
    """A table whose oldest mail is in a partition for each hour, as all is but the newest."""
    on_mysql.sql("DROP TABLE new_mail")
    for statement in statements("mysql", "new_mail", clause(NOW - 40 * HOUR, 36)):
        on_mysql.sql(statement)
    return on_mysql


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Place]:
    path = str(tmp_path / "mail.db")
    sqlite.make(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as file:
        place = Place(
            lambda statement, *arguments: file.execute(statement, arguments).fetchall(),
            SQLiteShelf(path),
            lambda *a, **k: purge_sqlite(path, *a, **k),
        )
        place.mark = "?"
        yield place
        place.shelf.close()


@pytest.fixture(params=["on_mysql", "on_partitions", "on_sqlite"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


# --- which mail -----------------------------------------------------------------------------------


def test_mail_goes_when_it_is_older_than_that_and_not_before(place: Place) -> None:
    old = [place.insert(NOW - HOUR - 1), place.insert(NOW - 9 * HOUR)]
    young = [place.insert(NOW - HOUR), place.insert(NOW), place.insert(NOW + HOUR)]
    settle(place.retention(Times(HOUR)).step)
    assert place.ids() == {*young}
    assert not place.ids() & {*old}


def test_attachments_go_with_their_mail(place: Place) -> None:
    place.insert(NOW - 2 * HOUR, attached=3)
    young = place.insert(NOW, attached=2)
    settle(place.retention(Times(HOUR)).step)
    assert place.attached() == {young}


DOMAINS = ["example.com", "example.org", "sub.example.com", "[192.0.2.1]", "xn--bcher-kva.example"]


@pytest.mark.parametrize(
    ("recipient", "goes"),
    [
        ("a@example.com", True),
        ("a@EXAMPLE.com", True),
        ('"a@example.org"@example.com', True),
        ('"a@example.com"@example.org', False),
        ("a@sub.example.com", False),
        ("a@xexample.com", False),
        ("example.com", False),
        ("postmaster", False),
        ("", False),
    ],
)
def test_a_domain_is_what_stands_behind_the_last_at(
    on_mysql: Place, recipient: str, goes: bool
) -> None:
    on_mysql.insert(NOW - 2 * HOUR, recipient)
    settle(on_mysql.retention(Times(None, [("example.com", HOUR)])).step)
    # "example.com" alone is no address, but its domain could only be that.
    assert (not on_mysql.ids()) is (goes or recipient == "example.com")


def test_a_domain_in_unicode_is_the_one_of_its_a_labels(place: Place) -> None:
    place.insert(NOW - 2 * HOUR, "a@b\xfccher.example")
    settle(place.retention(Times(None, [("xn--bcher-kva.example", HOUR)])).step)
    assert place.ids() == set()


def test_a_domain_that_is_kept_for_ever(place: Place) -> None:
    kept = place.insert(NOW - 1000 * HOUR, "a@archive.example.com")
    place.insert(NOW - 2 * HOUR)
    settle(place.retention(Times(HOUR, [("archive.example.com", None)])).step)
    assert place.ids() == {kept}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_ages_domains_and_times(place: Place, seed: int) -> None:
    """Random mail, again and again while the clock goes on."""
    chance = random.Random(seed)
    choices = [None, 60, HOUR, HOUR + 1, 5 * HOUR, 30 * HOUR]
    default = chance.choice(choices)
    keeps = {name: chance.choice(choices) for name in chance.sample(DOMAINS, 3)}
    retention = place.retention(Times(default, keeps.items()))
    mails: dict[int, tuple[float, str]] = {}
    attached = set()
    for _ in range(4):
        for _ in range(chance.choice([3, 60])):
            age = chance.choice([*filter(None, choices), chance.randrange(40 * HOUR)])
            date = int(place.now) - age + chance.choice([-1, 0, 0, 1])
            domain = chance.choice(DOMAINS)
            number = place.insert(date, f"a@{domain}", chance.choice([0, 0, 2]))
            mails[number] = date, domain
            attached |= place.attached() & {number}
        place.now += chance.choice([1, 70, 2 * HOUR])
        settle(retention.step)
        # What came with an old date is found on the way through all, an hour later at most.
        place.now += 2 * HOUR
        settle(retention.step)
        wanted = set()
        for number, (date, domain) in mails.items():
            keep = keeps.get(domain, default)
            if keep is None or date >= int(place.now) - keep:
                wanted.add(number)
        assert place.ids() == wanted
        assert place.attached() == wanted & attached


def test_more_mail_of_one_second_than_a_step_takes(place: Place) -> None:
    """And of two domains, so that the step cannot begin anew at that second for ever."""
    for number in range(700):
        place.insert(NOW - 2 * HOUR, f"a@{'kept' if number % 3 else 'gone'}.example")
    settle(place.retention(Times(HOUR, [("kept.example", 10 * HOUR)])).step)
    left = place.sql("SELECT DISTINCT recipient, COUNT(*) FROM new_mail GROUP BY recipient")
    assert left == [("a@kept.example", 466)]


def test_mail_of_no_known_date_stays(on_mysql: Place, mariadb: MariaDB) -> None:
    on_mysql.sql("ALTER TABLE new_mail MODIFY `date` datetime NULL")
    kept = {on_mysql.insert(NOW)}
    on_mysql.sql("UPDATE new_mail SET `date` = NULL")
    kept.add(on_mysql.insert("0000-00-00 00:00:00"))
    on_mysql.insert(NOW - 2 * HOUR)
    settle(on_mysql.retention(Times(HOUR)).step)
    assert on_mysql.ids() == kept


def test_mail_that_comes_in_late_is_found(place: Place) -> None:
    """Its date is behind what has been looked through already."""
    retention = place.retention(Times(HOUR))
    place.insert(NOW - 2 * HOUR)
    settle(retention.step)
    place.insert(NOW - HOUR - 30)
    place.now += 61
    settle(retention.step)
    assert place.ids() == set()


def test_a_clock_that_is_set_back_deletes_nothing(place: Place) -> None:
    retention = place.retention(Times(HOUR))
    place.insert(NOW - 2 * HOUR)
    settle(retention.step)
    place.now -= 5 * HOUR
    young = place.insert(place.now - HOUR + 1)
    settle(retention.step)
    assert place.ids() == {young}


def test_sleep_ends_when_mail_is_due(place: Place) -> None:
    place.insert(NOW - HOUR + 20)
    retention = place.retention(Times(HOUR))
    settle(retention.step)
    assert 20 < retention.step() < 30
    place.now += retention.step()
    settle(retention.step)
    assert place.ids() == set()


def test_partitions_that_are_dropped_need_no_deletion_by_row(on_partitions: Place) -> None:
    times = Times(HOUR, [("example.org", 60)])
    kept = on_partitions.insert(NOW - 2 * HOUR)
    on_partitions.insert(NOW - 2 * HOUR, "a@example.org")
    on_partitions.insert(NOW - 4 * HOUR)  # nobody has dropped that in time
    settle(on_partitions.retention(times, drops=True).step)
    assert on_partitions.ids() == {kept}


# --- tables of others -----------------------------------------------------------------------------


def test_without_recipients_mail_is_kept_for_the_longest_time(on_mysql: Place) -> None:
    on_mysql.insert(NOW - 9 * HOUR)
    kept = on_mysql.insert(NOW - 2 * HOUR)
    on_mysql.sql("ALTER TABLE new_mail DROP COLUMN recipient")
    settle(on_mysql.retention(Times(HOUR, [("example.com", 3 * HOUR)])).step)
    assert on_mysql.ids() == {kept}


def test_without_recipients_some_may_be_kept_for_ever(on_mysql: Place) -> None:
    kept = on_mysql.insert(NOW - 9 * HOUR)
    on_mysql.sql("ALTER TABLE new_mail DROP COLUMN recipient")
    with pytest.raises(StoreError, match="no column `recipient`"):
        on_mysql.retention(Times(HOUR, [("example.com", None)])).step()
    assert on_mysql.ids() == {kept}


def test_a_recipient_that_was_cut_is_kept_for_the_longest_time(on_mysql: Place) -> None:
    on_mysql.sql("ALTER TABLE new_mail MODIFY recipient varchar(20) NOT NULL")
    kept = on_mysql.insert(NOW - 2 * HOUR, "someone@archive.exam")
    on_mysql.insert(NOW - 2 * HOUR, "a@archive.exam")
    settle(on_mysql.retention(Times(HOUR, [("archive.example.com", 9 * HOUR)])).step)
    assert on_mysql.ids() == {kept}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP KEY `date`", r"ALTER TABLE `new_mail` ADD KEY `date` \(`date`\)"),
        ("DROP COLUMN `date`", "no column `date`"),
        ("MODIFY `date` date NOT NULL", "is date, not datetime"),
        ("CHANGE mail_id id bigint unsigned NOT NULL AUTO_INCREMENT", "no column `mail_id`"),
        ("DROP PRIMARY KEY, MODIFY mail_id int, ADD KEY (mail_id)", "no key"),
    ],
)
def test_where_it_cannot_be_done_that_is_said_once(
    on_mysql: Place, link: Link, caplog: pytest.LogCaptureFixture, change: str, said: str
) -> None:
    on_mysql.insert(NOW - 2 * HOUR)
    on_mysql.sql(f"ALTER TABLE new_mail {change}")
    chore = mysql_chore(link, Times(HOUR))
    assert [chore.step(), chore.step()] == [600, 600]
    (record,) = caplog.records
    assert re.search(said, record.getMessage())
    assert on_mysql.sql("SELECT COUNT(*) FROM new_mail") == [(1,)]


def test_without_a_table_of_attachments(on_mysql: Place) -> None:
    on_mysql.sql("DROP TABLE mail_attachment")
    on_mysql.insert(NOW - 2 * HOUR)
    settle(on_mysql.retention(Times(HOUR)).step)
    assert on_mysql.ids() == set()


def test_a_table_that_is_altered_meanwhile(
    on_mysql: Place, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    retention = on_mysql.retention(Times(HOUR, [("example.com", 9 * HOUR)]))
    chore = OnMySQL("keep", link, retention.step)
    on_mysql.insert(NOW - 2 * HOUR, "a@example.org")
    settle(chore.step)
    on_mysql.sql("ALTER TABLE new_mail DROP COLUMN recipient")
    on_mysql.sql(
        "INSERT INTO new_mail SET `date` = %s, `from` = '', `to` = '', subject = '', body = '',"
        " charset = '', mail = '', spam_score = 0, hash = '', content_type = '', has_attach = 0,"
        " ip_addr = ''",
        text(NOW - 2 * HOUR),
    )
    on_mysql.now += 2 * HOUR
    settle(chore.step)
    assert len(on_mysql.ids()) == 1
    on_mysql.now += 9 * HOUR
    settle(chore.step)
    assert on_mysql.ids() == set()
    assert caplog.text == ""


# --- rights ---------------------------------------------------------------------------------------


@pytest.fixture
def user(mariadb: MariaDB, schema: str) -> Iterator[str]:
    """A user who may read and write mail, and no more."""
    name = f"u_{schema}"
    mariadb.query(f"CREATE USER {name}@localhost")
    mariadb.query(f"GRANT SELECT, INSERT ON `{schema}`.* TO {name}@localhost")
    yield name
    mariadb.query(f"DROP USER {name}@localhost")


def test_a_missing_right_is_said_once_and_used_when_it_is_there(
    mariadb: MariaDB,
    schema: str,
    user: str,
    on_mysql: Place,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = on_mysql.insert(NOW - 2 * HOUR)
    chore = mysql_chore(link_to(mariadb, schema, user), Times(HOUR))
    try:
        assert [chore.step(), chore.step()] == [600, 600]
        assert len(caplog.records) == 1
        assert "DELETE" in caplog.text
        assert "GRANT" in caplog.text
        assert on_mysql.ids() == {old}
        mariadb.query(f"GRANT DELETE ON `{schema}`.* TO {user}@localhost")
        chore.close()
        settle(chore.step)
        assert on_mysql.ids() == set()
    finally:
        chore.close()


def test_no_right_to_the_attachments(
    mariadb: MariaDB, schema: str, user: str, on_mysql: Place, caplog: pytest.LogCaptureFixture
) -> None:
    mariadb.query(f"GRANT DELETE ON `{schema}`.new_mail TO {user}@localhost")
    old = on_mysql.insert(NOW - 2 * HOUR, attached=1)
    chore = mysql_chore(link_to(mariadb, schema, user), Times(HOUR))
    settle(chore.step)
    chore.close()
    assert on_mysql.ids() == set()
    assert on_mysql.attached() == {old}
    assert "attachments' rows stay" in caplog.text


# --- beside others --------------------------------------------------------------------------------


def test_one_host_at_a_time(mariadb: MariaDB, schema: str, on_mysql: Place, link: Link) -> None:
    other = link_to(mariadb, schema)
    assert link.alone()
    assert not other.alone()
    link.close()
    wait_for(other.alone)
    assert not link.alone()
    other.close()


def test_two_at_the_same_mail_do_not_count_it_twice(on_mysql: Place) -> None:
    """The daemon and gsmtpctl purge."""
    for number in range(600):
        on_mysql.insert(time.time() - 2 * HOUR - number)
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(on_mysql.purge(Times(HOUR))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 600
    assert on_mysql.ids() == set()


def test_mail_that_comes_in_meanwhile(place: Place) -> None:
    """New mail is inserted while the old is deleted: none of it is lost, none of it waits."""
    old = [place.insert(NOW - 2 * HOUR - n, attached=1) for n in range(300)]
    retention = place.retention(Times(HOUR))
    new = set()
    while {*old} & place.ids():
        retention.step()
        new.add(place.insert(NOW, attached=1))
    assert place.ids() == new
    assert place.attached() == new


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_deletion_that_is_under_way_blocks_no_mail(
    request: pytest.FixtureRequest, link: Link, partitioned: bool
) -> None:
    """Not even where all mail is old, so that the place where new mail comes is next to it."""
    place = request.getfixturevalue("on_partitions" if partitioned else "on_mysql")
    old = [place.insert(NOW - 2 * HOUR, attached=1) for _ in range(20)]
    place.shelf.ready()
    batch = place.shelf.find(BEGINNING, text(NOW), 500, False)
    place.sql("SET GLOBAL innodb_lock_wait_timeout = 1")
    try:
        with link.transaction():
            sql, arguments = place.shelf._delete_sql(batch.rows)
            assert link.execute(sql, *arguments) == 20
            place.shelf._detach(old, all_gone=True)
            # These would wait for a second and fail.
            new = {place.insert(NOW, attached=1), place.insert(NOW - 2 * HOUR, attached=1)}
    finally:
        place.sql("SET GLOBAL innodb_lock_wait_timeout = 50")
    assert place.ids() == new
    assert place.attached() == new


def test_mail_whose_date_is_changed_in_time_stays(place: Place) -> None:
    saved = place.insert(NOW - 2 * HOUR, attached=1)
    place.insert(NOW - 2 * HOUR, attached=1)
    assert place.shelf.ready()
    found = place.shelf.find(BEGINNING, text(NOW - HOUR), 500, False).rows
    place.sql(f"UPDATE new_mail SET `date` = '{text(NOW)}' WHERE mail_id = {saved}")
    assert place.shelf.delete(found).rows == 1
    assert (place.ids(), place.attached()) == ({saved}, {saved})


def test_mail_that_somebody_holds_is_deleted_when_he_lets_go(
    mariadb: MariaDB, schema: str, on_mysql: Place, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    held = on_mysql.insert(NOW - 2 * HOUR, attached=1)
    chore = OnMySQL("keep", link, on_mysql.retention(Times(HOUR)).step)
    with mariadb.connect(database=schema) as other, other.cursor() as cursor:
        other.begin()
        cursor.execute("SELECT * FROM new_mail FOR UPDATE")
        chore.step()
        assert (on_mysql.ids(), on_mysql.attached()) == ({held}, {held})
        other.rollback()
    settle(chore.step)
    assert (on_mysql.ids(), on_mysql.attached()) == (set(), set())
    assert caplog.text == ""


def test_a_connection_that_is_cut(
    mariadb: MariaDB, on_mysql: Place, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    chore = OnMySQL("keep", link, on_mysql.retention(Times(HOUR)).step)
    settle(chore.step)
    mariadb.query("KILL CONNECTION %s", (link.value("SELECT CONNECTION_ID()"),))
    on_mysql.insert(NOW - 2 * HOUR)
    on_mysql.now += 2 * HOUR
    settle(chore.step)
    assert on_mysql.ids() == set()
    assert caplog.text == ""


# --- SQLite ---------------------------------------------------------------------------------------


def test_sqlite_waits_for_a_writer(
    tmp_path: Path, on_sqlite: Place, caplog: pytest.LogCaptureFixture
) -> None:
    on_sqlite.insert(time.time() - 2 * HOUR)
    chore = sqlite_chore(str(tmp_path / "mail.db"), Times(HOUR))
    on_sqlite.sql("BEGIN IMMEDIATE")
    chore.step()
    assert len(on_sqlite.ids()) == 1
    on_sqlite.sql("COMMIT")
    settle(chore.step)
    chore.close()
    assert on_sqlite.ids() == set()
    assert caplog.text == ""


def test_sqlite_files_come_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mail.db"
    chore = sqlite_chore(str(path), Times(HOUR))
    chore.step()
    assert not path.exists()
    for _ in range(2):
        sqlite.make(str(path))
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            file.execute(INSERT.format("?"), (text(time.time() - 2 * HOUR), "b@example.com"))
            settle(chore.step)
            assert file.execute("SELECT COUNT(*) FROM new_mail").fetchone() == (0,)
        for file in tmp_path.glob("mail.db*"):
            file.unlink()
    assert caplog.text == ""


def test_what_is_no_mail_file_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mail.db").write_bytes(b"no database" * 1000)
    chore = sqlite_chore(str(tmp_path / "mail.db"), Times(HOUR))
    assert chore.step() >= 10
    assert chore.step() >= 10
    assert len(caplog.records) == 1


# --- at once --------------------------------------------------------------------------------------


def test_purge_deletes_what_is_older(place: Place) -> None:
    young = place.insert(time.time() - HOUR + 60, attached=1)
    for n in range(450):
        place.insert(time.time() - HOUR - 60 - n % 7)
    seen: list[tuple[int, float]] = []
    assert place.purge(Times(HOUR), dry=True, progress=lambda *far: seen.append(far)) == 450
    assert len(place.ids()) == 451
    assert place.purge(Times(HOUR), progress=lambda *far: seen.append(far)) == 450
    assert place.ids() == {young}
    assert seen[-1] == (450, 1.0)
    assert place.purge(Times(HOUR)) == 0


def test_purge_of_some_domains(place: Place) -> None:
    kept = {place.insert(time.time() - 9 * HOUR, f"a@{name}") for name in ("b.example", "c")}
    for name in ("example.com", "example.org"):
        place.insert(time.time() - 2 * HOUR, f"a@{name}")
    times = Times(None, [("EXAMPLE.com", HOUR), ("example.org", 60)])
    assert place.purge(times, dry=True) == 2
    assert place.purge(times) == 2
    assert place.ids() == kept


def test_purge_says_what_is_wrong(on_mysql: Place, tmp_path: Path) -> None:
    on_mysql.sql("ALTER TABLE new_mail DROP KEY `date`")
    with pytest.raises(StoreError, match="no index on `date`"):
        on_mysql.purge(Times(HOUR))
    on_mysql.sql("DROP TABLE new_mail")
    with pytest.raises(StoreError, match="no table"):
        on_mysql.purge(Times(HOUR))
    with pytest.raises(StoreError, match="no mail file"):
        purge_sqlite(str(tmp_path / "none"), Times(HOUR))


# --- the way through a big table ------------------------------------------------------------------


@pytest.mark.parametrize("partitioned", [False, True])
def test_finding_reads_no_more_than_it_needs(
    request: pytest.FixtureRequest, link: Link, partitioned: bool
) -> None:
    """Else each step in a table of millions would read, or sort, all of them."""
    place = request.getfixturevalue("on_partitions" if partitioned else "on_mysql")
    place.sql(
        "INSERT INTO new_mail (`date`, `from`, `to`, subject, body, charset, mail, spam_score,"
        " hash, content_type, recipient, has_attach, ip_addr) SELECT %s - INTERVAL seq SECOND, '',"
        " '', '', '', '', '', 0, '', '', 'b@example.com', 0, '' FROM seq_1_to_20000",
        text(NOW - 10 * HOUR),
    )
    place.shelf.ready()
    mark = BEGINNING
    found: list[Found] = []
    link.execute("FLUSH LOCAL STATUS")
    for _ in range(5):
        batch = place.shelf.find(mark, text(NOW), 100, True)
        found += batch.rows
        mark = batch.end
    read = link.rows("SHOW SESSION STATUS LIKE 'Handler_read%'")
    assert len({row.mail_id for row in found}) > 450
    assert sum(int(number) for _, number in read) < 2000
