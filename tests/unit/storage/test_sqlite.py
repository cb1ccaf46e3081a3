"""Does the SQLite store keep every octet, and one message apart from the next?"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import sqlite
from gsmtpd.storage.base import Outcome, StoreError
from gsmtpd.storage.sqlite import SQLiteStore
from tests.accounting import Row, SQLiteTable, rows

ROWS = RowMaker("mx.example.com")
PAIRS = b"".join(bytes([first, second]) for first in range(256) for second in range(256))
STORED, TROUBLE = Outcome.STORED, Outcome.TROUBLE


def message(name: str, content: bytes = b"x\r\n", recipients: Sequence[str] = ("b",)) -> Message:
    boxes = tuple(Mailbox(local, "example.com") for local in recipients)
    envelope = Envelope("client.example", True, Mailbox("a", "example.org"), boxes)
    return Message(name.rjust(32, "0"), envelope, content, "192.0.2.1", 1_700_000_000.0)


def write(store: SQLiteStore, *messages: Message) -> list[Outcome]:
    return store.write([store.encode(each) for each in messages])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
def store(path: Path) -> SQLiteStore:
    made = SQLiteStore(str(path), ROWS)
    made.prepare()
    return made


def stored(path: Path) -> list[Row]:
    return rows(SQLiteTable(path))


def test_every_octet_and_every_pair_of_octets(store: SQLiteStore, path: Path) -> None:
    contents = [PAIRS, *(bytes([octet]) for octet in range(256)), b""]
    messages = [message(str(n), content) for n, content in enumerate(contents)]
    assert write(store, *messages) == [STORED] * len(messages)
    assert [row.content for row in stored(path)] == contents
    assert [row.problem() for row in stored(path)] == [None] * len(contents)


def test_a_row_for_each_recipient_in_one_commit(store: SQLiteStore, path: Path) -> None:
    write(store, message("1", recipients=["a", "b", "c"]), message("2"))
    assert [(row.hash[-1], row.recipient[0]) for row in stored(path)] == [
        ("1", "a"),
        ("1", "b"),
        ("1", "c"),
        ("2", "b"),
    ]


def poison(path: Path, column: str, value: str) -> None:
    """Have rows with this value refused, from now on."""
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            f"CREATE TRIGGER poison BEFORE INSERT ON new_mail WHEN NEW.{column} = '{value}'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )


@pytest.mark.parametrize("bad", [[0], [9], [4], [0, 9], [*range(10)], []])
def test_refused_rows_do_not_take_their_batch_along(
    store: SQLiteStore, path: Path, bad: list[int]
) -> None:
    poison(path, "subject", "bad")
    subjects = ["bad" if n in bad else "good" for n in range(10)]
    messages = [
        message(str(n), f"Subject: {subject}\r\n\r\n".encode(), ["a", "b"])
        for n, subject in enumerate(subjects)
    ]
    outcomes = write(store, *messages)
    assert outcomes == [TROUBLE if n in bad else STORED for n in range(10)]
    assert sorted(int(row.hash) for row in stored(path)) == sorted(
        [n for n in range(10) if n not in bad] * 2
    )


def test_a_refused_recipient_leaves_nothing_of_its_message(store: SQLiteStore, path: Path) -> None:
    poison(path, "recipient", "c@example.com")
    outcomes = write(store, message("1", recipients=["a", "b", "c", "d"]), message("2"))
    assert outcomes == [TROUBLE, STORED]
    assert [row.hash[-1] for row in stored(path)] == ["2"]


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 1)])
def test_a_commit_is_synced(path: Path, durable: bool, synchronous: int) -> None:
    """2 is FULL: the write-ahead log is synced at each commit; 1 is NORMAL."""
    with closing(sqlite.connect(str(path), durable)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_stores_share_the_file(path: Path) -> None:
    """As several workers do: each waits for the other's commit."""
    stores = [SQLiteStore(str(path), ROWS) for _ in range(3)]
    outcomes: list[Outcome] = []

    def work(number: int) -> None:
        for n in range(30):
            outcomes.extend(write(stores[number], message(f"{number}{n:03}")))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [STORED] * 90
    assert len({row.hash for row in stored(path)}) == 90


def test_a_locked_file_is_trouble_and_is_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT", 0.1)
    store = SQLiteStore(str(path), ROWS)
    store.prepare()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert write(store, message("1")) == [TROUBLE]
        other.execute("ROLLBACK")
    assert write(store, message("1")) == [STORED]
    assert len(stored(path)) == 1


def test_a_table_that_is_lost_is_trouble_until_it_is_back(store: SQLiteStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("ALTER TABLE new_mail RENAME TO lost")
        assert write(store, message("1")) == [TROUBLE]
        assert not stored_in(path, "lost")
        other.execute("DROP TABLE IF EXISTS new_mail")
        other.execute("ALTER TABLE lost RENAME TO new_mail")
    assert write(store, message("2")) == [STORED]


def stored_in(path: Path, table: str) -> list[tuple]:
    return SQLiteTable(path).query(f"SELECT mail_id FROM {table}")


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"Dear diary,\n" * 1000)
    store = SQLiteStore(str(path), ROWS)
    with pytest.raises(StoreError, match=str(path)):
        store.prepare()
    assert write(store, message("1")) == [TROUBLE]
    path.unlink()
    assert write(store, message("1")) == [STORED]


def test_a_directory_that_comes_later(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "later" / "mail.db"), ROWS)
    with pytest.raises(StoreError, match="later"):
        store.prepare()
    assert write(store, message("1")) == [TROUBLE]
    (tmp_path / "later").mkdir()
    assert write(store, message("1")) == [STORED]


def test_the_reader_finds_what_was_written(store: SQLiteStore, path: Path) -> None:
    write(store, *(message(str(n), f"Subject: {n}\r\n\r\n".encode()) for n in range(5)))
    reader = sqlite.open_reader(str(path))
    assert [mail.subject for mail in reader.recent(3)] == ["2", "3", "4"]
    assert [mail.mail_id for mail in reader.after(3)] == [4, 5]
    found = reader.mail(2)
    assert found is not None
    assert found[0].subject == "1"
    assert found[1] == stored(path)[1].mail
    assert reader.mail(99) is None
    reader.close()


def test_the_reader_makes_no_file(path: Path) -> None:
    with pytest.raises(StoreError, match=str(path)):
        sqlite.open_reader(str(path))
    assert not path.exists()


def test_a_query_follows_the_file_and_changes_nothing(store: SQLiteStore, path: Path) -> None:
    def other(*known: str) -> None:
        made = path.with_name("made.db")
        with closing(sqlite3.connect(made)) as connection, connection:
            connection.execute("CREATE TABLE users (address TEXT PRIMARY KEY)")
            connection.executemany("INSERT INTO users VALUES (?)", [(each,) for each in known])
        for end in ("", "-wal", "-shm"):  # all of the one before
            path.with_name(path.name + end).unlink(missing_ok=True)
        made.rename(path)

    other("ann@example.com")
    finds = store.query("SELECT 1 FROM users WHERE address = %s AND '%%' = '%%'")
    assert [finds(f"{who}@example.com") for who in ("ann", "bob")] == [True, False]
    other("bob@example.com")
    assert [finds(f"{who}@example.com") for who in ("ann", "bob")] == [False, True]
    with pytest.raises(StoreError, match="readonly"):
        store.query("DELETE FROM users WHERE address = %s")("bob@example.com")
    assert finds("bob@example.com")
