"""Whatever a proxy sends: a header, more of it, or ProxyError; and cuts mean nothing."""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsmtpd.server.proxy import MAX_V2, ProxyError, ProxyHeader, parse_proxy

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

tlvs = st.lists(
    st.builds(
        lambda kind, value: struct.pack(">BH", kind, len(value)) + value,
        st.integers(0, 255).filter(lambda kind: kind != 3),
        st.binary(max_size=40),
    ),
    max_size=5,
).map(b"".join)
words = st.sampled_from(
    [b"TCP4", b"TCP6", b"UNKNOWN", b"192.0.2.1", b"2001:db8::1", b"1", b"65535", b"65536", b"01",
     b"", b"\r", b"\n", b"\xff", b"::", b"fe80::1%lo", b"x" * 60]
)  # fmt: skip
lines = st.lists(words, max_size=6).map(lambda found: b"PROXY " + b" ".join(found) + b"\r\n")
blocks = st.builds(
    lambda command, family, block, wrong: (
        SIGNATURE + struct.pack(">BBH", command, family, max(0, len(block) + wrong)) + block
    ),
    st.sampled_from([0x20, 0x21, 0x21, 0x21, 0x10, 0x2F]),
    st.one_of(st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32]), st.integers(0, 255)),
    st.builds(lambda size, rest: bytes(size) + rest, st.sampled_from([0, 12, 36, 216]), tlvs),
    st.sampled_from([0, 0, 0, -1, 1, 4096]),
)
streams = st.builds(
    lambda header, rest: header + rest,
    st.one_of(lines, blocks, st.binary(max_size=300)),
    st.binary(max_size=20),
)


def outcome(octets: bytes) -> ProxyHeader | ProxyError | None:
    try:
        return parse_proxy(octets)
    except ProxyError as error:
        return error


@settings(deadline=None)
@given(streams)
@example(b"PROXY TCP6 ::ffff:192.0.2.1 :: 0 0\r\n")
@example(SIGNATURE + b"\x21\x11\x0f\xf0" + bytes(5000))
@example(SIGNATURE + b"\x21\x11\x00\x0f" + bytes(12) + b"\x03\x00\x00")
def test_any_octets(octets: bytes) -> None:
    """The outcome of the whole is that of the first start of it that has one, and stays so."""
    first = None
    for end in range(len(octets) + 1):
        now = outcome(octets[:end])
        if first is None:
            first = now
        elif isinstance(first, ProxyHeader):
            assert now == first
        else:
            assert isinstance(now, ProxyError)
    if isinstance(first, ProxyHeader):
        assert 0 < first.size <= min(len(octets), MAX_V2)
        if first.client is not None:
            address = ipaddress.ip_address(first.client)
            assert str(address) == first.client
            assert address.version == 4 or address.ipv4_mapped is None
    elif first is None:
        assert len(octets) < MAX_V2


@given(st.ip_addresses(), st.integers(0, 65535), tlvs, st.binary(max_size=20))
def test_both_versions_mean_the_same(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, extra: bytes, rest: bytes
) -> None:
    block = ip.packed * 2 + struct.pack(">HH", port, port) + extra
    binary = SIGNATURE + struct.pack(">BBH", 0x21, 0x11 if ip.version == 4 else 0x21, len(block))
    line = f"PROXY TCP{ip.version} {ip.exploded} {ip} {port} {port}\r\n".encode()
    wanted = ip if ip.version == 4 else ip.ipv4_mapped or ip
    assert parse_proxy(line + rest) == ProxyHeader(str(wanted), len(line))
    assert parse_proxy(binary + block + rest) == ProxyHeader(str(wanted), len(binary + block))
