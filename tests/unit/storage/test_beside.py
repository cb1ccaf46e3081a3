"""Is what is written beside the mail right, and does none of it ever cost mail?

The rows of `mail_attachment` and the counter, in a real MariaDB and in SQLite files.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import sqlite
from gsmtpd.storage.base import Outcome, Result, Store
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.sqlite import SQLiteStore
from tests.conftest import make_schema
from tests.servers import MariaDB

ROWS = RowMaker("mx.example.com")
STORED, TROUBLE = Outcome.STORED, Outcome.TROUBLE
_numbers = count(1)
Sql = Callable[..., list[tuple]]
Make = Callable[..., MySQLStore]


def with_files(*names: str, subject: str = "x", recipients: Sequence[str] = ("b",)) -> Message:
    """A message with attachments of these names, each with content of its own."""
    number = next(_numbers)
    head = f"Subject: {subject}\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    parts = [
        "Content-Type: application/pdf\r\nContent-Disposition: attachment;"
        f" filename*=utf-8''{quote(name)}\r\n\r\n{number} {position}"
        for position, name in enumerate(names, 1)
    ]
    body = "".join(f"--b\r\n{part}\r\n" for part in ("\r\ntext", *parts))
    boxes = tuple(Mailbox(name, "example.com") for name in recipients)
    envelope = Envelope("client.example", True, Mailbox("a", "example.org"), boxes)
    content = f"{head}{body}--b--\r\n".encode()
    return Message(f"{number:032x}", envelope, content, "192.0.2.1", 1_700_000_000.0)


def write(store: Store, *messages: Message) -> list[Result]:
    return store.write([store.encode(each) for each in messages])


LIST = (
    "SELECT hash, recipient, position, filename, a.content_type, a.size, a.sha256"
    " FROM mail_attachment a JOIN new_mail m ON m.mail_id = a.mail_id"
)


def wanted(*messages: Message) -> Counter[tuple]:
    """The rows that LIST should find for messages of `with_files`."""
    found: Counter[tuple] = Counter()
    for each in messages:
        for recipient in each.envelope.recipients:
            for position, one in enumerate(ROWS.read(each).body.attachments, 1):
                octets = f"{int(each.id, 16)} {position}".encode()
                digest = hashlib.sha256(octets).hexdigest()
                kind, size = "application/pdf", len(octets)
                found[each.id, str(recipient), position, one.filename, kind, size, digest] += 1
    return found


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> Sql:
    """Executes a statement in the schema."""

    def execute(statement: str, *arguments: object) -> list[tuple]:
        return mariadb.query(statement, arguments, database=schema, charset="utf8mb4")

    return execute


def mysql_store(server: MariaDB, schema: str, user: str = "root", **options: object) -> MySQLStore:
    database = Database((Host("localhost", unix_socket=str(server.socket)),), user, "", schema)
    return MySQLStore(database, ROWS, **({"connections": 2} | options))  # type: ignore[arg-type]


@pytest.fixture
def make(mariadb: MariaDB, schema: str) -> Iterator[Make]:
    """Makes stores in the schema."""
    made: list[MySQLStore] = []

    def store(user: str = "root", **options: object) -> MySQLStore:
        made.append(mysql_store(mariadb, schema, user, **options))
        return made[-1]

    yield store
    for each in made:
        each.close()


@pytest.fixture
def store(make: Make) -> MySQLStore:
    return make()


def received(sql: Sql) -> int:
    """What the counter and what it does not count yet say together."""
    ((told,),) = sql("SELECT setting_value FROM gm2_setting WHERE setting_name='received_emails'")
    ((untold,),) = sql("SELECT COALESCE(SUM(messages), 0) FROM gm2_received")
    return int(told + untold)


# --- attachments --------------------------------------------------------------------------------


def test_many_messages_recipients_and_attachments_in_one_batch(store: MySQLStore, sql: Sql) -> None:
    chance = random.Random(3)
    messages = [
        with_files(
            *(f"{n}-{i}.pdf" for i in range(chance.choice([0, 0, 1, 2, 7]))),
            recipients=[f"r{i}" for i in range(chance.choice([1, 1, 2, 5]))],
        )
        for n in range(300)
    ]
    assert write(store, *messages) == [STORED] * 300
    assert Counter(sql(LIST)) == wanted(*messages)
    assert received(sql) == 300


def test_more_than_a_statement_holds(store: MySQLStore, sql: Sql) -> None:
    """A message with 100 attachments to 30 recipients is 3,000 rows."""
    made = with_files(
        *("\U0001f4ec" * 255 for _ in range(100)), recipients=[f"r{n}" for n in range(30)]
    )
    other = with_files("other")
    assert write(store, made, other) == [STORED, STORED]
    assert Counter(sql(LIST)) == wanted(made, other)


def test_of_many_attachments_a_hundred_are_listed(store: MySQLStore, sql: Sql) -> None:
    made = with_files(*(f"{n}" for n in range(500)))
    assert write(store, made) == [STORED]
    assert [row[0] for row in sql("SELECT filename FROM mail_attachment ORDER BY position")] == [
        f"{n}" for n in range(100)
    ]
    assert sql("SELECT has_attach FROM new_mail") == [(500,)]


@pytest.fixture(scope="module")
def interleaved() -> Iterator[MariaDB]:
    """A server whose numbers have gaps and come in any order, as in a cluster."""
    options = ["--innodb-autoinc-lock-mode=2", "--auto-increment-increment=3"]
    with MariaDB(options=[*options, "--auto-increment-offset=2"]) as server:
        yield server


def test_writers_at_once_where_numbers_have_gaps(interleaved: MariaDB) -> None:
    make_schema(interleaved, "gaps")
    assert interleaved.query("SELECT @@innodb_autoinc_lock_mode, @@auto_increment_increment") == [
        (2, 3)
    ]
    stores = [mysql_store(interleaved, "gaps") for _ in range(4)]
    batches = [
        [
            [
                with_files(*(["x"] * (1 + n % 4)), recipients=[f"{w}{r}" for r in range(n % 3 + 1)])
                for n in range(40)
            ]
            for _ in range(8)
        ]
        for w in range(len(stores))
    ]
    outcomes: list[Result] = []

    def work(number: int) -> None:
        for batch in batches[number]:
            outcomes.extend(write(stores[number], *batch))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [STORED] * 4 * 8 * 40
    sent = [each for batches_of_one in batches for batch in batches_of_one for each in batch]
    found = interleaved.query(LIST, database="gaps", charset="utf8mb4")
    assert Counter(found) == wanted(*sent)
    for each in stores:
        each.close()


NAMES = [
    *["'", '"', "\\", "\\'", "''", "%s", "%", "%%", "{}", "{0}", "`", ";--", "a\\n", "\\0", "'),("],
    *[
        "\U0001f4ec",
        "\U0001f4ec'\\",
        "\u65e5\u672c",
        "\u2028",
        "e\u0301",
        "\uffff",
        "\ufffd",
        "x y",
    ],
    *["'" * 255, "\\'" * 127, "\U0001f4ec" * 255, "r" * 255],
]


@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
def test_every_kind_of_name(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    made = with_files(*(name.replace("\\", "\\\\") for name in NAMES))
    names = [one.filename for one in ROWS.read(made).body.attachments]
    if kind == "mariadb":
        assert write(request.getfixturevalue("store"), made) == [STORED]
        found = request.getfixturevalue("sql")(LIST)
    else:
        store = SQLiteStore(str(tmp_path / "mail.db"), ROWS)
        assert write(store, made) == [STORED]
        found = in_file(tmp_path / "mail.db", LIST)
        store.close()
    assert len(names) == len(NAMES)
    assert any("'" in name and len(name) == 255 for name in names)
    assert Counter(found) == wanted(made)


def test_the_store_takes_names_that_the_parser_never_makes(store: MySQLStore, sql: Sql) -> None:
    """A name with whatever a text may hold comes back as it was."""
    letter = store.encode(with_files(*("x" for _ in NAMES)))
    listed = [
        one._replace(filename=name, content_type=name)
        for one, name in zip(letter.reading.body.attachments, NAMES, strict=True)
    ]
    body = letter.reading.body._replace(attachments=listed)
    assert store.write([letter._replace(reading=letter.reading._replace(body=body))]) == [STORED]
    found = sql("SELECT filename, content_type FROM mail_attachment ORDER BY position")
    assert found == [(name, name) for name in NAMES]


def test_numbers_that_come_again_in_an_emptied_table(store: MySQLStore, sql: Sql) -> None:
    assert write(store, *(with_files(f"old{n}") for n in range(5))) == [STORED] * 5
    sql("TRUNCATE TABLE new_mail")
    new = [with_files(f"new{n}") for n in range(5)]
    assert write(store, *new) == [STORED] * 5
    assert Counter(sql(LIST)) == wanted(*new)


# --- what is missing ----------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["mail_id", "hash"])
def test_a_mail_table_that_attachments_cannot_refer_to(
    store: MySQLStore, sql: Sql, column: str
) -> None:
    if column == "mail_id":
        sql("ALTER TABLE new_mail MODIFY mail_id bigint NOT NULL, DROP PRIMARY KEY")
    sql(f"ALTER TABLE new_mail DROP COLUMN {column}")
    assert write(store, with_files("x"), with_files()) == [STORED, STORED]
    assert sql("SELECT * FROM mail_attachment") == []


@pytest.mark.parametrize("table", ["mail_attachment", "gm2_received", "gm2_setting"])
@pytest.mark.parametrize("running", [False, True])
def test_a_table_that_is_missing_costs_no_mail(
    store: MySQLStore, sql: Sql, table: str, running: bool
) -> None:
    """running: it is dropped while the store is in use, and made again later."""
    if running:
        assert write(store, with_files("x")) == [STORED]
    ((_, how),) = sql(f"SHOW CREATE TABLE {table}")
    sql(f"DROP TABLE {table}")
    assert write(store, with_files("x", "y"), with_files()) == [STORED, STORED]
    assert sql("SELECT COUNT(*) FROM new_mail") == [(2 + running,)]
    if table != "mail_attachment":
        assert len(sql(LIST)) == 2 + running
    sql(how)
    assert write(store, with_files("x")) == [STORED]


def test_without_a_key_on_hash_nothing_is_listed(
    make: Make, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    """To find the numbers of a batch's rows would take as long as reading the whole table."""
    sql("ALTER TABLE new_mail DROP KEY hash")
    with caplog.at_level(logging.WARNING):
        assert write(make(strict=False), with_files("x")) == [STORED]
    assert [record.getMessage() for record in caplog.records] == [
        "mysql: table new_mail has no key on `hash`; attachments are not listed"
    ]
    assert sql("SELECT * FROM mail_attachment") == []


