"""Which paths are there, and what stands before all of them?"""

from __future__ import annotations

import asyncio

from aiohttp import web

from gsmtpd.status.access import PAUSE, Door
from gsmtpd.status.answers import Handler, explain, sorry
from gsmtpd.status.arriving import Arrivals
from gsmtpd.status.facts import Facts, Known
from gsmtpd.status.glances import Glances
from gsmtpd.status.guests import Heard
from gsmtpd.status.headers import guard
from gsmtpd.status.health import Health
from gsmtpd.status.live import Live
from gsmtpd.status.mails import Mails
from gsmtpd.status.metrics import Metrics
from gsmtpd.status.openapi import Description
from gsmtpd.status.pages import Pages
from gsmtpd.status.parts import Parts
from gsmtpd.status.readers import Readers
from gsmtpd.status.server import Ending
from gsmtpd.status.waiting import Waiting

MAX_BODY = 1024  # octets of a request; nothing here takes any
_SLOWED = 1.0  # seconds that who has said a wrong password waits
_CHALLENGES = ('Basic realm="gsmtpd", charset="UTF-8"', 'Bearer realm="gsmtpd"')


def make_application(parts: Parts, ending: Ending, heard: Heard) -> web.Application:
    """All that is served."""
    app = web.Application(
        middlewares=[_says(heard), explain, _lets_in(Door(parts.password, parts.hosts))],
        client_max_size=MAX_BODY,
    )
    readers = Readers(parts.open_finder)
    look = Readers(parts.open_finder, 1)  # for who must not wait behind a search
    arrivals = Arrivals(parts.open_finder, parts.stored)
    glances = Glances(readers)
    ending.call(arrivals.end)
    ending.call(glances.end)

    async def close(_: web.Application) -> None:
        readers.close()
        look.close()
        await arrivals.close()

    async def prepare(_: web.Request, response: web.StreamResponse) -> None:
        guard(response)
        if ending.begun:
            response.force_close()
            response.headers["Connection"] = "close"

    app.on_response_prepare.append(prepare)
    app.on_cleanup.append(close)
    known = Known(parts)
    for part in (
        Health(known, look),
        Facts(parts, known),
        Metrics(parts, known),
        Live(parts.history, ending),
        Waiting(readers, arrivals, glances),
        Mails(readers),
        Description(parts.version),
        Pages(),
    ):
        app.router.add_routes(part.routes())
    return app


def _says(heard: Heard):  # type: ignore[no-untyped-def]
    @web.middleware
    async def say(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Somebody asks: the connection is no silent one."""
        heard(request.protocol)
        return await handler(request)

    return say


def _lets_in(door: Door):  # type: ignore[no-untyped-def]
    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Have only those asked in who may be."""
        address = request.remote or ""
        refusal = door.refusal(request.method, request.path, request.headers, address)
        if refusal is None:
            return await handler(request)
        if refusal.wrong:
            await asyncio.sleep(_SLOWED)
        answer = sorry(refusal.status, refusal.text)
        if refusal.status == 401:
            for challenge in _CHALLENGES:
                answer.headers.add("WWW-Authenticate", challenge)
        elif refusal.status == 429:
            answer.headers["Retry-After"] = f"{PAUSE:.0f}"
        return answer

    return let_in
