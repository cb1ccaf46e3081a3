"""Does the fault lab read what is stored, in each way that gsmtpd may keep it?"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsmtpd.faultlab.stored import (
    MySQLAddress,
    StoredError,
    StoredRow,
    mysql_address,
    mysql_rows,
    sqlite_rows,
)
from tests.servers import MariaDB, free_port

COLUMNS = "hash, recipient, mail, size, content_hash, mail_encoding"
Rows = Callable[[str], list[StoredRow]]
Do = Callable[..., object]


@pytest.fixture(params=["mysql", "sqlite"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Do, Rows]]:
    """A function that executes statements, and one that reads the rows of a table."""
    if request.param == "sqlite":
        path = tmp_path / "mail.db"
        file = sqlite3.connect(path, isolation_level=None)
        yield file.execute, lambda name: [*sqlite_rows(path, name)]
        file.close()
        return
    mariadb: MariaDB = request.getfixturevalue("mariadb")
    mariadb.create_database("faultlab_stored")

    def do(sql: str, values: tuple[object, ...] = ()) -> object:
        return mariadb.query(sql.replace("?", "%s"), values, database="faultlab_stored")

    def read(name: str) -> list[StoredRow]:
        socket = str(mariadb.socket)
        address = MySQLAddress("x", 0, socket, "root", "", "faultlab_stored", name)
        return [*mysql_rows([address])]

    yield do, read
    mariadb.query("DROP DATABASE faultlab_stored")


def test_rows_as_they_are_kept(table: tuple[Do, Rows]) -> None:
    do, read = table
    do(
        "CREATE TABLE t (hash VARCHAR(32), recipient VARCHAR(50), mail LONGBLOB, size INT,"
        " content_hash VARCHAR(64), mail_encoding VARCHAR(16))"
    )
    octets = bytes(range(256))
    for id_, mail, encoding in (
        ("1", octets, ""),
        ("2", zlib.compress(octets), "zlib"),
        ("3", b"", "redis"),
        ("4", b"no zlib", "zlib"),
    ):
        values = (id_, "a@example.com", mail, 256, "ab", encoding)
        do(f"INSERT INTO t ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)
    assert sorted(read("t")) == [
        StoredRow("1", "a@example.com", octets, 256, "ab", ""),
        StoredRow("2", "a@example.com", octets, 256, "ab", "zlib"),
        StoredRow("3", "a@example.com", None, 256, "ab", "redis"),
        StoredRow("4", "a@example.com", b"", 256, "ab", "zlib"),
    ]


def test_an_older_table(table: tuple[Do, Rows]) -> None:
    do, read = table
    do("CREATE TABLE t (mail LONGBLOB, recipient VARCHAR(50), hash VARCHAR(32))")
    for mail in (b"Delivered-To", zlib.compress(b"packed")):
        do("INSERT INTO t (mail, recipient, hash) VALUES (?, ?, ?)", (mail, "a", "1"))
    assert [row[:5] for row in read("t")] == [
        ("1", "a", b"Delivered-To", None, None),
        ("1", "a", b"packed", None, None),
    ]


def test_what_cannot_be_read(table: tuple[Do, Rows]) -> None:
    do, read = table
    do("CREATE TABLE t (hash VARCHAR(32), mail LONGBLOB)")
    with pytest.raises(StoredError, match="table t has no column recipient"):
        read("t")
    with pytest.raises(StoredError):
        read("missing")
    with pytest.raises(StoredError, match="is no name of a table"):
        read("t` WHERE 1 --")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoredError, match="unable to open"):
        next(sqlite_rows(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()


def test_no_server_and_the_next_one(mariadb: MariaDB) -> None:
    away = MySQLAddress("127.0.0.1", free_port(), None, "root", "", "mysql", "none")
    with pytest.raises(StoredError, match=r"mysql\.none at 127\.0\.0\.1:\d+"):
        next(mysql_rows([away]))
    there = away._replace(port=mariadb.port)
    with pytest.raises(StoredError, match="has no column|doesn't exist"):
        next(mysql_rows([away, there]))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mysql:///d", ("127.0.0.1", 3306, None, "gsmtpd", "", "d", "new_mail")),
        ("mysql://u:p%40@h:1/d/t", ("h", 1, None, "u", "p@", "d", "t")),
        ("mysql://u@/d?/run/s", ("127.0.0.1", 3306, "/run/s", "u", "", "d", "new_mail")),
    ],
)
def test_urls(url: str, address: tuple[object, ...]) -> None:
    assert mysql_address(url) == address


@pytest.mark.parametrize(
    "url", ["", "d", "mysql://h", "http://h/d", "mysql://h/d/t/x", "mysql://h:x/d"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="mysql:|Port"):
        mysql_address(url)
