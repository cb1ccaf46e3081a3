"""A store that keeps nothing, for benchmarks: every message is said to be stored."""

from __future__ import annotations

from collections.abc import Sequence

from gsmtpd.message.row import Message
from gsmtpd.storage.base import Outcome


class NullStore:
    """Forgets all it is given."""

    def prepare(self) -> None:
        """Nothing to check."""

    def write(self, messages: Sequence[Message]) -> list[Outcome]:
        """Say STORED for all of `messages`."""
        return [Outcome.STORED] * len(messages)

    def close(self) -> None:
        """Nothing to close."""
