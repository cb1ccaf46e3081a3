"""Which mail of all has come since the last look? Each once, also what shows late.

Where ids are missing below the highest one, a row may still come: they are looked at again, for as
long as `arrivals` says. Few missing ids are looked up one by one, at each look for a second and
each second from then on. Where most ids are missing, as in a Galera cluster, stretches of them are
read, ever more rarely.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import Any

from gsmtpd.storage.addressed import COLUMNS
from gsmtpd.storage.arrivals import MARGIN, MOST_SEEN, SETTLED, parse_place, say_place
from gsmtpd.storage.mail_rows import MailRows, StoredMail, text_of

AT_ONCE = 1000  # rows of a look
_FEW = 50  # missing ids of a stretch that are looked up one by one
_MOST_FEW = 1000  # of all stretches, at once
_YOUNG = 1.0  # seconds
_MOST_READ = 20000  # rows of a stretch
_MOST_STRETCHES = 4  # that are read in a look


class _Stretch:
    """Ids from `first` to `last`, of which some were missing at `born`, in monotonic seconds.

    is_old: whether it was there before the tail, so that none of what was seen was given.
    """

    def __init__(
        self, first: int, last: int, seen: Iterable[int], born: float, is_old: bool = False
    ) -> None:
        self.first = first
        self.last = last
        self.born = born
        self.due = born
        self.is_old = is_old
        self._seen = array("q", seen)
        self._note()

    def _note(self) -> None:
        lacks = self.last - self.first + 1 - len(self._seen)
        self.missing: set[int] | None = None  # where they are few
        if lacks <= _FEW:
            self.missing = {*range(self.first, self.last + 1)}.difference(self._seen)

    def unseen(self, ids: Iterable[int]) -> list[int]:
        """Those of `ids`, all within, that were not seen yet."""
        return [*{*ids}.difference(self._seen)]

    def saw(self, ids: Collection[int]) -> None:
        """Those of `ids`, which were not seen before, are now, as far as they are within."""
        within = [mail_id for mail_id in ids if self.first <= mail_id <= self.last]
        if within:
            self._seen.extend(within)
            self._note()

    def put_off(self, now: float) -> None:
        """Say when it is looked at again."""
        age = now - self.born
        if self.missing is None:
            self.due = now + max(_YOUNG / 4, age)
        else:
            self.due = now if age < _YOUNG else now + _YOUNG

    def take_in(self, other: _Stretch) -> None:
        """Make one of two of which the other begins where this one ends."""
        self.last = other.last
        self.born = max(self.born, other.born)
        self._seen.extend(other._seen)
        self._note()


class Tail:
    """What comes, from now on or from where a tail was whose `cursor` is given. For one thread.

    after: "" for now. clock: monotonic seconds. Raises ValueError for what is no cursor, and
    StoreError, as all methods do, behind which it may be moved, or another go on at its `cursor`.
    """

    def __init__(
        self, rows: MailRows, after: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rows = rows
        self._clock = clock
        self._stretches: list[_Stretch] = []  # in the order of ids
        self._merged = clock()
        self.is_more = False  # whether the last look has left rows behind
        if after:
            self._last, missing = parse_place(after)
            for mail_id in missing:
                self._stretches.append(_Stretch(mail_id, mail_id, (), clock()))
        else:
            self._last = rows.highest()
            if not rows.is_sqlite:
                self._begin(max(0, self._last - MARGIN))

    def _begin(self, below: int) -> None:
        m = self._rows.mark
        sql = f"SELECT mail_id FROM `{self._rows.table}` WHERE mail_id > {m} AND mail_id <= {m}"
        seen = [mail_id for (mail_id,) in self._rows.query(sql, below, self._last)]
        self._keep(_Stretch(below + 1, self._last, seen, self._clock(), is_old=True))

    def cursor(self) -> str:
        """What a tail is made with to begin here. Some of its mail may have been given before."""
        last, missing = self._last, set[int]()
        for stretch in reversed(self._stretches):
            few = stretch.missing
            if few is not None and len(missing) + len(few) <= MOST_SEEN:
                missing |= few
            elif not stretch.is_old:
                last = stretch.first - 1
                missing = set()
        return say_place(last, missing)

    def move(self, rows: MailRows) -> None:
        """Go on over another connection: nothing that was given comes again.

        Who knows what was committed while there was none: what is missing is as it was at first.
        """
        self._rows = rows
        for stretch in self._stretches:
            stretch.born = stretch.due = self._clock()

    def recent(self, limit: int) -> list[StoredMail]:
        """The newest `limit` mails, oldest first; no look gives them again."""
        m = self._rows.mark
        found = self._rows.mails(f"ORDER BY mail_id DESC LIMIT {m}", limit)[::-1]
        ids = {mail.mail_id for mail in found}
        late = [each for stretch in self._stretches for each in ids & (stretch.missing or set())]
        self._saw([mail_id for mail_id in ids if mail_id > self._last], late)
        return found

    def look(self) -> list[StoredMail]:
        """What has come since the last look, at most some 1,000 mails."""
        m = self._rows.mark
        new = self._rows.mails(f"WHERE mail_id > {m} ORDER BY mail_id LIMIT {AT_ONCE}", self._last)
        late_ids = self._late()
        late = self._rows.by_ids(late_ids)
        self._saw([mail.mail_id for mail in new], late_ids)
        return late + new

    def rows_for(self, addresses: Collection[str]) -> list[StoredMail]:
        """Like `look`, but only what is to one of `addresses`, or in its mailbox.

        addresses: in lower case.
        """
        m = self._rows.mark
        sql = f"SELECT mail_id, {self._rows.names(*COLUMNS)} FROM `{self._rows.table}` WHERE"
        new = self._rows.query(f"{sql} mail_id > {m} ORDER BY mail_id LIMIT {AT_ONCE}", self._last)
        late_ids = self._late()
        late = []
        if late_ids:
            late = self._rows.query(f"{sql} mail_id IN ({self._rows.marks(late_ids)})", *late_ids)
        wanted = [row[0] for row in [*late, *new] if _is_one(row, addresses)]
        mails = self._rows.by_ids(wanted)
        self._saw([row[0] for row in new], late_ids)
        return mails

    # ---- what shows late -----------------------------------------------------------------------

    def _saw(self, new: Collection[int], late: Collection[int]) -> None:
        """Take note of what is given: of ids above the last one, and of those below."""
        now = self._clock()
        self.is_more = len(new) >= AT_ONCE
        if late:
            for stretch in self._stretches:
                stretch.saw(late)
        if new:
            highest = max(new)
            if not self._rows.is_sqlite:
                self._keep(_Stretch(self._last + 1, highest, new, now))
            self._last = highest
        self._stretches = [
            each for each in self._stretches if each.missing != set() and now - each.born < SETTLED
        ]
        if now - self._merged >= _YOUNG:
            self._merge(now)

    def _keep(self, stretch: _Stretch) -> None:
        if stretch.missing != set():
            self._stretches.append(stretch)

    def _merge(self, now: float) -> None:
        """Make one stretch of those that are one behind the other and have been young."""
        before, self._merged = self._merged, now
        kept: list[_Stretch] = []
        for each in self._stretches:
            follows = kept and kept[-1].last + 1 == each.first and kept[-1].born >= before - _YOUNG
            if follows and now - each.born >= _YOUNG and not kept[-1].is_old:
                kept[-1].take_in(each)
            else:
                kept.append(each)
        self._stretches = kept

    def _late(self) -> list[int]:
        """The ids that show now and were missing."""
        now = self._clock()
        due = [stretch for stretch in self._stretches if stretch.due <= now]
        asked: list[int] = []
        found: list[int] = []
        reads = 0
        for stretch in due:
            few = stretch.missing
            if few is not None and len(asked) + len(few) <= _MOST_FEW:
                asked += few
            elif reads < _MOST_STRETCHES:
                reads += 1
                found += self._read(stretch)
            else:
                continue
            stretch.put_off(now)
        return found + self._there(asked)

    def _there(self, ids: list[int]) -> list[int]:
        if not ids:
            return []
        sql = f"SELECT mail_id FROM `{self._rows.table}` WHERE mail_id IN"
        return [found for (found,) in self._rows.query(f"{sql} ({self._rows.marks(ids)})", *ids)]

    def _read(self, stretch: _Stretch) -> list[int]:
        m = self._rows.mark
        sql = (
            f"SELECT mail_id FROM `{self._rows.table}` WHERE mail_id >= {m} AND mail_id <= {m}"
            f" ORDER BY mail_id DESC LIMIT {_MOST_READ}"
        )
        found = self._rows.query(sql, stretch.first, stretch.last)
        return stretch.unseen(mail_id for (mail_id,) in found)


def _is_one(row: tuple[Any, ...], addresses: Collection[str]) -> bool:
    return any(text_of(stored).lower() in addresses for stored in row[1:])
