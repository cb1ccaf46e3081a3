"""A mail table in either database, what is put there, and how each query on it is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql

from gsmtpd.storage import mysql, sqlite
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_retention import erase_mysql
from gsmtpd.storage.reader import SQLReader
from gsmtpd.storage.sqlite_retention import erase_sqlite
from tests.servers import MariaDB

ROW: dict[str, Any] = {
    "date": "2026-11-22 09:19:42", "from": "joe@example.org", "to": "b@example.com",
    "subject": "x", "body": "text", "charset": "utf-8", "mail": b"Subject: x\r\n\r\n",
    "spam_score": 0.5, "hash": "f" * 32, "content_type": "text/plain",
    "recipient": "b@example.com", "has_attach": 0, "ip_addr": "192.0.2.1",
    "return_path": "a@example.org", "helo": "client.example", "size": 16,
}  # fmt: skip


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MailTable:
    """A table of our schema, and a connection to it that writes."""

    def __init__(self, where: Path | tuple[MariaDB, str]) -> None:
        self._where = where
        self.is_sqlite = isinstance(where, Path)
        self.mark = "?" if self.is_sqlite else "%s"
        self._connections: list[Any] = []
        self.connection = self.connect()

    def connect(self) -> Any:
        """Another connection that writes, each statement a transaction until it says BEGIN."""
        made: Any
        if isinstance(self._where, Path):
            made = sqlite.connect(str(self._where))
        else:
            server, name = self._where
            made = server.connect(database=name, charset="utf8mb4")
        self._connections.append(made)
        return made

    def execute(self, sql: str, *values: object, on: Any = None) -> int:
        """The id that a row was given."""
        cursor = (on or self.connection).cursor()
        cursor.execute(sql, values) if values else cursor.execute(sql)
        number = int(cursor.lastrowid or 0)
        cursor.close()
        return number

    def insert(self, on: Any = None, to: str = "", **changes: object) -> int:
        """A row like ROW; its id. to: the address in both columns."""
        row = ROW | ({"to": to, "recipient": to} if to else {}) | changes
        names = ", ".join(f"`{name}`" for name in row)
        marks = ", ".join([self.mark] * len(row))
        return self.execute(
            f"INSERT INTO new_mail ({names}) VALUES ({marks})", *row.values(), on=on
        )

    def fill(self, rows: list[dict[str, object]]) -> None:
        """Many rows like ROW, in one transaction."""
        self.execute("BEGIN")
        for row in rows:
            self.insert(**{"to": "", **row})  # type: ignore[arg-type]
        self.execute("COMMIT")

    def finder(self) -> Finder:
        """What finds mail there, over a connection of its own."""
        if isinstance(self._where, Path):
            path = str(self._where)
            return Finder(sqlite.open_reader(path), lambda row: erase_sqlite(path, row))
        server, name = self._where
        host = Host("", unix_socket=str(server.socket))
        database = Database((host,), server.user, server.password, name)
        return Finder(mysql.open_reader(database), lambda row: erase_mysql(database, row))

    def close(self) -> None:
        """Close all connections: a transaction that is open would keep the table."""
        for connection in self._connections:
            with suppress(pymysql.MySQLError):  # it may be closed
                connection.close()


@contextmanager
def asked(reader: SQLReader) -> Iterator[list[tuple[str, tuple[object, ...]]]]:
    """The queries that the reader's connection is asked meanwhile, with their values."""
    heard: list[tuple[str, tuple[object, ...]]] = []
    query = reader.rows.query

    def spy(sql: str, *values: object) -> list[tuple[Any, ...]]:
        if sql.startswith("SELECT"):
            heard.append((sql, values))
        return query(sql, *values)

    reader.rows.query = spy  # type: ignore[method-assign]
    try:
        yield heard
    finally:
        reader.rows.query = query  # type: ignore[method-assign]


def reads_too_much(reader: SQLReader, sql: str, values: tuple[object, ...]) -> str:
    """Why that query may read all rows, "" where it does not."""
    in_order = "WHERE" not in sql and "ORDER BY mail_id DESC LIMIT" in sql
    if reader.rows.is_sqlite:
        steps = [str(row[3]) for row in reader.rows.query(f"EXPLAIN QUERY PLAN {sql}", *values)]
        scans = [step for step in steps if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"]
        return "" if in_order or not scans else f"{sql}: {steps}"
    for row in reader.rows.query(f"EXPLAIN {sql}", *values):
        kind, extra = str(row[3]), str(row[-1])
        if kind == "ALL" or (kind == "index" and not in_order) or "filesort" in extra:
            return f"{sql}: {row}"
    return ""
