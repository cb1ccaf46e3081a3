"""Does each handler get its mail, whatever becomes of handlers, mail, processes and database?

The dispatcher on a real SQLite file, or a real MariaDB, with real processes for handlers.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from gsmtpd import app_handlers
from gsmtpd.faultlab.mysql_proxy import MySQLProxy
from gsmtpd.handlers import dispatcher as dispatcher_module
from gsmtpd.handlers import hand
from gsmtpd.handlers.dispatcher import Dispatcher, Shared
from gsmtpd.handlers.hand import GROWTH, LONGEST_PAUSE, SPREAD, Plan, pause_before
from gsmtpd.handlers.matching import Matcher
from gsmtpd.handlers.process import Task
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.metrics import Counter, Counters
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.base import Outcome
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_outbox import MySQLSession
from gsmtpd.storage.outbox import DEAD, WAITING, Chosen, Entry, Outbox, Session
from gsmtpd.storage.sqlite import SQLiteStore
from gsmtpd.storage.sqlite_outbox import SQLiteSession
from tests.servers import MariaDB, wait_for

PLACE, OWNER = "here", "here7.9"
HANDLERS = """
import os, signal, sys, time
from pathlib import Path
from gsmtpd.handlers import DISCARD, GiveUpError, Handler, Later, RetryError

class Tested(Handler):
    defaults = {"folder": "", "name": ""}

    def handle(self, mail):
        folder = Path(self.settings["folder"])
        with open(folder / self.settings["name"], "a") as file:
            file.write(f"{mail.subject} {mail.attempt} {mail.delivery}\\n")
        return getattr(self, mail.subject.split()[0])(mail, folder)

    def note(self, mail, folder):
        mail.annotate("subject", mail.subject)

    def discard(self, mail, folder):
        return DISCARD

    def fail(self, mail, folder):
        raise ValueError(f"no {mail.attempt}")

    def once(self, mail, folder):
        if mail.attempt == 1:
            raise RetryError("not yet", after=0)

    def after(self, mail, folder):
        raise RetryError("much later", after=5000)

    def later(self, mail, folder):
        return None if (folder / "now").exists() else Later(0.05)

    def later5000(self, mail, folder):
        return Later(5000)

    def give(self, mail, folder):
        raise GiveUpError("never")

    def die(self, mail, folder):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, mail, folder):
        while not (folder / "go").exists():
            time.sleep(0.01)
"""


def message(name: int, subject: str = "note", recipient: str = "ball") -> Message:
    boxes = (Mailbox(recipient, "example.com"),)
    envelope = Envelope("x", True, Mailbox("a", "example.org"), boxes)
    content = f"Subject: {subject}\r\n\r\nx\r\n".encode()
    return Message(str(name).rjust(32, "0"), envelope, content, "192.0.2.1", time.time() - 1)


class Bench:
    """A database, handlers, and a dispatcher once it is started."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.module = tmp_path / "tested.py"
        self.module.write_text(HANDLERS)
        self.path = str(tmp_path / "mail.db")
        self.open: Callable[[], Session] = lambda: SQLiteSession(self.path)
        self.make_store: Callable[[RowMaker], Any] = lambda rows: SQLiteStore(self.path, rows)
        self.owed = -1
        self.row = Counters(2).row(1)
        self.is_gone: Callable[[str], bool] = lambda owner: False
        self.started: list[Dispatcher] = []
        self._names = ("ball",)
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self.open()
        return self._session

    @property
    def outbox(self) -> Outbox:
        return Outbox(self.session, "other1.1")

    def put(self, *messages: Message) -> None:
        bound = {name: [name] for name in ("ball", "slow", "both")}
        store = self.make_store(RowMaker("mx.example.com", handlers=Matcher(bound)))
        letters = [store.encode(each) for each in messages]
        assert store.write(letters) == [Outcome.STORED] * len(letters)
        store.close()

    def plan(self, name: str, **changes: Any) -> Plan:
        settings = {"folder": str(self.folder), "name": name}
        task = Task(name, "tested", str(self.folder), settings, 20.0, 512 << 20, "", "mx")
        return Plan(
            task._replace(time_limit=changes.pop("time_limit", 20.0)),
            **({"processes": 1, "tries": 3, "pause": 0.01} | changes),
        )

    def start(self, *plans: Plan) -> Dispatcher:
        shared = Shared(self.row, self.owed)
        made = Dispatcher(
            plans or (self.plan("ball"),), self.open, OWNER, PLACE, self.is_gone, shared
        )
        self.started.append(made)
        made.start()
        return made

    def calls(self, name: str = "ball") -> list[tuple[str, int]]:
        """What the handler was called for: subject and try."""
        found = [line.split() for line in self.lines(name)]
        return [(words[0], int(words[-2])) for words in found]

    def lines(self, name: str = "ball") -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def entries(self) -> list[Entry]:
        return self.outbox.entries(Chosen(), 99)

    def wait_for_calls(self, number: int, name: str = "ball") -> None:
        wait_for(lambda: len(self.lines(name)) >= number)

    def wait_until_done(self) -> None:
        wait_for(lambda: not self.entries())

    def wait_for_entry(self, **values: Any) -> Entry:
        """The only entry, once it is so."""

        def is_so() -> bool:
            found = self.entries()
            return len(found) == 1 and values.items() <= found[0]._asdict().items()

        wait_for(is_so)
        return self.entries()[0]

    def close(self) -> None:
        (self.folder / "go").touch()
        for each in self.started:
            each.stop()
        if self._session is not None:
            self._session.close()


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level(logging.INFO)
    made = Bench(tmp_path)
    yield made
    made.close()


# --- pauses ---------------------------------------------------------------------------------------


def test_pauses_grow_to_a_day_or_so() -> None:
    for first in (0.1, 10.0, LONGEST_PAUSE):
        for attempt in range(2, 101):
            middle = max(first, min(first * GROWTH ** (attempt - 2), LONGEST_PAUSE))
            pauses = [pause_before(attempt, first) for _ in range(20)]
            assert all(middle * (1 - SPREAD) <= each <= middle * (1 + SPREAD) for each in pauses)
            assert len({*pauses}) > 1  # what failed together does not come again together
    whole = sum(pause_before(attempt, 10.0) for attempt in range(2, 13))
    assert 0.7 < whole / 86400 < 1.6


# --- what becomes of mail -------------------------------------------------------------------------


def test_what_was_there_and_what_comes(bench: Bench) -> None:
    bench.put(message(1), message(2))
    bench.start()
    bench.wait_until_done()
    bench.put(message(3))
    bench.wait_until_done()
    assert bench.calls() == [("note", 1)] * 3
    notes = bench.session.rows("SELECT handler, name, value FROM mail_note")
    assert notes == [("ball", "subject", "note")] * 3
    assert bench.row[Counter.HANDLED] == 3
    assert bench.row[Counter.HANDLER_FAILED] == bench.row[Counter.HANDLER_DEAD] == 0


def test_one_that_fails_for_good(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.put(message(1, "fail"))
    bench.start()
    entry = bench.wait_for_entry(state=DEAD)
    assert (entry.tries, entry.reason, entry.owner) == (3, "ValueError: no 3", "")
    assert bench.calls() == [("fail", 1), ("fail", 2), ("fail", 3)]
    assert len({line.split()[-1] for line in bench.lines()}) == 1  # the delivery
    assert [bench.row[each] for each in (11, 12, 13)] == [0, 2, 1]
    assert "mail 00000000000000000000000000000001 is given up after 3 tries" in caplog.text
    assert bench.outbox.retry(Chosen(), time.time()) == 1
    bench.wait_for_calls(6)


def test_one_that_fails_once(bench: Bench) -> None:
    bench.put(message(1, "once"))
    bench.start(bench.plan("ball", pause=5000.0))  # it says itself how long
    bench.wait_until_done()
    assert bench.calls() == [("once", 1), ("once", 2)]


@pytest.mark.parametrize("subject", ["after", "fail"])
def test_a_pause_is_kept(bench: Bench, subject: str) -> None:
    bench.put(message(1, subject))
    before = time.time()
    bench.start(bench.plan("ball", pause=5000.0))
    entry = bench.wait_for_entry(tries=1, owner="")
    assert 3900 < entry.due / 1000 - before < 6200
    assert entry.state == WAITING


def test_one_that_gives_up(bench: Bench) -> None:
    bench.put(message(1, "give"))
    bench.start()
    assert bench.wait_for_entry(state=DEAD)[-3:] == (1, "", "never")
    assert bench.calls() == [("give", 1)]


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("die", "was killed by SIGKILL: by somebody, or as memory ran out"),
        ("hang", "took longer than 0.3 s, and was killed"),
    ],
)
def test_one_that_dies_or_hangs_each_time(bench: Bench, subject: str, reason: str) -> None:
    """And the mail behind it has its turn."""
    bench.put(message(1, subject), message(2))
    bench.start(bench.plan("ball", tries=2, time_limit=0.3))
    entry = bench.wait_for_entry(state=DEAD)
    assert (entry.tries, entry.reason) == (2, reason)
    assert sorted(bench.calls()) == [(subject, 1), (subject, 2), ("note", 1)]


