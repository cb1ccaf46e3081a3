"""How is a server built from a Config? The one place that knows both."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from gsmtpd.app_listen import make_limits, make_manner, make_rules
from gsmtpd.app_policy import make_lookups, query_threads
from gsmtpd.config import Config
from gsmtpd.logs import Logs
from gsmtpd.message.ids import id_maker
from gsmtpd.message.row import FASTEST, Decode, RowMaker
from gsmtpd.metrics import Counter, Counters
from gsmtpd.policy.crowd import Seat
from gsmtpd.policy.files import PolicyFiles, PolicyUpkeep
from gsmtpd.server.certificates import Certificates
from gsmtpd.server.engine import Engine
from gsmtpd.server.listeners import Listener
from gsmtpd.server.pool import SMTPThread, SMTPThreadPool
from gsmtpd.server.tcp import SMTPServer
from gsmtpd.storage import mysql, mysql_schema, spool, sqlite
from gsmtpd.storage.base import Store, StoreError
from gsmtpd.storage.body_store import BodyStore, open_body_store
from gsmtpd.storage.counter import counter_chore
from gsmtpd.storage.dedupe import DedupingStore
from gsmtpd.storage.elsewhere import ElsewhereStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_hosts import OnAway
from gsmtpd.storage.mysql_link import Link
from gsmtpd.storage.partitions import clause, partitions_chore
from gsmtpd.storage.reader import Bodies, MailReader
from gsmtpd.storage.retention import (
    Times,
    mysql_chore,
    purge_mysql,
    purge_sqlite,
    sqlite_chore,
)
from gsmtpd.storage.schema import statements
from gsmtpd.storage.spooling import with_spool
from gsmtpd.storage.upkeep import Chore, Upkeep
from gsmtpd.storage.writer import GroupCommitWriter

_log = logging.getLogger(__name__)


class Share(NamedTuple):
    """What one process writes of the memory that all share. rows: one for each SMTP thread."""

    counters: Counters
    rows: range
    seat: Seat


def processes(config: Config) -> int:
    """How many workers to fork."""
    if config.server.processes is not None:
        return config.server.processes
    if config.store.backend == "sqlite":
        return 1  # SQLite lets one process write at a time; a second would only wait for it
    # The other half is the kernel's and the database's: on 2 cores one worker took as many
    # messages a second as two, or more, with smaller commits' overhead paid once.
    return (len(os.sched_getaffinity(0)) + 1) // 2


def threads(config: Config) -> int:
    """How many SMTP threads a worker has: under the GIL more only hand the lock around."""
    return config.server.threads or 1


def wanted(config: Config) -> dict[str, list[tuple[str, int]]]:
    """The addresses to listen on, by the names of their listeners."""
    return {
        listener.name: [(address.host, address.port) for address in listener.addresses]
        for listener in config.listeners
    }


def make_logs(config: Config, foreground: bool) -> Logs:
    """The configured logs, open but not in use yet. Raises LogError."""
    chosen = config.log
    path = chosen.file or ("-" if foreground else "")
    return Logs(path, chosen.level, chosen.format, chosen.mail_file)


def make_database(config: Config) -> Database:
    """How to reach the configured MySQL server."""
    chosen = config.store.mysql
    hosts = tuple(Host(h.host, h.port, h.unix_socket) for h in chosen.hosts)
    return Database(hosts, chosen.user, chosen.password, chosen.database, chosen.table)


def database_status(config: Config, away: int) -> list[dict[str, object]]:
    """The configured hosts of the database. away: those that some worker leaves alone, as bits."""
    hosts = make_database(config).hosts if config.store.backend == "mysql" else ()
    return [
        {"host": str(host), "away": bool(away >> number & 1)} for number, host in enumerate(hosts)
    ]


def make_reader(config: Config) -> MailReader:
    """A reader of the configured store. Raises StoreError."""
    if config.store.backend == "sqlite":
        return sqlite.open_reader(config.store.sqlite.path, _bodies(config))
    if config.store.backend == "mysql":
        return mysql.open_reader(make_database(config), _bodies(config))
    raise StoreError("[store] backend = null keeps no mail; there is nothing to read")


def _bodies(config: Config) -> Bodies | None:
    try:
        return make_body_store(config)
    except StoreError as error:
        return _NoBodies(error)  # most mail may be read without


class _NoBodies:
    """In place of a body store whose library is missing."""

    def __init__(self, error: StoreError) -> None:
        self._error = error

    def get(self, key: str) -> bytes | None:
        raise self._error


def schema(config: Config) -> list[str]:
    """The SQL statements that make the configured store's tables."""
    backend = config.store.backend
    if backend == "null":
        raise StoreError("[store] backend = null has no tables")
    partitions = clause(time.time()) if config.store.mysql.partition == "hour" else ""
    return statements(backend, config.store.mysql.table, partitions)


def make_tables(config: Config) -> str:
    """Make the configured store's tables where they are missing; says where. Raises StoreError."""
    if config.store.backend == "sqlite":
        sqlite.make(config.store.sqlite.path)
        return f"the tables are in {config.store.sqlite.path}"
    database = make_database(config)
    left_out = mysql_schema.execute(database, schema(config))
    return "\n".join([*left_out, f"the tables are in database {database.database}"])


