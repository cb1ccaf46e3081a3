"""How does gsmtpd do? What its master knows, its database, and what waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gsmtpd.status import parameters
from gsmtpd.status.answers import said
from gsmtpd.status.parts import Parts

Found = dict[str, Any]
_HOLDS = 0.5  # seconds that the master's answer is given again
_WAITING_HOLDS = 5.0  # likewise what the database and the outbox say, who are asked anew
_WITHIN = 3.0  # seconds for these
_BOARD = 2.5  # seconds until sessions are there, which are noted only while somebody looks
_AGAIN = 0.2


class Remembered:
    """What `find` has found, for a while; it is called in a thread, and once for all who ask.

    That it failed is remembered likewise: else each who asks would wait for it to fail, in turn.
    """

    def __init__(self, find: Callable[[], Any], seconds: float) -> None:
        self._find = find
        self._seconds = seconds
        self._found: Any = None
        self._failed: Exception | None = None
        self._found_at = float("-inf")  # monotonic seconds
        self._lock = asyncio.Lock()

    async def get(self) -> Any:
        """It. Raises what `find` raises."""
        async with self._lock:
            if time.monotonic() - self._found_at > self._seconds:
                try:
                    self._found, self._failed = await asyncio.to_thread(self._find), None
                except Exception as error:
                    self._failed = error
                self._found_at = time.monotonic()
            if self._failed is not None:
                raise self._failed.with_traceback(None)  # which would grow with each
            return self._found


class Known:
    """What is known of gsmtpd beside the counters, none of it asked too often."""

    def __init__(self, parts: Parts) -> None:
        self._status = Remembered(lambda: parts.ask_master("status", ""), _HOLDS)
        self._database = Remembered(parts.database, _WAITING_HOLDS)
        self._waiting = Remembered(parts.waiting, _WAITING_HOLDS)

    async def master(self) -> Found:
        """What the master says of how it does. Raises ControlError."""
        found: Found = await self._status.get()
        return found

    async def status(self) -> Found:
        """What `gsmtpctl status --json` says. Raises ControlError."""
        status, database, waiting = await asyncio.gather(
            self.master(), _in_time(self._database), self.waiting()
        )
        known = {host["host"]: dict(host) for host in status["database"]}
        for each in database or []:
            known.setdefault(each["host"], {"host": each["host"], "away": False}).update(each)
        found: Found = status | {"database": [*known.values()]} | waiting
        return found

    async def waiting(self) -> Found:
        """The "spool" and the "outbox" of a status; None each where there is none."""
        found: Found | None = await _in_time(self._waiting)
        return found or {"spool": None, "outbox": None}


async def _in_time(what: Remembered) -> Any:
    """It, or None where it takes too long."""
    try:
        return await asyncio.wait_for(asyncio.shield(what.get()), _WITHIN)
    except asyncio.TimeoutError:  # noqa: UP041  # Python 3.10 had two
        return None


class Facts:
    """/api/status and /api/sessions."""

    def __init__(self, parts: Parts, known: Known) -> None:
        self._known = known
        self._sessions = Remembered(lambda: parts.ask_master("sessions", ""), _HOLDS)

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/api/status", self._get_status),
            web.get("/api/sessions", self._get_sessions),
        ]

    async def _get_status(self, request: web.Request) -> web.Response:
        parameters.parameters(request, {})
        return said(await self._known.status())

    async def _get_sessions(self, request: web.Request) -> web.Response:
        parameters.parameters(request, {})
        until = time.monotonic() + _BOARD
        while True:
            found = await self._sessions.get()
            if found["sessions"] or time.monotonic() > until:
                break
            if not (await self._known.master())["clients"]:
                break
            await asyncio.sleep(_AGAIN)
        return said(found)
