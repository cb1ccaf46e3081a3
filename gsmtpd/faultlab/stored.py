"""What has the database of a gsmtpd, read afresh and by nothing of gsmtpd's own storage code?"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pymysql
from pymysql.cursors import SSCursor

_COLUMNS = ("hash", "recipient", "mail", "size", "content_hash", "mail_encoding")
_NEEDED = {"hash", "recipient", "mail"}
_NO_VARIABLE = 1193  # there is no such system variable
_CONNECT_TIMEOUT = 10
_ZLIB = b"\x78\x9c"  # how a stream begins (RFC 1950)
_TABLE = re.compile(r"[0-9A-Za-z_$]+")


class StoredError(Exception):
    """The database cannot be read; the text is one line."""


class StoredRow(NamedTuple):
    """A row of the table of mail.

    id: said in the 250. mail: gsmtpd's own fields and the message, decompressed; None where its
    octets are not in the row. size, content_hash: as the row says of the message, None where the
    table has no such column. kept: how the octets are kept, "" as they are.
    """

    id: str
    recipient: str
    mail: bytes | None
    size: int | None = None
    content_hash: str | None = None
    kept: str = ""


class MySQLAddress(NamedTuple):
    """Where a table of mail is, in MySQL or MariaDB; `unix_socket` counts before host and port."""

    host: str
    port: int
    unix_socket: str | None
    user: str
    password: str
    database: str
    table: str

    def __str__(self) -> str:
        where = self.unix_socket or f"{self.host}:{self.port}"
        return f"{self.database}.{self.table} at {where}"


def mysql_address(url: str) -> MySQLAddress:
    """What `mysql://USER:PASSWORD@HOST:PORT/DATABASE/TABLE` says; all but DATABASE may be left out.

    A Unix socket stands behind a question mark: `mysql://root@/mail?/run/mysqld/mysqld.sock`.
    Raises ValueError.
    """
    parts = urlsplit(url)
    names = [unquote(name) for name in parts.path.strip("/").split("/")]
    if parts.scheme != "mysql" or not names[0] or len(names) > 2:
        raise ValueError(f"{url!r} is not like mysql://USER:PASSWORD@HOST:PORT/DATABASE/TABLE")
    return MySQLAddress(
        parts.hostname or "127.0.0.1",
        parts.port or 3306,
        unquote(parts.query) or None,
        unquote(parts.username or "gsmtpd"),
        unquote(parts.password or ""),
        names[0],
        names[1] if len(names) == 2 else "new_mail",
    )


def mysql_rows(addresses: Sequence[MySQLAddress]) -> Iterator[StoredRow]:
    """All rows of the table, from the first of these servers that answers. Raises StoredError."""
    connection = _connected(addresses)
    with contextlib.closing(connection):
        try:
            with connection.cursor(SSCursor) as cursor:
                cursor.execute("SET SESSION net_write_timeout = 3600")
                with contextlib.suppress(pymysql.MySQLError):
                    # Of Galera: see what was committed on any node before.
                    cursor.execute("SET SESSION wsrep_sync_wait = 1")
                table = addresses[0].table
                cursor.execute(f"SHOW COLUMNS FROM `{_name(table)}`")
                columns = _known({str(row[0]) for row in cursor.fetchall()}, table)
                cursor.execute(_select(table, columns))
                yield from _rows(columns, cursor.fetchall_unbuffered())
        except (pymysql.MySQLError, OSError) as error:
            raise StoredError(f"{addresses[0]}: {_text(error)}") from error


def _connected(addresses: Sequence[MySQLAddress]) -> Any:
    trouble: Exception | None = None
    for address in addresses:
        try:
            return pymysql.connect(
                host=address.host,
                port=address.port,
                unix_socket=address.unix_socket,
                user=address.user,
                password=address.password,
                database=address.database,
                charset="utf8mb4",
                connect_timeout=_CONNECT_TIMEOUT,
                autocommit=True,
            )
        except (pymysql.MySQLError, OSError) as error:
            trouble = trouble or error
    assert trouble is not None
    where = ", ".join(map(str, addresses))
    raise StoredError(f"{where}: {_text(trouble)}") from trouble


def sqlite_rows(path: Path, table: str = "new_mail") -> Iterator[StoredRow]:
    """All rows of the table in an SQLite file. Raises StoredError."""
    try:
        # Reading a WAL needs its index, which may have to be made: so not with mode=ro.
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=60)
        with contextlib.closing(file):
            found = file.execute(f"SELECT name FROM pragma_table_info('{_name(table)}')")
            columns = _known({str(row[0]) for row in found}, table)
            yield from _rows(columns, iter(file.execute(_select(table, columns))))
    except (sqlite3.Error, OSError) as error:
        raise StoredError(f"{path}: {error}") from error


def _name(table: str) -> str:
    if _TABLE.fullmatch(table):
        return table
    raise StoredError(f"{table!r} is no name of a table")


def _known(columns: set[str], table: str) -> list[str]:
    missing = _NEEDED - columns
    if missing:
        raise StoredError(f"table {table} has no column {', '.join(sorted(missing))}")
    return [name for name in _COLUMNS if name in columns]


def _select(table: str, columns: Sequence[str]) -> str:
    return f"SELECT {', '.join(f'`{name}`' for name in columns)} FROM `{_name(table)}`"


def _text(error: BaseException) -> str:
    return str(error.args[1] if len(error.args) > 1 else error)


def _rows(columns: Sequence[str], found: Iterator[Sequence[Any]]) -> Iterator[StoredRow]:
    places = [columns.index(name) if name in columns else -1 for name in _COLUMNS]
    for row in found:
        values: list[Any] = [row[place] if place >= 0 else None for place in places]
        id_, recipient, mail, size, content_hash, kept = values
        yield StoredRow(id_, recipient, _unpacked(mail, kept), size, content_hash, kept or "")


def _unpacked(mail: bytes | str, kept: str | None) -> bytes | None:
    """The octets of a mail, None where they are not in the row. kept: None if no column says."""
    octets = mail.encode("utf-8", "surrogateescape") if isinstance(mail, str) else bytes(mail)
    if kept is None and octets.startswith(_ZLIB):
        kept = "zlib"  # a table without mail_encoding; our own fields never begin so
    if not kept:
        return octets
    if kept != "zlib":
        return None
    try:
        return zlib.decompress(octets)
    except zlib.error:
        return b""  # which is other octets than those sent, and said to be
