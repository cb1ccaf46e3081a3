"""Does a lane store whole batches or none, and leave what it gives up to the store?

A real MariaDB, and the lane without an SMTP thread around it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pymysql
import pytest

from gsmtpd.faultlab.mysql_proxy import Action, MySQLProxy, Point
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import mysql_lane
from gsmtpd.storage.base import Letter, Outcome
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_lane import MySQLLane
from tests.accounting import MySQLTable, Row, rows
from tests.servers import MariaDB, wait_for

STORED = Outcome.STORED
WITH_A_FILE = (
    b"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n\r\nx\r\n"
)


def message(name: object, content: bytes = b"x\r\n", recipients: Sequence[str] = ("b",)) -> Message:
    boxes = tuple(Mailbox(local, "example.com") for local in recipients)
    envelope = Envelope("x", True, Mailbox("a", "example.org"), boxes)
    return Message(str(name).rjust(32, "0"), envelope, content, "192.0.2.1", 1_700_000_000.0)


@pytest.fixture
def store(mariadb: MariaDB, schema: str) -> Iterator[MySQLStore]:
    host = Host("localhost", unix_socket=str(mariadb.socket))
    made = MySQLStore(Database((host,), "root", "", schema), RowMaker("mx.example.com"), 2)
    yield made
    made.close()


@pytest.fixture
def far(mariadb: MariaDB, schema: str) -> Iterator[tuple[MySQLStore, MySQLProxy]]:
    """A store that reaches its database through a proxy."""
    with MySQLProxy(mariadb.address) as proxy:
        host = Host("127.0.0.1", proxy.port)
        database = Database((host,), mariadb.user, mariadb.password, schema)
        made = MySQLStore(database, RowMaker("mx.example.com"), 2)
        yield made, proxy
        made.close()


@pytest.fixture
def lane(store: MySQLStore) -> Iterator[MySQLLane]:
    with opened(store) as made:
        yield made


@contextmanager
def opened(store: MySQLStore) -> Iterator[MySQLLane]:
    """A lane of `store`, for as long as this lasts."""
    lane = store.open_lane()
    assert lane is not None
    yield lane
    lane.close()


@pytest.fixture
def stored(mariadb: MariaDB, schema: str) -> Callable[[], list[Row]]:
    return lambda: rows(MySQLTable(mariadb, schema))


def letters_of(store: MySQLStore, *messages: Message) -> list[Letter]:
    return [store.encode(each) for each in messages]


def carry(lane: MySQLLane, letters: list[Letter]) -> None:
    """Store `letters` over `lane`, as a thread does that is told of its descriptor."""
    lane.write(letters)
    finish(lane)


def finish(lane: MySQLLane) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        told = ([], [lane], []) if lane.unsent else ([lane], [], [])
        select.select(*told, 1)
        if lane.go_on():
            lane.done()
            return
    raise AssertionError("the batch was not committed")


def fails(lane: MySQLLane, letters: list[Letter], in_doubt: bool = False) -> Exception:
    """Have `lane` fail with `letters`, and give up; with what. in_doubt: whether it says so."""
    try:
        carry(lane, letters)
    except (pymysql.MySQLError, OSError) as error:
        assert lane.give_up(error) is in_doubt
        return error
    raise AssertionError("it did not fail")


# --- what it stores -------------------------------------------------------------------------------


def test_batches_one_behind_the_other(store, lane, stored, mariadb, schema) -> None:
    for first in range(0, 300, 100):
        batch = [message(number, recipients=("a", "b")) for number in range(first, first + 100)]
        carry(lane, letters_of(store, *batch))
    found = stored()
    assert [int(row.hash) for row in found] == [n for n in range(300) for _ in "ab"]
    assert {row.problem() for row in found} == {None}
    (counted,) = mariadb.query("SELECT COUNT(*), SUM(messages) FROM gm2_received", database=schema)
    assert counted == (3, 300)


def test_it_stores_what_the_store_does(store, lane, stored, mariadb, schema) -> None:
    odd = [b"Subject: \xe4\xf6'\"\\\r\n\r\n\0\xff%s?", b"", bytes(range(256)) * 30, b"x" * 60000]
    one = [message(f"1{number}", content, "abc") for number, content in enumerate(odd)]
    other = [message(f"2{number}", content, "abc") for number, content in enumerate(odd)]
    assert store.write(letters_of(store, *one)) == [STORED] * len(odd)
    carry(lane, letters_of(store, *other))
    columns = [
        name
        for (name,) in mariadb.query(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s"
            " AND table_name = 'new_mail'",
            (schema,),
        )
        if name not in ("mail_id", "hash", "mail")
    ]
    names = ", ".join(f"`{name}`" for name in columns)
    found = mariadb.query(f"SELECT {names} FROM new_mail ORDER BY mail_id", database=schema)
    assert len(found) == 24
    assert found[:12] == found[12:]
    contents = [row.content for row in stored()]
    assert contents[:12] == contents[12:]


def test_more_than_a_socket_holds(store, lane, stored) -> None:
    content = b"x" * 60_000 + b"\r\n"
    letters = letters_of(store, *(message(number, content) for number in range(100)))
    lane.write(letters)
    assert lane.unsent
    finish(lane)
    assert [row.content for row in stored()] == [content] * 100


def test_what_it_does_not_take(store, lane) -> None:
    plain, with_a_file = message(1), message(2, WITH_A_FILE)
    assert not lane.takes(store.read(plain))  # its values are not made
    assert lane.takes(store.encode(plain))
    assert not lane.takes(store.encode(with_a_file))


def test_a_table_that_counts_itself_has_none(store, mariadb, schema) -> None:
    """What Guerrilla SMTPd's own is told comes behind the COMMIT, and has to be waited for."""
    mariadb.query("DROP TABLE gm2_received", database=schema)
    assert store.open_lane() is None


