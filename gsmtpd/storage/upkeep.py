"""Who looks after the store while mail comes in? One thread that does chores, a little at a time.

A chore does one short step and says when it wants to be called again, so that none of them keeps
the others waiting for long, and the thread ends soon after it was told to.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

_log = logging.getLogger(__name__)

AFTER_DENIED = 600.0  # seconds until a chore is tried again: somebody must GRANT first
AFTER_TROUBLE = 60.0
NOT_OURS = 10.0  # seconds until it is asked again whether another process has left a chore to us
_AFTER_EXCEPTION = 60.0


class Chore(Protocol):
    """Work that comes again and again. Only the upkeep thread calls it."""

    @property
    def name(self) -> str:
        """For the log."""

    def step(self) -> float:
        """Do a little, for some milliseconds; how many seconds until the next call."""

    def close(self) -> None:
        """Give back what it holds."""


class Upkeep:
    """Does `chores` in one thread, called `name`. Start it behind the fork."""

    def __init__(
        self,
        chores: Sequence[Chore],
        clock: Callable[[], float] = time.monotonic,
        name: str = "upkeep",
    ) -> None:
        self._chores = list(chores)
        self._clock = clock
        self._stopped = threading.Event()
        self._failed: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; every chore is called at once."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End behind the step that is being done. True if it ended within `timeout` seconds.

        If not, a server keeps it waiting; the thread ends with the process, and the server undoes
        what was not committed.
        """
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            for chore in self._chores:
                with suppress(Exception):
                    chore.close()

    def _work(self) -> None:
        queue = [(self._clock(), number) for number in range(len(self._chores))]
        while queue:
            due, number = queue[0]
            if self._stopped.wait(max(0.0, due - self._clock())):
                return
            pause = self._step(self._chores[number])
            heapq.heapreplace(queue, (self._clock() + pause, number))

    def _step(self, chore: Chore) -> float:
        try:
            return chore.step()
        except Exception as error:
            # The whole traceback once; the same again each minute would bury the rest of the log.
            text = f"{chore.name}: {error!r}"
            known = text in self._failed
            _log.error("%s: %s", self._thread.name, text, exc_info=None if known else error)
            self._failed.add(text)
            return _AFTER_EXCEPTION
