"""Is each mail that comes given once, also where it shows behind one with a higher id?"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from gsmtpd.storage import tail as module
from gsmtpd.storage.arrivals import MARGIN, SETTLED
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.tail import Tail
from tests.mailtable import Clock, MailTable, asked


@pytest.fixture
def finder(request: pytest.FixtureRequest) -> Iterator[Finder]:
    """What finds mail in `mysql` where the test has that, else in `table`."""
    which = "mysql" if "mysql" in request.fixturenames else "table"
    made: Finder = request.getfixturevalue(which).finder()
    yield made
    made.close()


def looked(tail: Tail) -> list[int]:
    return [mail.mail_id for mail in tail.look()]


def test_what_comes(table: MailTable, finder: Finder) -> None:
    table.fill([{}] * 3)
    tail = finder.tail()
    assert looked(tail) == []
    table.fill([{}] * 3)
    assert looked(tail) == [4, 5, 6]
    assert looked(tail) == []
    table.insert()
    assert looked(tail) == [7]


def test_the_last_ones_first(table: MailTable, finder: Finder) -> None:
    table.fill([{}] * 5)
    tail = finder.tail()
    table.fill([{}] * 2)
    assert [mail.mail_id for mail in tail.recent(4)] == [4, 5, 6, 7]
    assert looked(tail) == []
    table.insert()
    assert looked(tail) == [8]
    assert tail.recent(0) == []


def test_what_is_for_some(table: MailTable, finder: Finder) -> None:
    tail = finder.tail()
    for to in ("Ann@example.com", "bob@example.com", "x@example.com"):
        table.insert(to=to)
    table.insert(recipient="info@example.com", to="BOB@example.com")
    found = tail.rows_for({"ann@example.com", "bob@example.com"})
    assert [mail.mail_id for mail in found] == [1, 2, 4]
    assert tail.rows_for({"x@example.com"}) == [], "it was looked at"


def test_much_at_once(table: MailTable, finder: Finder) -> None:
    tail = finder.tail()
    table.fill([{}] * (2 * module.AT_ONCE + 5))
    assert [len(tail.look()) for _ in range(4)] == [module.AT_ONCE, module.AT_ONCE, 5, 0]


def test_it_says_whether_there_is_more(table: MailTable, finder: Finder) -> None:
    """Who waits for few addresses is given next to nothing of much."""
    tail = finder.tail()
    table.fill([{}] * (module.AT_ONCE + 5))
    assert tail.rows_for({"x@example.com"}) == []
    assert tail.is_more
    assert tail.rows_for({"x@example.com"}) == []
    assert not tail.is_more


def test_it_goes_on_where_another_was(table: MailTable, finder: Finder) -> None:
    tail = finder.tail()
    table.fill([{}] * 5)
    tail.look()
    table.insert()
    for other in (finder.tail(tail.cursor()), finder.tail(finder.tail(tail.cursor()).cursor())):
        assert looked(other) == [6]
    with pytest.raises(ValueError, match="is no cursor of all mail"):
        finder.tail("5")


# ---- what shows late -----------------------------------------------------------------------------


def test_mail_that_commits_late(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    late = mysql.connect()
    mysql.execute("BEGIN", on=late)
    mysql.insert(on=late)
    tail = Tail(finder.reader.rows, clock=clock)
    mysql.insert()
    mysql.insert(on=late, to="bob@example.com")
    mysql.insert()
    assert looked(tail) == [2, 4]
    resumed = tail.cursor()
    mysql.execute("COMMIT", on=late)
    assert looked(tail) == [1, 3]
    mysql.insert()
    assert looked(tail) == [5]
    assert looked(finder.tail(resumed)) == [1, 3, 5]
    assert [mail.mail_id for mail in finder.tail(resumed).rows_for({"bob@example.com"})] == [3]
    late.close()


def test_mail_that_was_under_way_when_it_began(mysql: MailTable, finder: Finder) -> None:
    late = mysql.connect()
    mysql.execute("BEGIN", on=late)
    mysql.insert(on=late)
    mysql.insert()
    tail = finder.tail()
    assert looked(tail) == []
    mysql.execute("COMMIT", on=late)
    assert looked(tail) == [1]
    late.close()


@pytest.mark.parametrize("seconds", [0.0, 0.9, 5.0, SETTLED - 2])
def test_later_and_later(mysql: MailTable, finder: Finder, clock: Clock, seconds: float) -> None:
    late = mysql.connect()
    tail = Tail(finder.reader.rows, clock=clock)
    mysql.execute("BEGIN", on=late)
    mysql.insert(on=late)
    mysql.insert()
    assert looked(tail) == [2]
    ends = clock.now + seconds
    while clock.now < ends:
        clock.now += 0.5
        assert looked(tail) == []
    mysql.execute("COMMIT", on=late)
    clock.now += 1.0
    assert looked(tail) == [1]
    late.close()


def test_what_never_comes_is_forgotten(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    tail = Tail(finder.reader.rows, clock=clock)
    mysql.execute("BEGIN")
    mysql.insert()
    mysql.execute("ROLLBACK")
    mysql.insert()
    looked(tail)
    with asked(finder.reader) as heard:
        looked(tail)
        assert len(heard) == 2
        clock.now += SETTLED + 1
        looked(tail)
        heard.clear()
        clock.now += 10
        looked(tail)
        assert len(heard) == 1


def test_nothing_lacks_in_most_tables(mysql: MailTable, finder: Finder) -> None:
    """Then each look is one query."""
    mysql.fill([{}] * 10)
    tail = finder.tail()
    with asked(finder.reader) as heard:
        for _ in range(3):
            mysql.fill([{}] * 10)
            assert len(looked(tail)) == 10
    assert len(heard) == 3


def as_node(table: MailTable, number: int) -> object:
    """A connection that gives out ids as a node of a cluster of three does."""
    made = table.connect()
    table.execute("SET SESSION auto_increment_increment = 3", on=made)
    table.execute(f"SET SESSION auto_increment_offset = {number}", on=made)
    return made


def test_ids_of_a_cluster(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    """Two of three are missing all the time; what another node has is found all the same."""
    first, second = as_node(mysql, 1), as_node(mysql, 2)
    tail = Tail(finder.reader.rows, clock=clock)
    stored, given = [], []
    for turn in range(40):
        if turn == 20:
            mysql.execute("BEGIN", on=second)
            late = mysql.insert(on=second)
        stored += [mysql.insert(on=first) for _ in range(40)]
        given += looked(tail)
        clock.now += 0.3
    assert given == stored
    assert len(tail._stretches) < 40, "they are put together"
    mysql.execute("COMMIT", on=second)
    asked_ = 0
    with asked(finder.reader) as heard:
        while late not in given:
            clock.now += 0.5
            given += looked(tail)
            asked_ += 1
            assert asked_ < 60
    assert sorted(given) == sorted([*stored, late])
    assert len(heard) <= (2 + module._MOST_STRETCHES) * asked_
    first.close()  # type: ignore[attr-defined]
    second.close()  # type: ignore[attr-defined]


def test_it_goes_on_in_a_cluster(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    """Some comes twice, and nothing is lost."""
    first, second = as_node(mysql, 1), as_node(mysql, 2)
    tail = Tail(finder.reader.rows, clock=clock)
    before = [mysql.insert(on=first) for _ in range(200)]
    assert looked(tail) == before
    mysql.execute("BEGIN", on=second)
    late = mysql.insert(on=second)
    after = [mysql.insert(on=first) for _ in range(200)]
    assert looked(tail) == after
    cursor = tail.cursor()
    assert len(cursor) < 400
    mysql.execute("COMMIT", on=second)
    other = finder.tail(cursor)
    given = looked(other) + looked(other)
    assert late in given
    assert {*given} - {late} <= {*before, *after}


def test_it_moves_in_a_cluster(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    """Nothing comes twice, and what shows late is waited for as by who begins."""
    first, second = as_node(mysql, 1), as_node(mysql, 2)
    tail = Tail(finder.reader.rows, clock=clock)
    before = [mysql.insert(on=first) for _ in range(200)]
    mysql.execute("BEGIN", on=second)
    late = mysql.insert(on=second)
    before.append(mysql.insert(on=first))
    assert looked(tail) == before
    finder.close()
    clock.now += 2 * SETTLED
    after = mysql.insert(on=first)
    other = mysql.finder()
    other.take_over(tail)
    assert looked(tail) == [after]
    mysql.execute("COMMIT", on=second)
    clock.now += 2.0
    assert looked(tail) == [late]
    other.close()
    first.close()  # type: ignore[attr-defined]
    second.close()  # type: ignore[attr-defined]


def test_a_jump_of_the_ids(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    tail = Tail(finder.reader.rows, clock=clock)
    mysql.insert(mail_id=2**62)
    assert looked(tail) == [2**62]
    mysql.insert(mail_id=2**61)
    clock.now += 0.3
    assert looked(tail) == [2**61]
    assert looked(tail) == []
    mysql.insert()
    assert looked(tail) == [2**62 + 1]


def test_many_ids_that_lack_before_it_began(mysql: MailTable, finder: Finder) -> None:
    mysql.insert(mail_id=100 * MARGIN)
    tail = finder.tail()
    assert looked(tail) == []
    assert re.fullmatch("T[0-9a-z]+", tail.cursor())
    assert looked(finder.tail(tail.cursor())) == [], "what was there is not given"


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_commits(
    mysql: MailTable, finder: Finder, clock: Clock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several connections, time that passes, few or many missing ids: each mail once."""
    if seed % 2:
        monkeypatch.setattr(module, "_FEW", 2)
    chance = random.Random(seed)
    writers = {mysql.connect(): list[int]() for _ in range(5)}
    tail = Tail(finder.reader.rows, clock=clock)
    given: list[int] = []
    for _ in range(300):
        writer = chance.choice([*writers])
        open_ = writers[writer]
        if open_ and chance.random() < 0.4:
            mysql.execute("COMMIT" if chance.random() < 0.8 else "ROLLBACK", on=writer)
            open_.clear()
        else:
            if not open_:
                mysql.execute("BEGIN", on=writer)
            open_.append(mysql.insert(on=writer))
        if chance.random() < 0.3:
            clock.now += chance.choice([0.0, 0.05, 0.4])
            given += looked(tail)
    for writer in writers:
        writer.close()
    for _ in range(20):
        clock.now += 2.5
        given += looked(tail)
    assert sorted(given) == [mail.mail_id for mail in finder.reader.recent(1000)]


def test_after_trouble_another_goes_on(mysql: MailTable, finder: Finder, clock: Clock) -> None:
    """What a look that failed did not give is not lost."""
    late = mysql.connect()
    mysql.execute("BEGIN", on=late)
    mysql.insert(on=late)
    mysql.insert()
    tail = Tail(finder.reader.rows, clock=clock)
    mysql.execute("COMMIT", on=late)
    mysql.insert()
    rows, query = finder.reader.rows, finder.reader.rows.query

    def broken(sql: str, *values: object) -> object:
        if "IN (" in sql and "subject" in sql:
            raise StoreError("away")
        return query(sql, *values)

    rows.query = broken  # type: ignore[assignment]
    with pytest.raises(StoreError):
        tail.look()
    rows.query = query  # type: ignore[method-assign]
    assert looked(tail) == [1, 3]
    late.close()
