"""Is a carrier due only while it gathers, and what does it tell of a batch that it gives up?

One that is for ever due has its thread spin.
"""

from __future__ import annotations

from typing import Any

import pytest

from gsmtpd.server.carrier import NEVER, Carrier, carry


class Nothing:
    """A writer for which nothing waits."""

    claimable = 0

    def claim(self, least: int) -> list[Any]:
        return []


def carrier() -> Carrier:
    made = Carrier(Nothing(), lambda: None)  # type: ignore[arg-type]
    made._lane = object()  # type: ignore[assignment]
    made.due = 1.0
    return made


def test_what_another_took_makes_nobody_due() -> None:
    both = [carrier(), carrier()]
    carry(both)
    assert [each.due for each in both] == [NEVER, NEVER]


def test_a_busy_one_is_not_due() -> None:
    both = [carrier(), carrier()]
    both[0]._batch = [object()]  # type: ignore[list-item]
    carry(both)
    assert [each.due for each in both] == [NEVER, NEVER]


class LostLane:
    """A lane whose connection is gone. in_doubt: what it says of its batch."""

    unsent = False

    def __init__(self, in_doubt: bool) -> None:
        self._in_doubt = in_doubt

    def fileno(self) -> int:
        return -1

    def go_on(self) -> bool:
        raise ConnectionError

    def give_up(self, error: Exception) -> bool:
        return self._in_doubt


class Told(Nothing):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def lane_lost(self) -> None:
        self.told.append("lost")

    def leave(self, batch: list[Any], in_doubt: bool) -> None:
        self.told.append((batch, in_doubt))

    def release(self) -> None:
        self.told.append("released")


@pytest.mark.parametrize("in_doubt", [False, True])
def test_a_batch_that_is_given_up_goes_with_its_doubt(in_doubt: bool) -> None:
    writer, batch = Told(), [object()]
    made = Carrier(writer, lambda: None)  # type: ignore[arg-type]
    made._lane = LostLane(in_doubt)  # type: ignore[assignment]
    made._batch = batch  # type: ignore[assignment]
    made.ready()
    assert writer.told == ["lost", (batch, in_doubt), "released"]
    assert not made.busy
    assert not made.idle
