"""Does the MySQL store keep every octet, whatever its table is like and whatever goes wrong?

A real MariaDB, and the store without the rest of gsmtpd around it.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import pymysql
import pytest

from gsmtpd.message.row import COLUMNS, Decode, Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import mysql_connection
from gsmtpd.storage.base import Outcome, StoreError, StorePermissionError
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_table import MailTable
from gsmtpd.storage.mysql_wire import Connection
from tests.accounting import MySQLTable, Row, rows
from tests.servers import MariaDB, free_port, wait_for

ROWS = RowMaker("mx.example.com")
PAIRS = b"".join(bytes([first, second]) for first in range(256) for second in range(256))
STORED, TROUBLE, NO_SPACE = Outcome.STORED, Outcome.TROUBLE, Outcome.NO_SPACE
AWAY = Outcome.AWAY
Make = Callable[..., MySQLStore]


def message(
    name: object, content: bytes = b"x\r\n", recipients: Sequence[str] = ("b",), helo: str = "x"
) -> Message:
    boxes = tuple(Mailbox(local, "example.com") for local in recipients)
    envelope = Envelope(helo, True, Mailbox("a", "example.org"), boxes)
    return Message(str(name).rjust(32, "0"), envelope, content, "192.0.2.1", 1_700_000_000.0)


def write(store: MySQLStore, *messages: Message) -> list[Outcome]:
    return store.write([store.encode(each) for each in messages])


@pytest.fixture
def make(mariadb: MariaDB, schema: str) -> Iterator[Make]:
    """Makes stores in the schema; keywords are those of MySQLStore and, for user, Database."""
    made = []

    def store(user: str = "root", password: str = "", **options: object) -> MySQLStore:
        host = Host("localhost", unix_socket=str(mariadb.socket))
        database = Database((host,), user, password, schema)
        rows = options.pop("rows", ROWS)
        made.append(MySQLStore(database, rows, **({"connections": 2} | options)))  # type: ignore[arg-type]
        return made[-1]

    yield store
    for each in made:
        each.close()


@pytest.fixture
def store(make: Make) -> MySQLStore:
    return make()


@pytest.fixture
def stored(mariadb: MariaDB, schema: str) -> Callable[[], list[Row]]:
    return lambda: rows(MySQLTable(mariadb, schema))


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> Callable[..., list[tuple]]:
    """Executes a statement in the schema."""

    def execute(statement: str, *arguments: object) -> list[tuple]:
        return mariadb.query(statement, arguments, database=schema, charset="utf8mb4")

    return execute


# --- octets and characters ----------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True])
def test_every_octet_and_every_pair_of_octets(store, stored, prepared: bool) -> None:
    """prepared: the SQL is made before the write, as a thread that receives mail does."""
    if prepared:
        store.prepare()
    chance = random.Random(7)
    contents = [PAIRS, *(bytes([octet]) for octet in range(256)), b"", chance.randbytes(1 << 20)]
    contents += ["'\"\\\0\U0001f4ec%s?;--\x1a".encode() * n for n in range(10)]
    messages = [message(n, content) for n, content in enumerate(contents)]
    assert write(store, *messages) == [STORED] * len(messages)
    assert [row.content for row in stored()] == contents
    assert [row.problem() for row in stored()] == [None] * len(contents)


TEXTS = [
    *["'", '"', "\\", "\\'", "''", "\\\\", "%s", "%", "?", "`", ";--", "\x1a", "a\\", "\\0", "\\n"],
    *["\U0001f4ec", "\U0001f4ec'", "\xfc", "\u65e5\u672c", "\u2028", "e\u0301", "\uffff", "\x7f"],
]


@pytest.mark.parametrize("column", ["helo", "recipient"])
def test_every_kind_of_text(store, sql, column: str) -> None:
    wanted = []
    for n, text in enumerate(TEXTS):
        if column == "helo":
            wanted.append("".join(c if c.isprintable() else "?" for c in text))
            write(store, message(n, helo=text))
        else:
            wanted.append(f"{text}@example.com")
            write(store, message(n, recipients=[text]))
    found = sql(f"SELECT `{column}` FROM new_mail ORDER BY mail_id")
    assert [text for (text,) in found] == wanted


def test_a_server_without_backslash_escapes_is_told_otherwise(mariadb, make, stored) -> None:
    mode = mariadb.query("SELECT @@GLOBAL.sql_mode")[0][0]
    mariadb.query("SET GLOBAL sql_mode='NO_BACKSLASH_ESCAPES,ANSI_QUOTES'")
    try:
        assert write(make(), message(1, b"a\\'b\"\r\n")) == [STORED]
    finally:
        mariadb.query("SET GLOBAL sql_mode=%s", (mode,))
    assert stored()[0].content == b"a\\'b\"\r\n"


# --- tables of others ---------------------------------------------------------------------------

LATIN1 = "character set latin1 NOT NULL"
ORIGINAL = {
    # The columns of Guerrilla SMTPd's first version.
    "mail_id": "int NOT NULL auto_increment PRIMARY KEY",
    "date": "datetime NOT NULL",
    "from": f"varchar(128) {LATIN1}",
    "to": f"varchar(128) {LATIN1}",
    "subject": "varchar(255) NOT NULL",
    "body": "text NOT NULL",
    "charset": f"varchar(32) {LATIN1}",
    "mail": "longblob NOT NULL",
    "spam_score": "float NOT NULL",
    "hash": f"char(32) {LATIN1}",
    "content_type": f"varchar(64) {LATIN1}",
    "recipient": f"varchar(128) {LATIN1}",
    "has_attach": "int NOT NULL",
    "ip_addr": "varchar(15) NOT NULL",
    "delivered": "bit(1) NOT NULL default b'0'",
    "attach_info": "text NOT NULL",
    "dkim_valid": "tinyint default NULL",
}
SECOND = {
    # Those of its second version, written in Go.
    "mail_id": "bigint unsigned NOT NULL auto_increment PRIMARY KEY",
    "date": "datetime NOT NULL",
    "from": f"varchar(256) {LATIN1}",
    "to": f"varchar(256) {LATIN1}",
    "subject": "varchar(255) NOT NULL",
    "body": "text NOT NULL",
    "charset": f"varchar(32) {LATIN1}",
    "mail": "longblob NOT NULL",
    "spam_score": "float NOT NULL",
    "hash": f"char(32) {LATIN1}",
    "content_type": f"varchar(64) {LATIN1}",
    "recipient": f"varchar(255) {LATIN1}",
    "has_attach": "int NOT NULL",
    "ip_addr": "varbinary(16) NOT NULL",
    "return_path": "varchar(255) NOT NULL",
    "is_tls": "bit(1) DEFAULT b'0' NOT NULL",
    "message_id": f"varchar(256) {LATIN1}",
    "reply_to": f"varchar(256) {LATIN1}",
    "sender": f"varchar(256) {LATIN1}",
}
HARD = (
    "From: =?utf-8?q?=E2=82=AC=E6=97=A5?= <" + "f" * 200 + "@example.org>\r\n"
    "Subject: " + "\U0001f4ec\u20ac'" * 200 + "\r\n"
    "Content-Type: text/" + "x" * 300 + "\r\n"
    "Message-ID: <" + "i" * 400 + "@x>\r\n\r\n"
).encode() + PAIRS  # fmt: skip


def replace_table(sql: Callable[..., list[tuple]], columns: dict[str, str], charset: str) -> None:
    text = ", ".join(f"`{name}` {kind}" for name, kind in columns.items())
    sql("DROP TABLE new_mail")
    sql(f"CREATE TABLE new_mail ({text}) ENGINE=InnoDB DEFAULT CHARSET={charset}")


@pytest.mark.parametrize("columns", [ORIGINAL, SECOND], ids=["version 1", "version 2"])
def test_a_table_made_long_ago_is_filled_and_values_are_cut_to_fit(
    store, sql, columns: dict[str, str]
) -> None:
    replace_table(sql, columns, "utf8mb3")
    store.prepare()
    recipient = "\u65e5" + "r" * 63
    made = message(1, HARD, [recipient, "b"])
    assert write(store, made, message(2, b"x\r\n")) == [STORED, STORED]
    names = [name for name in COLUMNS if name in columns]
    text = ", ".join(f"`{name}`" for name in names)
    first, second, third = (
        dict(zip(names, row, strict=True))
        for row in sql(f"SELECT {text} FROM new_mail ORDER BY mail_id")
    )
    assert first["mail"].endswith(HARD)
    assert first["subject"] == ("?\u20ac'" * 200)[:255]
    assert first["from"] == ("f" * 200 + "@example.org")[: 128 if columns is ORIGINAL else 256]
    assert first["recipient"] == "?" + "r" * 63 + "@example.com"
    assert first["content_type"] == ("text/" + "x" * 300)[:64]
    assert first["ip_addr"] in ("192.0.2.1", b"192.0.2.1")
    assert (second["recipient"], third["recipient"]) == ("b@example.com", "b@example.com")
    assert second["mail"].endswith(HARD)


def test_columns_that_need_a_value_get_one(store, sql) -> None:
    """A strict server refuses rows without it; the original's writer did without strictness."""
    kinds = {
        "text": "text",
        "name": "varchar(9)",
        "number": "int",
        "share": "decimal(5,2)",
        "moment": "datetime",
        "octets": "blob",
    }
    for name, kind in kinds.items():
        sql(f"ALTER TABLE new_mail ADD COLUMN {name} {kind} NOT NULL")
    assert write(store, message(1)) == [STORED]


