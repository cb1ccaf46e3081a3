"""Is all mail read, wherever its octets are, and from tables made long ago?"""

from __future__ import annotations

import gzip
import re
import socket
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.heads import HEAD, heads
from gsmtpd.storage.reader import (
    Selection,
    SQLReader,
    StoredAttachment,
    StoredMail,
    UnreadableError,
)
from gsmtpd.storage.schema import statements
from tests.servers import MariaDB

MAIL = (
    b"Delivered-To: b@example.com\r\nReturn-Path: <a@example.org>\r\nSubject: x\r\n\r\n\0\xff\r\n"
)
HELD = MAIL.partition(b"\r\n")[2]
OURS: dict[str, Any] = {
    "date": "2026-11-22 09:19:42", "from": "joe@example.org", "to": "b@example.com",
    "subject": "x", "body": "text", "charset": "utf-8", "mail": MAIL, "spam_score": 0.5,
    "hash": "f" * 32, "content_type": "text/plain", "recipient": "b@example.com", "has_attach": 0,
    "ip_addr": "192.0.2.1", "return_path": "a@example.org", "helo": "client.example", "size": 16,
}  # fmt: skip
STORED = StoredMail(
    1, "2026-11-22 09:19:42", "joe@example.org", "b@example.com", "x", 16, "f" * 32,
    "b@example.com", "a@example.org", "192.0.2.1", "client.example",
)  # fmt: skip
FIRST_VERSION = (
    "mail_id int NOT NULL auto_increment PRIMARY KEY, `date` datetime NOT NULL,"
    " `from` varchar(128) character set latin1 NOT NULL,"
    " `to` varchar(128) character set latin1 NOT NULL, subject varchar(255) NOT NULL,"
    " body text NOT NULL, charset varchar(32) NOT NULL, mail longblob NOT NULL,"
    " spam_score float NOT NULL, hash char(32) NOT NULL, content_type varchar(64) NOT NULL,"
    " recipient varchar(128) NOT NULL, has_attach int NOT NULL, ip_addr varchar(15) NOT NULL,"
    " delivered bit(1) NOT NULL default b'0', attach_info text NOT NULL DEFAULT '',"
    " dkim_valid tinyint default NULL"
)
SECOND_VERSION = (
    "mail_id bigint unsigned NOT NULL auto_increment PRIMARY KEY, `date` datetime NOT NULL,"
    " `from` varchar(256) NOT NULL, `to` varchar(256) NOT NULL, subject varchar(255) NOT NULL,"
    " body text NOT NULL, charset varchar(32) NOT NULL, mail longblob NOT NULL,"
    " spam_score float NOT NULL, hash char(32) NOT NULL, content_type varchar(64) NOT NULL,"
    " recipient varchar(255) NOT NULL, has_attach int NOT NULL, ip_addr varbinary(16) NOT NULL,"
    " return_path varchar(255) NOT NULL, is_tls bit(1) DEFAULT b'0' NOT NULL"
)


class Bodies(dict[str, bytes]):
    """A body store that holds what is in it."""


class Database:
    """A connection, and what is put into it by hand."""

    def __init__(self, connection: Any, mark: str) -> None:
        self.connection = connection
        self.mark = mark
        self.bodies: Bodies | None = Bodies()

    def execute(self, sql: str, *values: object) -> None:
        cursor = self.connection.cursor()
        cursor.execute(sql, values or None) if self.mark == "%s" else cursor.execute(sql, values)
        cursor.close()

    def insert(self, row: Mapping[str, object] = OURS, **changes: object) -> None:
        """A row with those columns."""
        values = dict(row) | changes
        names = ", ".join(f"`{name}`" for name in values)
        marks = ", ".join([self.mark] * len(values))
        self.execute(f"INSERT INTO new_mail ({names}) VALUES ({marks})", *values.values())

    def replace_table(self, columns: str) -> None:
        """Another table in place of ours."""
        for view in ("mail_inbox", "mail_hourly", "mail_domains"):
            self.execute(f"DROP VIEW IF EXISTS {view}")
        self.execute("DROP TABLE new_mail")
        self.execute(f"CREATE TABLE new_mail ({columns})")

    @property
    def reader(self) -> SQLReader:
        return SQLReader(
            self.connection, "new_mail", self.mark, lambda e: StoreError(str(e)), self.bodies
        )


