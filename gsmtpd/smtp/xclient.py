"""Whom does a proxy speak for? The XCLIENT command (Postfix's XCLIENT_README).

Attributes are in xtext (RFC 3461 section 4); what a proxy cannot say is [UNAVAILABLE], or
[TEMPUNAVAIL] for a name that could not be looked up now.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
_UNKNOWN = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")
_MAX_VALUE = 255  # octets of a name, XCLIENT_README
_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+", re.IGNORECASE)
_HEX = re.compile(r"\+([0-9A-Fa-f]{2})")
_PORT = re.compile(r"[0-9]{1,5}")


class ClientNamed(NamedTuple):
    """The client that a proxy speaks for; None for what it says nothing of.

    ip: canonical. name: of its host, "" if that has none. helo: as the client said it. esmtp:
    whether it speaks ESMTP.
    """

    ip: str | None = None
    name: str | None = None
    helo: str | None = None
    esmtp: bool | None = None


def parse_xclient(argument: str) -> ClientNamed | None:
    """What XCLIENT with `argument` says; None if it cannot be read."""
    values: dict[str, str] = {}
    for word in argument.split():
        name, _, value = word.partition("=")
        name = name.upper()
        if name not in ATTRIBUTES or name in values or not _XTEXT.fullmatch(value):
            return None
        values[name] = _plain(value)
        if not _RULES[name](values[name]):
            return None
    if not values:
        return None
    known = {name: value for name, value in values.items() if value.upper() not in _UNKNOWN}
    protocol = known.get("PROTO")
    return ClientNamed(
        _ip(known["ADDR"]) if "ADDR" in known else None,
        known.get("NAME", "") if "NAME" in values else None,
        known.get("HELO"),
        None if protocol is None else protocol.upper() == "ESMTP",
    )


def _plain(xtext: str) -> str:
    octets = _HEX.sub(lambda match: chr(int(match[1], 16)), xtext).encode("latin-1")
    return octets.decode("utf-8", "replace")


def _ip(text: str) -> str | None:
    literal = text[5:] if text[:5].upper() == "IPV6:" else text
    try:
        address = ipaddress.ip_address(literal)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    # A scope names an interface of the proxy, which is nothing to us.
    return str(mapped or address).partition("%")[0]


def _is_unknown(value: str) -> bool:
    return value.upper() in _UNKNOWN


def _is_name(value: str) -> bool:
    # Whatever the client said: a proxy may pass on spaces and worse.
    return len(value.encode()) <= _MAX_VALUE


def _is_port(value: str) -> bool:
    return _is_unknown(value) or (_PORT.fullmatch(value) is not None and int(value) < 65536)


def _is_address(value: str) -> bool:
    return _is_unknown(value) or _ip(value) is not None


def _is_protocol(value: str) -> bool:
    return _is_unknown(value) or value.upper() in ("SMTP", "ESMTP")


_RULES: dict[str, Callable[[str], bool]] = {
    "NAME": _is_name,
    "ADDR": _is_address,
    "PORT": _is_port,
    "PROTO": _is_protocol,
    "HELO": _is_name,
    "LOGIN": _is_name,
    "DESTADDR": _is_address,
    "DESTPORT": _is_port,
}
