"""How do chores talk to MySQL or MariaDB, and what if that fails?

One connection for all of them, which waits for no lock longer than a second.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymysql

from gsmtpd.complaints import Complaints
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import (
    ALTERED,
    DENIED,
    LOST,
    READ_ONLY,
    RETRY,
    Database,
    code_of,
    explain,
)
from gsmtpd.storage.mysql_hosts import Hosts
from gsmtpd.storage.upkeep import AFTER_DENIED, AFTER_TROUBLE

NOT_ROWS = 1665  # a statement-based binary log, which READ COMMITTED cannot be written to
_AFTER_LOSS = 5.0  # seconds
_AFTER_CONFLICT = 1.0
_IDLE = 600  # seconds; a host that is gone without a word loses its lock after that
_MAX_LOCK_NAME = 64  # characters, MySQL's limit


class Link:
    """A connection of its own to `database`, shared by the chores of one thread.

    Made when it is needed. No statement waits longer than a second for a lock, and reads take
    none. All methods raise pymysql.err.Error.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.made = 0  # connections so far: what was learnt through an earlier one may be old
        self._hosts = Hosts(database)
        self._connection: Any = None
        self._isolation = "READ COMMITTED"
        self._is_ours = False  # the lock of `alone`

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows that the statement finds."""
        with self._connected().cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall())

    def value(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row, None where there is none."""
        found = self.rows(sql, *arguments)
        return found[0][0] if found else None

    def cursor(self) -> Any:
        """A cursor of the driver's."""
        return self._connected().cursor()

    def execute(self, sql: str, *arguments: object) -> int:
        """How many rows the statement changed."""
        with self._connected().cursor() as cursor:
            return int(cursor.execute(sql, arguments or None))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it."""
        connection = self._connected()
        connection.begin()
        try:
            yield
            connection.commit()
        except BaseException:
            with suppress(pymysql.MySQLError, OSError):
                connection.rollback()
            raise

    def alone(self) -> bool:
        """Whether no other gsmtpd does the chores of this mail table; then none will meanwhile.

        Two at the same rows do no harm but hinder each other.
        """
        self._connected()
        if not self._is_ours:
            try:
                held = self.value("SELECT GET_LOCK(%s, 0)", lock_name(self.database))
            except pymysql.MySQLError as error:
                if code_of(error) in LOST:
                    raise
                held = None  # some clusters have no such locks: then every host may
            self._is_ours = held != 0
        return self._is_ours

    def recover(self, error: Exception) -> None:
        """Make the link fit for another try after `error`."""
        code = code_of(error)
        if code == NOT_ROWS:
            self._isolation = "REPEATABLE READ"
        elif code in READ_ONLY and self._connection is not None:
            self._hosts.failed(self._connection.to_host, error)
        if code in RETRY | DENIED:
            return
        self.close()

    def close(self) -> None:
        """Close the connection; the next use makes another."""
        connection, self._connection = self._connection, None
        self._is_ours = False
        if connection is not None:
            with suppress(pymysql.MySQLError, OSError):
                connection.close()

    def end(self) -> None:
        """Close the connection for good: no host is tried any more."""
        self.close()
        self._hosts.close()

    def _connected(self) -> Any:
        if self._connection is None:
            connection = self._hosts.connect()
            with connection.cursor() as cursor:
                cursor.execute(
                    "SET SESSION lock_wait_timeout=1, innodb_lock_wait_timeout=1,"
                    f" wait_timeout={_IDLE}"
                )
                cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {self._isolation}")
            self._connection = connection
            self.made += 1
        return self._connection


def lock_name(database: Database) -> str:
    """What GET_LOCK calls the right to do the chores of a mail table."""
    name = f"gsmtpd {database.database}.{database.table}"
    if len(name) > _MAX_LOCK_NAME:
        name = f"gsmtpd {hashlib.sha256(name.encode()).hexdigest()[:50]}"
    return name


class OnMySQL:
    """A chore by `step` on a MySQL server: what goes wrong is said once and tried again later."""

    def __init__(self, name: str, link: Link, step: Callable[[], float]) -> None:
        self.name = name
        self._link = link
        self._step = step
        self._complaints = Complaints(name)
        self._failures = 0  # in a row

    def step(self) -> float:
        """One step of the chore."""
        try:
            pause = self._step()
        except StoreError as error:  # the table is not fit for it
            self._complaints.say(str(error))
            return AFTER_DENIED
        except (pymysql.MySQLError, OSError) as error:
            self._failures += 1
            self._link.recover(error)
            return self._after(error)
        self._failures = 0
        self._complaints.over()
        return pause

    def close(self) -> None:
        """Close the link."""
        self._link.close()

    def _after(self, error: Exception) -> float:
        """Seconds to wait after `error`, which is said where somebody should know."""
        code = code_of(error)
        if code in RETRY:
            return _AFTER_CONFLICT * random.uniform(0.5, 1.5)
        if self._failures == 1 and code in LOST | ALTERED | {NOT_ROWS}:
            return 0.1  # an idle connection that was cut, a table that is another now
        if code in DENIED:
            self._complaints.say(f"{_text(error)}; GRANT that")
            return AFTER_DENIED
        self._complaints.say(explain(error, self._link.database))
        return _AFTER_LOSS if code in LOST | READ_ONLY else AFTER_TROUBLE


def _text(error: Exception) -> str:
    """The server's own words."""
    return str(error.args[1] if len(error.args) > 1 else error)
