"""How is old mail deleted from a mail table in MySQL or MariaDB?"""

from __future__ import annotations

from collections.abc import Callable

import pymysql

from gsmtpd.storage.mysql_connection import RETRY, Database, code_of, store_error
from gsmtpd.storage.mysql_link import Link, OnMySQL
from gsmtpd.storage.mysql_shelf import MySQLShelf
from gsmtpd.storage.retention import Retention, Times, patient, purge
from gsmtpd.storage.shelf import Found
from gsmtpd.storage.upkeep import Chore


def mysql_chore(link: Link, times: Times, drops: bool = False) -> Chore:
    """The chore that deletes old mail from the mail table of `link.database`. drops: see Retention.

    A user who may not DELETE is told so once; it is tried again every ten minutes.
    """
    retention = Retention(MySQLShelf(link), times, drops)
    return OnMySQL("keep", link, retention.step)


def purge_mysql(
    database: Database,
    times: Times,
    dry: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Delete mail that is older than `times` say, once; see `purge`. Raises StoreError."""
    link = Link(database)
    shelf = MySQLShelf(link)
    try:
        shelf.look()
        return purge(shelf, times, dry, progress, _is_busy)
    except (pymysql.MySQLError, OSError) as error:
        raise store_error(error, database) from error
    finally:
        link.close()


def erase_mysql(database: Database, row: Found) -> bool:
    """Delete one mail from the table; whether it was there. Raises StoreError."""
    link = Link(database)
    shelf = MySQLShelf(link)
    try:
        shelf.look()
        return patient(lambda: shelf.delete([row]).rows > 0, _is_busy)
    except (pymysql.MySQLError, OSError) as error:
        raise store_error(error, database) from error
    finally:
        link.end()


def _is_busy(error: Exception) -> bool:
    return isinstance(error, pymysql.MySQLError) and code_of(error) in RETRY
