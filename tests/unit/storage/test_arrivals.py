"""Is each mail for an address given once, in order, however its COMMIT came?"""

from __future__ import annotations

import random

import pytest

from gsmtpd.storage import arrivals
from gsmtpd.storage.arrivals import (
    MARGIN,
    START,
    Cursor,
    Settled,
    next_for,
    parse,
    parse_place,
    say_place,
)
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import Selection
from gsmtpd.storage.seal import sealed
from tests.mailtable import Clock, MailTable, asked, reads_too_much

BOB = "bob@example.com"


def all_next(finder: Finder, address: str, cursor: Cursor) -> tuple[list[int], Cursor]:
    """What comes now, and the cursor behind it, which goes the way of text."""
    found: list[int] = []
    while True:
        mail, cursor = finder.next_for(address, parse(str(cursor)))
        if mail is None:
            return found, cursor
        found.append(mail.mail_id)


# ---- cursors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cursor",
    [
        START,
        Cursor(35, frozenset({36, 1000, 2**62})),
        Cursor(2**63 - 2),
        Cursor(10, frozenset(range(11, 111))),
    ],
)
def test_a_cursor_is_a_text(cursor: Cursor) -> None:
    assert parse(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", "-1", "1 ", "1\n", "A", "\u0661", "z" * 13, "1." + "z" * 12 + "." + "z" * 12,
     "z" * 1000, ".".join(["1"] * 102), "T1"],
)  # fmt: skip
def test_what_is_no_cursor(text: str) -> None:
    for written in (text, sealed(text)):
        with pytest.raises(ValueError, match="is no cursor"):
            parse(written)


@pytest.mark.parametrize("text", ["zzz", "0", "1", "zzzz", "1.2.3", "t1", "xyz789"])
def test_a_made_up_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="is no cursor; give one back as it came"):
        parse(text)
    with pytest.raises(ValueError, match="is no cursor of all mail; give one back"):
        parse_place("T" + text)


def test_a_cut_or_mistyped_cursor() -> None:
    text = str(Cursor(4711, frozenset({4713, 4720})))
    wrong = {text[:cut] for cut in range(len(text))}
    wrong |= {text[:at] + digit + text[at + 1 :] for at in range(len(text)) for digit in "07z."}
    for each in wrong - {text}:
        with pytest.raises(ValueError, match="is no cursor"):
            parse(each)


@pytest.mark.parametrize(("last", "missing"), [(0, []), (77, [76]), (2**62, [1, 5, 2**61])])
def test_a_place_is_a_text(last: int, missing: list[int]) -> None:
    assert parse_place(say_place(last, missing)) == (last, missing)


@pytest.mark.parametrize("text", ["", "T", "1", "T1.2", "Tx.", "T" + "z" * 13])
def test_what_is_no_place(text: str) -> None:
    for written in (text, sealed(text)):
        with pytest.raises(ValueError, match="is no cursor"):
            parse_place(written)


def test_a_cursor_does_not_grow_for_ever() -> None:
    cursor = START
    for mail_id in range(10, 10000, 3):
        cursor = cursor.given(mail_id, 0)
    assert len(cursor.seen) == arrivals.MOST_SEEN
    assert cursor.below == 9997 - 300
    assert len(str(cursor)) < 400


def test_what_has_settled_is_no_more_in_the_cursor() -> None:
    cursor = START.given(5, 3)
    assert cursor == Cursor(3, frozenset({5}))
    assert cursor.given(7, 100) == Cursor(7)  # there may be more between it and 100
    assert cursor.risen(100) == Cursor(100)
    assert cursor.risen(1) == cursor


# ---- one address ---------------------------------------------------------------------------------


def test_the_first_counts_without_a_cursor(table: MailTable, finder: Finder) -> None:
    assert finder.next_for(BOB)[0] is None
    for to in (BOB, "x@example.com", "BOB@Example.com", BOB):
        table.insert(to=to)
    table.insert(recipient="info@example.com", to=BOB)
    mail, cursor = finder.next_for(BOB)
    assert mail is not None and mail.mail_id == 1
    assert finder.next_for("Bob@example.com")[0] == mail
    assert all_next(finder, BOB, cursor)[0] == [3, 4, 5]
    assert all_next(finder, "info@example.com", START)[0] == [5]


def test_mail_comes_one_by_one(table: MailTable, finder: Finder) -> None:
    cursor = START
    for number in range(1, 20):
        table.insert(to="x@example.com")
        table.insert(to=BOB)
        found, cursor = all_next(finder, BOB, cursor)
        assert found == [number * 2]


def test_an_address_is_not_another_like_it(table: MailTable, finder: Finder) -> None:
    """MariaDB finds the ones when asked for the other, and many of them."""
    for _ in range(50):
        table.insert(to="jos\xe9@example.com")
    table.insert(to="jose@example.com")
    assert all_next(finder, "jose@example.com", START)[0] == [51]
    assert all_next(finder, "JOS\xc9@example.com", START)[0] == list(range(1, 51))
    assert all_next(finder, "jos%@example.com", START)[0] == []


