"""Whom does a proxy speak for? The header of the PROXY protocol, versions 1 and 2.

By the specification of HAProxy, doc/proxy-protocol.txt, to which the sections named here belong.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

MAX_V1 = 107  # octets of a header of version 1, with its CRLF; section 2.1
MAX_V2 = 4096  # octets of one of version 2, where the specification would let 64 KiB be sent

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = 16  # octets in front of the addresses
_LOCAL, _PROXY = 0x20, 0x21
_STREAM = 1
_INET, _INET6 = 1, 2
# Octets of both addresses and ports by family: AF_INET, AF_INET6, AF_UNIX.
_ADDRESSES = {_INET: 12, _INET6: 36, 3: 216}
_CRC32C = 0x03  # the type of the TLV, section 2.2.3
_CRC32C_POLYNOMIAL = 0x82F63B78  # of RFC 4960 appendix B, its bits reversed
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")


class ProxyError(ValueError):
    """What came is no header; the text says why."""


class ProxyHeader(NamedTuple):
    """client: its IP address, IPv4 where that is mapped into IPv6; None: take the connection's own.

    size: octets of the header. What follows it is the client's.
    """

    client: str | None
    size: int


def parse_proxy(octets: bytes) -> ProxyHeader | None:
    """The header at the start of `octets`; None: more of it has to come. Raises ProxyError."""
    if octets[: len(_V1)] == _V1:
        return _version_1(octets)
    if octets[: len(_V2)] == _V2:
        return _version_2(octets)
    if _V1.startswith(octets) or _V2.startswith(octets):
        return None
    raise ProxyError("no header of the PROXY protocol")


def _version_1(octets: bytes) -> ProxyHeader | None:
    end = octets.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(octets) >= MAX_V1:
            raise ProxyError(f"no end of the line in {MAX_V1} octets")
        return None
    size = end + 2
    words = octets[len(_V1) : end].decode("latin-1").split(" ")
    if words[0] == "UNKNOWN":
        return ProxyHeader(None, size)
    if words[0] not in ("TCP4", "TCP6"):
        raise ProxyError("neither TCP4 nor TCP6 nor UNKNOWN")
    if len(words) != 5:
        raise ProxyError("not two addresses and two ports")
    protocol, source, destination, *ports = words
    client = _address(protocol, source)
    _address(protocol, destination)
    for port in ports:
        if _PORT.fullmatch(port) is None or int(port) > 65535:
            raise ProxyError("bad port")
    return ProxyHeader(client, size)


def _address(protocol: str, text: str) -> str:
    try:
        if protocol == "TCP4":
            return str(ipaddress.IPv4Address(text))
        if "%" in text:  # a zone, which means nothing on another host
            raise ValueError
        return _canonical(ipaddress.IPv6Address(text))
    except ValueError:
        raise ProxyError(f"bad {protocol} address") from None


def _canonical(address: ipaddress.IPv6Address) -> str:
    return str(address.ipv4_mapped or address)


def _version_2(octets: bytes) -> ProxyHeader | None:
    # As soon as one octet is wrong, more of them cannot help.
    command = octets[12] if len(octets) > 12 else _LOCAL
    if command not in (_LOCAL, _PROXY):
        raise ProxyError("unknown version or command")
    family, transport = divmod(octets[13], 16) if len(octets) > 13 else (0, 0)
    if command == _PROXY and (family > 3 or transport > 2):
        raise ProxyError("unknown address family or transport")
    if len(octets) < _V2_FIXED:
        return None
    size = _V2_FIXED + int.from_bytes(octets[14:16], "big")
    if size > MAX_V2:
        raise ProxyError(f"more than {MAX_V2} octets")
    if command == _PROXY and family and transport:
        if size < _V2_FIXED + _ADDRESSES[family]:
            raise ProxyError("cut addresses")
    else:
        # A check of the proxy's own, or something not to be told: nothing in it counts.
        family = 0
    if len(octets) < size:
        return None
    header = octets[:size]
    if family:
        _check_extras(header, _V2_FIXED + _ADDRESSES[family])
    return ProxyHeader(_client(header, family, transport), size)


def _client(header: bytes, family: int, transport: int) -> str | None:
    if transport == _STREAM and family == _INET:
        return str(ipaddress.IPv4Address(header[_V2_FIXED : _V2_FIXED + 4]))
    if transport == _STREAM and family == _INET6:
        return _canonical(ipaddress.IPv6Address(header[_V2_FIXED : _V2_FIXED + 16]))
    return None


def _check_extras(header: bytes, position: int) -> None:
    """The TLVs from `position` on must fill the header, and a checksum among them be right."""
    while position < len(header):
        value = position + 3
        following = value + int.from_bytes(header[position + 1 : value], "big")
        if following > len(header):
            raise ProxyError("a cut TLV")
        if header[position] == _CRC32C:
            said = header[value:following]
            blanked = header[:value] + bytes(len(said)) + header[following:]
            if said != _crc32c(blanked).to_bytes(4, "big"):
                raise ProxyError("wrong checksum")
        position = following


def _crc32c(octets: bytes) -> int:
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = _CRC32C_TABLE[(crc ^ octet) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_row(octet: int) -> int:
    for _ in range(8):
        octet = (octet >> 1) ^ (_CRC32C_POLYNOMIAL if octet & 1 else 0)
    return octet


_CRC32C_TABLE = tuple(_table_row(octet) for octet in range(256))
