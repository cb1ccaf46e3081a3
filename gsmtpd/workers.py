"""Which worker processes are there, and are they well? Forked, watched and replaced here."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from gsmtpd import app, heap, worker
from gsmtpd.board import Board, Shown
from gsmtpd.config import Config, ConfigError
from gsmtpd.history import History
from gsmtpd.logs import Logs
from gsmtpd.metrics import TAKEN, Counter, Counters
from gsmtpd.policy.crowd import Crowd
from gsmtpd.policy.files import PolicyFiles
from gsmtpd.server.certificates import Certificates
from gsmtpd.server.listeners import Listener, close_listeners

_log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at all workers
FIRST_PAUSE = 0.1  # seconds before a dead worker is replaced; doubled for each that fails at once
MAX_PAUSE = 30.0
AT_ONCE = 0.5  # seconds: a worker that does not serve as long as this has failed
# Looks without a beat of an SMTP thread, which beats about once a second. They are counted instead
# of seconds because the master does not look either while the whole machine sleeps or crawls.
SILENT_AFTER = 3
HUNG_AFTER = 15
KILL_AFTER = 1.0  # seconds between asking a hung worker where it hangs and killing it


class Setup(NamedTuple):
    """What workers are made from."""

    config: Config
    listeners: list[Listener]
    logs: Logs
    policy: PolicyFiles
    certificates: Certificates | None
    status: Sequence[Listener] = ()  # sockets of [status], no SMTP is spoken there

    @property
    def processes(self) -> int:
        """How many workers serve clients."""
        return app.processes(self.config)

    @property
    def children(self) -> int:
        """How many workers it has: behind those that serve clients one for each other role."""
        return self.processes + bool(self.config.handlers.each) + bool(self.config.status.listen)

    def role(self, number: int) -> str:
        """What the worker `number` does."""
        if number < self.processes:
            return "smtp"
        return "handlers" if self.config.handlers.each and number == self.processes else "status"


@dataclass(eq=False)
class Child:
    """A worker process. number: its place among those of its setup. Times: monotonic seconds."""

    pid: int
    number: int
    setup: Setup
    rows: range  # its own, of the counters
    seat: int  # its own, of the crowd
    channel: socket.socket
    began: float
    ready_at: float | None = None
    leaving: bool = False  # it has been told to accept no more
    left: bool = False  # and it accepts no more
    beats: list[int] = field(default_factory=list)
    silent: int = 0  # looks since the last beat
    kill_at: float | None = None
    killed: bool = False  # by us, as it hung

    @property
    def role(self) -> str:
        """What it does."""
        return self.setup.role(self.number)

    @property
    def threads(self) -> range:
        """The rows of its threads, which beat. Behind those of SMTP threads is its store's."""
        return self.rows[:-1] if self.role == "smtp" else self.rows

    @property
    def state(self) -> str:
        """One word for people."""
        if self.silent >= SILENT_AFTER:
            return "silent"
        if self.leaving:
            return "leaving"
        return "starting" if self.ready_at is None else "serving"


