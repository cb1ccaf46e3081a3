"""Can a client, a slow database or a dead worker take mail from those whom a look-up knows?"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from gsmtpd.message.row import RowMaker
from gsmtpd.storage import mysql_connection
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from tests.accounting import Client, Gone, Mail, stuffed, table_of
from tests.servers import Gsmtpd, MariaDB, environment, freeze, merge, mysql_store, wait_for

OUR_SIDE = 30.0  # seconds, beside those that are promised, for a machine that is busy
OK, UNKNOWN, NOT_SERVED, NO_ANSWER = "250 2.1.5", "550 5.1.1", "550 5.7.1", "451 4.4.3"
PATIENCE = (
    "import gsmtpd.policy.lookups as l, gsmtpd.server.connection as c; l.PATIENCE = c.PATIENCE = {}"
)
IMPATIENT = PATIENCE.format(1.0)  # seconds
FOR_EVER = PATIENCE.format(600)
# All that has come is read, so that no reply that was not taken keeps a command from being read.
AT_ONCE = "import gsmtpd.server.client; gsmtpd.server.client.COMMANDS = 65536"  # octets
# Some minutes of work.
SLOW_IN_SQLITE = (
    "SELECT 1 FROM (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c"
    " WHERE x < 2000000000) SELECT count(*) AS n FROM c) WHERE n > length({})"
)
BURST = 1500  # commands, whose replies are more than a client with a small window is sent at once


def rcpt(daemon: Gsmtpd, *recipients: str) -> list[str]:
    """The codes that recipients are answered with, one after the other in one session."""
    with Client(daemon.address, 5 + OUR_SIDE) as client:
        begun(client)
        return [client.command(f"RCPT TO:<{each}>").text[:9] for each in recipients]


def begun(client: Client) -> Client:
    """In a transaction that takes addresses of any letters."""
    assert client.hello().command("MAIL FROM:<a@example.org> SMTPUTF8").code == 250
    return client


def no_fault(daemon: Gsmtpd) -> None:
    text = daemon.log.read_text() + daemon.output.read_text()
    for word in ("Traceback", "SIGSEGV", "SIGKILL", "killing", "Fatal Python error"):
        assert word not in text


def filled(server: MariaDB, schema: str, table: str, values: list[str], charset: str) -> None:
    """A table of one column `a` in that character set."""
    sql = f"CREATE TABLE {table} (a varchar(190) PRIMARY KEY) CHARACTER SET {charset}"
    server.query(sql, database=schema)
    for value in values:
        server.query(f"INSERT INTO {table} VALUES (%s)", (value,), database=schema)


# --- what a column cannot hold --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("charset", "odd"),
    [("latin1", "п"), ("ascii", "é"), ("utf8mb3", "\U0001f600")],
    ids=["latin1", "ascii", "utf8mb3"],
)
def test_an_address_that_the_column_cannot_hold(
    mariadb: MariaDB, schema: str, charset: str, odd: str
) -> None:
    """It is nobody's; and whoever asks for it takes no answer from the others."""
    known = [f"u{number}@example.com" for number in range(6)]
    filled(mariadb, schema, "address", known, charset)
    query = {"recipients": {"query": "SELECT 1 FROM address WHERE a = %s"}}
    with Gsmtpd(merge(mysql_store(mariadb, schema), query)) as daemon:
        asked = [known[0], f"{odd}@example.com", known[1], f"x{odd}@example.com", *known[2:4]]
        assert rcpt(daemon, *asked) == [OK, UNKNOWN, OK, UNKNOWN, OK, OK]
        assert rcpt(daemon, f"{odd}1@example.com", "x@example.com") == [UNKNOWN] * 2
        assert rcpt(daemon, *known[4:]) == [OK] * 2
        assert "query: " not in daemon.log.read_text()
        no_fault(daemon)


