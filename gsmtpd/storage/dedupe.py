"""Has this message been stored before? A client that did not hear our 250 sends it again.

RFC 1047 tells of it. A message is the same if its octets, its sender and its recipients are, and
the first one is committed; of two that arrive at once both are stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gsmtpd.message.row import Message
from gsmtpd.storage.base import Duplicate, Letter, Outcome, Result, Store, StoreError


class Copy(NamedTuple):
    """A stored row, as far as it tells whether a message is the same."""

    content_hash: str
    return_path: str
    recipient: str
    id: str


class Memory(Protocol):
    """What can be asked for what it has stored."""

    def copies(self, content_hashes: Iterable[str], since: float) -> list[Copy]:
        """The rows with one of these hashes, received since then (Unix time in seconds).

        Raises StoreError.
        """


_Key = tuple[str, str, frozenset[str]]


class DedupingStore:
    """Stores in `store` what `memory` has not had within `window` seconds, and knows the rest.

    recipients: those of a message, as its rows name them.
    """

    def __init__(
        self,
        store: Store,
        memory: Memory,
        window: float,
        recipients: Callable[[Message], Iterable[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._memory = memory
        self._window = window
        self._recipients = recipients
        self._clock = clock
        self.prepare = store.prepare
        self.read = store.read
        self.encode = store.encode
        self.close = store.close

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Store those of `letters` that are new, in one transaction."""
        keys = [self._key(letter) for letter in letters]
        first = self._stored(letters)
        fresh: list[Letter] = []
        for letter, key in zip(letters, keys, strict=True):
            if key not in first:
                first[key] = letter.message.id
                fresh.append(letter)
        outcomes = self._store.write(fresh) if fresh else []
        became = {x.message.id: outcome for x, outcome in zip(fresh, outcomes, strict=True)}
        return [
            self._result(letter.message.id, first[key], became)
            for letter, key in zip(letters, keys, strict=True)
        ]

    def _result(self, own: str, first: str, became: dict[str, Result]) -> Result:
        # Of two in one batch the second is stored if the first is.
        outcome = became.get(first, Outcome.STORED)
        return Duplicate(first) if outcome is Outcome.STORED and own != first else outcome

    def _key(self, letter: Letter) -> _Key:
        message = letter.message
        sender = str(message.envelope.sender or "")
        return letter.reading.content_hash, sender, frozenset(self._recipients(message))

    def _stored(self, letters: Sequence[Letter]) -> dict[_Key, str]:
        """The ids of the messages that are stored, by what makes them the same."""
        hashes = {letter.reading.content_hash for letter in letters}
        try:
            copies = self._memory.copies(hashes, self._clock() - self._window)
        except StoreError:
            return {}  # mail that is stored twice is better than none
        recipients: dict[tuple[str, str, str], set[str]] = {}
        for copy in copies:
            message = copy.content_hash, copy.return_path, copy.id
            recipients.setdefault(message, set()).add(copy.recipient)
        return {
            (content_hash, sender, frozenset(names)): number
            for (content_hash, sender, number), names in recipients.items()
        }
