"""How is a database server reached, and what do its errors mean?"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pymysql
from pymysql.constants import SERVER_STATUS

from gsmtpd.storage.base import StoreError, StorePermissionError, StoreSetupError
from gsmtpd.storage.mysql_wire import Connection, TimedSocket

CONNECT_TIMEOUT = 5  # seconds; PyMySQL has no default for the other two and would wait for ever
READ_TIMEOUT = 15
WRITE_TIMEOUT = 15

_OPTIONS: dict[str, Any] = {
    "charset": "utf8mb4",
    "autocommit": True,
    "defer_connect": True,
    # Newer ones of PyMySQL would read all certificates of the system first, for 20 ms, and where
    # the server has TLS put another socket into the place of ours.
    "ssl_disabled": True,
    # Strict: a lax server cuts what is too long and says nothing.
    "init_command": "SET SESSION sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
    " innodb_lock_wait_timeout=5",
}

RETRY = {1205, 1213}  # lock wait timeout, deadlock (also a Galera certification conflict)
NO_SPACE = {1021, 1114, 28}  # disk full, table full
READ_ONLY = {1290, 1836, 1792, 1047, 3100}  # this host cannot write now; another may
ROLLED_BACK = RETRY | {1290, 1836}  # as the answer to a COMMIT: none of it was carried out
ALTERED = {1054, 1146}  # a column or the table is not there (any more)
STALE = {1243, 1615}  # a prepared statement that the server knows no more, or cannot prepare again
DENIED = {1044, 1142, 1143}  # a right on the database, the table or a column is missing
CANNOT_ENCRYPT = 2059  # an authentication plugin cannot be loaded
LOST = {0, 1053, 1152, 1158, 1159, 1160, 1161, 1317, 1927, 2002, 2003, 2006, 2013, 2014, 2055, 4031}
# The row itself is at fault: value too long, out of range or no text; packet too big; a constraint.
REFUSED = {1048, 1062, 1118, 1153, 1264, 1265, 1292, 1300, 1364, 1366, 1406, 1452, 1644, 3819, 4025}


# Tables that mail may be refused for, beside its own.
OTHERS = ("mail_attachment", "mail_outbox", "mail_note", "mail_reply")


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


def connect_to(
    host: Host,
    database: Database,
    timeout: int,
    read_timeout: float | None = None,
    on_timeout: Callable[[], None] = lambda: None,
) -> Any:
    """A connection to `host`. Raises pymysql.err.Error.

    timeout: seconds to connect in, and for each answer until it is made. read_timeout: seconds
    that an answer may take from then on, None for READ_TIMEOUT. on_timeout: called where one takes
    longer, before the error is raised.
    """
    connection: Any = Connection(
        host=host.name,
        port=host.port,
        unix_socket=host.unix_socket,
        user=database.user,
        password=database.password,
        database=database.database,
        **_OPTIONS,
    )
    connection.to_host = host
    connection.since = time.monotonic()
    # As PyMySQL says of Unix sockets it has made: passwords go over them as they are.
    connection._secure = host.unix_socket is not None
    connected = _socket_to(host, timeout)
    try:
        connection.connect(connected)
    except RuntimeError as error:  # of PyMySQL: a password is to be encrypted, and it cannot
        raise pymysql.err.OperationalError(
            CANNOT_ENCRYPT,
            f"{error} (Debian package python3-cryptography); or connect by the server's socket",
        ) from error
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONCAT_WS(' ', @@hostname, @@port, @@datadir, @@server_id)")
        connection.server = cursor.fetchone()[0]
    if connection.server_status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES:
        connection.close()
        raise pymysql.err.OperationalError(0, "the server keeps NO_BACKSLASH_ESCAPES on")
    connected.on_timeout = on_timeout
    connected.bound(READ_TIMEOUT if read_timeout is None else read_timeout, WRITE_TIMEOUT)
    return connection


def _socket_to(host: Host, timeout: int) -> TimedSocket:
    """A socket to `host`. Raises pymysql.err.OperationalError (2003)."""
    try:
        if host.unix_socket:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(timeout)
            connected.connect(host.unix_socket)
        else:
            connected = socket.create_connection((host.name, host.port), timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        raise pymysql.err.OperationalError(2003, f"cannot connect to {host}: {error}") from error
    connected.settimeout(None)
    timed = TimedSocket(fileno=connected.detach())
    timed.bound(timeout, WRITE_TIMEOUT)
    return timed


def driver(pooled: Any) -> Any:
    """The `Connection` that `pooled` leads to now (public in DBUtils from 3.2 on)."""
    return pooled._con._con


def close(used: Any) -> None:
    """Close the driver's connection, which may be closed already."""
    with suppress(pymysql.MySQLError, OSError):
        used.close()


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
        password = "the password" if database.password else "no password"
        return f"the database at {where} refuses user {database.user!r} with {password}"
    if code == 1049:
        return f"there is no database {database.database!r} at {where}; CREATE DATABASE it first"
    if code == 1146:
        name = _table_of(error, database)
        return f"there is no table {name!r}; make it by: gsmtpctl init-db --apply"
    if code in DENIED:
        return (
            f"user {database.user!r} has no right to SELECT and INSERT in"
            f" {database.database}.{_table_of(error, database)}; GRANT it"
        )
    if code == 1461:
        return f"{where} keeps no more prepared statements; raise its max_prepared_stmt_count"
    text = (error.args[1] if len(error.args) > 1 else error) or "the connection was lost"
    return f"database at {where}: {text} (error {code})"


def _table_of(error: BaseException, database: Database) -> str:
    """The table that the server's `error` is about: the mail table, or one beside it."""
    text = str(error.args[1]) if len(error.args) > 1 else ""
    found = (name for name in OTHERS if f"{name}'" in text or f"{name}`" in text)
    return next(found, database.table)


def store_error(error: BaseException, database: Database) -> StoreError:
    """`error` as the StoreError for it."""
    code, kind = code_of(error), StoreError
    if code in DENIED | {1045}:
        kind = StorePermissionError
    elif code in ALTERED | {1049}:
        kind = StoreSetupError
    return kind(explain(error, database))
