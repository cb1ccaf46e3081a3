"""How is the store asked without keeping anybody waiting? By a few threads, each with a Finder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import UnreadableError

THREADS = 4
TURN_WITHIN = 10.0  # seconds that a question may wait for one of the threads
Found = TypeVar("Found")


class _StaleError(Exception):
    """A connection is of no use: its server may have ended it as it was idle."""

    def __init__(self, reason: StoreError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Readers:
    """Asks the store. open_finder: makes a Finder for one thread; raises StoreError."""

    def __init__(self, open_finder: Callable[[], Finder], threads: int = THREADS) -> None:
        self._open = open_finder
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")

    async def ask(self, question: Callable[[Finder], Found]) -> Found:
        """What `question` makes of a Finder, in one of the threads. Raises StoreError.

        Where a store hangs, those that wait for their turn must not become ever more.
        """
        asked = self._pool.submit(self._ask, question)
        answer = asyncio.wrap_future(asked)
        try:
            await asyncio.wait([answer], timeout=TURN_WITHIN)
            if asked.cancel():  # it has not begun
                raise StoreError(f"no turn within {TURN_WITHIN:g} s: others still wait for answers")
            return await answer
        finally:
            asked.cancel()  # of a client that is gone; who has begun goes on

    async def work(self, doing: Callable[[], Found]) -> Found:
        """What takes a while, of the processor alone, in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, doing)

    def _ask(self, question: Callable[[Finder], Found]) -> Found:
        finder: Finder | None = getattr(self._own, "finder", None)
        if finder is not None:
            with suppress(_StaleError):
                return self._tried(finder, question)
        self._own.finder = finder = self._open()
        try:
            return self._tried(finder, question)
        except _StaleError as error:
            raise error.reason from error

    def _tried(self, finder: Finder, question: Callable[[Finder], Found]) -> Found:
        """The answer. Raises _StaleError where another connection may do better."""
        try:
            return question(finder)
        except UnreadableError:
            raise  # of one mail; the connection is well
        except StoreError as error:
            self._own.finder = None
            with suppress(StoreError):
                finder.close()
            raise _StaleError(error) from error

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
