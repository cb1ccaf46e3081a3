"""How is old mail found in a table, and deleted, without standing in the way of new mail?

Finding takes no locks. Rows are deleted by their primary key, in one short transaction with what
is known of their attachments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

ATTACHMENTS = "mail_attachment"


class Mark(NamedTuple):
    """A place in the order of date and mail_id, behind the mail of those."""

    date: str  # UTC, "YYYY-MM-DD HH:MM:SS"
    mail_id: int


# The least DATETIME of MySQL. Mail of "0000-00-00" is of no known age, and stays.
BEGINNING = Mark("1000-01-01 00:00:00", -1)


class Found(NamedTuple):
    """An old row. recipient: "" where nobody needs it or the table has no such column."""

    mail_id: int
    date: str
    recipient: str


class Batch(NamedTuple):
    """What was found up to `end`, and whether there may be more."""

    rows: list[Found]
    end: Mark
    more: bool


class Deleted(NamedTuple):
    """How many rows, and the seconds that took without waiting for the disk."""

    rows: int
    seconds: float


class Shelf(Protocol):
    """A table of mail. All methods may raise the driver's errors."""

    step_seconds: float
    """How long a deletion may take: others may have to wait for it."""

    opened: int
    """How many tables it was so far, one after the other."""

    def ready(self) -> bool:
        """Learn what the table is like; False while another process looks after it.

        Raises StoreError where old mail cannot be found in it.
        """

    @property
    def has_recipient(self) -> bool:
        """Whether it has the column `recipient`."""

    @property
    def recipient_width(self) -> int | None:
        """Characters of `recipient`; a longer one was cut."""

    @property
    def is_partitioned(self) -> bool:
        """Whether it has partitions."""

    def find(self, after: Mark, before: str, limit: int, recipients: bool) -> Batch:
        """About `limit` rows behind `after` and older than `before`, oldest first."""

    def delete(self, rows: Sequence[Found]) -> Deleted:
        """Delete `rows` with their attachments, all or nothing."""

    def first(self, date: str) -> str | None:
        """The date of the oldest row that is not older than `date`."""

    def newest(self) -> int:
        """The highest mail_id, 0 without mail."""

    def pressure(self) -> float:
        """How near the server is to making all writers wait: 0 far, 1 there. May be unknown: 0."""


class SQLShelf:
    """What MySQL and SQLite have in common. sign: of the driver for a parameter."""

    def __init__(self, table: str, sign: str) -> None:
        self._table = table
        self._sign = sign
        self._hint = ""

    def _ask(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def find(self, after: Mark, before: str, limit: int, recipients: bool) -> Batch:
        """About `limit` rows behind `after` and older than `before`, oldest first.

        Those of the same second first, then whole seconds: MariaDB sorts all old rows of a
        partitioned table for ORDER BY date, mail_id, and for ORDER BY date alone none.
        """
        if after.date >= before:
            return Batch([], Mark(before, -1), False)
        m = self._sign
        where = f"`date` = {m} AND `mail_id` > {m} ORDER BY `mail_id`"
        rows = self._select(where, recipients, after.date, after.mail_id, limit)
        if len(rows) == limit:
            return Batch(rows, Mark(after.date, rows[-1].mail_id), True)
        where = f"`date` > {m} AND `date` < {m} ORDER BY `date`"
        later = self._select(where, recipients, after.date, before, limit)
        if len(later) < limit:
            return Batch(rows + later, Mark(before, -1), False)
        last = later[-1].date  # perhaps not all of that second
        return Batch(rows + [row for row in later if row.date != last], Mark(last, -1), True)

    def _select(self, where: str, recipients: bool, *arguments: object) -> list[Found]:
        # Without the recipient the index on date is all that is read.
        recipient = "`recipient`" if recipients else "''"
        found = self._ask(
            f"SELECT `mail_id`, `date`, {recipient} FROM `{self._table}`{self._hint}"
            f" WHERE {where} LIMIT {self._sign}",
            *arguments,
        )
        return [Found(mail_id, str(date), recipient) for mail_id, date, recipient in found]

    def first(self, date: str) -> str | None:
        """The date of the oldest row that is not older than `date`."""
        found = self._ask(
            f"SELECT MIN(`date`) FROM `{self._table}` WHERE `date` >= {self._sign}", date
        )
        return None if found[0][0] is None else str(found[0][0])

    def newest(self) -> int:
        """The highest mail_id, 0 without mail."""
        return int(self._ask(f"SELECT MAX(`mail_id`) FROM `{self._table}`")[0][0] or 0)

    def pressure(self) -> float:
        """Unknown."""
        return 0.0

    def _among(self, ids: Sequence[int]) -> str:
        return f"`mail_id` IN ({', '.join([self._sign] * len(ids))})"

    def _delete_sql(self, rows: Sequence[Found]) -> tuple[str, list[object]]:
        """The DELETE of `rows`; one whose date was changed in the meantime stays."""
        ids = [row.mail_id for row in rows]
        dates = min(row.date for row in rows), max(row.date for row in rows)
        m = self._sign
        # The dates name the partitions, too: without them each id is looked for in all.
        sql = f"DELETE FROM `{self._table}` WHERE {self._among(ids)} AND `date` BETWEEN {m} AND {m}"
        return sql, [*ids, *dates]
