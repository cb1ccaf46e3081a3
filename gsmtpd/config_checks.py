"""What may a value in gsmtpd.conf be, and how is it written there?

One check for each type named in gsmtpd.configspec: text in, value out, or ValidateError with what
is wrong and what would be right (one argument for each mistake). None of them reads anything else.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

try:
    from configobj.validate import ValidateError, Validator  # type: ignore[import-untyped]
except ImportError:  # configobj before 5.0.7
    from validate import ValidateError, Validator  # type: ignore[import-untyped]

__all__ = [
    "CHECKS", "Address", "BodyAddress", "Keep", "MySQLHost", "ValidateError", "Validator",
    "written",
]  # fmt: skip

Item = TypeVar("Item")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MYSQL_PORT = 3306
FOREVER = "forever"
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_BRACKETED = re.compile(r"\[([^][]*)\](?:(:)(.*))?", re.DOTALL)
_MAX_SOCKET_PATH = 107  # bytes, see unix(7)
_MAX_NAME = 253  # characters of a domain name without its last dot, RFC 1035 section 2.3.4


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a name, an IPv4 or an IPv6 address (without brackets), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class MySQLHost:
    """Where a MySQL server is: `unix_socket` where that is set, else `host` and `port`."""

    host: str
    port: int = MYSQL_PORT
    unix_socket: str | None = None

    def __str__(self) -> str:
        return self.unix_socket or f"{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class BodyAddress:
    """Where a body store is: `unix_socket` where that is set, else `host` and `port`.

    port: None for the usual one of its kind.
    """

    host: str
    port: int | None = None
    unix_socket: str | None = None

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return self.unix_socket or f"{_bracketed(self.host)}{port}"


@dataclass(frozen=True, slots=True)
class Keep:
    """How long mail is kept: seconds, None for ever. domains: those with a time of their own."""

    default: float | None
    domains: tuple[tuple[str, float | None], ...] = ()

    def __str__(self) -> str:
        first = () if self.default is None and not self.domains else (_kept(self.default),)
        return ", ".join((*first, *(f"{name} {_kept(keep)}" for name, keep in self.domains)))


def printable(text: str) -> str:
    """`text` on one line, with control characters and the like written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: str) -> str:
    """`value` in quotes for a message, cut where it is long."""
    return f'"{printable(value if len(value) <= 80 else value[:77] + "...")}"'


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


def _each(value: str, parse: Callable[[str], Item]) -> tuple[Item, ...]:
    good: list[Item] = []
    bad: list[str] = []
    for item in items(value):
        try:
            good.append(parse(item))
        except ValidateError as error:
            bad.extend(error.args)
    if bad:
        raise ValidateError(*bad)
    return tuple(good)


# Numbers


def number(value: str, least: str, most: str | None = None) -> int:
    """A whole number of that range."""
    span = f"a whole number of {least} or more" if most is None else f"{least} to {most}"
    if not re.fullmatch(r"[0-9]{1,15}", value):
        raise ValidateError(f"{shown(value)} is not a whole number; write {span}")
    return int(_in_range(int(value), value, int(least), int(most) if most else None, span))


def auto_number(value: str, least: str, most: str) -> int | None:
    """A whole number of that range, or None for "auto"."""
    if value.lower() == "auto":
        return None
    try:
        return number(value, least, most)
    except ValidateError as error:
        raise ValidateError(f"{error}, or auto") from None


def optional_number(value: str, least: str, most: str) -> int | None:
    """A whole number of that range, or None for "no"."""
    if value.lower() == "no":
        return None
    try:
        return number(value, least, most)
    except ValidateError as error:
        raise ValidateError(f"{error}, or no") from None


def size(value: str, least: str, most: str) -> int:
    """Bytes; K, M and G are powers of 1024."""
    return int(_in_range(_bytes(value), value, _bytes(least), _bytes(most), f"{least} to {most}"))


def duration(value: str, least: str, most: str) -> float:
    """Seconds."""
    span = f"{least} to {most}"
    return _in_range(_seconds(value), value, _seconds(least), _seconds(most), span)


def optional_duration(value: str, least: str, most: str) -> float | None:
    """Seconds, or None."""
    return duration(value, least, most) if value else None


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
            name = domain(name.strip())
            if name in domains:
                raise ValidateError(f"{shown(name)} is there twice; write it once")
            domains[name] = _keep(rest, least, most)
        except ValidateError as error:
            if n == 0 or " " in item:
                wrong.extend(error.args)
            else:
                wrong.append(
                    f"{shown(item)} lacks its domain or its time; write e.g. 1h, example.com 7d"
                )
    if wrong:
        raise ValidateError(*wrong)
    return Keep(default, tuple(domains.items()))


