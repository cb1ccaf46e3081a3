"""How is old mail found and deleted in the mail file of SQLite?"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsmtpd.storage.shelf import ATTACHMENTS, Deleted, Found, SQLShelf

_BUSY_TIMEOUT = 0.5  # seconds that SQLite waits for another's commit; then we do


class SQLiteShelf(SQLShelf):
    """The mail file at `path`, which it does not make."""

    step_seconds = 0.004  # no mail can be stored meanwhile
    has_recipient = True
    recipient_width = None
    is_partitioned = False

    def __init__(self, path: str) -> None:
        super().__init__("new_mail", "?")
        self.opened = 0
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._has_attachments = False

    def ready(self) -> bool:
        """Open the file that is at the path now; False without one."""
        try:
            status = os.stat(self._path)
        except OSError:
            self.close()
            return False
        if self._connection is None or self._file != (status.st_dev, status.st_ino):
            self.close()
            self._connection = _open(self._path)
            self.opened += 1
            self._file = (status.st_dev, status.st_ino)
            tables = {name for (name,) in self._ask("SELECT name FROM sqlite_master")}
            self._has_attachments = ATTACHMENTS in tables
        return True

    def delete(self, rows: Sequence[Found]) -> Deleted:
        """Delete `rows` with their attachments, all or nothing."""
        sql, arguments = self._delete_sql(rows)
        ids = [row.mail_id for row in rows]
        self._ask("BEGIN IMMEDIATE")
        began = time.perf_counter()
        try:
            deleted = self._execute(sql, arguments)
            if self._has_attachments:
                gone = ids if deleted == len(ids) else self._gone(ids)
                self._execute(f"DELETE FROM {ATTACHMENTS} WHERE {self._among(gone)}", gone)
            self._ask("COMMIT")
        except BaseException:
            if self._known.in_transaction:
                self._ask("ROLLBACK")
            raise
        return Deleted(deleted, time.perf_counter() - began)

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def _known(self) -> sqlite3.Connection:
        assert self._connection is not None, "ready() comes first"
        return self._connection

    def _ask(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        return self._known.execute(sql, arguments).fetchall()

    def _execute(self, sql: str, arguments: Sequence[object]) -> int:
        return self._known.execute(sql, arguments).rowcount

    def _gone(self, ids: Sequence[int]) -> list[int]:
        sql = f"SELECT mail_id FROM {self._table} WHERE {self._among(ids)}"
        stayed = {mail_id for (mail_id,) in self._ask(sql, *ids)}
        return [mail_id for mail_id in ids if mail_id not in stayed]


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    # The lock is held for less time without a sync at each commit: a deletion that a power cut
    # undoes is done again, and the next mail's commit syncs what is before it in the WAL.
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection
