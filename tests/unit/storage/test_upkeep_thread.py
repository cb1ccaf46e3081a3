"""Are chores done when they are due, whatever becomes of the others, and does the thread end?"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_link import Link, OnMySQL, lock_name
from gsmtpd.storage.mysql_retention import mysql_chore
from gsmtpd.storage.retention import Times
from gsmtpd.storage.upkeep import Upkeep
from tests.conftest import make_schema
from tests.servers import MariaDB, wait_for


class Work:
    """A chore that notes when it is called."""

    def __init__(self, pause: Callable[[], float], name: str = "work") -> None:
        self.name = name
        self.calls: list[float] = []
        self.closed = threading.Event()
        self._pause = pause

    def step(self) -> float:
        """Note the time."""
        self.calls.append(time.monotonic())
        return self._pause()

    def close(self) -> None:
        """Note that, too."""
        self.closed.set()


def test_each_chore_is_called_when_it_wants_to_be() -> None:
    busy, slow, once = Work(lambda: 0.0), Work(lambda: 0.05), Work(lambda: 3600.0)
    upkeep = Upkeep([busy, slow, once])
    upkeep.start()
    wait_for(lambda: len(slow.calls) > 5)
    assert upkeep.stop(10)
    assert len(busy.calls) > len(slow.calls)
    assert all(later - sooner > 0.04 for sooner, later in pairwise(slow.calls))
    assert len(once.calls) == 1


def test_a_chore_that_fails_is_told_of_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> float:
        raise ZeroDivisionError("something")

    bad, good = Work(fail, "bad"), Work(lambda: 0.01, "good")
    upkeep = Upkeep([bad, good])
    upkeep.start()
    wait_for(lambda: len(good.calls) > 5)
    assert upkeep.stop(10)
    (record,) = caplog.records
    assert record.getMessage() == "upkeep: bad: ZeroDivisionError('something')"
    assert record.exc_info


def test_a_trouble_that_comes_again_has_no_second_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise ZeroDivisionError("something")

    monkeypatch.setattr("gsmtpd.storage.upkeep._AFTER_EXCEPTION", 0.01)
    bad = Work(fail, "bad")
    upkeep = Upkeep([bad])
    upkeep.start()
    wait_for(lambda: len(bad.calls) > 2)
    assert upkeep.stop(10)
    assert [bool(record.exc_info) for record in caplog.records[:2]] == [True, False]


def test_it_ends_while_it_sleeps_and_gives_all_back() -> None:
    chores = [Work(lambda: 3600.0), Work(lambda: 3600.0)]
    upkeep = Upkeep(chores)
    upkeep.start()
    wait_for(lambda: chores[1].calls)
    assert upkeep.stop(10)
    assert all(chore.closed.is_set() for chore in chores)


def test_a_chore_that_hangs_is_not_waited_for() -> None:
    gate = threading.Event()
    chore = Work(lambda: float(gate.wait(60)))
    upkeep = Upkeep([chore])
    upkeep.start()
    wait_for(lambda: chore.calls)
    assert not upkeep.stop(0.1)
    gate.set()
    assert upkeep.stop(10)


def test_one_that_was_never_started_is_stopped() -> None:
    assert Upkeep([]).stop(1)


def test_it_ends_in_the_middle_of_a_purge(mariadb: MariaDB, schema: str) -> None:
    """What it has begun is whole: no mail without its attachment, and the other way round."""

    def sql(statement: str) -> list[tuple]:
        return mariadb.query(statement, None, database=schema)

    sql(
        "INSERT INTO new_mail (`date`, `from`, `to`, subject, body, charset, mail, spam_score,"
        " hash, content_type, recipient, has_attach, ip_addr) SELECT '2020-01-01 00:00:00', '', '',"
        " '', '', '', '', 0, '', '', '', 1, '' FROM seq_1_to_20000"
    )
    sql(
        "INSERT INTO mail_attachment (mail_id, position, filename, content_type, size, sha256)"
        " SELECT mail_id, 1, '', '', 0, '' FROM new_mail"
    )
    database = Database((Host("localhost", unix_socket=str(mariadb.socket)),), "root", "", schema)
    upkeep = Upkeep([mysql_chore(Link(database), Times(3600))])
    upkeep.start()
    wait_for(lambda: sql("SELECT COUNT(*) FROM new_mail") < [(20000,)])
    assert upkeep.stop(10)
    left = {number for (number,) in sql("SELECT mail_id FROM new_mail")}
    assert 0 < len(left) < 20000
    assert left == {number for (number,) in sql("SELECT mail_id FROM mail_attachment")}


def test_a_server_that_goes_and_comes_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with MariaDB() as server:
        make_schema(server, "mail")
        host = Host("localhost", unix_socket=str(server.socket))
        link = Link(Database((host,), "root", "", "mail"))
        chore = OnMySQL("work", link, lambda: float(link.value("SELECT 1234")))
        assert chore.step() == 1234
        server.kill()
        pauses = [chore.step() for _ in range(4)]
        assert pauses[0] < 1
        assert pauses[1:] == [5, 5, 5]
        (record,) = caplog.records
        assert "no database server answers" in record.getMessage()
        server.start()
        wait_for(lambda: chore.step() == 1234)  # a host that was away is looked at for a while
        assert caplog.records[-1].getMessage() == "work: it works again"
        assert len(caplog.records) == 2
        chore.close()


def test_locks_have_names_of_their_own() -> None:
    """MySQL takes 64 characters; names differ from the very end on."""
    names = {
        lock_name(Database((), "", "", "d" * length, "t" * 60 + end))
        for length in (1, 10, 64)
        for end in ("1", "2")
    }
    assert len(names) == 6
    assert all(len(name) <= 64 for name in names)
