"""Which handlers are there, and whose mail does each act on?"""

from __future__ import annotations

import re
from typing import Any

from gsmtpd.config_file import MANY, Place, Report
from gsmtpd.config_types import HandlerConfig, HandlersConfig
from gsmtpd.wording import shown

MAX_NAME = 64  # characters, as the tables have room for
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}")
_SECRET = re.compile(r"(?:.*[_-])?(?:secret|password|token)", re.IGNORECASE)


def handlers(tree: Any, spec: Any, report: Report) -> HandlersConfig:
    """What stands in [handlers]; `report` hears what is wrong."""
    section = tree["handlers"]
    each = tuple(_handler(name, section[name], spec, report) for name in section.sections)
    _check_alike([handler.name for handler in each], report)
    if each and tree["store"]["backend"] == "null":
        wrong = "act on mail that is stored, and [store] backend is null; set that to sqlite"
        report.problem(Place(("handlers",)), f"{wrong} or mysql")
    return HandlersConfig(**{key: section[key] for key in section.scalars}, each=each)


def _check_alike(names: list[str], report: Report) -> None:
    """MySQL knows no capitals in a name of ASCII; variables neither these nor "-"."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.lower().replace("-", "_"), name)
        if first != name:
            wrong = f"is [[{first}]] but for capitals, - and _; write another name"
            report.problem(report.named("handlers", name), wrong)


def _handler(name: str, section: Any, spec: Any, report: Report) -> HandlerConfig:
    place = report.named("handlers", name)
    if not _NAME.fullmatch(name):
        wrong = f"is not a name for a handler; write up to {MAX_NAME} letters, digits, - and _ only"
        report.problem(place, wrong)
    for key, example in (("match", "8ball@example.com"), ("class", "magic8ball")):
        if not section[key] and not report.failed(Place(("handlers", name), key)):
            report.problem(place, f"has no {key}; write one, as {key} = {example}")
    known = [key for key in spec["handlers"][MANY].scalars if key != MANY]
    values = {key: section[key] for key in known if key != "class"}
    settings = tuple((key, str(section[key])) for key in section.scalars if key not in known)
    return HandlerConfig(name=name, class_name=section["class"], settings=settings, **values)


def is_secret(key: str) -> bool:
    """Whether the setting `key` of a handler is one that nobody is to see."""
    return _SECRET.fullmatch(key) is not None


def secret_file(made: HandlersConfig, report: Report) -> str:
    """The configuration file, if such a setting stands in it; else ""."""
    for each in made.each:
        for key, value in each.settings:
            place = Place(("handlers", each.name), key)
            if value and is_secret(key) and place not in report.variables:
                return report.path
    return ""


def dumped(made: HandlerConfig) -> list[str]:
    """The settings of the handler's own as the file has them."""
    return [
        f"# {key} is never shown" if is_secret(key) else f"{key} = {_quoted(value)}".rstrip()
        for key, value in made.settings
    ]


def _quoted(value: str) -> str:
    """`value` so that configobj reads it back as it is."""
    if re.fullmatch(r"[^\s\"'#,]+(?: [^\s\"'#,]+)*", value):
        return value
    for quote in ('"', "'"):
        if quote not in value and "\n" not in value:
            return quote + value + quote
    for quote in ("'''", '"""'):
        if quote not in value:
            return quote + value + quote
    return shown(value)  # no file can have it