@pytest.mark.parametrize("charset", ["latin1", "ascii"])
def test_a_domain_that_is_no_name(mariadb: MariaDB, schema: str, charset: str) -> None:
    """Nobody is asked for it."""
    served = [f"d{number}.example" for number in range(5)]
    filled(mariadb, schema, "served", served, charset)
    query = {"domains": {"accept": "", "query": "SELECT 1 FROM served WHERE a = %s"}}
    with Gsmtpd(merge(mysql_store(mariadb, schema), query)) as daemon:
        odd = ["a@b\uff0fc.example", "a@\u2024x.example", "a@\u05d0a.example"]
        ours = [f"a@{domain}" for domain in served]
        asked = [ours[0], odd[0], ours[1], odd[1], ours[2], odd[2], ours[3]]
        assert rcpt(daemon, *asked) == [OK, NOT_SERVED] * 3 + [OK]
        assert rcpt(daemon, "a@x.example", ours[4]) == [NOT_SERVED, OK]
        assert "query: " not in daemon.log.read_text()
        no_fault(daemon)


# --- a worker that dies ---------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["unchanged", "a mistake", "gone"])
def test_a_worker_after_another_decides_as_that_did(tmp_path: Path, then: str) -> None:
    """By the lists' last good version, not by what they were when gsmtpd started."""
    listed, read = tmp_path / "recipients", tmp_path / "read"
    listed.write_text("ann@example.com\n")
    note = (
        "import os, gsmtpd.policy.files as f\n"
        "make = f.PolicyFiles._make\n"
        "def noted(self):\n"
        "    made = make(self)\n"
        f"    print(os.getpid(), file=open({str(read)!r}, 'a'))\n"
        "    return made\n"
        "f.PolicyFiles._make = noted\n"
    )
    with Gsmtpd({"recipients": {"accept": f"@{listed}"}}, before=note) as daemon:
        asked = ["ann@example.com", "bob@example.com", "eve@example.com"]
        assert rcpt(daemon, *asked) == [OK, UNKNOWN, UNKNOWN]
        at_start = read.read_text().split().count(str(daemon.pid))
        listed.write_text("ann@example.com\nbob@example.com\n")
        wait_for(lambda: rcpt(daemon, *asked) == [OK, OK, UNKNOWN])
        # The master, too; without that it can hand on nothing else than it had.
        with suppress(AssertionError):
            wait_for(lambda: read.read_text().split().count(str(daemon.pid)) > at_start, 5)
        if then == "a mistake":
            listed.write_text("eve@example.com\nbad bad\n")
        elif then == "gone":
            listed.unlink()
        if then != "unchanged":
            wait_for(lambda: str(listed) in daemon.log.read_text())
        (old,) = daemon.workers
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: daemon.workers and old not in daemon.workers)
        assert first_answers(daemon, asked) == [OK, OK, UNKNOWN]


def first_answers(daemon: Gsmtpd, asked: list[str]) -> list[str]:
    """What the first worker that serves us says."""
    for _ in range(500):
        with suppress(OSError, Gone):
            return rcpt(daemon, *asked)
        time.sleep(0.02)
    raise AssertionError("nobody serves")


# --- answers that take long -----------------------------------------------------------------------


def test_answers_that_take_longer_than_they_hold(mariadb: MariaDB, schema: str) -> None:
    """The first has expired when the second comes, and serves all the same."""
    filled(mariadb, schema, "address", ["ann@d.example"], "utf8mb4")
    filled(mariadb, schema, "served", ["d.example"], "utf8mb4")
    queries = {
        "domains": {"query": "SELECT 1 FROM served WHERE a = %s AND SLEEP(1.1) = 0"},
        "recipients": {
            "query": "SELECT 1 FROM address WHERE a = %s AND SLEEP(1.1) = 0",
            "query_ttl": "1s",
        },
    }
    patient = PATIENCE.format(20)  # so that an answer comes on a machine that is busy, too
    with Gsmtpd(merge(mysql_store(mariadb, schema), queries), before=patient) as daemon:
        with Client(daemon.address, 15) as client:
            assert begun(client).command("RCPT TO:<ann@d.example>").text[:9] == OK
        no_fault(daemon)


