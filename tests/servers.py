"""Which real servers do the tests and the bench talk to, and how are they started and stopped?

Each class here runs one private server in a temporary directory, on 127.0.0.1 and a port nobody
else uses. Used as a context manager it starts on entry and is killed and swept away on exit::

    with MariaDB() as database, Gsmtpd(mysql_store(database, "mail")) as daemon: ...

Whatever happens (an exception, ^C, a forgotten object) the processes end and the directories go.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

ROOT = Path(__file__).resolve().parent.parent
DEBIAN_PACKAGES = {
    "apparmor_parser": "apparmor",
    "curl": "curl",
    "dpkg-buildpackage": "dpkg-dev",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "lexgrog": "man-db",
    "man": "man-db",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "memcached": "memcached",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "postconf": "postfix",
    "postfix": "postfix",
    "postqueue": "postfix",
    "rbldnsd": "rbldnsd",
    "redis-server": "redis-server",
    "setpriv": "util-linux",
    "smtp-sink": "postfix",
    "smtp-source": "postfix",
    "swaks": "swaks",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
    "unshare": "util-linux",
}
START_SECONDS = 30.0
POLL_SECONDS = 0.02

Settings = Mapping[str, Any]
"""Configuration as nested mappings: section → key → value, or section → subsection → key."""


class ServerError(Exception):
    """A server did not start, did not stop or failed; the text ends with its last output."""


class MissingProgramError(ServerError):
    """A program is not installed; the text names the Debian package that has it."""


class MissingRightError(ServerError):
    """This machine does not let such a server run, whoever asks; the text says what it lacks."""


def find_program(name: str) -> str:
    """The path of a program; system directories count even for a user without them in PATH."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin")
    if found is None:
        package = DEBIAN_PACKAGES.get(name, name)
        raise MissingProgramError(f"{name} is not installed: apt install {package}")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now and that no outgoing connection will be given.

    The kernel's own choice (port 0) may be taken as the source port of some client before the
    server binds it, or again when the server restarts; ports below its ephemeral range cannot.
    """
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError("no free port between 20000 and 32000")


def environment() -> dict[str, str]:
    """Ours, without the GSMTPD_… variables that would override a configuration file."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GSMTPD_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`, children before grandchildren."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = [int(child) for child in children]
    return found + [below for child in found for below in descendants(child)]


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
            if int(its_group) == group and state not in "ZX":
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


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Ask again and again until it is so. Raises AssertionError after `seconds`."""
    assert _wait_until(lambda: bool(condition()), seconds), f"still not so after {seconds:g} s"


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

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start and wait until it answers. Raises ServerError, with its output, if it does not."""
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
                env=environment(),
            )
        self._processes[:] = [process]
        self._reaper = weakref.finalize(self, _kill_group, process)
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


def _as_root() -> list[str]:
    """MariaDB and memcached refuse to be root unless told."""
    return ["--user=root"] if os.geteuid() == 0 else []


