"""Mail in MySQL or MariaDB, by PyMySQL through DBUtils' PooledDB: 250 only after the COMMIT.

The rules that keep a message from being lost, stored by halves or stored twice:
* Always `begin()`: without it DBUtils executes again on a fresh connection, and what was inserted
  before the loss is silently missing.
* Any error behind BEGIN is followed by ROLLBACK: error 1205 undoes one statement only.
* A COMMIT whose answer is lost is looked up by the batch's own ids on a new connection.
"""

from __future__ import annotations

import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pymysql
from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped]
from pymysql.constants import SERVER_STATUS

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.storage.base import Health, Letter, Outcome, StoreError, StorePermissionError
from gsmtpd.storage.mysql_table import Column, MailTable
from gsmtpd.storage.reader import SQLReader

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5  # seconds; PyMySQL has no default for the other two and would wait for ever
READ_TIMEOUT = 15
WRITE_TIMEOUT = 15
_TRIES = 3
_LOOKUP_PAUSES = (0.0, 0.5, 1.5, 3.0)  # seconds before each look for an ambiguous batch
_FAILURES = (
    pymysql.err.OperationalError,
    pymysql.err.InterfaceError,
    pymysql.err.InternalError,
)
_STATEMENT_BYTES = 4 * 1024 * 1024

RETRY = {1205, 1213}  # lock wait timeout, deadlock (also a Galera certification conflict)
NO_SPACE = {1021, 1114, 28}  # disk full, table full
READ_ONLY = {1290, 1836, 1792, 1047, 3100}  # this host cannot write now; another may
LOST = {0, 1053, 1152, 1158, 1159, 1160, 1161, 1317, 1927, 2002, 2003, 2006, 2013, 2014, 2055, 4031}
# The row itself is at fault: value too long, out of range or no text; packet too big; a constraint.
REFUSED = {1048, 1062, 1118, 1153, 1264, 1265, 1292, 1300, 1364, 1366, 1406, 1452, 1644, 3819, 4025}


OnCapacity = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Host:
    """Where a database server listens: a TCP address, or a socket path."""

    name: str
    port: int = 3306
    unix_socket: str | None = None

    def __str__(self) -> str:
        return self.unix_socket or f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Database:
    """How to reach the database. hosts: tried in order."""

    hosts: tuple[Host, ...]
    user: str
    password: str = field(repr=False)
    database: str
    table: str = "new_mail"


def connect(database: Database) -> Any:
    """A connection to the first of the hosts that takes one. Raises pymysql.err.Error."""
    trouble: pymysql.err.Error | None = None
    for host in database.hosts:
        try:
            return _connect_to(host, database)
        except pymysql.err.Error as error:
            trouble = trouble or error
    assert trouble is not None
    raise trouble


def _connect_to(host: Host, database: Database) -> Any:
    connection: Any = pymysql.connect(
        host=host.name,
        port=host.port,
        unix_socket=host.unix_socket,
        user=database.user,
        password=database.password,
        database=database.database,
        charset="utf8mb4",
        autocommit=True,
        defer_connect=True,
        # Strict: a lax server cuts what is too long and says nothing.
        init_command="SET SESSION sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
        " innodb_lock_wait_timeout=5",
    )
    connection.connect(_socket_to(host))
    connection.ping(reconnect=False)  # its answer has the status behind init_command
    if connection.server_status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES:
        connection.close()
        raise pymysql.err.OperationalError(0, "the server keeps NO_BACKSLASH_ESCAPES on")
    return connection


class _TimedSocket(socket.socket):
    """A blocking socket whose sends and receives are bounded in time by the kernel.

    With PyMySQL's read_timeout and write_timeout every reply costs a poll more, and a statement of
    100 KB goes out in some 15 pieces; each of those calls hands the GIL over, twice.
    """

    def recv_into(self, *arguments: Any) -> int:
        """As in socket. Raises TimeoutError; the kernel's EAGAIN would read as "no data"."""
        try:
            return super().recv_into(*arguments)
        except BlockingIOError as error:
            raise TimeoutError("timed out") from error


def _socket_to(host: Host) -> socket.socket:
    """A socket to `host`. Raises pymysql.err.OperationalError (2003)."""
    try:
        if host.unix_socket:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(CONNECT_TIMEOUT)
            connected.connect(host.unix_socket)
        else:
            connected = socket.create_connection((host.name, host.port), CONNECT_TIMEOUT)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        raise pymysql.err.OperationalError(2003, f"cannot connect to {host}: {error}") from error
    connected.settimeout(None)
    timed = _TimedSocket(fileno=connected.detach())
    for option, seconds in (
        (socket.SO_RCVTIMEO, READ_TIMEOUT),
        (socket.SO_SNDTIMEO, WRITE_TIMEOUT),
    ):
        timed.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
    return timed


def code_of(error: BaseException) -> int:
    """The server's or client's error number, 0 if `error` has none."""
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) else 0


