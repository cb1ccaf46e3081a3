"""What have handlers still to do? The outbox: a row for each mail and each handler that acts on it.

A row is written in the mail's own transaction, so that a handler is owed each mail that is stored
and none that is not. Who works on it takes it for a while, its lease: where that process ends, the
row is due again. A handler is so called at least once for each mail, and with the same `delivery`
each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from gsmtpd.message.row import Delivery, date_of
from gsmtpd.storage.base import Letter
from gsmtpd.storage.reader import MailReader, StoredMail

WAITING, DEAD = "waiting", "dead"
_MAX_REASON = 255  # characters
_MAX_NAME = 64
_MAX_NOTE = 65535 // 4
_SWEPT = 500  # rows of a step

_COLUMNS = "`delivery`, `handler`, `hash`, `recipient`, `to`, `due`"
INSERT_NONE = f"INSERT INTO `mail_outbox` ({_COLUMNS})"
INSERT_MANY = f"{INSERT_NONE} VALUES "
INSERT = f"{INSERT_MANY}(%s)"


Fitted = Callable[[str, str], str]
"""What a column of the mail table, by its name, makes of a text: an old table may be narrower."""


def as_it_is(column: str, text: str) -> str:
    """`text`: where every column takes all."""
    return text


def delivery_id(message_id: str, delivery: Delivery) -> str:
    """The same for the same, 32 hexadecimal digits."""
    text = "\0".join((message_id, *delivery))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def milliseconds(seconds: float) -> int:
    """Unix time as the outbox has it."""
    return int(seconds * 1000)


def _text(text: str) -> str:
    """`text`, with "?" for what is no character: Python's `email` has such for odd octets."""
    return text.encode("utf-8", "replace").decode()


def outbox_rows(
    letter: Letter, fitted: Fitted = as_it_is
) -> Iterator[tuple[str, str, str, str, str, int]]:
    """The rows of the outbox for `letter`: five texts and a number, as `INSERT` wants them.

    Recipients are as their rows have them, by which they are found again.
    """
    message = letter.message
    due = milliseconds(message.received_at)
    for each in letter.deliveries:
        yield (
            delivery_id(message.id, each),
            each.handler,
            message.id,
            fitted("recipient", each.recipient),
            fitted("to", each.to),
            due,
        )


class Entry(NamedTuple):
    """A row of the outbox. due: Unix time in milliseconds.

    calls, tries: how often the handler was called for it, and how often that has failed. owner: who
    has it in hand, "" for nobody.
    """

    outbox_id: int
    delivery: str
    handler: str
    hash: str
    recipient: str
    to: str
    due: int
    state: str
    calls: int
    tries: int
    owner: str
    reason: str


_ENTRY = ", ".join(f"`{name}`" for name in Entry._fields)