class Workers:
    """The worker processes of `kept`, which are replaced when they die, and of other setups.

    in_child: called in each new worker with its setup, to close what is the master's alone.
    on_ready: called with a setup when all its workers serve. on_left: see `keep`. on_failed:
    called with a setup other than `kept`, and in words how one of its workers has died.
    """

    def __init__(
        self,
        kept: Setup,
        selector: selectors.BaseSelector,
        in_child: Callable[[Setup], None],
        on_ready: Callable[[Setup], None],
        on_left: Callable[[], None],
        on_failed: Callable[[Setup, str], None],
    ) -> None:
        self.counters = Counters()
        self.history = History()
        self.board = Board()
        self._crowd = Crowd()
        self._owed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes who runs handlers
        self._stored = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes who waits for mail
        self.replaced = 0
        self._kept: Setup | None = kept
        self._selector = selector
        self._in_child = in_child
        self._on_ready = on_ready
        self._on_left = on_left
        self._on_failed = on_failed
        self._children: dict[int, Child] = {}
        self._restarts: dict[int, float] = {}  # number of a worker → when to fork it again
        self._failures: dict[int, int] = {}  # number of a worker → how often it failed at once

    def __len__(self) -> int:
        return len(self._children)

    def start(self, setup: Setup) -> bool:
        """Fork the workers of `setup`; False if the system does not give all of them."""
        forked = [self._fork(setup, number) for number in range(setup.children)]
        return all(forked)

    def keep(self, setup: Setup) -> None:
        """From now on replace the workers of `setup`, and have all others finish.

        `on_left` is called once none of those accepts clients any more.
        """
        self._kept = setup
        self._restarts.clear()
        self._failures.clear()
        for child in self._children.values():
            if child.setup is not setup and not child.leaving:
                child.leaving = True
                with suppress(OSError):
                    child.channel.send(worker.LEAVE)
        self._check_left()

    def _check_left(self) -> None:
        if all(c.left for c in self._children.values() if c.setup is not self._kept):
            self._on_left()

    def stop(self, setup: Setup | None = None) -> None:
        """Have the workers of `setup`, or all for good, stop soon."""
        if setup is None:
            self._kept = None
            self._restarts.clear()
        for child in self._children.values():
            if setup is None or child.setup is setup:
                child.leaving = child.left = True
                os.kill(child.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End those that have not stopped."""
        for child in self._children.values():
            _log.error("worker %d did not stop in time; killing it", child.pid)
            child.killed = True
            os.kill(child.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all."""
        for pid in self._children:
            os.kill(pid, number)

    def status(self) -> list[dict[str, Any]]:
        """How each does. Times in seconds."""
        now = time.monotonic()
        return [
            {
                "pid": child.pid,
                "role": child.role,
                "state": child.state,
                "seconds": round(now - child.began, 1),
                "clients": self._count(child, Counter.CLIENTS),
                "accepted": self._count(child, *TAKEN),
                "rss": heap.resident(child.pid),
            }
            for child in self._children.values()
        ]

    def shown(self) -> list[Shown]:
        """What their threads show; they begin with it when somebody looks."""
        self.board.ask()
        return self.board.read(row for child in self._children.values() for row in child.rows)

    def _count(self, child: Child, *counters: Counter) -> int:
        rows = map(self.counters.row, child.rows)
        return sum(row[counter] for row in rows for counter in counters)

    # Time

    def next_due(self) -> Iterable[float]:
        """When `tick` has something to do, in monotonic seconds."""
        yield from self._restarts.values()
        yield from (c.kill_at for c in self._children.values() if c.kill_at is not None)

    def tick(self, now: float) -> None:
        """Do what is due."""
        for number, due in list(self._restarts.items()):
            if now >= due and self._kept is not None:
                del self._restarts[number]
                self._fork(self._kept, number)
        for child in self._children.values():
            if child.kill_at is not None and now >= child.kill_at:
                child.kill_at = None
                child.killed = True
                os.kill(child.pid, signal.SIGKILL)

    def look(self) -> None:
        """See whether the SMTP threads of each have beaten since the last look; note the totals."""
        self.history.add(self.counters.totals())
        for child in self._children.values():
            beats = [self.counters.row(row)[Counter.BEATS] for row in child.threads]
            # All must have: one thread that hangs keeps its clients waiting.
            moved = [now != then for now, then in zip(beats, child.beats, strict=False)]
            if all(moved):
                child.beats = beats
                child.silent = 0
                continue
            child.silent += 1
            if child.silent == HUNG_AFTER:
                _log.error("worker %d hangs: no sign of life for %d s", child.pid, HUNG_AFTER)
                os.kill(child.pid, signal.SIGABRT)  # leaves in the log what its threads did
                child.kill_at = time.monotonic() + KILL_AFTER

    # Birth and death

    def _fork(self, setup: Setup, number: int) -> bool:
        serves = number < setup.processes
        # One more for the store of those who have one.
        rows = self.counters.take(app.threads(setup.config) + 1 if serves else 1)
        seat = self._crowd.take()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            _log.error("cannot start a worker: %s", error.strerror)
            return self._not_forked(setup, number, rows, seat)
        # No signal is lost between the fork and the worker's own handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = _forked()
        if pid == 0:
            ours.close()
            stored = self._stored if setup.config.status.listen else -1
            share = app.Share(self.counters, rows, self._crowd.seat(seat), self._owed, stored)
            if serves:
                share = share._replace(rows=rows[:-1], store=rows[-1], board=self.board)
            self._be_worker(setup, number, share, theirs)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        if pid < 0:
            ours.close()
            return self._not_forked(setup, number, rows, seat)
        child = Child(pid, number, setup, rows, seat, ours, time.monotonic())
        self._children[pid] = child
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._heard(child))
        return True

    def _not_forked(self, setup: Setup, number: int, rows: range, seat: int) -> bool:
        self.counters.give_back(rows)
        self._crowd.give_back(seat)
        if setup is self._kept:
            self._restart_later(number)
        return False

    def _be_worker(
        self, setup: Setup, number: int, share: app.Share, channel: socket.socket
    ) -> NoReturn:
        """In the new process: close what is the master's, serve, end."""
        code = 70
        try:
            for sibling in self._children.values():
                sibling.channel.close()
            self._in_child(setup)
            worker.run(self._served(setup, number, share), channel, setup.logs)
            code = 0
        except ConfigError as error:
            # It was good when it was checked: a file has changed since.
            _log.error("worker %d cannot start: %s", os.getpid(), error)
        except BaseException:
            _log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(code)

    def _served(self, setup: Setup, number: int, share: app.Share) -> worker.Served:
        """What the worker runs."""
        role = setup.role(number)
        if role != "smtp":
            # They are served by a process that has neither listeners nor certificates.
            close_listeners(setup.listeners)
        if role == "status":
            return app.make_status(setup.config, setup.status, share, self.history)
        close_listeners(setup.status)
        if role == "handlers":
            return app.make_dispatcher(setup.config, share)
        return app.make_engine(
            setup.config,
            setup.listeners,
            setup.policy,
            setup.certificates,
            share,
            setup.logs,
            number == 0,
        )

    def _heard(self, child: Child) -> None:
        """A worker is ready, or has closed its end."""
        try:
            said = child.channel.recv(1)
        except OSError:
            said = b""
        if said == worker.LEFT:
            child.left = True
            self._check_left()
            return
        if said != worker.READY:
            self._hang_up(child)
            return
        child.ready_at = time.monotonic()
        serving = [c for c in self._children.values() if c.setup is child.setup and c.ready_at]
        if len(serving) == child.setup.children:
            self._on_ready(child.setup)

    def _hang_up(self, child: Child) -> None:
        if child.channel.fileno() >= 0:
            self._selector.unregister(child.channel)
            child.channel.close()

    def reap(self) -> None:
        """Take leave of those that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            # As process 1 of a container we are given orphans that are no workers.
            child = self._children.pop(pid, None)
            if child is not None:
                self._bury(child, os.waitstatus_to_exitcode(status))

    def _bury(self, child: Child, code: int) -> None:
        self.counters.give_back(child.rows)
        self._crowd.give_back(child.seat)
        self._hang_up(child)
        lived = time.monotonic() - child.began
        how = f"worker {child.pid} ended {_how(code, child.killed)} after {lived:.1f} s"
        if child.leaving:
            self._check_left()
            if code:
                _log.error("%s, while it was to finish", how)
        elif child.setup is self._kept:
            if child.ready_at and time.monotonic() - child.ready_at >= AT_ONCE:
                self._failures.pop(child.number, None)
            self.replaced += 1
            _log.error("%s; starting another in %g s", how, self._restart_later(child.number))
        else:
            self._on_failed(child.setup, how)

    def _restart_later(self, number: int) -> float:
        """Have a worker forked again; returns in how many seconds."""
        failures = self._failures.get(number, 0)
        self._failures[number] = failures + 1
        pause = min(FIRST_PAUSE * 2.0 ** min(failures, 32), MAX_PAUSE)
        self._restarts[number] = time.monotonic() + pause
        return pause


def _forked() -> int:
    """fork(), but for -1 where the system gives no process."""
    try:
        return os.fork()
    except OSError as error:
        _log.error("cannot start a worker: %s", error.strerror)
        return -1


def _how(code: int, killed: bool) -> str:
    """How a process ended, in words. killed: by us."""
    if code == -signal.SIGKILL and not killed:
        return "by SIGKILL (somebody killed it, or the kernel was out of memory)"
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
