"""How is mail made smaller? zlib (RFC 1950), a message deflated once for all its recipients.

The rows of a message differ in the few octets of our own fields in front. zlib's streams are made
of blocks, so those are deflated for each row, and the blocks of the message follow as they are.
"""

from __future__ import annotations

from zlib import DEFLATED, Z_FINISH, Z_SYNC_FLUSH, adler32, compressobj

_HEADER = b"\x78\x9c"  # deflate with a window of 32 KiB, no dictionary (RFC 1950 section 2.2)
_RAW = -15  # that window, and neither header nor checksum
_MODULUS = 65521  # of Adler-32 (RFC 1950 section 8.2)


class Packed:
    """The octets `content`, deflated at `level` (1, fast, to 9, small)."""

    __slots__ = ("_checksum", "_deflated", "_length", "_level")

    def __init__(self, content: bytes, level: int) -> None:
        self._level = level
        self._length = len(content)
        self._checksum = adler32(content)
        deflate = compressobj(level, DEFLATED, _RAW)
        self._deflated = deflate.compress(content) + deflate.flush(Z_FINISH)

    def __len__(self) -> int:
        return len(self._deflated)

    def behind(self, front: bytes) -> bytes:
        """`front` and the content as one zlib stream."""
        deflate = compressobj(self._level, DEFLATED, _RAW)
        blocks = deflate.compress(front) + deflate.flush(Z_SYNC_FLUSH)
        checksum = _joined(adler32(front), self._checksum, self._length)
        return b"%b%b%b%b" % (_HEADER, blocks, self._deflated, checksum.to_bytes(4, "big"))


def _joined(first: int, second: int, length: int) -> int:
    """The Adler-32 of two texts in a row, from theirs; length: of the second, in octets."""
    a1, b1, a2, b2 = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    a = (a1 + a2 - 1) % _MODULUS
    b = (b1 + b2 + length * (a1 - 1)) % _MODULUS
    return b << 16 | a