def test_a_table_that_is_only_a_part(store, sql) -> None:
    for name in ("content_hash", "size", "sender", "mail_encoding", "spam_score", "body"):
        sql(f"ALTER TABLE new_mail DROP COLUMN {name}")
    assert write(store, message(1, HARD)) == [STORED]
    assert sql("SELECT COUNT(*) FROM new_mail") == [(1,)]


@pytest.mark.parametrize(
    "columns",
    ["mail blob", "mail_id int auto_increment primary key, mail blob", "mail blob, size int"],
)
def test_a_table_with_next_to_nothing(store, sql, columns: str) -> None:
    sql("DROP TABLE new_mail")
    sql(f"CREATE TABLE new_mail ({columns})")
    assert write(store, message(1, b"x\r\n")) == [STORED]
    assert sql("SELECT mail FROM new_mail")[0][0].endswith(b"x\r\n")


@pytest.mark.parametrize("decode", [*Decode])
def test_a_table_that_cannot_say_that_mail_is_compressed(make, sql, caplog, decode) -> None:
    """Guerrilla SMTPd 2 said it in `body`; where that has the text, mail is stored as it is."""
    replace_table(sql, ORIGINAL, "utf8mb3")
    store = make(rows=RowMaker("mx.example.com", decode=decode, compress=6))
    content = b"\r\n" + b"Words, words, words.\r\n" * 100
    for number in range(2):  # the first is made without knowing the table
        assert write(store, message(number, content)) == [STORED]
    for body, mail in sql("SELECT body, mail FROM new_mail"):
        if decode is Decode.BODY:
            assert mail.endswith(content)
        else:
            assert body == "gzencode"
            assert zlib.decompress(mail).endswith(content)
    warned = [record for record in caplog.records if "no column mail_encoding" in record.message]
    assert len(warned) == (decode is Decode.BODY)


