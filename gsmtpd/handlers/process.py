"""How is a runner kept? It is started when needed, given mail by mail, and ended when it hangs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gsmtpd.handlers.wire import NoFrameError, Wire, WireError

_log = logging.getLogger(__name__)

START_WITHIN = 20.0  # seconds until its class is loaded
_ENDS_WITHIN = 0.1  # seconds, by itself
_KILLED_WITHIN = 5.0
_LINES = 100  # of its output, for each mail
_LONGEST_LINE = 500  # octets
_PACKAGES = str(Path(__file__).parents[2])

Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Answers what a runner asks while it acts on a mail."""


class Task(NamedTuple):
    """What a runner runs. name: of the handler in the configuration. handler: see `load`.

    settings: the handler's own. time_limit: seconds for a mail. memory_limit: octets of address
    space. smarthost: where its replies go, "" for nowhere; host_name: who sends them.
    """

    name: str
    handler: str
    directory: str
    settings: dict[str, str]
    time_limit: float
    memory_limit: int
    smarthost: str
    host_name: str


class RunnerError(Exception):
    """The runner has ended, or was ended; the text says how."""


class RefusedError(Exception):
    """The handler cannot be had, or not with its settings; the text is one clear line."""


class Runner:
    """One process that runs `task`. For one thread, but for `kill`."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None
        self._lines = 0
        self._reaping = threading.Lock()

    def start(self) -> None:
        """Start it, if it is not running. Raises RefusedError and RunnerError."""
        if self._process is not None:
            return
        try:
            self._begin()
        except (OSError, RuntimeError) as error:  # no descriptor, process or thread is to be had
            self.end()
            said = error.strerror if isinstance(error, OSError) else str(error)
            raise RunnerError(f"cannot be started: {said}") from error
        frame = self._exchange(self._task._asdict(), b"", START_WITHIN, START_WITHIN)
        if "refused" in frame:
            self.end()
            raise RefusedError(str(frame["refused"]))

    def _begin(self) -> None:
        """Start the process. Raises OSError and RuntimeError."""
        ours, theirs = socket.socketpair()
        self._wire = Wire(ours)
        with theirs:
            self._process = subprocess.Popen(
                # Unbuffered: what it prints is in the log at once, and not lost where it is killed.
                [sys.executable, "-uPm", "gsmtpd.handlers.runner", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_environment(),
            )
        self._lines = 0
        threading.Thread(
            target=self._hear, args=(self._process,), name=f"output-{self._task.name}", daemon=True
        ).start()

    def run(self, facts: dict[str, Any], raw: bytes, ask: Ask) -> dict[str, Any]:
        """What has become of the mail. Raises RunnerError, and what `ask` raises.

        Then the process is no more; nor where it says that it is "spent".
        """
        self._lines = 0
        limit = self._task.time_limit
        until = time.monotonic() + limit
        frame = self._exchange({"facts": facts}, raw, limit, limit)
        while "ask" in frame:
            try:
                answer = ask(frame)
            except BaseException:
                self.end()
                raise
            frame = self._exchange(answer, b"", until - time.monotonic(), limit)
        if "spent" in frame:
            self.end()
        return frame

    def _exchange(
        self, frame: dict[str, Any], octets: bytes, seconds: float, limit: float
    ) -> dict[str, Any]:
        if self._wire is None:
            raise RunnerError("was ended")
        until = time.monotonic() + seconds
        try:
            self._wire.say(frame, octets, until)
            return self._wire.hear(until)[0]
        except TimeoutError as error:
            self.end()
            raise RunnerError(f"took longer than {limit:g} s, and was killed") from error
        except NoFrameError as error:
            self.end()
            raise RunnerError(f"wrote {error} to gsmtpd, and was killed") from error
        except WireError as error:
            raise RunnerError(self._how(self.end())) from error

    def _how(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL: by somebody, or as memory ran out"
        if code < 0:
            return f"was ended by {signal_name(-code)}"
        return f"ended its process, with exit code {code}"

    def kill(self) -> None:
        """End what it does, from any thread; it is heard of as RunnerError."""
        with self._reaping:
            if self._process is not None:
                _kill_group(self._process.pid)

    def end(self) -> int:
        """End it, and what it has started; its exit code."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        process = self._process
        if process is None:
            return 0
        # One that ends by itself, or at the end of the wire, has an exit code of its own. While it
        # is not waited for, its number is nobody else's.
        until = time.monotonic() + _ENDS_WITHIN
        while time.monotonic() < until and not _has_ended(process.pid):
            time.sleep(0.005)
        with self._reaping:
            _kill_group(process.pid)
            self._process = None
            try:
                return process.wait(_KILLED_WITHIN)
            except subprocess.TimeoutExpired:
                return -signal.SIGKILL  # it hangs in the kernel

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        """Log what it says: its tracebacks, and what it prints."""
        assert process.stdout is not None
        with process.stdout as output:
            for line in iter(lambda: output.readline(_LONGEST_LINE), b""):
                self._lines += 1
                if self._lines <= _LINES:
                    text = line.decode(errors="replace").rstrip()
                    _log.info("handler %s: %s", self._task.name, text)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def signal_name(number: int) -> str:
    """What people call a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals that have no name
        return f"signal {number}"


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _environment() -> dict[str, str]:
    """None of gsmtpd's settings, which may be passwords."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GSMTPD_")}
    others = kept.get("PYTHONPATH")
    return kept | {"PYTHONPATH": f"{_PACKAGES}:{others}" if others else _PACKAGES}
