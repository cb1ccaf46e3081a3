"""Who waits for mail? GET /api/wait for one, GET /api/stream for all that comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from aiohttp import web

from gsmtpd.status import parameters
from gsmtpd.status.answers import WrongError, said
from gsmtpd.status.arriving import Arrivals
from gsmtpd.status.glances import MOST, Glances
from gsmtpd.status.mail_json import facts_of
from gsmtpd.status.readers import Readers
from gsmtpd.status.streams import Listener, event
from gsmtpd.storage.arrivals import START, Cursor, parse, parse_place
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import StoredMail

_MOST_HELD = 1000  # batches
TIMEOUT, MAX_TIMEOUT = 30.0, 300.0  # seconds


def _cursor(text: str) -> Cursor:
    """Where a wait goes on."""
    return parse(parameters.cursor(text))


def _place(text: str) -> str:
    """Where a stream goes on."""
    parse_place(parameters.cursor(text))
    return text


_WAIT = {
    "to": parameters.text,
    "after": _cursor,
    "timeout": parameters.seconds(MAX_TIMEOUT),
}
_STREAM = {
    "to": parameters.text,
    "domain": parameters.text,
    "after": _place,
    "most": parameters.number(1, MOST),
}
Meant = Callable[[StoredMail], bool]


class _Waiter:
    """One request that waits for mail to one address, beyond `cursor`."""

    def __init__(self, request: web.Request, cursor: Cursor) -> None:
        self._request = request
        self._cursor = cursor
        self.come: asyncio.Future[StoredMail | None] = asyncio.get_running_loop().create_future()

    def offer(self, mail: StoredMail) -> None:
        is_new = mail.mail_id > self._cursor.below and mail.mail_id not in self._cursor.seen
        if is_new and not self.come.done():
            self.come.set_result(mail)

    def is_gone(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def end(self) -> None:
        if not self.come.done():
            self.come.set_result(None)


class _Stream:
    """One client that reads all mail that is meant. It is held back until `release`."""

    def __init__(self, is_meant: Meant) -> None:
        self.listener = Listener()
        self.given: set[int] = set()  # while it is held back
        self._is_meant = is_meant
        self._held: list[tuple[Collection[StoredMail], str]] | None = []

    def take(self, mails: Collection[StoredMail], cursor: str) -> None:
        if self._held is None:
            self.send(mails, cursor)
        elif len(self._held) < _MOST_HELD:
            self._held.append((mails, cursor))
        else:
            self.end()  # its client comes again, and goes on where it was

    def send(self, mails: Collection[StoredMail], cursor: str) -> None:
        """Send what is meant, and behind it the cursor with which it goes on."""
        for mail in mails:
            if self._is_meant(mail):
                self.listener.put(event("mail", json.dumps(facts_of(mail))))
        if not self.listener.ended:  # else not all of it was taken
            self.listener.id = cursor
            self.listener.put(event(id=cursor))

    def release(self) -> None:
        """Send what has come meanwhile, but for what was given, and from now on all at once."""
        held, self._held = self._held or [], None
        for mails, cursor in held:
            self.send([mail for mail in mails if mail.mail_id not in self.given], cursor)
        self.given.clear()

    def end(self) -> None:
        self.listener.end()


class Waiting:
    """/api/wait and /api/stream."""

    def __init__(self, readers: Readers, arrivals: Arrivals, glances: Glances) -> None:
        self._readers = readers
        self._arrivals = arrivals
        self._glances = glances

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/api/wait", self._wait),
            web.get("/api/stream", self._stream, allow_head=False),
        ]

    async def _wait(self, request: web.Request) -> web.Response:
        wanted = parameters.parameters(request, _WAIT)
        address = parameters.needed(wanted, "to")
        mail, cursor = await self._next(
            request, address, wanted.get("after", START), wanted.get("timeout", TIMEOUT)
        )
        return said({"mail": None if mail is None else facts_of(mail), "cursor": str(cursor)})

    async def _next(
        self, request: web.Request, address: str, cursor: Cursor, timeout: float
    ) -> tuple[StoredMail | None, Cursor]:
        """The next mail to `address` behind `cursor`, if one comes in time; and the next cursor."""
        if not timeout:
            return await self._readers.ask(lambda finder: finder.next_for(address, cursor))
        waiter, key = _Waiter(request, cursor), address.lower()
        # It is offered all that comes, and then it looks whether something is there already:
        # between the two nothing slips through.
        self._arrivals.wait(key, waiter)
        try:
            await self._arrivals.begin()
            found, cursor = await self._readers.ask(lambda f: f.next_for(address, cursor))
            if found is not None:
                return found, cursor
            with suppress(asyncio.TimeoutError):  # noqa: UP041  # Python 3.10 had two
                found = await asyncio.wait_for(waiter.come, timeout)
            return found, cursor if found is None else cursor.given(found.mail_id, 0)
        finally:
            self._arrivals.leave(key, waiter)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        wanted = parameters.parameters(request, _STREAM)
        after = wanted.get("after", "")
        if most := wanted.get("most"):
            if after:
                raise WrongError("after: with most, mail is left out anyhow; say one of the two")
            to, domain = wanted.get("to", ""), wanted.get("domain", "")
            return await self._glances.serve(request, to, domain, most)
        with suppress(ValueError):  # of another server
            after = _place(request.headers.get("Last-Event-ID", "")) or after
        stream = _Stream(_filter(wanted))
        self._arrivals.read(stream)
        try:
            now = await self._arrivals.begin_reading()
            stream.send([], after or now)
            catching_up = asyncio.create_task(self._catch_up(stream, after))
            try:
                return await stream.listener.serve(request)
            finally:
                catching_up.cancel()
        finally:
            self._arrivals.leave_reading(stream)

    async def _catch_up(self, stream: _Stream, after: str) -> None:
        """Send what has come since `after`, if that is anything, then all that comes."""

        def look(finder: Finder) -> tuple[list[StoredMail], str]:
            tail = finder.tail(after)
            return tail.look(), tail.cursor()

        while after and not stream.listener.ended:
            try:
                mails, after = await self._readers.ask(look)
            except StoreError:
                stream.end()  # its client comes again
                return
            if not mails:
                break
            stream.send(mails, after)
            stream.given.update(mail.mail_id for mail in mails)
            await stream.listener.taken()
        stream.release()


def _filter(wanted: dict[str, Any]) -> Meant:
    to, domain = wanted.get("to", "").lower(), wanted.get("domain", "").lower()

    def is_meant(mail: StoredMail) -> bool:
        addresses = mail.recipient.lower(), mail.to.lower()
        if to and to not in addresses:
            return False
        return not domain or domain in (each.rpartition("@")[2] for each in addresses)

    return is_meant
