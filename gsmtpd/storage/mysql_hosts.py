"""Which of the database's hosts is used, and which is left alone for a while?

Each host has a circuit breaker. It opens where no connection can be had, or where a host says that
it cannot write now. From then on nobody waits for that host: one thread of the process tries it,
after a pause that grows to PROBE_AT_MOST seconds, until it takes a connection and a write again.
Statements go to the first host whose breaker is closed, so they are back at an earlier one once
that has been well for STEADY seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Any

import pymysql

from gsmtpd.complaints import Complaints
from gsmtpd.storage.mysql_connection import (
    CONNECT_TIMEOUT,
    LOST,
    READ_ONLY,
    Database,
    Host,
    close,
    code_of,
    connect_to,
)
from gsmtpd.storage.mysql_doubt import take_lock

PROBE_FIRST = 0.25  # seconds from the failure to the first probe; doubled for each that fails
PROBE_AT_MOST = 2.0
PROBE_TIMEOUT = 3  # seconds, whole ones: to connect, and for each answer
# While another host is in use, one that comes and goes would have everybody change each time.
STEADY = 3.0
_MOST_TOLD = 63  # hosts, as bits of a signed number of 64
_READS_ALONE = READ_ONLY - {1047}  # a Galera node outside the primary component does not read, too

_log = logging.getLogger(__name__)

_LATE = pymysql.err.OperationalError(2013, "the server has not answered in time")

OnAway = Callable[[int], None]


class Hosts:
    """The hosts of `database`, in order of preference. Threads may share it.

    warn: say in the log which one is left, where there are several. on_away: called when it
    changes with the hosts whose breaker is open: bit 0 for the first. lock: what connections hold
    on their server, so that there is one only: what holds it from before is ended; "" for none.
    """

    def __init__(
        self,
        database: Database,
        warn: bool = False,
        on_away: OnAway = lambda bits: None,
        lock: str = "",
    ) -> None:
        self._database = database
        self._hosts = database.hosts
        self._warn = warn and len(self._hosts) > 1
        self._on_away = on_away
        self._lock_name = lock
        self._lock = threading.Lock()
        # Those whose breaker is open, and why: what the error said, as it itself would keep alive
        # the mail that its traceback leads to, and grow each time that it is raised.
        self._away: dict[Host, tuple[Any, ...]] = {}
        self._closed = threading.Event()
        self._complaints = {host: Complaints(f"mysql: host {host}") for host in self._hosts}

    def connect(self, read_timeout: float | None = None, reads_only: bool = False) -> Any:
        """A connection to the first host that gives one. Raises pymysql.err.Error.

        Where all breakers are open it raises at once what opened the first of them. read_timeout:
        seconds, see connect_to. reads_only: a host that only reads will do, if none writes.
        """
        hosts = self._usable(reads_only)
        trouble: pymysql.err.Error | None = None
        for host in hosts:
            try:
                return self._connect_to(host, read_timeout)
            except pymysql.err.Error as error:
                self.failed(host, error)
                trouble = error
        raise trouble or self._why() or pymysql.err.OperationalError(2003, "no host is left")

    def _connect_to(self, host: Host, read_timeout: float | None) -> Any:
        # Whoever is given less time asks for something else, which may be slow by itself.
        late = partial(self.failed, host, _LATE) if read_timeout is None else _ignore
        connection = connect_to(host, self._database, CONNECT_TIMEOUT, read_timeout, late)
        if self._lock_name:
            try:
                take_lock(connection, self._lock_name)
                self._try_to_write(connection)  # what is known there has to be true
            except BaseException:
                close(connection)  # with it the lock is free
                raise
        return connection

    def _usable(self, reads_only: bool) -> list[Host]:
        hosts = [host for host in self._hosts if host not in self._away]
        if not hosts and reads_only:
            hosts = [h for h, why in self._away.copy().items() if {*why[:1]} & _READS_ALONE]
        return hosts

    def failed(self, host: Host, error: Exception) -> None:
        """Open the breaker of `host`: it gave no connection, or cannot write now."""
        with self._lock:
            watched = host in self._away
            if not watched and not self._closed.is_set():
                try:
                    self._start_probing(host)
                except RuntimeError as no_thread:
                    # Without one the breaker would never close again: leave it closed.
                    _log.error("mysql: host %s cannot be watched: %s", host, no_thread)
                    return
            self._away[host] = error.args
            if watched:
                return
            self._tell()
        if self._warn:
            self._complaints[host].say(f"it is left alone until it can be used: {error.args[-1]}")

    def can_write(self) -> bool:
        """Whether there is a host whose breaker is closed."""
        return len(self._away) < len(self._hosts)

    def trouble(self) -> pymysql.err.Error | None:
        """Why the first host cannot be used, if none can."""
        return None if self.can_write() else self._why()

    def _why(self) -> pymysql.err.Error | None:
        why = self._away.get(self._hosts[0])
        return None if why is None else pymysql.err.OperationalError(*why)

    def leaves(self, host: Host) -> bool:
        """Whether a connection to `host` should be given up for one to another host."""
        if len(self._hosts) == 1:
            return False
        return next((h for h in self._hosts if h not in self._away), host) != host

    def close(self) -> None:
        """Try no host any more."""
        self._closed.set()

    def _start_probing(self, host: Host) -> None:
        """Start the thread that tries `host`. Raises RuntimeError."""
        name = f"probe-{host}"
        threading.Thread(target=self._watch, args=(host,), name=name, daemon=True).start()

    def _tell(self) -> None:
        hosts = self._hosts[:_MOST_TOLD]
        self._on_away(sum(1 << number for number, h in enumerate(hosts) if h in self._away))

    def _watch(self, host: Host) -> None:
        """What the thread does that tries `host`, until it is well."""
        pause = PROBE_FIRST
        well_since: float | None = None
        while not self._closed.wait(pause):
            try:
                error = self._probe(host)
            except Exception as unexpected:
                _log.exception("mysql: unexpected trouble with host %s", host)
                error = pymysql.err.OperationalError(2003, repr(unexpected))
            if error is None:
                now = time.monotonic()
                well_since = now if well_since is None else well_since
                if not self.can_write() or now - well_since >= STEADY:
                    self._well(host)
                    return
                pause = PROBE_FIRST
            else:
                self._away[host] = error.args
                well_since = None
                pause = min(pause * 2, PROBE_AT_MOST)

    def _well(self, host: Host) -> None:
        with self._lock:
            del self._away[host]
            self._tell()
        if self._warn:
            self._complaints[host].over()

    def _probe(self, host: Host) -> pymysql.err.Error | None:
        """What keeps `host` from being used, if anything does."""
        try:
            connection = connect_to(host, self._database, PROBE_TIMEOUT, PROBE_TIMEOUT)
        except pymysql.err.Error as error:
            return error
        try:
            with closing(connection):
                self._try_to_write(connection)
        except pymysql.err.Error as error:
            return error
        return None

    def _try_to_write(self, connection: Any) -> None:
        """Raises pymysql.err.Error where the server cannot write now."""
        table = self._database.table
        try:
            with connection.cursor() as cursor:
                with suppress(pymysql.err.OperationalError):  # a server that is no Galera node
                    cursor.execute("SET SESSION wsrep_sync_wait = 1")
                # A node that has lost its cluster, and may not know yet, has no answer to this.
                cursor.execute(f"SELECT 1 FROM `{table}` LIMIT 1")
                # A read-only server, or a node outside the primary component, refuses it.
                cursor.execute(
                    f"INSERT INTO `{table}` (`hash`) SELECT `hash` FROM `{table}` WHERE FALSE"
                )
        except pymysql.err.Error as error:
            # A table or a right that is missing is for the next mail to find out.
            if code_of(error) in READ_ONLY | LOST:
                raise


def _ignore() -> None:
    """What is late changes nothing."""
