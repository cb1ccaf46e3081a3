"""Is who waits given what it lacks, and nothing twice?"""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request

from gsmtpd.status.streams import MOST_WAITING
from gsmtpd.status.waiting import _MOST_HELD, _EndedError, _Stream, _Waiter
from gsmtpd.storage.arrivals import Cursor
from gsmtpd.storage.reader import StoredMail


def mail(number: int) -> StoredMail:
    to = "b@example.com"
    return StoredMail(
        number, "2026-11-23 19:00:00", "", to, f"mail {number}", 1, "", to, "", "", ""
    )


@pytest.mark.parametrize(
    ("offered", "taken"), [([5], None), ([8], None), ([5, 8, 7], 7), ([9, 7], 9), ([3, 6], 6)]
)
def test_a_waiter_takes_what_its_cursor_lacks(offered: list[int], taken: int | None) -> None:
    """The look that offers it may be late: what was given before may come once more."""

    async def offer() -> int | None:
        waiter = _Waiter(make_mocked_request("GET", "/"), "b@x.com", Cursor(5, frozenset({8})))
        for number in offered:
            waiter.offer(mail(number))
        return waiter.come.result().mail_id if await waiter.wait_for(waiter.come, 0) else None

    assert asyncio.run(offer()) == taken


def test_a_wait_that_is_ended_says_so_and_mail_goes_before() -> None:
    async def come() -> bool:
        waiter = _Waiter(make_mocked_request("GET", "/"), "b@x.com", Cursor())
        waiter.end()
        with pytest.raises(_EndedError, match="ask again, with this cursor"):
            await waiter.wait_for(waiter.come, 60)
        waiter.offer(mail(1))
        return await waiter.wait_for(waiter.come, 60)

    assert asyncio.run(come())


def test_a_stream_that_catches_up_gives_nothing_twice() -> None:
    async def events() -> bytes:
        stream = _Stream(lambda mail: True)
        stream.take([mail(2), mail(3)], "T3")
        stream.send([mail(1), mail(2)], "T2")
        stream.given.extend((1, 2))
        stream.release()
        stream.take([mail(4)], "T4")
        return await stream.listener._next()

    said = asyncio.run(events()).decode()
    assert [line for line in said.splitlines() if "mail " in line or line.startswith("id")] == [
        line
        for number, place in ((1, ""), (2, "T2"), (3, "T3"), (4, "T4"))
        for line in (
            next(each for each in said.splitlines() if f'"mail {number}"' in each),
            f"id: {place}",
        )
        if line != "id: "
    ]


def test_a_stream_that_nobody_reads_keeps_so_much_and_no_cursor_behind_it() -> None:
    async def kept() -> tuple[bool, str, int]:
        stream = _Stream(lambda mail: True)
        stream.release()
        long = mail(1)._replace(subject="x" * 100_000)
        for number in range(100):
            stream.take([long], f"T{number}")
        return stream.listener.ended, stream.listener.id, len(await stream.listener._next())

    ended, cursor, octets = asyncio.run(kept())
    assert ended
    assert octets < MOST_WAITING + 200_000
    assert cursor == f"T{octets // 100_000 - 2}", "the last mail that is sent has none behind it"


def test_a_stream_that_catches_up_for_long_keeps_so_much() -> None:
    async def kept() -> tuple[bool, int, int]:
        stream = _Stream(lambda mail: True)
        stream.given.extend(range(10 * _MOST_HELD))
        many = [mail(1)] * (_MOST_HELD // 2)
        for _ in range(2):
            stream.take(many, "T1")
        going_on = not stream.listener.ended
        stream.take([mail(2)], "T2")
        return going_on and stream.listener.ended, len(stream.given), len(stream._held or [])

    assert asyncio.run(kept()) == (True, 2 * _MOST_HELD, 0)