@pytest.fixture
def mysql(mariadb: MariaDB, schema: str) -> Iterator[Database]:
    with mariadb.connect(database=schema, charset="utf8mb4") as connection:
        yield Database(connection, "%s")


@pytest.fixture(params=["sqlite", "mysql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each kind of database, with our tables."""
    if request.param == "mysql":
        yield request.getfixturevalue("mysql")
        return
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in statements("sqlite"):
        connection.execute(statement)
    yield Database(connection, "?")
    connection.close()


def octets(database: Database, mail_id: int = 1) -> bytes:
    found = database.reader.mail(mail_id)
    assert found is not None
    return found[1]


# --- where the octets are -----------------------------------------------------------------------


def test_mail_as_it_is(database: Database) -> None:
    database.insert()
    assert database.reader.mail(1) == (STORED, MAIL)
    assert database.reader.row(1) == STORED
    assert database.reader.text(1) == "text"
    assert database.reader.mail(2) is database.reader.row(2) is None
    assert database.reader.text(2) == ""


def test_mail_that_is_compressed(database: Database) -> None:
    database.insert(mail=zlib.compress(MAIL), mail_encoding="zlib")
    assert octets(database) == MAIL


@pytest.mark.parametrize("store", ["redis", "memcached"])
def test_mail_in_a_body_store(database: Database, store: str) -> None:
    """The field that differs from recipient to recipient is put in front."""
    database.bodies = Bodies({"f" * 32: zlib.compress(HELD)})
    database.insert(mail=b"", mail_encoding=store)
    database.insert(mail=b"", mail_encoding=store, recipient="c@example.com")
    assert octets(database) == MAIL
    assert octets(database, 2) == b"Delivered-To: c@example.com\r\n" + HELD


def test_mail_that_is_gone(database: Database) -> None:
    database.insert(mail=b"", mail_encoding="redis")
    with pytest.raises(UnreadableError, match=r"^mail 1: .* redis for its ttl, and are gone$"):
        database.reader.mail(1)
    assert database.reader.row(1) == STORED
    assert database.reader.text(1) == "text"


def test_a_body_store_that_nobody_names(database: Database) -> None:
    database.bodies = None
    database.insert(mail=b"", mail_encoding="memcached")
    with pytest.raises(UnreadableError, match=r"memcached.*set \[store\] \[\[body\]\]"):
        database.reader.mail(1)


def test_a_body_store_that_is_away(database: Database) -> None:
    class Away(Bodies):
        def get(self, key: str, default: Any = None) -> Any:
            raise StoreError("redis: no answer")

    database.bodies = Away()
    database.insert(mail=b"", mail_encoding="redis")
    with pytest.raises(UnreadableError, match=r"^mail 1: redis: no answer$"):
        database.reader.mail(1)


@pytest.mark.parametrize("broken", [b"", b"x", zlib.compress(MAIL)[:-1], b"\x78\x9c" + MAIL])
def test_octets_that_are_damaged(database: Database, broken: bytes) -> None:
    database.insert(mail=broken, mail_encoding="zlib")
    with pytest.raises(UnreadableError, match="mail 1: its bytes are damaged"):
        database.reader.mail(1)


def test_a_form_of_another_version(database: Database) -> None:
    database.insert(mail_encoding="zstd")
    with pytest.raises(UnreadableError, match="'zstd'"):
        database.reader.mail(1)


@pytest.mark.parametrize("word", ["gzencode", "redis", "memcached", "zlib"])
def test_a_text_that_is_a_marker(database: Database, word: str) -> None:
    """Anybody may send just this word."""
    database.insert(body=word)
    assert octets(database) == MAIL


# --- old tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [FIRST_VERSION, SECOND_VERSION], ids=["version 1", "version 2"])
def test_a_table_of_guerrilla_smtpd(mysql: Database, columns: str) -> None:
    mysql.replace_table(columns)
    known = {name: value for name, value in OURS.items() if name in columns.replace("`", " ")}
    mysql.insert(known, body="gzencode", mail=zlib.compress(MAIL), subject="\xfc")
    mysql.insert(known, body="", mail=MAIL)
    mysql.insert(known, body="redis", mail=b"")
    lacking = {"size": 0, "helo": "", "return_path": "" if "return_path" not in columns else
               "a@example.org"}  # fmt: skip
    first = STORED._replace(**lacking, subject="\xfc")
    assert mysql.reader.recent(3)[0] == mysql.reader.after(0)[0] == first
    assert mysql.reader.mail(1) == (first, MAIL)
    assert octets(mysql, 2) == MAIL
    with pytest.raises(UnreadableError, match="redis"):
        mysql.reader.mail(3)
    mysql.bodies = Bodies({"f" * 32: zlib.compress(MAIL)})
    assert octets(mysql, 3) == MAIL
    assert list(mysql.reader.ids(Selection())) == [1, 2, 3]
    assert mysql.reader.attachments(1) == []


def test_gzip_is_read_as_well(database: Database) -> None:
    database.insert(body="gzencode", mail=gzip.compress(MAIL))
    assert octets(database) == MAIL


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (socket.inet_pton(socket.AF_INET, "192.0.2.1"), "192.0.2.1"),
        (socket.inet_pton(socket.AF_INET6, "2001:db8::1"), "2001:db8::1"),
        (b"192.0.2.1", "192.0.2.1"),
        (b"2001:db8::12:345", "2001:db8::12:345"),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_addresses_of_the_second_version(mysql: Database, stored: bytes, said: str) -> None:
    mysql.replace_table(SECOND_VERSION)
    mysql.insert({name: OURS[name] for name in OURS if name not in ("helo", "size")},
                 ip_addr=stored)  # fmt: skip
    assert mysql.reader.recent(1)[0].ip_addr == said


def test_a_table_with_the_mail_only(database: Database) -> None:
    key = "INTEGER PRIMARY KEY" if database.mark == "?" else "int PRIMARY KEY AUTO_INCREMENT"
    database.replace_table(f"mail_id {key}, mail longblob, subject text")
    database.insert({"mail": MAIL, "subject": None})
    assert database.reader.recent(9) == [StoredMail(1, "", "", "", "", 0, "", "", "", "", "")]
    assert octets(database) == MAIL
    assert database.reader.text(1) == ""
    assert list(database.reader.ids(Selection())) == [1]
    for selection, column in ((Selection(domain="x"), "recipient"), (Selection(since="x"), "date")):
        with pytest.raises(StoreError, match=f"no column {column}"):
            list(database.reader.ids(selection))


def test_a_mail_that_is_a_text(mysql: Database) -> None:
    mysql.replace_table("mail_id int PRIMARY KEY, mail longtext")
    mysql.insert({"mail_id": 1, "mail": "Subject: \xfc\r\n"})
    assert octets(mysql) == "Subject: \xfc\r\n".encode()


def test_a_table_without_numbers(database: Database) -> None:
    database.replace_table("mail longblob")
    with pytest.raises(StoreError, match="no column mail_id"):
        database.reader.recent(1)


def test_no_table(database: Database) -> None:
    database.replace_table("mail_id int")
    database.execute("DROP TABLE new_mail")
    with pytest.raises(StoreError, match="new_mail"):
        database.reader.recent(1)


# --- attachments --------------------------------------------------------------------------------


def test_attachments(database: Database) -> None:
    names = "mail_id, position, filename, content_type, size, sha256"
    for row in (
        "7, 2, 'b', 'image/png', 5, '00'",
        "7, 1, 'a', 'text/csv', 4, 'ff'",
        "8, 1, 'c', '', 0, ''",
    ):
        database.execute(f"INSERT INTO mail_attachment ({names}) VALUES ({row})")
    assert database.reader.attachments(7) == [
        StoredAttachment(1, "a", "text/csv", 4, "ff"),
        StoredAttachment(2, "b", "image/png", 5, "00"),
    ]
    assert database.reader.attachments(9) == []
    database.execute("DROP TABLE mail_attachment")
    assert database.reader.attachments(7) == []


# --- choosing -----------------------------------------------------------------------------------

CHOSEN = [
    ("Joe@example.com", "2026-01-01 00:00:00"),
    ("joe@example.com", "2026-01-03 00:00:00"),
    ("jo\xe9@example.com", "2026-01-02 00:00:00"),
    ("joe@sub.example.com", "2026-01-04 00:00:00"),
    ("joe@exampleXcom", "2026-01-05 00:00:00"),
    ('"a@b"@example.com', "2026-01-05 00:00:01"),
]


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), [1, 2, 3, 4, 5, 6]),
        (Selection(recipient="JOE@Example.COM"), [1, 2]),
        (Selection(recipient="jo\xe9@example.com"), [3]),
        (Selection(recipient="JO\xc9@example.com"), [3]),
        (Selection(recipient="%@example.com"), []),
        (Selection(recipient='"A@b"@example.com'), [6]),
        (Selection(domain="Example.com"), [1, 2, 3, 6]),
        (Selection(domain="com"), []),
        (Selection(since="2026-01-03 00:00:00"), [2, 4, 5, 6]),
        (Selection(until="2026-01-03 00:00:00"), [1, 3]),
        (Selection(since="2026-01-02 00:00:00", until="2026-01-05 00:00:00"), [2, 3, 4]),
        (Selection(since="2027-01-01 00:00:00"), []),
        (Selection(recipient="joe@example.com", since="2026-01-02 00:00:00"), [2]),
        (Selection(recipient="joe@example.com", domain="example.net"), []),
        (Selection(ids=[5, 2, 99, 2]), [2, 5]),
        (Selection(ids=[5, 2], domain="example.com"), [2]),
        (Selection(ids=[]), []),
    ],
)
def test_which_are_meant(database: Database, selection: Selection, wanted: list[int]) -> None:
    for recipient, date in CHOSEN:
        database.insert(recipient=recipient, date=date)
    assert list(database.reader.ids(selection)) == wanted


