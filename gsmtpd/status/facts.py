"""How does gsmtpd do? What its master knows, for the page and for programs."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gsmtpd.status import parameters
from gsmtpd.status.answers import said
from gsmtpd.status.parts import Parts


class Facts:
    """/api/status and what belongs to it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/api/status", self._status),
            web.get("/api/sessions", self._sessions),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        parameters.parameters(request, {})
        return said(await asyncio.to_thread(self._parts.ask_master, "status", ""))

    async def _sessions(self, request: web.Request) -> web.Response:
        parameters.parameters(request, {})
        return said(await asyncio.to_thread(self._parts.ask_master, "sessions", ""))
