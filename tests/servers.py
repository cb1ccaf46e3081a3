"""Which real servers do the tests and the bench talk to, and how are they started and stopped?

Those that the fault lab needs, too, are in gsmtpd/faultlab/servers.py and named here again. Each
class runs one private server in a temporary directory, on 127.0.0.1 and a port nobody else uses::

    with MariaDB() as database, Gsmtpd(mysql_store(database, "mail")) as daemon: ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsmtpd.faultlab.servers import (
    PACKAGES,
    POLL_SECONDS,
    START_SECONDS,
    Gsmtpd,
    MariaDB,
    MissingProgramError,
    MissingRightError,
    NotYetError,
    Server,
    ServerError,
    Settings,
    as_root,
    descendants,
    environment,
    find_program,
    forget_peak,
    free_port,
    merge,
    mysql_store,
    parent,
    peak,
    render,
    resident,
    tail,
    wait_for,
)

__all__ = [
    "DEBIAN_PACKAGES",
    "Gsmtpd",
    "MariaDB",
    "Memcached",
    "MissingProgramError",
    "MissingRightError",
    "NotYetError",
    "POLL_SECONDS",
    "ROOT",
    "Redis",
    "START_SECONDS",
    "Server",
    "ServerError",
    "Settings",
    "SmtpSink",
    "descendants",
    "environment",
    "find_program",
    "forget_peak",
    "free_port",
    "freeze",
    "merge",
    "mysql_store",
    "parent",
    "peak",
    "render",
    "resident",
    "tail",
    "tls_section",
    "wait_for",
]

ROOT = Path(__file__).resolve().parent.parent
DEBIAN_PACKAGES = PACKAGES
DEBIAN_PACKAGES |= {
    "apparmor_parser": "apparmor",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "curl": "curl",
    "dpkg-buildpackage": "dpkg-dev",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "lexgrog": "man-db",
    "man": "man-db",
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
    "strace": "strace",
    "swaks": "swaks",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
    "unshare": "util-linux",
}


def freeze(pid: int) -> None:
    """Have a process stand still, as SIGSTOP asks for and each of its threads is to obey."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: {*_states(pid)} <= {"T"})


def _states(pid: int) -> list[str]:
    """The state of each thread of a process: T for stopped."""
    found = Path(f"/proc/{pid}/task").glob("*/stat")
    return [stat.read_text().rpartition(")")[2].split()[0] for stat in found]


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
        return [find_program("memcached"), *as_root(), *listen, *self.options]

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

    def __init__(self, options: Sequence[str] = (), backlog: int = 500) -> None:
        super().__init__("smtp-sink")
        self.options = [*options]
        self.backlog = backlog

    def command(self) -> list[str]:
        become = ["-u", "root"] if os.geteuid() == 0 else []
        where = [f"127.0.0.1:{self.port}", str(self.backlog)]
        return [find_program("smtp-sink"), *become, *self.options, *where]


def tls_section(certificate: str, key: str) -> dict[str, Any]:
    """The section [tls] with the paths of a pair, whose key nobody else can read from then on."""
    Path(key or certificate).chmod(0o600)  # gsmtpd refuses a key that others can read
    return {"certificate": certificate, "key": key}
