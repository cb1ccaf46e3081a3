"""Is the client taken from a header of the PROXY protocol, and all refused that is none?"""

from __future__ import annotations

import ipaddress
import struct

import pytest

from gsmtpd.server.proxy import ProxyError, ProxyHeader, parse_proxy

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UDP6, UNIX, UNIX_DATAGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
IPV4 = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack(">HH", 56324, 25)
IPV6 = (
    ipaddress.ip_address("2001:db8::1").packed
    + ipaddress.ip_address("2001:db8::2").packed
    + struct.pack(">HH", 56324, 25)
)
MAPPED = ipaddress.ip_address("::ffff:192.0.2.1").packed * 2 + bytes(4)
UNIX_ADDRESSES = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")


def v2(command: int, family: int, content: bytes = b"") -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(content)) + content


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


# As HAProxy sends it with send-proxy-v2-ssl-cn: TLS with a client certificate.
SSL = tlv(
    0x20,
    b"\x07"
    + bytes(4)
    + tlv(0x21, b"TLSv1.3")
    + tlv(0x22, b"client.example.org")
    + tlv(0x23, b"TLS_AES_256_GCM_SHA384")
    + tlv(0x24, b"RSA-SHA256")
    + tlv(0x25, b"RSA2048"),
)


def crc32c(octets: bytes) -> int:
    """The checksum of RFC 4960 appendix B, bit by bit."""
    remainder = 0xFFFFFFFF
    for octet in octets:
        for bit in range(8):
            high = (remainder ^ (octet >> bit)) & 1
            remainder >>= 1
            if high:
                remainder ^= 0x82F63B78
    return remainder ^ 0xFFFFFFFF


def checked(header: bytes, position: int) -> bytes:
    """`header` with its checksum in the four zeros at `position`."""
    return header[:position] + struct.pack(">I", crc32c(header)) + header[position + 4 :]


BLANK = v2(PROXY, TCP4, IPV4 + tlv(0x04, b"xy") + tlv(0x03, bytes(4)) + tlv(0x02, b"mx"))
CHECKSUM_AT = 16 + 12 + 5 + 3
WITH_CHECKSUM = checked(BLANK, CHECKSUM_AT)


def test_the_checksum_of_the_test() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720 appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