def test_later_is_no_failure(bench: Bench) -> None:
    bench.put(message(1, "later"))
    bench.start(bench.plan("ball", tries=1))
    bench.wait_for_calls(3)
    (bench.folder / "now").touch()
    bench.wait_until_done()
    assert sorted(attempt for _, attempt in bench.calls())[:3] == [1, 2, 3]
    assert bench.row[Counter.HANDLER_FAILED] == 0


def test_later_is_kept(bench: Bench) -> None:
    bench.put(message(1, "later5000"))
    before = time.time()
    bench.start()
    entry = bench.wait_for_entry(owner="", tries=0)
    wait_for(lambda: bench.entries()[0].due / 1000 > before + 4999)
    assert entry.state == WAITING


def test_discarded(bench: Bench) -> None:
    bench.put(message(1, "discard"), message(2))
    bench.start()
    bench.wait_until_done()
    assert bench.session.rows("SELECT subject FROM new_mail") == [("note",)]


def test_mail_that_was_deleted_before_its_turn(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put(message(1), message(2))
    bench.session.execute("DELETE FROM new_mail WHERE mail_id = 1")
    bench.start()
    bench.wait_until_done()
    assert bench.calls() == [("note", 1)]
    assert "mail 00000000000000000000000000000001 was deleted before its turn" in caplog.text


def test_mail_that_cannot_be_read(bench: Bench) -> None:
    bench.put(message(1), message(2))
    bench.session.execute("UPDATE new_mail SET mail_encoding = 'zlib' WHERE mail_id = 1")
    bench.start()
    entry = bench.wait_for_entry(state=DEAD)
    assert int(entry.hash) == 1
    assert entry.reason
    assert bench.calls() == [("note", 1)]


# --- handlers that cannot be had ------------------------------------------------------------------


def test_one_that_is_refused_waits_until_it_is_mended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hand, "_REFUSED_FOR", 0.05)
    bench.module.write_text("def handle(:\n")
    bench.put(message(1), message(2))
    bench.start()
    wait_for(lambda: all("SyntaxError" in entry.reason for entry in bench.entries()))
    wait_for(lambda: "its mail waits" in caplog.text)
    assert {entry.tries for entry in bench.entries()} == {0}
    bench.module.write_text(HANDLERS)
    bench.wait_until_done()
    assert bench.calls() == [("note", 1)] * 2
    # Said once, however often it was tried, and once that it is over.
    assert caplog.text.count("its mail waits") == 1
    assert caplog.text.count("handler ball: it works again") == 1