def _keep(text: str, least: str, most: str) -> float | None:
    try:
        return None if text.lower() == FOREVER else duration(text, least, most)
    except ValidateError as error:
        raise ValidateError(f"{error}, or {FOREVER}") from None


def _kept(seconds: float | None) -> str:
    return FOREVER if seconds is None else written("duration", seconds)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text.upper())
    if match is None:
        raise ValidateError(
            f"{shown(text)} is not a size;"
            " write a number of bytes with an optional K, M or G, e.g. 10M"
        )
    return int(match[1]) * _SIZES[match[2]]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,20})?)(ms|[smhd]?)", text)
    if match is None:
        raise ValidateError(
            f"{shown(text)} is not a duration;"
            " write a number of seconds, or one with ms, s, m, h or d, e.g. 30m"
        )
    amount = float(match[1])
    return amount / 1000 if match[2] == "ms" else amount * _SECONDS[match[2] or "s"]


def _in_range(amount: float, text: str, least: float, most: float | None, span: str) -> float:
    if amount < least:
        raise ValidateError(f"{shown(text)} is too small; write {span}")
    if most is not None and amount > most:
        raise ValidateError(f"{shown(text)} is too big; write {span}")
    return amount


# Text


def choice(value: str, *options: str) -> str:
    """One of the given words."""
    if value.lower() not in options:
        raise ValidateError(f"{shown(value)} is not possible; write {_either(options)}")
    return value.lower()


def text(value: str) -> str:
    """One line that is not empty. A double quote in it is a slip, and dump() relies on that."""
    if not value or '"' in value or "\n" in value:
        raise ValidateError(f"{shown(value)} is not a name; write one without double quotes")
    return value


def optional_text(value: str) -> str:
    """One line, or nothing."""
    return text(value) if value else ""


def secret(value: str) -> str:
    """A password or nothing. No message repeats it."""
    if "\n" in value:
        raise ValidateError("has more than one line; write the password on one")
    return value


def path(value: str) -> str:
    """An absolute path: the directory a daemon works in is none of the administrator's."""
    if not value.startswith("/") or '"' in value or "\n" in value:
        raise ValidateError(f"{shown(value)} is not a full path; write one that begins with /")
    return value


def optional_path(value: str) -> str:
    """An absolute path, or nothing."""
    return path(value) if value else ""


def socket_path(value: str) -> str:
    """An absolute path that fits into a Unix socket's address, or nothing."""
    if len(os.fsencode(value)) > _MAX_SOCKET_PATH:
        raise ValidateError(
            f"{shown(value)} is too long for a socket; write {_MAX_SOCKET_PATH} bytes at most"
        )
    return optional_path(value)


def table_name(value: str) -> str:
    """The name of a table, fit to stand in SQL."""
    if not re.fullmatch(r"\w+", value, re.ASCII):
        raise ValidateError(f"{shown(value)} is not a table name; write letters, digits and _ only")
    return value


def field_name(value: str) -> str:
    """The name of a header field (RFC 5322 section 2.2), or nothing."""
    name = value.removesuffix(":")
    if name and not re.fullmatch(r"[!-9;-~]{1,76}", name):
        raise ValidateError(f"{shown(value)} is not a header field; write one like X-Spam-Score")
    return name


# Names and addresses


def host_name(value: str) -> str:
    """A host name in lower case and A-labels (RFC 5321 section 2.3.5), or nothing."""
    name = _name(value) if value else ""
    if "_" in name:
        raise ValidateError(f"{shown(value)} is not a host name; write letters, digits, - and .")
    return name


def domain(value: str) -> str:
    """A domain in lower case and A-labels, or an address literal in canonical form."""
    if "*" in value or value[:1] in (".", "@"):
        raise ValidateError(
            f"{shown(value)} is not supported in this version; write each domain by its full name"
        )
    if value.startswith("["):
        return _literal(value)
    address = _ip(value)
    if address is not None:
        raise ValidateError(f"{shown(value)} is not a domain; write {_as_literal(address)}")
    return _name(value)


def domain_list(value: str) -> tuple[str, ...]:
    """Any number of domains, each once."""
    return tuple(dict.fromkeys(_each(value, domain)))


def optional_domain(value: str) -> str | None:
    """One domain, or None."""
    return domain(value) if value else None


def address_list(value: str) -> tuple[Address, ...]:
    """One or more addresses to listen on."""
    addresses = _each(value, _address)
    if not addresses:
        raise ValidateError("is empty; write host:port, e.g. 0.0.0.0:25, [::]:25")
    return addresses


def mysql_host_list(value: str) -> tuple[MySQLHost, ...]:
    """One or more MySQL servers."""
    hosts = _each(value, _mysql_host)
    if not hosts:
        raise ValidateError("is empty; write host, host:port, [ipv6]:port or /path/of/socket")
    return hosts