@pytest.mark.parametrize("charset", ["latin1", "latin2", "cp1251", "gbk"])
def test_a_subject_that_the_column_has_no_characters_for(store, sql, charset: str) -> None:
    sql(f"ALTER TABLE new_mail MODIFY subject varchar(255) CHARACTER SET {charset} NOT NULL")
    subject = "Subject: a\u65e5\u0431\u03b1\xfc\U0001f4ecz\r\n\r\n".encode()
    assert write(store, message(1, subject)) == [STORED]
    ((found,),) = sql("SELECT subject FROM new_mail")
    assert (found[0], found[-1]) == ("a", "z")
    assert len(found) == 7


@pytest.mark.parametrize(
    "kind", ["blob", "mediumblob", "longblob", "longtext CHARACTER SET binary"]
)
def test_a_mail_column_of_any_kind(store, sql, kind: str) -> None:
    sql(f"ALTER TABLE new_mail MODIFY mail {kind} NOT NULL")
    content = bytes(range(256)) * 100
    assert write(store, message(1, content)) == [STORED]
    assert sql("SELECT mail FROM new_mail")[0][0].endswith(content)


def test_a_table_that_is_altered_under_load(store, stored, sql) -> None:
    assert write(store, message(1)) == [STORED]
    sql("ALTER TABLE new_mail DROP COLUMN helo")
    assert write(store, message(2)) == [STORED]
    sql("ALTER TABLE new_mail ADD COLUMN helo varchar(255) NOT NULL DEFAULT ''")
    sql("RENAME TABLE new_mail TO lost")
    assert write(store, message(3)) == [TROUBLE]
    sql("RENAME TABLE lost TO new_mail")
    assert write(store, message(4)) == [STORED]
    assert [int(row.hash) for row in stored()] == [1, 2, 4]


