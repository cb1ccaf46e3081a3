"""Does the description have what is served, and nothing else?"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from gsmtpd.history import History
from gsmtpd.status import mails, openapi, waiting
from gsmtpd.status.application import make_application
from gsmtpd.status.parts import Parts
from gsmtpd.status.server import Ending
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder

OF_THE_PAGE = ("/", "/static/{name}")


def no_store() -> Finder:
    raise StoreError("there is none")


def served() -> dict[str, set[str]]:
    """The methods of each path that is served."""
    parts = Parts(
        version="1.2.3", password="", hosts=(), open_finder=no_store,
        ask_master=lambda command, about: {}, database=list, waiting=dict,
        history=History(4), max_clients=1, stored=-1,
    )  # fmt: skip

    async def make() -> Any:
        return make_application(parts, Ending(), lambda protocol: None)

    found: dict[str, set[str]] = {}
    for route in asyncio.run(make()).router.routes():
        found.setdefault(route.resource.canonical, set()).add(route.method.lower())
    return found


def test_each_path_is_described() -> None:
    paths = openapi.description("1.2.3")["paths"]
    described = {path: {*item} - {"parameters"} for path, item in paths.items()}
    routes = {path: methods - {"head"} for path, methods in served().items()}
    for path in OF_THE_PAGE:
        del routes[path]
    assert described == routes


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/api/mails", mails._LIST),
        ("/api/wait", waiting._WAIT),
        ("/api/stream", waiting._STREAM),
    ],
)
def test_each_parameter_is_described(path: str, known: dict[str, object]) -> None:
    takes = openapi.description("1.2.3")["paths"][path]["get"]["parameters"]
    assert [each["name"] for each in takes] == [*known]


def test_each_reference_leads_somewhere() -> None:
    document = openapi.description("1.2.3")
    names = set(re.findall(r"'#/components/schemas/(\w+)'", repr(document)))
    assert names == {*document["components"]["schemas"]}


DAYS = next(
    each["schema"]["pattern"]
    for each in openapi.description("1")["paths"]["/api/mails"]["get"]["parameters"]
    if each["name"] == "since"
)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("2026-11-22", True),
        ("2026-11-22T09:30:00Z", True),
        ("2026-11-31", False),
        ("2026-02-29", False),
        ("2024-02-29", True),
        ("2026-11-22T24:00:00Z", False),
        ("0", False),
    ],
)
def test_days(text: str, good: bool) -> None:
    assert (re.search(DAYS, text) is not None) is good
