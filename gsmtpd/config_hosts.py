"""Which host and port does gsmtpd.conf name?

Text in, value out, or ValueError with what is wrong and what would be right; str() is the way back.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from gsmtpd.policy.names import domain_name, ip_address
from gsmtpd.wording import shown

MYSQL_PORT = 3306
DNS_PORT = 53
LOOPBACK = "127.0.0.1"
_BRACKETED = re.compile(r"\[([^][]*)\](?:(:)(.*))?", re.DOTALL)
_MAX_SOCKET_PATH = 107  # bytes, see unix(7)


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


class NameServer(NamedTuple):
    """Where a DNS server is: a name or an IP address without brackets, and a port."""

    host: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


def path(value: str) -> str:
    """An absolute path: the directory a daemon works in is none of the administrator's."""
    if not value.startswith("/") or '"' in value or "\n" in value:
        raise ValueError(f"{shown(value)} is not a full path; write one that begins with /")
    return value


def socket_path(value: str) -> str:
    """An absolute path that fits into a Unix socket's address, or nothing."""
    if len(os.fsencode(value)) > _MAX_SOCKET_PATH:
        raise ValueError(
            f"{shown(value)} is too long for a socket; write {_MAX_SOCKET_PATH} bytes at most"
        )
    return path(value) if value else ""


def listen_address(item: str) -> Address:
    """Where to listen."""
    if everywhere := re.fullmatch(r"(?:\*?:)?([0-9]+)|\*", item):
        any_port = everywhere[1] or "25"
        every = f"0.0.0.0:{any_port}, [::]:{any_port}"
        raise ValueError(f"{shown(item)} names no address; write {every} for all of them")
    host, port = _host_and_port(item, 0)
    if port is None:
        raise ValueError(
            f"{shown(item)} lacks its host or port; write host:port, e.g. 0.0.0.0:25 or [::]:25"
        )
    return Address(host, port)


def status_address(item: str) -> Address:
    """Where the status page is served; a port alone is one of 127.0.0.1."""
    if not item.isdigit():
        host, port = _host_and_port(item, 0)
        if port is not None:
            return Address(host, port)
    elif (port := _port(item, item, 0)) is not None:
        return Address(LOOPBACK, port)
    raise ValueError(f"{shown(item)} lacks its port; write a port, e.g. 8025, or host:port")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    address = ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


def mysql_host(item: str) -> MySQLHost:
    """Where a MySQL server is."""
    if item.startswith("/"):
        return MySQLHost("localhost", unix_socket=path(item))
    host, port = _host_and_port(item, 1)
    return MySQLHost(host, MYSQL_PORT if port is None else port)


def body_address(value: str) -> BodyAddress:
    """Where memcached or Redis listens."""
    if value.startswith("/"):
        return BodyAddress("localhost", unix_socket=socket_path(value))
    if not value:
        raise ValueError("is empty; write host, host:port, [ipv6]:port or /path/of/socket")
    return BodyAddress(*_host_and_port(value, 1))


def name_server(value: str) -> NameServer:
    """Where a DNS server is asked."""
    host, port = _host_and_port(value, 1)
    return NameServer(host, DNS_PORT if port is None else port)


def smarthost(value: str) -> str:
    """Where mail is handed over: "host", "host:port" or "[ipv6]:port" in canonical form."""
    host, port = _host_and_port(value, 1)
    return _bracketed(host) if port is None else f"{_bracketed(host)}:{port}"


def _host_and_port(item: str, least: int) -> tuple[str, int | None]:
    """The parts of "host", "host:port", "[ipv6]" or "[ipv6]:port"."""
    bracketed = _BRACKETED.fullmatch(item)
    if bracketed is None and item.count(":") > 1:
        raise ValueError(
            f"{shown(item)} is ambiguous; write an IPv6 address in brackets, e.g. [::1]:25"
        )
    host, colon, digits = bracketed.group(1, 2, 3) if bracketed else item.partition(":")
    address = ip_address(host)
    if (bracketed is not None) != (address is not None and address.version == 6):
        raise ValueError(f"{shown(item)} is not an address; write host:port or [ipv6]:port")
    return (
        str(address) if address else domain_name(host),
        _port(digits, item, least) if colon else None,
    )


def _port(digits: str, item: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not least <= int(digits) <= 65535:
        raise ValueError(f"{shown(item)} has no good port; write {least} to 65535 after the :")
    return int(digits)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
