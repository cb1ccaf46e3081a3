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
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd.app_listen import make_limits, make_manner, make_rules
from gsmtpd.app_policy import make_lookups
from gsmtpd.app_store import (
    check_store,
    database_status,
    make_body_store,
    make_database_store,
    make_draining_store,
    make_reader,
    make_store,
    make_tables,
    prepare_store,
    schema,
    settle_store,
    spool_of,
    with_more,
)
from gsmtpd.board import Board, Slot
from gsmtpd.config import Config
from gsmtpd.history import History
from gsmtpd.logs import Logs
from gsmtpd.message.ids import id_maker
from gsmtpd.metrics import Counter, Counters, StoreMeter
from gsmtpd.policy.crowd import Seat
from gsmtpd.policy.files import PolicyFiles, PolicyUpkeep
from gsmtpd.server.carrier import Carrier
from gsmtpd.server.certificates import Certificates
from gsmtpd.server.engine import Engine
from gsmtpd.server.listeners import Listener, open_listeners
from gsmtpd.server.pool import SMTPThread, SMTPThreadPool
from gsmtpd.server.tcp import SMTPServer
from gsmtpd.storage import sqlite
from gsmtpd.storage.base import OnStored, StoreError
from gsmtpd.storage.retention import OnProgress, Times
from gsmtpd.storage.spooling import with_spool
from gsmtpd.storage.sqlite_retention import purge_sqlite, sqlite_chore
from gsmtpd.storage.upkeep import Chore, Upkeep
from gsmtpd.storage.writer import GroupCommitWriter

if TYPE_CHECKING:
    from gsmtpd.handlers.dispatcher import Dispatcher
    from gsmtpd.handlers.hook_threads import MessageHook, RecipientHook
    from gsmtpd.status.server import StatusServer
    from gsmtpd.storage.mysql import MySQLStore

# What app_store makes is had from here as well.
__all__ = [
    "Share", "check_hooks", "check_queries", "check_store", "database_status", "keep_times",
    "make_body_store", "make_database_store", "make_dispatcher", "make_engine", "make_logs",
    "make_reader", "make_store", "make_tables", "prepare_store", "processes", "purge", "schema",
    "settle_store", "spool_of", "threads", "wanted",
]  # fmt: skip

_log = logging.getLogger(__name__)

STATUS = "status"  # the name of its sockets
_LANES = 2  # of an SMTP thread: while one waits for its COMMIT, the other may begin


class Share(NamedTuple):
    """What one process shares with all. rows: one for each SMTP thread.

    owed: an eventfd that wakes who runs handlers, stored: who waits for mail; -1 for none. store:
    the row of what its store takes, None where nobody asks. board: where its threads show what
    they do.
    """

    counters: Counters
    rows: range
    seat: Seat
    owed: int = -1
    stored: int = -1
    store: int | None = None
    board: Board | None = None


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


def open_status(config: Config, held: Sequence[Listener] = ()) -> list[Listener]:
    """The sockets to serve [status] on: those of `held` where they fit. Raises ListenError."""
    wanted = {STATUS: [(address.host, address.port) for address in config.status.listen]}
    where = config.status.variable or "[status] listen"
    return open_listeners(wanted, held, f"change {where}")


