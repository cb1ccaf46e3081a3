"""How is a database on this machine made to be as far away as one on another?

By a relay that holds all octets for half of a round trip, in either direction. It needs time of
the same processors as everybody else.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

ROUND_TRIP = 0.005  # seconds, as to the next city
_PIECE = 1 << 18
_PATIENCE = 10.0  # seconds until it listens


class Relay:
    """Listens on 127.0.0.1 at `port` and passes connections on to `server`, while we run.

    round_trip: seconds from what is sent to an answer that is given at once.
    """

    def __init__(self, server: tuple[str, int], round_trip: float = ROUND_TRIP) -> None:
        self._server = server
        self._delay = round_trip / 2
        listening: Future[int] = Future()
        threading.Thread(
            target=lambda: asyncio.run(self._run(listening)), name="relay", daemon=True
        ).start()
        self.port = listening.result(_PATIENCE)

    async def _run(self, listening: Future[int]) -> None:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        listening.set_result(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    async def _take(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, there = await asyncio.open_connection(*self._server)
        await asyncio.gather(self._pass_on(near, there), self._pass_on(far, back))

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while octets := await source.read(_PIECE):
                loop.call_later(self._delay, target.write, octets)
        except OSError:
            pass  # the other end is told by its end of the connection
        loop.call_later(self._delay, target.close)
