"""What does one SMTP thread show of itself? Its sessions, and what took it long."""

from __future__ import annotations

import time
from collections.abc import Collection
from heapq import nlargest, nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd import board
from gsmtpd.board import Slot

if TYPE_CHECKING:
    from gsmtpd.message.row import Message
    from gsmtpd.server.client import Client
    from gsmtpd.smtp.reply import Reply

OLDEST = 10  # sessions that are shown because they are the oldest
BUSIEST = 10  # and because they have sent the most octets
SLOWEST = 10  # messages
SLOW_FOR = 60.0  # seconds
_SAID = 100  # characters of a reply
_ANY = -1.0  # seconds: less than any delay
_NONE = float("inf")


class _Slow(NamedTuple):
    """A message. at: when it was answered, in the thread's monotonic seconds."""

    delay: float
    at: float
    time: float
    message_id: str
    client: str
    size: int
    said: str


class Showing:
    """What a thread shows in its `slot`.

    slow_from: seconds; of a message that took longer `note` wants to know.
    """

    def __init__(self, slot: Slot | None) -> None:
        self._slot = slot
        self._slow: list[_Slow] = []
        self.slow_from = _NONE if slot is None else _ANY

    def note(self, message: Message, decision: Reply, delay: float, now: float) -> None:
        """`message` was answered after `delay` seconds. now: monotonic seconds."""
        said = str(decision)[:_SAID]
        size, client = len(message.content), message.client_ip
        self._slow.append(_Slow(delay, now, time.time(), message.id, client, size, said))
        self._slow = nlargest(SLOWEST, self._slow)
        self._set_limit()

    def _set_limit(self) -> None:
        self.slow_from = self._slow[-1].delay if len(self._slow) == SLOWEST else _ANY

    def look(self, clients: Collection[Client], now: float) -> None:
        """Show what there is, if somebody wants to see it. Call it about once a second."""
        if self._slot is None:
            return
        if self._slow:
            self._slow = [slow for slow in self._slow if now - slow.at <= SLOW_FOR]
            self._set_limit()
        if self._slot.asked_for:
            chosen = [
                *nlargest(BUSIEST, clients, attrgetter("octets")),
                *nsmallest(OLDEST, clients, attrgetter("began")),
            ]
            sessions = [client.facts(now) for client in dict.fromkeys(chosen)]
            self._slot.show(board.Shown(sessions, [_facts(slow) for slow in self._slow]))


def _facts(slow: _Slow) -> dict[str, object]:
    return {
        "time": round(slow.time, 3),
        "delay": round(slow.delay, 3),
        "id": slow.message_id,
        "client": slow.client,
        "size": slow.size,
        "reply": slow.said,
    }
