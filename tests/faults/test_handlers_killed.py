"""Can a handler, or the death of any process, keep mail from being stored, or a handler from it?"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter, defaultdict
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import loads
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Self

import pytest

from gsmtpd.control import ControlError
from tests.accounting import (
    Ledger,
    Load,
    Mail,
    MySQLTable,
    count,
    rows,
    send,
    table_of,
)
from tests.acting import acting, dispatcher, notes, outbox, runners, settled, to
from tests.conftest import Kept
from tests.functional.test_daemon import alive
from tests.functional.test_reload import lines, status
from tests.servers import Gsmtpd, Settings, mysql_store, parent, resident, wait_for

BACK = 20.0  # seconds until a killed worker is replaced, on a busy machine
CHAOS = float(os.environ.get("CHAOS_SECONDS", "10"))
KILLS_EACH = 0.3  # seconds
ROLES = ("smtp", "handlers", "runner", "master")
MORE = 32 << 20  # octets of memory that a process may have more than before
HOSTILE = """
import ctypes, os, sys, time
from gsmtpd.handlers import Handler

class Sleeping(Handler):
    def handle(self, mail):
        print("sleeps")
        time.sleep(1e9)

class Exiting(Handler):
    def handle(self, mail):
        os._exit(3)

class Crashing(Handler):
    def handle(self, mail):
        ctypes.string_at(0)

class Eating(Handler):
    def handle(self, mail):
        eaten = []
        while True:
            eaten.append(bytearray(1 << 20))

class Leaking(Handler):
    leaked = []
    def handle(self, mail):
        self.leaked.append(b"x" * (30 << 20))
        mail.annotate("subject", mail.subject)