def test_many_questions_take_no_longer_than_one(
    mariadb: MariaDB, schema: str, tmp_path: Path
) -> None:
    """All of one recipient: it hears 451 when its time is over, and 250 once all are answered."""
    served = [f"d{number}.example" for number in range(20)]
    filled(mariadb, schema, "served", served, "utf8mb4")
    aliases = tmp_path / "aliases"
    aliases.write_text("all@example.com: " + ", ".join(f"x@{each}" for each in served) + "\n")
    settings = {
        "domains": {"query": "SELECT 1 FROM served WHERE a = %s AND SLEEP(0.2) = 0"},
        "recipients": {"aliases": str(aliases)},
    }
    with Gsmtpd(merge(mysql_store(mariadb, schema), settings), before=IMPATIENT) as daemon:
        assert rcpt(daemon, "all@example.com") == [NO_ANSWER]
        wait_for(lambda: rcpt(daemon, "all@example.com") == [OK], 2 * OUR_SIDE)
        no_fault(daemon)


def test_who_waits_with_replies_unread_costs_nothing(mariadb: MariaDB, schema: str) -> None:
    filled(mariadb, schema, "address", ["slow@example.com"], "utf8mb4")
    settings = {
        "recipients": {
            "query": "SELECT 1 FROM address WHERE a = %s AND SLEEP(4) = 0",
        }
    }
    with (
        Gsmtpd(
            merge(mysql_store(mariadb, schema), settings), before=f"{FOR_EVER}; {AT_ONCE}"
        ) as daemon,
        narrow(daemon) as client,
    ):
        client.hello()
        (worker,) = daemon.workers
        mail, slow = "MAIL FROM:<a@example.org>\r\n", "RCPT TO:<slow@example.com>\r\n"
        burst = mail + "RCPT TO:<postmaster>\r\n" * BURST + "RSET\r\n" + mail + slow
        freeze(worker)  # so that it gets all at once
        client.send(burst.encode())
        wait_for(lambda: unsent(client) == 0)
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: "looking up 'slow@example.com'" in daemon.dump())
        for _ in range(BURST + 3):
            client.reply()
        began, before = time.monotonic(), cpu_seconds(worker)
        silent = not select.select([client.socket], [], [], 1.5)[0]
        spent, took = cpu_seconds(worker) - before, time.monotonic() - began
        assert silent
        assert spent < 0.3 * took
        assert client.reply().text[:9] == OK
        no_fault(daemon)


@contextmanager
def narrow(daemon: Gsmtpd) -> Iterator[Client]:
    """A client that can be sent little before it reads."""
    client = Client.__new__(Client)
    client.socket = socket.socket()
    client.socket.settimeout(5 + OUR_SIDE)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    client.socket.connect(daemon.address)
    client._file = client.socket.makefile("rb")
    with client:
        yield client