def explain(error: BaseException, database: Database) -> str:
    """One line for the operator: what went wrong and what would cure it."""
    code = code_of(error)
    where = ", ".join(map(str, database.hosts))
    if code in (2002, 2003):
        return f"no database server answers at {where}; start it, or set [store] [[mysql]] host"
    if code == 1045:
        return f"the database at {where} refuses user {database.user!r} or the password"
    if code == 1049:
        return f"there is no database {database.database!r} at {where}; CREATE DATABASE it first"
    if code == 1146:
        return f"there is no table {database.table!r}; make it by: gsmtpctl init-db --apply"
    if code in (1044, 1142):
        return (
            f"user {database.user!r} has no right to SELECT and INSERT in"
            f" {database.database}.{database.table}; GRANT it"
        )
    text = error.args[1] if len(error.args) > 1 else error
    return f"database at {where}: {text} (error {code})"


def store_error(error: BaseException, database: Database) -> StoreError:
    """`error` as the StoreError for it."""
    denied = code_of(error) in (1044, 1045, 1142)
    return (StorePermissionError if denied else StoreError)(explain(error, database))


class Ambiguous(Exception):
    """COMMIT was sent, and whether it was carried out is not known."""


class MySQLStore:
    """Keeps mail in the table of `database`, through a pool of at most `connections`.

    warn: say in the log what `prepare` finds; one worker of several is enough for that.
    strict: also say where the server's settings do not make a COMMIT durable.
    on_capacity: called with the largest message, in octets, that the server is sure to take.
    """

    def __init__(
        self,
        database: Database,
        rows: RowMaker,
        connections: int,
        warn: bool = True,
        strict: bool = True,
        on_capacity: OnCapacity = lambda size: None,
    ) -> None:
        self._database = database
        self._rows = rows
        self._warn = warn
        self._strict = strict
        self._on_capacity = on_capacity
        self._health = Health("mysql")
        self._lock = threading.Lock()
        self._table: MailTable | None = None
        self._statement_bytes = _STATEMENT_BYTES
        # No ping, no reset: each costs a round trip per batch. A dead connection shows at BEGIN,
        # and a rollback that fails lets DBUtils connect again.
        self._pool = PooledDB(
            self._connect, maxconnections=connections, reset=False, ping=0, failures=_FAILURES
        )

    def prepare(self) -> None:
        """Connect, read the table's columns, check the settings that durability needs."""
        try:
            with self._connection() as connection:
                self._known_table(connection)
        except (pymysql.MySQLError, OSError) as error:
            trouble = store_error(error, self._database)
            self._say_trouble(trouble)
            raise trouble from error
        except StoreError as error:
            self._say_trouble(error)
            raise
        self._health.well()

    def _say_trouble(self, trouble: StoreError) -> None:
        if self._warn:
            self._health.trouble(str(trouble))

    def encode(self, message: Message) -> Letter:
        """Make the SQL values of `message`, if the table's columns are known by now."""
        table = self._table
        if table is None:
            return Letter(message)
        return Letter(message, (table, list(map(table.values, self._rows.rows(message)))))

    def write(self, letters: Sequence[Letter]) -> list[Outcome]:
        """Store `letters` in one transaction."""
        try:
            self._write(letters)
        except Ambiguous as doubt:
            return self._look_up(letters, doubt)
        except (pymysql.MySQLError, StoreError, OSError) as error:
            return self._after_error(letters, error)
        self._health.well()
        return [Outcome.STORED] * len(letters)

    def close(self) -> None:
        """Close the pool's connections."""
        self._pool.close()

    def _connect(self) -> Any:
        return connect(self._database)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        connection = self._pool.connection()
        try:
            yield connection
        finally:
            connection.close()  # back into the pool

    def _write(self, letters: Sequence[Letter]) -> None:
        """Try the whole transaction, again where another try can help."""
        with self._connection() as connection:
            for left in reversed(range(_TRIES)):
                try:
                    self._transaction(connection, letters)
                    return
                except (pymysql.MySQLError, OSError) as error:
                    code = code_of(error)
                    if code in READ_ONLY or isinstance(error, OSError):
                        connection.dbapi_connection.close()
                    with suppress(pymysql.MySQLError, OSError):
                        connection.rollback()  # connects again if the connection was lost
                    if code in (1054, 1146):
                        self._table = None  # the table was altered: read it again
                    elif code not in RETRY | LOST | READ_ONLY:
                        raise
                    if not left:
                        raise
                    if code in RETRY:
                        time.sleep(random.uniform(0.01, 0.1))

    def _transaction(self, connection: Any, letters: Sequence[Letter]) -> None:
        table = self._known_table(connection)
        connection.begin()
        cursor = connection.cursor()
        values = chain.from_iterable(self._values(table, letter) for letter in letters)
        for statement in table.inserts(values, self._statement_bytes):
            cursor.execute(statement)
        cursor.close()
        try:
            connection.commit()
        except Exception as error:
            if code_of(error) in RETRY:
                raise  # the server said that it rolled back
            raise Ambiguous(error) from error

    def _values(self, table: MailTable, letter: Letter) -> Iterable[bytes]:
        if letter.form is not None and letter.form[0] is table:
            made: list[bytes] = letter.form[1]
            return made
        return map(table.values, self._rows.rows(letter.message))

    def _look_up(self, letters: Sequence[Letter], doubt: Ambiguous) -> list[Outcome]:
        """Find out whether an ambiguous COMMIT was carried out."""
        text = explain(doubt.args[0], self._database)
        _log.warning("mysql: the answer to a COMMIT was lost (%s); looking its mail up", text)
        for pause in _LOOKUP_PAUSES:
            time.sleep(pause)
            try:
                stored = self._stored_ids([letter.message.id for letter in letters])
            except (pymysql.MySQLError, OSError) as error:
                text = explain(error, self._database)
                continue
            return [
                Outcome.STORED if letter.message.id in stored else Outcome.TROUBLE
                for letter in letters
            ]
        self._health.trouble(text)
        return [Outcome.TROUBLE] * len(letters)

    def _stored_ids(self, ids: Sequence[str]) -> set[str]:
        with self._connection() as connection:
            try:
                marks = ", ".join(["%s"] * len(ids))
                table = self._database.table
                cursor = connection.cursor()
                cursor.execute(
                    f"SELECT DISTINCT `hash` FROM `{table}` WHERE `hash` IN ({marks})", ids
                )
                return {row[0] for row in cursor.fetchall()}
            except (pymysql.MySQLError, OSError):
                with suppress(pymysql.MySQLError, OSError):
                    connection.rollback()
                raise

    def _after_error(self, letters: Sequence[Letter], error: Exception) -> list[Outcome]:
        code = code_of(error)
        if code in REFUSED:
            if len(letters) > 1:
                # One message is at fault: halves find it, and it stands alone.
                middle = len(letters) // 2
                return self.write(letters[:middle]) + self.write(letters[middle:])
            _log.error(
                "mysql: message %s refused: %s; answering 451",
                letters[0].message.id,
                explain(error, self._database),
            )
            return [Outcome.TROUBLE]
        text = str(error) if isinstance(error, StoreError) else explain(error, self._database)
        self._health.trouble(text)
        return [Outcome.NO_SPACE if code in NO_SPACE else Outcome.TROUBLE] * len(letters)

    def _known_table(self, connection: Any) -> MailTable:
        table = self._table
        if table is None:
            with self._lock:
                table = self._table
                if table is None:
                    table = self._read_table(connection)
                    self._table = table
        return table

    def _read_table(self, connection: Any) -> MailTable:
        database = self._database
        cursor = connection.cursor()
        cursor.execute(
            "SELECT column_name, character_maximum_length, character_set_name,"
            " is_nullable = 'NO' AND column_default IS NULL AND extra NOT LIKE '%%auto_increment%%'"
            " FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s",
            (database.table,),
        )
        columns = [Column(str(n), w, c, bool(needs)) for n, w, c, needs in cursor.fetchall()]
        if not columns:
            # Nothing is seen without rights on the table: ask it, for the error that says which.
            cursor.execute(f"SELECT 1 FROM `{database.table}` LIMIT 0")
            raise StoreError(f"table {database.table}: its columns cannot be read")
        table = MailTable(database.table, columns)
        self._check(cursor)
        cursor.close()
        return table

    def _check(self, cursor: Any) -> None:
        cursor.execute(
            "SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog, @@read_only,"
            " @@max_allowed_packet, (SELECT engine FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s)",
            (self._database.table,),
        )
        flush, log_bin, sync_binlog, read_only, packet, engine = cursor.fetchone()
        # DURABILITY: half, because escaping may double every octet; 64 KiB for the other columns.
        self._statement_bytes = min(_STATEMENT_BYTES, packet - 65536)
        self._on_capacity((packet - 65536) // 2)
        if not self._warn:
            return
        if int(read_only):
            _log.warning("mysql: the server is read-only")
        for bad, text in (
            (
                str(engine).lower() != "innodb",
                f"table {self._database.table} is {engine}, not InnoDB",
            ),
            (int(flush) != 1, f"innodb_flush_log_at_trx_commit is {flush}, not 1"),
            (int(log_bin) and int(sync_binlog) != 1, f"sync_binlog is {sync_binlog}, not 1"),
        ):
            if bad and self._strict:
                _log.warning("mysql: DURABILITY: %s; acknowledged mail can be lost", text)


def execute(database: Database, sql: Sequence[str]) -> None:
    """Execute the statements `sql`, such as those of the schema. Raises StoreError."""
    try:
        connection = connect(database)
        try:
            with connection.cursor() as cursor:
                for statement in sql:
                    cursor.execute(statement)
        finally:
            connection.close()
    except pymysql.MySQLError as error:
        raise store_error(error, database) from error


def open_reader(database: Database) -> SQLReader:
    """A reader of the mail table. Raises StoreError."""
    try:
        connection = connect(database)
    except pymysql.MySQLError as error:
        raise store_error(error, database) from error
    return SQLReader(connection, database.table, "%s", lambda error: store_error(error, database))
