"""What is there not enough of, and has it been said? Logged once on entering, once on leaving."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gsmtpd.metrics import Counter, Overload

_log = logging.getLogger(__name__)


class Overloads:
    """What one SMTP thread has not enough of. row: its own of the counters, for all to see."""

    def __init__(self, row: memoryview[int]) -> None:
        self._row = row
        self._lasting: dict[Overload, Callable[[], bool]] = {}

    def __contains__(self, kind: Overload) -> bool:
        return kind in self._lasting

    def enter(self, kind: Overload, lasts: Callable[[], bool], message: str, *args: object) -> None:
        """There is not enough of `kind`, as long as `lasts` says. message, args: for the log."""
        if kind not in self:
            self._row[Counter.OVERLOAD] |= kind
            _log.warning(message, *args)
        self._lasting[kind] = lasts

    def look(self) -> None:
        """See what is over. Call it about once a second."""
        for kind, lasts in list(self._lasting.items()):
            if not lasts():
                del self._lasting[kind]
                self._row[Counter.OVERLOAD] &= ~kind
                _log.warning("%s: enough again", kind.words[0])
