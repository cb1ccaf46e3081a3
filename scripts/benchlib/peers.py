"""Who is measured? Servers by name, each set up as it would be run, and what mail they keep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scripts.benchlib import naive
from scripts.benchlib.far import Relay
from scripts.benchlib.stores import MySQLTable, SQLiteTable, Store
from tests.certificates import Authority
from tests.servers import Gsmtpd, MariaDB, MissingProgramError, Server, SmtpSink, merge, mysql_store

BASELINE = "smtp-sink"
TLS = "-tls"  # ends the names of peers that offer STARTTLS
MARIADB_DEFAULTS = (
    "--innodb-log-file-size=96M",
    "--innodb-buffer-pool-size=128M",
    "--max-allowed-packet=64M",  # 16M as shipped: too little for the 10 MB that --grow goes up to
)
NO_LIMITS = {
    "max_size": "16M",
    "max_memory": "8G",
    "max_clients": 30000,
    "max_clients_per_ip": 30000,
    "timeout": "1h",
    "session_timeout": "12h",
}
"""Limits no load can reach."""
ADDRESSES = 20_000  # in the table that gsmtpd-mariadb-query asks
ADDRESS_TABLE = "CREATE TABLE address (address VARCHAR(255) NOT NULL PRIMARY KEY) ENGINE=InnoDB"
ADDRESS_FILL = (
    "INSERT INTO address SELECT CONCAT(seq, 'b@example.com') FROM seq_0_to_{last}"
    " UNION SELECT 'b@example.com'"
)
ADDRESS_QUERY = "SELECT 1 FROM address WHERE address = %s"
_numbers = count(1)  # of databases: each peer that is built has its own


@dataclass(frozen=True)
class Options:
    """What the peers are built from. processes: a number or auto; log_level: of gsmtpd."""

    processes: str = "auto"
    log_level: str = "info"

    @property
    def forks(self) -> int:
        """Processes of a peer that knows no `auto`."""
        return len(os.sched_getaffinity(0)) if self.processes == "auto" else int(self.processes)


@dataclass(frozen=True)
class Peer:
    """A server under measurement, the mail it keeps and the database it keeps it in.

    secure: it speaks TLS, and is measured where TLS is.
    """

    name: str
    server: Server
    store: Store | None = None
    database: MariaDB | None = None
    secure: bool = False


class Naive(Server):
    """A program in naive.py. kind: aiosmtpd or socketserver; database: where mail goes."""

    def __init__(
        self, kind: str, processes: int, database: tuple[MariaDB, str] | None = None
    ) -> None:
        super().__init__(kind)
        self._arguments = [kind, f"--port={self.port}", f"--processes={processes}"]
        if database:
            self._arguments += [f"--socket={database[0].socket}", f"--database={database[1]}"]

    def command(self) -> list[str]:
        """The program and its arguments."""
        return [sys.executable, str(Path(naive.__file__)), *self._arguments]


Database = Callable[[], MariaDB]
Builder = Callable[[Options, Database], Peer]
"""Makes a peer that is not started yet. Raises ServerError, MissingProgramError."""


def _smtp_sink(_options: Options, _database: Database) -> Peer:
    # By default it serves 256 clients at a time.
    return Peer(BASELINE, SmtpSink(["-m", "4000"], backlog=naive.BACKLOG))


def _gsmtpd(name: str, options: Options, store: dict[str, Any], extra: dict[str, Any]) -> Gsmtpd:
    """A gsmtpd that is in nobody's way: limits no load can reach, everything else as shipped."""
    settings = {
        "server": {"processes": options.processes},
        "limits": NO_LIMITS,
        "log": {"level": options.log_level},
        "store": store,
    }
    daemon = Gsmtpd(merge(settings, extra))
    if name.endswith(TLS):
        pair = Authority(daemon.path).pair("mx.example.com", kind="ecdsa")
        os.chmod(pair.key, 0o600)
        secure = {"listen": {"mx": {"tls": "starttls"}}, "tls": pair._asdict()}
        daemon.configure(merge(merge(settings, extra), secure))
    return daemon


def _null(name: str, extra: dict[str, Any]) -> Builder:
    def built(options: Options, _database: Database) -> Peer:
        daemon = _gsmtpd(name, options, {"backend": "null"}, extra)
        return Peer(name, daemon, secure=name.endswith(TLS))

    return built


def _sqlite(name: str, extra: dict[str, Any]) -> Builder:
    def built(options: Options, _database: Database) -> Peer:
        daemon = _gsmtpd(name, options, {"backend": "sqlite"}, extra)
        return Peer(name, daemon, SQLiteTable(daemon.mail_db, "new_mail"))

    return built


