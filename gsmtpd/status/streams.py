"""How are events sent to who listens (server-sent events, WHATWG HTML section 9.2)?"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from aiohttp import web

HEARTBEAT = 15.0  # seconds
MOST_WAITING = 4 << 20  # octets; who reads more slowly is hung up on, and comes again
_SEND_WITHIN = 30.0  # seconds
_AGAIN_IN = 2000  # milliseconds until a browser comes again


class Listener:
    """One client that listens. id: the cursor of where it is, "" for none."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._woken = asyncio.Event()
        self._taken = asyncio.Event()
        self.ended = False
        self.id = ""

    def put(self, event: bytes) -> None:
        """Have `event` sent."""
        if self.ended:
            return
        self._waiting.append(event)
        self._size += len(event)
        if self._size > MOST_WAITING:
            self.ended = True
        self._woken.set()

    def end(self) -> None:
        """Send no more."""
        self.ended = True
        self._woken.set()

    async def taken(self) -> None:
        """Until its client has taken what there was, or is gone."""
        self._taken.clear()
        if self._waiting and not self.ended:
            await self._taken.wait()

    async def _next(self) -> bytes:
        """What is to be sent; a sign of life if there is nothing for a while."""
        with suppress(asyncio.TimeoutError):  # noqa: UP041  # Python 3.10 had two
            await asyncio.wait_for(self._woken.wait(), HEARTBEAT)
        self._woken.clear()
        if not self._waiting:
            return b":\n" + event(id=self.id) if self.id else b":\n\n"
        octets = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        return octets

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send until it is ended, or its client is gone."""
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        response.headers["X-Accel-Buffering"] = "no"  # for nginx, which would collect them
        with suppress(ConnectionError, asyncio.TimeoutError):
            await response.prepare(request)
            await response.write(f"retry: {_AGAIN_IN}\n\n".encode())
            while not self.ended:
                octets = await self._next()
                await asyncio.wait_for(response.write(octets), _SEND_WITHIN)
                self._taken.set()
            await response.write_eof()
        return response


def event(name: str = "", data: str = "", id: str = "") -> bytes:  # noqa: A002
    """One event. data: one line."""
    lines = (
        f"event: {name}\n" * bool(name),
        f"id: {id}\n" * bool(id),
        f"data: {data}\n" * bool(data),
    )
    return ("".join(lines) + "\n").encode("utf-8", "backslashreplace")
