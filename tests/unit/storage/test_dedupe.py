"""Is a message that comes again known, and is nothing else ever taken for it?

Against real stores: what is not the same must never be answered as stored already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.base import Duplicate, Outcome, Result, Store
from gsmtpd.storage.dedupe import DedupingStore
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.sqlite import SQLiteStore
from tests.accounting import MySQLTable, SQLiteTable, Table, rows
from tests.servers import MariaDB

ROWS = RowMaker("mx.example.com")
NOW = 1_700_000_000.0
WINDOW = 600.0  # seconds
STORED, TROUBLE = Outcome.STORED, Outcome.TROUBLE
ALICE = Mailbox("a", "example.org")
_numbers = count(1)


class Place:
    """Where stores keep mail. make: a store that knows what was stored, as each worker has one."""

    def __init__(self, table: Table, store: Callable[[], Any]) -> None:
        self.table = table
        self._store = store
        self.made: list[Store] = []

    def make(self, window: float = WINDOW, clock: Callable[[], float] = lambda: NOW) -> Store:
        inner = self._store()
        self.made.append(DedupingStore(inner, inner, window, ROWS.recipients, clock))
        return self.made[-1]

    def hashes(self) -> list[str]:
        """The ids of what is stored, once per row."""
        return [row.hash for row in rows(self.table)]


@pytest.fixture(params=["sqlite", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        path = tmp_path / "mail.db"
        made = Place(SQLiteTable(path), lambda: SQLiteStore(str(path), ROWS))
    else:
        server: MariaDB = request.getfixturevalue("mariadb")
        schema: str = request.getfixturevalue("schema")
        host = Host("localhost", unix_socket=str(server.socket))
        database = Database((host,), "root", "", schema)
        made = Place(MySQLTable(server, schema), lambda: MySQLStore(database, ROWS, 3))
    yield made
    for store in made.made:
        store.close()


def message(
    content: bytes = b"Subject: again\r\n\r\nx\r\n",
    recipients: Sequence[str] = ("b@example.com",),
    sender: Mailbox | None = ALICE,
    at: float = NOW,
) -> Message:
    boxes = tuple(Mailbox(*name.split("@")) for name in recipients)
    envelope = Envelope("client.example", True, sender, boxes)
    return Message(f"{next(_numbers):032x}", envelope, content, "192.0.2.1", at)


def write(store: Store, *messages: Message) -> list[Result]:
    return store.write([store.encode(each) for each in messages])


def poison(place: Place, subject: str) -> None:
    """Have rows with this subject refused, from now on."""
    if isinstance(place.table, SQLiteTable):
        place.table.query(
            f"CREATE TRIGGER poison BEFORE INSERT ON new_mail WHEN NEW.subject = '{subject}'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    else:
        place.table.query(
            f"ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> '{subject}')"
        )


# --- the same -----------------------------------------------------------------------------------


def test_a_message_that_comes_again_is_known_by_its_first_id(place: Place) -> None:
    store = place.make()
    first, second, third = message(), message(), message()
    assert write(store, first) == [STORED]
    assert write(store, second) == [Duplicate(first.id)]
    assert write(store, third) == [Duplicate(first.id)]
    assert place.hashes() == [first.id]


def test_the_recipients_may_come_in_another_order(place: Place) -> None:
    store = place.make()
    first = message(recipients=["b@example.com", "c@example.com"])
    again = message(recipients=["c@example.com", "b@example.com"])
    assert write(store, first) == [STORED]
    assert write(store, again) == [Duplicate(first.id)]
    assert place.hashes() == [first.id] * 2


@pytest.mark.parametrize(
    ("sender", "recipients"),
    [
        (None, ("b@example.com",)),
        (ALICE, ("postmaster@",)),
        (Mailbox('it\'s \\ "x"', "example.org"), ("o'b\\c@example.com", '"a b"@example.com')),
        (Mailbox("\u65e5\U0001f4ec", "example.org"), ("\u65e5\U0001f4ec@example.com",)),
        (Mailbox("f" * 64, "x" * 63 + "." + "y" * 63 + ".org"), ("r" * 64 + "@" + "z" * 180,)),
    ],
    ids=["null sender", "postmaster", "quotes", "characters", "long"],
)
def test_whoever_sends_to_whomever(
    place: Place, sender: Mailbox | None, recipients: Sequence[str]
) -> None:
    store = place.make()
    first = message(b"\xff\0\r\n", recipients, sender)
    assert write(store, first) == [STORED]
    assert write(store, message(b"\xff\0\r\n", recipients, sender)) == [Duplicate(first.id)]


def test_what_comes_twice_in_one_batch(place: Place) -> None:
    store = place.make()
    one, again, other, thrice = message(), message(), message(b"\r\n"), message()
    assert write(store, one, again, other, thrice) == [
        STORED,
        Duplicate(one.id),
        STORED,
        Duplicate(one.id),
    ]
    assert sorted(place.hashes()) == sorted([one.id, other.id])


def test_a_batch_of_old_and_new(place: Place) -> None:
    store = place.make()
    old = [message(f"{n}\r\n".encode()) for n in range(5)]
    assert write(store, *old) == [STORED] * 5
    mixed = [message(f"{n}\r\n".encode()) for n in range(10)]
    assert write(store, *mixed) == [*(Duplicate(each.id) for each in old), *[STORED] * 5]
    assert sorted(place.hashes()) == sorted(each.id for each in [*old, *mixed[5:]])


def test_a_whole_batch_that_comes_again_to_another_process(place: Place) -> None:
    batch = [message(f"{n}\r\n".encode(), ["b@example.com", "c@example.com"]) for n in range(250)]
    again = [message(each.content, ["b@example.com", "c@example.com"]) for each in batch]
    assert write(place.make(), *batch) == [STORED] * 250
    assert write(place.make(), *again) == [Duplicate(each.id) for each in batch]
    assert len(place.hashes()) == 500


def test_several_processes_at_once_lose_nothing(place: Place) -> None:
    """Two that write the same at one time may both store it, but never claim what is not there."""
    stores = [place.make() for _ in range(3)]
    said: list[tuple[Message, Result]] = []
    begin = threading.Barrier(len(stores))

    def work(store: Store) -> None:
        begin.wait()
        for n in range(30):
            made = message(f"{n}\r\n".encode())
            said.append((made, write(store, made)[0]))

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {row.hash: row.content for row in rows(place.table)}
    assert len(said) == 90
    for made, result in said:
        kept = result.of if isinstance(result, Duplicate) else made.id
        assert found[kept] == made.content, result
    assert set(found.values()) == {f"{n}\r\n".encode() for n in range(30)}


# --- not the same -------------------------------------------------------------------------------

BOTH = ("b@example.com", "c@example.com")


@pytest.mark.parametrize(
    "other",
    [
        {"recipients": ("b@example.com",)},
        {"recipients": (*BOTH, "d@example.com")},
        {"recipients": ("b@example.com", "d@example.com")},
        {"recipients": ("B@example.com", "c@example.com")},
        {"sender": None},
        {"sender": Mailbox("A", "example.org")},
        {"sender": Mailbox("a", "example.net")},
        {"content": b"Subject: again\r\n\r\nx \r\n"},
        {"content": b"subject: again\r\n\r\nx\r\n"},
    ],
    ids=str,
)
@pytest.mark.parametrize("batches", [1, 2])
def test_what_differs_is_stored(place: Place, other: dict[str, Any], batches: int) -> None:
    store = place.make()
    first = message(recipients=BOTH)
    second = message(**({"recipients": BOTH} | other))
    if batches == 1:
        assert write(store, first, second) == [STORED, STORED]
    else:
        assert [*write(store, first), *write(store, second)] == [STORED, STORED]
    assert set(place.hashes()) == {first.id, second.id}


def test_two_that_together_had_all_recipients_are_not_one(place: Place) -> None:
    store = place.make()
    for name in BOTH:
        assert write(store, message(recipients=[name])) == [STORED]
    assert write(store, message(recipients=BOTH)) == [STORED]
    assert len(place.hashes()) == 4


@pytest.mark.parametrize(("age", "known"), [(WINDOW - 2, True), (WINDOW + 2, False)])
def test_the_window(place: Place, age: float, known: bool) -> None:
    now = NOW
    store = place.make(clock=lambda: now)
    first = message()
    assert write(store, first) == [STORED]
    now += age
    assert write(store, message(at=now)) == [Duplicate(first.id) if known else STORED]
    assert len(place.hashes()) == 2 - known


def test_what_was_removed_is_stored_again(place: Place) -> None:
    store = place.make()
    assert write(store, message()) == [STORED]
    place.table.query("DELETE FROM new_mail")
    assert write(store, message()) == [STORED]


# --- trouble ------------------------------------------------------------------------------------


def test_what_was_refused_is_not_claimed_to_be_stored(place: Place) -> None:
    store = place.make()
    assert write(store, message(b"x\r\n")) == [STORED]
    poison(place, "bad")
    bad = [message(b"Subject: bad\r\n\r\n") for _ in range(3)]
    assert write(store, bad[0], message(b"\r\n"), bad[1], message(b"x\r\n"), bad[2]) == [
        TROUBLE,
        STORED,
        TROUBLE,
        Duplicate(place.hashes()[0]),
        TROUBLE,
    ]
    assert write(store, *bad) == [TROUBLE] * 3
    assert len(place.hashes()) == 2


def test_what_is_lost_with_its_transaction_is_not_claimed_to_be_stored(place: Place) -> None:
    store = place.make()
    assert write(store, message(b"x\r\n")) == [STORED]
    place.table.query("ALTER TABLE new_mail RENAME TO lost")
    assert write(store, message(), message()) == [TROUBLE, TROUBLE]
    place.table.query("DROP TABLE IF EXISTS new_mail")
    place.table.query("ALTER TABLE lost RENAME TO new_mail")
    assert write(store, message(), message())[0] is STORED


def test_mail_is_stored_where_nothing_can_be_asked(mariadb: MariaDB, schema: str) -> None:
    """A user that may not read those columns, and the old tables that do not have them."""
    host = Host("localhost", unix_socket=str(mariadb.socket))
    inner = MySQLStore(Database((host,), "root", "", schema), ROWS, 2)
    store = DedupingStore(inner, inner, WINDOW, ROWS.recipients, lambda: NOW)
    for name in ("content_hash", "return_path"):
        mariadb.query(f"ALTER TABLE new_mail DROP COLUMN {name}", database=schema)
        assert write(store, message(), message(b"\r\n"), message())[:2] == [STORED, STORED]
        assert write(store, message()) == [STORED]
    store.close()
    assert mariadb.query("SELECT COUNT(*) FROM new_mail", database=schema)[0][0] == 6


@pytest.mark.parametrize("place", ["mariadb"], indirect=True)
def test_trouble_while_asking_costs_no_mail(place: Place) -> None:
    """The connection is killed before the question, not only before the mail."""
    assert isinstance(place.table, MySQLTable)
    server, schema = place.table.server, place.table.schema
    store = place.make()
    assert write(store, message()) == [STORED]
    for n in range(5):
        others = "SELECT id FROM information_schema.processlist WHERE db = %s"
        for (number,) in server.query(others, (schema,)):
            server.query(f"KILL CONNECTION {number}")
        assert write(store, message(b"new %d\r\n" % n)) == [STORED]
        again = write(store, message(b"new %d\r\n" % n))
        assert isinstance(again[0], Duplicate)
    assert len(place.hashes()) == 6