class Forking(Handler):
    # Each of them would say what becomes of the mail.
    defaults = {"signs": ""}
    def handle(self, mail):
        for _ in range(3):
            os.fork()
        with open(self.settings["signs"] + "/forked", "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(1e9)

class Printing(Handler):
    def handle(self, mail):
        while True:
            print("x" * 200)

class Closing(Handler):
    def handle(self, mail):
        os.closerange(0, 1000)

class Noting(Handler):
    def handle(self, mail):
        mail.annotate("what", "x" * (20 << 20))

class Leaving(Handler):
    # A process of it stays behind.
    def handle(self, mail):
        child = os.fork()
        if child == 0:
            time.sleep(1e9)
        mail.annotate("child", str(child))

class Good(Handler):
    def handle(self, mail):
        mail.annotate("subject", mail.subject)

class Twofold(Handler):
    # Two processes of it return.
    def handle(self, mail):
        mail.annotate("subject", mail.subject)
        if mail.subject == "fork":
            os.fork()
"""
REASONS = {
    "sleeping": "took longer than 1 s, and was killed",
    "exiting": "ended its process, with exit code 3",
    "crashing": "was ended by SIGSEGV",
    "eating": "MemoryError: it wants more than memory_limit",
    "forking": "took longer than 1 s, and was killed",
    "printing": "took longer than 1 s, and was killed",
    "closing": "ended its process, with exit code 0",
    "noting": "wrote a line without an end to gsmtpd, and was killed",
}


@pytest.fixture(params=["sqlite", "mariadb"])
def where(request: pytest.FixtureRequest) -> tuple[Settings, MySQLTable | None]:
    """Settings of a store, and its tables where they are not the daemon's file."""
    if request.param == "sqlite":
        return {}, None
    mariadb, schema = map(request.getfixturevalue, ("mariadb", "schema"))
    return mysql_store(mariadb, schema), MySQLTable(mariadb, schema)


def made(where: tuple[Settings, MySQLTable | None], settings: Settings) -> Kept:
    """A daemon that is not started, with that store and those settings."""
    store, table = where
    daemon = Gsmtpd({**store, **settings})
    return Kept(daemon, table or table_of(daemon))


# --- hostile handlers -----------------------------------------------------------------------------


def _hostile(path: Path) -> dict[str, Any]:
    each: dict[str, dict[str, Any]] = {
        name: {"match": f"{name}@example.com", "class": f"own.{name.capitalize()}"}
        for name in (*REASONS, "good")
    }
    each["forking"]["signs"] = path
    for name, reason in REASONS.items():
        # However busy the machine is: the others end by themselves.
        each[name]["time_limit"] = "1s" if "1 s" in reason else "1m"
    return acting(path, HOSTILE, **each) | {"server": {"processes": 1}}


def test_hostile_handlers_end_dead_with_their_reason(
    where: tuple[Settings, MySQLTable | None], tmp_path: Path
) -> None:
    """And the others, intake and the machine are none the worse for it."""
    daemon, table = made(where, _hostile(tmp_path))
    with daemon:
        workers = daemon.workers
        deliver(daemon, to("good@example.com", "before"))
        wait_for(lambda: notes(table))
        before = {each: resident(each) for each in (daemon.pid, *workers)}
        mails = [to(f"{name}@example.com", f"m{n}") for n in range(2) for name in REASONS]
        deliver(daemon, *mails, *(to("good@example.com", f"g{n}") for n in range(20)))
        wait_for(lambda: len(notes(table)) == 21)  # they wait for no other
        dead = settled(table)
        expected = sorted((name, reason) for name, reason in REASONS.items() for _ in range(2))
        assert sorted((each.handler, each.reason) for each in dead) == expected
        assert {(each.tries, each.owner) for each in dead} == {(2, "")}
        assert count(table) == 21 + len(mails)
        forked = [int(line) for line in (tmp_path / "forked").read_text().split()]
        assert forked
        wait_for(lambda: not any(alive(each) for each in forked))
        assert daemon.workers == workers  # nothing of gsmtpd's was ended
        wait_for(lambda: 1 <= len(runners(daemon)) <= len(REASONS) + 1)
        wait_for(lambda: all(resident(each) < before[each] + MORE for each in before), BACK)
        assert daemon.log.stat().st_size < 1 << 20
        assert daemon.status()["handler_dead"] == len(dead)


def deliver(daemon: Gsmtpd, *mails: Mail) -> None:
    """Have each stored."""
    assert {reply.code for reply in send(daemon.address, *mails)} == {250}


def test_a_handler_that_returns_twice(tmp_path: Path) -> None:
    """What its other process says is nothing that is said of the next mail."""
    own = {"match": "a@example.com", "class": "own.Twofold"}
    with Gsmtpd(acting(tmp_path, HOSTILE, twofold=own)) as daemon:
        table = table_of(daemon)
        subjects = [word for n in range(20) for word in ("fork", f"n{n}")]
        deliver(daemon, *(to("a@example.com", subject) for subject in subjects))
        assert settled(table) == []
        assert sorted(row[3] for row in notes(table)) == sorted(subjects)


def test_a_handler_that_leaks(tmp_path: Path) -> None:
    """It begins anew when it has had all it may have, and no mail is given up."""
    own = {"match": "a@example.com", "class": "own.Leaking", "memory_limit": "128M"}
    settings = acting(tmp_path, HOSTILE, leaking=own)
    settings["handlers"]["tries"] = 20  # one may come again just when others have leaked as much
    with Gsmtpd(settings) as daemon:
        subjects = [f"m{n:02}" for n in range(12)]
        deliver(daemon, *(to("a@example.com", subject) for subject in subjects))
        assert settled(table_of(daemon)) == []
        assert sorted(row[3] for row in notes(table_of(daemon))) == subjects
        assert daemon.status()["handler_failed"] >= 2


def test_what_a_handler_has_started_ends_with_it(tmp_path: Path) -> None:
    own = {"match": "a@example.com", "class": "own.Leaving"}
    with Gsmtpd(acting(tmp_path, HOSTILE, leaving=own)) as daemon:
        deliver(daemon, *(to("a@example.com", "x") for _ in range(3)))
        assert settled(table_of(daemon)) == []
        children = [int(row[3]) for row in notes(table_of(daemon))]
        assert [alive(child) for child in children] == [True] * 3
        assert daemon.stop() == 0
        wait_for(lambda: not any(alive(child) for child in children))


def test_a_runner_that_hangs_dies_with_who_would_have_killed_it(tmp_path: Path) -> None:
    own = {"match": "a@example.com", "class": "own.Sleeping", "time_limit": "1h"}
    with Gsmtpd(acting(tmp_path, HOSTILE, sleeping=own)) as daemon:
        deliver(daemon, to("a@example.com"))
        wait_for(lambda: lines(daemon, "handler sleeping: sleeps"))
        (runner,) = (pid for pid in runners(daemon) if parent(pid) == dispatcher(daemon))
        os.kill(dispatcher(daemon), signal.SIGKILL)
        wait_for(lambda: not alive(runner))


# --- processes that are killed --------------------------------------------------------------------


def _kill(daemon: Gsmtpd, who: str) -> None:
    """SIGKILL the dispatcher, whose runners die with it, or one runner; and wait for that."""
    pid, left = dispatcher(daemon), runners(daemon)
    if who == "runner":
        with suppress(ProcessLookupError):
            os.kill(left[0], signal.SIGKILL)
        wait_for(lambda: not alive(left[0]))
        return
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(each) for each in (pid, *left)))
    wait_for(lambda: len(daemon.workers) == 2 and pid not in daemon.workers, BACK)


