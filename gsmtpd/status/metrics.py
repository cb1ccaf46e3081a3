"""What does Prometheus hear? The last sample of all counters, and what the master says."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from gsmtpd import exposition
from gsmtpd.control import ControlError
from gsmtpd.metrics import CELLS
from gsmtpd.status.facts import Known
from gsmtpd.status.parts import Parts
from gsmtpd.storage.spool import Figures

_COUNT = ("handler", "state", "number")


class Metrics:
    """/metrics."""

    def __init__(self, parts: Parts, known: Known) -> None:
        self._parts = parts
        self._known = known

    def routes(self) -> list[web.RouteDef]:
        """The path."""
        return [web.get("/metrics", self._get)]

    async def _get(self, _: web.Request) -> web.Response:
        status, waiting = await asyncio.gather(self._master(), self._known.waiting())
        # As the master has summed them up: what the dead have counted is seen once, always.
        newest = self._parts.history.latest()
        facts = exposition.Facts(
            self._parts.version,
            newest.cells if newest is not None else [0] * CELLS,
            self._parts.max_clients,
            status,
            _spool(waiting.get("spool")),
            _outbox(waiting.get("outbox")),
        )
        octets = await asyncio.to_thread(exposition.render, facts)
        answer = web.Response(body=octets)
        answer.headers["Content-Type"] = exposition.CONTENT_TYPE
        return answer

    async def _master(self) -> dict[str, Any] | None:
        try:
            return await self._known.master()
        except ControlError:
            return None


def _spool(found: dict[str, Any] | None) -> Figures | None:
    if found is None or "error" in found:
        return None
    return Figures(*(found[name] for name in Figures._fields))


def _outbox(found: dict[str, Any] | None) -> list[tuple[str, str, int]] | None:
    if found is None or "error" in found:
        return None
    return [(each["handler"], each["state"], each["number"]) for each in found["counts"]]