def test_one_that_is_refused_is_told_of_before_there_is_mail(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.module.unlink()
    bench.start(bench.plan("ball", processes=3))
    wait_for(lambda: "no handler of that name" in caplog.text)
    assert bench.entries() == []


# --- several --------------------------------------------------------------------------------------


def test_a_slow_one_does_not_hold_up_another(bench: Bench) -> None:
    bench.put(message(1, "hang", "slow"), message(2, "note", "ball"), message(3, "hang", "slow"))
    bench.start(bench.plan("slow"), bench.plan("ball"))
    bench.wait_for_calls(1)
    bench.wait_for_calls(1, "slow")
    wait_for(lambda: {entry.handler for entry in bench.entries()} == {"slow"})
    bench.put(message(4))
    bench.wait_for_calls(2)
    assert bench.calls("slow") == [("hang", 1)]
    (bench.folder / "go").touch()
    bench.wait_until_done()


def test_several_processes_share_the_work(bench: Bench) -> None:
    """Each thread takes under a name of its own, so that no two have the same entry."""
    bench.put(*(message(n, "hang") for n in range(30)))
    bench.start(bench.plan("ball", processes=3))
    bench.wait_for_calls(3)
    owners = [entry.owner for entry in bench.entries()]
    assert {*owners} == {f"{OWNER}.{number}" for number in range(3)}
    assert [owners.count(owner) for owner in {*owners}] == [10, 10, 10]
    (bench.folder / "go").touch()
    bench.wait_until_done()
    assert len({line.split()[-1] for line in bench.lines()}) == len(bench.lines()) == 30


@pytest.mark.parametrize("subject", ["die", "hang"])
def test_who_ends_its_process_rests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, subject: str
) -> None:
    """Mail that comes in goes before processes that are started again and again."""
    monkeypatch.setattr(hand, "_FIRST_REST", 3600.0)
    monkeypatch.setattr(hand, "_LONGEST_REST", 3600.0)
    bench.put(message(1, subject), message(2))
    running = bench.start(bench.plan("ball", time_limit=0.3, tries=9))
    wait_for(lambda: 1 in {entry.tries for entry in bench.entries()})
    time.sleep(0.7)  # in which another could have been started and called
    assert bench.calls() == [(subject, 1)]
    running.stop()
    assert running.idle


def test_rests_grow_until_a_mail_is_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rests = []
    plain = Event.wait

    def wait(self: Event, timeout: float | None = None) -> bool:
        if sys._getframe(1).f_code is hand.Hand._recover.__code__:
            rests.append(timeout)
            return False
        return plain(self, timeout)

    monkeypatch.setattr(Event, "wait", wait)
    monkeypatch.setattr(hand, "_REST_EACH", 0.0)
    subjects = ["die"] * 5 + ["note", "die"]
    bench.put(*(message(n, subject) for n, subject in enumerate(subjects)))
    bench.start(bench.plan("ball", tries=1))
    wait_for(lambda: [entry.state for entry in bench.entries()] == [DEAD] * 6)
    first = hand._FIRST_REST
    assert rests == [first, first * 2, first * 4, first * 8, hand._LONGEST_REST, first]


# --- ends and beginnings --------------------------------------------------------------------------


def test_stopped_it_gives_back_what_it_had(bench: Bench) -> None:
    bench.put(*(message(n, "hang") for n in range(12)))
    running = bench.start()
    bench.wait_for_calls(1)
    assert any("at mail" in line for line in running.dump())
    running.stop()
    assert running.idle
    assert {(entry.owner, entry.tries, entry.state) for entry in bench.entries()} == {
        ("", 0, WAITING)
    }
    assert {entry.due / 1000 <= time.time() for entry in bench.entries()} == {True}
    assert bench.row[Counter.HANDLER_FAILED] == 0


def test_retired_it_ends_what_it_is_at(bench: Bench) -> None:
    bench.put(message(1, "hang"), message(2))
    running = bench.start()
    bench.wait_for_calls(1)
    running.retire()
    assert not running.idle
    (bench.folder / "go").touch()
    wait_for(lambda: running.idle)
    assert bench.calls() == [("hang", 1)]
    (left,) = bench.entries()
    assert (int(left.hash), left.owner, left.tries) == (2, "", 0)


def test_stopped_before_there_was_anything(bench: Bench) -> None:
    running = bench.start(bench.plan("ball", processes=2))
    running.stop()
    wait_for(lambda: running.idle)


def test_what_a_dead_process_had_in_hand(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.put(message(1), message(2), message(3))
    for owner in (f"{PLACE}5.5.0", f"{PLACE}6.6.0", "elsewhere"):
        assert Outbox(bench.session, owner).take("ball", 1, time.time(), 5000)
    bench.is_gone = lambda owner: owner == f"{PLACE}5.5.0"
    bench.start()
    wait_for(lambda: len(bench.entries()) == 2)
    assert {entry.owner for entry in bench.entries()} == {f"{PLACE}6.6.0", "elsewhere"}
    assert "a process has died with 1 mails in hand" in caplog.text


def test_an_eventfd_wakes_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "LOOK", 5000.0)
    bench.owed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bench.start()
    wait_for(lambda: "idle" in bench.started[0].dump()[0])
    for number in range(1, 4):
        bench.put(message(number))
        os.eventfd_write(bench.owed, 1)
        bench.wait_for_calls(number)
    beats = bench.row[Counter.BEATS]
    assert 0 < beats <= 3