def body_address(value: str) -> BodyAddress:
    """Where memcached or Redis listens."""
    if value.startswith("/"):
        return BodyAddress("localhost", unix_socket=socket_path(value))
    if not value:
        raise ValidateError("is empty; write host, host:port, [ipv6]:port or /path/of/socket")
    return BodyAddress(*_host_and_port(value, 1))


def _name(value: str) -> str:
    wrong = f"{shown(value)} is not a domain name"
    name = value.removesuffix(".")
    if not name.isascii() and len(name) <= _MAX_NAME:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValidateError(f"{wrong}; write it in its xn-- form") from None
    name = name.lower()
    if len(name) > _MAX_NAME or not _DOMAIN.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise ValidateError(f"{wrong}; write one like mail.example.com")
    return name


def _literal(value: str) -> str:
    """An address literal (RFC 5321 section 4.1.3), as gsmtpd.smtp.address writes it."""
    match = re.fullmatch(r"\[(IPv6:)?([^]%]*)\]", value, re.IGNORECASE)
    address = _ip(match[2]) if match else None
    if match is None or address is None or (address.version == 6) != bool(match[1]):
        right = _as_literal(address) if address else "one like [127.0.0.1] or [IPv6:::1]"
        raise ValidateError(f"{shown(value)} is not an address literal; write {right}")
    return _as_literal(address)


def _as_literal(address: IPAddress) -> str:
    return f"[{'IPv6:' if address.version == 6 else ''}{address}]"


def _ip(value: str) -> IPAddress | None:
    """The IP address `value` is, or None. A scope id (fe80::1%eth0) has no odd characters."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return None
    return address if re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.-]+)?", value, re.ASCII) else None


def _address(item: str) -> Address:
    if everywhere := re.fullmatch(r"(?:\*?:)?([0-9]+)|\*", item):
        any_port = everywhere[1] or "25"
        every = f"0.0.0.0:{any_port}, [::]:{any_port}"
        raise ValidateError(f"{shown(item)} names no address; write {every} for all of them")
    host, port = _host_and_port(item, 0)
    if port is None:
        raise ValidateError(
            f"{shown(item)} lacks its host or port; write host:port, e.g. 0.0.0.0:25 or [::]:25"
        )
    return Address(host, port)


def _mysql_host(item: str) -> MySQLHost:
    if item.startswith("/"):
        return MySQLHost("localhost", unix_socket=path(item))
    host, port = _host_and_port(item, 1)
    return MySQLHost(host, MYSQL_PORT if port is None else port)


def _host_and_port(item: str, least: int) -> tuple[str, int | None]:
    """The parts of "host", "host:port", "[ipv6]" or "[ipv6]:port"."""
    bracketed = _BRACKETED.fullmatch(item)
    if bracketed is None and item.count(":") > 1:
        raise ValidateError(
            f"{shown(item)} is ambiguous; write an IPv6 address in brackets, e.g. [::1]:25"
        )
    host, colon, digits = bracketed.group(1, 2, 3) if bracketed else item.partition(":")
    address = _ip(host)
    if (bracketed is not None) != (address is not None and address.version == 6):
        raise ValidateError(f"{shown(item)} is not an address; write host:port or [ipv6]:port")
    return (
        str(address) if address else _name(host),
        _port(digits, item, least) if colon else None,
    )


def _port(digits: str, item: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not least <= int(digits) <= 65535:
        raise ValidateError(f"{shown(item)} has no good port; write {least} to 65535 after the :")
    return int(digits)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


CHECKS: dict[str, Callable[..., object]] = {
    check.__name__: check
    for check in (
        number, auto_number, optional_number, size, duration, optional_duration, keep_list, choice,
        text, optional_text, secret, path, optional_path, socket_path, table_name, field_name,
        host_name, domain_list, optional_domain, address_list, mysql_host_list, body_address,
    )
}  # fmt: skip


# And back


def written(check: str, value: object) -> str:
    """A value of that check as the file has it."""
    if check == "auto_number" and value is None:
        return "auto"
    if check == "optional_number" and value is None:
        return "no"
    if check == "size" and isinstance(value, int):
        unit = next(u for u in ("G", "M", "K", "") if value % _SIZES[u] == 0)
        return f"{value // _SIZES[unit]}{unit}"
    if check.endswith("duration") and isinstance(value, float):
        unit = next((u for u in ("d", "h", "m", "s") if value % _SECONDS[u] == 0), "")
        return f"{value / _SECONDS[unit]:.0f}{unit}" if unit else f"{value!r}s"
    if isinstance(value, tuple):
        value = ", ".join(str(item) for item in value)
    return "" if value is None else _quoted(str(value))


def _quoted(value: str) -> str:
    bare = "#" not in value and value[:1] != "'" and value == value.strip()
    return value if bare else f'"{value}"'
