"""How does mail get out of the spool? In the order it came, once a database host can be written to.

Each worker has a drainer, in a thread of its own; one at a time works, over all processes. Before a
message is stored the database is asked whether it has it: a COMMIT whose answer was lost, or a
crash between COMMIT and removal, must not store it twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gsmtpd.complaints import Complaints
from gsmtpd.message.row import Message
from gsmtpd.storage.base import Duplicate, Letter, Outcome, Result, Store, StoreError
from gsmtpd.storage.spool import Spool, Waiting
from gsmtpd.storage.spool_facts import UnknownFactsError, message_of

_log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks for something to do
PAUSE_AT_MOST = 5.0  # seconds behind a database that was not there, doubled from LOOK
REFUSED_AT_MOST = 30.0  # seconds behind one that is there and takes nothing, as without its table
BATCH = 100  # messages in one transaction
BATCH_OCTETS = 8 * 1024 * 1024
QUICK, SLOW = 1.0, 5.0  # seconds for a batch: behind them the next is larger, or smaller
TRIES = 5  # of a message that is refused while others are stored, until it is set aside
ASIDE_FOR = 3600.0  # seconds until one that is set aside is tried again
_RETIRE_WITHIN = 1.0  # seconds
_COMPLAIN_EACH = 60.0  # seconds


class Database(Protocol):
    """What can be asked of the database that the messages go into."""

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the message `ids` that it has, or ever will from what was sent before.

        Raises StoreError.
        """

    def can_write(self) -> bool:
        """Whether some host is believed to take mail now. At once, without asking any."""


_Held = tuple[Waiting, Letter]


class _Tried(NamedTuple):
    """What became of some messages. refused: by a database that is there.

    all: no other was left over, as by a database that went away or is full.
    """

    stored: list[Waiting]
    refused: list[Waiting]
    all: bool