def make_logs(config: Config, foreground: bool) -> Logs:
    """The configured logs, open but not in use yet. Raises LogError."""
    chosen = config.log
    path = chosen.file or ("-" if foreground else "")
    return Logs(path, chosen.level, chosen.format, chosen.mail_file)


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
    clients that are accepted elsewhere; it speaks as the first listener would. Raises ConfigError
    for hooks that cannot be had.
    """
    _arm_failpoints()
    servers: list[SMTPServer] = []
    on_stored = partial(_wake, share.owed, share.stored)
    away = share.counters.row(share.rows[0])
    database = make_database_store(
        config,
        partial(_limit_size, servers, config.limits.max_size, first),
        first,
        partial(away.__setitem__, Counter.HOSTS_AWAY),
        on_stored,
    )
    lanes = _lanes(config, share) if listeners else 0
    meter = None if share.store is None else StoreMeter(share.counters.row(share.store))
    writer, drainers = _make_writer(config, database, bool(listeners), lanes, on_stored, meter)
    carriers: list[Carrier] = []
    if lanes and writer is not None and not isinstance(database, sqlite.SQLiteStore | None):
        carriers += [Carrier(writer, database.open_lane) for _ in range(lanes)]
    lookups = make_lookups(config, database)
    rcpt_hook, data_hook = _make_hooks(config)
    pool = SMTPThreadPool(
        [
            SMTPThread(
                f"smtp-{row}",
                share.counters.row(row),
                logs.mail_log(),
                carriers,
                None if share.board is None else Slot(share.board, row),
            )
            for row in share.rows
        ]
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
                rcpt_hook,
                data_hook,
            )
        )
    # Where clients are accepted elsewhere, each has a process: that is no place for upkeep.
    upkeep = _make_upkeep(config, policy, first) if listeners else []
    hooks = [hook for hook in (rcpt_hook, data_hook) if hook is not None]
    return Engine(servers, pool, writer, lookups, [*upkeep, *drainers], hooks)


def check_hooks(config: Config) -> None:
    """Whether what [hooks] names can be had by who we are. Raises ConfigError."""
    if config.hooks.rcpt or config.hooks.data:
        from gsmtpd import app_hooks

        app_hooks.check_hooks(config)


def _make_hooks(config: Config) -> tuple[RecipientHook | None, MessageHook | None]:
    if not config.hooks.rcpt and not config.hooks.data:
        return None, None
    from gsmtpd import app_hooks  # not for those who have none

    return app_hooks.make_hooks(config)


def make_dispatcher(config: Config, share: Share) -> Dispatcher:
    """What runs the handlers, in a process of its own. Its row is the only one of `share`."""
    from gsmtpd import app_handlers  # only where there are any
    from gsmtpd.handlers.dispatcher import Shared

    shared = Shared(share.counters.row(share.rows[0]), share.owed)
    return app_handlers.make_dispatcher(config, shared)


def make_status(
    config: Config, listeners: Sequence[Listener], share: Share, history: History
) -> StatusServer:
    """What serves [status], in a process of its own. Its row is the only one of `share`."""
    from gsmtpd import app_status  # only where it is asked for

    shared = app_status.Shared(share.counters, history, share.rows[0], share.stored)
    return app_status.make_status(config, [each.socket for each in listeners], shared)


def check_status(config: Config) -> None:
    """Whether what [status] needs is installed. Raises ConfigError."""
    if config.status.listen:
        from gsmtpd import app_status

        app_status.check(config.status.variable or config.path)


def _arm_failpoints() -> None:
    if directory := os.environ.get("GSMTPD_FAILPOINTS"):
        from gsmtpd.failpoints import arm  # only for tests: nothing is to cost anything otherwise

        arm(directory)


def _wake(owed: int, stored: int, is_owed: bool) -> None:
    """Tell who waits for mail that there is some, and who runs handlers if it is for them."""
    for eventfd in (owed if is_owed else -1, stored):
        if eventfd >= 0:
            with suppress(BlockingIOError):  # they have been told so often that they know
                os.eventfd_write(eventfd, 1)


def _make_writer(
    config: Config,
    database: sqlite.SQLiteStore | MySQLStore | None,
    spools: bool,
    lanes: int,
    on_stored: OnStored,
    meter: StoreMeter | None,
) -> tuple[GroupCommitWriter | None, list[Upkeep]]:
    """What stores mail, and what empties the spool, if there is one.

    spools: False for a process that serves one client, and leaves nobody to empty it. lanes:
    how many of the connections its SMTP thread has.
    """
    if database is None:
        return None, []
    chosen = config.store
    store = with_more(config, database)
    if isinstance(database, sqlite.SQLiteStore):
        return GroupCommitWriter(store, 1, meter=meter), []
    drainers = []
    if chosen.spool and spools:
        own = make_draining_store(config, on_stored)
        later = with_more(config, own)
        store, drainer = with_spool(store, later, own, chosen.spool, chosen.spool_size)
        drainers.append(Upkeep([drainer], name="drainer"))
    return GroupCommitWriter(store, chosen.mysql.connections - lanes, meter=meter), drainers


def _lanes(config: Config, share: Share) -> int:
    """How many connections the SMTP thread of a process has to store mail by itself.

    One is left for what that does not do. None where mail is looked for or put elsewhere first.
    """
    chosen = config.store
    if chosen.backend != "mysql" or chosen.body.backend != "none" or len(share.rows) > 1:
        return 0
    return 0 if chosen.dedupe_window is not None else min(_LANES, chosen.mysql.connections - 1)


def keep_times(config: Config) -> Times:
    """How long the configuration has mail kept."""
    return Times(config.store.keep.default, config.store.keep.domains)


def purge(
    config: Config,
    times: Times,
    dry: bool,
    progress: OnProgress = lambda rows, share: None,
) -> int:
    """Delete mail older than `times` say; how many rows. Raises StoreError.

    dry: only count. progress: see storage.retention.purge.

    Does what else upkeep has to do, too: under inetd nobody else does.
    """
    if config.store.backend == "sqlite":
        return purge_sqlite(config.store.sqlite.path, times, dry, progress)
    if config.store.backend == "mysql":
        from gsmtpd import app_mysql

        return app_mysql.purge(config, times, dry, progress)
    raise StoreError("[store] backend = null keeps no mail; there is nothing to delete")


def _make_upkeep(config: Config, policy: PolicyFiles, first: bool) -> list[Upkeep]:
    """What looks after the files of `policy`, and in the first process after the store."""
    made = [Upkeep([PolicyUpkeep(policy)], name="lists")] if policy.paths else []
    chores = _store_chores(config) if first else []
    return [*made, Upkeep(chores)] if chores else made


def _store_chores(config: Config) -> list[Chore]:
    times = keep_times(config)
    if config.store.backend == "mysql":
        from gsmtpd import app_mysql

        return app_mysql.chores(config, times)
    if config.store.backend == "sqlite" and times.distinct:
        return [sqlite_chore(config.store.sqlite.path, times)]
    return []


def _limit_size(servers: Sequence[SMTPServer], configured: int, first: bool, size: int) -> None:
    """The database takes messages of `size` octets at most: announce no more than that.

    Another of its hosts may take more than the last: up to what is `configured`.
    """
    limit = min(size, configured)
    for server in servers:
        if limit == server.rules.max_size:
            continue
        if first and server is servers[0] and limit < configured:
            _log.warning(
                "the database's max_allowed_packet takes messages up to %d octets; max_size ="
                " %d is lowered to that (raise max_allowed_packet to max_size and 64K)",
                limit,
                configured,
            )
        server.rules = replace(server.rules, max_size=limit)
