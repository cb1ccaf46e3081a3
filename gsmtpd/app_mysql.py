"""What is built from a Config for mail in MySQL or MariaDB?

Imported only where mail is kept there: PyMySQL is a quarter of what a start takes without it.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gsmtpd.app_policy import query_threads
from gsmtpd.config import Config
from gsmtpd.message.row import RowMaker
from gsmtpd.storage import mysql, mysql_schema
from gsmtpd.storage.base import OnStored
from gsmtpd.storage.counter import counter_chore
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_hosts import OnAway
from gsmtpd.storage.mysql_link import Link
from gsmtpd.storage.mysql_retention import erase_mysql, mysql_chore, purge_mysql
from gsmtpd.storage.partitions import clause, partitions_chore
from gsmtpd.storage.reader import Bodies, MailReader
from gsmtpd.storage.retention import OnProgress, Times
from gsmtpd.storage.schema import statements
from gsmtpd.storage.upkeep import Chore

if TYPE_CHECKING:
    from gsmtpd.storage.facts import Facts


def make_database(config: Config) -> Database:
    """How to reach the configured MySQL server."""
    chosen = config.store.mysql
    # One that is named twice is one.
    hosts = dict.fromkeys(Host(h.host, h.port, h.unix_socket) for h in chosen.hosts)
    return Database(tuple(hosts), chosen.user, chosen.password, chosen.database, chosen.table)


def status(config: Config, away: int) -> list[dict[str, object]]:
    """The configured hosts. away: those that some worker leaves alone, as bits."""
    hosts = make_database(config).hosts
    return [
        {"host": str(host), "away": bool(away >> number & 1)} for number, host in enumerate(hosts)
    ]


def facts(config: Config, strict: bool, seconds: float) -> list[Facts]:
    """What each host says of itself; see `ask_hosts`."""
    from gsmtpd.storage.mysql_facts import ask_hosts  # only people ask

    return ask_hosts(make_database(config), strict, seconds)


def open_reader(config: Config, bodies: Bodies | None) -> MailReader:
    """A reader of the mail table. Raises StoreError."""
    return mysql.open_reader(make_database(config), bodies)


def open_finder(config: Config, bodies: Bodies | None) -> Finder:
    """What finds mail in the mail table. Raises StoreError."""
    database = make_database(config)
    reader = mysql.open_reader(database, bodies)
    return Finder(reader, lambda row: erase_mysql(database, row))


def schema(config: Config) -> list[str]:
    """The SQL statements that make the tables."""
    chosen = config.store.mysql
    partitions = clause(time.time()) if chosen.partition == "hour" else ""
    return statements("mysql", chosen.table, partitions)


def make_tables(config: Config, progress: Callable[[int, int], None]) -> str:
    """Make the tables where they are missing; says where. progress: see app_store.

    Raises StoreError.
    """
    database = make_database(config)
    left_out = mysql_schema.execute(database, schema(config), progress)
    return "\n".join([*left_out, f"the tables are in database {database.database}"])


def make_store(
    config: Config,
    rows: RowMaker,
    on_capacity: mysql.OnCapacity,
    warn: bool,
    on_away: OnAway,
    on_stored: OnStored,
) -> mysql.MySQLStore:
    """The configured database, not connected yet. on_capacity … on_stored: see MySQLStore."""
    return mysql.MySQLStore(
        make_database(config),
        rows,
        config.store.mysql.connections,
        warn,
        config.store.durability == "strict",
        on_capacity,
        query_threads(config),
        on_away,
        on_stored=on_stored,
    )


def make_draining_store(config: Config, rows: RowMaker, on_stored: OnStored) -> mysql.MySQLStore:
    """The database for what empties the spool.

    On one connection with a lock: when that is had, the COMMIT of a worker that was killed while
    it emptied the same spool is over, so that what it stored is known.
    """
    spool = f"{socket.gethostname()}:{os.path.realpath(config.store.spool)}"
    return mysql.MySQLStore(
        make_database(config),
        rows,
        connections=1,
        warn=False,
        strict=config.store.durability == "strict",
        lock=f"gsmtpd spool {hashlib.sha256(spool.encode()).hexdigest()[:40]}",
        on_stored=on_stored,
    )


def chores(config: Config, times: Times) -> list[Chore]:
    """What is to be done beside the mail. times: how long it is kept."""
    link = Link(make_database(config))
    by_hour = config.store.mysql.partition == "hour"
    made = [counter_chore(link)]
    if by_hour:
        made.append(partitions_chore(link, times))
    if times.distinct:
        made.append(mysql_chore(link, times, drops=by_hour))
    return made


def purge(config: Config, times: Times, dry: bool, progress: OnProgress) -> int:
    """Delete mail older than `times` say; how many rows. dry: only count. Raises StoreError."""
    if not dry:
        _catch_up(config, times)
    return purge_mysql(make_database(config), times, dry, progress)


def _catch_up(config: Config, times: Times) -> None:
    """Count what has come; make hours ahead, and drop those that are over."""
    link = Link(make_database(config))
    # With the pause, in seconds, up to which there is more to do.
    wanted = [(counter_chore(link), 0.0)]
    if config.store.mysql.partition == "hour":
        wanted.append((partitions_chore(link, times), 1.0))
    for chore, most in wanted:
        while (pause := chore.step()) <= most:
            time.sleep(pause)
        chore.close()