# --- refused rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[0], [9], [4], [0, 9], [*range(10)], []])
def test_refused_rows_do_not_take_their_batch_along(store, stored, sql, bad: list[int]) -> None:
    sql("ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> 'bad')")
    subjects = ["bad" if n in bad else "good" for n in range(10)]
    messages = [
        message(n, f"Subject: {subject}\r\n\r\n".encode(), ["a", "b"])
        for n, subject in enumerate(subjects)
    ]
    assert write(store, *messages) == [TROUBLE if n in bad else STORED for n in range(10)]
    good = [n for n in range(10) if n not in bad]
    assert sorted(int(row.hash) for row in stored()) == sorted(good * 2)


def test_a_refused_recipient_leaves_nothing_of_its_message(store, stored, sql) -> None:
    sql("ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (recipient <> 'c@example.com')")
    messages = message(1, recipients=["a", "b", "c", "d"]), message(2)
    assert write(store, *messages) == [TROUBLE, STORED]
    assert [int(row.hash) for row in stored()] == [2]


# --- errors of the server -----------------------------------------------------------------------


def fail(sql: Callable[..., list[tuple]], errno: int, times: int = 1 << 30) -> None:
    """Let the next `times` INSERTs of a row whose subject is 'bad' fail with `errno`."""
    sql("CREATE TABLE fails (n int) ENGINE=MyISAM")  # which no rollback sets back
    sql("INSERT INTO fails VALUES (0)")
    sql(
        "CREATE TRIGGER fail BEFORE INSERT ON new_mail FOR EACH ROW BEGIN"
        " IF NEW.subject = 'bad' THEN UPDATE fails SET n = n + 1;"
        f" IF (SELECT n FROM fails) <= {times} THEN"
        f" SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {errno}; END IF; END IF; END"
    )


GOOD_AND_BAD = (message(1), message(2, b"Subject: bad\r\n\r\n"), message(3))


@pytest.mark.parametrize("errno", [1205, 1213], ids=["lock wait", "deadlock"])
@pytest.mark.parametrize(("times", "outcome"), [(1, STORED), (2, STORED), (3, TROUBLE)])
def test_a_transaction_is_tried_again(store, stored, sql, errno, times, outcome) -> None:
    fail(sql, errno, times)
    assert write(store, *GOOD_AND_BAD) == [outcome] * 3
    assert [int(row.hash) for row in stored()] == ([1, 2, 3] if outcome is STORED else [])


@pytest.mark.parametrize(
    ("errno", "outcome"),
    [(1021, NO_SPACE), (1114, NO_SPACE), (1290, AWAY), (1836, AWAY), (1030, TROUBLE)],
)
def test_an_error_of_the_server_is_no_fault_of_the_message(
    store, stored, sql, errno: int, outcome: Outcome
) -> None:
    fail(sql, errno)
    assert write(store, *GOOD_AND_BAD) == [outcome] * 3
    assert stored() == []
    sql("DROP TRIGGER fail")
    # Where a host cannot write now it is looked at for a while first.
    wait_for(lambda: write(store, *GOOD_AND_BAD) == [STORED] * 3)


# --- lost connections ---------------------------------------------------------------------------


def kill_all(mariadb: MariaDB, schema: str) -> None:
    """Kill the connections that use the schema."""
    others = "SELECT id FROM information_schema.processlist WHERE db = %s"
    for (number,) in mariadb.query(others, (schema,)):
        try:
            mariadb.query(f"KILL CONNECTION {number}")
        except pymysql.MySQLError as error:
            if error.args[0] != 1094:  # it has ended by itself meanwhile
                raise


