"""How is something said in JSON, and how that it cannot be had?"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from gsmtpd.control import ControlError
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.reader import BodyStoreAwayError, UnreadableError

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
JSON = "application/json"


class WrongError(Exception):
    """A request cannot be done; the text is one clear line. status: of HTTP."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def said(value: object, status: int = 200) -> web.Response:
    """An answer in JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # What no UTF-8 can say, of a mail's header, is said as JSON's escape.
    octets = text.encode("utf-8", "backslashreplace")
    return web.Response(body=octets, status=status, content_type=JSON, charset="utf-8")


def sorry(status: int, text: str) -> web.Response:
    """An answer that says what is wrong."""
    return said({"error": text}, status)


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have what goes wrong said in JSON, and nothing be 500 but our own faults."""
    try:
        return await handler(request)
    except WrongError as error:
        return sorry(error.status, str(error))
    except BodyStoreAwayError as error:
        return sorry(503, str(error))
    except UnreadableError as error:
        return sorry(410, str(error))
    except StoreError as error:
        return sorry(503, str(error))
    except ControlError as error:
        return sorry(503, str(error))
    except web.HTTPException as error:
        return _explained(request, error)
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        _log.exception("status: fault in %s %s", request.method, request.path)
        return sorry(500, "a fault of gsmtpd, see its log")


def _explained(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == 404:
        return sorry(404, "there is nothing here; see /api/openapi.json for what there is")
    if error.status != 405:
        return sorry(error.status, error.reason)
    allowed = error.headers.get("Allow", "")
    can_be = " or ".join(allowed.split(","))
    answer = sorry(405, f"{request.method} cannot be done here; what can be: {can_be}")
    answer.headers["Allow"] = allowed
    return answer
