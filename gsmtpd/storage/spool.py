"""Where do messages wait on this machine while no database can be written to?

In one SQLite file (WAL, synchronous=FULL), in a directory of its own: the processes of gsmtpd may
all add to it, a commit is synced before it returns, and what a crash leaves is for SQLite to mend.
Nothing else may read or write the file.
"""

from __future__ import annotations

import fcntl
import math
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

from gsmtpd.message.row import Message
from gsmtpd.storage.spool_facts import facts_of
from gsmtpd.storage.spool_file import (
    NAME,
    PAGE,
    is_full,
    open_file,
    spool_error,
)
from gsmtpd.storage.sqlite_file import identity

RESERVE = 64 * 1024 * 1024  # octets of the file system that are left to who takes mail out

_LOCK = "lock"
_BESIDE = 16 * PAGE  # of the bound, for what SQLite keeps beside messages
_OVERHEAD = 160  # octets of a row and its entries in the indexes, beside facts and content
_SHRINK_BY = 2048  # pages given back at a time; others who write wait meanwhile
_BOUND_MET = "is full; see [store] spool_size"
_DISK_FULL = f"is full; {RESERVE >> 20} MiB of its file system stay free, to take mail out"


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

    def add(
        self, messages: Sequence[Message], on_full: Callable[[str], None] = lambda why: None
    ) -> set[str]:
        """Keep those of `messages` that there is room for, synced, in one transaction; their ids.

        One that is there already counts as kept. on_full: is told what is short for each other.
        """
        rows = [
            (m.id, m.received_at, len(m.content) * m.envelope.copies, facts_of(m), m.content)
            for m in messages
        ]
        with self._use() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                room, spare = self._room(connection), _spare(self.folder)
                kept = []
                for row in rows:
                    cost = _cost(len(row[3]) + len(row[4]))
                    if cost > room:
                        on_full(_BOUND_MET)
                    elif 2 * cost > spare:  # once in the journal, and once in the file
                        on_full(_DISK_FULL)
                    else:
                        room -= cost
                        spare -= 2 * cost
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
        return self._most - (pages - free) * PAGE - _BESIDE

    def due(self, before: float, now: float = math.inf) -> bool:
        """Whether there is anything to be stored. before, now: see `set_aside`."""
        if self._connection is None and not os.path.exists(self._path):
            return False
        with self._use() as connection:
            sql = (
                "SELECT EXISTS (SELECT 1 FROM message"
                " WHERE aside IS NULL OR aside NOT BETWEEN ? AND ?)"
            )
            return bool(connection.execute(sql, (before, now)).fetchone()[0])

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

    def any_behind(self, after: int) -> Waiting | None:
        """One of those behind the seq `after` that are not set aside; another each time."""
        with self._use() as connection:
            last = connection.execute("SELECT MAX(seq) FROM message").fetchone()[0] or 0
        if last <= after:
            return None
        found = self.oldest(1, 1, random.randrange(after, last)) or self.oldest(1, 1, after)
        return found[0] if found else None

    def set_aside(self, before: float, now: float = math.inf) -> Waiting | None:
        """The first of those set aside that was tried last before that Unix time.

        One that was tried behind `now` was so by a clock that has been set back since, and counts.
        """
        with self._use() as connection:
            row = connection.execute(
                "SELECT seq, id, received_at, weight, tries, facts, content FROM message"
                " WHERE aside IS NOT NULL AND aside NOT BETWEEN ? AND ? ORDER BY aside LIMIT 1",
                (before, now),
            ).fetchone()
        return None if row is None else Waiting(*row)

    def remove(self, messages: Iterable[Waiting]) -> None:
        """Forget `messages`, which are stored elsewhere by now, in one synced transaction."""
        # The seq alone may be another message's, in a file that has taken the place of theirs.
        self._change(
            "DELETE FROM message WHERE seq = ? AND id = ?",
            [(each.seq, each.id) for each in messages],
        )

    def refused(self, messages: Iterable[Waiting], aside: int, now: float) -> None:
        """Each of `messages` alone was refused once more at `now`, in Unix time.

        From `aside` tries on it is set aside, and does not keep others waiting.
        """
        self._change(
            "UPDATE message SET tries = tries + 1,"
            " aside = CASE WHEN tries + 1 >= ? THEN ? ELSE NULL END WHERE seq = ? AND id = ?",
            [(aside, now, each.seq, each.id) for each in messages],
        )

    def shrink(self) -> None:
        """Give back what the file does not need, where it can be shortened.

        One that the shell of SQLite has made, as by .recover, cannot: its room is used again.
        """
        with self._use() as connection:
            free = _pages(connection)[1]
            while free:
                # execute() would end behind the first page.
                connection.executescript(f"PRAGMA incremental_vacuum({_SHRINK_BY})")
                before, free = free, _pages(connection)[1]
                if free >= before:
                    return

    def figures(self) -> Figures:
        """What it holds."""
        with self._use() as connection:
            return _figures(connection, self._most)

    def lock(self) -> bool:
        """Be the one process that takes messages out; False while another is."""
        path = os.path.join(self.folder, _LOCK)
        if self._locked is not None:
            if _is_at(path, self._locked):
                return True
            self.unlock()  # in another directory, that was moved away
        try:
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
                if not is_full(error):  # else it could hardly be opened again
                    self._forget()  # the file may have been moved away or mended meanwhile
                raise spool_error(self.folder, error) from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._file != identity(self._path):
            self._forget()  # what is written to a file that was removed would be gone with it
        if self._connection is None:
            self._connection = open_file(self.folder, self._most)
            self._file = identity(self._path)
        return self._connection

    def _forget(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


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


def _figures(connection: sqlite3.Connection, most: int) -> Figures:
    messages = connection.execute("SELECT COUNT(*) FROM message").fetchone()[0]
    sql = "SELECT COUNT(*) FROM message WHERE aside IS NOT NULL"
    aside = connection.execute(sql).fetchone()[0]
    sql = "SELECT received_at FROM message WHERE aside IS NULL ORDER BY seq LIMIT 1"
    first = connection.execute(sql).fetchone()
    pages, free = _pages(connection)
    octets = (pages - free) * PAGE if messages else 0
    return Figures(messages, octets, most, first[0] if first else None, aside)


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Those of the file, and how many of them nothing is in."""
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return pages, free


def _is_at(path: str, descriptor: int) -> bool:
    found = os.fstat(descriptor)
    return identity(path) == (found.st_dev, found.st_ino)


def _spare(folder: str) -> float:
    """Octets of the file system of `folder` that may be used for messages."""
    found = os.statvfs(folder)
    if found.f_blocks == 0:
        return math.inf  # it does not tell
    return found.f_bavail * found.f_frsize - RESERVE


def _cost(octets: int) -> int:
    """What a row may take of the file, at the most."""
    needed = octets + _OVERHEAD
    if needed < PAGE:
        return PAGE // max(1, (PAGE - 64) // needed)
    return (needed // (PAGE - 4) + 2) * PAGE  # pages of its own, and a share of another


def _quoted(path: str) -> str:
    """`path` in a URI of SQLite's."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