class Drainer:
    """Moves what is in `spool` into `store`, whose rows are in `database`. A chore, see Upkeep.

    spool: of the drainer's own. wall: Unix time.
    """

    name = "spool"

    def __init__(
        self,
        spool: Spool,
        store: Store,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._spool = spool
        self._store = store
        self._database = database
        self._clock = clock
        self._wall = wall
        self._made_at = wall()  # what was set aside before is tried once more
        self._busy = threading.Lock()
        self._retired = False
        self._pause = LOOK
        self._began: float | None = None  # monotonic seconds; None while it does not drain
        self._stored = 0  # messages since then
        self._refused = False  # whether the last batch held one that is refused alone
        self._most = BATCH  # messages in the next batch
        self._suspect = 0  # the seq of one that, alone, took the database too long
        self._complaints = Complaints("spool")
        self._complained_at = clock()

    def step(self) -> float:
        """Store the next messages, if any; how many seconds until the next call."""
        with self._busy:
            if self._retired:
                return LOOK
            try:
                if not self._may_drain():
                    self._end()
                    return LOOK
                self._begin()
                moved = self.drain_once()
            except StoreError as error:
                self._complain(error)
                moved = self._refused = False
            except Exception:
                _log.exception("spool: unexpected trouble")
                moved = self._refused = False
        if moved:
            self._pause = LOOK
            return LOOK if self._refused else 0.0
        self._end()
        most = REFUSED_AT_MOST if self._refused else PAUSE_AT_MOST
        pause, self._pause = self._pause, min(self._pause * 2, most)
        return pause

    def drain_once(self) -> bool:
        """Store one batch; whether that brought anything forward. Raises StoreError."""
        self._refused = False
        batch = self._spool.oldest(self._most, BATCH_OCTETS)
        if not batch:
            return self._try_one_aside()
        if batch[0].seq == self._suspect:
            return self._pass_by(batch[0])
        left = self._readable(self._without_known(batch))
        began = self._clock()
        tried = self._write(left)
        self._adapt(left, tried, self._clock() - began)
        if tried.refused and tried.all and not tried.stored:
            tried = self._each_alone(left)
        self._remove(tried.stored)
        self._refused = bool(tried.refused)
        if tried.stored and tried.refused:
            # Others were stored meanwhile, so it is the message.
            self._spool.refused(tried.refused, TRIES, self._wall())
            self._tell(tried.refused)
        return tried.all and (bool(tried.stored) or len(left) < len(batch))

    def _adapt(self, left: Sequence[_Held], tried: _Tried, spent: float) -> None:
        """Have the next batch be one that a slow database can store in time.

        spent: seconds in which `left` was `tried`.
        """
        if tried.all and spent < QUICK:
            self._most = min(BATCH, self._most * 2)
        elif spent > SLOW or not (tried.all or tried.stored):
            self._most = max(1, len(left) // 2)
        if _is_too_slow(tried, spent) and len(left) == 1:
            self._suspect = left[0][0].seq

    def _pass_by(self, suspect: Waiting) -> bool:
        """Store one behind `suspect`, if there is any, as the database may take that in time."""
        self._suspect = 0
        other = self._spool.any_behind(suspect.seq)
        if other is None:
            return True
        left = self._without_known([other])
        tried = self._write(self._readable(left))
        self._remove(tried.stored)
        if tried.stored:
            self._spool.refused([suspect], TRIES, self._wall())
            self._tell([suspect])
            self._refused = True
        return tried.all

    def retire(self) -> None:
        """Store nothing more. What is on its way is waited for, but not for ever."""
        self._retired = True
        if self._busy.acquire(timeout=_RETIRE_WITHIN):
            self._busy.release()

    def close(self) -> None:
        """Leave the rest to others."""
        self._spool.close()
        self._store.close()

    def _may_drain(self) -> bool:
        return (
            self._spool.due(*self._aside_between())
            and self._database.can_write()
            and self._spool.lock()
        )

    def _aside_between(self) -> tuple[float, float]:
        """Unix times: what was tried between them, and refused, is not tried again yet."""
        now = self._wall()
        self._made_at = min(self._made_at, now)  # else a clock that was set back lets it try on
        return max(self._made_at, now - ASIDE_FOR), now

    def _without_known(self, batch: list[Waiting]) -> list[Waiting]:
        """Those that the database does not have; the others are done with."""
        known = self._database.known([each.id for each in batch])
        self._remove([each for each in batch if each.id in known])
        return [each for each in batch if each.id not in known]

    def _readable(self, batch: list[Waiting]) -> list[_Held]:
        """Those that can be read; the others are set aside, as no database can help them."""
        held: list[_Held] = []
        for each in batch:
            try:
                held.append((each, self._store.read(_message(each))))
            except Exception as error:
                known = isinstance(error, UnknownFactsError)
                _log.error(
                    "spool: message %s cannot be read, and is set aside: %s",
                    each.id,
                    error,
                    exc_info=None if known else error,
                )
                self._spool.refused([each], 0, self._wall())
        return held

    def _write(self, held: Sequence[_Held]) -> _Tried:
        """Store `held` in one transaction."""
        if not held:
            return _Tried([], [], True)
        results: Sequence[Result]
        try:
            results = self._store.write([letter for _, letter in held])
        except Exception:
            if not self._retired:  # else the store was closed meanwhile
                _log.exception("spool: unexpected trouble with %d messages", len(held))
            results = [Outcome.TROUBLE] * len(held)
        pairs = [(each, result) for (each, _), result in zip(held, results, strict=True)]
        stored = [each for each, result in pairs if _is_stored(result)]
        refused = [each for each, result in pairs if result is Outcome.TROUBLE]
        return _Tried(stored, refused, len(stored) + len(refused) == len(pairs))

    def _each_alone(self, held: Sequence[_Held]) -> _Tried:
        """Store `held`, which was refused, and one of those behind it.

        If none of them is taken it is the database's trouble, for all that can be told.
        """
        other = self._spool.any_behind(held[-1][0].seq)
        behind = self._readable(self._without_known([other])) if other is not None else []
        stored: list[Waiting] = []
        refused: list[Waiting] = []
        if len(held) == 1:
            refused, held = [held[0][0]], []
        else:
            # A COMMIT whose answer was lost may have been carried out since.
            left = self._without_known([each for each, _ in held])
            held = [each for each in held if each[0] in left]
        for each in [*held, *behind]:
            tried = self._write([each])
            stored += tried.stored
            refused += tried.refused
            if self._retired or not tried.all:
                return _Tried(stored, refused, False)
        return _Tried(stored, refused, True)

    def _try_one_aside(self) -> bool:
        one = self._spool.set_aside(*self._aside_between())
        if one is None:
            return False
        left = self._without_known([one])
        began = self._clock()
        tried = self._write(self._readable(left))
        self._remove(tried.stored)
        too_slow = _is_too_slow(tried, self._clock() - began)
        self._spool.refused(left if too_slow else tried.refused, TRIES, self._wall())
        self._refused = too_slow or bool(tried.refused)
        return tried.all

    def _remove(self, done: Sequence[Waiting]) -> None:
        if done:
            self._spool.remove(done)
            self._stored += len(done)

    def _tell(self, refused: Iterable[Waiting]) -> None:
        for each in refused:
            if each.tries + 1 == TRIES:
                _log.error(
                    "spool: message %s is refused by the database, and set aside; it is tried"
                    " again each hour",
                    each.id,
                )

    def _begin(self) -> None:
        if self._began is None:
            self._began = self._clock()
            self._stored = 0

    def _end(self) -> None:
        """Say what was done, and let others work."""
        if self._began is None:
            return
        spent, self._began = self._clock() - self._began, None
        try:
            if self._stored:
                left = self._spool.figures()
                _log.warning(
                    "spool: %d messages were stored in %.1f s; %d wait, %d are set aside",
                    self._stored,
                    spent,
                    left.messages - left.aside,
                    left.aside,
                )
                self._spool.shrink()
                self._complaints.over()
        except StoreError as error:
            self._complain(error)
        self._spool.unlock()

    def _complain(self, error: StoreError) -> None:
        """Log `error`, and the same again each minute: acknowledged mail is waiting."""
        now = self._clock()
        if now - self._complained_at >= _COMPLAIN_EACH:
            self._complained_at = now
            self._complaints = Complaints("spool")
        self._complaints.say(f"nothing is taken out of it: {error}")


def _message(waiting: Waiting) -> Message:
    return message_of(waiting.id, waiting.received_at, waiting.facts, waiting.content)


def _is_too_slow(tried: _Tried, spent: float) -> bool:
    """Whether the database was given up for taking too long, and not for being away."""
    return not tried.all and not tried.stored and spent > SLOW


def _is_stored(result: Result) -> bool:
    return result is Outcome.STORED or isinstance(result, Duplicate)
