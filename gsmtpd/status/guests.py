"""Whose connections are open, and who sends more than anybody has to?

A library as old as that of Debian 12 (aiohttp 3.8) keeps whatever it is sent: header lines without
end, and requests without end behind one that takes a while. So what it is handed is counted here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from gsmtpd.status.answers import sorry
from gsmtpd.status.headers import guard

MAX_CONNECTIONS = 2000
HEAD_WITHIN = 10.0  # seconds that a new connection has to send its first request
MAX_UNHEARD = 1 << 18  # octets that may come until they make a request
MAX_PIPELINED = 64  # requests that wait behind another of their connection
_SLICE = 4096  # octets that are read before it is looked again
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 46\r\n\r\n{"error": "too many connections; try later."}\n'
)
_UNREADABLE = "this cannot be read as a request of HTTP/1.1"

Heard = Callable[[asyncio.BaseProtocol], None]
"""Called with what serves a connection when that has sent a request."""


class Guests:
    """The connections that are open; those that ask for nothing, or too much, are closed."""

    def __init__(self) -> None:
        self._make: Callable[[], web.RequestHandler] | None = None
        self._guests: dict[asyncio.BaseProtocol, _Guest] = {}

    def serve(self, make: Callable[[], web.RequestHandler]) -> None:
        """From now on what `make` makes serves them, one each."""
        self._make = make

    def admit(self) -> asyncio.BaseProtocol:
        """What serves a new connection."""
        assert self._make is not None
        if len(self._guests) >= MAX_CONNECTIONS:
            return _Full()
        made = self._make()
        guest = self._guests[made] = _Guest(made, lambda: self._guests.pop(made, None))
        return guest

    def heard(self, protocol: asyncio.BaseProtocol) -> None:
        """It has sent a request."""
        if guest := self._guests.get(protocol):
            guest.heard()


class Answerer(web.RequestHandler):
    """Reads requests. One that cannot be read is the client's fault, and no line of our log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status != 400:
            return super().handle_error(request, status, exc, message)
        # `message` would say on several lines what was sent.
        is_long = isinstance(exc, LineTooLong)
        answer = sorry(400, "a line of the request is too long" if is_long else _UNREADABLE)
        guard(answer)
        answer.force_close()
        return answer


class _Guest(asyncio.Protocol):
    """One connection, which `server` serves. on_gone: called when it is over."""

    def __init__(self, server: web.RequestHandler, on_gone: Callable[[], object]) -> None:
        self._server = server
        self._on_gone = on_gone
        self._unheard = 0  # octets since the last request
        self._transport: asyncio.Transport | None = None
        self._silent: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """It has sent a request."""
        self._unheard = 0
        if self._silent is not None:
            self._silent.cancel()

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._silent = asyncio.get_running_loop().call_later(HEAD_WITHIN, self._hang_up)
        self._server.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            self._unheard += min(_SLICE, len(data) - start)
            # Newer ones stop reading by themselves, and may have another name for it.
            waiting = getattr(self._server, "_messages", ())
            if self._unheard > MAX_UNHEARD or len(waiting) > MAX_PIPELINED:
                self._hang_up()
                return
            self._server.data_received(data[start : start + _SLICE])

    def eof_received(self) -> bool | None:
        self._server.eof_received()
        return None

    def pause_writing(self) -> None:
        self._server.pause_writing()

    def resume_writing(self) -> None:
        self._server.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._silent is not None:
            self._silent.cancel()
        self._on_gone()
        self._server.connection_lost(exc)


class _Full(asyncio.Protocol):
    """For one connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_FULL)
        transport.close()
