"""Is who sends more than anybody has to hung up on, whatever the library would keep?"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from aiohttp import web

from gsmtpd.status import guests as module
from gsmtpd.status.guests import Guests

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


class Greedy(asyncio.Protocol):
    """Keeps all, as old libraries do."""

    def __init__(self) -> None:
        self.octets = 0
        self._messages: deque[bytes] = deque()

    def data_received(self, data: bytes) -> None:
        self.octets += len(data)
        self._messages.extend(data.split(b"\r\n\r\n")[1:])


async def flooded(flood: bytes, heard: bool = False) -> Greedy:
    """What has come through of `flood` when it is hung up on. heard: as if all were requests."""
    guests, served = Guests(), Greedy()

    def serve() -> Any:
        return served

    guests.serve(serve)  # type: ignore[arg-type]
    server = await asyncio.get_running_loop().create_server(guests.admit, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(HEAD)
    try:
        while not reader.at_eof():
            writer.write(flood)
            await writer.drain()
            if heard:
                guests.heard(served)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    finally:
        writer.close()
        server.close()
    return served


def test_header_lines_without_end() -> None:
    served = asyncio.run(flooded(b"a:b\r\n" * 10_000))
    assert 0 < served.octets <= module.MAX_UNHEARD


def test_requests_without_end() -> None:
    flood = (HEAD + b"\r\n") * 1000
    served = asyncio.run(flooded(flood, heard=True))
    assert len(served._messages) < module.MAX_PIPELINED + module._SLICE // len(HEAD) + 2


@pytest.mark.parametrize("requests", [1, 10])
def test_who_asks_for_little_is_served(requests: int) -> None:
    async def answers() -> int:
        async def say(request: web.BaseRequest) -> web.Response:
            guests.heard(request.protocol)
            return web.Response(text="ok")

        guests = Guests()
        guests.serve(web.Server(say))
        server = await asyncio.get_running_loop().create_server(guests.admit, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write((HEAD + b"\r\n") * (requests - 1) + HEAD + b"Connection: close\r\n\r\n")
        said = await reader.read()
        writer.close()
        server.close()
        return said.count(b"200 OK")

    assert asyncio.run(answers()) == requests