class BetweenInserts:
    """Has a batch written as one INSERT per row, and something done behind the first of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, do: Callable[[], None], times: int) -> None:
        self.done = 0

        def groups(table: MailTable, values: Iterable[bytes], limit: int) -> Iterator[list[bytes]]:
            for number, row in enumerate(values):
                if number == 1 and self.done < times:
                    self.done += 1
                    do()
                yield [row]

        monkeypatch.setattr(MailTable, "groups", groups)


@pytest.mark.parametrize(("times", "outcome"), [(1, STORED), (2, STORED), (9, TROUBLE)])
def test_a_connection_killed_between_two_inserts_never_commits_by_halves(
    store, stored, mariadb, schema, monkeypatch, times: int, outcome: Outcome
) -> None:
    hook = BetweenInserts(monkeypatch, lambda: kill_all(mariadb, schema), times)
    assert write(store, message(1, recipients=["a", "b", "c"]), message(2)) == [outcome] * 2
    assert hook.done == min(times, 3)
    found = [row.recipient[0] for row in stored()]
    assert found == (["a", "b", "c", "b"] if outcome is STORED else [])


def test_the_test_above_can_fail(make, stored, mariadb, schema, monkeypatch) -> None:
    """A driver that connects again by itself commits the second half, and says that all is well."""
    execute = Connection.execute

    def stubborn(self: Connection, *arguments: object) -> None:
        try:
            execute(self, *arguments)  # type: ignore[arg-type]
        except pymysql.err.OperationalError:
            self.statements.clear()
            self.connect(mysql_connection._socket_to(self.to_host, 5))
            execute(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "execute", stubborn)
    BetweenInserts(monkeypatch, lambda: kill_all(mariadb, schema), 1)
    assert write(make(), message(1, recipients=["a", "b", "c"])) == [STORED]
    assert [row.recipient[0] for row in stored()] == ["b", "c"]


def test_connections_killed_between_batches(store, stored, mariadb, schema) -> None:
    for number in range(5):
        assert write(store, message(number)) == [STORED]
        kill_all(mariadb, schema)
    assert [int(row.hash) for row in stored()] == [*range(5)]


def test_threads_share_a_store(make, stored, mariadb, schema) -> None:
    store = make(connections=4)
    acknowledged: list[int] = []

    def work(start: int) -> None:
        """Write until 40 are stored: for a while after a loss there is no writing."""
        numbers = count(start)
        for _ in range(40):
            while write(store, message(number := next(numbers), recipients=["a", "b"])) != [STORED]:
                time.sleep(0.01)
            acknowledged.append(number)

    threads = [threading.Thread(target=work, args=(n * 1_000_000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        kill_all(mariadb, schema)
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(acknowledged) == 4 * 40
    found = Counter(int(row.hash) for row in stored())
    assert {*acknowledged} <= {*found}
    assert {*found.values()} == {2}


# --- what prepare says --------------------------------------------------------------------------


def test_no_server() -> None:
    host = Host("127.0.0.1", free_port())
    store = MySQLStore(Database((host,), "root", "", "mail"), ROWS, 1)
    with pytest.raises(StoreError, match=f"no database server answers at {host}"):
        store.prepare()
    assert write(store, message(1)) == [AWAY]


def test_no_table(store, sql) -> None:
    sql("DROP TABLE new_mail")
    with pytest.raises(StoreError, match="gsmtpctl init-db --apply"):
        store.prepare()


def test_no_rights(make, mariadb, schema) -> None:
    mariadb.query("CREATE OR REPLACE USER poor@localhost IDENTIFIED BY 'right'")
    with pytest.raises(StorePermissionError, match="'poor'"):
        make("poor", "wrong").prepare()
    with pytest.raises(StorePermissionError, match="'poor'"):
        make("poor", "right").prepare()
    mariadb.query(f"GRANT SELECT ON {schema}.new_mail TO poor@localhost")
    reading = make("poor", "right")
    reading.prepare()
    assert write(reading, message(1)) == [TROUBLE]
    mariadb.query(f"GRANT INSERT ON {schema}.new_mail TO poor@localhost")
    assert write(reading, message(1)) == [STORED]


def test_a_password_is_never_shown() -> None:
    database = Database((Host("localhost"),), "root", "hunter2", "mail")
    assert "hunter2" not in f"{database!r} {database}"
