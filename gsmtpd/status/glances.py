"""What has just come, as far as a person can follow? The newest few, of thousands a second.

Who wants each mail has Arrivals; that reads all of them, which a page that nobody could follow is
not worth. Here the newest are looked at twice a second, and what was not seen is new.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from gsmtpd.status.mail_json import named
from gsmtpd.status.readers import Readers
from gsmtpd.status.streams import Listener, event
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import StoredMail
from gsmtpd.storage.search import Wanted

MOST = 100  # that may be asked for
_LOOK = 0.5  # seconds
_AFTER_TROUBLE = 2.0
_LOOKED_AT = 200  # of the newest mails, where one domain is meant


class Glance:
    """The newest `most` mails to an address or a domain, or of all; "" each for any."""

    def __init__(self, readers: Readers, to: str, domain: str, most: int) -> None:
        self._readers = readers
        self._to = to
        self._domain = domain.lower()
        self._most = most
        self._seen: set[int] | None = None
        self._above = 0  # the lowest id of those seen: what is below is old

    async def new(self) -> Sequence[StoredMail]:
        """What has come since the last look, oldest first; nothing at first. Raises StoreError."""
        mails = await self._readers.ask(self._newest)
        seen, above = self._seen, self._above
        self._seen = {mail.mail_id for mail in mails}
        self._above = min(self._seen, default=0)
        if seen is None:
            return ()
        return [mail for mail in mails if mail.mail_id not in seen and mail.mail_id > above]

    async def named(self) -> list[dict[str, Any]]:
        """The same in JSON, with the names of who they are from. Raises StoreError."""
        mails = await self.new()
        if not mails:
            return []
        return named(mails, await self._readers.ask(lambda finder: finder.heads(mails)))

    def _newest(self, finder: Finder) -> list[StoredMail]:
        if self._to:
            page = finder.search(Wanted(to=self._to, domain=self._domain), self._most)
            return page.mails[::-1]
        if not self._domain:
            return finder.reader.recent(self._most)
        found = finder.reader.recent(_LOOKED_AT)
        return [mail for mail in found if self._is_in_domain(mail)][-self._most :]

    def _is_in_domain(self, mail: StoredMail) -> bool:
        addresses = mail.recipient, mail.to
        return any(each.lower().rpartition("@")[2] == self._domain for each in addresses)


class Glances:
    """Serves them."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._listeners: set[Listener] = set()

    async def serve(
        self, request: web.Request, to: str, domain: str, most: int
    ) -> web.StreamResponse:
        """Send what is new until the client is gone. Raises StoreError before anything is sent."""
        glance = Glance(self._readers, to, domain, most)
        await glance.new()
        listener = Listener()
        self._listeners.add(listener)
        looking = asyncio.create_task(self._look(glance, listener.put))
        try:
            return await listener.serve(request)
        finally:
            looking.cancel()
            self._listeners.discard(listener)

    async def _look(self, glance: Glance, put: Callable[[bytes], None]) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            try:
                for facts in await glance.named():
                    put(event("mail", json.dumps(facts)))
            except StoreError:
                await asyncio.sleep(_AFTER_TROUBLE)

    def end(self) -> None:
        """Send no more."""
        for listener in self._listeners:
            listener.end()