def test_it_beats(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its master would take it for one that hangs; also while a handler does."""
    monkeypatch.setattr(dispatcher_module, "LOOK", 0.01)
    bench.put(message(1, "hang"))
    bench.start()
    bench.wait_for_calls(1)
    beats = bench.row[Counter.BEATS]
    wait_for(lambda: bench.row[Counter.BEATS] > beats + 5)


def test_an_idle_one_ends_its_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "_IDLE_FOR", 0.1)
    bench.put(message(1))
    running = bench.start()
    bench.wait_until_done()
    runner = running._hands[0]._runner
    wait_for(lambda: runner._process is None)
    bench.put(message(2))
    bench.wait_for_calls(2)


def test_what_nobody_needs_is_swept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "_SWEEP_EACH", 0.0)
    bench.put(message(1), message(2, "give"))
    bench.start()
    bench.wait_for_entry(state=DEAD)
    assert len(bench.session.rows("SELECT 1 FROM mail_note")) == 1
    bench.session.execute("DELETE FROM new_mail")
    bench.wait_until_done()
    wait_for(lambda: not bench.session.rows("SELECT 1 FROM mail_note"))


def test_who_is_gone() -> None:
    """A process is known by its number and when it began, since the machine was started."""
    place, began = app_handlers._place(), app_handlers._began(os.getpid())
    assert place.isalnum()
    assert place == app_handlers._place()
    assert not app_handlers._is_gone(f"{place}{os.getpid()}.{began}.63")
    assert app_handlers._is_gone(f"{place}{os.getpid()}.{int(began) - 1}.63")
    ended = subprocess.Popen(["true"])
    before = app_handlers._began(ended.pid)
    ended.wait()
    assert app_handlers._is_gone(f"{place}{ended.pid}.{before}.0")
    assert app_handlers._is_gone(f"{place}x")
    # The column has room for the longest there is: 100 ticks a second, for thirty years.
    assert len(f"{place}{1 << 22}.{100 * 30 * 366 * 86400}.63") <= 32


# --- the database is away -------------------------------------------------------------------------


def test_a_database_that_goes_and_comes_back(
    bench: Bench,
    mariadb: MariaDB,
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was acted on while it was away is acted on once more: its lease is over then."""
    monkeypatch.setattr(hand, "_AFTER_TROUBLE", 0.05)
    monkeypatch.setattr(dispatcher_module, "_AFTER_TROUBLE", 0.05)
    monkeypatch.setattr(hand, "_LEASE_MORE", 1.0)
    near = Database((Host("localhost", unix_socket=str(mariadb.socket)),), "root", "", schema)
    with MySQLProxy(mariadb.address) as proxy:
        far = Database((Host("127.0.0.1", proxy.port),), mariadb.user, mariadb.password, schema)
        bench.make_store = lambda rows: MySQLStore(near, rows, 2)
        bench.open = lambda: MySQLSession(near)
        assert bench.entries() == []
        bench.open = lambda: MySQLSession(far)
        bench.put(message(1, "hang"))
        running = bench.start(bench.plan("ball", time_limit=0.5))
        bench.wait_for_calls(1)
        proxy.refuse()
        proxy.reset()
        (bench.folder / "go").touch()
        wait_for(lambda: "handler ball: no database server answers" in caplog.text)
        bench.put(message(2))
        assert len(bench.entries()) == 2
        proxy.heal()
        bench.wait_until_done()
        assert sorted({*bench.calls()}) == [("hang", 1), ("note", 1)]
        deliveries = {line.split()[-1] for line in bench.lines()}
        assert len(deliveries) == 2
        running.stop()


def test_a_database_that_is_away_at_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hand, "_AFTER_TROUBLE", 0.05)
    monkeypatch.setattr(dispatcher_module, "_AFTER_TROUBLE", 0.05)
    bench.path = str(bench.folder / "later" / "mail.db")
    bench.start()
    wait_for(lambda: "there is no directory" in caplog.text)
    (bench.folder / "later").mkdir()
    bench.put(message(1))
    bench.wait_until_done()
    assert bench.calls() == [("note", 1)]
