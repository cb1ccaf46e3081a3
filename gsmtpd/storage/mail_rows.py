"""How are rows of the mail table read, whatever columns it has, over any DB-API connection?"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gsmtpd.storage.base import StoreError, StoreSetupError

MOST_ID = 2**63 - 2  # the highest that one more can be added to, in SQLite


class StoredMail(NamedTuple):
    """A stored row as `gsmtpctl` shows it; the columns of `new_mail` by their names.

    A column that the table lacks is "" or 0.
    """

    mail_id: int
    date: str
    from_: str
    to: str
    subject: str
    size: int
    hash: str
    recipient: str
    return_path: str
    ip_addr: str
    helo: str
    is_tls: int = 0
    has_attach: int = 0


_NO = (0, "", "0", "\0")  # is_tls as a number, or missing, or as text, or as bit(1)
_IP_ADDR = StoredMail._fields.index("ip_addr")


class MailRows:
    """Rows of a table, through a DB-API connection. All methods raise StoreError.

    table: its name, `\\w+`; it may lack columns. mark: the driver's parameter mark, "?" or "%s".
    explain: makes the StoreError of a driver's error. `check` is called before each query, and
    raises StoreError where the connection leads to what is the store no more.
    """

    def __init__(
        self, connection: Any, table: str, mark: str, explain: Callable[[Exception], StoreError]
    ) -> None:
        self.table = table
        self.mark = mark
        self.check: Callable[[], None] = lambda: None
        self._connection = connection
        self._explain = explain
        self._known: set[str] = set()
        self._indexes: dict[str, str] | None = None

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite, where one transaction writes at a time."""
        return self.mark == "?"

    def columns(self) -> set[str]:
        """The names of the table's columns, in lower case."""
        if not self._known:
            cursor = self._connection.cursor()
            try:
                cursor.execute(f"SELECT * FROM `{self.table}` LIMIT 0")
                self._known = {column[0].lower() for column in cursor.description}
            except Exception as error:
                raise self._explain(error) from error
            finally:
                cursor.close()
            if "mail_id" not in self._known:
                raise StoreSetupError(
                    f"table {self.table} has no column mail_id, so its mails have no numbers"
                )
        return self._known

    def names(self, *names: str) -> str:
        """The columns `names` of a SELECT, with NULL for those that are missing."""
        known = self.columns()
        return ", ".join(f"`{name}`" if name in known else "NULL" for name in names)

    def hint(self, column: str) -> str:
        """What behind the table's name has the index that begins with `column` used.

        MySQL would rather walk along the primary key in search of the newest, through all mail.
        SQLite has no such hint, and needs none.
        """
        index = "" if self.is_sqlite else self._first_columns().get(column, "")
        return f" FORCE INDEX (`{index.replace('`', '``')}`)" if index else ""

    def has_index(self, column: str) -> bool:
        """Whether rows are found by `column` without reading them all."""
        return self.is_sqlite or column in self._first_columns()

    def _first_columns(self) -> dict[str, str]:
        """The indexes of MySQL by the column that they begin with."""
        if self._indexes is None:
            found = self.query(f"SHOW INDEX FROM `{self.table}`")
            self._indexes = {
                text_of(column).lower(): text_of(index) for _, _, index, at, column, *_ in found
                if int(at) == 1
            }  # fmt: skip
        return self._indexes

    def mails(self, where: str, *values: object, hint: str = "") -> list[StoredMail]:
        """The rows that `where` leaves, which is all of a SELECT behind the table's name."""
        names = (name.rstrip("_") for name in StoredMail._fields)
        sql = f"SELECT {self.names(*names)} FROM `{self.table}`{hint} {where}"
        return [_mail(row) for row in self.query(sql, *values)]

    def by_ids(self, ids: Iterable[int]) -> list[StoredMail]:
        """The mails of those ids that are there, oldest first."""
        wanted = sorted(ids)
        if not wanted:
            return []
        return self.mails(f"WHERE mail_id IN ({self.marks(wanted)}) ORDER BY mail_id", *wanted)

    def highest(self) -> int:
        """The highest mail_id, 0 without mail."""
        ((found,),) = self.query(f"SELECT MAX(mail_id) FROM `{self.table}`")
        return int(found or 0)

    def marks(self, values: Sequence[object]) -> str:
        """Parameter marks for `values`."""
        return ", ".join([self.mark] * len(values))

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows that the statement finds."""
        self.check()
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql, [_clean(value) for value in values])
            return list(cursor.fetchall())
        except Exception as error:
            raise self._explain(error) from error
        finally:
            cursor.close()

    def close(self) -> None:
        """Close the connection, which may be broken or closed already."""
        with suppress(Exception):
            self._connection.close()


def _clean(value: object) -> object:
    """A text without lone surrogates, which no driver sends."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return value


def _mail(row: Sequence[Any]) -> StoredMail:
    values: list[Any] = [value if isinstance(value, int) else text_of(value) for value in row]
    mail = StoredMail(*values)
    return mail._replace(
        size=mail.size or 0,
        ip_addr=_ip(row[_IP_ADDR]),
        is_tls=int(mail.is_tls not in _NO),
        has_attach=mail.has_attach or 0,
    )


def text_of(value: object) -> str:
    """A column as text, whatever type an old table gave it."""
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    return "" if value is None else str(value)


def octets_of(value: object) -> bytes:
    """A column as octets, whatever type an old table gave it."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    return text_of(value).encode("utf-8", "surrogateescape")


def _ip(value: object) -> str:
    """An address as text: version 2 of Guerrilla SMTPd keeps its octets in a varbinary(16)."""
    text = text_of(value)
    if not isinstance(value, bytes | bytearray) or _is_ip(text):
        return text
    return str(ipaddress.ip_address(bytes(value))) if len(value) in (4, 16) else text


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
