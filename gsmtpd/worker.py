"""What does a worker process do? It serves until it is told to stop, or until its master is gone.

Master and worker are joined by a pair of sockets. The worker says READY, the master LEAVE, the
worker LEFT; and the end of either is the end of the connection.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from gsmtpd import heap
from gsmtpd.logs import Logs
from gsmtpd.server.engine import Engine
from gsmtpd.server.stdio import StdioClient
from gsmtpd.signals import SignalQueue

_log = logging.getLogger(__name__)

READY = b"R"  # from the worker: it accepts clients
LEAVE = b"L"  # to the worker: accept no more, and end when the last client has left
LEFT = b"l"  # from the worker: it accepts no more
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1, signal.SIGUSR2)
_LOOK = 200  # milliseconds between two looks whether the last client has left
_TRIM_LOOK = heap.TRIM_EVERY * 1000  # milliseconds


class Served(Protocol):
    """What a worker runs: an Engine, what runs handlers, or what serves the status page."""

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do behind `retire`."""

    def start(self) -> None:
        """Begin."""

    def retire(self) -> None:
        """Begin nothing new."""

    def stop(self) -> object:
        """End."""

    def dump(self) -> Iterable[str]:
        """What it does, for the log."""


def run(engine: Served, channel: socket.socket, logs: Logs) -> None:
    """Serve clients with `engine`. channel: to the master. Call it with all signals blocked."""
    worker = _Worker(engine, logs)
    channel.send(READY)
    worker.serve(channel)


def run_one(engine: Engine, client: StdioClient, logs: Logs) -> None:
    """Serve one client, that inetd has accepted. Call it with all signals blocked."""
    worker = _Worker(engine, logs)
    engine.serve(client)
    worker.serve(None)
    client.finish()


class _Worker:
    def __init__(self, engine: Served, logs: Logs) -> None:
        self._engine = engine
        self._logs = logs
        # A crash, or the SIGABRT that a hung worker gets, leaves what each thread did in the log.
        if logs.fault_descriptor is not None:
            faulthandler.enable(logs.fault_descriptor)
        heap.share()
        self._signals = SignalQueue(SIGNALS)
        self._poll = select.poll()
        self._poll.register(self._signals, select.POLLIN)
        # The threads are started with all signals blocked, so that the kernel gives them to none
        # of them; this thread does nothing else and takes them now.
        engine.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def serve(self, channel: socket.socket | None) -> None:
        """Until the end. Without a channel: until the only client has left."""
        leaving = channel is None
        if channel is not None:
            self._poll.register(channel, select.POLLIN)
        trim_at = time.monotonic() + heap.TRIM_EVERY
        while not (leaving and self._engine.idle):
            ready = [fd for fd, _ in self._poll.poll(_LOOK if leaving else _TRIM_LOOK)]
            if time.monotonic() >= trim_at:
                heap.trim()
                trim_at = time.monotonic() + heap.TRIM_EVERY
            if self._told_to_stop():
                break
            if channel is not None and channel.fileno() in ready:
                if _heard(channel) != LEAVE:
                    _log.error("the master process is gone; worker %d stops", os.getpid())
                    break
                leaving = True
                self._engine.retire()
                with suppress(OSError):
                    channel.send(LEFT)
        self._engine.stop()

    def _told_to_stop(self) -> bool:
        for number in self._signals.take():
            if number in STOP_SIGNALS:
                return True
            if number == signal.SIGUSR1:
                self._logs.reopen()
            else:
                for line in self._engine.dump():
                    _log.warning("worker %d: %s", os.getpid(), line)
        return False


def _heard(channel: socket.socket) -> bytes:
    try:
        return channel.recv(1)
    except OSError:
        return b""
