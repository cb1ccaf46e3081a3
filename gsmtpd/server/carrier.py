"""How does an SMTP thread store mail by itself? It carries batches over a lane of the store.

No other thread is woken and waited for, and none takes Python's lock. The store's writer threads
are there for all that a lane does not do, and for what goes wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING

from gsmtpd.storage.base import Lane, OpenLane, Outcome, StoreError
from gsmtpd.storage.writer import BUSY_FOR, GATHER_FROM, Batch, GroupCommitWriter, rows_of

if TYPE_CHECKING:
    from gsmtpd.server.pool import SMTPThread

_log = logging.getLogger(__name__)

NEVER = float("inf")
# A second lane begins where the first is busy and so many messages wait. With the database 5 ms
# away that is 1.3 times the messages a second; here 1.02 to 1.2 times, for 5 % more CPU.
SECOND_LANE_FROM = 8
# Half of a writer thread's: nobody is woken for a batch, so smaller ones cost less. Beside 2 ms
# that is 3 to 9 % more messages a second at 64 sessions, and 3 to 4 % less CPU.
GATHER = 0.001  # seconds


class Carrier:
    """Carries what waits in `writer` over the lane that `open_lane` opens, in an SMTP thread.

    busy: whether a batch is on its way. due: when `carry` should be called at the latest, in the
    thread's monotonic seconds.
    """

    def __init__(self, writer: GroupCommitWriter, open_lane: OpenLane) -> None:
        self._writer = writer
        self._open_lane = open_lane
        self._lane: Lane | None = None
        self._batch: Batch = []
        self._interest = 0
        self._opening = False
        self._busy_until = 0.0
        self._began = 0.0  # when the batch was begun with, in monotonic seconds
        self.due = NEVER
        self._thread: SMTPThread

    def start(self, thread: SMTPThread) -> None:
        """Carry in `thread`. Call it there, or before it runs."""
        self._thread = thread
        self._open()

    def _open(self) -> None:
        """Have a lane opened, by a thread that may wait."""
        if self._opening:
            return
        try:
            threading.Thread(target=self._connect, name="lane", daemon=True).start()
            self._opening = True
        except RuntimeError:
            pass  # no thread is to be had now

    def _connect(self) -> None:
        lane: Lane | None = None
        try:
            lane = self._open_lane()
        except StoreError:
            pass  # the writer threads say so
        except Exception:
            _log.exception("store: unexpected trouble while a lane was opened")
        else:
            if lane is None:
                return  # and never will be: `_opening` stays
        with suppress(OSError):  # the thread has ended meanwhile
            self._thread.call(partial(self._opened, lane))

    def _opened(self, lane: Lane | None) -> None:
        self._opening = False
        if lane is not None:
            self._lane = lane
            self._watch(lane, EPOLLIN)
            self._writer.lane_opened(self._thread.wake, lane.takes)

    def _watch(self, lane: Lane, interest: int) -> None:
        if interest != self._interest:
            self._thread.watch_lane(self, lane.fileno(), self._interest, interest)
            self._interest = interest

    @property
    def busy(self) -> bool:
        return bool(self._batch)

    @property
    def idle(self) -> bool:
        """Whether it could carry something now."""
        return self._lane is not None and not self._batch

    def carry(self, least: int) -> None:
        """Begin with the next batch, if `least` messages wait and it is time."""
        if self._lane is None or self._batch or self._writer.claimable < least:
            self.due = NEVER
            return
        now = self._thread.now
        if self.due == NEVER and now < self._busy_until:
            self.due = now + GATHER
        if self.due == NEVER or self.due <= now:
            self.due = NEVER
            self._batch = self._writer.claim(least)
            if self._batch:
                try:
                    self._begin(self._lane)
                except Exception as error:
                    self._lose(error)

    def _begin(self, lane: Lane) -> None:
        if not lane.fits():
            raise ConnectionError("it leads elsewhere now")
        for_others = [each for each in self._batch if not lane.takes(each[1])]
        if for_others:
            self._batch = [each for each in self._batch if lane.takes(each[1])]
            self._writer.leave(for_others)
        if self._batch:
            self._began = time.monotonic()
            lane.write([letter for _, letter in self._batch])
            self._watch(lane, EPOLLOUT if lane.unsent else EPOLLIN)
        else:
            self._writer.release()

    def ready(self) -> None:
        """The lane can be heard, or takes more."""
        lane = self._lane
        if lane is None:
            return
        try:
            if not lane.go_on():
                self._watch(lane, EPOLLOUT if lane.unsent else EPOLLIN)
                return
            lane.done()
        except Exception as error:
            self._lose(error)
        else:
            self._committed()

    def _committed(self) -> None:
        batch, self._batch = self._batch, []
        self._writer.release(rows_of(batch), time.monotonic() - self._began)
        for job, _ in batch:
            job.outcome = Outcome.STORED
            self._thread.finished(job)
        if len(batch) >= GATHER_FROM:
            self._busy_until = self._thread.now + BUSY_FOR

    def look(self) -> None:
        """About once a second: whether the lane is well, or there may be one again."""
        lane = self._lane
        if lane is None:
            self._open()
            return
        try:
            lane.check_time(self._thread.now)
            if not self._batch and not lane.fits():
                raise ConnectionError("it leads elsewhere now")
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Do without the lane until another is open."""
        assert self._lane is not None
        self._watch(self._lane, 0)
        in_doubt = self._lane.give_up(error)
        self._lane, self.due = None, NEVER
        self._writer.lane_lost()
        batch, self._batch = self._batch, []
        if batch:
            self._writer.leave(batch, in_doubt)
            self._writer.release()

    def close(self) -> None:
        """Close the lane. The thread has ended."""
        if self._lane is not None:
            self._lane.close()


def carry(carriers: Sequence[Carrier]) -> None:
    """Have what waits carried by one of `carriers`, by a further one only if it is much."""
    least = SECOND_LANE_FROM if any(carrier.busy for carrier in carriers) else 1
    chosen = next((carrier for carrier in carriers if carrier.idle), None)
    for carrier in carriers:
        if carrier is chosen:
            carrier.carry(least)
        else:
            carrier.due = NEVER  # what it gathered for is the other's: it would be due for ever
