"""Which real servers do the fault lab and the tests talk to, and how are they set up?

Each class here runs one private server in a temporary directory, on 127.0.0.1 and a port nobody
else uses. Used as a context manager it starts on entry and is killed and swept away on exit::

    with MariaDB() as database, Gsmtpd(mysql_store(database, "mail")) as daemon: ...
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from gsmtpd.faultlab.processes import (
    CODE,
    PACKAGES,
    POLL_SECONDS,
    START_SECONDS,
    MissingProgramError,
    MissingRightError,
    NotYetError,
    Server,
    ServerError,
    descendants,
    environment,
    find_program,
    forget_peak,
    free_port,
    parent,
    peak,
    resident,
    sweep,
    tail,
    wait_for,
)

__all__ = [
    "CODE",
    "Gsmtpd",
    "MariaDB",
    "MissingProgramError",
    "MissingRightError",
    "NotYetError",
    "PACKAGES",
    "POLL_SECONDS",
    "START_SECONDS",
    "Server",
    "ServerError",
    "Settings",
    "as_root",
    "descendants",
    "environment",
    "find_program",
    "forget_peak",
    "free_port",
    "install_database",
    "merge",
    "mysql_store",
    "parent",
    "peak",
    "render",
    "resident",
    "sweep",
    "tail",
    "wait_for",
]

Settings = Mapping[str, Any]
"""Configuration as nested mappings: section → key → value, or section → subsection → key."""


def as_root() -> list[str]:
    """The option without which MariaDB and memcached refuse to be root, where we are."""
    return ["--user=root"] if os.geteuid() == 0 else []


@functools.cache
def _mariadb_template() -> Path:
    """An empty data directory, made once per process (1 s) and copied for each server (0.06 s)."""
    home = Path(tempfile.mkdtemp(prefix="gsmtpd-mariadb-template-"))
    sweep(home)
    install_database(home / "data")
    return home / "data"


def install_database(data: Path) -> None:
    """Make an empty data directory of MariaDB, with the user root. Raises ServerError."""
    done = subprocess.run(
        [
            *(find_program("mariadb-install-db"), "--no-defaults", *as_root()),
            *(f"--datadir={data}", f"--tmpdir={data.parent}", "--skip-test-db"),
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
            *(find_program("mariadbd"), "--no-defaults", *as_root()),
            *(f"--datadir={self.path / 'data'}", f"--pid-file={self.path / 'pid'}"),
            f"--tmpdir={self.path}",  # a server that starts takes away what others have in theirs
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


def mysql_store(database: MariaDB, name: str, **mysql: object) -> dict[str, Any]:
    """Settings that make gsmtpd keep mail in the named database; `mysql` are further keys."""
    keys = {
        "host": database.socket,
        "user": database.user,
        "password": database.password,
        "database": name,
    }
    return {"store": {"backend": "mysql", "mysql": keys | mysql}}


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
    shorten a time that is fixed in the program, or break the program on purpose. `variables` are
    set in its environment, which otherwise holds no GSMTPD_… at all.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        arguments: Sequence[str] = (),
        before: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("gsmtpd")
        self.variables |= variables or {}
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
        secrets = merged["store"].get("mysql", {}), merged.get("status", {})
        if is_new and any(section.get("password") for section in secrets):
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
        """The worker processes the master has now; one that runs handlers has others below it."""
        return [pid for pid in descendants(self.pid) if parent(pid) == self.pid]

    def dump(self) -> str:
        """What its workers do, by their own words."""
        before = len(self.log.read_text())
        for worker in self.workers:
            os.kill(worker, signal.SIGUSR2)
        wait_for(lambda: "thread MainThread" in self.log.read_text()[before:])
        return self.log.read_text()[before:]

    def wait_for_lane(self) -> None:
        """Wait until each worker stores mail in MySQL from its SMTP thread. Raises NotYetError."""
        serving = [each for each in self.status()["workers"] if each["role"] == "smtp"]

        def all_have() -> bool:
            lanes = re.findall("lanes: ([0-9]+)", self.dump())
            return len(lanes) == len(serving) and "0" not in lanes

        wait_for(all_have)

    def last_words(self) -> str:
        return "\n".join(filter(None, [tail(self.output), tail(self.log)]))
