"""Which mails have this in them? Page by page, the newest first, never through all mail at once.

By the indexes on addresses where an address is wanted, on the date where a time is; else along the
primary key. Each page takes about half a second at most and says how to go on.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from typing import NamedTuple, Protocol

from gsmtpd.storage.addressed import (
    COLUMNS,
    Range,
    has_address_index,
    ids_to,
    is_same,
    spelled,
)
from gsmtpd.storage.base import StoreSetupError
from gsmtpd.storage.mail_rows import MOST_ID, MailRows, StoredMail
from gsmtpd.storage.seal import sealed, unsealed

MOST_MAILS = 500  # of a page
_BUDGET = 0.5  # seconds that a page may take, about
_STEP_SECONDS = 0.1
_FIRST_ROWS, _MOST_ROWS = 200, 20000  # that a step looks at
_ALL_DATES = "9999-12-31 23:59:59"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2})?", re.ASCII)


class Wanted(NamedTuple):
    """Which mails are meant: those for which all is so that is not "". Capitals do not matter.

    to: the address of the recipient or of the mailbox. domain: that of one of the two. from_: what
    the address in From or the reverse-path has in it; subject and text (the column `body`)
    likewise. since, until: UTC, "YYYY-MM-DD HH:MM:SS", the first moment that counts and the first
    that does not.
    """

    to: str = ""
    from_: str = ""
    subject: str = ""
    text: str = ""
    since: str = ""
    until: str = ""
    domain: str = ""


class Page(NamedTuple):
    """Some of the mails that were found, the newest first, and what gets those behind them.

    next: None where there are no more. A page may have fewer mails than it could, even none, and
    there are more all the same.
    """

    mails: list[StoredMail]
    next: str | None


class _Place(NamedTuple):
    """How far a search is. date: "" where it goes by the id alone. It is behind that mail."""

    date: str
    mail_id: int


class _Step(NamedTuple):
    """Some rows to look at, as a WHERE clause, and the place behind them; None at the end."""

    where: str
    values: tuple[object, ...]
    end: _Place | None


class _Walk(Protocol):
    """A way through the mail, from `begin` on, with rows in `order`."""

    begin: _Place
    order: str

    def step(self, place: _Place, rows: int) -> _Step:
        """The next `rows`, about."""

    def place(self, mail: StoredMail) -> _Place:
        """The one behind `mail`."""


def search(rows: MailRows, wanted: Wanted, limit: int, before: str = "") -> Page:
    """A page of at most `limit` of the mails that are `wanted`.

    before: the `next` of the page before. Those of the same second may come in any order where a
    time is wanted. Raises ValueError for what cannot be wanted, and StoreError.
    """
    _check(rows, wanted)
    walk = _walk(rows, wanted)
    place: _Place | None = _parse(before, walk) if before else walk.begin
    where, values = _filter(rows, wanted)
    limit = max(1, min(limit, MOST_MAILS))
    found: list[StoredMail] = []
    ends = time.monotonic() + _BUDGET
    many = max(limit + 1, _FIRST_ROWS)
    began = 0.0
    while place is not None and len(found) <= limit and began < ends:
        began = time.monotonic()
        step = walk.step(place, many)
        if step.where:
            order = f" ORDER BY {walk.order} LIMIT {limit + 1}"
            got = rows.mails(f"WHERE {step.where}{where}{order}", *step.values, *values)
            found += [mail for mail in got if _is_meant(mail, wanted)]
            if len(got) > limit:
                step = step._replace(end=walk.place(got[-1]))
        place = step.end
        took = max(time.monotonic() - began, 1e-4)
        many = int(max(20, min(many * min(_STEP_SECONDS / took, 2.0), _MOST_ROWS)))
    found.sort(key=walk.place, reverse=True)
    if len(found) > limit:
        del found[limit:]
        place = walk.place(found[-1])
    return Page(found, None if place is None else _said(place))


# ---- what is wanted ------------------------------------------------------------------------------


def _check(rows: MailRows, wanted: Wanted) -> None:
    for name in ("since", "until"):
        if (value := getattr(wanted, name)) and not _DATE.fullmatch(value):
            raise ValueError(f"{name}: {value!r} is no time; write it as 2026-11-22 09:30:00")
    needed = {
        "recipient": wanted.to or wanted.domain, "date": wanted.since or wanted.until,
        "from": wanted.from_, "subject": wanted.subject, "body": wanted.text,
    }  # fmt: skip
    for column, value in needed.items():
        if value and column not in rows.columns():
            raise StoreSetupError(f"table {rows.table} has no column {column} to choose mail by")


def _filter(rows: MailRows, wanted: Wanted) -> tuple[str, list[str]]:
    """What the rows of a step are asked for besides, and its values."""
    parts: list[str] = []
    values: list[str] = []
    for sign, value in ((">=", wanted.since), ("<", wanted.until)):
        if value:
            parts.append(f"`date` {sign} {rows.mark}")
            values.append(value)
    for columns, value, front, behind in (
        (("from", "return_path"), wanted.from_, "%", "%"),
        (("subject",), wanted.subject, "%", "%"),
        (COLUMNS, wanted.domain, "%@", ""),
        (("body",), wanted.text, "%", "%"),
    ):
        if value:
            patterns = [front + _literal(each) + behind for each in _spelled(rows, value)]
            there = [name for name in columns if name in rows.columns()]
            likes = [f"`{name}` LIKE {rows.mark} ESCAPE '!'" for name in there for _ in patterns]
            parts.append(f"({' OR '.join(likes)})")
            values += patterns * len(there)
    return "".join(f" AND {part}" for part in parts), values


def _spelled(rows: MailRows, text: str) -> list[str]:
    """The ways a text may be written."""
    return spelled(text) if rows.is_sqlite and not text.isascii() else [text]


def _literal(text: str) -> str:
    """`text` as LIKE finds it and nothing else. A NUL is stored as U+FFFD, and ends a pattern."""
    return re.sub(r"([!%_])", r"!\1", text.replace("\0", "\ufffd"))


def _is_meant(mail: StoredMail, wanted: Wanted) -> bool:
    """MySQL takes é for e."""
    if wanted.to and not any(is_same(each, wanted.to) for each in (mail.recipient, mail.to)):
        return False
    domain = "@" + wanted.domain.lower()
    return not wanted.domain or any(
        each.lower().endswith(domain) for each in (mail.recipient, mail.to)
    )


# ---- ways through the mail -----------------------------------------------------------------------


def _walk(rows: MailRows, wanted: Wanted) -> _Walk:
    if wanted.to and has_address_index(rows):
        return _ByAddress(rows, wanted.to)
    if (wanted.since or wanted.until) and rows.has_index("date"):
        return _ByDate(rows, wanted.since, wanted.until)
    return _ById(rows)


class _ByAddress:
    """Along the indexes on the recipient and the mailbox."""

    begin = _Place("", MOST_ID + 1)
    order = "mail_id DESC"

    def __init__(self, rows: MailRows, address: str) -> None:
        self._rows = rows
        self._address = address

    def step(self, place: _Place, rows: int) -> _Step:
        ids = ids_to(self._rows, self._address, rows, Range(last=place.mail_id - 1))
        end = _Place("", ids[-1]) if len(ids) == rows else None
        where = f"mail_id IN ({self._rows.marks(ids)})" if ids else ""
        return _Step(where, tuple(ids), end)

    def place(self, mail: StoredMail) -> _Place:
        return _Place("", mail.mail_id)


class _ById:
    """Along the primary key."""

    begin = _Place("", MOST_ID + 1)
    order = "mail_id DESC"

    def __init__(self, rows: MailRows) -> None:
        self._rows = rows

    def step(self, place: _Place, rows: int) -> _Step:
        m = self._rows.mark
        # Of ids that are missing there may be any number.
        sql = f"SELECT MAX(mail_id) FROM `{self._rows.table}` WHERE mail_id < {m}"
        ((last,),) = self._rows.query(sql, place.mail_id)
        if last is None:
            return _Step("", (), None)
        first = max(0, int(last) - rows + 1)
        where = f"mail_id >= {m} AND mail_id <= {m}"
        return _Step(where, (first, int(last)), _Place("", first))

    def place(self, mail: StoredMail) -> _Place:
        return _Place("", mail.mail_id)


class _ByDate:
    """Along the index on the date.

    What is left of a second first, then whole seconds: MariaDB sorts all rows of a partitioned
    table for ORDER BY date, mail_id, and for ORDER BY date alone none.
    """

    begin = _Place(_ALL_DATES, MOST_ID + 1)
    order = "`date` DESC, mail_id DESC"

    def __init__(self, rows: MailRows, since: str, until: str) -> None:
        self._rows = rows
        self._since = since or "0001-01-01 00:00:00"
        self._until = until or _ALL_DATES

    def step(self, place: _Place, rows: int) -> _Step:
        m = self._rows.mark
        where = f"`date` = {m} AND mail_id < {m} ORDER BY mail_id DESC"
        found = self._select(where, place.date, place.mail_id, rows)
        if len(found) == rows:
            return self._step(found, _Place(*found[-1]))
        where = f"`date` < {m} AND `date` >= {m} ORDER BY `date` DESC"
        later = self._select(where, min(place.date, self._until), self._since, rows)
        if len(later) < rows:
            return self._step(found + later, None)
        last = later[-1][0]  # perhaps not all of that second
        found += [each for each in later if each[0] != last]
        return self._step(found, _Place(last, MOST_ID + 1))

    def place(self, mail: StoredMail) -> _Place:
        return _Place(mail.date, mail.mail_id)

    def _select(self, where: str, *values: object) -> list[tuple[str, int]]:
        rows = self._rows
        sql = f"SELECT `date`, mail_id FROM `{rows.table}`{rows.hint('date')} WHERE {where}"
        found = rows.query(f"{sql} LIMIT {rows.mark}", *values)
        return [(str(date), int(mail_id)) for date, mail_id in found]

    def _step(self, found: list[tuple[str, int]], end: _Place | None) -> _Step:
        ids = tuple(mail_id for _, mail_id in found)
        where = f"mail_id IN ({self._rows.marks(ids)})" if ids else ""
        return _Step(where, ids, end)


# ---- how to go on --------------------------------------------------------------------------------


def _said(place: _Place) -> str:
    text = f"{place.mail_id} {place.date}".strip()
    return sealed(base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))


def _parse(cursor: str, walk: _Walk) -> _Place:
    """Raises ValueError."""
    wrong = ValueError(
        f"{cursor[:40]!r} is not how this search goes on; give what it said last, and search"
        " for the same"
    )
    said = unsealed(cursor)
    if said is None:
        raise wrong
    try:
        octets = base64.b64decode(said + "=" * (-len(said) % 4), b"-_", validate=True)
        number, _, date = octets.decode("ascii").partition(" ")
    except (binascii.Error, ValueError):
        raise wrong from None
    by_date = isinstance(walk, _ByDate)
    if not re.fullmatch("[0-9]{1,19}", number) or by_date != bool(_DATE.fullmatch(date)):
        raise wrong
    if not by_date and date:
        raise wrong
    return _Place(date, min(int(number), MOST_ID + 1))
