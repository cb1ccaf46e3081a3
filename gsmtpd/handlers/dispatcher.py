"""Who sees to it that each handler gets its mail? One process, with a thread for each runner.

A thread takes entries out of the outbox when they are due, has its runner act on each, and writes
down what has become of it. A handler that is slow or hangs keeps its own mail waiting, and nobody
else's.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from gsmtpd.handlers.hand import Hand, Plan
from gsmtpd.metrics import Counter
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.outbox import WAITING, Outbox, Session

_log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks for what is due by now, or comes from another machine
_REST = 0.02  # seconds between two looks at least: a busy gsmtpd commits hundreds of times a second
_AFTER_TROUBLE = 5.0  # seconds
_GIVE_BACK_EACH = 3.0
_SWEEP_EACH = 3600.0
_SWEEP_PAUSE = 0.2  # seconds between two steps
_STOP_WITHIN = 2.0  # seconds for threads whose runner was ended
_FORGOTTEN_AFTER = 86400.0  # seconds behind a reply
_SWEPT = ("mail_note", "mail_outbox")


class Shared(NamedTuple):
    """What the process shares with others. row: of the counters. owed: the eventfd, -1 for none."""

    row: memoryview[int]
    owed: int


class Dispatcher:
    """Runs `plans`. Start it behind the fork. It can be served by gsmtpd.worker.

    open_session: makes a connection to the outbox for one thread. owner: see Outbox; up to 29
    characters, behind which each thread has a number. It begins with `place`, by which `is_gone`
    tells whether such a one is dead.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        open_session: Callable[[], Session],
        owner: str,
        place: str,
        is_gone: Callable[[str], bool],
        shared: Shared,
    ) -> None:
        self._stopped = threading.Event()
        self._due = threading.Event()
        self._lock = threading.Lock()
        self._place = place
        self._is_gone = is_gone
        self._shared = shared
        self._session = open_session()
        self._outbox = Outbox(self._session, owner)
        self._swept_at = time.monotonic() - random.uniform(0, _SWEEP_EACH)
        self._began = False
        self._give_back_at = 0.0  # monotonic seconds
        self._names = [plan.task.name for plan in plans]
        self._hands = [
            # Of two with one name each would take what the other has, at the same millisecond.
            Hand(plan, open_session(), f"{owner}.{number}", self._stopped, self._count, first)
            for number, (plan, first) in enumerate(
                (plan, n == 0) for plan in plans for n in range(plan.processes)
            )
        ]
        self._threads = [
            threading.Thread(target=self._watch, name="handlers", daemon=True),
            threading.Thread(target=self._look_out, name="outbox", daemon=True),
        ]

    def _count(self, counter: Counter) -> None:
        with self._lock:
            self._shared.row[counter] += 1

    # ---- as a worker runs it ---------------------------------------------------------------------

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()
        for hand in self._hands:
            hand.start()

    def retire(self) -> None:
        """Take no more; what is being done is finished."""
        self._stopped.set()
        self._due.set()
        for hand in self._hands:
            hand.wake()

    @property
    def idle(self) -> bool:
        """Whether all has ended behind `retire`."""
        return self._stopped.is_set() and not any(hand.is_alive() for hand in self._hands)

    def stop(self) -> None:
        """End now. What a handler is at is cut short, and handed over again later."""
        self.retire()
        for hand in self._hands:
            hand.cut_short()
        deadline = time.monotonic() + _STOP_WITHIN
        for hand in self._hands:
            hand.join(max(0.0, deadline - time.monotonic()))

    def dump(self) -> list[str]:
        """What it does, for the log."""
        return [str(hand) for hand in self._hands]

    # ---- threads ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for workers to say that something is owed; beat."""
        poll = select.poll()
        if self._shared.owed >= 0:
            poll.register(self._shared.owed, select.POLLIN)
        while True:
            if poll.poll(LOOK * 1000):
                with suppress(BlockingIOError):  # another dispatcher, around a reload, was faster
                    os.eventfd_read(self._shared.owed)
            self._shared.row[Counter.BEATS] += 1
            self._due.set()

    def _look_out(self) -> None:
        """Wake those for whom something is due."""
        while not self._stopped.is_set():
            self._due.wait()
            self._due.clear()
            try:
                if not self._began:
                    self._begin()
                self._give_back()
                busy = self._outbox.busy(self._names, time.time())
                for hand in self._hands:
                    if hand.name in busy:
                        hand.wake()
                self._sweep()
                self._stopped.wait(_REST)
            except StoreError:
                self._stopped.wait(_AFTER_TROUBLE)  # each hand says so
            except Exception:
                _log.exception("handlers: unexpected trouble")
                self._stopped.wait(_AFTER_TROUBLE)
        self._session.close()

    def _begin(self) -> None:
        """See what those before have left that nobody does any more."""
        for name, state, number in self._outbox.counts():
            if state == WAITING and name not in self._names:
                _log.warning(
                    "handlers: %d mails wait for %s, which is not configured any more; see"
                    " gsmtpctl outbox",
                    number,
                    name,
                )
        self._began = True

    def _give_back(self) -> None:
        """Have what a process that has died had in hand be due at once."""
        if time.monotonic() < self._give_back_at:
            return
        self._give_back_at = time.monotonic() + _GIVE_BACK_EACH
        now = time.time()
        gone = filter(self._is_gone, self._outbox.owners(self._place, self._names, now))
        if entries := sum(self._outbox.give_back(owner, now, died=True) for owner in gone):
            _log.warning(
                "handlers: a process has died with %d mails in hand, which are handed over again",
                entries,
            )

    def _sweep(self) -> None:
        """Delete, now and then, what nobody needs any more."""
        if time.monotonic() - self._swept_at < _SWEEP_EACH:
            return
        self._swept_at = time.monotonic()
        self._outbox.forget_replies(time.time() - _FORGOTTEN_AFTER)
        for table in _SWEPT:
            after: int | None = 0
            while after is not None and not self._stopped.is_set():
                after = self._outbox.sweep(table, after)
                self._stopped.wait(_SWEEP_PAUSE)
