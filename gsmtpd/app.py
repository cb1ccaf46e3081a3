"""How is a server built from a Config? The one place that knows both."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from dataclasses import replace

from gsmtpd.config import Config
from gsmtpd.logs import Logs
from gsmtpd.message.ids import id_maker
from gsmtpd.message.row import RowMaker
from gsmtpd.metrics import Counters
from gsmtpd.policy.domains import DomainPolicy
from gsmtpd.server.pool import SMTPThread, SMTPThreadPool
from gsmtpd.server.tcp import Limits, SMTPServer, bind
from gsmtpd.smtp.rules import Rules
from gsmtpd.storage import mysql, sqlite
from gsmtpd.storage.base import MailReader, Store, StoreError
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.schema import statements
from gsmtpd.storage.writer import GroupCommitWriter

_log = logging.getLogger(__name__)

STOP_WITHIN = 28.0  # seconds for the whole stop; supervisors wait 30
PARENT_LOOK = 0.5  # seconds between two looks whether the master lives
STOP_QUIET = 2.0  # seconds in which clients hear 421 at their next command only
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class ListenError(Exception):
    """An address cannot be listened on. permission: whether rights are what is missing."""

    def __init__(self, text: str, permission: bool) -> None:
        super().__init__(text)
        self.permission = permission


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


def bind_listeners(config: Config) -> list[socket.socket]:
    """A listening socket per configured address. Raises ListenError."""
    listeners: list[socket.socket] = []
    for listener in config.listeners:
        for address in listener.addresses:
            try:
                listeners.append(bind(address.host, address.port))
            except OSError as error:
                for opened in listeners:
                    opened.close()
                raise _listen_error(address.host, address.port, error) from error
    return listeners


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    where = f"cannot listen on {f'[{host}]' if ':' in host else host}:{port}"
    if isinstance(error, PermissionError):
        return ListenError(
            f"{where}: permission denied; a port below 1024 needs root or CAP_NET_BIND_SERVICE,"
            " or choose another by -p PORT",
            True,
        )
    if error.errno == 98:
        return ListenError(
            f"{where}: another program listens there; stop it, or use -p PORT", False
        )
    return ListenError(f"{where}: {error.strerror or error}", False)


def make_counters(config: Config) -> Counters:
    """The shared counters, with a row per SMTP thread of every worker. Make it before the fork."""
    return Counters(processes(config) * threads(config))


def counter_rows(config: Config, number: int) -> range:
    """The rows of the shared counters that belong to the SMTP threads of worker `number`."""
    count = threads(config)
    return range(number * count, (number + 1) * count)


def make_database(config: Config) -> Database:
    """How to reach the configured MySQL server."""
    chosen = config.store.mysql
    hosts = tuple(Host(h.host, h.port, h.unix_socket) for h in chosen.hosts)
    return Database(hosts, chosen.user, chosen.password, chosen.database, chosen.table)


def make_reader(config: Config) -> MailReader:
    """A reader of the configured store. Raises StoreError."""
    if config.store.backend == "sqlite":
        return sqlite.open_reader(config.store.sqlite.path)
    if config.store.backend == "mysql":
        return mysql.open_reader(make_database(config))
    raise StoreError("[store] backend = null keeps no mail; there is nothing to read")


def schema(config: Config) -> list[str]:
    """The SQL statements that make the configured store's tables."""
    backend = config.store.backend
    if backend == "null":
        raise StoreError("[store] backend = null has no tables")
    return statements(backend, config.store.mysql.table)


def make_tables(config: Config) -> str:
    """Make the configured store's tables where they are missing; says where. Raises StoreError."""
    if config.store.backend == "sqlite":
        sqlite.connect(config.store.sqlite.path).close()
        return f"the tables are in {config.store.sqlite.path}"
    database = make_database(config)
    mysql.execute(database, schema(config))
    return f"the tables are in database {database.database}"


def check_store(config: Config) -> None:
    """Whether the configured store can be used now. Raises StoreError."""
    if config.store.backend == "sqlite":
        sqlite.connect(config.store.sqlite.path).close()
    elif config.store.backend == "mysql":
        store = _mysql_store(config, lambda size: None, warn=False)
        try:
            store.prepare()
        finally:
            store.close()


