"""What does a client ask for in its ClientHello? Read before OpenSSL is made for the client.

The name that it asks for is read here, and not by OpenSSL's callback for it: for a name that is not
ASCII, Python would print a traceback, and any client can send one.
"""

from __future__ import annotations

from collections.abc import Iterator

HANDSHAKE = 0x16  # the first octet of whoever speaks TLS, RFC 8446 section 5.1
_MAX_RECORD = 16384  # octets in a record, likewise
_MAX_HELLO = 32768  # octets of a ClientHello; they are mostly 2 KiB or less
_MAX_OCTETS = 40000  # of it with the headers of its records
_SERVER_NAME, _GROUPS, _KEY_SHARE = 0, 10, 51  # extensions, RFC 8446 section 4.2
# Groups, RFC 8446 section 4.2.7: P-256, P-384, P-521, X25519, X448. No others, which only some
# OpenSSL knows: it would turn to a finite field where a client knows one of those as well.
_ELLIPTIC = frozenset((0x0017, 0x0018, 0x0019, 0x001D, 0x001E))
_FINITE_FIELDS = range(0x0100, 0x0200)  # likewise: ffdhe2048 and on


class HelloError(Exception):
    """A ClientHello is not to be answered; the text is a short reason."""


class Hello:
    """The octets of a client until its ClientHello is whole."""

    __slots__ = ("_message", "_next", "octets")

    def __init__(self) -> None:
        self.octets = bytearray()
        self._message = bytearray()  # of the whole records, without their headers
        self._next = 0  # where the next record begins

    def whole(self, octets: bytes) -> bool:
        """Add `octets`; whether all of it is there. Raises HelloError if it never will be."""
        self.octets += octets
        while len(self.octets) >= self._next + 5:
            kind, major, _, *length = self.octets[self._next : self._next + 5]
            size = length[0] << 8 | length[1]
            # OpenSSL would overlook some of these, and what was hidden behind them.
            if major != 3:
                raise HelloError("wrong version number")
            if kind != HANDSHAKE:
                raise HelloError("unexpected message")
            if not 0 < size <= _MAX_RECORD:
                raise HelloError("wrong packet length")
            start, end = self._next + 5, self._next + 5 + size
            if len(self.octets) < end:
                break
            self._message += self.octets[start:end]
            self._next = end
            if len(self._message) >= 4 and len(self._message) >= 4 + self._said():
                self._check_size()
                return True
        self._check_size()
        return False

    def _check_size(self) -> None:
        if self._said() > _MAX_HELLO or len(self.octets) > _MAX_OCTETS:
            raise HelloError("excessive message size")

    def _said(self) -> int:
        """How many octets follow its first four."""
        return int.from_bytes(self._message[1:4], "big")

    def server_name(self) -> str | None:
        """The name of RFC 6066 section 3 in lower case; None if there is none that can be read."""
        names = self._extensions().get(_SERVER_NAME, b"")
        # A list of names, of which there has only ever been the one kind; OpenSSL checks that.
        name = names[5 : 5 + _number(names, 3)]
        return name.decode("ascii").lower().rstrip(".") if name and name.isascii() else None

    def check_groups(self) -> None:
        """Raises HelloError for a key exchange of TLS 1.3 that would cost much time.

        One over a finite field takes up to 120 ms here, for a hello that costs its sender nothing;
        who knows an elliptic curve is led to that.
        """
        extensions = self._extensions()
        shares = extensions.get(_KEY_SHARE)
        if shares is None:
            return  # TLS 1.2, where none is done over finite fields here
        groups = _numbers(extensions.get(_GROUPS, b"")[2:])
        if not any(group in _ELLIPTIC for group in groups):
            raise HelloError("no elliptic curve among its groups")
        if any(group in _FINITE_FIELDS for group in _shared(shares)):
            raise HelloError("a key share over a finite field")

    def _extensions(self) -> dict[int, bytes]:
        """What each of its extensions says; those that stand there whole."""
        hello = bytes(self._message)
        position = 4 + 2 + 32  # the header, the version and what is random; RFC 8446 section 4.1.2
        position += 1 + int.from_bytes(hello[position : position + 1], "big")  # the session's id
        position += 2 + _number(hello, position)  # ciphers
        position += 1 + int.from_bytes(hello[position : position + 1], "big")  # compression
        end = position + 2 + _number(hello, position)
        position += 2
        found: dict[int, bytes] = {}
        while position + 4 <= min(end, len(hello)):
            kind, size = _number(hello, position), _number(hello, position + 2)
            found[kind] = hello[position + 4 : position + 4 + size]
            position += 4 + size
        return found


def _shared(shares: bytes) -> Iterator[int]:
    """The groups of a list of key shares, RFC 8446 section 4.2.8."""
    position = 2
    while position + 4 <= len(shares):
        yield _number(shares, position)
        position += 4 + _number(shares, position + 2)


def _numbers(octets: bytes) -> Iterator[int]:
    return (_number(octets, position) for position in range(0, len(octets) - 1, 2))


def _number(octets: bytes, position: int) -> int:
    """Two octets; 0 behind the end."""
    return int.from_bytes(octets[position : position + 2].ljust(2, b"\0"), "big")
