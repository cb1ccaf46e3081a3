"""Is a carrier due only while it gathers? One that is for ever due has its thread spin."""

from __future__ import annotations

from typing import Any

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
