"""Is mail found by what it has, page by page, each once, and without reading all of it?"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsmtpd.storage import search as module
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.schema import statements
from gsmtpd.storage.seal import sealed
from gsmtpd.storage.search import Wanted
from tests.mailtable import MailTable, asked, reads_too_much
from tests.servers import MariaDB


@pytest.fixture(params=["sqlite", "mysql", "hourly"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MailTable]:
    """An empty table: of SQLite, of MariaDB, and one there that is split into hours."""
    if request.param == "sqlite":
        made = MailTable(tmp_path / "mail.db")
    else:
        made = MailTable((request.getfixturevalue("mariadb"), request.getfixturevalue("schema")))
    if request.param == "hourly":
        by_hour = (
            "PARTITION BY RANGE COLUMNS (`date`) ("
            + ", ".join(f"PARTITION p{n} VALUES LESS THAN ('2026-01-0{n}')" for n in range(1, 7))
            + ", PARTITION pmax VALUES LESS THAN (MAXVALUE))"
        )
        for view in ("mail_inbox", "mail_hourly", "mail_domains"):
            made.execute(f"DROP VIEW {view}")
        made.execute("DROP TABLE new_mail")
        for sql in statements("mysql", "new_mail", by_hour):
            made.execute(sql)
    yield made
    made.close()


def pages(finder: Finder, wanted: Wanted, limit: int = 100) -> list[list[int]]:
    """The ids on each page."""
    found, before = [], ""
    for _ in range(1000):
        page = finder.search(wanted, limit, before)
        assert len(page.mails) <= limit
        found.append([mail.mail_id for mail in page.mails])
        if page.next is None:
            return found
        before = page.next
    raise AssertionError("there is no end")


def ids(finder: Finder, wanted: Wanted, limit: int = 100) -> list[int]:
    return list(itertools.chain(*pages(finder, wanted, limit)))


MAILS: list[dict[str, object]] = [
    {"to": "Joe@example.com", "from": "ann@example.org", "subject": "Hello", "body": "one"},
    {"to": "joe@example.com", "from": "Bob@Example.ORG", "subject": "100% a_b!", "body": "two"},
    {"to": "jo\xe9@example.com", "return_path": "to+ann@lists.example", "subject": "Gr\xfc\xdfe"},
    {"to": "info@example.com", "subject": "back\\slash 'quoted'", "body": "Two\nlines"},
    {"to": "joe@sub.example.com", "subject": "\U0001f600 hello", "return_path": "x@Example.org"},
    {"to": "joe@exampleXcom", "subject": "abb"},
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [6, 5, 4, 3, 2, 1]),
        (Wanted(to="JOE@Example.com"), [2, 1]),
        (Wanted(to="jo\xe9@example.com"), [3]),
        (Wanted(to="JO\xc9@example.com"), [3]),
        (Wanted(to="joe@example_com"), []),
        (Wanted(to="joe@example.com "), []),
        (Wanted(to="nobody@example.com"), []),
        (Wanted(from_="ann"), [3, 1]),
        (Wanted(from_="example.org"), [5, 2, 1]),
        (Wanted(from_="BOB@"), [2]),
        (Wanted(subject="hello"), [5, 1]),
        (Wanted(subject="\U0001f600"), [5]),
        (Wanted(subject="GR\xdc\xdfE"), [3]),
        (Wanted(subject="%"), [2]),
        (Wanted(subject="a_b"), [2]),
        (Wanted(subject="b!"), [2]),
        (Wanted(subject="k\\s"), [4]),
        (Wanted(subject="'"), [4]),
        (Wanted(text="two"), [4, 2]),
        (Wanted(text="two\nl"), [4]),
        (Wanted(domain="EXAMPLE.com"), [4, 3, 2, 1]),
        (Wanted(domain="com"), []),
        (Wanted(domain="%"), []),
        (Wanted(to="joe@example.com", subject="hello"), [1]),
        (Wanted(to="joe@example.com", domain="example.net"), []),
        (Wanted(subject="lone \ud800"), []),
    ],
)
def test_what_is_found(table: MailTable, finder: Finder, wanted: Wanted, found: list[int]) -> None:
    for mail in MAILS:
        row: dict[str, object] = {"from": "x@example.net", "return_path": ""}
        table.insert(**(row | mail))  # type: ignore[arg-type]
    assert ids(finder, wanted) == found
    assert ids(finder, wanted, 1) == found


def test_a_nul_does_not_end_what_is_wanted(table: MailTable, finder: Finder) -> None:
    for mail in MAILS[:3]:
        table.insert(**mail)  # type: ignore[arg-type]
    assert ids(finder, Wanted(subject="\0")) == ids(finder, Wanted(subject="Hello\0")) == []


def test_the_mailbox_counts_as_well(table: MailTable, finder: Finder) -> None:
    table.insert(recipient="info@example.com", to="joe@example.com")
    table.insert(to="joe@example.com")
    table.insert(to="info@example.com", has_attach=3)
    assert ids(finder, Wanted(to="joe@example.com")) == [2, 1]
    assert ids(finder, Wanted(to="info@example.com")) == [3, 1]
    assert finder.search(Wanted(to="info@example.com"), 1).mails[0].has_attach == 3


def dated(table: MailTable, number: int = 500) -> list[str]:
    """Mail of which many have the same second, and some came late; their dates by id."""
    dates = [
        f"2026-01-0{1 + n * 5 // number} 10:{n // 60 % 60:02}:{n // 7 % 60:02}"
        for n in range(number)
    ]
    for n in range(0, number, 50):
        dates[n] = "2026-01-02 00:00:00"
    table.fill(
        [{"date": date, "to": f"u{n % 10}@example.com", "subject": f"s{n % 9}."}
         for n, date in enumerate(dates)]
    )  # fmt: skip
    return dates


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2026-01-02 10:00:10", ""),
        ("", "2026-01-03 10:03:00"),
        ("2026-01-02 00:00:00", "2026-01-02 00:00:01"),
        ("2026-01-02", "2026-01-04"),
        ("2027-01-01", ""),
        ("2026-01-04", "2026-01-02"),
    ],
)
@pytest.mark.parametrize(("limit", "rows"), [(1, 500), (7, 20), (100, 20), (100, 500)])
def test_what_came_at_a_time(
    table: MailTable, finder: Finder, since: str, until: str, limit: int, rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The newest first, each once, also where more than a step has the same second."""
    monkeypatch.setattr(module, "_FIRST_ROWS", rows)
    monkeypatch.setattr(module, "_MOST_ROWS", rows)
    dates = dated(table, 300)
    known = [(date, number) for number, date in enumerate(dates, 1)]
    wanted = [each for each in known if since <= each[0] < (until or "9")]
    found = ids(finder, Wanted(since=since, until=until), limit)
    assert found == [number for _, number in sorted(wanted, reverse=True)]
    some = [each for each in wanted if each[1] % 9 == 4]
    found = ids(finder, Wanted(since=since, until=until, subject="s3."), limit)
    assert found == [number for _, number in sorted(some, reverse=True)]
    mine = [number for date, number in wanted if number % 10 == 4]
    assert ids(finder, Wanted("u3@example.com", since=since, until=until), limit) == mine[::-1]