@pytest.mark.parametrize(
    "change",
    [
        "MODIFY filename varchar(10) NOT NULL",
        "MODIFY filename varchar(255) CHARACTER SET latin1 NOT NULL",
        "MODIFY filename varchar(255) CHARACTER SET utf8mb3 NOT NULL",
        "MODIFY size tinyint unsigned NOT NULL",
        "MODIFY sha256 char(8) NOT NULL",
        "ADD COLUMN virus varchar(9) NOT NULL",
        "DROP COLUMN sha256",
        "ADD CONSTRAINT poison CHECK (size > 1000000)",
    ],
)
def test_a_table_of_attachments_that_is_not_ours_costs_no_mail(
    store: MySQLStore, sql: Sql, change: str
) -> None:
    sql(f"ALTER TABLE mail_attachment {change}")
    made = with_files("\U0001f4ec" * 200, "\u65e5.pdf"), with_files()
    assert write(store, *made) == [STORED, STORED]


# --- rights -------------------------------------------------------------------------------------


@pytest.fixture
def user(mariadb: MariaDB, schema: str) -> Iterator[str]:
    """A user of the database who may do nothing in the schema yet."""
    name = f"u{next(_numbers)}"
    mariadb.query(f"CREATE USER {name}@localhost")
    yield name
    mariadb.query(f"DROP USER {name}@localhost")


