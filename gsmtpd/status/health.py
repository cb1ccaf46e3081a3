"""Does it live, and can mail be stored now? What load balancers and supervisors ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from aiohttp import web

from gsmtpd.control import ControlError
from gsmtpd.status.facts import Known
from gsmtpd.status.readers import Readers
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder

_WITHIN = 2.0  # seconds that the database and the master have to answer
_HOLDS = 0.5  # seconds that an answer is given again: anybody may ask


class Health:
    """/healthz and /readyz."""

    def __init__(self, known: Known, readers: Readers) -> None:
        self._known = known
        self._readers = readers
        self._trouble = ""
        self._looked_at = float("-inf")  # monotonic seconds
        self._lock = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [web.get("/healthz", self._health), web.get("/readyz", self._ready)]

    async def _health(self, _: web.Request) -> web.Response:
        """This process answers, and it ends with its master."""
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        async with self._lock:
            if time.monotonic() - self._looked_at > _HOLDS:
                self._trouble = await self._look()
                self._looked_at = time.monotonic()
        if self._trouble:
            return web.Response(text=f"{self._trouble}\n", status=503)
        return web.Response(text="ok\n")

    async def _look(self) -> str:
        """What keeps us from storing mail, "" if nothing does."""
        database = _trouble("database", self._readers.ask(_ping))
        master = _trouble("master", self._look_at_workers())
        return "; ".join(filter(None, await asyncio.gather(database, master)))

    async def _look_at_workers(self) -> str:
        status = await self._known.master()
        for each in status["workers"]:
            if each["role"] == "smtp" and each["state"] == "serving":
                return ""
        return "no worker process serves SMTP clients"


def _ping(finder: Finder) -> str:
    finder.ping()
    return ""


async def _trouble(of: str, looking: Awaitable[str]) -> str:
    """What `looking` finds, or that who was asked has trouble to answer; "" for none."""
    try:
        return await asyncio.wait_for(looking, _WITHIN)
    except asyncio.TimeoutError:  # noqa: UP041  # Python 3.10 had two; the library is older
        return f"{of}: no answer within {_WITHIN:g} s"
    except (StoreError, ControlError) as error:
        return f"{of}: {error}"
