"""Does the administrator's own SQL find a row in MySQL or MariaDB?"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import pymysql

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import LOST, Database, code_of, driver, explain
from gsmtpd.storage.mysql_hosts import Hosts
from gsmtpd.storage.mysql_pool import FAILURES, PooledDB

_READ_TIMEOUT = 5.0  # seconds
_NO_WAY_IN = LOST | {1044, 1045, 1049}
# What a column's character set does not have, or would compare with in no way: no row is like it.
_INCOMPARABLE = {1267, 1270, 1271, 1300, 1366, 3854, 3988}


class Queries:
    """Statements with one parameter, `%s`, for so many `threads`, on the first of `hosts`.

    They have a pool of their own: DBUtils connects with a pool's lock held, and writers that had a
    connection waited 5.5 s for the lock where the first of two hosts was dead. None of them waits
    for an answer longer than a client does.
    """

    def __init__(self, database: Database, threads: int, hosts: Hosts) -> None:
        self._database = database
        self._pool = PooledDB(
            partial(hosts.connect, _READ_TIMEOUT, reads_only=True),
            maxconnections=threads,
            reset=False,
            ping=0,
            failures=FAILURES,
        )

    def finds(self, sql: str, value: str) -> bool:
        """Whether there is a row for `value`. Raises StoreError."""
        try:
            with closing(self._pool.connection()) as connection:  # back into the pool
                try:
                    return _finds(driver(connection), sql, value)
                except pymysql.MySQLError as error:
                    if code_of(error) not in LOST:
                        raise
                # Through DBUtils, which connects again. It does so for other errors, too, and
                # each connection costs some 20 ms.
                return _finds(connection, sql, value)
        except (pymysql.MySQLError, OSError) as error:
            if code_of(error) in _INCOMPARABLE and not value.isascii():
                return False
            raise StoreError(self._said(error)) from error

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.close()

    def _said(self, error: Exception) -> str:
        if code_of(error) in _NO_WAY_IN or len(error.args) < 2:
            return explain(error, self._database)
        return f"{error.args[1]} (error {code_of(error)})"


def _finds(connection: Any, sql: str, value: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(sql, (value,))
        return cursor.fetchone() is not None