def _mysql_store(config: Config, on_capacity: mysql.OnCapacity, warn: bool) -> mysql.MySQLStore:
    return mysql.MySQLStore(
        make_database(config),
        _row_maker(config),
        config.store.mysql.connections,
        warn,
        config.store.durability == "strict",
        on_capacity,
    )


def _row_maker(config: Config) -> RowMaker:
    return RowMaker(config.server.host_name, config.domains.primary_domain)


class Worker:
    """One worker process: servers, SMTP threads and the writer. Build it behind the fork.

    number: 0, 1, …, which rows of `counters` are its own.
    """

    def __init__(
        self,
        config: Config,
        listeners: list[socket.socket],
        counters: Counters,
        logs: Logs,
        number: int,
    ) -> None:
        self._number = number
        limits = config.limits
        self._rules = Rules(
            host_name=config.server.host_name,
            max_size=limits.max_size,
            max_recipients=limits.max_recipients,
            reject_bare_newline=limits.bare_newline == "reject",
        )
        self._servers: list[SMTPServer] = []
        self._writer = self._make_writer(config)
        self._pool = SMTPThreadPool(
            [
                SMTPThread(f"smtp-{row}", counters.row(row), logs.mail_log())
                for row in counter_rows(config, number)
            ]
        )
        policy = DomainPolicy(config.domains.accept)
        limit = Limits(limits.max_clients, limits.timeout, limits.session_timeout)
        new_id = id_maker(time.time())
        for listener in listeners:
            self._servers.append(
                SMTPServer(
                    listener,
                    self._pool,
                    self._rules,
                    limit,
                    policy,
                    self._writer,
                    new_id,
                    counters,
                )
            )

    def _make_writer(self, config: Config) -> GroupCommitWriter | None:
        store: Store
        if config.store.backend == "sqlite":
            durable = config.store.durability == "strict"
            store = sqlite.SQLiteStore(config.store.sqlite.path, _row_maker(config), durable)
            return GroupCommitWriter(store, threads=1)
        if config.store.backend == "mysql":
            store = _mysql_store(config, self._take_capacity, warn=self._number == 0)
            return GroupCommitWriter(store, config.store.mysql.connections)
        return None

    def _take_capacity(self, size: int) -> None:
        """The database takes messages of `size` octets at most: announce no more than that."""
        if size < self._rules.max_size:
            if self._number == 0:
                _log.warning(
                    "the database's max_allowed_packet takes messages up to %d octets; max_size ="
                    " %d is lowered to that (raise max_allowed_packet to twice max_size and 64K)",
                    size,
                    self._rules.max_size,
                )
            self._rules = replace(self._rules, max_size=size)
            for server in self._servers:
                server.rules = self._rules

    def run(self) -> None:
        """Serve until a stop signal, or until the parent has died; then finish what was begun."""
        # Blocked in every thread, so that only the wait below takes them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        parent = os.getppid()
        if self._writer is not None:
            self._writer.start()
        self._pool.start(self._servers)
        while signal.sigtimedwait(_STOP_SIGNALS, PARENT_LOOK) is None:
            if os.getppid() != parent:
                _log.error("the master process is gone; worker %d stops", os.getpid())
                break
        self._stop()

    def _close_listeners(self) -> None:
        """Close our share of the listening sockets, that the kernel takes no client for us."""
        deadline = time.monotonic() + 1.0
        while self._pool.listening() and time.monotonic() < deadline:
            time.sleep(0.01)
        for server in self._servers:
            server.server_close()

    def _stop(self) -> None:
        began = time.monotonic()
        self._pool.leave(at_once=False)
        self._close_listeners()
        while self._pool.clients() and (spent := time.monotonic() - began) < STOP_WITHIN - 3:
            time.sleep(0.02)
            if spent > STOP_QUIET:
                self._pool.leave(at_once=True)
                time.sleep(0.2)
        if self._writer is not None and not self._writer.stop(2.0):
            _log.error("the store did not finish in time; what it has is not acknowledged")
        self._pool.stop(1.0)
