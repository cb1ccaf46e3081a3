"""Who waits for mail? GET /api/wait for one, GET /api/stream for all that comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from aiohttp import web

from gsmtpd.status import parameters
from gsmtpd.status.answers import WrongError, said
from gsmtpd.status.arriving import LATE, Arrivals
from gsmtpd.status.glances import MOST, Glances
from gsmtpd.status.mail_json import facts_of
from gsmtpd.status.readers import Readers
from gsmtpd.status.streams import Listener, event
from gsmtpd.storage import terms
from gsmtpd.storage.arrivals import START, Cursor, parse, parse_place
from gsmtpd.storage.base import StoreError, StoreSetupError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import StoredMail

_MOST_HELD = 20_000  # mails; more come meanwhile only while a client takes them slowly
TIMEOUT, MAX_TIMEOUT = 30.0, 300.0  # seconds
_AFTER_TROUBLE = 0.5
_AGAIN_IN = 1  # seconds, for who was sent away


def _cursor(text: str) -> Cursor:
    """Where a wait goes on."""
    return parse(parameters.cursor(text))


def _place(text: str) -> str:
    """Where a stream goes on."""
    parse_place(parameters.cursor(text))
    return text


_WAIT = {
    "to": terms.address,
    "after": _cursor,
    "timeout": parameters.seconds(MAX_TIMEOUT),
}
_STREAM = {
    "to": terms.mailbox,
    "domain": terms.domain,
    "after": _place,
    "most": parameters.number(1, MOST),
}
Meant = Callable[[StoredMail], bool]


class _EndedError(Exception):
    """Nothing more is waited for here: the server ends, or another takes its place."""


class _Waiter:
    """One request that waits for mail to `address`, beyond `cursor`."""

    def __init__(self, request: web.Request, address: str, cursor: Cursor) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.cursor = cursor
        self.come: asyncio.Future[StoredMail] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self._request = request

    def offer(self, mail: StoredMail) -> None:
        is_new = mail.mail_id > self.cursor.below and mail.mail_id not in self.cursor.seen
        if is_new and not self.come.done():
            self.come.set_result(mail)

    def is_gone(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    async def wait_for(self, what: asyncio.Future[Any], seconds: float) -> bool:
        """Whether it is done within that time. Raises _EndedError where it ends before."""
        both: set[asyncio.Future[Any]] = {what, self.over}
        await asyncio.wait(both, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if not what.done() and self.over.done():
            raise _EndedError("gsmtpd reloads or stops; ask again, with this cursor as after")
        return what.done()


class _Stream:
    """One client that reads all mail that is meant. It is held back until `release`."""

    def __init__(self, is_meant: Meant) -> None:
        self.listener = Listener()
        # While it is held back: what it was given last, which is what may be among those held.
        self.given: deque[int] = deque(maxlen=2 * _MOST_HELD)
        self._is_meant = is_meant
        self._held: list[tuple[Collection[StoredMail], str]] | None = []
        self._held_mails = 0

    def take(self, mails: Collection[StoredMail], cursor: str) -> None:
        if self._held is None:
            self.send(mails, cursor)
        elif self._held_mails + len(mails) <= _MOST_HELD:
            self._held_mails += len(mails)
            self._held.append((mails, cursor))
        else:
            self._held.clear()
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
        given = {*self.given}
        for mails, cursor in held:
            self.send([mail for mail in mails if mail.mail_id not in given], cursor)
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
        waiter = _Waiter(request, address, wanted.get("after", START))
        try:
            mail = await self._next(waiter, wanted.get("timeout", TIMEOUT))
        except (StoreError, _EndedError) as error:
            # It is not known whether mail has come: that is no answer with `mail: null`.
            answer = said({"error": str(error), "cursor": str(waiter.cursor)}, 503)
            answer.headers["Retry-After"] = str(_AGAIN_IN)
            return answer
        facts = None if mail is None else facts_of(mail)
        return said({"mail": facts, "cursor": str(waiter.cursor)})

    async def _next(self, waiter: _Waiter, timeout: float) -> StoredMail | None:
        """The next mail, if one comes in time; its cursor is the next, too.

        Raises StoreError where the database was away to the end, and _EndedError.
        """
        ends = time.monotonic() + timeout
        # It is offered all that comes, and then it looks whether something is there already:
        # between the two nothing slips through.
        self._arrivals.wait(waiter)
        looking = asyncio.ensure_future(self._look(waiter, ends))
        try:
            if not await waiter.wait_for(looking, max(timeout, LATE)):
                raise StoreError(self._arrivals.trouble or "the database has not answered in time")
            found, waiter.cursor = looking.result()
            if found is not None or not timeout:
                return found
            if await waiter.wait_for(waiter.come, ends - time.monotonic()):
                found = waiter.come.result()
                waiter.cursor = waiter.cursor.given(found.mail_id, 0)
            elif trouble := self._arrivals.trouble:
                raise StoreError(trouble)
            return found
        finally:
            looking.cancel()
            self._arrivals.leave(waiter)

    async def _look(self, waiter: _Waiter, ends: float) -> tuple[StoredMail | None, Cursor]:
        """What is there for it, and the next cursor; asked again while the database is away.

        ends: monotonic seconds. Raises StoreError.
        """
        while True:
            left = ends - time.monotonic()
            try:
                if left > 0:
                    await self._arrivals.begin()
                return await self._readers.ask(lambda f: f.next_for(waiter.address, waiter.cursor))
            except StoreSetupError:
                raise
            except StoreError:
                if left <= 0:
                    raise
            await asyncio.sleep(min(_AFTER_TROUBLE, left))

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
            stream.given.extend(mail.mail_id for mail in mails)
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