def check_store(config: Config) -> None:
    """Whether the configured store can be used now; makes nothing. Raises StoreError."""
    if config.store.backend == "sqlite":
        sqlite.check(config.store.sqlite.path)
    elif config.store.backend == "mysql":
        if config.store.spool:
            spool.check(config.store.spool)
        store = make_store(config)
        try:
            store.prepare()
        finally:
            store.close()


def check_queries(config: Config) -> None:
    """Whether the configured SQL can be asked now. Raises StoreError."""
    if not config.domains.query and not config.recipients.query:
        return
    if config.store.backend == "sqlite" and not os.path.exists(config.store.sqlite.path):
        wrong = "no mail file yet, so the queries were not tried; start gsmtpd, it makes one"
        raise StoreError(f"{config.store.sqlite.path}: {wrong}")
    database = make_database_store(config)
    if database is None:
        return
    try:
        if config.domains.query:
            _check_query("domains", database.query(config.domains.query))
        if config.recipients.query:
            _check_query("recipients", database.query(config.recipients.query))
    finally:
        database.close()


def _check_query(section: str, finds: Callable[[str], bool]) -> None:
    try:
        finds("nobody@example.com")
    except StoreError as error:
        raise StoreError(f"[{section}] query: {error}") from error


def prepare_store(config: Config) -> None:
    """Make the mail file before any fork: unlike a database server it will not come by itself.

    Likewise the spool. Raises StoreError.
    """
    if config.store.backend == "sqlite":
        sqlite.make(config.store.sqlite.path)
    elif config.store.backend == "mysql" and config.store.spool:
        spool.prepare(config.store.spool)


def settle_store(config: Config) -> None:
    """Leave all mail in the mail file itself, once no process writes there any more."""
    if config.store.backend == "sqlite":
        with suppress(StoreError):
            sqlite.settle(config.store.sqlite.path)


def make_engine(
    config: Config,
    listeners: Sequence[Listener],
    policy: PolicyFiles,
    certificates: Certificates | None,
    share: Share,
    logs: Logs,
    first: bool,
) -> Engine:
    """All that serves clients in one process.

    policy: see make_policy. certificates: see make_certificates. first: whether it is the one of
    several processes that warns of what concerns all. Without listeners there is one server for
    clients that are accepted elsewhere; it speaks as the first listener would.
    """
    _arm_failpoints()
    servers: list[SMTPServer] = []
    away = share.counters.row(share.rows[0])
    database = make_database_store(
        config,
        partial(_limit_size, servers, first),
        first,
        partial(away.__setitem__, Counter.HOSTS_AWAY),
    )
    writer, drainers = _make_writer(config, database, spools=bool(listeners))
    lookups = make_lookups(config, database)
    pool = SMTPThreadPool(
        [SMTPThread(f"smtp-{row}", share.counters.row(row), logs.mail_log()) for row in share.rows]
    )
    limits = make_limits(config, len(share.rows))
    new_id = id_maker(time.time())
    chosen = {listener.name: listener for listener in config.listeners}
    held: list[tuple[str, socket.socket | None]] = [(each.name, each.socket) for each in listeners]
    for name, listener in held or [(config.listeners[0].name, None)]:
        servers.append(
            SMTPServer(
                listener,
                pool,
                make_rules(config, chosen[name]),
                limits,
                policy,
                lookups,
                writer,
                new_id,
                share.counters,
                share.seat,
                make_manner(chosen[name], certificates),
            )
        )
    # Where clients are accepted elsewhere, each has a process: that is no place for upkeep.
    upkeep = _make_upkeep(config, policy, first) if listeners else []
    return Engine(servers, pool, writer, lookups, [*upkeep, *drainers])


def _arm_failpoints() -> None:
    if directory := os.environ.get("GSMTPD_FAILPOINTS"):
        from gsmtpd.failpoints import arm  # only for tests: nothing is to cost anything otherwise

        arm(directory)


def make_store(
    config: Config,
    on_capacity: mysql.OnCapacity = lambda size: None,
    warn: bool = False,
    dedupe: bool = True,
) -> Store:
    """The configured store, not connected yet. Raises StoreError for one that keeps nothing.

    on_capacity, warn: see MySQLStore. dedupe: whether dedupe_window counts.
    """
    database = make_database_store(config, on_capacity, warn)
    if database is None:
        raise StoreError("[store] backend = null keeps no mail")
    return _with_more(config, database, dedupe)


def make_database_store(
    config: Config,
    on_capacity: mysql.OnCapacity = lambda size: None,
    warn: bool = False,
    on_away: OnAway = lambda bits: None,
) -> sqlite.SQLiteStore | mysql.MySQLStore | None:
    """The configured database alone, not connected yet; None for null."""
    chosen = config.store
    rows = _row_maker(config)
    durable = chosen.durability == "strict"
    if chosen.backend == "sqlite":
        return sqlite.SQLiteStore(chosen.sqlite.path, rows, durable)
    if chosen.backend == "mysql":
        database, connections = make_database(config), chosen.mysql.connections
        connections += bool(chosen.spool)  # what empties it writes, too
        lookups = query_threads(config)
        return mysql.MySQLStore(
            database, rows, connections, warn, durable, on_capacity, lookups, on_away
        )
    return None