def test_an_empty_table(database: Database) -> None:
    assert list(database.reader.ids(Selection())) == []
    assert list(database.reader.ids(Selection(recipient="b@example.com"))) == []


def test_gaps_and_what_comes_meanwhile(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsmtpd.storage.reader._STEP", 3)
    numbers = [1, 2, 3, 5, 8, 13, 10**12, 10**12 + 1, 2**62]
    for number in numbers:
        database.insert(mail_id=number)
    found = database.reader.ids(Selection(domain="example.com"))
    assert next(found) == 1
    database.insert(mail_id=2**62 + 1)
    database.execute("DELETE FROM new_mail WHERE mail_id = 8")
    assert [1, *found] == [number for number in numbers if number != 8]


# --- for an address -------------------------------------------------------------------------------


def for_address(database: Database, address: str, limit: int = 100) -> list[int]:
    return [mail.mail_id for mail in database.reader.for_address(address, limit)]


def test_mail_for_an_address(database: Database) -> None:
    own = {"recipient": "Bob@example.com", "to": "bob@example.com"}
    other = {"recipient": "x@example.com", "to": "x@example.com"}
    alias = {"recipient": "info@example.com", "to": "BOB@example.com"}
    tagged = {"recipient": "bob+tag@example.com", "to": "bob@example.com"}
    for row in (own, other, alias, tagged, other, own):
        database.insert(**row)
    assert for_address(database, "bob@Example.com") == [1, 3, 4, 6]
    assert for_address(database, "bob@example.com", 2) == [4, 6]
    assert for_address(database, "INFO@example.com") == [3]
    assert for_address(database, "bob+tag@example.com", 1) == [4]
    assert for_address(database, "nobody@example.com") == []


def test_an_address_is_no_pattern(database: Database) -> None:
    names = ("a_b", "axb", "a%b", "a!b", "a\\b", "'")
    for name in names:
        database.insert(recipient=f"{name}@example.com", to="x@example.com")
    for number, name in enumerate(names, 1):
        assert for_address(database, f"{name}@example.com") == [number]
    for pattern in ("%", "a_b@example.c_m", "_x_@example.com", ""):
        assert for_address(database, pattern) == []


def test_an_address_is_looked_up_in_the_indexes(database: Database) -> None:
    """What it costs is not to grow with the mail that others have."""
    for number in range(2000):
        database.insert(recipient=f"u{number}@example.com", to=f"u{number}@example.com")
    asked: list[tuple[str, tuple[object, ...]]] = []
    reader = database.reader
    query = reader.rows.query

    def spy(sql: str, *values: object) -> list[tuple[Any, ...]]:
        asked.append((sql, values))
        return query(sql, *values)

    reader.rows.query = spy  # type: ignore[method-assign]
    assert [mail.mail_id for mail in reader.for_address("u7@example.com", 20)] == [8]
    asked = [(sql, values) for sql, values in asked if sql.startswith("SELECT")]
    assert len(asked) == 3
    for (sql, values), name in zip(asked, ("recipient", "to"), strict=False):
        if database.mark == "?":
            plan = " ".join(map(str, query(f"EXPLAIN QUERY PLAN {sql}", *values)))
            assert f"SEARCH new_mail USING COVERING INDEX new_mail_{name} " in plan
        else:
            plan = " ".join(map(str, query(f"EXPLAIN {sql}", *values)))
            assert re.search(f"'(range|ref)', '{name}', '{name}'", plan), plan


def test_an_old_table_has_what_it_has(database: Database) -> None:
    key = "INTEGER PRIMARY KEY" if database.mark == "?" else "int PRIMARY KEY AUTO_INCREMENT"
    database.replace_table(f"mail_id {key}, mail longblob, `to` varchar(255)")
    database.insert({"mail": MAIL, "to": "bob@example.com"})
    assert for_address(database, "bob@example.com") == [1]
    database.replace_table(f"mail_id {key}, mail longblob")
    database.insert({"mail": MAIL})
    assert for_address(database, "bob@example.com") == []


# --- how mail begins ----------------------------------------------------------------------------


def beginnings(database: Database) -> dict[int, bytes]:
    """What lists know of the octets of all mail."""
    reader = database.reader
    return heads(reader.rows, reader.recent(100))


def test_how_mail_begins(database: Database) -> None:
    long = b"X: y\r\n\r\n" + bytes(range(256)) * 200
    database.insert()
    database.insert(mail=zlib.compress(MAIL), mail_encoding="zlib")
    database.insert(mail=gzip.compress(MAIL), body="gzencode")
    database.insert(mail=long)
    database.insert(mail=zlib.compress(long), mail_encoding="zlib")
    database.insert(mail=b"x-first: 1\r\n\r\n")
    head = long[:HEAD]
    assert beginnings(database) == {
        1: MAIL, 2: MAIL, 3: MAIL, 4: head, 5: head, 6: b"x-first: 1\r\n\r\n"
    }  # fmt: skip


def test_how_mail_begins_that_is_elsewhere_or_damaged(database: Database) -> None:
    database.insert(mail=b"", mail_encoding="redis")
    database.insert(mail=b"broken", mail_encoding="zlib")
    assert beginnings(database) == {1: b"", 2: b""}


def test_large_mail_is_not_read_for_its_beginning(database: Database) -> None:
    database.insert(size=(1 << 20) + 1)
    for _ in range(10):
        database.insert(size=1 << 20)
    assert sorted(beginnings(database)) == [*range(2, 10)]


def test_mail_of_unknown_size_is_not_read_for_its_beginning(mysql: Database) -> None:
    mysql.replace_table(SECOND_VERSION)
    mysql.insert({name: OURS[name] for name in OURS if name not in ("helo", "size")}, ip_addr=b"x")
    assert beginnings(mysql) == {}
