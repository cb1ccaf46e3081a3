"""Is so much mail on its way to clients at a time, and no more?"""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientSession, web

from gsmtpd.status.outgoing import SMALL, Outgoing

LARGE = 16 << 20  # more than the kernel takes of what nobody reads


async def served(sizes: list[int], method: str = "GET") -> tuple[list[int], int, int]:
    """What those hear who ask for so many octets each, and read once all have heard.

    The codes, the octets that came, and what is left on its way.
    """
    outgoing = Outgoing(LARGE + SMALL)

    async def give(request: web.Request) -> web.StreamResponse:
        body = b"x" * int(request.query["size"])
        return await outgoing.send(request, web.Response(body=body, content_type="text/plain"))

    app = web.Application()
    app.router.add_get("/", give)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with ClientSession() as client:
        answers = []
        for size in sizes:
            url = f"http://127.0.0.1:{port}/?size={size}"
            answers.append(await client.request(method, url))
        octets = [len(await each.read()) for each in answers]
        lengths = [int(each.headers["Content-Length"]) for each in answers if each.status == 200]
    assert [each for each in octets if each > 100] == (lengths if method == "GET" else [])
    await runner.cleanup()
    return [each.status for each in answers], sum(octets), outgoing._size


@pytest.mark.parametrize(
    ("sizes", "codes"),
    [
        ([LARGE], [200]),
        ([LARGE + 2 * SMALL], [200]),  # alone
        ([LARGE, LARGE], [200, 503]),
        ([LARGE, SMALL, SMALL, SMALL], [200] * 4),
        ([LARGE, SMALL + 1, SMALL + 2], [200, 503, 503]),
    ],
)
def test_so_much_at_a_time(sizes: list[int], codes: list[int]) -> None:
    said, octets, left = asyncio.run(served(sizes))
    assert said == codes
    assert octets >= sum(size for size, code in zip(sizes, codes, strict=True) if code == 200)
    assert left == 0


def test_a_head_has_the_length_alone() -> None:
    assert asyncio.run(served([LARGE, LARGE], "HEAD")) == ([200, 200], 0, 0)
