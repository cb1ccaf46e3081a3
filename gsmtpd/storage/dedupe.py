"""Has this message been stored before? A client that did not hear our 250 sends it again.

RFC 1047 tells of it. A message is the same if its octets, its sender and its recipients are, and
the first one is committed; of two that arrive at once both are stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gsmtpd.message.row import Message, date_of
from gsmtpd.storage.base import Duplicate, Letter, Outcome, Result, Store, StoreError

_log = logging.getLogger(__name__)

MAX_CANDIDATES = 1000  # messages; of a mail that came more often another copy does no harm
COLUMNS = ("content_hash", "return_path", "recipient", "hash", "date")  # that tell


class Key(NamedTuple):
    """What makes two messages the same."""

    content_hash: str
    return_path: str
    recipients: frozenset[str]


class Copy(NamedTuple):
    """A stored row, as far as it tells whether a message is the same."""

    content_hash: str
    return_path: str
    recipient: str
    id: str


class Memory(Protocol):
    """What can be asked for what it has stored."""

    def copies(self, keys: Sequence[Key], since: float) -> list[Copy]:
        """All rows of the messages that may be one of `keys`, received since that Unix time.

        Raises StoreError.
        """


def candidates(table: str, mark: str, keys: Sequence[Key], since: float) -> tuple[str, list[str]]:
    """The query for the ids of messages that may be one of `keys`, and its values.

    mark: the driver's parameter mark. One recipient of each is asked for, as a mail to many, sent
    one by one, has as many rows with the same octets.
    """
    columns = {
        "content_hash": {key.content_hash for key in keys},
        "return_path": {key.return_path for key in keys},
        "recipient": {min(key.recipients, default="") for key in keys},
    }
    among = " AND ".join(
        f"`{name}` IN ({', '.join([mark] * len(values))})" for name, values in columns.items()
    )
    sql = (
        f"SELECT DISTINCT `hash` FROM `{table}` WHERE {among} AND `date` >= {mark}"
        f" LIMIT {MAX_CANDIDATES + 1}"
    )
    return sql, [*(value for values in columns.values() for value in values), date_of(since)]


def rows_of(table: str, mark: str, ids: Sequence[str]) -> str:
    """The query for the rows of messages, as `Copy` has them."""
    marks = ", ".join([mark] * len(ids))
    names = "`content_hash`, `return_path`, `recipient`, `hash`"
    return f"SELECT {names} FROM `{table}` WHERE `hash` IN ({marks})"


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
        self._said = ""  # the last trouble that was logged
        self.prepare = store.prepare
        self.read = store.read
        self.encode = store.encode
        self.close = store.close

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Store those of `letters` that are new, in one transaction."""
        keys = [self._key(letter) for letter in letters]
        first = self._stored(keys)
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

    def _key(self, letter: Letter) -> Key:
        message = letter.message
        sender = str(message.envelope.sender or "")
        return Key(letter.reading.content_hash, sender, frozenset(self._recipients(message)))

    def _stored(self, keys: Sequence[Key]) -> dict[Key, str]:
        """The ids of the messages that are stored, by what makes them the same."""
        try:
            copies = self._memory.copies(keys, self._clock() - self._window)
        except StoreError as error:
            if str(error) != self._said:
                self._said = str(error)
                _log.warning("dedupe_window: %s; mail that comes again is stored again", error)
            return {}
        self._said = ""
        recipients: dict[tuple[str, str, str], set[str]] = {}
        for copy in copies:
            message = copy.content_hash, copy.return_path, copy.id
            recipients.setdefault(message, set()).add(copy.recipient)
        return {
            Key(content_hash, sender, frozenset(names)): number
            for (content_hash, sender, number), names in recipients.items()
        }
