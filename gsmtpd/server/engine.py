"""What serves clients, and how does it come to an end? Listeners, threads, and what they share."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from socket import socket
from typing import TYPE_CHECKING, Protocol

from gsmtpd.policy.lookups import Lookups
from gsmtpd.server.client import Leave
from gsmtpd.server.pool import SMTPThreadPool
from gsmtpd.server.tcp import SMTPServer
from gsmtpd.storage.upkeep import Upkeep
from gsmtpd.storage.writer import GroupCommitWriter

if TYPE_CHECKING:
    from gsmtpd.handlers.hook_threads import Hook

_log = logging.getLogger(__name__)

STOP_WITHIN = 28.0  # seconds for the whole stop; supervisors wait 30
STOP_QUIET = 2.0  # seconds in which clients hear 421 at their next command only
STOP_IN_DATA = 10.0  # seconds that a client has to finish the message it has begun
_MAX_DUMPED = 100  # sessions that a state dump tells of
_MAX_CALLS = 8  # of each thread


class Accepted(Protocol):
    """A client whose connection was accepted elsewhere. socket, address: as from accept."""

    @property
    def socket(self) -> socket:
        """Its connection."""

    @property
    def address(self) -> tuple[str, int]:
        """Its IP address and port."""

    def start(self) -> None:
        """It has been greeted: have it heard."""


class Engine:
    """Serves `servers` from `pool`, with `writer` where mail is kept. Build it behind the fork.

    lookups: those of the servers' policy. upkeep: what is looked after meanwhile. hooks: those of
    the servers.
    """

    def __init__(
        self,
        servers: Sequence[SMTPServer],
        pool: SMTPThreadPool,
        writer: GroupCommitWriter | None,
        lookups: Lookups,
        upkeep: Sequence[Upkeep] = (),
        hooks: Sequence[Hook] = (),
    ) -> None:
        self._servers = list(servers)
        self._pool = pool
        self._writer = writer
        self._lookups = lookups
        self._upkeep = list(upkeep)
        self._hooks = list(hooks)

    def start(self) -> None:
        """Start all threads, and accept clients."""
        if self._writer is not None:
            self._writer.start()
        self._lookups.start()
        for hook in self._hooks:
            hook.start()
        for upkeep in self._upkeep:
            upkeep.start()
        self._pool.start(self._servers)

    def serve(self, client: Accepted) -> None:
        """Serve a client whose connection was accepted elsewhere."""
        self._pool.serve(self._servers[0], client.socket, client.address)
        client.start()  # behind the greeting: what waits in a pipe has not come too early

    def retire(self) -> None:
        """Accept no more clients; those that are here stay until they leave."""
        for upkeep in self._upkeep:
            upkeep.stop(0.0)  # another process has taken over
        self._pool.stop_listening()
        self._close_listeners()

    @property
    def idle(self) -> bool:
        """Whether no client is here and none is accepted."""
        return not self._pool.listening() and not self._pool.clients()

    def stop(self, patience: float = STOP_WITHIN - 3) -> None:
        """Bring home mail past its final dot, say goodbye to all clients, end all threads.

        patience: seconds that clients are waited for; the threads have 3 more to end.
        """
        began = time.monotonic()
        self._pool.leave(Leave.AT_NEXT_COMMAND)
        self._close_listeners()
        while self._pool.clients() and (spent := time.monotonic() - began) < patience:
            time.sleep(0.02)
            if spent > STOP_QUIET:
                self._pool.leave(Leave.IN_DATA if spent > STOP_IN_DATA else Leave.UNASKED)
                time.sleep(0.2)
        for hook in self._hooks:
            hook.stop()
        self._lookups.stop()  # before the store: they ask it
        if self._writer is not None and not self._writer.stop(2.0):
            _log.error("the store did not finish in time; what it has is not acknowledged")
        for upkeep in self._upkeep:
            upkeep.stop(1.0)
        self._pool.stop(1.0)

    def _close_listeners(self) -> None:
        """Have our share of the listening sockets closed: the kernel takes no client for us.

        The threads do it, and where one of them hangs this one.
        """
        deadline = time.monotonic() + 1.0
        while self._pool.listening() and time.monotonic() < deadline:
            time.sleep(0.01)
        for server in self._servers:
            server.server_close()

    def dump(self) -> Iterator[str]:
        """Its state for the log, line by line: sessions, queue, and what each thread does.

        Asks no thread, so that it tells of one that hangs as well.
        """
        connections = self._pool.connections()
        waiting = "no store" if self._writer is None else str(self._writer)
        yield f"sessions: {len(connections)}; {waiting}; {self._lookups}"
        yield from map(str, self._hooks)
        for connection in sorted(connections, key=lambda c: c.began)[:_MAX_DUMPED]:
            yield f"session: {connection.describe(time.monotonic())}"
        if len(connections) > _MAX_DUMPED:
            yield f"and {len(connections) - _MAX_DUMPED} sessions more, all younger"
        yield from stacks()


def stacks() -> Iterator[str]:
    """What each thread of this process does now, innermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        calls = reversed(traceback.extract_stack(frame)[-_MAX_CALLS:])
        where = " < ".join(
            f"{'/'.join(call.filename.split('/')[-2:])}:{call.lineno} {call.name}" for call in calls
        )
        yield f"thread {names.get(ident, ident)}: {where}"
