"""How is the mail table split into hours, so that old mail goes an hour at a time?

Hours are added ahead of time, so that the last partition, which takes all that is later, stays
empty; and an hour is dropped when all of it is too old. Either takes the whole table for some
milliseconds. Nobody queues behind us for long: we wait for it a second at most.
"""

from __future__ import annotations

import calendar
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pymysql

from gsmtpd.complaints import Complaints
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import DENIED, RETRY, code_of
from gsmtpd.storage.mysql_link import Link, OnMySQL
from gsmtpd.storage.mysql_shelf import MySQLShelf
from gsmtpd.storage.retention import LATE, Times
from gsmtpd.storage.shelf import ATTACHMENTS
from gsmtpd.storage.upkeep import NOT_OURS, Chore

_log = logging.getLogger(__name__)

HOUR = 3600
HOURS_AHEAD = 48
LAST = "pmax"
_MOST = 8000  # partitions; the server takes 8192
_ADD_AT_ONCE = 8  # hours; each takes about 5 ms, in which no mail is stored
_FEW = 5000  # rows in the last partition that are moved, which takes about 40 us a row
_ATTACHED_AT_ONCE = 200
_BETWEEN = 1.0  # seconds between two changes of the table
_REST = 4.0  # times as long as a step
_LONGEST_SLEEP = 600.0
_QUICK_TRIES = 20  # for the table without waiting for it, which keeps nobody waiting either
_AFTER_IN_USE = 600.0  # seconds until the table is tried again that somebody reads for long


