"""How do many messages share one commit? Group commit by a bounded set of writer threads.

A writer takes everything that waits and stores it in one transaction; what arrives meanwhile is
the next batch. A lone message is written at once: only behind a batch that shows load does a writer
pause for more. No lock is held while writing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from gsmtpd.storage.base import Letter, Outcome, Store, StoreError
from gsmtpd.storage.job import Job, Meter

_log = logging.getLogger(__name__)

MAX_BATCH_ROWS = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
# A second writer starts only where the first left this many waiting: two half batches cost the
# database twice. What waits behind a stuck commit is taken by `poke`, within a second.
SECOND_WRITER_FROM = MAX_BATCH_ROWS
# At a time, where there are lanes: a lane beside others only for what is worth it, see claim.
WRITING_AT_MOST = 2
# Behind a batch of this many messages a writer gathers for a moment before the next. At 64 sessions
# that is 5 to 15 % less CPU here, about a tenth less in MariaDB, and as many messages a second.
# Below it nothing ever waits. (PostgreSQL has this as commit_delay and commit_siblings.)
GATHER_FROM = 5
GATHER = 0.002  # seconds
BUSY_FOR = 0.01  # seconds behind such a batch; a message that comes later is written at once
# Octets of a message, times its copies, up to which its rows are made by the thread that received
# it, while its bytes are in that core's cache: 10 to 30 us a message less than in a writer thread.
ENCODE_AT_ONCE = 65536
# Octets of a message up to which that thread reads it, too. Bigger ones are read, and compressed,
# by threads of their own, so that neither clients nor a batch of others wait for them: 64 KiB of
# hostile HTML take 20 ms, and hundreds of them may come at once.
READ_AT_ONCE = 8192
READERS = 2  # such threads; zlib and SHA-256 let others run meanwhile
GIVE_UP_AFTER = 30.0  # seconds from the final dot to 451 (RFC 5321 4.5.3.2.6 lets clients wait 600)
_PREPARE_AGAIN = 2.0  # seconds between two looks for a store that is away


Batch = list[tuple[Job, Letter]]
Takes = Callable[[Letter], bool]


class GroupCommitWriter:
    """Writes messages to a store from `threads` threads. Start it behind the fork.

    meter: told of each batch that was stored, and about once a second how many wait.
    """

    def __init__(
        self,
        store: Store,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
        meter: Meter | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._meter = meter
        self._unread: SimpleQueue[Job | None] = SimpleQueue()
        self._reading = 0  # jobs that are in `_unread`, or taken from it and not read yet
        self._waiting: deque[tuple[Job, Letter]] = deque()
        self._apart: deque[tuple[Job, Letter]] = deque()  # what no lane takes
        self._changed = threading.Condition(threading.Lock())
        self._writing = 0
        # Wakes the thread that takes batches with `claim`; None: writer threads do it all.
        self._wake_carrier: Callable[[], None] | None = None
        self._lane_takes: Takes = _anything
        self._lanes = 0  # that it has
        self._claimed = 0  # batches that it has and that are not released
        # What it left to writer threads, and whether that is in doubt.
        self._given_up: deque[tuple[Batch, bool]] = deque()
        self._busy_until = 0.0  # monotonic seconds
        self._called = False  # a writer was woken and has not looked yet
        self._helped = False  # a further writer may take what waits, however little
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, name=f"writer-{i}", args=(i,), daemon=True)
            for i in range(threads)
        ]
        self._readers = [
            threading.Thread(target=self._read, name=f"reader-{i}", daemon=True)
            for i in range(READERS)
        ]

    def start(self) -> None:
        """Start all threads; the first writer looks at the store before it writes."""
        for thread in (*self._threads, *self._readers):
            thread.start()

    def submit(self, *jobs: Job) -> None:
        """Queue `jobs`; the owner of each gets it back with its outcome."""
        for job in jobs:
            if len(job.message.content) > READ_AT_ONCE:
                with self._changed:
                    self._reading += 1
                self._unread.put(job)
            else:
                self._encode(job)
        self._call()

    def _encode(self, job: Job) -> None:
        """As `_enqueue`; what that cannot do costs this message alone."""
        try:
            self._enqueue(job)
        except Exception:
            _log.exception("store: unexpected trouble with one message")
            job.outcome = Outcome.TROUBLE
            _hand_back([job])

    def _enqueue(self, job: Job) -> None:
        """Make what can be made before the transaction, and have it wait for a writer."""
        message = job.message
        at_once = len(message.content) * message.envelope.copies <= ENCODE_AT_ONCE
        letter = self._store.encode(message) if at_once else self._store.read(message)
        # Apart, what no lane takes gathers for a batch, too. Both appends are atomic.
        (self._waiting if self._lane_takes(letter) else self._apart).append((job, letter))

    def _call(self) -> None:
        """Wake a writer, if that is worth it: a busy one looks again before it sleeps."""
        waiting = len(self._waiting) + len(self._apart)
        if waiting >= SECOND_WRITER_FROM or (not self._called and self._is_due()):
            with self._changed:
                self._called = True
                self._changed.notify()

    def _is_due(self) -> bool:
        """Whether something waits for a writer thread, and none is at work."""
        if self._wake_carrier is None:
            return not self._writing and bool(self._waiting or self._apart)
        return bool(self._apart) and self._writing == self._claimed

    def claim(self, least: int) -> Batch:
        """What a lane shall write: what waits, if that is `least` and few write; for its thread.

        Followed by `release`, but where it is nothing.
        """
        if len(self._waiting) < least:
            return []
        with self._changed:
            # One lane may always: writers may be stuck behind what only they write to.
            if self._writing >= WRITING_AT_MOST and self._claimed and not self._helped:
                return []
            self._helped = False
            self._writing += 1
            self._claimed += 1
        batch = self._take([self._waiting])
        if not batch:
            self.release()
        return batch

    def release(self, rows: int = 0, seconds: float = 0.0) -> None:
        """Nothing of a batch that was claimed is its lane's any more.

        rows: that its lane has stored, in so many `seconds`.
        """
        with self._changed:
            if rows and self._meter is not None:
                self._meter.stored(rows, seconds)
            self._writing -= 1
            self._claimed -= 1
            if self._given_up or self._stopped:
                self._changed.notify_all()

    def leave(self, batch: Batch, in_doubt: bool = False) -> None:
        """Have a writer thread store what a lane has claimed and not stored.

        in_doubt: it may be stored. Then the store is to have the batch as it is, at once.
        """
        with self._changed:
            self._given_up.append((batch, in_doubt))
            self._changed.notify()

    def lane_opened(self, wake: Callable[[], None], takes: Takes) -> None:
        """There is a lane (more). wake: has its thread `claim`. takes: see Lane."""
        self._lanes += 1
        self._lane_takes = takes
        self._wake_carrier = wake

    def lane_lost(self) -> None:
        """There is a lane less; without any, writer threads do it all."""
        self._lanes -= 1
        if not self._lanes:
            self._wake_carrier, self._lane_takes = None, _anything
            self._call()

    def poke(self) -> None:
        """Let a further writer take what waits behind a slow commit. Call it about every second."""
        if self._meter is not None:
            self._meter.waits(self.waiting)
        if self._waiting or self._apart:
            with self._changed:
                self._helped = True
                self._changed.notify()
            if (wake := self._wake_carrier) is not None:
                wake()

    @property
    def claimable(self) -> int:
        """How many messages wait that a lane may take."""
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many messages no writer has taken yet."""
        return len(self._waiting) + len(self._apart) + self._reading

    def __str__(self) -> str:
        return (
            f"messages that wait for a writer: {self.waiting};"
            f" writers at work: {self._writing - self._claimed} of {len(self._threads)};"
            f" lanes: {self._lanes}"
        )

    def stop(self, timeout: float) -> bool:
        """Write what waits, then end the threads. True if all ended within `timeout` seconds."""
        deadline = self._clock() + timeout
        for _ in self._readers:
            self._unread.put(None)  # behind all that is to be read
        for thread in self._readers:
            thread.join(max(0.0, deadline - self._clock()))
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        ended = not any(thread.is_alive() for thread in (*self._readers, *self._threads))
        if ended:
            self._store.close()
        return ended

    def _read(self) -> None:
        """What a reader thread does."""
        while (job := self._unread.get()) is not None:
            self._encode(job)
            del job  # it would be kept until the next one comes
            with self._changed:
                self._reading -= 1
            self._call()
            if (wake := self._wake_carrier) is not None:
                wake()

    def _run(self, number: int) -> None:
        if number == 0:
            self._prepare()
        while True:
            with self._changed:
                while not self._may_write():
                    if self._stopped and not self._claimed:
                        return
                    self._changed.wait()
                self._helped = False
                self._writing += 1
                given_up = self._given_up.popleft() if self._given_up else None
            try:
                if given_up is not None:
                    self._write_given_up(*given_up)
                    continue
                if self._clock() < self._busy_until and not self._stopped:
                    time.sleep(GATHER)
                if self._write(self._take([self._apart, self._waiting])) >= GATHER_FROM:
                    self._busy_until = self._clock() + BUSY_FOR
            except Exception:
                _log.exception("fault in a writer thread")  # its clients hear 451 in time
            finally:
                with self._changed:
                    self._writing -= 1
                if self._waiting and (wake := self._wake_carrier) is not None:
                    wake()

    def _may_write(self) -> bool:
        """Whether one more writer is worth its commit."""
        self._called = False
        if self._given_up:
            return True
        waiting = len(self._waiting) + len(self._apart)
        if not waiting:
            return False
        if waiting >= SECOND_WRITER_FROM or self._helped or self._stopped:
            return True
        return self._is_due()

    def _prepare(self) -> None:
        """Look at the store before the first mail comes, again and again until it can be used."""
        while not self._stopped and not self._waiting and not self._apart:
            try:
                self._store.prepare()
                return
            except StoreError:
                pass  # the store has said so
            except Exception:
                _log.exception("store: unexpected trouble")
            with self._changed:
                if not self._waiting and not self._apart and not self._stopped:
                    self._changed.wait(_PREPARE_AGAIN)

    def _write_given_up(self, batch: Batch, in_doubt: bool) -> None:
        if in_doubt:
            self._write(batch)
            return
        left = deque(batch)
        while left:
            self._write(self._take([left]))

    def _write(self, batch: Batch) -> int:
        """How many messages it held. Nobody else keeps the batch, so that its memory is free."""
        if not batch:
            return 0
        began = self._clock()
        try:
            outcomes = self._store.write([letter for _, letter in batch])
            for (job, _), outcome in zip(batch, outcomes, strict=True):
                job.outcome = outcome
            self._note_stored(batch, self._clock() - began)
        except Exception:
            _log.exception("store: unexpected trouble with %d messages", len(batch))
            for job, _ in batch:
                job.outcome = Outcome.TROUBLE
        _hand_back([job for job, _ in batch])
        return len(batch)

    def _note_stored(self, batch: Batch, seconds: float) -> None:
        rows = rows_of([each for each in batch if each[0].outcome is Outcome.STORED])
        if rows and self._meter is not None:
            with self._changed:
                self._meter.stored(rows, seconds)

    def _take(self, queues: Sequence[deque[tuple[Job, Letter]]]) -> Batch:
        """The next batch out of `queues`; what has waited too long goes back unwritten."""
        batch: Batch = []
        expired: list[Job] = []
        rows = size = 0
        oldest = self._clock() - GIVE_UP_AFTER
        while rows < MAX_BATCH_ROWS and size < MAX_BATCH_BYTES:
            held = _next_of(queues)
            if held is None:
                break
            job, letter = held
            if job.submitted < oldest:
                job.outcome = Outcome.TROUBLE
                expired.append(job)
                continue
            batch.append((job, letter))
            copies = job.message.envelope.copies
            rows += copies
            size += len(job.message.content) * copies
        if expired:
            _log.error("store: %d messages waited over %g s", len(expired), GIVE_UP_AFTER)
            _hand_back(expired)
        return batch


def rows_of(batch: Batch) -> int:
    """How many rows it makes."""
    return sum(job.message.envelope.copies for job, _ in batch)


def _next_of(queues: Sequence[deque[tuple[Job, Letter]]]) -> tuple[Job, Letter] | None:
    """What is first in the first of `queues` that is not empty."""
    for queue in queues:
        try:
            return queue.popleft()
        except IndexError:  # empty, or another thread was faster
            pass
    return None


def _anything(letter: Letter) -> bool:
    """What waits together where there is no lane."""
    return True


def _hand_back(jobs: list[Job]) -> None:
    # Wake each owner once per batch: a wake-up per message would hand the GIL around.
    for job in jobs:
        job.owner.put(job)
    for owner in {id(job.owner): job.owner for job in jobs}.values():
        owner.wake()
