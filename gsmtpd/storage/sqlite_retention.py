"""How is old mail deleted from a mail file of SQLite?"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from gsmtpd.complaints import Complaints
from gsmtpd.storage import sqlite
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.retention import Retention, Times, patient, purge
from gsmtpd.storage.shelf import Found
from gsmtpd.storage.sqlite_shelf import SQLiteShelf
from gsmtpd.storage.upkeep import AFTER_TROUBLE, Chore


def sqlite_chore(path: str, times: Times) -> Chore:
    """The chore that deletes old mail from the mail file at `path`."""
    shelf = SQLiteShelf(path)
    return _OnSQLite(shelf, Retention(shelf, times), path)


def purge_sqlite(
    path: str,
    times: Times,
    dry: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Delete mail that is older than `times` say, once; see `purge`. Raises StoreError."""
    shelf = SQLiteShelf(path)
    try:
        if not shelf.ready():
            raise StoreError(f"{path}: no mail file yet; start gsmtpd, it makes one")
        return purge(shelf, times, dry, progress, _is_busy)
    except sqlite3.Error as error:
        raise sqlite.store_error(path, error) from error
    finally:
        shelf.close()


def erase_sqlite(path: str, row: Found) -> bool:
    """Delete one mail from the mail file at `path`; whether it was there. Raises StoreError."""
    shelf = SQLiteShelf(path)
    try:
        if not shelf.ready():
            raise StoreError(f"{path}: no mail file yet; start gsmtpd, it makes one")
        return patient(lambda: shelf.delete([row]).rows > 0, _is_busy)
    except sqlite3.Error as error:
        raise sqlite.store_error(path, error) from error
    finally:
        shelf.close()


class _OnSQLite:
    """`retention` as a chore: what goes wrong is said once and tried again later."""

    name = "keep"

    def __init__(self, shelf: SQLiteShelf, retention: Retention, path: str) -> None:
        self._shelf = shelf
        self._retention = retention
        self._path = path
        self._complaints = Complaints(self.name)

    def step(self) -> float:
        """One step."""
        try:
            pause = self._retention.step()
        except sqlite3.Error as error:
            if _is_busy(error):
                return 0.2
            self._shelf.close()
            self._complaints.say(str(sqlite.store_error(self._path, error)))
            return AFTER_TROUBLE
        self._complaints.over()
        return pause

    def close(self) -> None:
        """Close the file."""
        self._shelf.close()


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
