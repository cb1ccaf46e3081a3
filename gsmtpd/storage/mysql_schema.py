"""How are the tables made in MySQL and MariaDB?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pymysql

from gsmtpd.storage.mysql_connection import LOST, Database, code_of, store_error
from gsmtpd.storage.mysql_hosts import Hosts


def execute(
    database: Database,
    sql: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Execute the statements `sql`, such as those of the schema. Raises StoreError.

    progress: called behind each of them with how many are done, and how many there are.

    A view that cannot be made is left out; returns a line for each, with the reason. Old tables
    may lack the columns, and who made the table may lack the right.
    """
    left_out: list[str] = []
    try:
        connection = Hosts(database).connect()
        try:
            with connection.cursor() as cursor:
                for done, statement in enumerate(sql, 1):
                    try:
                        cursor.execute(statement)
                    except pymysql.MySQLError as error:
                        view = re.search(r"\bVIEW `(\w+)` AS", statement)
                        if view is None or code_of(error) in LOST:
                            raise
                        left_out.append(f"view {view[1]} is not made: {error.args[1]}")
                    progress(done, len(sql))
        finally:
            connection.close()
    except pymysql.MySQLError as error:
        raise store_error(error, database) from error
    return left_out