GOOD: list[tuple[bytes, str | None]] = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n", "192.0.2.1"),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", "192.0.2.1"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 25\r\n", "2001:db8::1"),
    (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:0001 ::1 1 2\r\n", "2001:db8::1"),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", "192.0.2.1"),
    (b"PROXY TCP6 ::FFFF:C000:0201 ::1 1 2\r\n", "192.0.2.1"),
    (b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
     "ffff:" * 7 + "ffff"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN \r\n", None),
    (b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", None),
    (b"PROXY UNKNOWN \xff\x00 \n\r what else\r\n", None),
    (v2(PROXY, TCP4, IPV4), "192.0.2.1"),
    (v2(PROXY, TCP6, IPV6), "2001:db8::1"),
    (v2(PROXY, TCP6, MAPPED), "192.0.2.1"),
    (v2(PROXY, TCP4, IPV4 + SSL), "192.0.2.1"),
    (v2(PROXY, TCP6, IPV6 + tlv(0x02, b"mx.example.org") + SSL + tlv(0x04, b"")), "2001:db8::1"),
    (v2(PROXY, TCP4, IPV4 + tlv(0xEA, b"x" * (4096 - 16 - 12 - 3))), "192.0.2.1"),
    (WITH_CHECKSUM, "192.0.2.1"),
    (v2(LOCAL, UNSPEC), None),
    (v2(LOCAL, TCP4, IPV4), None),  # a LOCAL has its addresses ignored
    (v2(LOCAL, 0xFF, b"anything"), None),  # and its family
    (v2(PROXY, UNSPEC), None),
    (v2(PROXY, UNSPEC, b"x" * 100), None),
    (v2(PROXY, 0x10, b"x"), None),
    (v2(PROXY, 0x01, b"x"), None),
    (v2(PROXY, UDP4, IPV4), None),  # falls back to UNSPEC, section 2.2
    (v2(PROXY, UDP6, IPV6), None),
    (v2(PROXY, UNIX, UNIX_ADDRESSES), None),
    (v2(PROXY, UNIX_DATAGRAM, UNIX_ADDRESSES + tlv(0x04, b"x")), None),
]  # fmt: skip


@pytest.mark.parametrize(("header", "client"), GOOD)
@pytest.mark.parametrize("rest", [b"", b"\r\n", b"EHLO a\r\n", b"\x16\x03\x01"])
def test_a_header(header: bytes, client: str | None, rest: bytes) -> None:
    assert parse_proxy(header + rest) == ProxyHeader(client, len(header))


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_more_is_needed_until_it_is_whole(header: bytes, client: str | None) -> None:
    assert [parse_proxy(header[:end]) for end in range(len(header))] == [None] * len(header)


V1 = [
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"proxy TCP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY tcp4 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP5 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY unknown\r\n",
    b"PROXY  TCP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324  25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25 \r\n",
    b"PROXY TCP4\t192.0.2.1 198.51.100.2 56324 25\r\n",
    b" PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25 1\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 025\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 00 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 0x19 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 \xb2 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\n\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.1.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.1/32 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100 56324 25\r\n",
    b"PROXY TCP4 192.0.2.\xb9 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 3221225985 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 mx.example.org 198.51.100.2 56324 25\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 25\r\n",
    b"PROXY TCP4 ::ffff:192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP6 2001:db8::1 198.51.100.2 56324 25\r\n",
    b"PROXY TCP6 2001:db8::1::2 2001:db8::2 56324 25\r\n",
    b"PROXY TCP6 2001:db8:1 2001:db8::2 56324 25\r\n",
    b"PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::2 56324 25\r\n",
    b"PROXY TCP6 02001:db8::1 2001:db8::2 56324 25\r\n",
    b"PROXY TCP6 [2001:db8::1] 2001:db8::2 56324 25\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::2 56324 25\r\n",
    b"PROXY TCP6 2001:db8::g 2001:db8::2 56324 25\r\n",
]


@pytest.mark.parametrize("octets", V1)
def test_version_1_that_is_wrong(octets: bytes) -> None:
    with pytest.raises(ProxyError):
        parse_proxy(octets)


@pytest.mark.parametrize(
    "octets",
    [
        v2(0x11, TCP4, IPV4),
        v2(0x31, TCP4, IPV4),
        v2(0x22, TCP4, IPV4),
        v2(0x2F, TCP4, IPV4),
        v2(PROXY, 0x41, IPV4),
        v2(PROXY, 0xF1, IPV4),
        v2(PROXY, 0x13, IPV4),
        v2(PROXY, 0x1F, IPV4),
        v2(PROXY, TCP4),
        v2(PROXY, TCP4, IPV4[:-1]),
        v2(PROXY, UDP4, IPV4[:-1]),
        v2(PROXY, TCP6, IPV4),
        v2(PROXY, TCP6, IPV6[:-1]),
        v2(PROXY, UNIX, UNIX_ADDRESSES[:-1]),
        v2(PROXY, TCP4, IPV4 + b"\x04"),
        v2(PROXY, TCP4, IPV4 + b"\x04\x00"),
        v2(PROXY, TCP4, IPV4 + b"\x04\x00\x01"),
        v2(PROXY, TCP4, IPV4 + tlv(0x02, b"mx") + b"\x04\xff\xffx"),
        v2(PROXY, TCP4, IPV4 + tlv(0x03, b"")),
        v2(PROXY, TCP4, IPV4 + tlv(0x03, bytes(3))),
        v2(PROXY, TCP4, IPV4 + tlv(0x03, bytes(4))),
        WITH_CHECKSUM[:16] + b"\xc1" + WITH_CHECKSUM[17:],
        WITH_CHECKSUM[:-1] + b"y",
        BLANK,
        v2(LOCAL, UNSPEC, bytes(4081)),
        v2(PROXY, TCP4, IPV4 + tlv(0x04, bytes(4066))),
        SIGNATURE[:-1] + b"\r" + v2(PROXY, TCP4, IPV4)[12:],
    ],
)
def test_version_2_that_is_wrong(octets: bytes) -> None:
    with pytest.raises(ProxyError):
        parse_proxy(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"E",
        b"Q",
        b"PROXT",
        b"PROXY\r",
        b"\r\n\r\n\x01",
        b"\n",
        b"\x16",
        SIGNATURE + b"\x11",
        SIGNATURE + b"\x21\x40",
        SIGNATURE + b"\x21\x11\x10\x00",
        SIGNATURE + b"\x20\x00\xff\xff",
        SIGNATURE + b"\x21\x11\x00\x0b",
    ],
)
def test_it_is_refused_as_soon_as_it_can_be(octets: bytes) -> None:
    assert parse_proxy(octets[:-1]) is None
    with pytest.raises(ProxyError):
        parse_proxy(octets)


def test_a_line_that_does_not_end() -> None:
    line = b"PROXY UNKNOWN ".ljust(107, b"x")
    assert parse_proxy(line[:-1]) is None
    assert parse_proxy(line[:-2] + b"\r\n") == ProxyHeader(None, 107)
    for longer in (line, line[:-1] + b"\r", line[:-1] + b"\r\n"):
        with pytest.raises(ProxyError, match="107"):
            parse_proxy(longer)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ProxyError, match="^no header of the PROXY protocol$"):
        parse_proxy(b"EHLO a\r\n")
    with pytest.raises(ProxyError, match="^bad TCP4 address$"):
        parse_proxy(b"PROXY TCP4 a b 1 2\r\n")
