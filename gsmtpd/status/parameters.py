"""What does a request ask for? Its parameters, each known and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from gsmtpd.status.answers import WrongError

MAX_CURSOR = 2000  # of a cursor
MAX_ID = (1 << 63) - 1
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,20})?(e-[0-9]{1,3})?", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)

Check = Callable[[str], Any]


def parameters(request: web.Request, known: Mapping[str, Check]) -> dict[str, Any]:
    """The values of those parameters that the request has, each as its check makes it.

    Raises WrongError for one that is unknown, there twice or empty, or not what it has to be.
    """
    found: dict[str, Any] = {}
    for name, text in request.query.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise WrongError(f"unknown parameter {name[:40]!r}; {takes}")
        if name in found:
            raise WrongError(f"{name} is there twice; say it once")
        try:
            text.encode()
            found[name] = known[name](text)
        except UnicodeEncodeError:
            raise WrongError(f"{name} is not UTF-8") from None
        except ValueError as error:
            raise WrongError(f"{name}: {error}") from None
    return found


def needed(values: Mapping[str, Any], name: str) -> Any:
    """The value that must be there. Raises WrongError."""
    if name not in values:
        raise WrongError(f"{name} is missing; say it")
    return values[name]


def truth(value: str) -> bool:
    """Whether something is wanted."""
    if value not in ("true", "false"):
        raise ValueError("say true or false")
    return value == "true"


def cursor(value: str) -> str:
    """Where something goes on: what an answer has said."""
    if not value or len(value) > MAX_CURSOR:
        raise ValueError("give it back as it came, or leave it out")
    return value


def number(least: int, most: int) -> Check:
    """A number of these bounds."""

    def check(value: str) -> int:
        if not _NUMBER.fullmatch(value) or not least <= int(value) <= most:
            raise ValueError(f"{value[:40]!r} is not a number from {least} to {most}")
        return int(value)

    return check


def seconds(most: float) -> Check:
    """A time that is not negative, in seconds."""

    def check(value: str) -> float:
        if not _SECONDS.fullmatch(value) or float(value) > most:
            raise ValueError(f"{value[:40]!r} is not a number of seconds from 0 to {most:g}")
        return float(value)

    return check


def mail_id(request: web.Request) -> int:
    """The id in the path. Raises HTTPNotFound for what is none."""
    found = int(request.match_info["id"])
    if found > MAX_ID:
        raise web.HTTPNotFound
    return found
