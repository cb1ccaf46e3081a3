"""How does a message come into a body store, and its row into the database?"""

from __future__ import annotations

from collections.abc import Sequence

from gsmtpd.message.row import RowMaker
from gsmtpd.storage.base import Letter, Result, Store
from gsmtpd.storage.body_store import BodyStore


class ElsewhereStore:
    """Puts the octets of messages into `bodies`, and their rows without them into `store`.

    What `bodies` does not take goes into the row, as always. rows: the store's own.
    """

    def __init__(self, store: Store, bodies: BodyStore, rows: RowMaker) -> None:
        self._store = store
        self._bodies = bodies
        self._rows = rows
        self.prepare = store.prepare
        self.read = store.read
        self.encode = store.read  # what the row holds is known behind `put` only

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Put the octets of all `letters`, then store their rows in one transaction."""
        held = self._bodies.put(
            {
                letter.message.id: self._rows.shared(letter.message, letter.reading)
                for letter in letters
            }
        )
        return self._store.write(
            [
                letter._replace(held=self._bodies.encoding) if letter.message.id in held else letter
                for letter in letters
            ]
        )

    def close(self) -> None:
        """Close both."""
        self._store.close()
        self._bodies.close()
