"""How is an SQLite file opened, and which file is it? What the mail file and the spool share."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence


def open_wal(path: str, timeout: float, pragmas: Sequence[str] = ()) -> sqlite3.Connection:
    """A connection in WAL mode to the file at `path`, made where it is missing.

    Each connection belongs to one thread, but for its end. timeout: seconds to wait for another
    process's commit. pragmas: settings that come first, e.g.
    "page_size=4096". Raises sqlite3.Error.
    """
    connection = sqlite3.connect(
        path, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    try:
        for pragma in (*pragmas, "journal_mode=WAL"):
            _set(connection, pragma, timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: sqlite3.Connection, pragma: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute(f"PRAGMA {pragma}")
            return
        except sqlite3.OperationalError as error:
            # SQLite's own timeout does not cover this: another process is opening a new file.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def folder_of(path: str) -> str:
    """The directory that `path` is in."""
    return os.path.dirname(os.path.abspath(path))


def identity(path: str) -> tuple[int, int] | None:
    """Which file is at `path`; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
