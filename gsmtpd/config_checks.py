"""What may a value in gsmtpd.conf be, and how is it written there?

One check for each type named in gsmtpd.configspec: text in, value out, or ValidateError with what
is wrong and what would be right (one argument for each mistake). None of them reads anything else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

try:
    from configobj.validate import ValidateError, Validator  # type: ignore[import-untyped]
except ImportError:  # configobj before 5.0.7
    from validate import ValidateError, Validator  # type: ignore[import-untyped]

from gsmtpd import config_hosts, config_numbers, config_query
from gsmtpd.config_hosts import Address, BodyAddress, MySQLHost, NameServer
from gsmtpd.policy import names
from gsmtpd.wording import shown

__all__ = [
    "CHECKS", "Address", "BodyAddress", "Keep", "MySQLHost", "NameServer", "ValidateError",
    "Validator", "written",
]  # fmt: skip

Item = TypeVar("Item")
Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")

FOREVER = "forever"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"  # in Python
CHECKS: dict[str, Callable[..., object]] = {}


@dataclass(frozen=True, slots=True)
class Keep:
    """How long mail is kept: seconds, None for ever. domains: those with a time of their own."""

    default: float | None
    domains: tuple[tuple[str, float | None], ...] = ()

    def __str__(self) -> str:
        first = () if self.default is None and not self.domains else (_kept(self.default),)
        return ", ".join((*first, *(f"{name} {_kept(keep)}" for name, keep in self.domains)))


def unquoted(value: str) -> str:
    """`value` without the pair of quotes around it."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def items(value: str) -> list[str]:
    """The items of a list: split at commas and line ends, each or all of it may be in quotes."""
    inner = unquoted(value)
    if value[:1] not in inner:  # quotes around the whole, not around the first and the last item
        value = inner
    parts = (unquoted(part.strip()) for part in re.split(r"[,\n]", value))
    return [part for part in parts if part]


