"""What is in the store? The few queries that people ask, over any DB-API connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gsmtpd.storage.base import StoredMail, StoreError

_FIELDS = ", ".join(f"`{name.rstrip('_')}`" for name in StoredMail._fields)


class SQLReader:
    """Reads mail through a DB-API connection.

    table: its name, `\\w+`. mark: the driver's parameter mark, "?" or "%s".
    """

    def __init__(
        self, connection: Any, table: str, mark: str, explain: Callable[[Exception], StoreError]
    ) -> None:
        self._connection = connection
        self._explain = explain
        self._table = table
        self._mark = mark

    def recent(self, limit: int) -> list[StoredMail]:
        """The newest `limit` mails, oldest first. Raises StoreError."""
        rows = self._ask(f"ORDER BY mail_id DESC LIMIT {self._mark}", limit)
        return rows[::-1]

    def after(self, mail_id: int) -> list[StoredMail]:
        """The mails with a higher id than `mail_id`, oldest first. Raises StoreError."""
        return self._ask(f"WHERE mail_id > {self._mark} ORDER BY mail_id LIMIT 1000", mail_id)

    def mail(self, mail_id: int) -> tuple[StoredMail, bytes] | None:
        """One mail and its bytes, or None where there is none. Raises StoreError."""
        rows = self._ask(f"WHERE mail_id = {self._mark}", mail_id)
        if not rows:
            return None
        found = self._query(
            f"SELECT mail FROM `{self._table}` WHERE mail_id = {self._mark}", mail_id
        )
        return rows[0], bytes(found[0][0])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, where: str, value: int) -> list[StoredMail]:
        found = self._query(f"SELECT {_FIELDS} FROM `{self._table}` {where}", value)
        return [StoredMail(row[0], str(row[1]), *row[2:]) for row in found]

    def _query(self, sql: str, value: int) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql, (value,))
            return list(cursor.fetchall())
        except Exception as error:
            raise self._explain(error) from error
        finally:
            cursor.close()
