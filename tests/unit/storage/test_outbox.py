"""Is each mail owed to its handlers exactly when it is stored, and in one hand at a time?

With a real SQLite file, and with a real MariaDB.
"""

from __future__ import annotations

import os
import select
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.handlers.matching import Matcher
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.base import Outcome, StoreError
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_outbox import MySQLSession
from gsmtpd.storage.outbox import DEAD, WAITING, Chosen, Entry, Finished, Outbox, Session
from gsmtpd.storage.sqlite import SQLiteStore
from gsmtpd.storage.sqlite_outbox import SQLiteSession
from tests.servers import MariaDB

STORED, TROUBLE = Outcome.STORED, Outcome.TROUBLE
NOW = 1_700_000_000.0
DAY = 86400.0
ALL = Chosen()
NAMES = ["ball", "all"]
BOUND = {"ball": ["ball@example.com"], "all": ["@example.com"]}
WITH_A_FILE = (
    b"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n\r\nx\r\n"
)
HOSTILE = [
    "o'neill", "back\\slash'", '"; DROP TABLE new_mail; --"', '"a\\\\b"', "%s", "ü€😀", "`x`",
    "a" * 64,
]  # fmt: skip


def message(
    name: object,
    content: bytes = b"x\r\n",
    recipients: Sequence[str] = ("ball",),
    mailboxes: Sequence[Sequence[str]] = (),
) -> Message:
    boxes = tuple(Mailbox(local, "example.com") for local in recipients)
    into = tuple(tuple(Mailbox(each, "example.com") for each in some) for some in mailboxes)
    envelope = Envelope("x", True, Mailbox("a", "example.org"), boxes, mailboxes=into)
    return Message(str(name).rjust(32, "0"), envelope, content, "192.0.2.1", NOW)


class Kept:
    """A database, and what is done with it."""

    def __init__(self, make_store: Callable[[RowMaker], Any], open_session: Callable[[], Session]):
        self._make_store = make_store
        self._open_session = open_session
        self._opened: list[Any] = []
        self._session = self.session()

    def store(self, bound: dict[str, list[str]] | None = BOUND) -> Any:
        """A store in which those handlers have their mail."""
        rows = RowMaker("mx.example.com", handlers=Matcher(bound) if bound is not None else None)
        self._opened.append(self._make_store(rows))
        return self._opened[-1]

    def session(self) -> Session:
        """A connection for a thread."""
        self._opened.append(self._open_session())
        return self._opened[-1]

    def outbox(self, owner: str = "me") -> Outbox:
        return Outbox(self.session(), owner)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return self._session.rows(sql)

    def execute(self, sql: str) -> None:
        self._session.execute(sql)

    def put(self, *messages: Message, bound: dict[str, list[str]] | None = BOUND) -> None:
        """Store these."""
        store = self.store(bound)
        assert store.write([store.encode(each) for each in messages]) == [STORED] * len(messages)

    def owed(self) -> list[tuple[str, int, str]]:
        """What handlers have to do: handler, message, and local part of the mailbox."""
        found = self.query("SELECT handler, hash, `to` FROM mail_outbox ORDER BY outbox_id")
        return [(name, int(number), to.rpartition("@")[0]) for name, number, to in found]

    def close(self) -> None:
        for each in self._opened:
            each.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "mail.db")


@pytest.fixture
def database(mariadb: MariaDB, schema: str) -> Database:
    return Database((Host("localhost", unix_socket=str(mariadb.socket)),), "root", "", schema)


def on_sqlite(path: str) -> Kept:
    return Kept(lambda rows: SQLiteStore(path, rows), lambda: SQLiteSession(path))


def on_mysql(database: Database) -> Kept:
    return Kept(lambda rows: MySQLStore(database, rows, 2), lambda: MySQLSession(database))


@pytest.fixture
def mysql(database: Database) -> Iterator[Kept]:
    kept = on_mysql(database)
    yield kept
    kept.close()


@pytest.fixture(params=["sqlite", "mysql"])
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    """Each kind of database."""
    if request.param == "mysql":
        yield request.getfixturevalue("mysql")
        return
    made = on_sqlite(request.getfixturevalue("path"))
    yield made
    made.close()


# --- what is written with the mail ----------------------------------------------------------------


def test_a_row_for_each_match(kept: Kept) -> None:
    kept.put(message(1, recipients=["ball", "joe"]), message(2, recipients=["joe"]))
    assert kept.owed() == [
        ("ball", 1, "ball"), ("all", 1, "ball"), ("all", 1, "joe"), ("all", 2, "joe"),
    ]  # fmt: skip
    assert {entry[5:] for entry in kept.outbox().entries(ALL, 9)} == {
        ("ball@example.com", 1_700_000_000_000, WAITING, 0, 0, "", ""),
        ("joe@example.com", 1_700_000_000_000, WAITING, 0, 0, "", ""),
    }
    deliveries = [entry.delivery for entry in kept.outbox().entries(ALL, 9)]
    assert len({*deliveries}) == 4
    assert {len(each) for each in deliveries} == {32}


