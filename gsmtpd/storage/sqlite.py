"""Mail in one SQLite file: the embedded store, durable by WAL and synchronous=FULL."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from gsmtpd.message.row import COLUMNS, Message, RowMaker
from gsmtpd.storage.base import (
    LISTED,
    Health,
    Letter,
    OnStored,
    Outcome,
    Result,
    StoreError,
    StorePermissionError,
)
from gsmtpd.storage.dedupe import MAX_CANDIDATES, Copy, Key, candidates, rows_of
from gsmtpd.storage.outbox import INSERT, outbox_rows
from gsmtpd.storage.reader import Bodies, SQLReader
from gsmtpd.storage.schema import statements
from gsmtpd.storage.sqlite_file import folder_of, identity, open_wal
from gsmtpd.storage.sqlite_query import Queries

_BUSY_TIMEOUT = 10.0  # seconds to wait for another process's commit
_INSERT = (
    f"INSERT INTO new_mail ({', '.join(f'`{name}`' for name in COLUMNS)})"
    f" VALUES ({', '.join('?' * len(COLUMNS))})"
)
# A mail_id never comes again, but a row of an attachment may have been left by hand.
_INSERT_ATTACHMENT = (
    "INSERT OR REPLACE INTO mail_attachment (mail_id, position, filename, content_type, size,"
    " sha256) SELECT mail_id, ?, ?, ?, ?, ? FROM new_mail WHERE hash = ?"
)
_OWE = INSERT % "?, ?, ?, ?, ?, ?"
_COUNT = (
    "UPDATE gm2_setting SET setting_value = setting_value + ?"
    " WHERE setting_name = 'received_emails'"
)

# Called behind each statement that makes tables: how many are done, and how many there are.
OnProgress = Callable[[int, int], None]
# For files that were made before addresses were compared without regard to capitals.
_FOR_OLDER = (
    'CREATE INDEX IF NOT EXISTS new_mail_to_nocase ON new_mail ("to" COLLATE NOCASE)',
    "CREATE INDEX IF NOT EXISTS new_mail_recipient_nocase ON new_mail (recipient COLLATE NOCASE)",
)


def connect(
    path: str, durable: bool = True, progress: OnProgress = lambda done, of: None
) -> sqlite3.Connection:
    """A connection to the mail file at `path`, made with its tables where it is missing.

    durable: sync at each commit. progress: see OnProgress. Raises StoreError with a clear line.
    """
    try:
        connection = open_wal(path, _BUSY_TIMEOUT)
        # NORMAL does not sync the WAL on commit: a power cut can take acknowledged mail.
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        _make_tables(connection, progress)
        return connection
    except (sqlite3.Error, OSError) as error:
        raise store_error(path, error) from error


def _make_tables(connection: sqlite3.Connection, progress: OnProgress) -> None:
    """Make the tables that are missing: all of a new file, in an older one what came since."""
    made = [*statements("sqlite"), *_FOR_OLDER]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version >= len(made) and _has_all(connection):
        return
    try:
        connection.execute("BEGIN IMMEDIATE")
        for done, statement in enumerate(made, 1):
            if statement not in _FOR_OLDER or _has_capitals(connection):
                connection.execute(statement)
            progress(done, len(made))
        connection.execute(f"PRAGMA user_version={len(made)}")
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        # Who may only read sees the file as it is.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise


def _has_capitals(connection: sqlite3.Connection) -> bool:
    """Whether addresses are compared with regard to capitals."""
    sql = "SELECT COUNT(*) FROM pragma_index_xinfo('new_mail_recipient') WHERE coll = 'NOCASE'"
    return not connection.execute(sql).fetchone()[0]


def _has_all(connection: sqlite3.Connection) -> bool:
    """Whether nobody has dropped a table that each mail is written to."""
    names = ("new_mail", "mail_attachment", "gm2_setting", "mail_outbox")
    sql = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name IN (?, ?, ?, ?)"
    found: int = connection.execute(sql, names).fetchone()[0]
    return found == len(names)


def make(path: str, progress: OnProgress = lambda done, of: None) -> None:
    """Make the mail file where it is missing, and see that it can be written. Raises StoreError.

    progress: see OnProgress.
    """
    connect(path, progress=progress).close()
    if not _writable(path):  # SQLite opens it for reading then, and says so at the first mail
        raise store_error(path, PermissionError())


def check(path: str) -> None:
    """Like `make`, but for making anything. Raises StoreError."""
    if os.path.exists(path):
        make(path)
    elif not os.path.isdir(folder_of(path)) or not _writable(path):
        raise store_error(path, FileNotFoundError())


def settle(path: str) -> None:
    """Empty and remove the WAL, if nobody else has the file open. Raises StoreError."""
    if os.path.exists(f"{path}-wal"):
        connect(path).close()  # the last one to close does it


def store_error(path: str, error: Exception) -> StoreError:
    """`error` as the StoreError for it."""
    return (StoreError if _writable(path) else StorePermissionError)(_explain(path, error))


def _explain(path: str, error: Exception) -> str:
    folder = folder_of(path)
    if not os.path.isdir(folder):
        return f"{path}: there is no directory {folder}; make it, or set [store] [[sqlite]] path"
    if not _writable(path):
        what = folder if not os.access(folder, os.W_OK) else "the file, which is another user's"
        return f"{path}: permission denied; the user gsmtpd runs as must be able to write {what}"
    return f"{path}: {error}"


def _writable(path: str) -> bool:
    folder = folder_of(path)
    if not os.path.isdir(folder):
        return True  # it is not rights that are missing
    return os.access(folder, os.W_OK) and (not os.path.exists(path) or os.access(path, os.W_OK))


class SQLiteStore:
    """Keeps mail in the SQLite file at `path`. Several processes may share the file.

    durable: whether a commit survives a power cut. on_stored: see OnStored.
    """

    def __init__(
        self,
        path: str,
        rows: RowMaker,
        durable: bool = True,
        on_stored: OnStored = lambda owed: None,
    ) -> None:
        self._path = path
        self._rows = rows
        self._durable = durable
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._health = Health("sqlite")
        self._on_stored = on_stored
        self._queries = Queries(partial(connect, path, durable), partial(identity, path))

    def prepare(self) -> None:
        """Open the file and make its tables. Raises StoreError."""
        self._connection()

    def read(self, message: Message) -> Letter:
        """Read `message`, for all its rows."""
        return Letter(message, self._rows.read(message), deliveries=self._rows.deliveries(message))

    def encode(self, message: Message) -> Letter:
        """Make the rows of `message`."""
        letter = self.read(message)
        return letter._replace(form=list(self._rows.rows(message, letter.reading)))

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Store `letters` in one transaction."""
        try:
            self._transaction(self._connection(), letters)
        except StoreError:
            return [Outcome.TROUBLE] * len(letters)
        except sqlite3.Error as error:
            return self._after_error(letters, error)
        self._health.well()
        self._on_stored(any(letter.deliveries for letter in letters))
        return [Outcome.STORED] * len(letters)

    def copies(self, keys: Sequence[Key], since: float) -> list[Copy]:
        """All rows of the messages that may be one of `keys`, received since that Unix time.

        Raises StoreError.
        """
        connection = self._connection()
        try:
            found = connection.execute(*candidates("new_mail", "?", keys, since))
            ids = [number for (number,) in found]
            if not 0 < len(ids) <= MAX_CANDIDATES:
                return []
            return [Copy(*row) for row in connection.execute(rows_of("new_mail", "?", ids), ids)]
        except sqlite3.Error as error:
            raise store_error(self._path, error) from error

    def query(self, sql: str) -> Callable[[str], bool]:
        """Whether the statement finds a row for its parameter. What is called raises StoreError.

        sql: with "%s" for the parameter and "%%" for a percent sign, as for MySQL.
        """
        own = sql % "?"

        def finds(value: str) -> bool:
            try:
                return self._queries.finds(own, value)
            except sqlite3.Error as error:
                raise store_error(self._path, error) from error

        return finds

    def close(self) -> None:
        """Close all connections; the last one of all processes empties and removes the WAL."""
        self._queries.interrupt()
        for connection in self._connections:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.file != identity(self._path):
            # Removed or replaced: what we wrote to the open file would be gone with it.
            self._forget(connection)
            connection = None
        if connection is None:
            try:
                connection = self._local.connection = connect(self._path, self._durable)
                self._connections.append(connection)
            except StoreError as trouble:
                self._health.trouble(str(trouble))
                raise
            self._local.file = identity(self._path)
        return connection

    def _forget(self, connection: sqlite3.Connection) -> None:
        connection.close()
        self._connections.remove(connection)
        self._local.connection = None

    def _transaction(self, connection: sqlite3.Connection, letters: Sequence[Letter]) -> None:
        made = (
            letter.form
            if letter.form is not None
            else self._rows.rows(letter.message, letter.reading, letter.held)
            for letter in letters
        )
        attached = (
            (position, *each, letter.message.id)
            for letter in letters
            for position, each in enumerate(letter.reading.body.attachments[:LISTED], 1)
        )
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, chain.from_iterable(made))
            connection.executemany(_INSERT_ATTACHMENT, attached)
            connection.execute(_COUNT, (len(letters),))
            owed = [row for letter in letters if letter.deliveries for row in outbox_rows(letter)]
            if owed:
                connection.executemany(_OWE, owed)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _after_error(self, letters: Sequence[Letter], error: sqlite3.Error) -> list[Result]:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT) and len(letters) > 1:
            # One message is at fault: halves find it, and it stands alone.
            middle = len(letters) // 2
            return self.write(letters[:middle]) + self.write(letters[middle:])
        self._health.trouble(_explain(self._path, error))
        if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG):
            # The file may have been moved away or mended meanwhile: open it afresh.
            self._forget(self._local.connection)
        full = code == sqlite3.SQLITE_FULL
        return [Outcome.NO_SPACE if full else Outcome.TROUBLE] * len(letters)


def open_reader(path: str, bodies: Bodies | None = None) -> SQLReader:
    """A reader of the mail file at `path`. bodies: the body store, if there is one.

    Raises StoreError if there is no file yet.
    """
    if not os.path.exists(path):
        raise StoreError(f"{path}: no mail file yet; start gsmtpd, it makes one")
    reader = SQLReader(
        connect(path), "new_mail", "?", lambda error: store_error(path, error), bodies
    )
    opened = identity(path)

    def check() -> None:
        if identity(path) != opened:
            raise StoreError(f"{path}: the file is gone, or another has taken its place")

    reader.rows.check = check
    return reader