def unsent(client: Client) -> int:
    """Octets that are on their way to the server."""
    return int.from_bytes(fcntl.ioctl(client.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    return time.clock_gettime((~pid << 3) | 2)


# --- the end of a query ---------------------------------------------------------------------------


def test_a_stop_while_sqlite_is_asked() -> None:
    query = {"recipients": {"query": SLOW_IN_SQLITE.format("%s")}}
    with Gsmtpd(query, before=FOR_EVER) as daemon, Client(daemon.address) as client:
        begun(client).send(b"RCPT TO:<slow@example.com>\r\n")
        wait_for(lambda: "looking up 'slow@example.com'" in daemon.dump())
        assert daemon.stop(5 + OUR_SIDE) == 0
        assert client.reply().text.startswith("421 4.3.2 ")
        no_fault(daemon)


def test_a_store_is_closed_while_sqlite_is_asked(tmp_path: Path) -> None:
    """In a process of its own, as the fault was one that ends it."""
    program = f"""
import threading, time
from gsmtpd.message.row import RowMaker
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.sqlite import SQLiteStore
store = SQLiteStore({str(tmp_path / "mail.db")!r}, RowMaker("mx.example.com"))
store.prepare()
asks = store.query({SLOW_IN_SQLITE.format("%s")!r})
def ask():
    try:
        asks("ann@example.com")
    except StoreError as error:
        print(error)
thread = threading.Thread(target=ask)
thread.start()
time.sleep(0.5)
store.close()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=5 + OUR_SIDE,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "interrupted" in done.stdout


# --- a host that is gone --------------------------------------------------------------------------


@contextmanager
def black_hole() -> Iterator[int]:
    """A port of 127.0.0.1 that answers nobody who would connect, as a host that is gone."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):  # what the kernel takes for it, and more
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


def connecting(port: int) -> int:
    """How many connections to that port are being made."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "02" for line in lines)


def test_writers_do_not_wait_for_a_query_that_connects(
    mariadb: MariaDB, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_connection, "CONNECT_TIMEOUT", 3)
    with black_hole() as port, ThreadPoolExecutor(1) as executor:
        hosts = (Host("127.0.0.1", port), Host("127.0.0.1", mariadb.port))
        database = Database(hosts, mariadb.user, mariadb.password, schema)
        store = MySQLStore(database, RowMaker("mx.example.com"), 2, lookups=1)
        store.prepare()  # the writer's connection is made, and in the pool
        others = connecting(port)
        with store._connection() as connection, connection.cursor() as cursor:
            asked = executor.submit(store.query("SELECT 1 FROM new_mail WHERE hash <> %s"), "x")
            wait_for(lambda: connecting(port) > others)
            cursor.execute("SELECT 1")
        # Given back, while the query has not come any further.
        assert connecting(port) > others
        assert asked.result(5 + OUR_SIDE) is False
        store.close()


# --- other spellings ------------------------------------------------------------------------------


def test_all_spellings_of_a_domain_are_one_mailbox() -> None:
    accept = {"domains": {"accept": "example.com, straße.example"}}
    asked = {
        "ann@example.com": "ann@example.com",
        "ann@ｅｘａｍｐｌｅ.com": "ann@example.com",
        "ann@example。com": "ann@example.com",
        "ann@exam\u00adple.com": "ann@example.com",
        "ann@exa\u200bmple.com": "ann@example.com",
        "ann@straße.example": "ann@xn--strae-oqa.example",
        "ann@xn--strae-oqa.example": "ann@xn--strae-oqa.example",
    }
    with Gsmtpd(accept) as daemon:
        assert rcpt(daemon, *asked) == [OK] * len(asked)
        assert rcpt(daemon, "ann@strasse.example") == [NOT_SERVED]
        with Client(daemon.address) as client:
            begun(client)
            for each in asked:
                assert client.command(f"RCPT TO:<{each}>").code == 250
            assert client.command("DATA").code == 354
            client.send(stuffed(Mail(b"Subject: x\r\n\r\nx\r\n").content))
            id_ = client.reply().id
        columns = "SELECT recipient, `to` FROM new_mail"
        rows = table_of(daemon).query(f"{columns} WHERE hash = '{id_}'")
        assert sorted(rows) == sorted(asked.items())
        no_fault(daemon)


def test_a_letter_that_looks_like_another_is_another(tmp_path: Path) -> None:
    """The Kelvin sign, whose small letter is an ASCII one."""
    kelvin = "\u212aate@example.com"
    aliases = tmp_path / "aliases"
    aliases.write_text("kim@example.com: kate@example.com\n")
    lists = {"recipients": {"accept": "kate@example.com", "aliases": str(aliases)}}
    with Gsmtpd(lists) as daemon:
        assert rcpt(daemon, "KATE@example.com", "KIM@example.com") == [OK] * 2
        assert rcpt(daemon, kelvin, "\u212aim@example.com") == [UNKNOWN] * 2
        no_fault(daemon)
