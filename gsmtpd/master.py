"""What does the master do? It keeps the workers, and reloads and stops them when it is told to.

It runs one loop over signals, its workers and the control socket; it has no thread and keeps no
connection to any database, so nothing of that kind is ever shared by a fork.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gsmtpd import __version__, app, telling, worker
from gsmtpd.config import Config
from gsmtpd.control import Answer, ControlError, ControlServer
from gsmtpd.maillog import timestamp
from gsmtpd.metrics import TAKEN, Counter, Overload
from gsmtpd.next_setup import NotReloadedError, read_anew, renewed
from gsmtpd.policy.lists import ListError
from gsmtpd.recent import Recent
from gsmtpd.server.engine import STOP_WITHIN, stacks
from gsmtpd.server.listeners import close_listeners, take_leave
from gsmtpd.signals import SignalQueue
from gsmtpd.systemd import Notifier
from gsmtpd.workers import LOOK, Setup, Workers

_log = logging.getLogger(__name__)

READY_WITHIN = 15.0  # seconds that new workers have to begin to serve
LEFT_WITHIN = 5.0  # seconds that old workers have to accept no more
_REFUSED = "reload refused, the old configuration stays"
_SIGNALS = (*worker.SIGNALS, signal.SIGHUP, signal.SIGCHLD)
_NEVER = float("inf")
_COMPLAINTS = 86400.0  # seconds between two complaints of certificates that are about to expire


@dataclass
class Reload:
    """A reload under way.

    answers: whom to tell how it went. deadline: of what is waited for, in monotonic seconds.
    taken_over: the new workers serve, the old ones are about to accept no more. renews: it is of
    certificates alone, and no configuration was read.
    """

    setup: Setup
    answers: list[Answer]
    deadline: float
    taken_over: bool = False
    renews: bool = False
    warnings: list[str] = field(default_factory=list)


class Master:
    """Runs the workers of `setup` until a stop signal.

    load: reads the configuration anew; raises ConfigError or PrivilegeError. foreground: whether
    the log is stderr where the config names none. on_ready: called once clients are served.
    in_worker: called in each new worker, to close what is the master's alone.
    """

    def __init__(
        self,
        setup: Setup,
        load: Callable[[], Config],
        notifier: Notifier,
        foreground: bool,
        on_ready: Callable[[], None] = lambda: None,
        in_worker: Callable[[], None] = lambda: None,
    ) -> None:
        self._current = setup
        self._load = load
        self._notifier = notifier
        self._foreground = foreground
        self._on_ready = on_ready
        self._in_worker = in_worker
        self._began = time.time()
        self._reload: Reload | None = None
        self._again: list[Answer] | None = None  # who waits for a reload after the one under way
        self._last_reload: dict[str, Any] | None = None
        self._stop_deadline: float | None = None  # monotonic seconds; None while there is no stop
        self._next_look = self._next_alive = time.monotonic()
        self._start_deadline = self._next_look + READY_WITHIN
        self._next_complaints = self._next_look + _COMPLAINTS
        # Not under nohup, which has HUP ignored.
        hup = signal.getsignal(signal.SIGHUP)
        self._had_terminal = hup is not signal.SIG_IGN and _has_terminal()
        self._recent = Recent()
        self._selector = selectors.DefaultSelector()
        self._signals = SignalQueue(_SIGNALS)
        self._selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what came early comes now
        self._told: dict[str, Callable[[str], dict[str, Any]]] = {
            "status": lambda about: self.status(),
            "why": self._why,
            "sessions": lambda about: telling.sessions(self._workers.shown()),
            "events": lambda about: telling.events(self._recent, about),
            "history": lambda about: telling.history(self._workers.history, about),
        }
        self._control = self._open_control()
        self._workers = Workers(
            setup, self._selector, self._in_child, self._all_ready, self._all_left, self._failed
        )

    def _open_control(self) -> ControlServer | None:
        path = self._current.config.server.control_socket
        if not path:
            return None
        try:
            return ControlServer(path, self._selector, self._asked)
        except ControlError as error:
            # No reason not to receive mail.
            _log.warning("%s; gsmtpctl status, reload and stop do not reach this server", error)
            return None

    def run(self) -> int:
        """Serve; returns the exit code."""
        self._workers.start(self._current)
        self._say_listening()
        while self._stop_deadline is None or self._workers:
            try:
                self._round()
            except Exception:
                _log.exception("fault in the master, which goes on")
                time.sleep(0.1)
        if self._control is not None:
            self._control.close()
        self._recent.close()
        app.settle_store(self._current.config)
        _log.info("stopped")
        # One that is sent twice does not end us otherwise, also while Python ends, which gives all
        # signals back to the kernel.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._signals.close()
        return 0

    def _round(self) -> None:
        """Wait for what comes next, and do it."""
        due = min([self._next_look, *self._workers.next_due()])
        for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
            key.data()
        self._tick(time.monotonic())

    def _say_listening(self) -> None:
        where = ", ".join(map(str, self._current.listeners))
        _log.info("listening on %s; worker processes: %d", where, self._current.processes)
        if self._current.status:
            _log.info("status on %s", ", ".join(f"http://{each}/" for each in self._current.status))

    def _tick(self, now: float) -> None:
        self._workers.tick(now)
        if self._reload is not None and now > self._reload.deadline:
            self._out_of_time(self._reload)
        if now > self._start_deadline:
            self._say_ready()
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._look(now)

    def _look(self, now: float) -> None:
        self._workers.look()
        if self._control is not None:
            self._control.sweep()
        if self._stop_deadline is not None:
            if now > self._stop_deadline:
                self._stop_deadline = _NEVER
                self._workers.kill()
            return
        if self._notifier.watchdog is not None and now >= self._next_alive:
            # A look too early rather than one too late.
            self._next_alive = now + self._notifier.watchdog - LOOK
            self._notifier.alive()
        total = self._workers.counters.total
        self._notifier.status(
            f"clients: {total(Counter.CLIENTS)}, accepted: {sum(map(total, TAKEN))},"
            f" refused: {total(Counter.REFUSED)}"
        )
        # So that new workers begin with what the others have. They say what is wrong.
        with suppress(ListError):
            self._current.policy.refresh()
        self._look_at_certificates()

    # Workers

    def _in_child(self, setup: Setup) -> None:
        self._signals.close()
        self._selector.close()
        if self._control is not None:
            self._control.close_copies()
        for other in self._setups():
            if other is not setup:
                close_listeners(other.listeners, but=setup.listeners)
                close_listeners(other.status, but=setup.status)
                other.logs.close()
        setup.logs.install()
        setup.logs.remember(self._recent.append)
        self._in_worker()

    def _setups(self) -> list[Setup]:
        """The setup whose workers serve, and that of a reload under way."""
        setups = [self._current]
        if self._reload is not None and not self._reload.taken_over:
            setups.append(self._reload.setup)
        return setups

    def _all_ready(self, setup: Setup) -> None:
        if self._reload is not None and setup is self._reload.setup:
            if not self._reload.taken_over:
                self._take_over(self._reload)
        elif setup is self._current:
            self._say_ready()

    def _say_ready(self) -> None:
        """Once, when the first workers serve, or it has taken too long to wait any longer."""
        if self._start_deadline is not _NEVER:
            self._start_deadline = _NEVER
            self._on_ready()
            self._notifier.ready()

    def _failed(self, setup: Setup, how: str) -> None:
        if self._reload is not None and setup is self._reload.setup:
            self._give_up(how)

    # Signals

    def _take_signals(self) -> None:
        # A worker that was told to end together with us (as systemd does) is not to be replaced: of
        # two signals that wait the kernel runs the handler of the greater, SIGCHLD, first.
        for number in sorted(self._signals.take(), key=signal.SIGCHLD.__eq__):
            if number == signal.SIGCHLD:
                self._workers.reap()
            elif number == signal.SIGHUP:
                self._hung_up()
            elif number == signal.SIGUSR1:
                for setup in self._setups():
                    setup.logs.reopen()
                self._workers.signal(number)
            elif number == signal.SIGUSR2:
                self._dump()
                self._workers.signal(number)
            else:
                self.stop(number.name)

    def _hung_up(self) -> None:
        """Reload; but if our terminal was closed, stop."""
        if self._foreground and self._had_terminal and not _has_terminal():
            self.stop("its terminal was closed")
        else:
            self.reload([])

    def _dump(self) -> None:
        status = self.status()
        for name, value in status.items():
            for one in value if isinstance(value, list) else [value]:
                text = one if isinstance(one, str) else json.dumps(one)
                _log.warning("master %d: %s: %s", os.getpid(), name, text)
        for line in stacks():
            _log.warning("master %d: %s", os.getpid(), line)

    # Reload

    def reload(self, answers: list[Answer]) -> None:
        """Take over the configuration as it is now; `answers` are told how it went."""
        if self._stop_deadline is not None:
            return
        if self._reload is not None:
            # The one under way may have read the file before it was changed.
            self._again = (self._again or []) + answers
            return
        anew = partial(read_anew, self._current, self._load, self._foreground)
        self._begin_reload(answers, anew)

    def _look_at_certificates(self) -> None:
        """Take over certificates whose files have changed, and nothing else."""
        current = self._current.certificates
        if current is None or self._reload is not None:
            return
        if time.monotonic() > self._next_complaints:
            self._next_complaints = time.monotonic() + _COMPLAINTS
            for complaint in current.complaints():
                _log.warning("%s", complaint)
        if current.changed():
            _log.info("the files of [tls] have changed")
            anew = partial(renewed, self._current, self._foreground)
            self._begin_reload([], anew, renews=True)

    def _begin_reload(
        self, answers: list[Answer], prepare: Callable[[], Setup], renews: bool = False
    ) -> None:
        self._notifier.reloading()
        try:
            setup = prepare()
        except NotReloadedError as error:
            self._reloaded(answers, error.problems, renews=renews)
            return
        except Exception:
            _log.exception("fault in a reload")
            self._reloaded(answers, ("a fault of gsmtpd, see the log",), renews=renews)
            return
        warnings = [] if renews else [*setup.config.warnings]
        if setup.certificates is not None:
            warnings += setup.certificates.complaints()
        deadline = time.monotonic() + READY_WITHIN
        self._reload = Reload(setup, answers, deadline, renews=renews, warnings=warnings)
        if not self._workers.start(setup):
            self._give_up("the system gives no more processes")

    def _take_over(self, reload: Reload) -> None:
        """The new workers serve: have the old ones finish."""
        old, self._current = self._current, reload.setup
        reload.taken_over = True
        reload.deadline = time.monotonic() + LEFT_WITHIN
        self._say_ready()
        self._current.logs.install()
        self._current.logs.inherit(old.logs)
        old.logs.close()
        take_leave(old.listeners, but=self._current.listeners)
        take_leave(old.status, but=self._current.status)
        if _fixed(old.config) != _fixed(self._current.config):
            reload.warnings.append(
                "[server] user, group, pid_file and control_socket change at a restart only"
            )
        self._workers.keep(self._current)

    def _all_left(self) -> None:
        """From here on all clients are served by the new configuration."""
        if self._reload is not None and self._reload.taken_over:
            done, self._reload = self._reload, None
            self._reloaded(done.answers, (), done.warnings, done.renews)

    def _out_of_time(self, reload: Reload) -> None:
        if reload.taken_over:
            reload.warnings.append("some old workers hang, and may still accept clients")
            self._all_left()
        else:
            self._give_up(f"its workers did not serve within {READY_WITHIN:g} s")

    def _give_up(self, why: str) -> None:
        """End the reload under way; the old workers never stopped serving."""
        failed = self._reload
        assert failed is not None
        self._reload = None
        self._workers.stop(failed.setup)
        failed.setup.logs.close()
        close_listeners(failed.setup.listeners, but=self._current.listeners)
        close_listeners(failed.setup.status, but=self._current.status)
        self._reloaded(failed.answers, (why,), renews=failed.renews)

    def _reloaded(
        self,
        answers: list[Answer],
        problems: tuple[str, ...],
        warnings: Sequence[str] = (),
        renews: bool = False,
    ) -> None:
        """Say everywhere how a reload went."""
        for warning in warnings:
            _log.warning("%s", warning)
        refused = "certificates refused, the old ones stay" if renews else _REFUSED
        for problem in problems:
            _log.error("%s: %s", refused, problem)
        if renews and not problems:
            _log.info("new certificates are shown to clients")
        elif not problems:
            _log.info("reloaded %s", self._current.config.path)
            self._say_listening()
        outcome = {"time": time.time(), "ok": not problems, "problems": problems}
        if not renews:
            self._last_reload = outcome
        self._notifier.ready()
        for answer in answers:
            answer(outcome | {"warnings": [*warnings]})
        if self._again is not None:
            again, self._again = self._again, None
            self.reload(again)

    # Stop and status

    def stop(self, why: str) -> None:
        """Stop all workers gracefully, then end."""
        if self._stop_deadline is not None:
            return
        _log.info("stopping: %s", why)
        self._notifier.stopping()
        self._stop_deadline = time.monotonic() + STOP_WITHIN + 1
        self._workers.stop()
        for setup in self._setups():
            close_listeners(setup.listeners)
            close_listeners(setup.status)
        if self._reload is not None:
            self._reload = None  # who waits for it hears the end

    def _asked(self, command: str, about: str, answer: Answer) -> None:
        """Do what came over the control socket."""
        if command in self._told:
            answer(self._told[command](about))
        elif command == "stop":
            self.stop("gsmtpctl stop")  # the end of this process is the answer
        elif command != "reload":
            known = ", ".join([*self._told, "reload"])
            answer({"error": f"unknown command; there are {known} and stop"})
        elif self._stop_deadline is not None:
            answer({"error": "it is stopping"})
        else:
            self.reload([answer])

    def _why(self, about: str) -> dict[str, Any]:
        """What became of mail from and to the address `about`, but for what was just stored."""
        return {
            "events": self._recent.find(about),
            "since": self._recent.began() or timestamp(int(self._began)),
            "lost": self._recent.lost(),
        }

    def status(self) -> dict[str, Any]:
        """How it does, for people and programs. Times are seconds, since 1970 where absolute."""
        stopping = self._stop_deadline is not None
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "stopping" if stopping else "reloading" if self._reload else "running",
            "began": self._began,
            "config": self._current.config.path,
            "listeners": [
                {"name": listener.name, "address": str(listener)}
                for listener in (() if stopping else self._current.listeners)
            ],
            "workers": self._workers.status(),
            "replaced": self._workers.replaced,
            "max_clients": self._current.config.limits.max_clients,
            "max_memory": self._current.config.limits.max_memory,
            **telling.counts(self._workers.counters.totals()),
            **telling.lately(self._workers.history),
            "database": app.database_status(
                self._current.config, self._workers.counters.any(Counter.HOSTS_AWAY)
            ),
            "overload": Overload(self._workers.counters.any(Counter.OVERLOAD)).words,
            "reload": self._last_reload,
        }


def _fixed(config: Config) -> tuple[str, ...]:
    """What only a restart can change."""
    server = config.server
    return server.user, server.group, server.pid_file, server.control_socket


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