@pytest.mark.parametrize("who", ["dispatcher", "runner"])
def test_what_a_killed_process_had_in_hand_is_not_lost(
    who: str, where: tuple[Settings, MySQLTable | None], tmp_path: Path
) -> None:
    good = {"match": "@example.com", "class": "own.Good", "processes": 2, "time_limit": "5m"}
    settings = acting(tmp_path, HOSTILE, good=good)
    settings["handlers"]["tries"] = 100
    daemon, table = made(where, settings)
    with daemon:
        ledger = Ledger()
        with Load(daemon.address, ledger, sessions=2) as load:
            for _ in range(4):
                load.wait_for(50)
                wait_for(lambda: runners(daemon), BACK)
                _kill(daemon, who)
        # What is in hand of who is dead does not wait for its lease, which is of an hour.
        assert settled(table) == []
        assert len(notes(table)) == count(table) == len(ledger.acknowledged)
        ledger.check(rows(table))


# --- chaos ----------------------------------------------------------------------------------------


class Receiver:
    """An application that is called: what it was told, by the id of the delivery.

    Now and then it hangs up in place of an answer, or says that it is busy.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, Counter[str]] = defaultdict(Counter)
        self.messages: dict[str, str] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802
                size = int(self.headers["Content-Length"])
                body = self.rfile.read(size)
                if len(body) == size:  # or who has sent it was killed meanwhile
                    receiver.note(self.headers["Webhook-Id"], body)
                    if random.random() < 0.02:
                        self.close_connection = True
                        return
                code = 503 if random.random() < 0.02 else 204
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

            def handle_error(self, *_: object) -> None:
                pass  # who has asked was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/mail"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)

    def note(self, delivery: str, body: bytes) -> None:
        """It was told of a delivery."""
        self.bodies[delivery][sha256(body).hexdigest()] += 1
        data = loads(body)["data"]
        assert data["delivery"] == delivery
        self.messages[delivery] = data["id"]

    @property
    def calls(self) -> int:
        """How often it was called."""
        return sum(sum(each.values()) for each in [*self.bodies.values()])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Figures(NamedTuple):
    """What has happened."""

    acknowledged: int
    in_doubt: int
    deliveries: int
    calls: int
    kills: Counter[str]

    def __str__(self) -> str:
        kills = ", ".join(f"{role} {self.kills[role]}" for role in ROLES)
        return (
            f"{self.acknowledged} messages acknowledged, {self.in_doubt} stored in doubt;"
            f" {self.deliveries} deliveries in {self.calls} calls,"
            f" {self.calls - self.deliveries} of them repeats;"
            f" {self.kills.total()} processes killed: {kills}"
        )


def _kill_one(daemon: Gsmtpd) -> str | None:
    """SIGKILL one process of the daemon's; its role."""
    role = random.choices(ROLES, (4, 3, 4, 1))[0]
    try:
        if role == "master":
            pids = [daemon.pid]
        elif role == "runner":
            pids = runners(daemon)
        else:
            pids = [each["pid"] for each in status(daemon)["workers"] if each["role"] == role]
        os.kill(random.choice(pids), signal.SIGKILL)
    except (ControlError, IndexError, ProcessLookupError):
        return None  # none is there just now
    if role == "master":
        wait_for(lambda: not daemon.running)
        daemon.start()
    return role


def test_chaos(where: tuple[Settings, MySQLTable | None], tmp_path: Path) -> None:
    """Whoever is killed: each mail that was acknowledged is told of, and in the same words."""
    with Receiver() as receiver:
        hook = {"match": "@example.com", "class": "webhook", "url": receiver.url, "processes": 2}
        settings = acting(tmp_path, hook=hook)
        settings["handlers"] |= {"tries": 100, "time_limit": "10s"}
        settings["server"] = {"processes": 2} if where[1] else {"processes": 1}
        daemon, table = made(where, settings)
        with daemon:
            ledger, kills = Ledger(), Counter[str]()
            with Load(daemon.address, ledger, sessions=3, pause=0.02):
                until = time.monotonic() + CHAOS
                while time.monotonic() < until:
                    time.sleep(KILLS_EACH)
                    if role := _kill_one(daemon):
                        kills[role] += 1
            wait_for(lambda: len(outbox(table)) == 0, 180)
            stored = rows(table)
        figures = Figures(
            len(ledger.acknowledged), ledger.duplicates(stored), len(receiver.bodies),
            receiver.calls, kills,
        )  # fmt: skip
        print(f"\n{figures}")
        ledger.check(stored)
        told = set(receiver.messages.values())
        said = {each.reply.id for each in ledger.acknowledged if each.reply is not None}
        assert said - told == set(), "acknowledged, and never delivered"
        assert told == {row.hash for row in stored}
        assert [id_ for id_, bodies in receiver.bodies.items() if len(bodies) > 1] == []
        assert len(receiver.bodies) == len(stored)
        assert set(kills) >= {"smtp", "handlers", "runner"}
