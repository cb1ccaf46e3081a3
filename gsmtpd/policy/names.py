"""What is a domain, an address or a network where an administrator writes it?

Each function takes what is written and gives its canonical form, in which two that mean the same
are the same text; or raises ValueError with what is wrong and what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from unicodedata import normalize

from gsmtpd.smtp.address import parse_mailbox
from gsmtpd.wording import printable, shown

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NAME = 253  # characters of a domain name without its last dot, RFC 1035 section 2.3.4
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# What nearly every line of a long list is: in canonical form, as one look tells. What is that short
# has no label and no local part that is too long.
_SHORT = 63  # characters
_ORDINARY_NAME = r"(?:[a-z0-9_]++(?:-++[a-z0-9_]++)*+\.)++[a-z]++"
_ORDINARY = re.compile(_ORDINARY_NAME)
_ORDINARY_ADDRESS = re.compile(rf"[a-z0-9_+=\-]++(?:\.[a-z0-9_+=\-]++)*+@{_ORDINARY_NAME}")
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_ORDINARY_NETWORK = re.compile(rf"(?:{_BYTE}\.){{3}}(?:{_BYTE}|0/24)")
_MAX_STARS = 3
_JOINERS = "\u200c\u200d"
_DOTS = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490 section 3.1
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 addresses, RFC 4291 section 2.5.5.2


# Domains


def domain_name(text: str) -> str:
    """A domain name in lower case and A-labels, without the dot at its end."""
    wrong = f"{shown(text)} is not a domain name"
    name = text.removesuffix(".")
    if not name.isascii() and len(name) <= MAX_NAME:
        try:
            name = _to_a_labels(name)
        except UnicodeError:
            raise ValueError(f"{wrong}; write it in its xn-- form") from None
    name = name.lower()
    if not _is_name(name):
        raise ValueError(f"{wrong}; write one like mail.example.com")
    return name


def address_literal(text: str) -> str:
    """An address literal (RFC 5321 section 4.1.3), as gsmtpd.smtp.address writes it."""
    match = re.fullmatch(r"\[(IPv6:)?([^]%]*)\]", text, re.IGNORECASE)
    address = ip_address(match[2]) if match else None
    if match is None or address is None or (address.version == 6) != bool(match[1]):
        right = _as_literal(address) if address else "one like [127.0.0.1] or [IPv6:::1]"
        raise ValueError(f"{shown(text)} is not an address literal; write {right}")
    return _as_literal(address)


def domain(text: str) -> str:
    """One domain: a name, or an address literal."""
    if "*" in text or text[:1] in (".", "@"):
        raise ValueError(
            f"{shown(text)} is not one domain; write each domain here by its full name"
        )
    return _name_or_literal(text)


def domain_pattern(text: str) -> str:
    """A domain, or "*.name" (all below it), ".name" (it and all below it), "*" (all there are)."""
    if len(text) <= _SHORT and _ORDINARY.fullmatch(text):
        return text
    prefix = "*." if text[:2] == "*." else "." if text[:1] == "." else ""
    name = text[len(prefix) :]
    if text == "*":
        return text
    _check_no_file(text)
    if text[:1] == "@":
        raise ValueError(f"{shown(text)} is not a domain; write it without @")
    if "*" in name or name[:1] == ".":
        raise ValueError(f"{shown(text)} is not a pattern; write {_pattern_like(text)}")
    if prefix and name[:1] == "[":
        raise ValueError(f"{shown(text)}: nothing is below an address; write it without {prefix}")
    return prefix + (domain_name(name) if prefix else _name_or_literal(name))


def a_labels(domain: str) -> str:
    """`domain`, a Mailbox's, in lower case and A-labels.

    Address literals, and what can be no name, stay as they are.
    """
    if domain[:1] == "[":
        return domain
    lower = domain.lower()
    if lower.isascii():
        return lower
    try:
        name = _to_a_labels(lower) if len(lower) <= MAX_NAME else ""
    except UnicodeError:
        return lower
    # What is compatible with "@", "/" or ".." beyond ASCII is none of them in a name.
    return name if _is_name(name) else lower


def _to_a_labels(name: str) -> str:
    """By IDNA 2003, as Python has it. Raises UnicodeError.

    But two letters that it took for others are names of their own today, and the two joiners, which
    it left out, too (RFC 5894 section 7.2); these, as they cannot be seen, are refused.
    """
    if any(joiner in name for joiner in _JOINERS):
        raise UnicodeError("a joiner")
    labels = _DOTS.split(name.lower()) if any(c in name for c in "\u1e9e\u00df\u03c2") else []
    if not labels:
        return name.encode("idna").decode("ascii").lower()
    return ".".join(map(_a_label, labels))


def _a_label(label: str) -> str:
    if "\u00df" in label or "\u03c2" in label:
        return "xn--" + normalize("NFC", label).encode("punycode").decode("ascii")
    return label.encode("idna").decode("ascii").lower()


def _check_no_file(text: str) -> None:
    """Refuse a path: the settings know files, and write them with an "@"; files name no others."""
    if text[:1] == "/" or text[:2] == "@/":
        right = f"write @{printable(text.removeprefix('@'))}, and in gsmtpd.conf itself"
        raise ValueError(f"{shown(text)} is a file; {right}")


def _is_name(name: str) -> bool:
    return (
        len(name) <= MAX_NAME
        and _DOMAIN.fullmatch(name) is not None
        and not name.rpartition(".")[2].isdigit()
    )


def _name_or_literal(text: str) -> str:
    if text[:1] == "[":
        return address_literal(text)
    address = ip_address(text)
    if address is not None:
        raise ValueError(f"{shown(text)} is not a domain; write {_as_literal(address)}")
    return domain_name(text)


def _as_literal(address: IPAddress) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return f"[IPv6:{address.compressed.partition('%')[0]}]"
    return f"[{address}]"


def _pattern_like(text: str) -> str:
    """The pattern that is nearest to `text`, which has an asterisk or a dot too many."""
    tail = text.rpartition("*")[2]
    name = tail.lstrip(".") if tail[:1] == "." else tail.partition(".")[2] or tail
    try:
        return f"{'*' if '*' in text else ''}.{domain_name(name)}"
    except ValueError:
        return "one like *.example.com, .example.com or *"


# Addresses


def address_item(text: str) -> str:
    """Who is meant: "local@domain", "local" (in every domain), or "@domain" (all of it).

    The local part is in lower case, and quoted only where it must be (RFC 5321 section 4.1.2).
    """
    if len(text) <= _SHORT and _ORDINARY_ADDRESS.fullmatch(text):
        return text
    _check_no_file(text)
    if text[:1] == "@":
        return "@" + domain(text[1:])
    if text == "*" or text[:2] == "*@":
        right = text[1:] if text[1:] else "@example.com"
        raise ValueError(f"{shown(text)} is not an address; write {right} for all of a domain")
    if "@" not in text or text[-1:] == '"':
        return local_part(text)
    local, _, name = text.rpartition("@")
    return f"{local_part(local, text)}@{domain(name)}"


def address_pattern(text: str) -> str:
    """Who is meant, as `address_item` has it; but a "*" stands for any characters but "@".

    At most three of them: each more makes a look for it as many times longer as an address is long.
    """
    if "*" not in text:
        return address_item(text)
    _check_no_file(text)
    if text.count("*") > _MAX_STARS:
        raise ValueError(f"{shown(text)} has too many *; write {_MAX_STARS} at most")
    # Is it one with an ordinary character in its place? Not a digit: no domain ends in such.
    plain = "" if '"' in text or not text.isascii() else text.lower().replace("*", "x")
    try:
        good = plain and address_item(plain) == plain
    except ValueError:
        good = False
    if not good:
        right = "write one like info-*@example.com, sales* or @*.example.com"
        raise ValueError(f"{shown(text)} is not a pattern of addresses; {right}")
    return text.lower()


def local_part(text: str, address: str = "") -> str:
    """A local part in lower case; `address`: the whole that it stands in."""
    mailbox = parse_mailbox(f"{text}@localhost")
    if mailbox is None:
        wrong = f"{shown(address or text)} is not {'an address' if address else 'a local part'}"
        raise ValueError(f"{wrong}; write {'one like user@example.com' if address else 'user'}")
    return mailbox.local.lower()


# IP addresses and networks


def ip_address(text: str) -> IPAddress | None:
    """The IP address `text` is, or None. A scope id (fe80::1%eth0) has no odd characters."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address if re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.-]+)?", text, re.ASCII) else None


