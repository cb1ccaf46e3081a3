"""How is it now, and how was it in the last hour? For the plots of the page."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from gsmtpd import rates
from gsmtpd.history import KEPT, History
from gsmtpd.status import parameters
from gsmtpd.status.answers import said
from gsmtpd.status.server import Ending
from gsmtpd.status.streams import Listener, event

_LOOK = 0.25  # seconds; there is a sample each second
_HISTORY = {"seconds": parameters.number(1, KEPT), "step": parameters.number(1, KEPT)}


class Live:
    """/api/history and /api/live, from the samples in shared memory."""

    def __init__(self, history: History, ending: Ending) -> None:
        self._history = history
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        ending.call(self._end)

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/api/history", self._table),
            web.get("/api/live", self._stream, allow_head=False),
        ]

    async def _table(self, request: web.Request) -> web.Response:
        wanted = parameters.parameters(request, _HISTORY)
        seconds, step = wanted.get("seconds", KEPT), wanted.get("step", 10)

        def table() -> list[list[object]]:
            return rates.rows(self._history.since(seconds, step))

        found = await asyncio.to_thread(table)
        return said({"step": step, "columns": rates.COLUMNS, "rows": found})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        parameters.parameters(request, {})
        listener = Listener()
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tell())
        try:
            return await listener.serve(request)
        finally:
            self._listeners.discard(listener)

    async def _tell(self) -> None:
        """Tell all who listen of each new sample."""
        last = 0.0
        while self._listeners:
            newest = self._history.latest()
            if newest is not None and newest.time != last:
                last = newest.time
                for row in rates.rows(self._history.since(1))[-1:]:
                    sample = json.dumps(dict(zip(rates.COLUMNS, row, strict=True)))
                    for listener in self._listeners:
                        listener.put(event("sample", sample))
            await asyncio.sleep(_LOOK)

    def _end(self) -> None:
        for listener in self._listeners:
            listener.end()
