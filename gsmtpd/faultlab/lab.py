"""What stands in the fault lab? A database, a proxy before it, gsmtpd, and senders with ledgers.

All of it is private: in temporary directories, on ports of 127.0.0.1 that nobody else uses.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pymysql
from pymysql.cursors import Cursor

from gsmtpd.faultlab.disk import SmallDisk
from gsmtpd.faultlab.fault import BrokenPromiseError, DidNotHappenError, wait_until
from gsmtpd.faultlab.lossyfs import LossyFS
from gsmtpd.faultlab.mysql_proxy import MySQLProxy
from gsmtpd.faultlab.processes import MissingProgramError, MissingRightError
from gsmtpd.faultlab.senders import Senders
from gsmtpd.faultlab.servers import Gsmtpd, MariaDB, Settings, merge, wait_for
from gsmtpd.faultlab.stored import MySQLAddress, StoredRow, mysql_rows

SCHEMA = "mail"
USER = "mail"
PASSWORD = "faultlab"
TABLE = "new_mail"
PROCESSES = 2
WORKERS_WITHIN = 60.0  # seconds until all workers serve, on a busy machine too
_NO_WORD = 0.2  # seconds between looks into a log


@dataclass(frozen=True)
class Plan:
    """How a lab is furnished.

    rate: mails a second, None for as many as are taken. sessions: of SMTP at a time. armed: whether
    gsmtpd's failpoints are. disk: whether the database has a small disk of its own, which can be
    filled, where one can be made; lossy: one that forgets at a power cut. memory: of the
    database, as its option innodb-buffer-pool-size. max_size: octets of a mail.
    before: Python that runs first in gsmtpd, to break it on purpose.
    """

    rate: float | None = 100.0
    sessions: int = 16
    senders: int = 1
    armed: bool = False
    disk: bool = False
    lossy: bool = False
    memory: str = "64M"
    max_size: int = 200 * 1024
    before: str = ""


class Lab:
    """The lab, from entry to exit; its senders send from `send` to `stop`.

    home: where ledgers and gsmtpd's failpoints are. seed: of what the senders send.
    """

    password = PASSWORD

    def __init__(self, home: Path, seed: int, plan: Plan) -> None:
        self.plan = plan
        self.seed = seed
        self.ledgers = home / "ledgers"
        self.failpoints = home / "failpoints"
        self.kept = home
        self._stack = contextlib.ExitStack()
        self._second: MariaDB | None = None
        self._disk: SmallDisk | None = None

    def __enter__(self) -> Self:
        try:
            self.failpoints.mkdir(parents=True)
            self._install()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- how it is furnished ------------------------------------------------------------------

    def _install(self) -> None:
        self.database = self._mariadb()
        self.proxy = self._stack.enter_context(MySQLProxy(self.database.address))
        self.host = f"127.0.0.1:{self.proxy.port}"
        self._install_gsmtpd()
        if self.plan.lossy:
            self.lossy.sync()  # InnoDB does not sync the directory of a table that is new

    def _install_gsmtpd(self) -> None:
        variables = self._variables(self.plan.armed)
        self.gsmtpd = Gsmtpd(self.settings(), before=self.plan.before, variables=variables)
        self._stack.callback(self.gsmtpd.close)
        self.gsmtpd.ctl("init-db", "--apply")
        self.gsmtpd.start()
        self.await_workers()

    def settings(self) -> dict[str, Any]:
        """gsmtpd's configuration outside of faults that change it."""
        mysql = {"host": self.host, "user": USER, "password": PASSWORD, "database": SCHEMA}
        return {
            "server": {"processes": PROCESSES},
            "store": {"backend": "mysql", "mysql": mysql},
        }

    def _mariadb(self) -> MariaDB:
        """A MariaDB that keeps what it acknowledges, with an empty database for mail."""
        server = MariaDB(durable=True, options=[f"--innodb-buffer-pool-size={self.plan.memory}"])
        self._stack.callback(server.close)
        server.start()
        if self.plan.disk or self.plan.lossy:
            server.stop()
            self._move(server)
            server.start()
        furnish(server)
        return server

    def _move(self, server: MariaDB) -> None:
        """Give a database that is stopped the disk of the plan."""
        if self.plan.lossy:
            self.lossy = self._stack.enter_context(LossyFS())
            self.lossy.adopt(server.path / "data")
        else:
            # Where none can be made or mounted a fault does without, and says so.
            with contextlib.suppress(MissingRightError, MissingProgramError):
                self._disk = self._stack.enter_context(SmallDisk(server.path / "disk"))
                self._disk.adopt(server.path / "data")
        self._stack.callback(server.kill)  # before its disk goes

    def second(self) -> MariaDB:
        """Another database server, with the same table; it is started when it is first needed."""
        if self._second is None:
            second = self._stack.enter_context(MariaDB(durable=True))
            furnish(second)
            other = Gsmtpd(merge(self.settings(), {"store": {"mysql": {"host": second.socket}}}))
            with contextlib.closing(other):
                other.ctl("init-db", "--apply")
            self._second = second
        return self._second

    def send(self) -> None:
        """Have the senders begin."""
        self.senders = Senders(
            self.gsmtpd.address,
            self.ledgers,
            self.seed,
            processes=self.plan.senders,
            sessions=self.plan.sessions,
            rate=self.plan.rate,
            max_size=self.plan.max_size,
        )
        self._stack.enter_context(self.senders)

    def stop(self) -> None:
        """Have the senders bring their mail home, and gsmtpd end as it does on TERM.

        Raises BrokenPromiseError where gsmtpd does not end as it should.
        """
        self.senders.stop()
        self.stop_gsmtpd()

    def stop_gsmtpd(self) -> None:
        """Have gsmtpd end by TERM. Raises BrokenPromiseError where it does not as it should."""
        status = self.gsmtpd.stop()
        if status:
            raise BrokenPromiseError(f"gsmtpd ended with status {status}")

    def restart(self, settings: Settings | None = None, armed: bool | None = None) -> None:
        """Stop gsmtpd by TERM and start it again. settings, armed: None for as it was."""
        self.stop_gsmtpd()
        if settings is not None:
            self.gsmtpd.configure(settings)
        if armed is not None:
            self.gsmtpd.variables = self._variables(armed)
        self.gsmtpd.start()
        self.await_workers()

    def _variables(self, armed: bool) -> dict[str, str]:
        return {"GSMTPD_FAILPOINTS": str(self.failpoints)} if armed else {}

    def rows(self) -> Iterator[StoredRow]:
        """All that is stored, wherever it is. Raises StoredError."""
        servers = [self.database] if self._second is None else [self.database, self._second]
        for server in servers:
            yield from mysql_rows([address_of(server)])

    def mend(self) -> None:
        """Bring about that all is as before a fault, whatever became of that."""
        self.proxy.disarm()
        self.proxy.heal()
        if self.database.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.database.pid, signal.SIGCONT)
        else:
            self.database.start()
        self.database.query("SET GLOBAL read_only=0, wait_timeout=28800")
        self._mend_gsmtpd()

    def _mend_gsmtpd(self) -> None:
        for armed in self.failpoints.iterdir():
            armed.unlink()
        if not self.gsmtpd.running:
            self.gsmtpd.start()
        self.senders.break_off = 0.0
        self.senders.resume()

    # --- what gsmtpd says ---------------------------------------------------------------------

    def mark(self) -> int:
        """How long gsmtpd's log is now, for `said`."""
        try:
            return self.gsmtpd.log.stat().st_size
        except FileNotFoundError:
            return 0

    def said(self, pattern: str, mark: int) -> int:
        """How many lines of gsmtpd's log since `mark` have `pattern`; not those of the mail log."""
        time.sleep(_NO_WORD)  # who asks does so again and again, and logs may be long
        with self.gsmtpd.log.open("rb") as log:
            log.seek(mark)
            text = log.read().decode(errors="replace")
        found = re.compile(pattern)
        return sum(
            " result=" not in line and found.search(line) is not None for line in text.splitlines()
        )

    @contextlib.contextmanager
    def reconfigured(self, extra: Settings) -> Iterator[None]:
        """gsmtpd has other settings meanwhile.

        It is restarted: after a reload long sessions would stay with workers of the old ones.
        """
        self.restart(merge(self.settings(), extra))
        try:
            yield
        finally:
            self.restart(self.settings())

    def reload(self, extra: Settings) -> None:
        """Give gsmtpd other settings by HUP, and wait until they are in force."""
        mark = self.mark()
        self.gsmtpd.configure(merge(self.settings(), extra))
        os.kill(self.gsmtpd.pid, signal.SIGHUP)
        wait_for(lambda: self.said(r"\breloaded ", mark), WORKERS_WITHIN)

    def spooled(self) -> int:
        """How many mails are in gsmtpd's spool."""
        messages: int = self.gsmtpd.status()["spool"]["messages"]
        return messages

    def await_workers(self) -> None:
        """Wait until gsmtpd has all of its workers."""
        wait_for(lambda: len(self.gsmtpd.workers) >= PROCESSES, WORKERS_WITHIN)

    def await_load(self, more: int) -> None:
        """Wait until so many further mails are acknowledged. Raises DidNotHappenError."""
        goal = self.senders.acknowledged + more
        if not wait_until(lambda: self.senders.acknowledged >= goal, WORKERS_WITHIN):
            raise DidNotHappenError(f"{more} mails were not acknowledged in {WORKERS_WITHIN:g} s")

    def arm(self, step: str, action: str) -> None:
        """Have the first worker that passes a step of gsmtpd.failpoints do something there."""
        file = self.failpoints / step
        unfinished = file.with_suffix(".new")
        unfinished.write_text(action)
        unfinished.rename(file)

    def armed(self, step: str) -> bool:
        """Whether no worker has passed the armed step yet."""
        return (self.failpoints / step).exists()

    # --- what the database does ---------------------------------------------------------------

    def kill_connections(self, cursor: Cursor | None = None) -> int:
        """KILL CONNECTION for all that gsmtpd has; how many. cursor: of the administrator."""
        if cursor is None:
            with self.database.connect() as connection, connection.cursor() as cursor:
                return self.kill_connections(cursor)
        killed = 0
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (USER,))
        for (number,) in cursor.fetchall():
            with contextlib.suppress(pymysql.MySQLError):  # it may have ended by itself
                cursor.execute(f"KILL CONNECTION {number}")
                killed += 1
        return killed

    def database_status(self, name: str) -> int:
        """One of the database's own counters."""
        ((_, value),) = self.database.query("SHOW GLOBAL STATUS LIKE %s", (name,))
        return int(value)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[str]:
        """The database's disk is full meanwhile; how that was done."""
        if self._disk is not None:
            with self._disk.filled():
                yield "a file system of its own, filled up"
            return
        self.database.query(
            "CREATE TRIGGER full BEFORE INSERT ON new_mail FOR EACH ROW"
            " SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021",
            database=SCHEMA,
        )
        try:
            yield "a trigger that says so"
        finally:
            self.database.query("DROP TRIGGER full", database=SCHEMA)

    def keep_evidence(self) -> None:
        """Copy the logs to where the ledgers are, before they go."""
        for name, path in (("gsmtpd.log", self.gsmtpd.log), ("gsmtpd.out", self.gsmtpd.output)):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path, self.kept / name)


def furnish(server: MariaDB) -> None:
    """Make the database for mail, and the user that gsmtpd is: one without special rights."""
    server.create_database(SCHEMA)
    for host in ("%%", "localhost"):
        server.query(f"CREATE OR REPLACE USER {USER}@'{host}' IDENTIFIED BY '{PASSWORD}'")
        server.query(f"GRANT ALL ON {SCHEMA}.* TO {USER}@'{host}'")


def address_of(server: MariaDB) -> MySQLAddress:
    """Where the table of mail is, for one who reads it afresh."""
    path = str(server.socket)
    return MySQLAddress("", 0, path, server.user, server.password, SCHEMA, TABLE)


def seeded(seed: int, *words: object) -> random.Random:
    """Dice that fall the same way whenever they are thrown for the same purpose."""
    return random.Random(f"{seed} {' '.join(map(str, words))}")