def network(text: str) -> str:
    """A network in CIDR notation (RFC 4632, RFC 4291 section 2.3), or a single address.

    IPv4 addresses in IPv6 (::ffff:192.0.2.1) become IPv4, as they are when a client connects.
    """
    if _ORDINARY_NETWORK.fullmatch(text):
        return text
    _check_no_file(text)
    inner = re.fullmatch(r"\[(?:IPv6:)?([^]]*)\]", text, re.IGNORECASE)
    bare = inner[1] if inner else text
    try:
        found = ipaddress.ip_network(bare, strict=False)
    except ValueError:
        found = None
    if found is None or not re.fullmatch(r"[0-9A-Fa-f:.]+(/[0-9.]+)?", bare, re.ASCII):
        raise ValueError(
            f"{shown(text)} is not a network; write one like 192.0.2.0/24 or 2001:db8::/32"
        )
    address, _, prefix = bare.partition("/")
    right = network_text(found)
    if inner or "." in prefix:
        raise ValueError(f"{shown(text)} is not a network; write {right}")
    single = ipaddress.ip_address(address)
    if single != found.network_address:
        raise ValueError(
            f"{shown(text)} has bits set beyond its /{prefix};"
            f" write {right}, or {single} for that address alone"
        )
    return right


def prefix(network: str) -> tuple[int, int, int]:
    """The IP version of `network`, in canonical form, its prefix, and the number of bits beyond."""
    if ":" in network:
        found = ipaddress.IPv6Network(network)
        beyond = 128 - found.prefixlen
        return 6, int(found.network_address) >> beyond, beyond
    address, _, length = network.partition("/")
    a, b, c, d = address.split(".")
    beyond = 32 - int(length) if length else 0
    return 4, (int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)) >> beyond, beyond


def network_text(network: IPNetwork) -> str:
    """`network` in canonical form: a single address has no prefix length."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        start = int(network.network_address) & 0xFFFFFFFF
        network = ipaddress.IPv4Network((start, network.prefixlen - 96))
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address if single else network)
