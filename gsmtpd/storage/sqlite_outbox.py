"""How is the outbox reached that is in the mail file of SQLite?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gsmtpd.storage import sqlite
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.reader import Bodies, MailReader, SQLReader
from gsmtpd.storage.sqlite_file import identity


class SQLiteSession:
    """A connection to the mail file at `path`, for one thread. All methods raise StoreError."""

    mark = "?"
    exact = " COLLATE BINARY"
    table = "new_mail"

    def __init__(self, path: str, bodies: Bodies | None = None) -> None:
        self._path = path
        self._bodies = bodies
        self._connection: sqlite3.Connection | None = None
        self._file: object = None
        self._reader: MailReader | None = None  # it knows the columns

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows that the statement finds."""
        with self._explained():
            return self._connected().execute(sql, arguments).fetchall()

    def execute(self, sql: str, *arguments: object) -> int:
        """How many rows the statement changed."""
        with self._explained():
            return self._connected().execute(sql, arguments).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # Another's file may be at the path by now; closing undoes as well.
            if self._connection is not None and self._connection.in_transaction:
                self.close()
            raise

    def reader(self) -> MailReader:
        """Reads mail over the same connection."""
        with self._explained():
            connection = self._connected()
        if self._reader is None:
            reader = SQLReader(connection, self.table, self.mark, self._explain, self._bodies)
            self._reader = reader
        return self._reader

    def close(self) -> None:
        """Close the file; the next use opens it."""
        connection, self._connection, self._reader = self._connection, None, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code != sqlite3.SQLITE_BUSY:
                self.close()
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> StoreError:
        return sqlite.store_error(self._path, error)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._connection.in_transaction:
            return self._connection
        if self._connection is None or self._file != identity(self._path):
            self.close()
            # What a power cut undoes here is only done again: no sync at each commit.
            self._connection = sqlite.connect(self._path, durable=False)
            self._file = identity(self._path)
        return self._connection
