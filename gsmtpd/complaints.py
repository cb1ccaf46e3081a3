"""What should the operator be told once, and not again each second?"""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Complaints:
    """Says a trouble of `name` once, and once that it is over."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: str | None = None

    def say(self, text: str, error: BaseException | None = None) -> None:
        """Log `text`, with the traceback of `error`, unless it was the last that was said."""
        if text != self._said:
            self._said = text
            _log.warning("%s: %s", self._name, text, exc_info=error)

    @property
    def open(self) -> bool:
        """Whether a trouble was said, and not yet that it is over."""
        return self._said is not None

    def over(self) -> None:
        """Log that what was said is no longer so."""
        if self.open:
            self._said = None
            _log.warning("%s: it works again", self._name)
