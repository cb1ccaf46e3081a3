"""What is a handler, and what may it answer? A small class with one method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from gsmtpd.handlers.mail import Mail


class Later(NamedTuple):
    """The mail is to be handed over again, in so many seconds. That is no failure.

    Until then nothing is noted of it, and no reply is sent.
    """

    seconds: float


class Discard(NamedTuple):
    """The mail has done its work: its row is deleted."""


DISCARD = Discard()

Result = Later | Discard | None
"""What `Handler.handle` returns: None where it is done."""


class HandlerError(Exception):
    """A handler cannot be had, or not with its settings; the text is one clear line."""


class RetryError(Exception):
    """What a handler raises to be called again; like any other exception, but for its pause.

    after: seconds, None for the usual pause, which grows from try to try.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class GiveUpError(Exception):
    """What a handler raises where another try is of no use: the delivery is dead."""


class Handler:
    """Acts on mail that is stored. Write a subclass with `handle`.

    defaults: the settings that it has, with what they are where gsmtpd.conf does not say.
    replies: whether it does: then a smarthost must be configured.
    settings: those of gsmtpd.conf, with `defaults` for the others. All are text.
    """

    defaults: ClassVar[Mapping[str, str]] = {}
    replies: ClassVar[bool] = False
    settings: Mapping[str, str]

    def prepare(self) -> None:
        """Called once in each process, before the first mail. Raise ValueError to be refused."""

    def handle(self, mail: Mail) -> Result:
        """Act on `mail`. It is called again, after a while, for whatever is raised."""
        raise NotImplementedError