def test_a_table_that_is_another_now(store, lane) -> None:
    letters = letters_of(store, message(1))
    assert lane.fits()
    store._table = None
    assert not lane.fits()
    store.prepare()
    assert not lane.fits()
    assert not any(lane.takes(each) for each in letters_of(store, message(2)))
    assert all(lane.takes(each) for each in letters)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_row_that_is_refused_leaves_nothing(store, lane, stored, mariadb, schema) -> None:
    mariadb.query(
        "ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> 'poison')", database=schema
    )
    contents = [
        b"Subject: poison\r\n\r\nx\r\n" if number == 40 else b"x\r\n" for number in range(60)
    ]
    letters = letters_of(store, *(message(n, content) for n, content in enumerate(contents)))
    assert fails(lane, letters).args[0] == 4025
    assert stored() == []
    assert [*map(store.write(letters).count, (STORED, Outcome.TROUBLE))] == [59, 1]
    assert [int(row.hash) for row in stored()] == [n for n in range(60) if n != 40]


def test_inserts_behind_a_begin_that_is_refused_are_not_committed(far, stored) -> None:
    store, proxy = far
    with opened(store) as lane:
        proxy.arm(Point.BEFORE_BEGIN, Action.ERROR, errno=1317)
        letters = letters_of(store, message(1), message(2))
        lane.write(letters)
        wait_for(lambda: proxy.happened)
        with pytest.raises(pymysql.MySQLError) as raised:
            finish(lane)
        time.sleep(0.2)  # the INSERTs behind it are carried out
        assert stored() == []
        lane.give_up(raised.value)
    assert store.write(letters) == [STORED] * 2
    assert len(stored()) == 2


@pytest.mark.parametrize("point", [Point.AFTER_BEGIN, Point.BETWEEN_INSERTS, Point.BEFORE_COMMIT])
@pytest.mark.parametrize("action", [Action.KILL, Action.ERROR])
def test_a_batch_that_is_lost_on_its_way_is_stored_once(far, stored, point, action) -> None:
    store, proxy = far
    with opened(store) as lane:
        letters = letters_of(store, *(message(number) for number in range(9)))
        proxy.arm(point, action, errno=1213)
        fails(lane, letters, in_doubt=(point, action) == (Point.BEFORE_COMMIT, Action.KILL))
    assert store.write(letters) == [STORED] * 9
    assert [int(row.hash) for row in stored()] == [*range(9)]


def test_a_commit_that_is_refused_needs_no_look(far, caplog) -> None:
    store, proxy = far
    with opened(store) as lane:
        letters = letters_of(store, message(1))
        proxy.arm(Point.BEFORE_COMMIT, Action.ERROR, errno=1213)
        fails(lane, letters)
    assert store.write(letters) == [STORED]
    assert "looking its mail up" not in caplog.text


@pytest.mark.parametrize("stored_by_then", [True, False])
def test_a_commit_whose_answer_is_lost_is_looked_up(far, stored, caplog, stored_by_then) -> None:
    store, proxy = far
    with opened(store) as lane:
        letters = letters_of(store, message(1), message(2))
        proxy.arm(Point.COMMIT_REPLY if stored_by_then else Point.BEFORE_COMMIT, Action.KILL)
        fails(lane, letters, in_doubt=True)
    assert len(stored()) == (2 if stored_by_then else 0)
    assert store.write(letters) == [STORED] * 2
    assert len(stored()) == 2
    assert "looking its mail up" in caplog.text
    assert store.write(letters_of(store, message(3))) == [STORED]


def test_a_connection_that_is_closed_while_idle(store, lane, mariadb, schema) -> None:
    for number, _ in mariadb.query(
        "SELECT id, user FROM information_schema.processlist WHERE db = %s", (schema,)
    ):
        with suppress(pymysql.MySQLError):
            mariadb.query(f"KILL {number}")
    assert select.select([lane], [], [], 10)[0]
    with pytest.raises(pymysql.err.OperationalError, match="Lost connection"):
        lane.go_on()


def test_idle_there_is_nothing_to_go_on_with(store, lane) -> None:
    assert not lane.go_on()
    carry(lane, letters_of(store, message(1)))
    assert not lane.go_on()
    lane.check_time(time.monotonic() + 1000)


def test_a_server_that_does_not_answer(far, stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_lane, "READ_TIMEOUT", 1.0)
    store, proxy = far
    with opened(store) as lane:
        proxy.arm(Point.BEFORE_COMMIT, Action.DROP)
        letters = letters_of(store, message(1))
        lane.write(letters)
        wait_for(lambda: lane.go_on() or proxy.happened)
        began = time.monotonic()
        lane.check_time(began)
        with pytest.raises(TimeoutError) as raised:
            lane.check_time(began + 1.1)
        lane.give_up(raised.value)
        proxy.heal()
    assert store.write(letters) == [STORED]
    assert len(stored()) == 1


def test_an_answer_to_nothing(far) -> None:
    """A server that says more than it was asked for is not to be believed."""
    store, _ = far
    with opened(store) as lane:
        lane.write(letters_of(store, message(1)))
        with pytest.raises(pymysql.err.OperationalError, match="nothing that was asked"):
            for _ in range(9):
                lane._answered(b"\0\0\0\2\0\0\0")