def test_the_recipient_and_its_mailbox_make_one_row_of_one_handler(kept: Kept) -> None:
    kept.put(message(1, recipients=["ball", "ball"], mailboxes=[["joe", "ann"], ["joe"]]))
    assert kept.owed() == [
        ("ball", 1, "joe"), ("all", 1, "joe"), ("ball", 1, "ann"), ("all", 1, "ann"),
    ]  # fmt: skip


def test_no_row_without_a_match(kept: Kept) -> None:
    kept.put(message(1), bound={"no": ["other@example.com"]})
    kept.put(message(2), bound=None)
    assert kept.owed() == []


def test_none_is_left_of_mail_that_is_refused(kept: Kept) -> None:
    """One message of a batch is at fault: its rows go with it, those of the others stay."""
    poison(kept)
    store = kept.store()
    contents = [b"Subject: poison\r\n\r\n" if n == 4 else b"x\r\n" for n in range(9)]
    letters = [store.encode(message(n, content)) for n, content in enumerate(contents)]
    assert [*map(store.write(letters).count, (STORED, TROUBLE))] == [8, 1]
    wanted = [(name, n, "ball") for n in range(9) if n != 4 for name in ("ball", "all")]
    assert kept.owed() == wanted


def test_no_mail_without_its_row(kept: Kept) -> None:
    """What breaks as the outbox is written undoes the mail."""
    if isinstance(kept._session, SQLiteSession):
        kept.execute(
            "CREATE TRIGGER full BEFORE INSERT ON mail_outbox WHEN NEW.handler = 'all'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    else:
        kept.execute("ALTER TABLE mail_outbox ADD CONSTRAINT full CHECK (handler <> 'all')")
    store = kept.store()
    assert store.write([store.encode(message(1))]) == [TROUBLE]
    assert kept.owed() == kept.query("SELECT 1 FROM new_mail") == []


def poison(kept: Kept) -> None:
    """Have mail with that subject refused."""
    if isinstance(kept._session, SQLiteSession):
        kept.execute(
            "CREATE TRIGGER poison BEFORE INSERT ON new_mail WHEN NEW.subject = 'poison'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    else:
        kept.execute("ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> 'poison')")


@pytest.mark.parametrize("local", HOSTILE)
def test_hostile_addresses(kept: Kept, local: str) -> None:
    kept.put(message(1, recipients=[local]))
    (entry,) = kept.outbox().take("all", 9, NOW, 60)
    assert (entry.recipient, entry.to) == (f"{local}@example.com",) * 2
    found = kept.outbox().mail(entry)
    assert found is not None
    assert found[0].recipient == f"{local}@example.com"


def test_somebody_is_told_and_only_where_something_is_owed(path: str) -> None:
    told: list[int] = []
    rows = RowMaker("mx.example.com", handlers=Matcher(BOUND))
    store = SQLiteStore(path, rows, on_stored=lambda owed: owed and told.append(1))
    assert store.write([store.encode(message(1)), store.encode(message(2))]) == [STORED] * 2
    assert told == [1]
    other = Message("3" * 32, message(3).envelope._replace(recipients=(Mailbox("x", "y.z"),)),
                    b"", "192.0.2.1", NOW)  # fmt: skip
    assert store.write([store.encode(other)]) == [STORED]
    assert told == [1]
    store.close()


# --- lanes ----------------------------------------------------------------------------------------


def test_a_lane_writes_what_the_store_does(mysql: Kept) -> None:
    store = mysql.store()
    store.prepare()
    lane = store.open_lane()
    letters = [store.encode(message(n, recipients=HOSTILE + ["ball"])) for n in range(3)]
    assert all(map(lane.takes, letters))
    lane.write(letters)
    until = time.monotonic() + 30
    while not lane.go_on():
        assert time.monotonic() < until
        select.select(*([], [lane], []) if lane.unsent else ([lane], [], []), 1)
    lane.done()
    lane.close()
    by_lane = mysql.query("SELECT delivery, handler, hash, recipient, `to`, due FROM mail_outbox")
    mysql.execute("DELETE FROM mail_outbox")
    assert store.write(letters) == [STORED] * 3
    by_store = mysql.query("SELECT delivery, handler, hash, recipient, `to`, due FROM mail_outbox")
    assert len(by_lane) == 3 * (2 + len(HOSTILE))
    assert by_lane == by_store


# --- leases ---------------------------------------------------------------------------------------


def test_taken_oldest_first_and_no_more_than_asked_for(kept: Kept) -> None:
    kept.put(*(message(n) for n in range(5)))
    kept.execute("UPDATE mail_outbox SET due = due - outbox_id")  # the last came first
    outbox = kept.outbox()
    assert {int(entry.hash) for entry in outbox.take("ball", 2, NOW, 60)} == {3, 4}
    assert {int(entry.hash) for entry in outbox.take("ball", 9, NOW, 60)} == {0, 1, 2}
    assert outbox.take("ball", 9, NOW, 60) == []
    assert outbox.take("nobody", 9, NOW, 60) == []
    assert {entry.handler for entry in outbox.take("all", 9, NOW, 60)} == {"all"}


def test_what_is_due_later_is_not_taken(kept: Kept) -> None:
    kept.put(message(1))
    outbox = kept.outbox()
    assert outbox.busy(NAMES, NOW - 1) == outbox.take("ball", 9, NOW - 1, 60) == []
    assert outbox.busy(NAMES, NOW) == NAMES
    assert outbox.busy(["other", "all"], NOW) == ["all"]
    (entry,) = outbox.take("ball", 9, NOW, 60)
    assert outbox.busy(NAMES, NOW) == ["all"]
    assert (entry.owner, entry.due) == ("me", 1_700_000_060_000)


def test_a_lease_that_is_over_is_for_another(kept: Kept) -> None:
    kept.put(message(1))
    first, second = kept.outbox("first"), kept.outbox("second")
    (old,) = first.take("ball", 9, NOW, 60)
    assert second.take("ball", 9, NOW + 59, 60) == []
    (new,) = second.take("ball", 9, NOW + 60, 60)
    assert new.delivery == old.delivery
    # The first one comes late: nothing it says counts any more.
    first.finish(old, Finished([("n", "v")], discard=True), NOW)
    first.postpone(old, NOW, "late")
    first.call_again(old, NOW, 3, "late")
    first.bury(old, "late")
    (left,) = kept.outbox().entries(Chosen(handler="ball"), 9)
    assert left == new
    assert kept.query("SELECT 1 FROM mail_note") == []
    assert len(kept.query("SELECT 1 FROM new_mail")) == 1
    second.finish(new, Finished(), NOW)
    assert kept.outbox().entries(Chosen(handler="ball"), 9) == []


def test_the_same_owner_after_its_lease(kept: Kept) -> None:
    """Another thread of the same process: the time of the lease tells the two apart."""
    kept.put(message(1))
    outbox = kept.outbox()
    (old,) = outbox.take("ball", 9, NOW, 60)
    (new,) = outbox.take("ball", 9, NOW + 60, 60)
    outbox.finish(old, Finished(), NOW)
    assert kept.outbox().entries(Chosen(handler="ball"), 9) == [new]


def test_two_never_share_an_entry(kept: Kept) -> None:
    """Also where they ask at the same moment."""
    kept.put(*(message(n) for n in range(200)), bound={"ball": ["ball"]})
    barrier = threading.Barrier(4)

    def work(number: int) -> list[int]:
        outbox = kept.outbox(f"me{number}")
        done: list[int] = []
        barrier.wait()
        while len({*done}) < 200 and outbox.busy(NAMES, NOW):
            try:
                taken = outbox.take("ball", 7, NOW, 60)
            except StoreError:  # a deadlock that lasted: it comes again
                continue
            done += [entry.outbox_id for entry in taken]
        return done

    with ThreadPoolExecutor(4) as threads:
        all_taken = [number for some in threads.map(work, range(4)) for number in some]
    assert len(all_taken) == len({*all_taken}) == 200


def test_what_a_dead_process_had_is_given_back(kept: Kept) -> None:
    kept.put(message(1), message(2), message(3))
    here, there = kept.outbox("here1"), kept.outbox("there")
    (first,) = here.take("ball", 1, NOW, 6000)
    (second,) = there.take("ball", 1, NOW, 6000)
    buried = here.take("ball", 1, NOW, 6000)
    here.bury(buried[0], "x")
    other = kept.outbox("here2")
    assert other.owners("here", NAMES, NOW) == ["here1"]
    assert sorted(other.owners("", NAMES, NOW)) == ["here1", "there"]
    assert other.owners("here", ["all"], NOW) == []
    assert other.give_back("here1", NOW) == 1
    assert other.give_back("here1", NOW) == 0
    (again,) = other.take("ball", 9, NOW, 60)
    assert again.outbox_id == first.outbox_id
    assert (again.tries, again.state) == (0, WAITING)
    here.finish(first, Finished(), NOW)
    assert len(kept.outbox().entries(Chosen(handler="ball"), 9)) == 3


# --- what becomes of an entry ---------------------------------------------------------------------


def test_the_mail_of_an_entry(kept: Kept) -> None:
    kept.put(message(1, b"Subject: s\r\n\r\nb\r\n", ["ball", "joe"]), message(2))
    outbox = kept.outbox()
    entries = outbox.take("all", 9, NOW, 60)
    found = [outbox.mail(entry) for entry in entries]
    assert [(int(mail.hash), mail.recipient) for mail, _ in filter(None, found)] == [
        (1, "ball@example.com"), (1, "joe@example.com"), (2, "ball@example.com"),
    ]  # fmt: skip
    assert found[1] is not None
    assert found[1][1].endswith(b"Subject: s\r\n\r\nb\r\n")
    assert found[1][1].startswith(b"Delivered-To: joe@example.com\r\n")
    kept.execute("DELETE FROM new_mail WHERE recipient = 'joe@example.com'")
    assert outbox.mail(entries[1]) is None


def test_notes(kept: Kept) -> None:
    kept.put(message(1, recipients=["o'neill"]))
    outbox = kept.outbox()
    (entry,) = outbox.take("all", 9, NOW, 60)
    notes = [("n", "v"), ("n", "again"), ("x" * 99, "ü€😀'\\%s\0" * 20_000), ("", "")]
    outbox.finish(entry, Finished(notes), NOW + 5)
    found = kept.query(
        "SELECT hash, recipient, handler, name, value, noted_at FROM mail_note ORDER BY note_id"
    )
    assert {row[:3] for row in found} == {("1".rjust(32, "0"), "o'neill@example.com", "all")}
    assert {str(row[5]) for row in found} == {"2023-11-14 22:13:25"}
    assert [row[3:5] for row in found[:2]] == [("n", "v"), ("n", "again")]
    assert found[2][3] == "x" * 64
    assert notes[2][1].startswith(found[2][4])
    assert len(found[2][4]) > 16_000
    assert kept.outbox().entries(ALL, 9) == []


def test_notes_that_are_no_text(kept: Kept) -> None:
    """Python's email makes surrogates of octets that it cannot read; no database takes such."""
    kept.put(message(1))
    outbox = kept.outbox()
    (entry,) = outbox.take("all", 9, NOW, 60)
    outbox.finish(entry, Finished([("a\ud800", "\udcff\udc00b")]), NOW)
    assert kept.query("SELECT name, value FROM mail_note") == [("a?", "??b")]


def test_discard(kept: Kept) -> None:
    """The row goes, and the list of its attachments; the message's other rows stay."""
    kept.put(message(1, WITH_A_FILE, ["ball", "joe"]), message(2, WITH_A_FILE))
    outbox = kept.outbox()
    (entry, _) = outbox.take("ball", 9, NOW, 60)
    outbox.finish(entry, Finished(discard=True), NOW)
    left = kept.query("SELECT mail_id, hash, recipient FROM new_mail ORDER BY mail_id")
    assert [(int(row[1]), row[2]) for row in left] == [
        (1, "joe@example.com"), (2, "ball@example.com"),
    ]  # fmt: skip
    attached = kept.query("SELECT mail_id FROM mail_attachment ORDER BY mail_id")
    assert [number for (number,) in attached] == [row[0] for row in left]
    # Another handler still has it to do, and finds it gone.
    others = outbox.take("all", 9, NOW, 60)
    assert [outbox.mail(other) is None for other in others] == [True, False, False]


def test_recipients_that_are_alike_are_not_the_same(kept: Kept) -> None:
    """A collation takes letters for others: the mail of another is not to be handled, or lost."""
    alike = ["jose", "josé", "Jose", "JOSÉ"]
    kept.put(message(1, recipients=alike))
    outbox = kept.outbox()
    entries = outbox.take("all", 9, NOW, 60)
    found = [outbox.mail(entry) for entry in entries]
    assert [mail.recipient for mail, _ in filter(None, found)] == [
        f"{x}@example.com" for x in alike
    ]
    outbox.finish(entries[1], Finished(discard=True), NOW)
    left = kept.query("SELECT recipient FROM new_mail ORDER BY mail_id")
    assert left == [(f"{local}@example.com",) for local in ("jose", "Jose", "JOSÉ")]


def test_mail_is_found_by_its_index(mysql: Kept) -> None:
    """However much there is: not by reading all of it."""
    mysql.put(*(message(n) for n in range(300)))
    outbox = mysql.outbox()
    (entry,) = outbox.take("ball", 1, NOW, 60)
    assert outbox.mail(entry)
    session = outbox._session
    session.rows("FLUSH STATUS")
    assert outbox.mail(entry)
    outbox.finish(entry, Finished(discard=True), NOW)
    read = session.rows(
        "SHOW SESSION STATUS WHERE variable_name IN ('Handler_read_next', 'Handler_read_rnd_next')"
    )
    assert sum(int(number) for _, number in read) < 100


def test_a_mail_table_with_another_collation(mysql: Kept) -> None:
    """One that is older than the outbox, or was made by somebody else."""
    mysql.execute("ALTER TABLE new_mail CONVERT TO CHARACTER SET latin1 COLLATE latin1_german1_ci")
    mysql.put(message(1, recipients=["ball", "josé"]))
    mysql.execute(
        "ALTER TABLE new_mail CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_turkish_ci"
    )
    outbox = mysql.outbox()
    first, second = outbox.take("all", 9, NOW, 60)
    assert outbox.mail(first) and outbox.mail(second)
    outbox.finish(first, Finished([("n", "v")]), NOW)
    outbox.finish(second, Finished([("n", "v")], discard=True), NOW)
    assert len(mysql.query("SELECT 1 FROM new_mail")) == 1
    assert outbox.sweep("mail_note", 0) is None
    assert mysql.query("SELECT recipient FROM mail_note") == [("ball@example.com",)]


def test_a_mail_table_with_narrower_columns(mysql: Kept) -> None:
    """As Guerrilla SMTPd made them: what does not fit is cut, and its handler finds it still."""
    mysql.execute(
        "ALTER TABLE new_mail MODIFY `to` varchar(128) CHARACTER SET latin1 NOT NULL,"
        " MODIFY recipient varchar(20) NOT NULL"
    )
    locals_ = ["a-long-name-of-somebody", "joe", "ж"]
    mysql.put(message(1, recipients=locals_), bound={"all": ["@example.com"]})
    outbox = mysql.outbox()
    entries = outbox.take("all", 9, NOW, 60)
    stored = mysql.query("SELECT recipient, `to` FROM new_mail ORDER BY mail_id")
    assert stored == [
        ("a-long-name-of-someb", "a-long-name-of-somebody@example.com"),
        ("joe@example.com", "joe@example.com"),
        ("ж@example.com", "?@example.com"),
    ]
    found = [outbox.mail(entry) for entry in entries]
    assert [mail.recipient for mail, _ in filter(None, found)] == [row[0] for row in stored]
    outbox.finish(entries[0], Finished([("n", "v")]), NOW)
    outbox.bury(entries[2], "x")
    for table in ("mail_note", "mail_outbox"):
        assert outbox.sweep(table, 0) is None
    assert mysql.query("SELECT recipient FROM mail_note") == [("a-long-name-of-someb",)]
    assert [entry.state for entry in outbox.entries(ALL, 9)] == [WAITING, DEAD]


def test_it_is_done_wholly_or_not_at_all(kept: Kept) -> None:
    """A mail that cannot be deleted: no note, and the entry comes again."""
    kept.put(message(1))
    outbox = kept.outbox()
    (entry,) = outbox.take("ball", 9, NOW, 60)
    kept.execute("DROP TABLE mail_attachment")
    with pytest.raises(StoreError):
        outbox.finish(entry, Finished([("n", "v")], discard=True), NOW)
    if isinstance(kept._session, SQLiteSession):
        return  # opened again, its tables are made again
    assert kept.query("SELECT 1 FROM mail_note") == []
    assert kept.outbox().entries(Chosen(handler="ball"), 9) == [entry]
    assert len(kept.query("SELECT 1 FROM new_mail")) == 1


def test_postponed(kept: Kept) -> None:
    kept.put(message(1))
    outbox = kept.outbox()
    (entry,) = outbox.take("ball", 9, NOW, 60)
    outbox.call_again(entry, NOW + 5.5, 2, "r" * 300 + "ü")
    assert outbox.take("ball", 9, NOW + 5.4, 60) == []
    (again,) = outbox.take("ball", 9, NOW + 5.5, 60)
    assert again == entry._replace(due=1_700_000_065_500, calls=1, tries=2, reason="r" * 255)
    outbox.postpone(again, NOW + 6, "no call")
    (third,) = outbox.take("ball", 9, NOW + 6, 60)
    assert third == again._replace(due=1_700_000_066_000, reason="no call")


def test_buried(kept: Kept) -> None:
    kept.put(message(1))
    outbox = kept.outbox()
    (entry,) = outbox.take("ball", 9, NOW, 60)
    outbox.bury(entry, "no ü")
    assert outbox.take("ball", 9, NOW + 10 * DAY, 60) == []
    assert "ball" not in outbox.busy(NAMES, NOW + 10 * DAY)
    (dead,) = outbox.entries(Chosen(state=DEAD), 9)
    assert dead == entry._replace(state=DEAD, calls=1, tries=1, reason="no ü", owner="")


def test_what_was_in_hand_as_a_process_died(kept: Kept) -> None:
    """It may be what that died of: it comes the later the more often that was so."""
    kept.put(message(1))
    outbox = kept.outbox()
    dues = []
    now = NOW
    for calls in range(4):
        (entry,) = outbox.take("ball", 9, now, 60)
        assert (entry.calls, entry.tries) == (calls, 0)
        assert kept.outbox("other").give_back("me", NOW, died=True) == 1
        (entry,) = outbox.entries(Chosen(handler="ball"), 9)
        dues.append(entry.due / 1000 - NOW)
        now = entry.due / 1000
    assert dues == [0, 1, 4, 9]
    kept.execute("UPDATE mail_outbox SET calls = 1000000, owner = 'me'")
    outbox.give_back("me", NOW, died=True)
    assert {entry.due / 1000 - NOW for entry in outbox.entries(ALL, 9)} == {3600}


# --- replies --------------------------------------------------------------------------------------


def taken(kept: Kept, *names: object) -> list[Entry]:
    kept.put(*(message(name) for name in names))
    return kept.outbox().take("ball", 9, NOW, 60)


def test_one_reply_a_day(kept: Kept) -> None:
    first, second, third = taken(kept, 1, 2, 3)
    outbox = kept.outbox()

    def may(entry: Entry, address: str, now: float) -> bool:
        return outbox.may_reply(entry, address, now, DAY)

    assert may(first, "Joe@Example.org", NOW)
    assert may(first, "joe@example.org", NOW + 9)  # its first try may not have come through
    assert not may(second, "joe@example.ORG", NOW + 1)
    assert may(second, "o'neill\\@example.org", NOW + 1)
    assert may(second._replace(handler="all"), "joe@example.org", NOW + 1)
    assert not may(second, "joe@example.org", NOW + DAY - 0.001)
    assert may(second, "joe@example.org", NOW + DAY)
    assert not may(third, "joe@example.org", NOW + DAY + 1)
    assert not may(first, "joe@example.org", NOW + DAY + 1)


def test_addresses_that_are_alike_are_not_the_same(kept: Kept) -> None:
    """A collation takes letters for others, and leaves spaces out."""
    first, second = taken(kept, 1, 2)
    outbox = kept.outbox()
    assert outbox.may_reply(first, "jose@example.org", NOW, DAY)
    assert outbox.may_reply(second, "josé@example.org", NOW, DAY)


def test_long_addresses_have_their_day(kept: Kept) -> None:
    first, second = taken(kept, 1, 2)
    outbox = kept.outbox()
    address = "x" * 300 + "@example.org"
    assert outbox.may_reply(first, address, NOW, DAY)
    assert not outbox.may_reply(second, address, NOW + 1, DAY)


def test_two_at_the_same_moment(kept: Kept) -> None:
    """One of them may, whether it is the first reply or the one of another day."""
    *entries, before = taken(kept, *range(5))
    barrier = threading.Barrier(4)
    for round_ in range(0, 20, 2):
        assert kept.outbox().may_reply(before, f"{round_}@example.org", NOW - DAY, DAY)

    def ask(entry: Entry, round_: int) -> bool:
        outbox = kept.outbox()
        barrier.wait()
        try:
            return outbox.may_reply(entry, f"{round_}@example.org", NOW, DAY)
        except StoreError:
            return False

    with ThreadPoolExecutor(4) as threads:
        for round_ in range(20):
            answers = [*threads.map(ask, entries, [round_] * 4)]
            assert answers.count(True) == 1
    assert len(kept.query("SELECT 1 FROM mail_reply")) == 20


def test_replies_are_forgotten(kept: Kept) -> None:
    first, second = taken(kept, 1, 2)
    outbox = kept.outbox()
    outbox.may_reply(first, "old@example.org", NOW, DAY)
    outbox.may_reply(first, "new@example.org", NOW + 2, DAY)
    outbox.forget_replies(NOW + 1)
    assert kept.query("SELECT address FROM mail_reply") == [("new@example.org",)]
    assert outbox.may_reply(second, "old@example.org", NOW + 3, DAY)


# --- for people -----------------------------------------------------------------------------------


def test_lists_and_counts(kept: Kept) -> None:
    kept.put(message(1), message(2))
    outbox = kept.outbox()
    first, second = outbox.take("ball", 9, NOW, 60)
    outbox.bury(first, "x")
    people = kept.outbox("")
    assert sorted(people.counts()) == [
        ("all", WAITING, 2), ("ball", DEAD, 1), ("ball", WAITING, 1),
    ]  # fmt: skip

    def ids(chosen: Chosen, limit: int = 9) -> list[int]:
        return [entry.outbox_id for entry in people.entries(chosen, limit)]

    every = ids(ALL)
    assert every == sorted(every)
    assert len(every) == 4
    assert ids(ALL, 2) == every[:2]
    assert ids(Chosen(state=DEAD)) == [first.outbox_id]
    assert ids(Chosen(handler="ball")) == [first.outbox_id, second.outbox_id]
    assert ids(Chosen([second.outbox_id, 99], "ball", WAITING)) == [second.outbox_id]
    assert ids(Chosen([second.outbox_id], "all")) == []


def test_retry(kept: Kept) -> None:
    """What is in somebody's hand is left alone."""
    kept.put(message(1), message(2), message(3))
    outbox = kept.outbox()
    first, second, third = outbox.take("ball", 9, NOW, 60)
    outbox.bury(first, "x")
    outbox.call_again(second, NOW + DAY, 3, "y")
    people = kept.outbox("")
    assert people.retry(Chosen(handler="ball"), NOW + 1) == 2
    again = outbox.take("ball", 9, NOW + 1, 60)
    assert [(entry.outbox_id, entry.tries) for entry in again] == [
        (first.outbox_id, 0), (second.outbox_id, 0),
    ]  # fmt: skip
    outbox.finish(third, Finished(), NOW)
    assert len(people.entries(Chosen(handler="ball"), 9)) == 2


def test_drop(kept: Kept) -> None:
    kept.put(message(1), message(2))
    outbox = kept.outbox()
    first, second = outbox.take("ball", 9, NOW, 60)
    outbox.bury(first, "x")
    people = kept.outbox("")
    assert people.drop(Chosen(handler="ball")) == 1
    assert people.entries(Chosen(handler="ball"), 9) == [second]
    assert people.drop(Chosen(state=DEAD)) == 0
    assert people.drop(ALL) == 2
    assert len(kept.query("SELECT 1 FROM new_mail")) == 2


def test_add(kept: Kept) -> None:
    """Once more, under other ids, and as often as somebody says."""
    kept.put(message(1))
    outbox = kept.outbox()
    (entry,) = outbox.take("ball", 9, NOW, 60)
    found = outbox.mail(entry)
    assert found is not None
    outbox.finish(entry, Finished(), NOW)
    people = kept.outbox("")
    assert people.add(found[0], ["ball", "new"], NOW + 5) == 2
    assert people.add(found[0], ["ball"], NOW + 6) == 1
    assert people.add(found[0], [], NOW + 6) == 0
    again = outbox.take("ball", 9, NOW + 6, 60)
    assert len({entry.delivery, *(each.delivery for each in again)}) == 3
    assert [outbox.mail(each) for each in again] == [found] * 2
    assert outbox.take("new", 9, NOW + 5, 60)[0].handler == "new"


# --- what nobody needs any more -------------------------------------------------------------------


def test_sweep(kept: Kept) -> None:
    kept.put(message(1, recipients=["ball", "joe"]), message(2))
    outbox = kept.outbox()
    entries = outbox.take("all", 9, NOW, 60)
    for entry in entries:
        outbox.postpone(entry, NOW, "")
    for entry in outbox.take("all", 9, NOW, 60):
        outbox.finish(entry, Finished([("n", entry.recipient)]), NOW)
    for entry in outbox.take("ball", 9, NOW, 60):
        outbox.bury(entry, "x")
    kept.execute(f"DELETE FROM new_mail WHERE hash = '{'1'.rjust(32, '0')}'"
                 " AND recipient = 'ball@example.com'")  # fmt: skip
    # Its handler finds out by itself.
    kept.put(message(1, recipients=["late"]), bound={"ball": ["late"]})
    kept.execute("DELETE FROM new_mail WHERE recipient = 'late@example.com'")
    assert outbox.sweep("mail_note", 0) is None
    notes = kept.query("SELECT value FROM mail_note ORDER BY note_id")
    assert notes == [("joe@example.com",), ("ball@example.com",)]
    assert outbox.sweep("mail_outbox", 0) is None
    left = [(int(each.hash), each.to, each.state) for each in outbox.entries(ALL, 9)]
    assert left == [(2, "ball@example.com", DEAD), (1, "late@example.com", WAITING)]


def test_sweep_goes_on_where_it_was(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsmtpd.storage.outbox._SWEPT", 2)
    kept.put(*(message(n) for n in range(5)), bound={"ball": ["ball"]})
    outbox = kept.outbox()
    for entry in outbox.take("ball", 9, NOW, 60):
        outbox.bury(entry, "x")
    kept.execute(f"DELETE FROM new_mail WHERE hash <> '{'2'.rjust(32, '0')}'")
    steps, after = 0, 0
    while after is not None:
        after = outbox.sweep("mail_outbox", after)
        steps += 1
    assert steps == 3
    assert [int(entry.hash) for entry in outbox.entries(ALL, 9)] == [2]


# --- what is missing, or away ---------------------------------------------------------------------


def test_without_its_table_mail_is_refused_where_there_are_handlers(
    mysql: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    mysql.execute("DROP TABLE mail_outbox")
    store = mysql.store()
    assert store.write([store.encode(message(1))]) == [TROUBLE]
    assert mysql.query("SELECT 1 FROM new_mail") == []
    said = "mysql: there is no table 'mail_outbox'; make it by: gsmtpctl init-db --apply"
    assert said in caplog.text
    # Mail that no handler is to act on is not taken either: nobody knows which came before.
    with pytest.raises(StoreError, match="there is no table 'mail_outbox'"):
        store.prepare()


def test_without_its_table_mail_is_stored_where_there_are_none(
    mysql: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    mysql.execute("DROP TABLE mail_outbox")
    mysql.put(message(1), bound=None)
    assert len(mysql.query("SELECT 1 FROM new_mail")) == 1
    assert "mail_outbox" not in caplog.text


def test_its_table_goes_and_comes_while_mail_is_stored(
    mysql: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    store = mysql.store()
    assert store.write([store.encode(message(1))]) == [STORED]
    mysql.execute("RENAME TABLE mail_outbox TO other")
    assert store.write([store.encode(message(2))]) == [TROUBLE]
    assert "there is no table 'mail_outbox'" in caplog.text
    with pytest.raises(StoreError, match="make it by: gsmtpctl init-db --apply"):
        mysql.outbox().take("ball", 1, NOW, 60)
    mysql.execute("RENAME TABLE other TO mail_outbox")
    assert store.write([store.encode(message(3))]) == [STORED]
    assert [number for _, number, _ in mysql.owed()] == [1, 1, 3, 3]


def test_sqlite_makes_its_table_anew(path: str) -> None:
    kept = on_sqlite(path)
    kept.put(message(1))
    kept.execute("DROP TABLE mail_outbox")
    kept.close()
    kept = on_sqlite(path)
    kept.put(message(2))
    assert [number for _, number, _ in kept.owed()] == [2, 2]
    kept.close()


def test_a_file_that_is_replaced_while_it_is_open(path: str, tmp_path: Path) -> None:
    kept = on_sqlite(path)
    kept.put(message(1))
    outbox = kept.outbox()
    (old,) = outbox.take("ball", 9, NOW, 60)
    other = on_sqlite(str(tmp_path / "other.db"))
    other.put(message(2))
    other.close()
    for suffix in ("-wal", "-shm"):
        Path(path + suffix).unlink()
    os.replace(tmp_path / "other.db", path)
    outbox.finish(old, Finished([("n", "v")]), NOW)  # is not in that file
    assert kept.query("SELECT 1 FROM mail_note") == []
    (new,) = outbox.take("ball", 9, NOW, 60)
    assert int(new.hash) == 2
    outbox.finish(new, Finished([("n", "v")]), NOW)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT hash FROM mail_note").fetchall() == [(new.hash,)]
    kept.close()


def test_a_file_that_is_replaced_within_a_transaction(path: str, tmp_path: Path) -> None:
    """What was begun on one file is not ended on another."""
    kept = on_sqlite(path)
    kept.put(message(1))
    session = kept.session()
    with session.transaction():
        session.execute("DELETE FROM mail_outbox")
        Path(path).rename(tmp_path / "moved.db")
        session.execute("DELETE FROM mail_outbox")
    kept.put(message(2))
    assert [number for _, number, _ in kept.owed()] == [2, 2]
    kept.close()


def test_a_busy_file_is_waited_for_or_said(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsmtpd.storage.sqlite._BUSY_TIMEOUT", 0.1)
    kept = on_sqlite(path)
    kept.put(message(1))
    outbox = kept.outbox()
    (entry,) = outbox.take("ball", 9, NOW, 60)
    other = kept.session()
    with other.transaction():
        other.execute("UPDATE gm2_setting SET setting_value = 1")
        with pytest.raises(StoreError, match="locked"):
            outbox.finish(entry, Finished(), NOW)
    outbox.finish(entry, Finished(), NOW)
    assert kept.outbox().entries(Chosen(handler="ball"), 9) == []
    kept.close()


def test_a_connection_that_was_cut(mysql: Kept) -> None:
    mysql.put(message(1))
    outbox = mysql.outbox()
    (entry,) = outbox.take("ball", 9, NOW, 60)
    cut(mysql)
    assert outbox.may_reply(entry, "joe@example.org", NOW, DAY)
    cut(mysql)
    outbox.finish(entry, Finished([("n", "v")]), NOW)
    assert len(mysql.query("SELECT 1 FROM mail_note")) == 1


def cut(mysql: Kept) -> None:
    """End all connections to the database but the one that does it."""
    own = mysql.query("SELECT CONNECTION_ID()")
    found = mysql.query("SELECT id FROM information_schema.processlist WHERE db = DATABASE()")
    for (number,) in filter(lambda row: row not in own, found):
        mysql.execute(f"KILL {number}")
