"""What is a valid SMTP path, and what mailbox does it name? (RFC 5321 section 4.1.2, RFC 6531)"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

MAX_LOCAL_PART = 64  # octets, RFC 5321 section 4.5.3.1.1
MAX_DOMAIN = 255  # octets, section 4.5.3.1.2
MAX_PATH = 256  # octets with the angle brackets, section 4.5.3.1.3

# Sets are said by what is not in them: one that goes up to the last character takes milliseconds of
# every start. So surrogates are in them, and no mailbox has any, see _octets.
_CONTROLS = r"\x00-\x1f\x7f-\x9f"
_ATOM = rf'[^{_CONTROLS} "(),.:;<>@\[\\\]]+'
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED = re.compile(rf'"(?:[^{_CONTROLS}"\\]|\\[\x20-\x7e])*"')
_QUOTED_PAIR = re.compile(r"\\(.)")
# Underscores are no LDH characters, but real senders have them in host names.
_LABEL = r"(?!-)[^\x00-,./:-@\[-^`{-\x9f]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ROUTE = re.compile(rf"@{_LABEL}(?:(?:\.|,@){_LABEL})*:")
# The address nearly every client sends: one match in place of the grammar below.
ORDINARY_PATH = (
    r"<([A-Za-z0-9_+=\-]+(?:\.[A-Za-z0-9_+=\-]+)*)"
    r"@((?:[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?\.)*[a-z0-9]{1,63})>"
)
_ORDINARY = re.compile(ORDINARY_PATH)


class Mailbox(NamedTuple):
    """An address in canonical form: no needless quotes, the domain in lower case.

    local: the local part, quoted only where it must be, case kept. domain: a name, or an address
    literal such as "[127.0.0.1]" or "[IPv6:::1]"; "" only for the domainless postmaster.
    """

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local


POSTMASTER = Mailbox("postmaster", "")


def parse_path(path: str) -> Mailbox | None:
    """The mailbox of `path`, a Path with its angle brackets, or None where it breaks the grammar.

    A source route is dropped (RFC 5321 appendix C); "<Postmaster>" is `POSTMASTER`. The null path
    "<>" is the caller's to know.
    """
    ordinary = _ORDINARY.fullmatch(path)
    if ordinary is not None and len(path) <= MAX_PATH:
        local, domain = ordinary.groups()
        return Mailbox(local, domain) if len(local) <= MAX_LOCAL_PART else None
    if _octets(path) > MAX_PATH or path[:1] != "<" or path[-1:] != ">":
        return None
    inner = path[1:-1]
    route = _ROUTE.match(inner)
    if route is not None:
        inner = inner[route.end() :]
    if inner.lower() == "postmaster" and route is None:
        return POSTMASTER
    return parse_mailbox(inner)


def parse_mailbox(text: str) -> Mailbox | None:
    """The mailbox that `text` ("local@domain", no brackets) names, or None."""
    match = (_QUOTED if text[:1] == '"' else _DOT_STRING).match(text)
    if match is None or text[match.end() : match.end() + 1] != "@":
        return None
    local = canonical_local_part(match.group())
    domain = parse_domain(text[match.end() + 1 :])
    if domain is None or not 0 < _octets(match.group()) <= MAX_LOCAL_PART:
        return None
    return Mailbox(local, domain)


def canonical_local_part(local: str) -> str:
    """`local` without quotes and quoted pairs that say nothing (RFC 5321 section 4.1.2)."""
    if local[:1] != '"':
        return local
    text = _QUOTED_PAIR.sub(r"\1", local[1:-1])
    if _DOT_STRING.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_domain(text: str) -> str | None:
    """The domain or address literal `text` in canonical form, or None where it is neither."""
    if text[:1] == "[":
        return parse_literal(text)
    if _octets(text) > MAX_DOMAIN or _DOMAIN.fullmatch(text) is None:
        return None
    return text.lower()


def parse_literal(text: str) -> str | None:
    """The address literal `text` ("[127.0.0.1]", "[IPv6:::1]") in canonical form, or None."""
    if text[-1:] != "]":
        return None
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            address = ipaddress.IPv6Address(inner[5:])
            return None if address.scope_id else f"[IPv6:{address.compressed}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError:
        return None


def _octets(text: str) -> int:
    """How many octets of UTF-8 `text` is; more than any limit where surrogates make it none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return MAX_PATH + 1
