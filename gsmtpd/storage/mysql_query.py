"""Does the administrator's own SQL find a row in MySQL or MariaDB?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pymysql

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import LOST, Database, code_of, explain

_NO_WAY_IN = LOST | {1044, 1045, 1049}


class Query:
    """A statement with one parameter, `%s`, on a connection of `connection`'s, at any time another.

    For any number of threads.
    """

    def __init__(
        self,
        connection: Callable[[], AbstractContextManager[Any]],
        database: Database,
        sql: str,
    ) -> None:
        self._connection = connection
        self._database = database
        self._sql = sql

    def finds(self, value: str) -> bool:
        """Whether there is a row for `value`. Raises StoreError."""
        try:
            # No transaction: on a connection that was lost DBUtils asks again on another.
            with self._connection() as connection, connection.cursor() as cursor:
                cursor.execute(self._sql, (value,))
                return cursor.fetchone() is not None
        except (pymysql.MySQLError, OSError) as error:
            raise StoreError(self._said(error)) from error

    def _said(self, error: Exception) -> str:
        if code_of(error) in _NO_WAY_IN or len(error.args) < 2:
            return explain(error, self._database)
        return f"{error.args[1]} (error {code_of(error)})"
