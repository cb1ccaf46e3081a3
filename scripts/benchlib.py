"""What does the bench run and how does it measure? The peers, the load and the clocks.

Run as a program this file is one of the peers: the aiosmtpd server (`python benchlib.py --help`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import platform
import resource
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from tests.servers import (
    ROOT,
    Gsmtpd,
    MariaDB,
    MissingProgramError,
    Server,
    ServerError,
    SmtpSink,
    find_program,
    mysql_store,
)

LOAD_SECONDS = 120.0
STORE_THREADS = 4
"""Of the naive store, per process: of 2, 4, 8, 16 and 32 the one with the most messages/s."""

NAIVE_TABLE = """CREATE TABLE mail (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    received TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    peer VARCHAR(64) NOT NULL,
    sender VARCHAR(320) NOT NULL,
    recipients TEXT NOT NULL,
    message LONGBLOB NOT NULL
) ENGINE=InnoDB"""
NAIVE_INSERT = "INSERT INTO mail (peer, sender, recipients, message) VALUES (%s, %s, %s, %s)"


# --- clocks ---------------------------------------------------------------------------------------


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time the processes have used since they began, in all threads ever.

    The kernel's CPU clock of a process (clock_getcpuclockid(3)) counts nanoseconds, where
    /proc/PID/stat counts ticks of 10 ms.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; pages it shares with others count in full."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def proportional_bytes(pid: int) -> int:
    """Memory of a process, pages shared with others divided among them (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


# --- the command line and the report --------------------------------------------------------------


def positive(text: str) -> int:
    """An argparse type: a whole number above zero."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)


def processes(text: str) -> str:
    """An argparse type: a number above zero, or auto."""
    return text if text == "auto" else str(positive(text))


def output_of(*command: str) -> str:
    """What a program says; `missing` if it cannot."""
    try:
        program = find_program(command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (ServerError, OSError, subprocess.CalledProcessError):
        return "missing"


def cpu_model() -> str:
    """The processor's name as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, str]:
    """What is measured and where: the circumstances that all benches share."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    load = os.getloadavg()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cpu_model()}, {platform.machine()}, Linux {platform.release()}",
        "cpus": f"{len(os.sched_getaffinity(0))}, load average {load:.2f} at the start",
        "python": f"{platform.python_version()}{'' if gil else ', without GIL'}",
        "postfix": output_of("postconf", "-dh", "mail_version"),
        "commit": output_of("git", "describe", "--always", "--dirty"),
    }


def progress(text: str) -> None:
    """Say on a terminal what is going on, in one line that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def print_table(rows: list[list[str]]) -> None:
    """In columns, the first to the left and all others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  " + "  ".join([first.ljust(widths[0]), *rest]).rstrip())


# --- the load -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What each message looks like and how many of them share a connection."""

    name: str
    size: int
    many: bool

    @property
    def title(self) -> str:
        share = "many messages per connection" if self.many else "one message per connection"
        return f"{self.size // 1024} KB, {share}"


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("4k-one", 4096, many=False),
        Scenario("4k-many", 4096, many=True),
        Scenario("100k-one", 102400, many=False),
        Scenario("100k-many", 102400, many=True),
    )
}


def send(port: int, scenario: Scenario, messages: int, sessions: int) -> tuple[float, float]:
    """Send messages with smtp-source; seconds on the wall and CPU seconds of smtp-source.

    smtp-source ends with an error at the first reply that is not the wanted one. Raises
    ServerError then.
    """
    command = [find_program("smtp-source"), "-s", str(sessions), "-m", str(messages)]
    command += ["-l", str(scenario.size), "-f", "a@example.org", "-t", "b@example.com"]
    command += ["-d"] * scenario.many + [f"127.0.0.1:{port}"]
    cpu = _children_cpu()
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=LOAD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ServerError(f"smtp-source was not done after {LOAD_SECONDS:g} s") from None
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ServerError(f"smtp-source failed ({done.returncode}): {done.stderr.strip()}")
    return seconds, _children_cpu() - cpu