def test_with_rights_on_the_mail_table_only_there_is_one_warning(
    make: Make, user: str, schema: str, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    sql(f"GRANT SELECT, INSERT ON `{schema}`.new_mail TO {user}@localhost")
    store = make(user, strict=False)
    with caplog.at_level(logging.WARNING):
        store.prepare()
        for _ in range(3):
            assert write(store, with_files("x"), with_files("y")) == [STORED, STORED]
        warnings = [record.getMessage() for record in caplog.records]
        # A table that is altered is looked at again, and nothing new is found.
        sql("ALTER TABLE new_mail DROP COLUMN helo")
        assert write(store, with_files("x")) == [STORED]
    assert len({*warnings}) == len(warnings)
    assert [record.getMessage() for record in caplog.records] == warnings
    assert any("mail_attachment" in text for text in warnings)
    assert sql("SELECT COUNT(*) FROM new_mail") == [(7,)]


@pytest.mark.parametrize(
    ("granted", "counted"),
    [
        (["SELECT, INSERT, CREATE ON `{}`.*"], 0),  # as the manual of the first version had it
        (["SELECT, INSERT ON `{}`.*"], 0),  # rows that nobody may take away are not made
        (["SELECT, INSERT, UPDATE ON `{}`.*"], 5),
        (["ALL ON `{}`.*"], 5),
    ],
)
def test_the_rights_that_are_given_decide_what_is_kept(
    make: Make, user: str, schema: str, sql: Sql, granted: list[str], counted: int
) -> None:
    for each in granted:
        sql(f"GRANT {each.format(schema)} TO {user}@localhost")
    store = make(user)
    messages = [with_files(f"{n}", recipients=["a", "b"]) for n in range(5)]
    assert write(store, *messages) == [STORED] * 5
    assert Counter(sql(LIST)) == wanted(*messages)
    store.close()
    assert received(sql) == counted


@pytest.mark.parametrize("table", ["mail_attachment", "gm2_received"])
def test_a_right_that_is_revoked_while_running_costs_no_mail(
    make: Make, user: str, schema: str, sql: Sql, table: str
) -> None:
    every = ("new_mail", "mail_attachment", "gm2_received", "gm2_setting")
    for each in every:
        sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{schema}`.{each} TO {user}@localhost")
    store = make(user)
    assert write(store, with_files("x")) == [STORED]
    assert len(sql(LIST)) == received(sql) == 1
    sql(f"REVOKE INSERT ON `{schema}`.{table} FROM {user}@localhost")
    assert write(store, with_files("x"), with_files("y")) == [STORED, STORED]
    assert sql("SELECT COUNT(*) FROM new_mail") == [(3,)]


# --- the counter --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[], [0], [9], [4, 5], [*range(10)], [0, 2, 4, 6, 8]])
def test_only_what_is_stored_is_counted_and_only_once(
    store: MySQLStore, sql: Sql, bad: list[int]
) -> None:
    """Halves of a batch are tried again, and the counter with them."""
    sql("ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> 'bad')")
    messages = [
        with_files("x", subject="bad" if n in bad else "good", recipients=["a", "b"])
        for n in range(10)
    ]
    assert write(store, *messages) == [TROUBLE if n in bad else STORED for n in range(10)]
    good = [each for n, each in enumerate(messages) if n not in bad]
    assert received(sql) == len(good)
    assert Counter(sql(LIST)) == wanted(*good)


def test_what_a_transaction_lost_is_not_counted(store: MySQLStore, sql: Sql) -> None:
    assert write(store, with_files("x")) == [STORED]
    sql("RENAME TABLE new_mail TO lost")
    assert write(store, with_files("x")) == [TROUBLE]
    sql("RENAME TABLE lost TO new_mail")
    assert received(sql) == 1
    assert write(store, with_files("x")) == [STORED]
    assert received(sql) == 2


ORIGINAL_SETTING = (
    "CREATE TABLE gm2_setting (setting_name varchar(64) NOT NULL PRIMARY KEY,"
    " setting_value int NOT NULL) ENGINE=InnoDB"
)


@pytest.fixture
def original(sql: Sql) -> None:
    """The tables that Guerrilla SMTPd itself had."""
    sql("DROP TABLE mail_attachment, gm2_received, gm2_setting")
    sql(ORIGINAL_SETTING)
    sql("INSERT INTO gm2_setting VALUES ('received_emails', 41), ('other', 7)")


def told(sql: Sql) -> list[tuple]:
    return sql("SELECT setting_name, setting_value FROM gm2_setting ORDER BY 1 DESC")


@pytest.mark.usefixtures("original")
def test_the_originals_counter_is_told_at_the_end(make: Make, sql: Sql) -> None:
    store = make()
    for n in range(10):
        assert write(store, *(with_files() for _ in range(n))) == [STORED] * n
    store.close()
    assert told(sql) == [("received_emails", 41 + 45), ("other", 7)]


@pytest.mark.usefixtures("original")
def test_the_originals_counter_is_told_about_once_a_second(
    make: Make, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsmtpd.storage.mysql_beside._COUNT_EVERY", 0.0)
    store = make()
    assert write(store, *(with_files() for _ in range(5))) == [STORED] * 5
    assert told(sql)[0] == ("received_emails", 46)
    sql("RENAME TABLE gm2_setting TO away")
    assert write(store, with_files()) == [STORED]
    sql("RENAME TABLE away TO gm2_setting")
    assert write(store, with_files()) == [STORED]
    assert told(sql)[0] == ("received_emails", 48)


@pytest.mark.usefixtures("original")
def test_the_originals_counter_without_the_right_to_write_it(
    make: Make, user: str, schema: str, sql: Sql
) -> None:
    sql(f"GRANT SELECT, INSERT ON `{schema}`.* TO {user}@localhost")
    store = make(user)
    assert write(store, with_files()) == [STORED]
    store.close()
    assert told(sql)[0] == ("received_emails", 41)


# --- SQLite -------------------------------------------------------------------------------------


def in_file(path: Path, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


COUNTED = "SELECT setting_value FROM gm2_setting WHERE setting_name = 'received_emails'"


def test_sqlite_lists_attachments_and_counts(path: Path) -> None:
    chance = random.Random(4)
    store = SQLiteStore(str(path), ROWS)
    messages = [
        with_files(
            *(f"{n}-{i}" for i in range(chance.choice([0, 1, 5]))),
            recipients=[f"r{i}" for i in range(chance.choice([1, 3]))],
        )
        for n in range(200)
    ]
    assert write(store, *messages[:100]) == [STORED] * 100
    assert write(store, *messages[100:]) == [STORED] * 100
    assert Counter(in_file(path, LIST)) == wanted(*messages)
    assert in_file(path, COUNTED) == [(200,)]
    store.close()


def test_sqlite_does_not_count_what_it_refused(path: Path) -> None:
    store = SQLiteStore(str(path), ROWS)
    store.prepare()
    in_file(
        path,
        "CREATE TRIGGER poison BEFORE INSERT ON new_mail WHEN NEW.subject = 'bad'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    messages = [with_files("x", subject="bad" if n % 3 else "good") for n in range(10)]
    assert write(store, *messages) == [TROUBLE if n % 3 else STORED for n in range(10)]
    assert in_file(path, COUNTED) == [(4,)]
    assert Counter(in_file(path, LIST)) == wanted(*messages[::3])
    store.close()


@pytest.mark.parametrize("table", ["mail_attachment", "gm2_setting"])
def test_a_table_beside_that_is_missing_in_a_file_costs_no_mail(path: Path, table: str) -> None:
    store = SQLiteStore(str(path), ROWS)
    assert write(store, with_files("x")) == [STORED]
    in_file(path, f"DROP TABLE {table}")
    write(store, with_files("x"))
    assert write(store, with_files("x")) == [STORED]
    store.close()


OLDER = """
CREATE TABLE new_mail (
  mail_id INTEGER PRIMARY KEY AUTOINCREMENT, date TEXT NOT NULL, "from" TEXT NOT NULL,
  "to" TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL, charset TEXT NOT NULL,
  mail BLOB NOT NULL, spam_score REAL NOT NULL, hash TEXT NOT NULL, content_type TEXT NOT NULL,
  recipient TEXT NOT NULL, has_attach INTEGER NOT NULL, ip_addr TEXT NOT NULL,
  return_path TEXT NOT NULL DEFAULT '', helo TEXT NOT NULL DEFAULT '',
  is_tls INTEGER NOT NULL DEFAULT 0, message_id TEXT NOT NULL DEFAULT '',
  reply_to TEXT NOT NULL DEFAULT '', sender TEXT NOT NULL DEFAULT '',
  mail_encoding TEXT NOT NULL DEFAULT '', content_hash TEXT NOT NULL DEFAULT '',
  size INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX new_mail_to ON new_mail ("to");
CREATE INDEX new_mail_hash ON new_mail (hash);
CREATE INDEX new_mail_date ON new_mail (date);
INSERT INTO new_mail (date, "from", "to", subject, body, charset, mail, spam_score, hash,
  content_type, recipient, has_attach, ip_addr, size) VALUES ('2024-01-02 03:04:05', 'a@x', 'b@y',
  'old', '', '', x'6f6c640d0a', 0, '00000000000000000000000000000001', '', 'b@y', 0, '::1', 5);
"""


@pytest.fixture
def older(path: Path) -> Path:
    """A mail file as the first version made it, with a mail in it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLDER)
        connection.execute("PRAGMA journal_mode=WAL")
    return path


def test_a_file_of_the_first_version_is_upgraded(older: Path) -> None:
    sqlite.make(str(older))
    stores = [SQLiteStore(str(older), ROWS) for _ in range(2)]
    messages = [with_files("x", "y") for _ in stores]
    for store, each in zip(stores, messages, strict=True):
        assert write(store, each) == [STORED]
        store.close()
    assert Counter(in_file(older, LIST)) == wanted(*messages)
    assert in_file(older, COUNTED) == [(2,)]
    assert in_file(older, "SELECT subject, preview, size FROM mail_inbox WHERE mail_id = 1") == [
        ("old", "", 5)
    ]
    reader = sqlite.open_reader(str(older))
    found = reader.mail(1)
    assert found is not None
    assert (found[0].subject, found[1]) == ("old", b"old\r\n")
    reader.close()


def test_many_open_an_older_file_at_once(older: Path) -> None:
    stores = [SQLiteStore(str(older), ROWS) for _ in range(6)]
    outcomes: list[Result] = []
    begin = threading.Barrier(len(stores))

    def work(store: SQLiteStore) -> None:
        begin.wait()
        outcomes.extend(write(store, with_files("x")))

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [STORED] * 6
    assert in_file(older, COUNTED) == [(6,)]
