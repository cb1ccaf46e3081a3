"""Who keeps the workers alive? The master forks them, restarts the dead and stops them all."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from gsmtpd import app
from gsmtpd.config import Config
from gsmtpd.logs import Logs
from gsmtpd.metrics import Counters

_log = logging.getLogger(__name__)

RESTART_PAUSE = 0.5  # seconds before a dead worker is replaced
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD)


class Master:
    """Runs `processes` workers on `listeners` until a stop signal.

    in_worker: called in each new worker first, to close what is the master's alone.
    """

    def __init__(
        self,
        config: Config,
        listeners: list[socket.socket],
        logs: Logs,
        in_worker: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._listeners = listeners
        self._logs = logs
        self._in_worker = in_worker
        self._counters: Counters = app.make_counters(config)
        self._workers: dict[int, int] = {}  # process id → worker number

    def run(self) -> int:
        """Serve; returns the exit code."""
        # Blocked before the first fork: a signal that comes early is not lost, only late.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in range(app.processes(self._config)):
            self._fork(number)
        where = ", ".join(_name(listener) for listener in self._listeners)
        _log.info("listening on %s; worker processes: %d", where, len(self._workers))
        while True:
            received = signal.sigtimedwait(_SIGNALS, 1.0)
            if received is not None and received.si_signo != signal.SIGCHLD:
                return self._stop()
            for number in self._reap():
                time.sleep(RESTART_PAUSE)
                self._fork(number)

    def _fork(self, number: int) -> None:
        for row in app.counter_rows(self._config, number):
            self._counters.reset(row)
        pid = os.fork()
        if pid:
            self._workers[pid] = number
            return
        code = 70
        try:
            self._in_worker()
            app.Worker(self._config, self._listeners, self._counters, self._logs, number).run()
            code = 0
        except BaseException:
            _log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(code)

    def _reap(self) -> list[int]:
        """The numbers of the workers that have died."""
        dead: list[int] = []
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            number = self._workers.pop(pid, None)
            if number is not None:
                dead.append(number)
                code = os.waitstatus_to_exitcode(status)
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                _log.error("worker %d ended %s; starting another", pid, how)
        return dead

    def _stop(self) -> int:
        _log.info("stopping")
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + app.STOP_WITHIN + 1
        while self._workers and time.monotonic() < deadline:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._workers.pop(pid, None)
            else:
                signal.sigtimedwait([signal.SIGCHLD], 0.1)
        for pid in self._workers:
            _log.error("worker %d did not stop in time; killing it", pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        _log.info("stopped")
        return 0


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
