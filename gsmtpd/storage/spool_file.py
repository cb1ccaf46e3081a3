"""How is the file of the spool made and opened, and who may have its directory?"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat

from gsmtpd.storage.base import StoreError, StorePermissionError
from gsmtpd.storage.sqlite_file import folder_of, open_wal

_log = logging.getLogger(__name__)

NAME = "spool.db"
PAGE = 4096  # octets
_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's commit
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_WAL_LEFT = 4 * 1024 * 1024  # octets that the journal keeps once its content is in the file
# The content comes last: what stands before it is read without it.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS message (seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    " id TEXT NOT NULL UNIQUE, received_at REAL NOT NULL, weight INTEGER NOT NULL,"
    " tries INTEGER NOT NULL DEFAULT 0, aside REAL, facts TEXT NOT NULL, content BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS aside ON message (aside) WHERE aside IS NOT NULL",
)


def prepare(folder: str) -> None:
    """Make the spool, and its directory for us alone, where they are missing. Raises StoreError.

    The directory above must be there. What is made is synced, so a power cut leaves it there. A
    file that is damaged, or for which there is no room now, is logged: mail is taken without it.
    """
    try:
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            _sync(folder_of(folder))
        _check_rights(folder)
    except OSError as error:
        raise spool_error(folder, error) from error
    try:
        open_file(folder, 0).close()
    except (sqlite3.Error, OSError) as error:
        told = spool_error(folder, error)
        if isinstance(told, StorePermissionError) or not _may_be_opened(folder):
            raise told from error
        _log.warning("%s; gsmtpd goes on without it until that is mended", told)


def check(folder: str) -> None:
    """Whether `prepare` would succeed, without making anything. Raises StoreError."""
    above = folder_of(folder)
    if os.path.isdir(folder):
        _check_rights(folder)
        if not _writable(folder):
            raise spool_error(folder, PermissionError())
    elif os.path.exists(folder) or not os.access(above, os.W_OK | os.X_OK):
        raise spool_error(folder, PermissionError())


def spool_error(folder: str, error: Exception) -> StoreError:
    """`error` as the StoreError for it."""
    what = f"spool {folder}"
    above = folder_of(folder)
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            return StoreError(f"{what}: is no directory; set [store] spool to one")
        if not os.path.isdir(above):
            return StoreError(f"{what}: there is no directory {above}; make it, or set spool")
    if not _writable(folder if os.path.isdir(folder) else above):
        return StorePermissionError(
            f"{what}: permission denied; make it a directory of the user that gsmtpd runs as:"
            f" install -d -m 700 -o USER {folder}"
        )
    if is_full(error):
        return StoreError(f"{what}: its file system is full")
    text = getattr(error, "strerror", None) or error
    if (_code(error) or 0) & 0xFF in _DAMAGED:  # without what the extended codes add
        return StoreError(f"{what}: {text}; {NAME} is damaged, see gsmtpd.conf(5)")
    return StoreError(f"{what}: {text}")


def is_full(error: Exception) -> bool:
    """Whether `error`, of SQLite or the system, is that a disk or a quota has no room."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # The second: no room for the index of the journal.
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def _code(error: Exception) -> int | None:
    """SQLite's result code."""
    return getattr(error, "sqlite_errorcode", None)


def _may_be_opened(folder: str) -> bool:
    """Whether neither the file's kind nor a right keeps it from being opened and written.

    Only for a process that has it open nowhere: SQLite's locks on it would be gone.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(os.path.join(folder, NAME), flags, 0o600)
    except OSError as error:
        return is_full(error)
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _check_rights(folder: str) -> None:
    """Whether nobody else can put mail into `folder`, or take it away. Raises StoreError."""
    found = os.stat(folder)
    if found.st_uid != os.geteuid():
        raise StorePermissionError(
            f"spool {folder}: belongs to another user; it must be the one that gsmtpd runs as"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StorePermissionError(
            f"spool {folder}: others may write there; cure it with: chmod 700 {folder}"
        )


def open_file(folder: str, most: int) -> sqlite3.Connection:
    """A connection to the file in `folder`, made where it is missing.

    most: octets that it may have, 0 for any. Raises sqlite3.Error or OSError.
    """
    path = os.path.join(folder, NAME)
    # To set auto_vacuum writes, each time, for which there must be room.
    is_new = not os.path.exists(path) or os.path.getsize(path) == 0
    pragmas = (f"page_size={PAGE}", "auto_vacuum=INCREMENTAL") if is_new else ()
    connection = open_wal(path, _BUSY_TIMEOUT, pragmas)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_LEFT}")
        # Debian's SQLite overwrites what is deleted: a journal as large as the mail taken out.
        connection.execute("PRAGMA secure_delete=FAST")
        # Octets that are no UTF-8 are damage; they must not keep other messages from being read.
        connection.text_factory = _text
        if most:
            # Who takes messages out is never kept from that.
            connection.execute(f"PRAGMA max_page_count={most // PAGE}")
        if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _TABLES:
                connection.execute(statement)
        return connection
    except BaseException:
        connection.close()
        raise


def _text(octets: bytes) -> str:
    return octets.decode(errors="replace")


def _sync(folder: str) -> None:
    """Have the names in `folder` survive a power cut. SQLite does so where it makes files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writable(folder: str) -> bool:
    file = os.path.join(folder, NAME)
    may = os.access(folder, os.W_OK | os.X_OK)
    return may and (not os.path.exists(file) or os.access(file, os.W_OK))
