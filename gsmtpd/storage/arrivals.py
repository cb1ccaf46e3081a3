"""Which mail is new? Not always that with a higher id than all before.

Ids are given out before the COMMIT: mail of one connection may show behind mail of another that
has a higher id, and in a Galera cluster each node has ids of its own. So ids count as settled only
when so much time has passed that nothing comes below them any more. In SQLite one transaction
writes at a time, and ids are in the order of COMMITs.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from gsmtpd.storage.addressed import Range, ids_to
from gsmtpd.storage.mail_rows import MOST_ID, MailRows, StoredMail
from gsmtpd.storage.seal import base36, sealed, unsealed

SETTLED = 60.0  # seconds; what was given an id before is committed by then, or never will be
MARGIN = 10000  # ids below the highest that are not taken for settled by who has just begun
MOST_SEEN = 100  # ids that a cursor has
_SAMPLE = 1.0  # seconds between two looks at the highest id
_CURSOR = re.compile(rf"[0-9a-z]{{1,13}}(\.[0-9a-z]{{1,13}}){{0,{MOST_SEEN}}}", re.ASCII)


class Cursor(NamedTuple):
    """What somebody has been given: all up to the id `below`, and those in `seen` above it."""

    below: int = 0
    seen: frozenset[int] = frozenset()

    def __str__(self) -> str:
        """As text that `parse` reads."""
        parts = [self.below]
        at = self.below
        for mail_id in sorted(self.seen):
            parts.append(mail_id - at)
            at = mail_id
        return sealed(".".join(map(base36, parts)))

    def given(self, mail_id: int, settled: int) -> Cursor:
        """This one, once the oldest mail that it lacks is given, which has that id.

        settled: an id up to which nothing comes any more.
        """
        return Cursor(self.below, self.seen | {mail_id}).risen(min(settled, mail_id))

    def risen(self, settled: int) -> Cursor:
        """This one, where nothing that it lacks is up to the id `settled`."""
        below = max(self.below, settled)
        above = sorted(mail_id for mail_id in self.seen if mail_id > below)
        if len(above) > MOST_SEEN:
            below = above[-MOST_SEEN - 1]
            above = above[-MOST_SEEN:]
        return Cursor(below, frozenset(above))


START = Cursor()


def parse(text: str) -> Cursor:
    """The cursor that is written `text`. Raises ValueError."""
    said = unsealed(text)
    if said is None or not _CURSOR.fullmatch(said):
        raise ValueError(f"{text[:40]!r} is no cursor; give one back as it came")
    below, *steps = (int(part, 36) for part in said.split("."))
    seen = []
    at = below
    for step in steps:
        at += step
        seen.append(at)
    if max([below, *seen]) > MOST_ID:
        raise ValueError(f"{text[:40]!r} is no cursor; its number is too high")
    return Cursor(below, frozenset(seen))


def say_place(last: int, missing: Collection[int]) -> str:
    """Where one is who has been given all up to the id `last` but what is `missing`."""
    parts = [last]
    at = last
    for mail_id in sorted(missing, reverse=True):
        parts.append(at - mail_id)
        at = mail_id
    return sealed("T" + ".".join(map(base36, parts)))


def parse_place(text: str) -> tuple[int, list[int]]:
    """The `last` and the `missing`, in rising order, of what `say_place` has said.

    Raises ValueError.
    """
    said = unsealed(text)
    if said is None or not said.startswith("T") or not _CURSOR.fullmatch(said[1:]):
        raise ValueError(f"{text[:40]!r} is no cursor of all mail; give one back as it came")
    last, *steps = (int(part, 36) for part in said[1:].split("."))
    missing = []
    at = last
    for step in steps:
        at -= step
        missing.append(at)
    if last > MOST_ID or min([last, *missing]) < 0:
        raise ValueError(f"{text[:40]!r} is no cursor; a number of it is out of range")
    return last, missing[::-1]


class Settled:
    """Up to which id nothing comes any more. For one thread.

    clock: monotonic seconds.
    """

    def __init__(self, rows: MailRows, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = rows
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self._known = 0

    def id(self) -> int:
        """That id, as the next query will have it. Raises StoreError."""
        now = self._clock()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE:
            highest = self._rows.highest()
            if not self._samples:
                self._known = max(0, highest - MARGIN)
            self._samples.append((now, highest))
        while self._samples and now - self._samples[0][0] >= SETTLED:
            self._known = max(self._known, self._samples[0][1])
            if len(self._samples) == 1:
                break
            self._samples.popleft()
        return self._known


def next_for(
    rows: MailRows, settled: Settled, address: str, cursor: Cursor
) -> tuple[StoredMail | None, Cursor]:
    """The oldest mail to `address`, or in its mailbox, that `cursor` lacks; and the next cursor.

    Raises StoreError.
    """
    within = Range(first=cursor.below + 1, but=cursor.seen)
    # Asked before the query: what commits behind that has a higher id.
    up_to = MOST_ID if rows.is_sqlite else settled.id()
    found = rows.by_ids(ids_to(rows, address, 1, within, newest=False))
    if found:
        return found[0], cursor.given(found[0].mail_id, up_to)
    return None, cursor if rows.is_sqlite else cursor.risen(up_to)
