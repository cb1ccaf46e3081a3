"""Is what has failed asked once for all who want to know, and asked again later?"""

from __future__ import annotations

import asyncio
import time

from gsmtpd.control import ControlError
from gsmtpd.status.facts import Remembered


class Failing:
    """Fails after a while, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        time.sleep(0.05)
        if self.calls == 1:
            raise ControlError("away")
        return "here"


def test_a_failure_is_remembered_for_all_who_wait() -> None:
    find = Failing()

    async def ask() -> list[object]:
        known = Remembered(find, 60)
        return [*await asyncio.gather(*(known.get() for _ in range(20)), return_exceptions=True)]

    assert [str(each) for each in asyncio.run(ask())] == ["away"] * 20
    assert find.calls == 1


def test_a_failure_is_forgotten() -> None:
    find = Failing()

    async def ask() -> list[object]:
        known = Remembered(find, 0)
        first = await asyncio.gather(known.get(), return_exceptions=True)
        return [*first, await known.get()]

    assert [str(each) for each in asyncio.run(ask())] == ["away", "here"]
