"""What passes between who has a message and who stores it?"""

from __future__ import annotations

from typing import Protocol

from gsmtpd.message.row import Message
from gsmtpd.storage.base import Result


class Owner(Protocol):
    """Who is told what became of a message: an SMTP thread."""

    def put(self, job: Job) -> None:
        """Take a finished job; must not block. Called before `wake`, from a writer thread."""

    def wake(self) -> None:
        """Finished jobs are there."""


class Job:
    """One message on its way into the store. context: the owner's own, untouched here."""

    __slots__ = ("context", "message", "outcome", "owner", "submitted")

    def __init__(self, message: Message, owner: Owner, context: object, submitted: float) -> None:
        self.message = message
        self.owner = owner
        self.context = context
        self.submitted = submitted  # seconds, monotonic
        self.outcome: Result | None = None  # None until it is known


class Meter(Protocol):
    """Who counts what is stored."""

    def stored(self, rows: int, seconds: float) -> None:
        """A batch of `rows` was committed in so many `seconds`. Told by one thread at a time."""

    def waits(self, messages: int) -> None:
        """So many wait for a writer now."""
