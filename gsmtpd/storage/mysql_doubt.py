"""Was a COMMIT carried out whose answer was lost? How a database is asked, and what is believed.

InnoDB shows a row to others as soon as it is committed in memory, before the log is on the disk:
where the disk hangs, a power cut may take back what was seen. So a row counts only once no COMMIT
that was under way when it was seen is still under way.

All on one connection of the driver itself: DBUtils would connect again behind our back, perhaps to
another server, and half of the answer would be that one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pymysql

from gsmtpd.storage.base import StoreError

_LOOKS = 40  # whether a killed session has ended, or those in a COMMIT are through with it
_BETWEEN = 0.05  # seconds between two looks
_LOCK_PATIENCE = 5  # seconds until a session that is killed has ended
_DOUBT_FOR = 120.0  # seconds until a COMMIT that was sent is taken for lost
# Without the right PROCESS these are those of the same account: all that gsmtpd has.
_COMMITTING = "SELECT id FROM information_schema.processlist WHERE info = 'COMMIT'"

Look = Callable[[Any], Any]


class Session(NamedTuple):
    """A connection as the server knows it. since: monotonic seconds."""

    server: str
    number: int
    since: float


class Ambiguous(Exception):
    """COMMIT was sent on `session`, and whether it was carried out is not known."""

    def __init__(self, error: Exception, session: Session) -> None:
        super().__init__(error)
        self.error = error
        self.session = session


class NotSafeError(StoreError):
    """What is to be seen in a table may be gone behind a power cut."""

    def __init__(self) -> None:
        super().__init__("a COMMIT takes longer than 2 s, so what is seen may not be synced yet")


class LateError(StoreError):
    """A COMMIT may still arrive at the database, and store what it does not have now."""

    def __init__(self, server: str) -> None:
        super().__init__(f"a COMMIT may still be on its way to {server}, which cannot be asked")


class Doubts:
    """The sessions whose COMMIT is in doubt, and what is stored of its mail in `table`.

    ask: calls a function with a driver's connection, again with a fresh one if that was lost.
    """

    def __init__(self, table: str, ask: Callable[[Look], Any]) -> None:
        self._table = table
        self._ask = ask
        self._open: dict[Session, float] = {}  # since when, in monotonic seconds

    def look_up(self, ids: Sequence[str], session: Session) -> tuple[bool, set[str]]:
        """Whether `session` is over for good, and those of the message `ids` that are stored.

        Raises StoreError or pymysql.err.Error; then nothing is known.
        """
        now = time.monotonic()
        self._open = {each: at for each, at in self._open.items() if now - at < _DOUBT_FOR}
        self._open[session] = now
        over, stored = self._ask(
            lambda used: (end(used, session), stored_ids(used, self._table, ids))
        )
        if over:
            self._open.pop(session, None)
        return over, stored

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the message `ids` that are stored, once nothing is in doubt any more.

        Raises StoreError or pymysql.err.Error.
        """
        found: set[str] = self._ask(lambda used: self._known(used, ids))
        return found

    def _known(self, used: Any, ids: Sequence[str]) -> set[str]:
        for session, since in [*self._open.items()]:
            if not end(used, session) and time.monotonic() - since < _DOUBT_FOR:
                raise LateError(session.server)
            self._open.pop(session, None)
        return stored_ids(used, self._table, ids)


def session_of(used: Any) -> Session:
    """The session that the driver's connection `used` is."""
    return Session(used.server, used.thread_id(), used.since)


def end(used: Any, session: Session) -> bool:
    """Kill `session` over `used`, that its COMMIT may not arrive late. True once it is over.

    Raises pymysql.err.Error.
    """
    if used.server != session.server:
        return False  # here its number is somebody else's
    with used.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Uptime'")
        if int(cursor.fetchone()[1]) < time.monotonic() - session.since - 1:
            return True  # the server was started since, so numbers are others' now
        for _ in range(_LOOKS):
            cursor.execute(
                "SELECT 1 FROM information_schema.processlist WHERE id = %s", (session.number,)
            )
            if cursor.fetchone() is None:
                return True
            with suppress(pymysql.MySQLError):
                cursor.execute("KILL CONNECTION %s", (session.number,))
            time.sleep(_BETWEEN)
    return False


def take_lock(used: Any, name: str) -> None:
    """Hold the lock `name` until `used` is closed, and end the session that holds it now.

    What that has sent is carried out by then, or never will be. Raises pymysql.err.Error.
    """
    with used.cursor() as cursor:
        for patience in (1, _LOCK_PATIENCE):
            cursor.execute("SELECT GET_LOCK(%s, %s)", (name, patience))
            if cursor.fetchone()[0] != 0:
                return  # also a server that has no such locks, and says NULL
            cursor.execute("SELECT IS_USED_LOCK(%s)", (name,))
            (holder,) = cursor.fetchone()
            with suppress(pymysql.MySQLError):
                cursor.execute("KILL CONNECTION %s", (holder,))
    raise pymysql.err.OperationalError(2013, "an earlier session is not over yet")


def is_safe(used: Any) -> bool:
    """Whether all rows that were seen over `used` before are synced. Raises pymysql.err.Error."""
    pending: set[int] | None = None
    with used.cursor() as cursor:
        for _ in range(_LOOKS):
            cursor.execute(_COMMITTING)
            committing = {number for (number,) in cursor.fetchall()}
            pending = committing if pending is None else pending & committing
            if not pending:
                return True
            time.sleep(_BETWEEN)
    return False


def stored_ids(used: Any, table: str, ids: Sequence[str]) -> set[str]:
    """Those of the message `ids` that `table` has, on whichever node of a cluster they came.

    Raises NotSafeError where they may not be synced, and pymysql.err.Error.
    """
    found = _seen_ids(used, table, ids)
    if found and not is_safe(used):
        raise NotSafeError
    return found


def _seen_ids(used: Any, table: str, ids: Sequence[str]) -> set[str]:
    marks = ", ".join(["%s"] * len(ids))
    with used.cursor() as cursor:
        _wait_for_others(cursor, "1")
        try:
            cursor.execute(f"SELECT DISTINCT `hash` FROM `{table}` WHERE `hash` IN ({marks})", ids)
            return {row[0] for row in cursor.fetchall()}
        finally:
            _wait_for_others(cursor, "DEFAULT")


def _wait_for_others(cursor: Any, causality: str) -> None:
    """Have reads wait for what other nodes of a Galera cluster have committed; DEFAULT: or not."""
    with suppress(pymysql.MySQLError):  # a server that has no such variable
        cursor.execute(f"SET SESSION wsrep_sync_wait = {causality}")