@functools.cache
def _mariadb_template() -> Path:
    """An empty data directory, made once per process (1 s) and copied for each server (0.06 s)."""
    program = find_program("mariadb-install-db")
    home = Path(tempfile.mkdtemp(prefix="gsmtpd-mariadb-template-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    data = home / "data"
    done = subprocess.run(
        [
            *(program, "--no-defaults", *_as_root(), f"--datadir={data}", "--skip-test-db"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
            "--innodb-log-file-size=8M",
        ],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise ServerError(f"mariadb-install-db failed ({done.returncode})\n{done.stdout[-2000:]}")
    return data


class MariaDB(Server):
    """A MariaDB with the user root, no password, on a Unix socket and on 127.0.0.1.

    `durable` keeps MariaDB's defaults, which survive `kill` and power cuts; without it commits do
    not wait for the disk, which is right for tests that prove nothing about durability.
    """

    user = "root"
    password = ""

    def __init__(self, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        super().__init__("mariadb")
        self.socket = self.path / "socket"
        self.options = [*options]
        if not durable:
            self.options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"]

    def command(self) -> list[str]:
        return [
            *(find_program("mariadbd"), "--no-defaults", *_as_root()),
            *(f"--datadir={self.path / 'data'}", f"--pid-file={self.path / 'pid'}"),
            *(f"--socket={self.socket}", "--bind-address=127.0.0.1", f"--port={self.port}"),
            *("--skip-name-resolve", "--innodb-log-file-size=8M"),
            *("--innodb-buffer-pool-size=64M", "--performance-schema=OFF"),
            *self.options,
        ]

    def start(self, seconds: float = START_SECONDS) -> None:
        if not (self.path / "data").exists():
            shutil.copytree(_mariadb_template(), self.path / "data")
        super().start(seconds)

    def answers(self) -> bool:
        with contextlib.suppress(pymysql.MySQLError), self.connect():
            return True
        return False

    def connect(self, **options: Any) -> Connection[Cursor]:
        """A new connection as root, autocommit, over the socket; `options` are PyMySQL's."""
        # Without ssl_disabled PyMySQL loads all certificates of the system first, for 20 ms.
        defaults: dict[str, Any] = {
            "unix_socket": str(self.socket),
            "user": self.user,
            "ssl_disabled": True,
        }
        connection: Connection[Cursor] = pymysql.connect(
            **(defaults | {"autocommit": True} | options)
        )
        return connection

    def query(self, sql: str, arguments: Sequence[object] = (), **options: Any) -> list[Any]:
        """The rows of one statement on a connection of its own; `options` as for `connect`."""
        with self.connect(**options) as connection, connection.cursor() as cursor:
            cursor.execute(sql, arguments)
            return [*cursor.fetchall()]

    def create_database(self, name: str) -> None:
        """An empty utf8mb4 database of that name; one that was there before is dropped."""
        self.query(f"DROP DATABASE IF EXISTS `{name}`")
        self.query(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")


class Memcached(Server):
    """A memcached on 127.0.0.1, or on the Unix socket `socket` alone.

    memory: megabytes. evict: whether it makes room by throwing away what was not read for long;
    otherwise it refuses. item_size: of the largest item, as its option -I says it.
    """

    def __init__(
        self,
        *,
        unix_socket: bool = False,
        memory: int = 1024,
        evict: bool = True,
        item_size: str = "1m",
        options: Sequence[str] = (),
    ) -> None:
        super().__init__("memcached")
        self.socket = self.path / "socket" if unix_socket else None
        self.options = [f"--memory-limit={memory}", f"--max-item-size={item_size}", *options]
        if not evict:
            self.options.append("--disable-evictions")

    def command(self) -> list[str]:
        listen = ["--listen=127.0.0.1", f"--port={self.port}"]
        if self.socket:
            listen = [f"--unix-socket={self.socket}"]
        return [find_program("memcached"), *_as_root(), *listen, *self.options]

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("version").startswith("VERSION")
        return False

    def ask(self, command: str) -> str:
        """The first line it answers to a command. Raises OSError."""
        return _ask(self.socket or self.address, command)

    def stats(self) -> dict[str, str]:
        """What it counts. Raises OSError."""
        with _client(self.socket or self.address) as client, client.makefile("rw") as lines:
            lines.write("stats\r\nquit\r\n")
            lines.flush()
            return dict(line.split()[1:3] for line in lines if line.startswith("STAT "))


class Redis(Server):
    """A Redis on 127.0.0.1 and on the Unix socket `socket`.

    durable: it syncs what it is given before it answers, and is back with all of it after `kill`.
    maxmemory: as its setting of that name, "0" for no limit; what does not fit is refused.
    """

    def __init__(
        self, *, durable: bool = False, maxmemory: str = "0", options: Sequence[str] = ()
    ) -> None:
        super().__init__("redis")
        self.socket = self.path / "socket"
        self.options = ["--maxmemory", maxmemory, "--maxmemory-policy", "noeviction", *options]
        if durable:
            self.options += ["--appendonly", "yes", "--appendfsync", "always"]

    def command(self) -> list[str]:
        return [
            *(find_program("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--unixsocket", str(self.socket), "--dir", str(self.path)),
            *("--save", "", *self.options),
        ]

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("PING").startswith(("+PONG", "-NOAUTH"))  # at first it says LOADING
        return False

    def ask(self, command: str) -> str:
        """The first line it answers to a command. Raises OSError."""
        return _ask(self.address, command)


def _client(address: tuple[str, int] | Path) -> socket.socket:
    if not isinstance(address, Path):
        return socket.create_connection(address, 5)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(address))
    return client


def _ask(address: tuple[str, int] | Path, command: str) -> str:
    with _client(address) as client, client.makefile("rw") as lines:
        lines.write(f"{command}\r\n")
        lines.flush()
        return lines.readline().rstrip()


class SmtpSink(Server):
    """Postfix's smtp-sink: an SMTP server in C that accepts everything and keeps nothing."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        super().__init__("smtp-sink")
        self.options = [*options]

    def command(self) -> list[str]:
        become = ["-u", "root"] if os.geteuid() == 0 else []
        return [find_program("smtp-sink"), *become, *self.options, f"127.0.0.1:{self.port}", "500"]


def mysql_store(database: MariaDB, name: str, **mysql: object) -> dict[str, Any]:
    """Settings that make gsmtpd keep mail in the named database; `mysql` are further keys."""
    keys = {
        "host": database.socket,
        "user": database.user,
        "password": database.password,
        "database": name,
    }
    return {"store": {"backend": "mysql", "mysql": keys | mysql}}


def tls_section(certificate: str, key: str) -> dict[str, Any]:
    """The section [tls] with the paths of a pair, whose key nobody else can read from then on."""
    Path(key or certificate).chmod(0o600)  # gsmtpd refuses a key that others can read
    return {"certificate": certificate, "key": key}


def merge(base: Settings, extra: Settings) -> dict[str, Any]:
    """`base` with the values of `extra` laid over it, section by section."""
    merged = dict(base)
    for key, value in extra.items():
        deeper = isinstance(value, Mapping)
        merged[key] = merge(merged.get(key, {}), value) if deeper else value
    return merged


def render(settings: Settings, depth: int = 1) -> str:
    """Settings in the syntax of gsmtpd.conf; a value of None leaves its key out."""
    values = [(k, v) for k, v in settings.items() if v is not None and not isinstance(v, Mapping)]
    lines = [f"{key} = {value}\n" for key, value in values]
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(f"{'[' * depth}{key}{']' * depth}\n{render(value, depth + 1)}")
    return "".join(lines)


class Gsmtpd(Server):
    """The daemon in the foreground, with a configuration file written for it.

    It accepts mail for example.com and keeps it in the SQLite file `mail_db` unless `settings`
    says otherwise (see `mysql_store`). `before` is Python that runs first in the process: it may
    shorten a time that is fixed in the program, or break the program on purpose.
    """

    def __init__(
        self, settings: Settings | None = None, arguments: Sequence[str] = (), before: str = ""
    ) -> None:
        super().__init__("gsmtpd")
        self.arguments = [*arguments]
        self.before = before
        self.conf = self.path / "gsmtpd.conf"
        self.log = self.path / "gsmtpd.log"
        self.mail_db = self.path / "mail.db"
        self.configure(settings or {})

    def configure(self, settings: Settings) -> None:
        """Write the configuration file anew: the defaults of the tests, then `settings`."""
        merged = merge(self._defaults(), settings)
        is_new = not self.conf.exists()
        self.conf.write_text(render(merged))
        if is_new and merged["store"].get("mysql", {}).get("password"):
            self.conf.chmod(0o600)  # gsmtpd refuses a password that others can read

    def _defaults(self) -> dict[str, Any]:
        return {
            "server": {
                "host_name": "mx.example.com",
                "processes": 1,
                "pid_file": self.path / "gsmtpd.pid",
                "control_socket": self.path / "control",
                "user": pwd.getpwuid(os.geteuid()).pw_name,
            },
            "listen": {"mx": {"address": f"127.0.0.1:{self.port}"}},
            "domains": {"accept": "example.com"},
            "limits": {"max_clients_per_ip": "no"},  # all clients of the tests come from here
            "store": {"backend": "sqlite", "sqlite": {"path": self.mail_db}},
            "log": {"file": self.log, "level": "info"},
        }

    def command(self) -> list[str]:
        program = ["-m", "gsmtpd"]
        if self.before:
            program = ["-c", f"{self.before}\nimport sys, gsmtpd.cli\nsys.exit(gsmtpd.cli.main())"]
        return [sys.executable, *program, "-n", "-c", str(self.conf), *self.arguments]

    def ctl(self, *arguments: str) -> str:
        """Run gsmtpctl with this server's configuration; its output. Raises ServerError."""
        done = subprocess.run(
            [sys.executable, "-m", "gsmtpd.ctl", "-c", str(self.conf), *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=environment(),
        )
        if done.returncode:
            raise ServerError(f"gsmtpctl {' '.join(arguments)} failed\n{done.stderr}".rstrip())
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What `gsmtpctl status --json` says. Raises ServerError."""
        status: dict[str, Any] = json.loads(self.ctl("status", "--json"))
        return status

    @property
    def workers(self) -> list[int]:
        """The worker processes the master has now."""
        return descendants(self.pid)

    def dump(self) -> str:
        """What its workers do, by their own words."""
        before = len(self.log.read_text())
        for worker in self.workers:
            os.kill(worker, signal.SIGUSR2)
        wait_for(lambda: "thread MainThread" in self.log.read_text()[before:])
        return self.log.read_text()[before:]

    def last_words(self) -> str:
        return "\n".join(filter(None, [tail(self.output), tail(self.log)]))
