"""Does the administrator's own SQL find a row in an SQLite file?"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable


class Queries:
    """Statements with one parameter, for any number of threads.

    connect: gives a connection to the file, for the thread that calls it; raises StoreError.
    identity: tells that file from another that takes its place.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], identity: Callable[[], object]
    ) -> None:
        self._connect = connect
        self._identity = identity
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    def finds(self, sql: str, value: str) -> bool:
        """Whether there is a row for `value`. Raises sqlite3.Error or StoreError."""
        connection = self._connection()
        try:
            return connection.execute(sql, (value,)).fetchone() is not None
        except sqlite3.Error:
            self._local.file = None  # it is opened afresh, as it may be mended
            raise

    def _connection(self) -> sqlite3.Connection:
        """That of this thread, to the file that is there now."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.file == self._identity():
            return connection
        if connection is not None:
            self._connections.remove(connection)
        self._local.connection = None
        connection = self._local.connection = self._connect()
        self._local.file = self._identity()
        connection.execute("PRAGMA query_only=ON")
        self._connections.append(connection)
        return connection

    def interrupt(self) -> None:
        """End what is being asked. Not by close: that would wait, and nobody runs meanwhile."""
        for connection in [*self._connections]:
            connection.interrupt()