def _with_more(
    config: Config, database: sqlite.SQLiteStore | mysql.MySQLStore, dedupe: bool = True
) -> Store:
    """The store of `database` and of what else is configured."""
    rows = _row_maker(config)
    bodies = make_body_store(config)
    store: Store = database if bodies is None else ElsewhereStore(database, bodies, rows)
    if dedupe and config.store.dedupe_window is not None:
        store = DedupingStore(store, database, config.store.dedupe_window, rows.recipients)
    return store


def make_body_store(config: Config) -> BodyStore | None:
    """The configured body store, not connected yet. Raises StoreError if its library is missing."""
    chosen = config.store.body
    if chosen.backend == "none":
        return None
    where = chosen.address
    return open_body_store(chosen.backend, where.host, where.port, where.unix_socket, chosen.ttl)


def _make_writer(
    config: Config, database: sqlite.SQLiteStore | mysql.MySQLStore | None, spools: bool
) -> tuple[GroupCommitWriter | None, list[Upkeep]]:
    """What stores mail, and what empties the spool, if there is one.

    spools: False for a process that serves one client, and leaves nobody to empty it.
    """
    if database is None:
        return None, []
    chosen = config.store
    store = _with_more(config, database)
    if isinstance(database, sqlite.SQLiteStore):
        return GroupCommitWriter(store, 1), []
    drainers = []
    if chosen.spool and spools:
        store, drainer = with_spool(store, database, chosen.spool, chosen.spool_size)
        drainers.append(Upkeep([drainer], name="drainer"))
    return GroupCommitWriter(store, chosen.mysql.connections), drainers


def keep_times(config: Config) -> Times:
    """How long the configuration has mail kept."""
    return Times(config.store.keep.default, config.store.keep.domains)


def purge(config: Config, times: Times, dry: bool) -> int:
    """Delete mail older than `times` say; how many rows. dry: only count. Raises StoreError.

    Does what else upkeep has to do, too: under inetd nobody else does.
    """
    if config.store.backend == "sqlite":
        return purge_sqlite(config.store.sqlite.path, times, dry)
    if config.store.backend == "mysql":
        if not dry:
            _catch_up(config, times)
        return purge_mysql(make_database(config), times, dry)
    raise StoreError("[store] backend = null keeps no mail; there is nothing to delete")


def _catch_up(config: Config, times: Times) -> None:
    """Count what has come; make hours ahead, and drop those that are over."""
    link = Link(make_database(config))
    # With the pause, in seconds, up to which there is more to do.
    chores = [(counter_chore(link), 0.0)]
    if config.store.mysql.partition == "hour":
        chores.append((partitions_chore(link, times), 1.0))
    for chore, most in chores:
        while (pause := chore.step()) <= most:
            time.sleep(pause)
        chore.close()


def _make_upkeep(config: Config, policy: PolicyFiles, first: bool) -> list[Upkeep]:
    """What looks after the files of `policy`, and in the first process after the store."""
    made = [Upkeep([PolicyUpkeep(policy)], name="lists")] if policy.paths else []
    chores = _store_chores(config) if first else []
    return [*made, Upkeep(chores)] if chores else made


def _store_chores(config: Config) -> list[Chore]:
    times = keep_times(config)
    if config.store.backend == "mysql":
        return _mysql_chores(config, times)
    if config.store.backend == "sqlite" and times.distinct:
        return [sqlite_chore(config.store.sqlite.path, times)]
    return []


def _mysql_chores(config: Config, times: Times) -> list[Chore]:
    link = Link(make_database(config))
    by_hour = config.store.mysql.partition == "hour"
    chores = [counter_chore(link)]
    if by_hour:
        chores.append(partitions_chore(link, times))
    if times.distinct:
        chores.append(mysql_chore(link, times, drops=by_hour))
    return chores


def _limit_size(servers: Sequence[SMTPServer], first: bool, size: int) -> None:
    """The database takes messages of `size` octets at most: announce no more than that."""
    for server in servers:
        if size >= server.rules.max_size:
            continue
        if first and server is servers[0]:
            _log.warning(
                "the database's max_allowed_packet takes messages up to %d octets; max_size ="
                " %d is lowered to that (raise max_allowed_packet to twice max_size and 64K)",
                size,
                server.rules.max_size,
            )
        server.rules = replace(server.rules, max_size=size)


def _row_maker(config: Config) -> RowMaker:
    return RowMaker(
        config.server.host_name,
        config.domains.primary_domain,
        Decode(config.content.decode),
        _level(config),
        config.content.spam_score_header,
    )


def _level(config: Config) -> int | None:
    """zlib's level; what goes into a body store is always compressed."""
    fallback = None if config.store.body.backend == "none" else FASTEST
    return config.content.compress or fallback