def test_another_finder_goes_on(table: MailTable, finder: Finder) -> None:
    for _ in range(3):
        table.insert(to=BOB)
    _, cursor = finder.next_for(BOB)
    other = table.finder()
    assert all_next(other, BOB, cursor)[0] == [2, 3]
    other.close()


def test_mail_that_commits_late(mysql: MailTable) -> None:
    """One with a lower id, once one with a higher id was given."""
    late = mysql.connect()
    mysql.execute("BEGIN", on=late)
    assert mysql.insert(on=late, to=BOB) == 1
    assert mysql.insert(to=BOB) == 2
    finder = mysql.finder()
    found, cursor = all_next(finder, BOB, START)
    assert found == [2]
    mysql.insert(to=BOB)
    mysql.execute("COMMIT", on=late)
    found, cursor = all_next(finder, BOB, cursor)
    assert found == [1, 3]
    assert all_next(finder, BOB, cursor)[0] == []
    finder.close()
    late.close()


def test_what_cannot_come_any_more_is_not_asked_for(mysql: MailTable) -> None:
    clock = Clock()
    finder = mysql.finder()
    rows = finder.reader.rows
    settled = Settled(rows, clock)
    for _ in range(3):
        mysql.insert(to=BOB)
    cursor = START
    for _ in range(3):
        _, cursor = next_for(rows, settled, BOB, cursor)
    assert cursor == Cursor(0, frozenset({1, 2, 3}))
    clock.now += arrivals.SETTLED - 0.1
    assert next_for(rows, settled, BOB, cursor) == (None, cursor)
    mysql.insert(to="x@example.com")
    clock.now += 0.2
    assert next_for(rows, settled, BOB, cursor) == (None, Cursor(3))
    clock.now += arrivals.SETTLED
    assert next_for(rows, settled, BOB, cursor) == (None, Cursor(3))
    clock.now += arrivals.SETTLED
    assert next_for(rows, settled, BOB, cursor) == (None, Cursor(4))
    finder.close()


def test_who_begins_leaves_a_margin(mysql: MailTable) -> None:
    mysql.insert(mail_id=5 * MARGIN)
    clock = Clock()
    finder = mysql.finder()
    settled = Settled(finder.reader.rows, clock)
    assert settled.id() == 4 * MARGIN
    clock.now += 0.5 * arrivals.SETTLED
    mysql.insert()
    assert settled.id() == 4 * MARGIN
    clock.now += 0.6 * arrivals.SETTLED
    assert settled.id() == 5 * MARGIN
    finder.close()


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_commits(mysql: MailTable, seed: int) -> None:
    """Several connections, and one who waits: each mail once."""
    chance = random.Random(seed)
    writers = {mysql.connect(): list[int]() for _ in range(4)}
    finder = mysql.finder()
    cursor, given, stored = START, list[int](), list[int]()
    for _ in range(150):
        writer = chance.choice([*writers])
        open_ = writers[writer]
        if open_ and chance.random() < 0.4:
            mysql.execute("COMMIT" if chance.random() < 0.8 else "ROLLBACK", on=writer)
            stored += open_ if _is_there(mysql, open_[0]) else []
            open_.clear()
        else:
            if not open_:
                mysql.execute("BEGIN", on=writer)
            to = BOB if chance.random() < 0.5 else "x@example.com"
            number = mysql.insert(on=writer, to=to)
            open_.append(number)
        if chance.random() < 0.3:
            found, cursor = all_next(finder, BOB, cursor)
            given += found
    for writer in writers:
        writer.close()
    given += all_next(finder, BOB, cursor)[0]
    mine = [mail.mail_id for mail in finder.reader.for_address(BOB, 1000)]
    assert sorted(given) == mine
    assert {*mine} <= {*stored}
    finder.close()


def _is_there(table: MailTable, mail_id: int) -> bool:
    finder = table.finder()
    try:
        return finder.reader.row(mail_id) is not None
    finally:
        finder.close()


def test_no_query_reads_all_mail(table: MailTable, finder: Finder) -> None:
    table.fill([{"to": f"u{n % 10}@example.com"} for n in range(3000)])
    table.fill([{"to": BOB}] * 10)
    if not table.is_sqlite:
        table.execute("ANALYZE TABLE new_mail")
    tail = finder.tail()
    table.fill([{"to": BOB}] * 10)
    with asked(finder.reader) as heard:
        found, cursor = all_next(finder, BOB, Cursor(3005, frozenset({3007, 3008})))
        assert found == [3006, *range(3009, 3021)]
        all_next(finder, "u7@example.com", START)
        finder.next_for("nobody@example.com", cursor)
        finder.reader.recent(20)
        finder.reader.for_address("u7@example.com", 20)
        finder.reader.row(7)
        finder.reader.mail(7)
        finder.reader.text(7)
        finder.reader.attachments(7)
        finder.reader.after(3000)
        for selection in (Selection(), Selection("u7@example.com"), Selection(ids=[5, 6])):
            assert [*finder.reader.ids(selection)]
        assert len(tail.look()) == 10
        assert tail.rows_for({BOB}) == []
        tail.recent(5)
        finder.ping()
        finder.delete(7)
        finder.tail()
    assert len(heard) > 50
    for sql, values in heard:
        assert not reads_too_much(finder.reader, sql, values)
