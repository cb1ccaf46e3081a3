"""What mail has a peer kept, seen from outside?"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Protocol

from tests.servers import MariaDB


class Store(Protocol):
    """The mail a peer has kept, seen from outside."""

    def rows(self) -> int:
        """How many messages are there."""

    def clear(self) -> None:
        """Remove them all."""


class MySQLTable:
    """A table in MariaDB."""

    def __init__(self, database: MariaDB, schema: str, table: str) -> None:
        self._database = database
        self._schema = schema
        self._table = table

    def rows(self) -> int:
        """How many there are."""
        counted = self._database.query(
            f"SELECT COUNT(*) FROM `{self._table}`", database=self._schema
        )
        return int(counted[0][0])

    def clear(self) -> None:
        """Remove them all."""
        self._database.query(f"TRUNCATE TABLE `{self._table}`", database=self._schema)


class SQLiteTable:
    """A table in an SQLite file."""

    def __init__(self, path: Path, table: str) -> None:
        self._path = path
        self._table = table

    def rows(self) -> int:
        """How many there are."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as file:
            counted = file.execute(f'SELECT COUNT(*) FROM "{self._table}"').fetchone()
        return int(counted[0])

    def clear(self) -> None:
        """Remove them all."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as file:
            file.execute(f'DELETE FROM "{self._table}"')
            file.commit()
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
