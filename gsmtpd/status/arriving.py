"""Which mail has just come, and who is waiting for it? One look for all of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from gsmtpd.storage.base import StoreError, StoreSetupError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import StoredMail
from gsmtpd.storage.tail import Tail

REST = 0.02  # seconds between two looks at least: a busy gsmtpd commits hundreds of times a second
REST_OF_STREAMS = 0.25  # where nobody waits for one mail
LOOK = 1.0  # seconds between two looks at most: for mail that another machine has stored
LINGER = 2.0  # seconds that it goes on looking when nobody waits: they come again
_AFTER_TROUBLE = 0.5  # seconds
LATE = 2.0  # seconds behind which a database counts as one that does not answer
_CLOSE_WITHIN = 1.0  # seconds that the database has to end a query
_SWEEP = 5.0  # seconds between two looks for waiters whose client is gone
Done = TypeVar("Done")


class Waiter(Protocol):
    """Waits for mail to one address."""

    address: str

    def offer(self, mail: StoredMail) -> None:
        """This has come for it."""

    def is_gone(self) -> bool:
        """Whether nobody is there any more."""

    def end(self) -> None:
        """Nothing will come any more."""


class Reader(Protocol):
    """Reads all that comes, or what a filter leaves of it."""

    def take(self, mails: Collection[StoredMail], cursor: str) -> None:
        """These have come. cursor: of a tail that goes on behind them."""

    def end(self) -> None:
        """Nothing will come any more."""


class Arrivals:
    """Tells waiters and readers of new mail. For the loop's thread; a thread of its own asks.

    open_finder: makes what asks; raises StoreError. stored: an eventfd that is written behind each
    COMMIT of this gsmtpd.
    """

    def __init__(self, open_finder: Callable[[], Finder], stored: int) -> None:
        self._open = open_finder
        self._stored = stored
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="arrivals")
        self._finder: Finder | None = None  # the thread's, as is the next
        self._tail: Tail | None = None
        self._is_for: Callable[[StoredMail, str], bool]  # the finder's, of whom there are mails
        self._is_more = False
        self._cursor = ""  # of the tail, behind its last look
        self._waiters: dict[str, set[Waiter]] = {}
        self._readers: set[Reader] = set()
        self._task: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[str] | None = None
        self._woken = asyncio.Event()
        self._listening: list[asyncio.Future[str]] = []  # readers whose first look is to come
        self._swept = time.monotonic()
        self._has_ended = False
        self._trouble = ""
        self._looking_since: float | None = None  # monotonic seconds

    async def begin(self) -> None:
        """Look out from now on, at least, for who is among the waiters.

        It lasts while the database is away. Raises StoreSetupError.
        """
        self._begin()
        assert self._begun is not None
        await asyncio.shield(self._begun)

    async def begin_reading(self) -> str:
        """Look out from now on, for who is among the readers; the cursor behind what it was told.

        Raises StoreError.
        """
        first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._listening.append(first)
        self._begin()
        self._woken.set()
        return await first

    def _begin(self) -> None:
        if self._task is None:
            self._begun = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run())

    @property
    def trouble(self) -> str:
        """What keeps it from seeing what comes, "" if nothing does."""
        since = self._looking_since
        if not self._trouble and since is not None and time.monotonic() - since > LATE:
            return f"the database has not answered within {LATE:g} s"
        return self._trouble

    def wait(self, waiter: Waiter) -> None:
        """Have `waiter` offered what comes to its address."""
        self._waiters.setdefault(waiter.address.lower(), set()).add(waiter)
        if self._has_ended:
            waiter.end()

    def leave(self, waiter: Waiter) -> None:
        """Offer it no more."""
        address = waiter.address.lower()
        waiting = self._waiters.get(address, set())
        waiting.discard(waiter)
        if not waiting:
            self._waiters.pop(address, None)

    def read(self, reader: Reader) -> None:
        """Have `reader` told of all that comes."""
        self._readers.add(reader)
        if self._has_ended:
            reader.end()

    def leave_reading(self, reader: Reader) -> None:
        """Tell it no more."""
        self._readers.discard(reader)

    def end(self) -> None:
        """Tell all that nothing will come any more."""
        self._has_ended = True
        for waiter in self._all_waiters():
            waiter.end()
        for reader in [*self._readers]:
            reader.end()

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLOSE_WITHIN)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _all_waiters(self) -> list[Waiter]:
        return [each for waiting in self._waiters.values() for each in waiting]

    # ---- looking ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Look, as long as somebody waits."""
        try:
            await self._look_on()
        finally:
            self._task = None
            await self._in_thread(self._drop)

    async def _look_on(self) -> None:
        assert self._begun is not None
        idle_since = time.monotonic()
        while self._waiters or self._readers or self._lingers(idle_since):
            if self._waiters or self._readers:
                idle_since = time.monotonic()
            listening, self._listening = self._listening, []
            try:
                mails = await self._in_thread(partial(self._look, bool(self._readers)))
            except StoreError as error:
                if not self._go_on_after(error, listening):
                    return
                await asyncio.sleep(_AFTER_TROUBLE)
                continue
            self._trouble = ""
            self._tell(mails)
            for each in [self._begun, *listening]:
                if not each.done():
                    each.set_result(self._cursor)
            self._sweep()
            await asyncio.sleep(REST if self._waiters else REST_OF_STREAMS)
            if not self._is_more:
                await self._wait_for_more()

    def _lingers(self, idle_since: float) -> bool:
        return not self._has_ended and time.monotonic() - idle_since < LINGER

    def _go_on_after(self, error: StoreError, listening: list[asyncio.Future[str]]) -> bool:
        """Tell who must know of it; whether to look again."""
        assert self._begun is not None
        self._trouble = str(error)
        is_vain = isinstance(error, StoreSetupError) and not self._cursor
        for each in [self._begun, *listening] if is_vain else listening:
            if not each.done():
                each.set_exception(error)
                each.exception()  # somebody may have left who would have heard it
        if self._begun.done() and not is_vain:
            self._begun = asyncio.get_running_loop().create_future()
        self._sweep()
        return not is_vain and bool(self._cursor or self._waiters)

    async def _wait_for_more(self) -> None:
        """Until something was stored here, or for a while."""
        loop = asyncio.get_running_loop()
        if self._stored >= 0:
            loop.add_reader(self._stored, self._wake)
        try:
            with suppress(asyncio.TimeoutError):  # noqa: UP041  # Python 3.10 had two
                await asyncio.wait_for(self._woken.wait(), LOOK)
        finally:
            self._woken.clear()
            if self._stored >= 0:
                loop.remove_reader(self._stored)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # another process, around a reload, was faster
            os.eventfd_read(self._stored)
        self._woken.set()

    def _tell(self, mails: list[StoredMail]) -> None:
        if not mails:
            return
        for mail in sorted(mails) if self._waiters else ():
            for address in {mail.recipient.lower(), mail.to.lower()}:
                for waiter in [*self._waiters.get(address, ())]:
                    if self._is_for(mail, waiter.address):
                        waiter.offer(mail)
        for reader in [*self._readers]:
            reader.take(mails, self._cursor)

    def _sweep(self) -> None:
        """Have those end whose clients are gone; nobody else says so."""
        if time.monotonic() - self._swept > _SWEEP:
            self._swept = time.monotonic()
            for waiter in self._all_waiters():
                if waiter.is_gone():
                    waiter.end()

    # ---- in the thread ---------------------------------------------------------------------------

    async def _in_thread(self, doing: Callable[[], Done]) -> Done:
        return await asyncio.get_running_loop().run_in_executor(self._pool, doing)

    def _look(self, all_of_them: bool) -> list[StoredMail]:
        """What has come since the last look. Raises StoreError."""
        try:
            self._looking_since = time.monotonic()
            if self._finder is None:
                self._finder = self._open()
                self._is_for = self._finder.is_for
                if self._tail is not None:
                    self._finder.take_over(self._tail)
            if self._tail is None:
                self._tail = self._finder.tail()
            tail = self._tail
            # The waiters as they are once the rows are there: who comes later sees these rows.
            mails = tail.look() if all_of_them else tail.rows_for(self._waiters)
        except StoreError:
            self._close()
            raise
        finally:
            self._looking_since = None
        self._cursor = tail.cursor()
        self._is_more = tail.is_more
        return mails

    def _close(self) -> None:
        """It broke; the tail goes on over the next."""
        finder, self._finder = self._finder, None
        if finder is not None:
            with suppress(StoreError):
                finder.close()

    def _drop(self) -> None:
        """Nobody waits: the next tail begins anew."""
        self._close()
        self._tail = None
        self._cursor = ""
