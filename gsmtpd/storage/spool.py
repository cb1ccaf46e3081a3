"""Where do messages wait on this machine while no database can be written to?

In one SQLite file (WAL, synchronous=FULL), in a directory of its own: the processes of gsmtpd may
all add to it, a commit is synced before it returns, and what a crash leaves is for SQLite to mend.
Nothing may read or write the file but this module.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

from gsmtpd.message.row import Message
from gsmtpd.storage.base import StoreError, StorePermissionError
from gsmtpd.storage.spool_facts import facts_of

NAME = "spool.db"
_LOCK = "lock"
_PAGE = 4096  # octets
_RESERVE = 16 * _PAGE  # of the bound, for what SQLite keeps beside messages
_OVERHEAD = 160  # octets of a row and its entries in the indexes, beside facts and content
_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's commit
_SHRINK_BY = 8192  # pages given back at a time; others who write wait meanwhile
_WAL_LEFT = 4 * 1024 * 1024  # octets that the journal keeps once its content is in the file
# The content comes last: what stands before it is read without it.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS message (seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    " id TEXT NOT NULL UNIQUE, received_at REAL NOT NULL, weight INTEGER NOT NULL,"
    " tries INTEGER NOT NULL DEFAULT 0, aside REAL, facts TEXT NOT NULL, content BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS aside ON message (aside) WHERE aside IS NOT NULL",
)


class Waiting(NamedTuple):
    """A message in the spool, see `message_of`. seq: they were taken in this order.

    weight: octets of all its rows. tries: how often it alone was refused while others were stored.
    """

    seq: int
    id: str
    received_at: float
    weight: int
    tries: int
    facts: str
    content: bytes


class Figures(NamedTuple):
    """What a spool holds. octets: of the file, that are in use. most: those that may be.

    oldest: when the first one that waits was received, Unix time; None if there is none. aside:
    how many of the messages are set aside.
    """

    messages: int
    octets: int
    most: int
    oldest: float | None
    aside: int


class Spool:
    """The spool in the directory `folder`. Threads may share it; nothing is opened before its use.

    most: octets that the file may have, over all processes; 0 for who adds nothing.
    All methods but `close` raise StoreError where the spool cannot be used.
    """

    def __init__(self, folder: str, most: int = 0) -> None:
        self.folder = folder
        self._most = most
        self._path = os.path.join(folder, NAME)
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._locked: int | None = None  # the descriptor of the lock

    def add(self, messages: Sequence[Message]) -> set[str]:
        """Keep those of `messages` that there is room for, synced, in one transaction; their ids.

        One that is there already counts as kept.
        """
        rows = [
            (m.id, m.received_at, len(m.content) * m.envelope.copies, facts_of(m), m.content)
            for m in messages
        ]
        with self._use() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                room = self._room(connection)
                kept = []
                for row in rows:
                    cost = _cost(len(row[3]) + len(row[4]))
                    if cost <= room:
                        room -= cost
                        kept.append(row)
                connection.executemany(
                    "INSERT OR IGNORE INTO message (id, received_at, weight, facts, content)"
                    " VALUES (?, ?, ?, ?, ?)",
                    kept,
                )
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return {row[0] for row in kept}

    def _room(self, connection: sqlite3.Connection) -> int:
        """Octets that may be added. A row that met the bound would undo its whole transaction."""
        pages, free = _pages(connection)
        return self._most - (pages - free) * _PAGE - _RESERVE

    def due(self, before: float) -> bool:
        """Whether there is anything to be stored. before: see `set_aside`."""
        if self._connection is None and not os.path.exists(self._path):
            return False
        with self._use() as connection:
            sql = "SELECT EXISTS (SELECT 1 FROM message WHERE aside IS NULL OR aside < ?)"
            return bool(connection.execute(sql, (before,)).fetchone()[0])

    def oldest(self, messages: int, octets: int, after: int = 0) -> list[Waiting]:
        """The first `messages`, behind the seq `after`, that are not set aside.

        Not many more than `octets` of rows, but one message at least.
        """
        found: list[Waiting] = []
        with self._use() as connection:
            rows = connection.execute(
                "SELECT seq, id, received_at, weight, tries, facts, content FROM message"
                " WHERE seq > ? AND aside IS NULL ORDER BY seq LIMIT ?",
                (after, messages),
            )
            with closing(rows):
                for row in rows:
                    found.append(Waiting(*row))
                    octets -= found[-1].weight
                    if octets <= 0:
                        break
        return found

    def set_aside(self, before: float) -> Waiting | None:
        """The first of those set aside that was tried last before that Unix time."""
        with self._use() as connection:
            row = connection.execute(
                "SELECT seq, id, received_at, weight, tries, facts, content FROM message"
                " WHERE aside < ? ORDER BY aside LIMIT 1",
                (before,),
            ).fetchone()
        return None if row is None else Waiting(*row)

    def remove(self, messages: Iterable[Waiting]) -> None:
        """Forget `messages`, which are stored elsewhere by now, in one synced transaction."""
        self._change("DELETE FROM message WHERE seq = ?", [(each.seq,) for each in messages])

    def refused(self, messages: Iterable[Waiting], aside: int, now: float) -> None:
        """Each of `messages` alone was refused once more at `now`, in Unix time.

        From `aside` tries on it is set aside, and does not keep others waiting.
        """
        self._change(
            "UPDATE message SET tries = tries + 1,"
            " aside = CASE WHEN tries + 1 >= ? THEN ? ELSE NULL END WHERE seq = ?",
            [(aside, now, each.seq) for each in messages],
        )

    def shrink(self) -> None:
        """Give back what the file does not need."""
        with self._use() as connection:
            while _pages(connection)[1]:
                # execute() would end behind the first page.
                connection.executescript(f"PRAGMA incremental_vacuum({_SHRINK_BY})")

    def figures(self) -> Figures:
        """What it holds."""
        with self._use() as connection:
            return _figures(connection, self._most)

    def lock(self) -> bool:
        """Be the one process that takes messages out; False while another is."""
        if self._locked is not None:
            return True
        try:
            path = os.path.join(self.folder, _LOCK)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise spool_error(self.folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._locked = descriptor
        return True

    def unlock(self) -> None:
        """Let others take messages out."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def close(self) -> None:
        """Close the file; the last one of all processes empties its journal."""
        self.unlock()
        with self._mutex:
            self._forget()

    def _change(self, sql: str, values: list[tuple[object, ...]]) -> None:
        with self._use() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(sql, values)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._mutex:
            try:
                yield self._connected()
            except (sqlite3.Error, OSError) as error:
                self._forget()  # the file may have been moved away or mended meanwhile
                raise spool_error(self.folder, error) from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._file != _identity(self._path):
            self._forget()  # what is written to a file that was removed would be gone with it
        if self._connection is None:
            self._connection = _open(self.folder, self._most)
            self._file = _identity(self._path)
        return self._connection

    def _forget(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


def prepare(folder: str) -> None:
    """Make the spool, and its directory for us alone, where they are missing. Raises StoreError.

    The directory above must be there. What is made is synced, so a power cut leaves it there.
    """
    try:
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            _sync(os.path.dirname(os.path.abspath(folder)))
        _check_rights(folder)
        _open(folder, 0).close()
    except (sqlite3.Error, OSError) as error:
        raise spool_error(folder, error) from error


def check(folder: str) -> None:
    """Whether `prepare` would succeed, without making anything. Raises StoreError."""
    above = os.path.dirname(os.path.abspath(folder))
    if os.path.isdir(folder):
        _check_rights(folder)
        if not _writable(folder):
            raise spool_error(folder, PermissionError())
    elif os.path.exists(folder) or not os.access(above, os.W_OK | os.X_OK):
        raise spool_error(folder, PermissionError())


def look(folder: str, most: int) -> Figures:
    """What the spool in `folder` holds, without changing anything. Raises StoreError."""
    path = os.path.join(folder, NAME)
    try:
        os.stat(path)
        with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as connection:
            return _figures(connection, most)
    except FileNotFoundError:
        return Figures(0, 0, most, None, 0)
    except (sqlite3.Error, OSError) as error:
        raise spool_error(folder, error) from error


def spool_error(folder: str, error: Exception) -> StoreError:
    """`error` as the StoreError for it."""
    what = f"spool {folder}"
    above = os.path.dirname(os.path.abspath(folder))
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
    return StoreError(f"{what}: {getattr(error, 'strerror', None) or error}")


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


def _open(folder: str, most: int) -> sqlite3.Connection:
    """Raises sqlite3.Error or OSError."""
    connection = sqlite3.connect(
        os.path.join(folder, NAME),
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute(f"PRAGMA page_size={_PAGE}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_LEFT}")
        if most:
            # Who takes messages out is never kept from that.
            connection.execute(f"PRAGMA max_page_count={most // _PAGE}")
        if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _TABLES:
                connection.execute(statement)
        # What is in a journal that is not found after a power cut is lost, synced as it may be, and
        # Debian's SQLite syncs no directory. Having been read from, the file has its journal.
        _sync(folder)
        return connection
    except BaseException:
        connection.close()
        raise


def _use_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # SQLite's own timeout does not cover this: another process is opening a new file.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _figures(connection: sqlite3.Connection, most: int) -> Figures:
    messages = connection.execute("SELECT COUNT(*) FROM message").fetchone()[0]
    sql = "SELECT COUNT(*) FROM message WHERE aside IS NOT NULL"
    aside = connection.execute(sql).fetchone()[0]
    sql = "SELECT received_at FROM message WHERE aside IS NULL ORDER BY seq LIMIT 1"
    first = connection.execute(sql).fetchone()
    pages, free = _pages(connection)
    octets = (pages - free) * _PAGE if messages else 0
    return Figures(messages, octets, most, first[0] if first else None, aside)


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Those of the file, and how many of them nothing is in."""
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return pages, free


def _cost(octets: int) -> int:
    """What a row may take of the file, at the most."""
    needed = octets + _OVERHEAD
    if needed < _PAGE:
        return _PAGE // max(1, (_PAGE - 64) // needed)
    return (needed // (_PAGE - 4) + 2) * _PAGE  # pages of its own, and a share of another


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _writable(folder: str) -> bool:
    file = os.path.join(folder, NAME)
    may = os.access(folder, os.W_OK | os.X_OK)
    return may and (not os.path.exists(file) or os.access(file, os.W_OK))


def _quoted(path: str) -> str:
    """`path` in a URI of SQLite's."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