def _date(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


def _hour(second: float) -> int:
    """The beginning of that hour."""
    return int(second) // HOUR * HOUR


def _one(end: int) -> str:
    """The partition of the hour that ends there."""
    name = time.strftime("p%Y%m%d%H", time.gmtime(end - HOUR))
    return f"PARTITION {name} VALUES LESS THAN ('{_date(end)}')"


_ALL_LATER = f"PARTITION {LAST} VALUES LESS THAN (MAXVALUE)"


def clause(now: float, hours: int = HOURS_AHEAD) -> str:
    """PARTITION BY for a new table: this hour, so many `hours` ahead, and one for all later mail.

    now: Unix time.
    """
    first = _hour(now) + HOUR
    parts = [_one(first + n * HOUR) for n in range(hours + 1)]
    return f"PARTITION BY RANGE COLUMNS (`date`) ({', '.join([*parts, _ALL_LATER])})"


def conversion(table: str, now: float) -> str:
    """The SQL that splits a `table` made without partitions into hours. now: Unix time.

    It copies all mail, and none can be stored meanwhile. The first hour has all that is older.
    """
    return (
        f"ALTER TABLE `{table}` DROP PRIMARY KEY, ADD PRIMARY KEY (`mail_id`, `date`) {clause(now)}"
    )


class Partition(NamedTuple):
    """A partition. end: Unix time, None for the one of all later mail."""

    name: str
    end: int | None


class InUseError(Exception):
    """Somebody uses the table, and it would have to be waited for."""


class Partitions:
    """Adds and drops hours of the mail table of `link.database`.

    keep: seconds after which no mail is left, None for ever. hours: to be ahead.
    """

    def __init__(
        self,
        link: Link,
        keep: float | None,
        hours: int = HOURS_AHEAD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._table = link.database.table
        self._keep = keep
        self._hours = hours
        self._clock = clock
        self._shelf = MySQLShelf(link)
        self._overfull = Complaints("partitions")
        self._in_use = Complaints("partitions")
        self._tries = 0
        self._detached: str | None = None  # the partition whose attachments are gone
        self._after = 0  # the mail_id up to which they are

    def step(self) -> float:
        """One change; seconds until the next. Raises StoreError and pymysql.err.Error."""
        if not self._link.alone():
            return NOT_OURS
        now = self._clock()
        found = self._read()
        try:
            pause = self._drop(found, now)
            if pause is None:
                pause = self._add(found, now)
        except InUseError:
            return self._after_in_use()
        return self._until_next(found, now) if pause is None else pause

    def _read(self) -> list[Partition]:
        """The partitions in their order. Raises StoreError where there are no hours."""
        found = self._link.rows(
            "SELECT partition_name, partition_method, partition_expression, partition_description"
            " FROM information_schema.partitions WHERE table_schema = DATABASE()"
            " AND table_name = %s ORDER BY partition_ordinal_position",
            self._table,
        )
        if not found:
            self._link.rows(f"SELECT 1 FROM `{self._table}` LIMIT 0")  # for the error that says why
        for name, method, expression, _ in found:
            by_date = method == "RANGE COLUMNS" and expression.strip("`") == "date"
            if name is None or not by_date:
                raise StoreError(
                    f"table {self._table} has no partitions by `date`; old mail is deleted row by"
                    f" row; ALTER TABLE `{self._table}` DROP PRIMARY KEY, ADD PRIMARY KEY"
                    " (`mail_id`, `date`) PARTITION BY RANGE COLUMNS (`date`) (…) would make them"
                )
        return [Partition(str(name), _end(str(limit))) for name, _, _, limit in found]

    # --- hours ahead ---

    def _add(self, found: list[Partition], now: float) -> float | None:
        """Add hours; None where there are enough."""
        ends, last = self._lacking(found, now), found[-1]
        if not ends and last.end is None:
            return None
        parts = ", ".join([*map(_one, ends), _ALL_LATER])
        if last.end is not None:
            self._alter(f"ADD PARTITION ({parts})")
            return _BETWEEN
        rows = self._rows_in(last)
        if rows > _FEW:
            self._overfull.say(
                f"there is much mail in partition {last.name} of table {self._table}, as hours"
                " were not added in time; it is deleted row by row; in a quiet hour, as it keeps"
                f" mail waiting: ALTER TABLE `{self._table}` REORGANIZE PARTITION `{last.name}`"
                f" INTO ({_one(_hour(now) + HOUR)}, {_ALL_LATER})"
            )
            return None
        if rows:
            _log.warning("partitions: moving %d mails out of %s", rows, last.name)
        self._alter(f"REORGANIZE PARTITION `{last.name}` INTO ({parts})")
        self._overfull.over()
        return _BETWEEN

    def _lacking(self, found: list[Partition], now: float) -> list[int]:
        """The ends of the hours to be added next."""
        newest = max((each.end for each in found if each.end is not None), default=0)
        # Behind a pause the first takes all hours of it: it has their mail, if there is any.
        first = max(_hour(newest), _hour(now)) + HOUR
        ends = range(first, _hour(now) + (self._hours + 1) * HOUR + 1, HOUR)
        return list(ends[: min(_ADD_AT_ONCE, max(0, _MOST - len(found)))])

    def _rows_in(self, partition: Partition) -> int:
        sql = f"SELECT 1 FROM `{self._table}` PARTITION (`{partition.name}`) LIMIT {_FEW + 1}"
        return int(self._link.value(f"SELECT COUNT(*) FROM ({sql}) AS some"))

    # --- old hours ---

    def _drop(self, found: list[Partition], now: float) -> float | None:
        """Drop the oldest hour; None where none is too old."""
        oldest = found[0]
        if self._keep is None or not self._is_old(oldest, now):
            return None
        if self._detached != oldest.name:
            return self._detach(oldest)
        self._alter(f"DROP PARTITION `{oldest.name}`")
        _log.info("partitions: dropped %s, all mail before %s UTC", *_said(oldest))
        return _BETWEEN

    def _is_old(self, partition: Partition, now: float) -> bool:
        assert self._keep is not None
        return partition.end is not None and partition.end <= now - self._keep - LATE

    def _detach(self, partition: Partition) -> float:
        """Delete the rows of some attachments of its mail; 0 when there are no more."""
        began = time.perf_counter()
        self._shelf.look()
        most = None
        if self._shelf.has_attachments:
            most = self._value_in(partition, "MAX")
        if most is not None:
            least = self._value_in(partition, "MIN") or 0
            ids = self._attached(max(self._after, least - 1), most)
            if ids:
                self._delete_attachments(partition, ids)
                self._after = ids[-1]
                return (time.perf_counter() - began) * _REST
        self._detached, self._after = partition.name, 0
        return 0.0

    def _value_in(self, partition: Partition, function: str) -> int | None:
        value: int | None = self._link.value(
            f"SELECT {function}(`mail_id`) FROM `{self._table}` PARTITION (`{partition.name}`)"
        )
        return value

    def _attached(self, after: int, most: int) -> list[int]:
        return [
            mail_id
            for (mail_id,) in self._link.rows(
                f"SELECT DISTINCT `mail_id` FROM `{ATTACHMENTS}` WHERE `mail_id` > %s"
                f" AND `mail_id` <= %s ORDER BY `mail_id` LIMIT {_ATTACHED_AT_ONCE}",
                after,
                most,
            )
        ]

    def _delete_attachments(self, partition: Partition, ids: list[int]) -> None:
        marks = ", ".join(["%s"] * len(ids))
        here = self._link.rows(
            f"SELECT `mail_id` FROM `{self._table}` PARTITION (`{partition.name}`)"
            f" WHERE `mail_id` IN ({marks})",
            *ids,
        )
        if here:
            marks = ", ".join(["%s"] * len(here))
            self._link.execute(
                f"DELETE FROM `{ATTACHMENTS}` WHERE `mail_id` IN ({marks})",
                *(mail_id for (mail_id,) in here),
            )

    # --- the table for ourselves ---

    def _alter(self, change: str) -> None:
        """ALTER the table. Raises InUseError where others would have to be waited for."""
        with self._locked():
            following = self._following()
            self._link.execute(f"ALTER TABLE `{self._table}` {change}")
            # The number goes back where the partition with the highest goes (MariaDB 10.11), and
            # mail_ids would be given out twice.
            if self._following() < following:
                self._link.execute(f"ALTER TABLE `{self._table}` AUTO_INCREMENT = {following}")
        self._in_use.over()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock()
        except pymysql.MySQLError as error:
            if code_of(error) in RETRY:
                raise InUseError from error
            if code_of(error) in DENIED:
                raise StoreError(f"{error.args[1]}; GRANT LOCK TABLES") from error
            raise
        try:
            yield
        finally:
            with suppress(pymysql.MySQLError, OSError):
                self._link.execute("UNLOCK TABLES")
        self._tries = 0

    def _lock(self) -> None:
        """Lock the table: at first only if nobody uses it at that moment."""
        is_quick = self._tries < _QUICK_TRIES
        if is_quick:
            self._link.execute("SET SESSION lock_wait_timeout = 0")
            # MySQL takes 1 for that.
            if self._link.value("SELECT @@lock_wait_timeout"):
                self._tries = _QUICK_TRIES
        try:
            self._link.execute(f"LOCK TABLES `{self._table}` WRITE")
        finally:
            if is_quick:
                self._link.execute("SET SESSION lock_wait_timeout = 1")

    def _after_in_use(self) -> float:
        """Seconds until the next try."""
        self._tries += 1
        if self._tries <= _QUICK_TRIES:
            return 0.05 + 0.01 * self._tries
        self._tries = 0
        self._in_use.say(
            f"table {self._table} is in use all the time, as by a query or transaction that takes"
            " long; its partitions are left as they are for now"
        )
        return _AFTER_IN_USE

    def _following(self) -> int:
        """The mail_id that comes next. information_schema may be a day late in MySQL."""
        ((_, made),) = self._link.rows(f"SHOW CREATE TABLE `{self._table}`")
        number = re.search(r"^\) .*\bAUTO_INCREMENT=([0-9]+)", made, re.MULTILINE)
        return int(number[1]) if number else 1

    def _until_next(self, found: list[Partition], now: float) -> float:
        """Seconds until there is something to do."""
        due = [_hour(now) + HOUR]
        if self._keep is not None and found[0].end is not None:
            due.append(int(found[0].end + self._keep + LATE) + 1)
        return min(max(min(due) - now, 1.0), _LONGEST_SLEEP)


def _end(limit: str) -> int | None:
    """The end that VALUES LESS THAN names."""
    if limit == "MAXVALUE":
        return None
    return calendar.timegm(time.strptime(limit.strip("'")[:19], "%Y-%m-%d %H:%M:%S"))


def _said(partition: Partition) -> tuple[str, str]:
    return partition.name, _date(partition.end or 0)


def partitions_chore(link: Link, times: Times) -> Chore:
    """The chore that adds hours ahead and drops old ones, where `times` let all mail go."""
    keep = times.longest if times.distinct else None
    return OnMySQL("partitions", link, Partitions(link, keep).step)
