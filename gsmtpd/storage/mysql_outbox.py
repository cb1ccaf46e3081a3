"""How is the outbox reached that is in a database of MySQL or MariaDB?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pymysql

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import LOST, RETRY, Database, code_of, store_error
from gsmtpd.storage.mysql_link import Link
from gsmtpd.storage.reader import Bodies, MailReader, SQLReader

_TRIES = 3
_Found = TypeVar("_Found")


class MySQLSession:
    """A connection to `database`, for one thread. All methods raise StoreError."""

    mark = "%s"
    exact = " COLLATE utf8mb4_bin"

    def __init__(self, database: Database, bodies: Bodies | None = None) -> None:
        self.table = database.table
        self._database = database
        self._bodies = bodies
        self._link = Link(database)
        self._within = False
        self._reader: MailReader | None = None  # it knows the columns

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows that the statement finds."""
        return self._tried(lambda: self._link.rows(sql, *arguments))

    def execute(self, sql: str, *arguments: object) -> int:
        """How many rows the statement changed."""
        return self._tried(lambda: self._link.execute(sql, *arguments))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it."""
        self.rows("SELECT 1")  # over a connection that may have been cut while nothing was done
        try:
            with self._link.transaction():
                self._within = True
                yield
        except (pymysql.MySQLError, OSError) as error:
            raise self._explain(error) from error
        finally:
            self._within = False

    def reader(self) -> MailReader:
        """Reads mail over the same connection."""
        if self._reader is None:
            reader = SQLReader(self._link, self.table, self.mark, self._explain, self._bodies)
            self._reader = reader
        return self._reader

    def close(self) -> None:
        """Close the connection; the next use makes another."""
        self._reader = None
        self._link.close()

    def _tried(self, ask: Callable[[], _Found]) -> _Found:
        """What `ask` finds; again where that can help, unless a transaction is open."""
        for left in reversed(range(_TRIES)):
            try:
                return ask()
            except (pymysql.MySQLError, OSError) as error:
                if self._within or not left or code_of(error) not in LOST | RETRY:
                    raise self._explain(error) from error
                self._link.recover(error)
        raise AssertionError("the last try ends this")

    def _explain(self, error: Exception) -> StoreError:
        self._reader = None
        self._link.recover(error)
        return store_error(error, self._database)