def _raising(parse: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """`parse` with a ValidateError where it raises a ValueError."""

    @functools.wraps(parse)
    def check(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        try:
            return parse(*args, **kwargs)
        except ValueError as error:
            raise ValidateError(*error.args) from None

    return check


def _check(parse: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """`parse` as the check of its name."""
    check = _raising(parse)
    CHECKS[parse.__name__] = check
    return check


def _each(value: str, parse: Callable[[str], Item]) -> tuple[Item, ...]:
    """The items of a list."""
    good: list[Item] = []
    bad: list[str] = []
    for item in items(value):
        try:
            good.append(parse(item))
        except ValueError as error:
            bad.extend(error.args)
    if bad:
        raise ValueError(*bad)
    return tuple(good)


def _each_once(value: str, parse: Callable[[str], Item]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys(_each(value, parse)))


# Numbers

number = _check(config_numbers.number)
auto_number = _check(config_numbers.auto_number)
optional_number = _check(config_numbers.optional_number)
size = _check(config_numbers.size)
duration = _check(config_numbers.duration)
optional_duration = _check(config_numbers.optional_duration)
own_number = _check(config_numbers.own_number)
own_size = _check(config_numbers.own_size)


@_check
def keep_list(value: str, least: str, most: str) -> Keep:
    """A duration or "forever", then any number of domains, each with one of its own."""
    default: float | None = None
    domains: dict[str, float | None] = {}
    wrong: list[str] = []
    for n, item in enumerate(items(value)):
        try:
            name, _, rest = item.rpartition(" ")
            if n == 0 and not name:
                default = _keep(item, least, most)
                continue
            name = names.domain(name.strip())
            if name in domains:
                raise ValueError(f"{shown(name)} is there twice; write it once")
            domains[name] = _keep(rest, least, most)
        except ValueError as error:
            if n == 0 or " " in item:
                wrong.extend(error.args)
            else:
                wrong.append(
                    f"{shown(item)} lacks its domain or its time; write e.g. 1h, example.com 7d"
                )
    if wrong:
        raise ValueError(*wrong)
    return Keep(default, tuple(domains.items()))


def _keep(text: str, least: str, most: str) -> float | None:
    try:
        return None if text.lower() == FOREVER else config_numbers.duration(text, least, most)
    except ValueError as error:
        raise ValueError(f"{error}, or {FOREVER}") from None


def _kept(seconds: float | None) -> str:
    return FOREVER if seconds is None else config_numbers.written_duration(seconds)


# Text


def _choice(value: str, options: tuple[str, ...]) -> str:
    if value.lower() not in options:
        right = f"{', '.join(options[:-1])} or {options[-1]}"
        raise ValueError(f"{shown(value)} is not possible; write {right}")
    return value.lower()


@_check
def choice(value: str, *options: str) -> str:
    """One of the given words."""
    return _choice(value, options)


@_check
def yes_no(value: str) -> bool:
    """Yes or no."""
    return _choice(value, ("yes", "no")) == "yes"


def _text(value: str) -> str:
    if not value or '"' in value or "\n" in value:
        raise ValueError(f"{shown(value)} is not a name; write one without double quotes")
    return value


@_check
def text(value: str) -> str:
    """One line that is not empty. A double quote in it is a slip, and dump() relies on that."""
    return _text(value)


@_check
def optional_text(value: str) -> str:
    """One line, or nothing."""
    return _text(value) if value else ""


@_check
def secret(value: str) -> str:
    """A password or nothing. No message repeats it."""
    if "\n" in value:
        raise ValueError("has more than one line; write the password on one")
    return value


@_check
def optional_path(value: str) -> str:
    """An absolute path, or nothing."""
    return config_hosts.path(value) if value else ""


@_check
def path_or_no(value: str) -> str:
    """An absolute path, or "" for "no"."""
    if value.lower() == "no":
        return ""
    try:
        return config_hosts.path(value)
    except ValueError as error:
        raise ValueError(f"{error}, or no") from None


@_check
def table_name(value: str) -> str:
    """The name of a table, fit to stand in SQL."""
    if not re.fullmatch(r"\w+", value, re.ASCII):
        raise ValueError(f"{shown(value)} is not a table name; write letters, digits and _ only")
    return value


@_check
def field_name(value: str) -> str:
    """The name of a header field (RFC 5322 section 2.2), or nothing."""
    name = value.removesuffix(":")
    if name and not re.fullmatch(r"[!-9;-~]{1,76}", name):
        raise ValueError(f"{shown(value)} is not a header field; write one like X-Spam-Score")
    return name


@_check
def function_name(value: str) -> str:
    """A function of a Python module, or nothing."""
    parts = value.split(".")
    if value and (len(parts) < 2 or not all(re.fullmatch(_NAME, each) for each in parts)):
        raise ValueError(f"{shown(value)} is not a function; write module.function")
    return value


path = _check(config_hosts.path)
socket_path = _check(config_hosts.socket_path)
query = _check(config_query.query)


# Names and addresses

domain = _raising(names.domain)


@_check
def host_name(value: str) -> str:
    """A host name in lower case and A-labels (RFC 5321 section 2.3.5), or nothing."""
    name = names.domain_name(value) if value else ""
    if "_" in name:
        raise ValueError(f"{shown(value)} is not a host name; write letters, digits, - and .")
    return name


@_check
def optional_domain(value: str) -> str | None:
    """One domain, or None."""
    return names.domain(value) if value else None


@_check
def address_list(value: str) -> tuple[Address, ...]:
    """One or more addresses to listen on."""
    addresses = _each(value, config_hosts.listen_address)
    if not addresses:
        raise ValueError("is empty; write host:port, e.g. 0.0.0.0:25, [::]:25")
    return addresses


@_check
def status_address_list(value: str) -> tuple[Address, ...]:
    """Where the status page is served, or nothing."""
    return _each_once(value, config_hosts.status_address)


@_check
def mysql_host_list(value: str) -> tuple[MySQLHost, ...]:
    """One or more MySQL servers."""
    hosts = _each(value, config_hosts.mysql_host)
    if not hosts:
        raise ValueError("is empty; write host, host:port, [ipv6]:port or /path/of/socket")
    return hosts


body_address = _check(config_hosts.body_address)


@_check
def resolver(value: str) -> NameServer | None:
    """Where a DNS server is asked, or None."""
    return config_hosts.name_server(value) if value else None


# Who may receive, and from whom. "@/path" stands for the items in a file, and is kept as it is.


@_check
def domain_pattern_list(value: str) -> tuple[str, ...]:
    """Any number of domains, patterns of domains, and files."""
    return _each_once(value, lambda item: _file(item) or names.domain_pattern(item))


@_check
def network_list(value: str) -> tuple[str, ...]:
    """Any number of IP networks and files."""
    return _each_once(value, lambda item: _file(item) or names.network(item))


@_check
def peer_list(value: str) -> tuple[str, ...]:
    """Any number of IP networks."""
    return _each_once(value, _peer)


@_check
def address_pattern_list(value: str) -> tuple[str, ...]:
    """Any number of addresses, local parts, "@domain"s and files."""
    return _each_once(value, lambda item: _file(item) or names.address_item(_bare(item)))


@_check
def local_part_list(value: str) -> tuple[str, ...]:
    """Any number of local parts, in lower case."""
    return _each_once(value, lambda item: names.local_part(_bare(item)))


@_check
def dnsbl_list(value: str) -> tuple[str, ...]:
    """Any number of DNS blocklists, each "zone" or "zone=network"."""
    return _each_once(value, _blocklist)


# Handlers


@_check
def smarthost(value: str) -> str:
    """Where mail is handed over: host or host:port, as they are written here; or nothing."""
    return config_hosts.smarthost(value) if value else ""


@_check
def match_list(value: str) -> tuple[str, ...]:
    """Any number of addresses, local parts and "@domain"s, each with some "*" or none."""
    return _each_once(value, _pattern)


@_check
def class_name(value: str) -> str:
    """The name of a handler, of a module, or of a class in a module; or nothing."""
    if value and not re.fullmatch(r"[A-Za-z_][\w-]*(?:\.[A-Za-z_]\w*)*", value, re.ASCII):
        raise ValueError(f"{shown(value)} is not a class; write e.g. magic8ball or module.Class")
    return value


@_check
def setting(value: str) -> str:
    """What the handler itself understands."""
    return value


def _file(item: str) -> str:
    return "@" + config_hosts.path(item[1:]) if item[:2] == "@/" else ""


def _peer(item: str) -> str:
    if item[:1] in ("@", "/"):
        wrong = "is a file, which cannot stand here; write the networks, e.g. 192.0.2.0/24"
        raise ValueError(f"{shown(item)} {wrong}")
    return names.network(item)


def _pattern(item: str) -> str:
    what = "a file" if item[:1] == "/" or item[:2] == "@/" else "in quotes" if '"' in item else ""
    if what:
        right = "write addresses and patterns, e.g. sales-*@example.com"
        raise ValueError(f"{shown(item)} is {what}, which cannot stand here; {right}")
    return names.address_pattern(item)


def _bare(item: str) -> str:
    """`item`, in which no quote can be taken for one of those around items."""
    if '"' in item or unquoted(item) != item:
        raise ValueError(f"{shown(item)} has quotes; write it in a file, and @/path/of/file here")
    return item


def _blocklist(item: str) -> str:
    from gsmtpd.policy.dnsbl import parse_blocklist  # with asyncio, which takes its time

    zone, answers = parse_blocklist(item)
    return f"{zone}={answers}" if answers else zone


# And back


def written(check: str, value: object) -> str:
    """A value of that check as the file has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if check == "auto_number" and value is None:
        return "auto"
    if (check, value) in (("optional_number", None), ("path_or_no", "")):
        return "no"
    if check.endswith("size") and isinstance(value, int):
        return config_numbers.written_size(value)
    if check.endswith("duration") and isinstance(value, float):
        return config_numbers.written_duration(value)
    if type(value) is tuple:
        value = ", ".join(str(item) for item in value)
    return "" if value is None else _quoted(str(value))


def _quoted(value: str) -> str:
    if "#" not in value and value[:1] != "'" and value == value.strip():
        return value
    quote = "'''" if '"' in value else '"'
    return f"{quote}{value}{quote}"
