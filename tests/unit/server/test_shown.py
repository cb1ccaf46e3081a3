"""Are those sessions and messages shown that matter?"""

from __future__ import annotations

from typing import Any

from gsmtpd.board import Board, Slot
from gsmtpd.message.row import Message
from gsmtpd.server.shown import BUSIEST, OLDEST, SLOWEST, Showing
from gsmtpd.smtp import reply
from gsmtpd.smtp.envelope import Envelope


class Talker:
    """A client, as far as it is shown."""

    def __init__(self, number: int, octets: int) -> None:
        self.began = float(number)
        self.octets = octets

    def facts(self, now: float) -> dict[str, object]:
        return {"seconds": now - self.began, "octets": self.octets}


def message(number: int) -> Message:
    envelope = Envelope("h", True, None, ())
    return Message(f"{number}", envelope, b"x" * number, "192.0.2.1", 0.0)


def looked_at(showing: Showing, board: Board, *clients: Any, now: float = 1000.0) -> Any:
    board.ask()
    showing.look(clients, now)
    [shown] = board.read([0])
    return shown


def test_the_oldest_and_the_busiest() -> None:
    board = Board()
    showing = Showing(Slot(board, 0))
    clients = [Talker(number, number) for number in range(100)]
    busy = Talker(500, 10**6)
    sessions = looked_at(showing, board, *clients, busy).sessions
    assert sessions[0]["octets"] == 10**6
    assert len(sessions) == OLDEST + BUSIEST
    assert {each["octets"] for each in sessions[BUSIEST:]} == {*range(OLDEST)}
    assert len(looked_at(showing, board, *clients[:5]).sessions) == 5


def test_the_slowest_of_the_last_minute() -> None:
    board = Board()
    showing = Showing(Slot(board, 0))
    for number in range(SLOWEST):
        assert showing.slow_from < 0.0
        showing.note(message(number), reply.OK, number / 10, 1000.0)
    assert showing.slow_from == 0.0
    showing.note(message(77), reply.NO_SPACE, 5.0, 1030.0)
    assert showing.slow_from == 0.1
    slowest = looked_at(showing, board, now=1040.0).slowest
    assert len(slowest) == SLOWEST
    assert slowest[0].pop("time") > 10**9
    facts = {"delay": 5.0, "id": "77", "client": "192.0.2.1", "size": 77}
    assert slowest[0] == facts | {"reply": str(reply.NO_SPACE)}
    assert [each["id"] for each in looked_at(showing, board, now=1061.0).slowest] == ["77"]
    assert showing.slow_from < 0.0


def test_nothing_is_written_while_nobody_looks() -> None:
    board = Board()
    showing = Showing(Slot(board, 0))
    showing.look([Talker(1, 1)], 1000.0)  # type: ignore[list-item]
    assert board.read([0]) == []


def test_without_a_slot_nothing_is_noted() -> None:
    showing = Showing(None)
    showing.look([], 0.0)
    assert showing.slow_from > 10**9