class Session(Protocol):
    """A connection to the database, for one thread. All methods raise StoreError.

    table: the mail table, beside which the outbox is. mark: the driver's parameter mark.
    exact: stands behind a text that is compared octet by octet, and not as people read it.
    """

    table: str
    mark: str
    exact: str

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows that the statement finds."""

    def execute(self, sql: str, *arguments: object) -> int:
        """How many rows the statement changed."""

    def transaction(self) -> AbstractContextManager[None]:
        """Commit what is done within, or nothing of it."""

    def reader(self) -> MailReader:
        """Reads mail over the same connection."""

    def close(self) -> None:
        """Close the connection; the next use makes another."""


class Finished(NamedTuple):
    """What is written once a handler is done with an entry.

    notes: names and values. discard: the mail goes, too.
    """

    notes: Sequence[tuple[str, str]] = ()
    discard: bool = False


class Chosen(NamedTuple):
    """Which entries people mean: those for which all is so that is given."""

    ids: Sequence[int] = ()
    handler: str = ""
    state: str = ""


class Outbox:
    """The outbox in the database of `session`.

    owner: up to 32 characters, of this user of it alone; "" for people. All methods raise
    StoreError; then nothing was done, or it is not known and the lease will tell.
    """

    def __init__(self, session: Session, owner: str = "") -> None:
        self._session = session
        self._table = session.table
        self._mark = session.mark
        self._owner = owner
        # By the index on `hash`, whose collation is not touched, and no other: SQLite may take that
        # on `recipient`, and half of the table has the same.
        exact = f"= {self._mark}{session.exact}"
        self._which = (
            f"`hash` = {self._mark} AND COALESCE(`recipient`, '') {exact}"
            f" AND COALESCE(`to`, '') {exact}"
        )

    def busy(self, handlers: Sequence[str], now: float) -> list[str]:
        """Those of `handlers` for which something is due. now: Unix time in seconds."""
        # One look into the index for each, however much waits.
        one = (
            "EXISTS (SELECT 1 FROM `mail_outbox` WHERE `state` = 'waiting'"
            f" AND `handler` = {self._mark} AND `due` <= {self._mark})"
        )
        values = [value for name in handlers for value in (name, milliseconds(now))]
        (found,) = self._session.rows(f"SELECT {', '.join([one] * len(handlers))}", *values)
        return [name for name, is_due in zip(handlers, found, strict=True) if is_due]

    def take(self, handler: str, most: int, now: float, lease: float) -> list[Entry]:
        """Up to `most` entries that are due, oldest first; nobody else gets them for a while.

        now: Unix time in seconds. lease: seconds, from which on an entry is due again.
        """
        mark, until = self._mark, milliseconds(now + lease)
        sql = (
            f"SELECT `outbox_id` FROM `mail_outbox` WHERE `state` = 'waiting' AND"
            f" `handler` = {mark} AND `due` <= {mark} ORDER BY `due` LIMIT {most}"
        )
        ids = [number for (number,) in self._session.rows(sql, handler, milliseconds(now))]
        if not ids:
            return []
        marks = ", ".join([mark] * len(ids))
        # Of two who have found the same one the second changes nothing, as it is due no more.
        # By "= 'waiting'" SQLite would go through all that wait; for "<>" it has no index.
        self._session.execute(
            f"UPDATE `mail_outbox` SET `owner` = {mark}, `due` = {mark}"
            f" WHERE `outbox_id` IN ({marks}) AND `state` <> 'dead' AND `due` <= {mark}",
            self._owner,
            until,
            *ids,
            milliseconds(now),
        )
        return self._entries(
            f"`outbox_id` IN ({marks}) AND `owner` = {mark} AND `due` = {mark}",
            *ids,
            self._owner,
            until,
        )

    def mail(self, entry: Entry) -> tuple[StoredMail, bytes] | None:
        """The mail and its octets; None if it was deleted. Raises UnreadableError, too."""
        found = self._session.rows(
            f"SELECT `mail_id` FROM `{self._table}` WHERE {self._which} ORDER BY `mail_id` LIMIT 1",
            entry.hash,
            entry.recipient,
            entry.to,
        )
        return self._session.reader().mail(found[0][0]) if found else None

    def finish(self, entry: Entry, finished: Finished, now: float) -> None:
        """The handler is done with `entry`. now: Unix time in seconds."""
        mark = self._mark
        with self._session.transaction():
            if not self._session.execute(
                f"DELETE FROM `mail_outbox` WHERE `outbox_id` = {mark} AND `owner` = {mark}"
                f" AND `due` = {mark}",
                entry.outbox_id,
                self._owner,
                entry.due,
            ):
                return  # the lease was over: somebody else has it, or has done it
            for name, value in finished.notes:
                self._session.execute(
                    "INSERT INTO `mail_note` (`hash`, `recipient`, `handler`, `name`, `value`,"
                    f" `noted_at`) VALUES ({', '.join([mark] * 6)})",
                    entry.hash,
                    entry.recipient,
                    entry.handler,
                    _text(name[:_MAX_NAME]),
                    _text(value[:_MAX_NOTE]),
                    date_of(now),
                )
            if finished.discard:
                self._discard(entry)

    def _discard(self, entry: Entry) -> None:
        mark = self._mark
        sql = f"SELECT `mail_id` FROM `{self._table}` WHERE {self._which}"
        which = entry.hash, entry.recipient, entry.to
        for (mail_id,) in self._session.rows(sql, *which):
            for table in ("mail_attachment", self._table):
                self._session.execute(f"DELETE FROM `{table}` WHERE `mail_id` = {mark}", mail_id)

    def postpone(self, entry: Entry, due: float, reason: str) -> None:
        """Have `entry` come again, without a call. due: Unix time. reason: for people."""
        self._change(entry, WAITING, due, entry.calls, entry.tries, reason)

    def call_again(self, entry: Entry, due: float, tries: int, reason: str) -> None:
        """Have `entry` come again behind a call. tries: how many have failed by now."""
        self._change(entry, WAITING, due, entry.calls + 1, tries, reason)

    def bury(self, entry: Entry, reason: str) -> None:
        """Have `entry` wait for people, behind a call that failed."""
        due = entry.due / 1000
        self._change(entry, DEAD, due, entry.calls + 1, entry.tries + 1, reason)

    def _change(
        self, entry: Entry, state: str, due: float, calls: int, tries: int, reason: str
    ) -> None:
        mark = self._mark
        self._session.execute(
            f"UPDATE `mail_outbox` SET `state` = {mark}, `due` = {mark}, `calls` = {mark},"
            f" `tries` = {mark}, `reason` = {mark}, `owner` = ''"
            f" WHERE `outbox_id` = {mark} AND `owner` = {mark} AND `due` = {mark}",
            state,
            milliseconds(due),
            calls,
            tries,
            reason[:_MAX_REASON],
            entry.outbox_id,
            self._owner,
            entry.due,
        )

    def may_reply(self, entry: Entry, address: str, now: float, again_after: float) -> bool:
        """Whether the handler may reply to `address`; then it is noted that it does.

        again_after: seconds since the last reply. The same delivery may always: its first try may
        not have come through. Of two at the same moment one raises StoreError, or may not.
        """
        mark = self._mark
        address = address.lower()[:_MAX_REASON]
        with self._session.transaction():
            found = self._session.rows(
                "SELECT `delivery`, `replied_at` FROM `mail_reply`"
                f" WHERE `handler` = {mark} AND `address` = {mark}",
                entry.handler,
                address,
            )
            if not found:
                self._session.execute(
                    "INSERT INTO `mail_reply` (`handler`, `address`, `delivery`, `replied_at`)"
                    f" VALUES ({mark}, {mark}, {mark}, {mark})",
                    entry.handler,
                    address,
                    entry.delivery,
                    milliseconds(now),
                )
                return True
            delivery, replied_at = found[0]
            if delivery == entry.delivery:
                return True
            if replied_at > milliseconds(now - again_after):
                return False
            changed = self._session.execute(
                f"UPDATE `mail_reply` SET `delivery` = {mark}, `replied_at` = {mark}"
                f" WHERE `handler` = {mark} AND `address` = {mark} AND `replied_at` = {mark}",
                entry.delivery,
                milliseconds(now),
                entry.handler,
                address,
                replied_at,
            )
        return changed == 1

    # ---- leases ----------------------------------------------------------------------------------

    def owners(self, prefix: str, handlers: Sequence[str], now: float) -> list[str]:
        """Who has something of `handlers` in hand, of those whose name begins with `prefix`.

        prefix: letters and digits. now: Unix time in seconds.
        """
        marks = ", ".join([self._mark] * len(handlers))
        sql = (
            "SELECT DISTINCT `owner` FROM `mail_outbox` WHERE `state` = 'waiting'"
            f" AND `handler` IN ({marks}) AND `due` > {self._mark} AND `owner` LIKE {self._mark}"
        )
        found = self._session.rows(sql, *handlers, milliseconds(now), f"{prefix}%")
        return [owner for (owner,) in found]

    def give_back(self, owner: str, now: float, died: bool = False) -> int:
        """What `owner` had in hand is due; how many entries. now: Unix time in seconds.

        died: its process did. What it was at may have done that, so that counts as a call, and the
        next one is the later the more there were.
        """
        mark, pause, calls = self._mark, "0", ""
        if died:
            pause = "CASE WHEN `calls` < 60 THEN `calls` * `calls` * 1000 ELSE 3600000 END"
            calls = ", `calls` = `calls` + 1"
        return self._session.execute(
            f"UPDATE `mail_outbox` SET `due` = {mark} + {pause}, `owner` = ''{calls}"
            f" WHERE `owner` = {mark} AND `state` = 'waiting'",
            milliseconds(now),
            owner,
        )

    # ---- for people ------------------------------------------------------------------------------

    def entries(self, chosen: Chosen, limit: int) -> list[Entry]:
        """The oldest `limit` entries of those that are `chosen`."""
        where, values = self._where(chosen)
        return self._entries(where, *values, tail=f" LIMIT {limit}")

    def counts(self) -> list[tuple[str, str, int]]:
        """How many entries there are, by handler and state."""
        sql = "SELECT `handler`, `state`, COUNT(*) FROM `mail_outbox` GROUP BY `handler`, `state`"
        return [(str(name), str(state), int(n)) for name, state, n in self._session.rows(sql)]

    def retry(self, chosen: Chosen, now: float) -> int:
        """Have those that are `chosen`, and in nobody's hand, be due at once; how many."""
        where, values = self._where(chosen)
        return self._session.execute(
            f"UPDATE `mail_outbox` SET `state` = 'waiting', `due` = {self._mark}, `tries` = 0,"
            f" `owner` = '' WHERE `owner` = '' AND {where}",
            milliseconds(now),
            *values,
        )

    def drop(self, chosen: Chosen) -> int:
        """Delete those that are `chosen`, and in nobody's hand; how many. Their mail stays."""
        where, values = self._where(chosen)
        return self._session.execute(
            f"DELETE FROM `mail_outbox` WHERE `owner` = '' AND {where}", *values
        )

    def add(self, mail: StoredMail, handlers: Iterable[str], now: float) -> int:
        """Have `handlers` act, once more, on `mail`; how many. now: Unix time in seconds."""
        # Under an id of their own: who has heard of the first ones would leave these out.
        salt = f"{mail.hash}\0{now!r}"
        made = [Delivery(name, mail.recipient, mail.to) for name in handlers]
        for each in made:
            self._session.execute(
                INSERT % ", ".join([self._mark] * 6),
                delivery_id(salt, each),
                each.handler,
                mail.hash,
                each.recipient,
                each.to,
                milliseconds(now),
            )
        return len(made)

    def _where(self, chosen: Chosen) -> tuple[str, list[object]]:
        conditions = ["TRUE"]
        values: list[object] = []
        for name, value in (("handler", chosen.handler), ("state", chosen.state)):
            if value:
                conditions.append(f"`{name}` = {self._mark}")
                values.append(value)
        if chosen.ids:
            conditions.append(f"`outbox_id` IN ({', '.join([self._mark] * len(chosen.ids))})")
            values += chosen.ids
        return " AND ".join(conditions), values

    def _entries(self, where: str, *values: object, tail: str = "") -> list[Entry]:
        sql = f"SELECT {_ENTRY} FROM `mail_outbox` WHERE {where} ORDER BY `outbox_id`{tail}"
        return [Entry(*row) for row in self._session.rows(sql, *values)]

    # ---- what nobody needs any more --------------------------------------------------------------

    def forget_replies(self, before: float) -> None:
        """Forget whom handlers have replied to before that Unix time."""
        sql = f"DELETE FROM `mail_reply` WHERE `replied_at` < {self._mark}"
        self._session.execute(sql, milliseconds(before))

    def sweep(self, table: str, after: int) -> int | None:
        """Delete rows of `mail_note`, or dead ones of `mail_outbox`, whose mail was deleted.

        A few of those behind the row `after`; up to which row, None where no more are behind it.
        """
        number = "note_id" if table == "mail_note" else "outbox_id"
        exact = self._session.exact
        dead = "" if table == "mail_note" else " AND `state` = 'dead'"
        found = self._session.rows(
            f"SELECT `{number}`, EXISTS (SELECT 1 FROM `{self._table}` AS m WHERE m.`hash` ="
            f" o.`hash` AND COALESCE(m.`recipient`, '') = o.`recipient`{exact}) FROM `{table}` AS o"
            f" WHERE `{number}` > {self._mark}{dead} ORDER BY `{number}` LIMIT {_SWEPT}",
            after,
        )
        gone = [row for row, is_there in found if not is_there]
        if gone:
            marks = ", ".join([self._mark] * len(gone))
            self._session.execute(f"DELETE FROM `{table}` WHERE `{number}` IN ({marks})", *gone)
        return int(found[-1][0]) if len(found) == _SWEPT else None
