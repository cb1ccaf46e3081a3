"""What do a MySQL client and its server say to each other, packet by packet?

A packet is a length of 3 octets, a sequence number of one, and a payload; one of 2^24-1 octets is
continued in the next ("MySQL Packets", MariaDB's "0 - Packet" and "Result Set Packets").
"""

from __future__ import annotations

import struct
from enum import Enum, auto
from typing import NamedTuple

_FULL = 0xFFFFFF  # octets: the packet goes on in the next
_ENOUGH = 64  # octets of a payload that tell what it is
_GREETING_AT_MOST = 4096
_COM_QUERY = 3
_COM_STMT_EXECUTE = 0x17
_GREETING = 10  # the version of the protocol; servers begin with it
_SSL = 0x0800
_COMPRESS = 0x0020
_ZSTD = 0x0400  # in the upper half
_STATES = {1040: b"08004", 1047: b"08S01", 1205: b"HY000", 1213: b"40001"}  # SQLSTATE


class Command(Enum):
    """What a client asks for."""

    BEGIN = auto()
    INSERT = auto()
    COMMIT = auto()
    ROLLBACK = auto()
    OTHER = auto()


class Piece(NamedTuple):
    """Octets of a stream, to be passed on together.

    first: the beginning of the payload where a packet begins here, else None. sequence: the number
    of the packet that they belong to. continues: whether that packet continues the one before.
    """

    data: bytes
    first: bytes | None
    sequence: int
    continues: bool

    @property
    def is_command(self) -> bool:
        """Whether a client begins something new with it."""
        return self.first is not None and self.sequence == 0 and not self.continues

    @property
    def is_ok(self) -> bool:
        """Whether a server's answer begins here that is neither an error nor rows."""
        return self.first is not None and self.first[:1] == b"\0"


class Splitter:
    """Cuts the stream of one direction into pieces.

    The beginning of a packet comes as one piece, `enough` octets of its payload at least; the rest
    follows as it comes, so that statements of any size pass without being kept.
    """

    def __init__(self) -> None:
        self.enough = _ENOUGH
        self._buffer = bytearray()
        self._left = 0  # octets of the packet that are still to come
        self.sequence = 0  # of the packet that was given out last
        self._full = False  # whether the packet is to be continued
        self._continues = False

    @property
    def whole(self) -> bool:
        """Whether what was given out so far ends with a whole packet, not to be continued."""
        return self._left == 0 and not self._full

    def feed(self, data: bytes) -> None:
        """What was received."""
        self._buffer += data

    def next(self) -> Piece | None:
        """What can be passed on next, None until more was received."""
        if not self._left:
            return self._head()
        if not self._buffer:
            return None
        data = self._take(min(self._left, len(self._buffer)))
        self._left -= len(data)
        return Piece(data, None, self.sequence, self._continues)

    def _head(self) -> Piece | None:
        if len(self._buffer) < 4:
            return None
        length = int.from_bytes(self._buffer[:3], "little")
        needed = min(length, self.enough)
        if len(self._buffer) < 4 + needed:
            return None
        self.sequence = self._buffer[3]
        self._continues, self._full = self._full, length == _FULL
        data = self._take(min(4 + length, len(self._buffer)))
        self._left = 4 + length - len(data)
        return Piece(data, data[4 : 4 + needed], self.sequence, self._continues)

    def _take(self, octets: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:octets])
        del self._buffer[:octets]
        return data


def server_splitter() -> Splitter:
    """A splitter that gives the server's first packet, its greeting, as a whole."""
    splitter = Splitter()
    splitter.enough = _GREETING_AT_MOST
    return splitter


def command_of(first: bytes) -> Command:
    """What the payload of a client's command asks for, by the first word of its statement.

    What gsmtpd has prepared are INSERTs.
    """
    if first[:1] == bytes([_COM_STMT_EXECUTE]):
        return Command.INSERT
    if first[:1] != bytes([_COM_QUERY]):
        return Command.OTHER
    words = first[1:].upper().split(None, 2)
    word = words[0].rstrip(b";") if words else b""
    if word == b"START" and len(words) > 1 and words[1].startswith(b"TRANSACTION"):
        word = b"BEGIN"
    if word in (b"REPLACE", b"UPDATE"):
        word = b"INSERT"
    known = word.decode("latin-1")
    return Command[known] if known in Command.__members__ else Command.OTHER


def readable(greeting: bytes, splitter: Splitter) -> bytes:
    """A server's greeting, without its offers to encrypt or to compress.

    What is no greeting (a server with too many connections begins with an error) stays as it is.
    """
    splitter.enough = _ENOUGH
    if greeting[4] != _GREETING:
        return greeting
    changed = bytearray(greeting)
    lower = greeting.index(b"\0", 5) + 1 + 4 + 8 + 1  # behind the version, thread and 8 of a nonce
    upper = lower + 2 + 1 + 2  # behind the character set and the status
    for at, unwanted in ((lower, _SSL | _COMPRESS), (upper, _ZSTD)):
        (flags,) = struct.unpack_from("<H", changed, at)
        struct.pack_into("<H", changed, at, flags & ~unwanted)
    return bytes(changed)


def packet(payload: bytes, sequence: int) -> bytes:
    """A packet. payload: fewer than 2^24-1 octets."""
    return len(payload).to_bytes(3, "little") + bytes([sequence % 256]) + payload


def query(statement: str) -> bytes:
    """The packet of a client that asks for `statement`."""
    return packet(bytes([_COM_QUERY]) + statement.encode(), 0)


def error(number: int, text: str, sequence: int) -> bytes:
    """The packet of a server that refuses. sequence: one above that of what it answers."""
    state = _STATES.get(number, b"HY000")
    # Before the client has said what it understands no SQLSTATE may stand there.
    marked = b"#" + state if sequence else b""
    return packet(b"\xff" + struct.pack("<H", number) + marked + text.encode(), sequence)
