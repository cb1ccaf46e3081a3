"""What does the API take and give? Its description, OpenAPI 3.1, at /api/openapi.json."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gsmtpd.status import parameters, waiting
from gsmtpd.status.answers import said
from gsmtpd.status.glances import MOST
from gsmtpd.status.mails import LIMIT, MAX_LIMIT
from gsmtpd.storage import terms

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SAID: Schema = {"type": "string", "pattern": r"^[^\x00]+$", "maxLength": terms.MAX_TEXT}
_CURSOR: Schema = _SAID | {"maxLength": parameters.MAX_CURSOR}
_DAY = (
    r"((19|20)[0-9]{2}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))|(19|20)(0[48]|[2468][048]|[13579][26])-02-29)"
)
_MOMENT = TEXT | {
    "pattern": rf"^({_DAY}(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)?|[0-9]{{1,4}}[smhd])$",
    "examples": ["2026-11-22", "2026-11-22T09:30:00Z", "15m"],
}
_ADDRESS = _SAID | {"pattern": r"^([^\x00]+@[^\x00]+|[Pp]ostmaster)$"}
_ONE_ADDRESS = TEXT | {"pattern": r"^[0-9a-z]{1,13}(\.[0-9a-z]{1,16}){0,100}$"}
_ALL_MAIL = TEXT | {"pattern": r"^T[0-9a-z]{1,13}(\.[0-9a-z]{1,16}){0,100}$"}


def _object(needed: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": needed, "required": [*needed], **more}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_MAIL = {
    "id": {"type": "integer", "minimum": 0},
    "hash": TEXT | {"description": "the id that the sender was told in the 250"},
    "date": TEXT | {"description": "when it was received, RFC 3339, UTC"},
    "from": TEXT | {"description": "the address in From"},
    "to": TEXT | {"description": "the mailbox that it went into"},
    "recipient": TEXT | {"description": "as the client named it"},
    "return_path": TEXT,
    "subject": TEXT,
    "size": _COUNT,
    "ip_addr": TEXT | {"description": "of the client"},
    "helo": TEXT,
    "tls": {"type": "boolean"},
    "has_attach": _COUNT,
}
_NAME = TEXT | {
    "description": "the name in From, which says what it likes; in a list where `names` asks for"
    ' it, in a stream where `most` does; "" without one, or where it is not soon known'
}
_ATTACHMENT = {
    "number": {"type": "integer", "minimum": 1},
    "filename": TEXT,
    "content_type": TEXT,
    "size": _COUNT,
}
_WHOLE = {
    "text": TEXT,
    "headers": {
        "type": "array",
        "items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
    },
    "attachments": {"type": "array", "items": _ref("Attachment")},
    "has_html": {"type": "boolean"},
    "unreadable": _or_null(TEXT)
    | {"description": "why its octets cannot be had, null if they can"},
}
_SCHEMAS = {
    "Mail": _object(_MAIL) | {"properties": _MAIL | {"from_name": _NAME}},
    "Attachment": _object(_ATTACHMENT),
    "WholeMail": _object(_MAIL | {"from_name": _NAME} | _WHOLE),
    "Page": _object(
        {
            "mails": {"type": "array", "items": _ref("Mail")},
            "next": _or_null(TEXT)
            | {
                "description": "give it as `before` for what comes next; null where that is nothing"
            },
        }
    ),
    "Waited": _object(
        {
            "mail": _or_null(_ref("Mail")),
            "cursor": TEXT | {"description": "give it as `after` for the next mail"},
        }
    ),
    "Error": _object({"error": TEXT}),
    "Interrupted": _object(
        {
            "error": TEXT,
            "cursor": TEXT | {"description": "give it as `after`, and nothing is missed"},
        }
    ),
    "Status": {"type": "object"},
    "Sessions": _object(
        {
            "sessions": {"type": "array", "items": {"type": "object"}},
            "slowest": {"type": "array", "items": {"type": "object"}},
        }
    ),
    "History": _object(
        {
            "step": {"type": "integer", "minimum": 1},
            "columns": {"type": "array", "items": TEXT},
            "rows": {
                "type": "array",
                "items": {"type": "array", "items": {"type": ["number", "null"]}},
            },
        }
    ),
}


def _query(name: str, schema: Schema, about: str, needed: bool = False) -> Schema:
    return {
        "name": name,
        "in": "query",
        "description": about,
        "required": needed,
        "schema": schema,
    }


def _number(least: int, most: int, default: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "default": default}


_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "the id of a mail",
    "schema": {"type": "integer", "minimum": 0, "maximum": parameters.MAX_ID},
}
_NUMBER = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "the number of an attachment, from 1",
    "schema": {"type": "integer", "minimum": 1, "maximum": 9999},
}
_TO = "the address of the recipient, or of the mailbox, as a@b or <a@b>; capitals do not count"
_DOMAIN = "of the recipient or of the mailbox, as example.com or @example.com"
_LIST = [
    _query("to", _SAID, _TO),
    _query("from", _SAID, "part of the address in From or of the reverse-path; <a@b> is a@b"),
    _query("subject", _SAID, "part of the subject"),
    _query("text", _SAID, "part of the text"),
    _query("domain", _SAID, _DOMAIN),
    _query("since", _MOMENT, "the first moment that counts; a time, or an age"),
    _query("until", _MOMENT, "the first moment that does not; likewise"),
    _query("limit", _number(1, MAX_LIMIT, LIMIT), "mails of a page, at most"),
    _query("before", _CURSOR, "`next` of the page before"),
    _query("names", {"type": "boolean", "default": False}, "whether `from_name` is wanted"),
]
_TIMEOUT = {"type": "number", "minimum": 0, "maximum": waiting.MAX_TIMEOUT, "default": 30}
_WAIT = [
    _query("to", _ADDRESS, _TO, needed=True),
    _query(
        "after",
        _ONE_ADDRESS,
        "`cursor` of the answer before; without it the first mail that is stored",
    ),
    _query("timeout", _TIMEOUT, "seconds to wait, if there is none yet"),
]
_STREAM = [
    _query("to", _SAID, _TO),
    _query("domain", _SAID, _DOMAIN),
    _query("after", _ALL_MAIL, "the id of an event; as Last-Event-ID"),
    _query(
        "most",
        {"type": "integer", "minimum": 1, "maximum": MOST},
        "for people: the newest so many twice a second; where more come, the others are left out",
    ),
]
_HISTORY = [
    _query("seconds", _number(1, 3600, 3600), "how far back"),
    _query("step", _number(1, 3600, 10), "seconds from row to row"),
]
_ERRORS = {
    400: "a parameter is wrong; the error says what would be right",
    401: "the password is missing or wrong",
    403: "asked by another website, or under a name that is not this machine's",
    404: "there is none",
    405: "not by this method",
    410: "the octets of the mail are gone",
    429: "too many wrong passwords",
    503: "the database, the body store or the master does not answer",
}
JSON, EVENTS, PLAIN = "application/json", "text/event-stream", "text/plain"


def _answers(kind: str, schema: Schema, errors: tuple[int, ...], about: str) -> Schema:
    answers: Schema = {
        str(code): {
            "description": _ERRORS[code],
            "content": {JSON: {"schema": _ref("Error")}},
        }
        for code in (*errors, 401, 403, 429)
    }
    return {"200": {"description": about, "content": {kind: {"schema": schema}}}} | answers


def _get(
    name: str,
    about: str,
    answer: Schema | str,
    takes: list[Schema] | None = None,
    errors: tuple[int, ...] = (400, 503),
) -> Schema:
    """A GET. answer: the schema of its JSON, or the type of what is no JSON."""
    kind, schema = (answer, TEXT) if isinstance(answer, str) else (JSON, answer)
    return {
        "operationId": name,
        "summary": about,
        "parameters": takes or [],
        "responses": _answers(kind, schema, errors, about),
    }


def _health(name: str, about: str, codes: dict[int, str]) -> Schema:
    return {
        "operationId": name,
        "summary": about,
        "security": [],
        "responses": {
            str(code): {"description": text, "content": {PLAIN: {"schema": TEXT}}}
            for code, text in codes.items()
        },
    }


_OF_A_MAIL = (400, 404, 410, 503)
_DELETE = {
    "operationId": "deleteMail",
    "summary": "Delete a mail.",
    "parameters": [],
    "responses": {
        **_answers(JSON, {}, (400, 404, 503), ""),
        "204": {"description": "it is deleted"},
    },
}
del _DELETE["responses"]["200"]  # type: ignore[attr-defined]

_WAITS = _get("waitForMail", "The next mail to an address.", _ref("Waited"), _WAIT)
_WAITS["responses"]["503"] = {
    "description": "the database is away, or gsmtpd reloads: whether mail has come is not known;"
    " ask again, with that cursor",
    "headers": {"Retry-After": {"description": "seconds", "schema": _COUNT}},
    "content": {JSON: {"schema": _ref("Interrupted")}},
}

_PATHS: dict[str, Schema] = {
    "/healthz": {"get": _health("health", "Whether it lives.", {200: "it does"})},
    "/readyz": {
        "get": _health(
            "ready", "Whether mail can be stored now.", {200: "it can", 503: "why it cannot"}
        )
    },
    "/metrics": {"get": _get("metrics", "Numbers for Prometheus.", PLAIN, errors=())},
    "/api/openapi.json": {
        "get": _get("description", "This description.", {"type": "object"}, errors=(400,))
    },
    "/api/status": {"get": _get("status", "How gsmtpd does.", _ref("Status"))},
    "/api/sessions": {
        "get": _get("sessions", "Who is connected, and what was slow.", _ref("Sessions"))
    },
    "/api/history": {
        "get": _get("history", "How it was in the last hour.", _ref("History"), _HISTORY)
    },
    "/api/live": {"get": _get("live", "A sample each second.", EVENTS, errors=(400,))},
    "/api/mails": {
        "get": _get("findMails", "Mail, the newest first, page by page.", _ref("Page"), _LIST)
    },
    "/api/mails/{id}": {
        "parameters": [_ID],
        "get": _get("mail", "One mail.", _ref("WholeMail"), errors=_OF_A_MAIL),
        "delete": _DELETE,
    },
    "/api/mails/{id}/raw": {
        "parameters": [_ID],
        "get": _get("raw", "Its octets.", "message/rfc822", errors=_OF_A_MAIL),
    },
    "/api/mails/{id}/text": {
        "parameters": [_ID],
        "get": _get("text", "Its text.", PLAIN, errors=_OF_A_MAIL),
    },
    "/api/mails/{id}/headers": {
        "parameters": [_ID],
        "get": _get("headers", "Its header section.", PLAIN, errors=_OF_A_MAIL),
    },
    "/api/mails/{id}/html": {
        "parameters": [_ID],
        "get": _get("html", "Its HTML, made harmless.", "text/html", errors=_OF_A_MAIL),
    },
    "/api/mails/{id}/attachments/{number}": {
        "parameters": [_ID, _NUMBER],
        "get": _get(
            "attachment", "An attachment.", "application/octet-stream", errors=_OF_A_MAIL
        ),
    },
    "/api/wait": {"get": _WAITS},
    "/api/stream": {"get": _get("stream", "All mail as it comes.", EVENTS, _STREAM)},
}  # fmt: skip


def description(version: str) -> Schema:
    """The document. version: of gsmtpd."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gsmtpd",
            "version": version,
            "description": "Mail that gsmtpd has stored, and how it does. Errors are JSON:"
            ' {"error": "..."}.',
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"basic": []}, {"bearer": []}, {}],
        "paths": _PATHS,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


class Description:
    """/api/openapi.json."""

    def __init__(self, version: str) -> None:
        self._document = description(version)

    def routes(self) -> list[web.RouteDef]:
        """The path."""
        return [web.get("/api/openapi.json", self._get)]

    async def _get(self, request: web.Request) -> web.Response:
        parameters.parameters(request, {})
        return said(self._document)
