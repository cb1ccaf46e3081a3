"""How is a server of any kind started as a child, watched, and surely ended?

Whatever happens (an exception, ^C, a forgotten object) the processes end and the directories go.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import gsmtpd

CODE = Path(gsmtpd.__file__).resolve().parent.parent
"""The directory that this package was imported from: a tree, or where it is installed."""
PACKAGES = {
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "mkfs.ext4": "e2fsprogs",
    "umount": "mount",
}
"""Which Debian package has a program that is named otherwise. Tests add theirs."""
START_SECONDS = 60.0
POLL_SECONDS = 0.02
RESERVED_AT_MOST = 64
_reserved: deque[socket.socket] = deque()


class ServerError(Exception):
    """A server did not start, did not stop or failed; the text ends with its last output."""


class MissingProgramError(ServerError):
    """A program is not installed; the text names the Debian package that has it."""


class NotYetError(ServerError, AssertionError):
    """What was waited for did not come about in time."""


class MissingRightError(ServerError):
    """This machine does not let such a server run, whoever asks; the text says what it lacks."""


def find_program(name: str) -> str:
    """The path of a program; system directories count even for a user without them in PATH."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin")
    if found is None:
        package = PACKAGES.get(name, name)
        raise MissingProgramError(f"{name} is not installed: apt install {package}")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now and that no outgoing connection will be given.

    The kernel's own choice (port 0) may be taken as the source port of some client before the
    server binds it, or again when the server restarts; ports below its ephemeral range cannot.
    Nor does any other process that asks here get it meanwhile, see `_reserve`.
    """
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                _reserve(port)
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError("no free port between 20000 and 32000")


def _reserve(port: int) -> None:
    """Keep a port until many others were asked for, or this process ends. Raises OSError if taken.

    It is a name that only one socket of the machine can have, and that leaves no file behind.
    """
    sign = socket.socket(socket.AF_UNIX)
    try:
        sign.bind(f"\0gsmtpd-faultlab-port-{port}")
    except OSError:
        sign.close()
        raise
    _reserved.append(sign)
    if len(_reserved) > RESERVED_AT_MOST:
        _reserved.popleft().close()


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without the GSMTPD_… variables that would override a configuration file.

    A gsmtpd that is started with it is of the same code as this. variables: what to set besides.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GSMTPD_")}
    ours = {"PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1"}
    return kept | ours | (dict(variables) if variables else {})


def sweep(directory: Path) -> None:
    """Remove a directory when this process ends."""
    atexit.register(shutil.rmtree, directory, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`, children before grandchildren."""
    children: list[int] = []
    with contextlib.suppress(OSError):  # it may end at any moment, as may each of its threads
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                children += [int(child) for child in found.split()]
    return children + [below for child in children for below in descendants(child)]


def parent(pid: int) -> int:
    """The parent of a process; 0 where it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def resident(pid: int) -> int:
    """Octets of resident memory that a process has now."""
    return _memory(pid, "VmRSS")


def forget_peak(pid: int) -> None:
    """Have `peak` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """The most octets of resident memory that a process has had, since `forget_peak` if called."""
    return _memory(pid, "VmHWM")


def _memory(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise ServerError(f"process {pid} has ended")


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a text file; nothing if it is not there."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _running_in_group(group: int) -> list[int]:
    """The processes of a process group but its zombies, which hold no port and no file."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group = entry.read_text().rpartition(")")[2].split()[:3]
            # One whose main thread has ended is a zombie, and has all its files while others run.
            ended = state in "ZX" and len(os.listdir(entry.parent / "task")) <= 1
            if int(its_group) == group and not ended:
                found.append(int(entry.parent.name))
    return found


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again; False if it is still not so after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Ask again and again until it is so. Raises NotYetError after `seconds`."""
    if not _wait_until(lambda: bool(condition()), seconds):
        raise NotYetError(f"still not so after {seconds:g} s")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a session leader and all it has forked, and wait until none of them runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _wait_until(lambda: not _running_in_group(process.pid), 10)


class Server:
    """One child process, the leader of its own session, in its own temporary directory.

    Subclasses say how it is called (`command`) and when it is ready (`answers`). `start` after
    `stop` or `kill` is a restart: same directory, same port.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix=f"gsmtpd-{name}-")
        self.path = Path(self._directory.name)
        self.port = free_port()
        self.variables: dict[str, str] = {}  # set in the environment of the next start
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reaper: weakref.finalize[[subprocess.Popen[bytes]], Server] | None = None

    def command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether a client would be served now. Default: the port greets as SMTP does."""
        with contextlib.suppress(OSError), socket.create_connection(self.address, 5) as client:
            return client.recv(512).startswith(b"220")
        return False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for a client."""
        return "127.0.0.1", self.port

    @property
    def output(self) -> Path:
        """Where standard output and standard error of all starts are collected."""
        return self.path / "output"

    @property
    def running(self) -> bool:
        """Whether the process that was started is still there."""
        return bool(self._processes) and self._processes[-1].poll() is None

    @property
    def pid(self) -> int:
        """The process started last. Raises ServerError before the first start."""
        if not self._processes:
            raise ServerError(f"{self.name} was never started")
        return self._processes[-1].pid

    def pids(self) -> list[int]:
        """The process and all it has forked."""
        return [self.pid, *descendants(self.pid)]

    def launch(self) -> None:
        """Start, and wait for nothing. Raises ServerError if it is running."""
        if self.running:
            raise ServerError(f"{self.name} is running already")
        self.kill()  # what a leader that died by itself has left behind
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment(self.variables),
            )
        self._processes[:] = [process]
        self._reaper = weakref.finalize(self, _kill_group, process)

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start and wait until it answers. Raises ServerError, with its output, if it does not."""
        self.launch()
        try:
            ready = _wait_until(lambda: not self.running or self.answers(), seconds)
        except BaseException:
            self.kill()
            raise
        if not ready or not self.running:
            trouble = f"said nothing for {seconds:g} s" if not ready else "ended at once"
            self.kill()
            raise self.error(trouble)

    def stop(self, seconds: float = 30.0) -> int:
        """Ask it to end (SIGTERM), wait, return the exit status. Kill it and raise if it won't."""
        process = self._processes[-1] if self._processes else None
        if process is None:
            return 0
        process.terminate()
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.error(f"did not end within {seconds:g} s of SIGTERM") from None
        left = _running_in_group(process.pid)
        self.kill()
        if left:
            raise self.error(f"left processes behind: {left}")
        return status

    def kill(self) -> None:
        """SIGKILL the process and all it has forked, as a power cut would. Harmless if ended."""
        if self._reaper is not None:
            self._reaper()

    def close(self) -> None:
        """End it and remove its directory."""
        self.kill()
        self._directory.cleanup()

    def error(self, trouble: str) -> ServerError:
        """What happened, followed by the last output."""
        return ServerError(f"{self.name} {trouble}\n{self.last_words()}".rstrip())

    def last_words(self) -> str:
        """The end of what it wrote, for error messages."""
        return tail(self.output)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
