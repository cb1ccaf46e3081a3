"""Which mail is too old, and how is it deleted without keeping new mail waiting?

In small steps with rests between them, longer than the steps, unless mail comes in faster than it
is deleted. Each row is looked at once for each of the times that mail is kept.
"""

from __future__ import annotations

import calendar
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, TypeVar

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.shelf import BEGINNING, Mark, Shelf
from gsmtpd.storage.upkeep import NOT_OURS

LATE = 120.0  # seconds; by then mail that was received is committed or never will be
GRACE = 7200.0  # seconds that the end of an hour's partition is waited for before rows are deleted
_LONGEST_SLEEP = 60.0
_GATHER = 5.0  # seconds' worth of old mail that is worth a look
_LOOK_BACK = 60.0  # seconds between two looks at what was committed late
_WHOLE_AGAIN = 3600.0  # seconds between two ways through the whole table at least
_WINDOW = 5.0  # seconds over which intake and deletion are compared
# The rest behind a step is so many times as long. Rows that take long (0.4 ms each in a table of
# several times MariaDB's buffer pool) come from the disk, and as many pages go there later, which
# is what commits wait for.
_REST, _MOST_REST = 4.0, 10.0
_REST_EACH = 25000.0  # by the second that a row takes
_HIGH = 0.97  # of `Shelf.pressure`: beyond, there is no hurry, whatever is behind
_FEEL = 1.0  # seconds between two looks at that
_LONGEST_REST = 5.0
_LEAST, _MOST = 10, 500  # rows of a step
_TRIES = 20

_T = TypeVar("_T")