def test_pages(table: MailTable, finder: Finder) -> None:
    table.fill([{"to": f"u{n % 2}@example.com", "subject": f"s{n % 50}"} for n in range(1000)])
    assert [len(page) for page in pages(finder, Wanted(), 300)] == [300, 300, 300, 100]
    assert [len(page) for page in pages(finder, Wanted(), 500)] == [500, 500]
    assert [len(page) for page in pages(finder, Wanted(), 10**9)] == [500, 500]
    assert ids(finder, Wanted(subject="s49"), 3) == list(range(1000, 0, -50))
    assert ids(finder, Wanted("u1@example.com", subject="s49"), 3) == list(range(1000, 0, -50))
    assert ids(finder, Wanted("u0@example.com", subject="s49"), 3) == []


def test_a_page_that_takes_too_long_ends(
    table: MailTable, finder: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUDGET", 1e-9)
    table.fill([{"subject": f"s{n}"} for n in range(1000)])
    found = pages(finder, Wanted(subject="s999"))
    assert found[0] == [1000]
    assert len(found) > 1
    assert ids(finder, Wanted(subject="s77")) == [*range(780, 770, -1), 78]


def test_what_comes_between_two_pages_changes_nothing(table: MailTable, finder: Finder) -> None:
    table.fill([{}] * 20)
    page = finder.search(Wanted(), 10)
    table.fill([{}] * 5)
    assert finder.delete(11) and finder.delete(10)
    assert page.next is not None
    assert [mail.mail_id for mail in finder.search(Wanted(), 10, page.next).mails] == [
        9, 8, 7, 6, 5, 4, 3, 2, 1
    ]  # fmt: skip


def said(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "before",
    ["x", "\xe9", "=", "AAAA", said("x"), said("-1"), said("1 x"), said("1 2026-01-01 00:00:00"),
     said("9" * 40), " ", said("1") + "\n"],
)  # fmt: skip
def test_a_wrong_cursor(finder: Finder, before: str) -> None:
    for written in (before, sealed(before)):
        with pytest.raises(ValueError, match="is not how this search goes on"):
            finder.search(Wanted(subject="x"), 1, written)
    with pytest.raises(ValueError, match="is not how this search goes on"):
        finder.search(Wanted(subject="x"), 1, said("1"))  # made up


def test_the_cursor_of_another_search(finder: Finder) -> None:
    with pytest.raises(ValueError, match="is not how this search goes on"):
        finder.search(Wanted(since="2026-01-01"), 1, sealed(said("1")))


@pytest.mark.parametrize("since", ["x", "2026", "2026-01-01T00:00:00", "1 OR 1"])
def test_a_wrong_time(finder: Finder, since: str) -> None:
    with pytest.raises(ValueError, match=r"^since: .* is no time"):
        finder.search(Wanted(since=since), 1)


def test_an_empty_table(finder: Finder) -> None:
    for wanted in (Wanted(), Wanted("b@example.com"), Wanted(since="2026-01-01"), Wanted(text="x")):
        assert finder.search(wanted, 5) == ([], None)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted("u7@example.com"),
        Wanted("u7@example.com", subject="s"),
        Wanted("u7@example.com", since="2026-01-02"),
        Wanted(subject="s"),
        Wanted(from_="joe", text="x", domain="example.com"),
        Wanted(since="2026-01-02"),
        Wanted(until="2026-01-02", subject="s"),
    ],
)
def test_no_search_reads_all_mail(table: MailTable, finder: Finder, wanted: Wanted) -> None:
    dated(table, 3000)
    if not table.is_sqlite:
        table.execute("ANALYZE TABLE new_mail")
    page = finder.search(wanted, 5)
    assert page.next
    with asked(finder.reader) as heard:
        finder.search(wanted, 5, page.next)
    assert heard
    for sql, values in heard:
        found = reads_too_much(finder.reader, sql, values)
        # MariaDB puts in order what an address, or a second, has in a table with partitions; and
        # here what was found by its id.
        sorts = "filesort" in found and ("'ref'" in found or "mail_id IN" in sql)
        assert not found or sorts, found


