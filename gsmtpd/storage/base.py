"""What must a store be able to do? The interface that every backend has."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from gsmtpd.message.row import Delivery, Message, Reading

_log = logging.getLogger(__name__)

# Attachments that are listed of a mail, lest a thousand for a thousand recipients hold up others.
LISTED = 100


class Outcome(Enum):
    """What became of a message that was given to a store."""

    STORED = "stored"  # committed, and the store will say so again after a power cut
    TROUBLE = "trouble"  # not committed as far as can be known; worth another try
    NO_SPACE = "no space"  # the disk or the table is full
    AWAY = "away"  # not stored, as no database host answers, or can write, now
    SPOOLED = "spooled"  # kept in the local spool, safe from a power cut, until the store is back


class Duplicate(NamedTuple):
    """A message that is stored already, as the one with the id `of`."""

    of: str


Result = Outcome | Duplicate


class Letter(NamedTuple):
    """A message that has been read, ready to be stored.

    form: the store's own, None where it is still to be made. held: the name of the body store that
    has its octets, "" where they go into the row. deliveries: what is put into the outbox with it.
    """

    message: Message
    reading: Reading
    form: Any = None
    held: str = ""
    deliveries: tuple[Delivery, ...] = ()


OnStored = Callable[[bool], None]
"""Called behind each COMMIT of mail: whether handlers are to act on any of it. From any thread."""


class StoreError(Exception):
    """The store cannot be used now; the text is one clear line for the operator."""


class StoreSetupError(StoreError):
    """The store is there, but lacks what is asked of it: to ask again is in vain."""


class StorePermissionError(StoreSetupError):
    """The store is there, but not for this user."""


class Health:
    """Says once that a store is in trouble, and once that it is well again.

    name: of the store, for the log. The same trouble is said again after `repeat` seconds.
    """

    def __init__(self, name: str, repeat: float = 60.0) -> None:
        self._name = name
        self._repeat = repeat
        self._said: dict[str, float] = {}  # what was said, and when, in monotonic seconds

    def trouble(self, text: str) -> None:
        """Log `text` unless it was said lately."""
        now = time.monotonic()
        if now - self._said.get(text, -self._repeat) >= self._repeat:
            self._said[text] = now
            _log.error(
                "%s: %s; mail is answered with 4xx, or kept in the spool, until this is mended",
                self._name,
                text,
            )

    def well(self) -> None:
        """Log the recovery, if there was trouble."""
        if self._said:
            self._said = {}
            _log.warning("%s: mail is being stored again", self._name)


class Store(Protocol):
    """Keeps messages. All but `encode` may block, so only writer threads call them."""

    def prepare(self) -> None:
        """Connect, check what durability and the table need.

        Raises StoreError if the store is unusable now, after saying so in the log.
        """

    def read(self, message: Message) -> Letter:
        """Do what needs no database and is the same for all recipients. For any thread."""

    def encode(self, message: Message) -> Letter:
        """Do all for `message` that needs no database. For any thread."""

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Store `letters` in one transaction, and say for each what became of it.

        All recipients of a message are stored or none. Never raises for trouble of the database.
        """

    def close(self) -> None:
        """Give back connections; the store may not be used afterwards."""


class Lane(Protocol):
    """One connection of a store, over which one thread writes batches without waiting.

    unsent: whether it is to be told when there is room to send; else when answers have come.
    What any method raises ends it: `give_up`, then its batch goes to `Store.write` as it is.
    """

    @property
    def unsent(self) -> bool: ...

    def fileno(self) -> int:
        """The descriptor to watch."""

    def fits(self) -> bool:
        """Whether it is of use still; if not, another should be opened."""

    def takes(self, letter: Letter) -> bool:
        """Whether `letter` can be stored this way."""

    def write(self, letters: Sequence[Letter]) -> None:
        """Begin to store what it `takes`, in one transaction."""

    def go_on(self) -> bool:
        """Send and hear what can be; True once the batch is committed. Then: `done`."""

    def done(self) -> None:
        """Another batch may come."""

    def check_time(self, now: float) -> None:
        """Raises where an answer takes too long. now: monotonic seconds."""

    def give_up(self, error: Exception) -> bool:
        """Close it for `error`; whether its batch may be stored."""

    def close(self) -> None:
        """Close it."""


OpenLane = Callable[[], Lane | None]
"""Opens a lane, or None where none will ever be had. Raises StoreError, and may block."""