def _text(second: float) -> str:
    """Unix time as the column `date` has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(second)))


def _second(date: str) -> float:
    return calendar.timegm(time.strptime(date[:19], "%Y-%m-%d %H:%M:%S"))


class Times:
    """How long mail is kept, in seconds, None for ever: `default`, and domains of other times."""

    def __init__(
        self, default: float | None, domains: Iterable[tuple[str, float | None]] = ()
    ) -> None:
        self._default = default
        self._domains = {name.lower(): keep for name, keep in domains if keep != default}
        finite = {keep for keep in (default, *self._domains.values()) if keep is not None}
        self.distinct = sorted(finite)

    @property
    def longest(self) -> float | None:
        """The time after which no mail is left."""
        times = (self._default, *self._domains.values())
        return None if None in times else self.distinct[-1]

    @property
    def by_domain(self) -> bool:
        """Whether the recipient matters."""
        return bool(self._domains)

    def of(self, recipient: str, width: int | None) -> float | None:
        """How long mail for `recipient` is kept. width: of the column that it is from."""
        if width is not None and len(recipient) >= width:
            return self.longest  # its domain may have been cut
        domain = recipient.rpartition("@")[2].lower()
        return self._domains.get(domain if domain.isascii() else _a_labels(domain), self._default)

    def fit(self, has_recipient: bool) -> Times:
        """What can be done of it in a table with or without the column `recipient`."""
        return self if has_recipient or not self.by_domain else Times(self.longest)


def _a_labels(domain: str) -> str:
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return domain


class Pace:
    """How many rows a step takes, and how long the rest behind it is.

    step_seconds: that a deletion should take.
    """

    def __init__(self, step_seconds: float) -> None:
        self.rows = 200
        self._step_seconds = step_seconds
        self._each = 0.0  # seconds that a row takes, about
        self._ease = 1.0  # share of a full rest, less where the purge falls behind
        self._window: tuple[float, int] | None = None  # when it began, the newest mail then
        self._seen = 0
        self._is_high = False
        self._felt = 0.0

    def idle(self) -> None:
        """Nothing is left to do: no need to hurry."""
        self._window = None
        self._calm_down()

    def took(self, rows: int, seconds: float) -> None:
        """A deletion of `rows` took so long."""
        if rows:
            fit = self.rows * self._step_seconds / max(seconds, 1e-4) * (rows / self.rows)
            # Slowly up, at once down.
            self.rows = int(min(max(fit, _LEAST), self.rows * 1.2 + 1, _MOST))
            self._each += (seconds / rows - self._each) / 10

    def look(self, seen: int, now: float, shelf: Shelf, ways: int) -> None:
        """`seen` rows more were looked at on one of so many `ways` through the table."""
        self._seen += seen
        if self._window is None:
            self._window, self._seen = (now, shelf.newest()), 0
        elif not 0 <= now - self._window[0] < _WINDOW:
            newest = shelf.newest()
            self._compare((newest - self._window[1]) * ways)
            self._window, self._seen = (now, newest), 0

    def _compare(self, came: int) -> None:
        """`came` rows came in while `_seen` were looked at."""
        if came * 1.1 > self._seen:
            self._ease *= 0.5 if came > 2 * self._seen else 0.8
            if self._ease < 0.02:
                self._ease = 0.0
        elif came * 1.5 < self._seen:
            self._calm_down()

    def _calm_down(self) -> None:
        self._ease = min(1.0, self._ease * 1.25 + 0.02)

    def feel(self, shelf: Shelf) -> None:
        """See whether the server can hardly follow."""
        now = time.monotonic()
        if not self._felt or now > self._felt + _FEEL:
            self._is_high, self._felt = shelf.pressure() > _HIGH, now

    def rest(self, seconds: float) -> float:
        """Seconds to rest behind a step that took so long."""
        full = min(max(_REST, self._each * _REST_EACH), _MOST_REST)
        return min(seconds * full * (1.0 if self._is_high else self._ease), _LONGEST_REST)


class _Done(NamedTuple):
    """seen: rows looked at. seconds: of the deletion."""

    seen: int
    deleted: int
    seconds: float


class Sweep:
    """The ways through a table, one after the other, for mail that is kept `keep` seconds."""

    def __init__(self, keep: float, times: Times) -> None:
        self.keep = keep
        self.due = 0.0  # Unix time of the next step
        self.is_under_way = False
        self._times = times
        self._mark = BEGINNING
        self._until = 0.0  # Unix time of this way's end; mail received before that is due
        self._before = ""
        self._whole_began: float | None = None
        self._whole_due = 0.0
        self._back_due = 0.0

    def begin(self, now: float, grace: float = 0.0) -> None:
        """Begin another way: where the last one ended, or before that."""
        end, self._until = self._until, now - self.keep - grace
        self._before = _text(self._until)
        self.is_under_way = True
        if now >= self._whole_due:
            self._mark, self._whole_began, self._whole_due = BEGINNING, now, float("inf")
        elif now >= self._back_due:
            self._mark = min(self._mark, Mark(_text(end - LATE), -1))
            self._back_due = now + _LOOK_BACK

    def step(self, shelf: Shelf, rows: int, now: float, dry: bool = False) -> _Done:
        """Delete what is due of the next `rows`. dry: delete nothing, but say what is due."""
        batch = shelf.find(self._mark, self._before, rows, self._times.by_domain)
        due = batch.rows
        if self._times.by_domain:
            due = [row for row in due if self._is_due(row.recipient, shelf.recipient_width, dry)]
        done = _Done(len(batch.rows), len(due), 0.0)
        if due and not dry:
            done = _Done(len(batch.rows), *shelf.delete(due))
        self._mark = batch.end
        self.is_under_way = batch.more
        self.due = now
        return done

    def end(self, shelf: Shelf, now: float, grace: float = 0.0) -> None:
        """Sleep until more can be due."""
        if self._whole_began is not None:
            # Mail of those who keep it longer is read anew: that may be most of a big table.
            spent = max(0.0, now - self._whole_began)
            self._whole_due = now + max(_WHOLE_AGAIN, 20 * spent)
            self._whole_began = None
        first = shelf.first(self._before)
        due = now + _LONGEST_SLEEP
        if first is not None:
            due = min(due, _second(first) + 1 + self.keep + grace + _GATHER)
        self.due = max(now, due)

    def _is_due(self, recipient: str, width: int | None, dry: bool) -> bool:
        keep = self._times.of(recipient, width)
        # What should have gone before goes now; but it was counted before.
        return keep is not None and (keep == self.keep if dry else keep <= self.keep)


class Retention:
    """Deletes mail that is older than `times` say from `shelf`, step by step, for ever.

    drops: hours' partitions are dropped elsewhere, so that rows of the longest time wait for that.
    """

    def __init__(
        self,
        shelf: Shelf,
        times: Times,
        drops: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.deleted = 0
        self._shelf = shelf
        self._wanted = times
        self._drops = drops
        self._clock = clock
        self._pace = Pace(shelf.step_seconds)
        self._times: Times | None = None
        self._opened = 0
        self._sweeps: list[Sweep] = []

    def step(self) -> float:
        """One step; seconds until the next. Raises StoreError and the driver's errors."""
        if not self._shelf.ready():
            return NOT_OURS
        self._fit()
        now = self._clock()
        if not self._sweeps:
            return _LONGEST_SLEEP
        sweep = min(self._sweeps, key=lambda each: each.due)
        if now < sweep.due <= now + _LONGEST_SLEEP:
            self._pace.idle()
            return sweep.due - now
        return self._work(sweep, now)

    def _work(self, sweep: Sweep, now: float) -> float:
        began = time.perf_counter()
        grace = self._grace(sweep)
        if not sweep.is_under_way:
            sweep.begin(now, grace)
        done = sweep.step(self._shelf, self._pace.rows, now)
        if not sweep.is_under_way:
            sweep.end(self._shelf, now, grace)
        self.deleted += done.deleted
        self._pace.took(done.deleted, done.seconds)
        self._pace.look(done.seen, now, self._shelf, len(self._sweeps))
        self._pace.feel(self._shelf)
        return self._pace.rest(time.perf_counter() - began)

    def _fit(self) -> None:
        """Fit the times to the table, which may have been altered."""
        times, opened = self._wanted.fit(self._shelf.has_recipient), self._shelf.opened
        known = self._times is not None and times.by_domain == self._times.by_domain
        if not known or opened != self._opened:
            self._times, self._opened = times, opened
            self._sweeps = [Sweep(keep, times) for keep in times.distinct]
        if not self._sweeps and self._wanted.distinct:
            raise StoreError(
                "the table has no column `recipient`, so that nobody knows whose mail is kept for"
                " ever; none is deleted"
            )

    def _grace(self, sweep: Sweep) -> float:
        waits = self._drops and self._shelf.is_partitioned and sweep.keep == self._wanted.longest
        return GRACE if waits else 0.0