# ---- old tables ----------------------------------------------------------------------------------


def test_a_table_without_indexes(mariadb: MariaDB, schema: str) -> None:
    """It is read in steps, all the same."""
    table = MailTable((mariadb, schema))
    dates = dated(table, 100)
    table.execute("ALTER TABLE new_mail DROP KEY `date`, DROP KEY `to`, DROP KEY recipient")
    finder = table.finder()
    assert ids(finder, Wanted("u3@example.com"), 3) == list(range(94, 0, -10))
    after = [number for number, date in enumerate(dates, 1) if date >= "2026-01-03"]
    assert ids(finder, Wanted(since="2026-01-03"), 9) == after[::-1]
    for wanted in (Wanted("u3@example.com"), Wanted(since="2026-01-03")):
        with asked(finder.reader) as heard:
            finder.search(wanted, 5)
        assert not any("FORCE INDEX" in sql for sql, _ in heard)
        assert all("mail_id <" in sql for sql, _ in heard)
    finder.close()
    table.close()


def test_a_table_that_lacks_columns(mariadb: MariaDB, schema: str) -> None:
    table = MailTable((mariadb, schema))
    table.insert(to="b@example.com")
    table.execute("ALTER TABLE new_mail DROP COLUMN recipient, DROP COLUMN return_path")
    finder = table.finder()
    assert ids(finder, Wanted(from_="joe")) == [1]
    for wanted in (Wanted(to="b@example.com"), Wanted(domain="example.com")):
        with pytest.raises(StoreError, match="no column recipient"):
            finder.search(wanted, 1)
    finder.close()
    table.close()
