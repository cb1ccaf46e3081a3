"""Which signals came? A handler only notes the signal in a pipe, for a loop that polls it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


class SignalQueue:
    """Takes `numbers` from now on. Make it in the main thread; one at a time in a process."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._write = write
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, _noted)

    def fileno(self) -> int:
        """Readable when signals came."""
        return self._read

    def take(self) -> list[signal.Signals]:
        """The signals that came, in their order."""
        try:
            octets = os.read(self._read, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in octets if number in self._numbers]

    def close(self) -> None:
        """Stop taking them; until somebody else does nothing comes of them."""
        # Not SIG_IGN, which would also drop those that are blocked and wait for the next queue: a
        # new worker may be told to stop before it has one.
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)


def _noted(number: int, frame: object) -> None:
    """The pipe has it already, see signal.set_wakeup_fd."""
