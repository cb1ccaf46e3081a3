"""Which mail is stored? Lists, single mails, and what is in them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gsmtpd.message.body import attachment, read_body
from gsmtpd.status import parameters
from gsmtpd.status.answers import WrongError, said
from gsmtpd.status.headers import MAIL_POLICY, OCTETS_POLICY
from gsmtpd.status.mail_json import (
    content_of,
    facts_of,
    header_of,
    named,
    to_be_saved,
    whole,
    without_octets,
)
from gsmtpd.status.outgoing import Outgoing
from gsmtpd.status.readers import Readers
from gsmtpd.status.safe_html import safe_page
from gsmtpd.storage import terms
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.moments import moment
from gsmtpd.storage.reader import UnreadableError
from gsmtpd.storage.search import Wanted

LIMIT = 50
MAX_LIMIT = 500
_ID = "/api/mails/{id:[0-9]{1,19}}"
_WANTED = {
    "to": terms.mailbox,
    "from": terms.mailbox,
    "subject": terms.text,
    "text": terms.text,
    "domain": terms.domain,
    "since": moment,
    "until": moment,
}
_LIST = _WANTED | {
    "limit": parameters.number(1, MAX_LIMIT),
    "before": parameters.cursor,
    "names": parameters.truth,
}


class Mails:
    """/api/mails and below."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._outgoing = Outgoing()

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/api/mails", self._list),
            web.get(_ID, self._mail),
            web.delete(_ID, self._delete),
            web.get(f"{_ID}/raw", self._raw),
            web.get(f"{_ID}/text", self._text),
            web.get(f"{_ID}/headers", self._headers),
            web.get(f"{_ID}/html", self._html),
            web.get(_ID + "/attachments/{number:[1-9][0-9]{0,3}}", self._attachment),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        values = parameters.parameters(request, _LIST)
        limit, before = values.pop("limit", LIMIT), values.pop("before", "")
        has_names = values.pop("names", False)
        wanted = Wanted(from_=values.pop("from", ""), **values)

        def find(finder: Finder) -> tuple[list[dict[str, Any]], str | None]:
            mails, following = finder.search(wanted, limit, before)
            if has_names:
                return named(mails, finder.heads(mails)), following
            return [facts_of(mail) for mail in mails], following

        try:
            mails, following = await self._readers.ask(find)
        except ValueError as error:
            raise WrongError(str(error)) from None
        return said({"mails": mails, "next": following})

    async def _delete(self, request: web.Request) -> web.Response:
        mail_id = _asked(request)
        if not await self._readers.ask(lambda finder: finder.delete(mail_id)):
            raise _no_mail(mail_id)
        return web.Response(status=204)

    async def _mail(self, request: web.Request) -> web.Response:
        mail_id = _asked(request)

        def find(finder: Finder) -> dict[str, Any] | None:
            reader = finder.reader
            try:
                found = reader.mail(mail_id)
            except UnreadableError as error:
                mail = reader.row(mail_id)
                if mail is None:
                    return None
                text, attached = reader.text(mail_id), reader.attachments(mail_id)
                return without_octets(mail, text, attached, str(error))
            return None if found is None else whole(*found)

        found = await self._readers.ask(find)
        if found is None:
            raise _no_mail(mail_id)
        return said(found)

    async def _octets(self, request: web.Request) -> bytes:
        """Of the mail that is asked for, our fields in front. Raises WrongError, StoreError."""
        mail_id = _asked(request)
        found = await self._readers.ask(lambda finder: finder.reader.mail(mail_id))
        if found is None:
            raise _no_mail(mail_id)
        return found[1]

    async def _raw(self, request: web.Request) -> web.StreamResponse:
        answer = web.Response(body=await self._octets(request), content_type="message/rfc822")
        name = f"{request.match_info['id']}.eml"
        answer.headers["Content-Disposition"] = to_be_saved(name)
        answer.headers["Content-Security-Policy"] = OCTETS_POLICY
        return await self._outgoing.send(request, answer)

    async def _text(self, request: web.Request) -> web.StreamResponse:
        content = content_of(await self._octets(request))
        body = await self._readers.work(lambda: read_body(content))
        return await self._outgoing.send(request, _plain(body.text.encode("utf-8", "replace")))

    async def _headers(self, request: web.Request) -> web.StreamResponse:
        return await self._outgoing.send(request, _plain(header_of(await self._octets(request))))

    async def _html(self, request: web.Request) -> web.StreamResponse:
        content = content_of(await self._octets(request))
        page = await self._readers.work(lambda: safe_page(content))
        if page is None:
            raise WrongError("this mail has no HTML; its text is at …/text", 404)
        answer = web.Response(body=page, content_type="text/html", charset="utf-8")
        answer.headers["Content-Security-Policy"] = MAIL_POLICY
        return await self._outgoing.send(request, answer)

    async def _attachment(self, request: web.Request) -> web.StreamResponse:
        content = content_of(await self._octets(request))
        number = int(request.match_info["number"])

        def find() -> tuple[str, bytes] | None:
            attachments = read_body(content).attachments
            if number > len(attachments):
                return None
            return attachments[number - 1].filename, attachment(content, number)

        found = await self._readers.work(find)
        if found is None:
            raise WrongError("this mail has fewer attachments; it lists them itself", 404)
        name, octets = found
        answer = web.Response(body=octets, content_type="application/octet-stream")
        answer.headers["Content-Disposition"] = to_be_saved(name or f"attachment-{number}.bin")
        answer.headers["Content-Security-Policy"] = OCTETS_POLICY
        return await self._outgoing.send(request, answer)


def _asked(request: web.Request) -> int:
    """The id of the mail that is asked for; nothing else may be said."""
    parameters.parameters(request, {})
    return parameters.mail_id(request)


def _plain(octets: bytes) -> web.Response:
    answer = web.Response(body=octets, content_type="text/plain", charset="utf-8")
    answer.headers["Content-Security-Policy"] = OCTETS_POLICY
    return answer


def _no_mail(mail_id: int) -> WrongError:
    return WrongError(f"there is no mail {mail_id}", 404)
