"""How does mail get to the program that has it received, and into no database?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.storage.base import Letter, Outcome, Result


class MemoryStore:
    """Gives each message to `take`, in the order of their final dots, as one that is stored.

    rows: reads the messages. take: called in a writer thread; what it raises is answered with 451.
    """

    def __init__(self, rows: RowMaker, take: Callable[[Letter], None]) -> None:
        self._rows = rows
        self._take = take

    def prepare(self) -> None:
        """Nothing is needed."""

    def read(self, message: Message) -> Letter:
        """Read `message`."""
        return Letter(message, self._rows.read(message))

    def encode(self, message: Message) -> Letter:
        """As `read`: no rows are made."""
        return self.read(message)

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Give `letters` away."""
        for letter in letters:
            self._take(letter)
        return [Outcome.STORED] * len(letters)

    def close(self) -> None:
        """Nothing is held."""
