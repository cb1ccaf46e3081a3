"""Who has mail here, while the database that knows it is killed, hangs, or does not understand?"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count as count_from
from typing import Any

import pytest

from gsmtpd.control import ask
from tests.accounting import (
    Client,
    Ledger,
    MySQLTable,
    count,
    rows,
    send,
    with_token,
)
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, environment, freeze, merge, mysql_store, wait_for

SCHEMA = "mail"
OUR_SIDE = 30.0  # seconds, beside those that are promised, for a machine that is busy
KNOWN, NEW, OURS = "known@example.com", "new@example.com", "known@sql.example"
# As a client asks for them in one session, and what it hears of those that the database has.
ASKED = (KNOWN, "nobody@example.com", OURS, "nobody@sql.example", "a@other.example")
ANSWERS = ["250 2.1.5", "550 5.1.1", "250 2.1.5", "550 5.1.1", "550 5.7.1"]
NEVER_ASKED = ("never@example.com", "never@sql.example", "a@never.example")
PATIENCE = (
    "import gsmtpd.policy.lookups as l, gsmtpd.server.connection as c; l.PATIENCE = c.PATIENCE = {}"
)
IMPATIENT = PATIENCE.format(0.5)  # seconds
FOR_EVER = PATIENCE.format(600)
QUERIES = {
    "domains": {"query": "SELECT 1 FROM served_domain WHERE name = %s"},
    "recipients": {
        "query": "SELECT 1 FROM gm2_address WHERE address_email = %s",
        "query_ttl": "1s",
    },
}


@pytest.fixture(scope="module")
def _fragile() -> Iterator[MariaDB]:
    with MariaDB(durable=True) as server:
        yield server


@pytest.fixture
def fragile(_fragile: MariaDB) -> MariaDB:
    """A running MariaDB that a test may kill or stop, with mail's tables and those of QUERIES."""
    if not _fragile.running:
        _fragile.start()
    make_schema(_fragile, SCHEMA)
    for table, column in (("gm2_address", "address_email"), ("served_domain", "name")):
        sql = f"CREATE TABLE {table} ({column} varchar(255) PRIMARY KEY)"
        _fragile.query(sql, database=SCHEMA)
    add(_fragile, KNOWN)
    add(_fragile, OURS)
    _fragile.query("INSERT INTO served_domain VALUES ('sql.example')", database=SCHEMA)
    return _fragile


def add(server: MariaDB, address: str) -> None:
    server.query("INSERT INTO gm2_address VALUES (%s)", (address,), database=SCHEMA)


def with_queries(server: MariaDB, **more: dict[str, object]) -> dict[str, Any]:
    """Settings with QUERIES, and more of them."""
    return merge(mysql_store(server, SCHEMA) | QUERIES, more)


@contextmanager
def stopped(server: MariaDB) -> Iterator[Callable[[], None]]:
    """The server takes connections and does nothing more, until the end or until this is called."""

    def go_on() -> None:
        os.kill(server.pid, signal.SIGCONT)

    freeze(server.pid)
    try:
        yield go_on
    finally:
        go_on()


def rcpt(daemon: Gsmtpd, *recipients: str) -> list[str]:
    """The codes that recipients are answered with, one after the other in one session."""
    with Client(daemon.address) as client:
        begun(client)
        return [client.command(f"RCPT TO:<{each}>").text[:9] for each in recipients]


def begun(client: Client) -> Client:
    """In a transaction."""
    assert client.hello().command(f"MAIL FROM:<{with_token().sender}>").code == 250
    return client


@contextmanager
def waiting(daemon: Gsmtpd, recipient: str = NEW, then: bytes = b"") -> Iterator[Client]:
    """A client whose recipient is being looked up for it. then: sent in the same burst."""
    with Client(daemon.address) as client:
        begun(client).send(f"RCPT TO:<{recipient}>\r\n".encode() + then)
        wait_for(lambda: f"looking up '{recipient}'" in daemon.dump())
        yield client


def silent(client: Client) -> bool:
    """Whether it has not been answered by now."""
    return not select.select([client.socket], [], [], 0)[0]


def said(daemon: Gsmtpd, text: str) -> list[str]:
    """The lines of the log that have `text` in them."""
    return [line for line in daemon.log.read_text().splitlines() if text in line]


