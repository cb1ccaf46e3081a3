"""What does a ClientHello look like that no program sends? Built octet by octet (RFC 8446)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

P256, P384, P521, X25519, X448 = 0x17, 0x18, 0x19, 0x1D, 0x1E
BRAINPOOL = 0x1A  # brainpoolP256r1, which is there in TLS 1.2 only (RFC 7027)
FFDHE2048, FFDHE8192 = 0x0100, 0x0104
SERVER_NAME, GROUPS, SIGNATURES, VERSIONS, KEY_SHARE = 0, 10, 13, 43, 51
_CIPHERS = b"\x13\x01\x13\x02\xc0\x2b\xc0\x2f"
_SIGNATURES = b"\x04\x03\x08\x04\x04\x01"  # ECDSA and RSA with SHA-256


def hello(
    groups: Sequence[int] = (X25519, P256),
    shares: Sequence[int] | None = (X25519,),
    name: str = "",
    more: Mapping[int, bytes] | None = None,
) -> bytes:
    """A ClientHello of TLS 1.3, a message without its record. shares: None is one of TLS 1.2.

    more: further extensions, which stand in front.
    """
    listed = b"".join(map(number, groups))
    extensions = dict(more or {})
    if name:
        extensions[SERVER_NAME] = counted(b"\0" + counted(name.encode()))
    extensions[GROUPS] = counted(listed)
    extensions[SIGNATURES] = counted(_SIGNATURES)
    if shares is not None:
        extensions[VERSIONS] = b"\x04\x03\x04\x03\x03"
        extensions[KEY_SHARE] = counted(b"".join(map(_share, shares)))
    told = b"".join(number(kind) + counted(value) for kind, value in extensions.items())
    body = b"\x03\x03" + bytes(32) + b"\x20" + b"s" * 32 + counted(_CIPHERS) + b"\x01\0"
    body += counted(told)
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message: bytes, size: int = 16384) -> bytes:
    """`message` in records of `size` octets."""
    pieces = (message[start : start + size] for start in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + counted(piece) for piece in pieces)


def number(value: int) -> bytes:
    """It in two octets."""
    return value.to_bytes(2, "big")


def counted(octets: bytes) -> bytes:
    """`octets` behind their number."""
    return number(len(octets)) + octets


def _share(group: int) -> bytes:
    """A public key of the group. Those of curves are none, but have the right size."""
    if group >= FFDHE2048:
        # Less than the prime, whose highest 64 bits are ones (RFC 7919).
        key = b"\x7f" + os.urandom(_OCTETS[group] - 1)
    else:
        key = os.urandom(_OCTETS[group])
    return number(group) + counted(key)


_OCTETS = {P256: 65, P384: 97, P521: 133, X25519: 32, X448: 56, BRAINPOOL: 65}
_OCTETS |= {FFDHE2048: 256, 0x0101: 384, 0x0102: 512, 0x0103: 768, FFDHE8192: 1024}