def purge(
    shelf: Shelf,
    times: Times,
    dry: bool,
    progress: Callable[[int], None],
    is_busy: Callable[[Exception], bool],
) -> int:
    """Delete mail that is older than `times` say, once, and say how many rows that was.

    In the same small steps as the daemon, beside which it may run. dry: only count. progress:
    called with the rows so far, behind each step. is_busy: whether an error of the shelf's says
    that somebody else is in the way, so that it may go well a moment later. Raises StoreError,
    and the shelf's errors.
    """
    if times.by_domain and not shelf.has_recipient:
        raise StoreError("the table has no column `recipient`, so that no domain's mail is known")
    deleted = 0
    for keep in times.distinct:
        sweep = Sweep(keep, times)
        sweep.begin(time.time())
        pace = Pace(shelf.step_seconds)
        while sweep.is_under_way:
            began = time.perf_counter()
            rows = _MOST if dry else pace.rows
            done = patient(partial(sweep.step, shelf, rows, 0.0, dry), is_busy)
            pace.took(done.deleted, done.seconds)
            pace.feel(shelf)
            deleted += done.deleted
            progress(deleted)
            if not dry and sweep.is_under_way:
                time.sleep(pace.rest(time.perf_counter() - began))
    return deleted


def patient(step: Callable[[], _T], is_busy: Callable[[Exception], bool]) -> _T:
    """What `step` returns, again where somebody else is in the way, for some six seconds."""
    for _ in range(_TRIES):
        try:
            return step()
        except Exception as error:
            if not is_busy(error):
                raise
        time.sleep(random.uniform(0.1, 0.5))
    return step()
