"""How does the HTTP server run? On a loop of its own thread, in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from aiohttp import web

from gsmtpd.metrics import Counter
from gsmtpd.server.engine import stacks
from gsmtpd.status.guests import Answerer, Guests, Heard

MAX_LINE = 65536  # octets of a request's first line: nine texts in UTF-8, each octet as %41
KEEP_ALIVE = 30.0  # seconds that a connection may rest between requests
SEND_WITHIN = 60_000  # milliseconds that a client may take none of what we send
BEAT = 1.0  # seconds
START_WITHIN = 10.0
STOP_WITHIN = 2.0
RETIRE_WITHIN = 60.0  # for those who fetch something large slowly
LAST_ANSWERS = 1.0  # seconds in which who asks again hears that the connection ends with the answer
_BACKLOG = 4096  # the kernel takes as many as net.core.somaxconn allows


class Ending:
    """Whether the server is about to end, for those who keep a client waiting."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []
        self.begun = False

    def call(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when it begins."""
        self._callbacks.append(callback)

    def begin(self) -> None:
        """It begins."""
        self.begun = True
        for callback in self._callbacks:
            callback()


class StatusServer:
    """Serves an application on `sockets`. Start it behind the fork; gsmtpd.worker can run it.

    make: makes the application, in the loop's thread; it calls Heard for each request. row: of the
    counters, its beats are ours.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make: Callable[[Ending, Heard], web.Application],
        row: memoryview,
    ) -> None:
        self._sockets = list(sockets)
        self._make = make
        self._row = row
        self._loop = asyncio.new_event_loop()
        self._ending = Ending()
        self._servers: list[asyncio.Server] = []
        self._runner: web.AppRunner | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    # ---- as a worker runs it ---------------------------------------------------------------------

    def start(self) -> None:
        """Serve. Raises what keeps it from that."""
        self._thread.start()
        self._call(self._begin()).result(START_WITHIN)

    def retire(self) -> None:
        """Accept nobody more; who waits hears that nothing has come."""
        self._finish(RETIRE_WITHIN, LAST_ANSWERS)

    @property
    def idle(self) -> bool:
        """Whether all has ended behind `retire`."""
        return self._ended.is_set()

    def stop(self) -> None:
        """End now."""
        self._finish(STOP_WITHIN, 0.0)
        self._ended.wait(STOP_WITHIN + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    def dump(self) -> Iterator[str]:
        """What it does, for the log."""
        runner = self._runner
        if runner is not None and runner.server is not None:
            yield f"status: {len(runner.server.connections)} connections"
        yield from stacks()

    # ---- in the loop -----------------------------------------------------------------------------

    def _call(self, doing) -> Future[None]:  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(doing, self._loop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _begin(self) -> None:
        guests = Guests()
        app = self._make(self._ending, guests.heard)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        assert self._runner.server is not None
        guests.serve(partial(self._answerer, self._runner.server))
        for each in self._sockets:
            # Connections inherit it: what is sent to somebody who does not read ends.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_WITHIN)
            server = await self._loop.create_server(guests.admit, sock=each, backlog=_BACKLOG)
            self._servers.append(server)
        self._beat()

    def _answerer(self, server: web.Server) -> Answerer:
        return Answerer(
            server,
            loop=self._loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=MAX_LINE,
        )

    def _beat(self) -> None:
        self._row[Counter.BEATS] += 1
        self._loop.call_later(BEAT, self._beat)

    def _finish(self, within: float, rest: float) -> None:
        self._call(self._end(within, rest))

    async def _end(self, within: float, rest: float) -> None:
        """End within so many seconds. rest: those in which connections may still be used."""
        for server in self._servers:
            server.close()
        if not self._ending.begun:
            self._ending.begin()
        await asyncio.sleep(rest)
        runner = self._runner
        if runner is not None and runner.server is not None:
            # `shutdown` alone waits for those that rest, too, and hears none of them any more.
            for each in runner.server.connections:
                each.close()
            with suppress(Exception):
                await runner.server.shutdown(within)
            await runner.cleanup()
        self._ended.set()