def _mariadb(name: str, extra: dict[str, Any], far: bool = False) -> Builder:
    def built(options: Options, database: Database) -> Peer:
        running = database()
        schema = f"{name.replace('-', '_')}_{next(_numbers)}"
        running.create_database(schema)
        where = {"host": f"127.0.0.1:{Relay(running.address).port}"} if far else {}
        daemon = _gsmtpd(name, options, mysql_store(running, schema, **where)["store"], extra)
        daemon.ctl("init-db", "--apply")
        if "recipients" in extra:
            running.query(ADDRESS_TABLE, database=schema)
            running.query(ADDRESS_FILL.format(last=ADDRESSES), database=schema)
        table = MySQLTable(running, schema, "new_mail")
        return Peer(name, daemon, table, running, secure=name.endswith(TLS))

    return built


def _aiosmtpd_null(options: Options, _database: Database) -> Peer:
    _need_aiosmtpd()
    return Peer("aiosmtpd-null", Naive("aiosmtpd", options.forks))


def _naive_mariadb(kind: str) -> Builder:
    def built(options: Options, database: Database) -> Peer:
        if kind == "aiosmtpd":
            _need_aiosmtpd()
        running = database()
        schema = f"{kind}_{next(_numbers)}"
        running.create_database(schema)
        running.query(naive.TABLE, database=schema)
        server = Naive(kind, options.forks, (running, schema))
        return Peer(f"{kind}-mariadb", server, MySQLTable(running, schema, "mail"), running)

    return built


def _need_aiosmtpd() -> None:
    try:
        import aiosmtpd.smtp  # noqa: F401, PLC0415
    except ImportError:
        raise MissingProgramError("aiosmtpd is not installed: pip install aiosmtpd") from None


_QUIET = {"log": {"level": "error"}}
_HEADERS = {"content": {"decode": "headers"}}
_OFF = {"content": {"decode": "off"}}
_COMPRESS = {"content": {"compress": 6}}
_QUERY = {"recipients": {"query": ADDRESS_QUERY, "query_ttl": "1s"}}

PEERS: dict[str, Builder] = {
    BASELINE: _smtp_sink,
    "gsmtpd-null": _null("gsmtpd-null", {}),
    "gsmtpd-sqlite": _sqlite("gsmtpd-sqlite", {}),
    "gsmtpd-mariadb": _mariadb("gsmtpd-mariadb", {}),
    "aiosmtpd-null": _aiosmtpd_null,
    "aiosmtpd-mariadb": _naive_mariadb("aiosmtpd"),
    "socketserver-mariadb": _naive_mariadb("socketserver"),
    "gsmtpd-null-quiet": _null("gsmtpd-null-quiet", _QUIET),
    "gsmtpd-null-tls": _null("gsmtpd-null-tls", {}),
    "gsmtpd-mariadb-quiet": _mariadb("gsmtpd-mariadb-quiet", _QUIET),
    "gsmtpd-mariadb-headers": _mariadb("gsmtpd-mariadb-headers", _HEADERS),
    "gsmtpd-mariadb-off": _mariadb("gsmtpd-mariadb-off", _OFF),
    "gsmtpd-mariadb-compress": _mariadb("gsmtpd-mariadb-compress", _COMPRESS),
    "gsmtpd-mariadb-query": _mariadb("gsmtpd-mariadb-query", _QUERY),
    "gsmtpd-mariadb-tls": _mariadb("gsmtpd-mariadb-tls", {}),
}
USUAL = [*PEERS][:7]
_SIZES: dict[str, dict[str, Any]] = {
    "": {},
    **{f"-{n}processes": {"server": {"processes": n}} for n in (2, 4)},
    **{f"-{n}threads": {"server": {"threads": n}} for n in (2, 4)},
    **{f"-{n}connections": {"store": {"mysql": {"connections": n}}} for n in (1, 2, 8, 16)},
}
SIZED = {f"gsmtpd-mariadb{suffix}": extra for suffix, extra in _SIZES.items()}
SIZED_FAR = {f"gsmtpd-mariadb-far{suffix}": extra for suffix, extra in _SIZES.items()}
"""gsmtpd as it sizes itself, and with each size set by hand; the database here, or far away."""
PEERS |= {name: _mariadb(name, extra) for name, extra in SIZED.items()}
PEERS |= {name: _mariadb(name, extra, far=True) for name, extra in SIZED_FAR.items()}