def _children_cpu() -> float:
    """CPU seconds of the children that have ended: smtp-source, for the servers run on."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def idle_clients(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """Connections that have read the greeting and say nothing."""
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(1, count + 1):
            client = stack.enter_context(socket.create_connection(address, timeout=10))
            if not client.recv(512).startswith(b"220"):
                raise ServerError(f"idle client {number} was not greeted")
            clients.append(client)
        yield clients


def still_open(client: socket.socket) -> bool:
    """Whether the server has neither spoken nor hung up."""
    client.setblocking(False)
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# --- where a peer keeps mail ----------------------------------------------------------------------


class Store(Protocol):
    """The mail a peer has kept, seen from outside."""

    def rows(self) -> int:
        """How many messages are there."""

    def clear(self) -> None:
        """Remove them all."""


class MySQLTable:
    """A table in MariaDB."""

    def __init__(self, database: MariaDB, schema: str, table: str) -> None:
        self._database = database
        self._schema = schema
        self._table = table

    def rows(self) -> int:
        counted = self._database.query(
            f"SELECT COUNT(*) FROM `{self._table}`", database=self._schema
        )
        return int(counted[0][0])

    def clear(self) -> None:
        self._database.query(f"TRUNCATE TABLE `{self._table}`", database=self._schema)


class SQLiteTable:
    """A table in an SQLite file."""

    def __init__(self, path: Path, table: str) -> None:
        self._path = path
        self._table = table

    def rows(self) -> int:
        with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as file:
            counted = file.execute(f'SELECT COUNT(*) FROM "{self._table}"').fetchone()
        return int(counted[0])

    def clear(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as file:
            file.execute(f'DELETE FROM "{self._table}"')
            file.commit()
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


# --- peers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the peers are built from."""

    processes: str
    log_level: str

    @property
    def forks(self) -> int:
        """Processes of a peer that knows no `auto`."""
        return len(os.sched_getaffinity(0)) if self.processes == "auto" else int(self.processes)


@dataclass(frozen=True)
class Peer:
    """A running server under measurement, the mail it keeps and the database it keeps it in."""

    name: str
    server: Server
    store: Store | None = None
    database: MariaDB | None = None


@dataclass(frozen=True)
class Measurement:
    """One run of the load against one peer. Times are seconds, for all messages together."""

    round: int
    peer: str
    scenario: str
    messages: int
    seconds: float
    server_cpu: float
    database_cpu: float | None
    load_cpu: float
    rows: int | None

    @property
    def rate(self) -> float:
        """Messages per second on the wall."""
        return self.messages / self.seconds

    def each(self, seconds: float) -> float:
        """Microseconds per message."""
        return seconds / self.messages * 1e6

    def as_json(self) -> dict[str, Any]:
        """All of it, with the derived values people plot."""
        return asdict(self) | {
            "messages_per_second": self.rate,
            "server_cpu_us_per_message": self.each(self.server_cpu),
        }


def measure(
    peer: Peer, scenario: Scenario, messages: int, sessions: int, round_: int = 0
) -> Measurement:
    """One run. Raises ServerError when anything at all was not as it should be."""
    pids = peer.server.pids()
    database = [peer.database.pid] if peer.database else []
    before = cpu_seconds(pids), cpu_seconds(database)
    seconds, load_cpu = send(peer.server.port, scenario, messages, sessions)
    time.sleep(0.05)  # the last connections are still being closed
    try:
        after = cpu_seconds(pids), cpu_seconds(database)
    except OSError:
        raise peer.server.error("lost a process during the run") from None
    if set(peer.server.pids()) != set(pids):
        raise peer.server.error("has other processes than before the run")
    return Measurement(
        round=round_,
        peer=peer.name,
        scenario=scenario.name,
        messages=messages,
        seconds=seconds,
        server_cpu=after[0] - before[0],
        database_cpu=after[1] - before[1] if database else None,
        load_cpu=load_cpu,
        rows=verify(peer, messages),
    )


def verify(peer: Peer, messages: int) -> int | None:
    """Count what was kept, raise ServerError unless it is all that was sent, and remove it."""
    if peer.store is None:
        return None
    rows = peer.store.rows()
    peer.store.clear()
    if rows != messages:
        raise ServerError(f"{messages} messages were sent, {rows} rows are there")
    return rows


class Aiosmtpd(Server):
    """The aiosmtpd server below, in as many processes as gsmtpd."""

    def __init__(self, processes: int, database: tuple[MariaDB, str] | None = None) -> None:
        super().__init__("aiosmtpd")
        self._arguments = [f"--port={self.port}", f"--processes={processes}"]
        if database:
            self._arguments += [f"--socket={database[0].socket}", f"--database={database[1]}"]

    def command(self) -> list[str]:
        return [sys.executable, __file__, *self._arguments]


Builder = Callable[[Options, Callable[[], MariaDB]], Peer]


def _smtp_sink(_options: Options, _database: Callable[[], MariaDB]) -> Peer:
    return Peer("smtp-sink", SmtpSink())


def _gsmtpd(options: Options, store: dict[str, Any]) -> Gsmtpd:
    """A gsmtpd that is in nobody's way: limits no load can reach, everything else as shipped."""
    return Gsmtpd(
        {
            "server": {"processes": options.processes},
            "limits": {
                "max_size": "10M",
                "max_clients": 30000,
                "max_clients_per_ip": 30000,
                "timeout": "1h",
            },
            "log": {"level": options.log_level},
            "store": store,
        }
    )


def _gsmtpd_null(options: Options, _database: Callable[[], MariaDB]) -> Peer:
    return Peer("gsmtpd-null", _gsmtpd(options, {"backend": "null"}))