def no_fault(daemon: Gsmtpd) -> None:
    assert "Traceback" not in daemon.log.read_text() + daemon.output.read_text()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with those arguments; a timeout is a failure."""
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=5 + OUR_SIDE,
        env=environment(),
    )


# --- the database is away -------------------------------------------------------------------------


def test_killed_and_back(fragile: MariaDB) -> None:
    often = "import gsmtpd.policy.lookups as l; l.AGAIN = 0.05"
    with Gsmtpd(with_queries(fragile), before=often) as daemon:
        assert rcpt(daemon, *ASKED) == ANSWERS
        fragile.kill()
        while not (said(daemon, "recipient query: ") and said(daemon, "domain query: ")):
            assert rcpt(daemon, *ASKED) == ANSWERS
        for _ in range(50):
            assert rcpt(daemon, *ASKED) == ANSWERS
            assert rcpt(daemon, *NEVER_ASKED) == ["451 4.4.3"] * 3
        mail = with_token(recipients=[KNOWN])
        assert send(daemon.address, mail)[0].text.startswith("451 4.3.0 ")
        fragile.start()
        add(fragile, NEW)
        answers = ["250 2.1.5", "550 5.1.1", "550 5.1.1", "550 5.7.1"]
        wait_for(lambda: rcpt(daemon, NEW, *NEVER_ASKED) == answers)
        wait_for(lambda: send(daemon.address, mail)[0].code == 250)
        for query in ("recipient query: ", "domain query: "):
            trouble, end = said(daemon, query)
            assert "what is known serves on, all else is answered with 451" in trouble
            assert "it works again" in end
        no_fault(daemon)
    assert count(MySQLTable(fragile, SCHEMA)) == 1


def test_down_at_start(fragile: MariaDB) -> None:
    fragile.kill()
    with Gsmtpd(with_queries(fragile)) as daemon:
        assert rcpt(daemon, KNOWN, OURS) == ["451 4.4.3"] * 2
        fragile.start()
        wait_for(lambda: rcpt(daemon, *ASKED) == ANSWERS)
        no_fault(daemon)


def test_stopped_and_back(fragile: MariaDB) -> None:
    """It takes connections and never answers."""
    soon = "import gsmtpd.storage.mysql_connection as m; m.READ_TIMEOUT = 2"
    with Gsmtpd(with_queries(fragile), before=f"{IMPATIENT}\n{soon}") as daemon:
        assert rcpt(daemon, *ASKED) == ANSWERS
        with stopped(fragile):
            for _ in range(20):
                assert rcpt(daemon, *ASKED) == ANSWERS
                assert rcpt(daemon, *NEVER_ASKED) == ["451 4.4.3"] * 3
            # Its threads have been kept waiting by now, and nobody is for long any more.
            wait_for(lambda: said(daemon, "recipient query: ") and rcpt(daemon, *ASKED) == ANSWERS)
        add(fragile, NEW)
        wait_for(lambda: rcpt(daemon, NEW) == ["250 2.1.5"])
        wait_for(lambda: rcpt(daemon, OURS, "a@never.example") == ["250 2.1.5", "550 5.7.1"])
        assert len(said(daemon, "recipient query: ")) == 2
        assert len(said(daemon, "domain query: ")) in (0, 2)
        no_fault(daemon)


def test_nobody_waits_for_one_that_waits(fragile: MariaDB) -> None:
    """All are clients of the same SMTP thread. 5 seconds are the promise."""
    never = "import gsmtpd.storage.mysql_connection as m; m.READ_TIMEOUT = 600"
    with Gsmtpd(with_queries(fragile), before=never) as daemon, Client(daemon.address) as other:
        begun(other)
        assert other.command("RCPT TO:<postmaster@example.com>").code == 250
        with stopped(fragile), waiting(daemon) as client:
            client.socket.settimeout(5 + OUR_SIDE)
            assert other.command("NOOP").code == 250
            assert other.command("RCPT TO:<abuse@example.com>").code == 250
            assert rcpt(daemon, "postmaster@example.com") == ["250 2.1.5"]
            assert silent(client)
            assert client.reply().text.startswith("451 4.4.3 ")
        no_fault(daemon)


def test_nobody_is_put_behind_threads_that_hang(fragile: MariaDB) -> None:
    """Once all threads that ask are kept waiting, further clients hear at once that nobody knows.

    The clock that gives up for each client is out of the way here.
    """
    before = f"{FOR_EVER}; l.PATIENCE = 1.0"
    numbers = count_from(1)
    with Gsmtpd(with_queries(fragile), before=before) as daemon, stopped(fragile):

        def heard_at_once() -> bool:
            with Client(daemon.address, 0.5) as client, suppress(TimeoutError):
                return begun(client).command(f"RCPT TO:<c{next(numbers)}@example.com>").code == 451
            return False

        with waiting(daemon, "a@example.com") as a, waiting(daemon, "b@example.com") as b:
            wait_for(heard_at_once)
            with Client(daemon.address) as client:
                burst = "".join(f"RCPT TO:<r{number}@example.com>\r\n" for number in range(50))
                begun(client).send(burst.encode())
                assert {client.reply().text[:9] for _ in range(50)} == {"451 4.4.3"}
            assert silent(a)
            assert silent(b)


def test_what_is_told_of_a_database_that_hangs(fragile: MariaDB) -> None:
    """gsmtpctl waits for it no longer than a client has to."""
    daemon = Gsmtpd(with_queries(fragile))  # never started
    with stopped(fragile):
        done = run("-m", "gsmtpd.ctl", "-c", str(daemon.conf), "check-address", KNOWN)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{KNOWN}: deferred\n")
    assert "451 4.4.3" in done.stdout


# --- clients that do not wait, and servers that do not --------------------------------------------


@pytest.mark.parametrize(
    ("then", "replies"),
    [
        (b"NOOP\r\nQUIT\r\n", ["250 2.1.5", "250 2.0.0", "221 2.0.0"]),
        (
            b"RSET\r\nRCPT TO:<x@example.com>\r\nQUIT\r\n",
            ["250 2.1.5", "250 2.0.0", "503 5.5.1", "221 2.0.0"],
        ),
        (b"EHLO again.example\r\nQUIT\r\n", ["250 2.1.5", "250-mx.ex", "221 2.0.0"]),
        (b"RCPT TO:<known@example.com>\r\nNO", ["250 2.1.5", "250 2.1.5"]),
    ],
    ids=["quit", "rset", "ehlo", "half a command"],
)
def test_what_was_said_meanwhile_is_answered_behind(
    fragile: MariaDB, patient: Gsmtpd, then: bytes, replies: list[str]
) -> None:
    add(fragile, NEW)
    with stopped(fragile) as go_on, waiting(patient, then=then) as client:
        assert silent(client)
        go_on()
        assert [client.reply().text[:9] for _ in replies] == replies
    no_fault(patient)


@pytest.fixture
def patient(fragile: MariaDB) -> Iterator[Gsmtpd]:
    """Keeps a client waiting for as long as the database does."""
    with Gsmtpd(with_queries(fragile), before=FOR_EVER) as daemon:
        yield daemon


def test_clients_that_leave(fragile: MariaDB, patient: Gsmtpd) -> None:
    with stopped(fragile):
        with waiting(patient):
            pass
        with waiting(patient, then=b"QUIT\r\n"):
            pass
        with waiting(patient) as client:
            reset = struct.pack("ii", 1, 0)  # see socket(7), SO_LINGER
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    wait_for(lambda: ask(str(patient.path / "control"), "status", 10)["clients"] == 0)
    assert rcpt(patient, *ASKED) == ANSWERS
    no_fault(patient)


def test_a_client_is_not_timed_out_for_our_own_waiting(fragile: MariaDB) -> None:
    settings = with_queries(fragile, limits={"timeout": "3s", "session_timeout": "6s"})
    with (
        Gsmtpd(settings, before=PATIENCE.format(8)) as daemon,
        stopped(fragile),
        waiting(daemon) as client,
    ):
        assert client.reply().text.startswith("451 4.4.3 ")
        assert client.reply().text.startswith("421 4.4.2 ")
        assert client.closed()
        no_fault(daemon)


def test_a_stop_while_clients_wait(
    fragile: MariaDB, patient: Gsmtpd, background: ThreadPoolExecutor
) -> None:
    """They hear so, and not a word more when their answer comes after all."""
    with (
        stopped(fragile) as go_on,
        waiting(patient) as client,
        waiting(patient, KNOWN, b"NOOP\r\n") as more,
    ):
        stop = background.submit(patient.ctl, "stop")
        for each in (client, more):
            assert each.reply().text.startswith("421 4.3.2 ")
        go_on()
        for each in (client, more):
            assert each.closed()
        assert stop.result() == "stopped\n"
    wait_for(lambda: not patient.running)
    no_fault(patient)


def test_a_stop_while_the_database_hangs(fragile: MariaDB, patient: Gsmtpd) -> None:
    with stopped(fragile), waiting(patient) as client:
        assert patient.ctl("stop") == "stopped\n"
        assert client.reply().text.startswith("421 4.3.2 ")
        assert client.closed()
    no_fault(patient)


def test_a_reload_while_clients_wait(fragile: MariaDB, patient: Gsmtpd) -> None:
    with stopped(fragile) as go_on, waiting(patient) as client:
        old = patient.workers
        patient.configure(with_queries(fragile, recipients={"accept": "listed"}))
        assert patient.ctl("reload") == "reloaded\n"
        wait_for(lambda: rcpt(patient, "listed@example.com") == ["250 2.1.5"])
        assert silent(client)
        go_on()
        assert client.reply().text.startswith("550 5.1.1 ")
        assert client.command("RCPT TO:<known@example.com>").code == 250
        client.close()
        wait_for(lambda: not set(old) & set(patient.workers))
    assert rcpt(patient, *ASKED) == ANSWERS
    no_fault(patient)


# --- what it does not understand ------------------------------------------------------------------


def test_sql_that_is_wrong_until_the_table_is_there(fragile: MariaDB) -> None:
    fragile.query("DROP TABLE gm2_address, served_domain", database=SCHEMA)
    with Gsmtpd(with_queries(fragile)) as daemon:
        checked = run("-m", "gsmtpd", "-t", "-c", str(daemon.conf))
        assert checked.returncode == 0
        words = f"[domains] query: Table '{SCHEMA}.served_domain' doesn't exist (error 1146)"
        assert words in checked.stderr
        assert rcpt(daemon, KNOWN, OURS, "postmaster@example.com") == [
            *("451 4.4.3", "451 4.4.3", "250 2.1.5")
        ]
        trouble = said(daemon, "recipient query: ")
        assert len(trouble) == 1
        assert f"Table '{SCHEMA}.gm2_address' doesn't exist (error 1146)" in trouble[0]
        for table, column in (("gm2_address", "address_email"), ("served_domain", "name")):
            sql = f"CREATE TABLE {table} ({column} varchar(255) PRIMARY KEY)"
            fragile.query(sql, database=SCHEMA)
        add(fragile, KNOWN)
        wait_for(lambda: rcpt(daemon, KNOWN) == ["250 2.1.5"])
        no_fault(daemon)


# --- what needs no store --------------------------------------------------------------------------


def test_mail_that_is_thrown_away_needs_no_database(fragile: MariaDB) -> None:
    lists = {"recipients": {"accept": "known@example.com", "unknown": "discard"}}
    table = MySQLTable(fragile, SCHEMA)
    ledger = Ledger()
    with Gsmtpd(mysql_store(fragile, SCHEMA) | lists) as daemon:
        fragile.kill()
        for _ in range(3):
            reply = send(daemon.address, with_token(recipients=["x@example.com"]))[0]
            assert reply.code == 250
            assert reply.id
        both = with_token(recipients=["x@example.com", KNOWN])
        assert send(daemon.address, both)[0].text.startswith("451 4.3.0 ")
        fragile.start()
        assert count(table) == 0
        mail = with_token(recipients=[KNOWN])
        wait_for(lambda: send(daemon.address, mail)[0].code == 250)
        reply = send(daemon.address, both)[0]
        ledger.note(both._replace(recipients=(KNOWN,)), reply, True)
        found = [row for row in rows(table) if row.hash == reply.id]
        ledger.check(found)
        assert len(found) == 1
        wait_for(lambda: len(said(daemon, "result=discarded")) == 4)
        no_fault(daemon)