def _gsmtpd_sqlite(options: Options, _database: Callable[[], MariaDB]) -> Peer:
    daemon = _gsmtpd(options, {"backend": "sqlite"})
    return Peer("gsmtpd-sqlite", daemon, SQLiteTable(daemon.mail_db, "new_mail"))


def _gsmtpd_mariadb(options: Options, database: Callable[[], MariaDB]) -> Peer:
    running = database()
    name = f"gsmtpd_{options.log_level}"
    running.create_database(name)
    daemon = _gsmtpd(options, mysql_store(running, name)["store"])
    daemon.ctl("init-db", "--apply")
    return Peer("gsmtpd-mariadb", daemon, MySQLTable(running, name, "new_mail"), running)


def _quiet(build: Builder) -> Builder:
    """The same without a mail log: what does logging cost?"""

    def built(options: Options, database: Callable[[], MariaDB]) -> Peer:
        peer = build(replace(options, log_level="error"), database)
        return replace(peer, name=f"{peer.name}-quiet")

    return built


def _need_aiosmtpd() -> None:
    try:
        import aiosmtpd.smtp  # noqa: F401, PLC0415
    except ImportError:
        raise MissingProgramError("aiosmtpd is not installed: pip install aiosmtpd") from None


def _aiosmtpd_null(options: Options, _database: Callable[[], MariaDB]) -> Peer:
    _need_aiosmtpd()
    return Peer("aiosmtpd-null", Aiosmtpd(options.forks))


def _aiosmtpd_mariadb(options: Options, database: Callable[[], MariaDB]) -> Peer:
    _need_aiosmtpd()
    running = database()
    running.create_database("aiosmtpd")
    running.query(NAIVE_TABLE, database="aiosmtpd")
    server = Aiosmtpd(options.forks, (running, "aiosmtpd"))
    return Peer("aiosmtpd-mariadb", server, MySQLTable(running, "aiosmtpd", "mail"), running)


PEERS: dict[str, Builder] = {
    "smtp-sink": _smtp_sink,
    "gsmtpd-null": _gsmtpd_null,
    "gsmtpd-sqlite": _gsmtpd_sqlite,
    "gsmtpd-mariadb": _gsmtpd_mariadb,
    "aiosmtpd-null": _aiosmtpd_null,
    "aiosmtpd-mariadb": _aiosmtpd_mariadb,
    "gsmtpd-null-quiet": _quiet(_gsmtpd_null),
    "gsmtpd-mariadb-quiet": _quiet(_gsmtpd_mariadb),
}


# --- the peer aiosmtpd, as a program --------------------------------------------------------------


class NullHandler:
    """Takes every message and keeps nothing."""

    async def handle_DATA(self, _server: Any, _session: Any, _envelope: Any) -> str:  # noqa: N802
        return "250 2.0.0 OK"


class StoreHandler:
    """Writes each message with one INSERT and one COMMIT, in a thread with its own connection.

    That is what one writes who wants mail in MySQL safely and has an afternoon: the event loop
    is never blocked, connections are kept open, and 250 follows the COMMIT.
    """

    def __init__(self, socket_path: str, database: str, threads: int) -> None:
        self._options = {"unix_socket": socket_path, "user": "root", "database": database}
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(threads, "store")

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        row = (
            session.peer[0],
            envelope.mail_from,
            ",".join(envelope.rcpt_tos),
            envelope.original_content,
        )
        await asyncio.get_running_loop().run_in_executor(self._threads, self._insert, row)
        return "250 2.0.0 OK"

    def _connection(self) -> Connection[Cursor]:
        if not hasattr(self._local, "connection"):
            options: dict[str, Any] = self._options
            self._local.connection = pymysql.connect(**options)
        connection: Connection[Cursor] = self._local.connection
        return connection

    def _insert(self, row: tuple[str, str, str, bytes]) -> None:
        connection = self._connection()
        with connection.cursor() as cursor:
            cursor.execute(NAIVE_INSERT, row)
        connection.commit()


async def _serve(listener: socket.socket, handler: NullHandler | StoreHandler) -> None:
    from aiosmtpd.smtp import SMTP  # noqa: PLC0415

    def protocol() -> SMTP:
        return SMTP(handler, hostname="mx.example.com", ident="ESMTP", loop=loop)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, sock=listener, backlog=500)
    await server.serve_forever()


def main() -> None:
    """aiosmtpd on 127.0.0.1, in several processes that accept from one socket."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=STORE_THREADS, help="of the store")
    parser.add_argument("--socket", help="of MariaDB; without it nothing is kept")
    parser.add_argument("--database")
    chosen = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", chosen.port), backlog=500)
    for _ in range(chosen.processes - 1):
        if os.fork() == 0:
            break
    handler: NullHandler | StoreHandler = NullHandler()
    if chosen.socket:
        handler = StoreHandler(chosen.socket, chosen.database, chosen.threads)
    asyncio.run(_serve(listener, handler))


if __name__ == "__main__":
    main()
