"""What does a client say in TLS? Octets in, octets out; no socket is touched here."""

from __future__ import annotations

import ssl
from contextlib import suppress

from gsmtpd.server.certificates import ServerContext, reason
from gsmtpd.server.hello import HANDSHAKE, Hello, HelloError

# A fatal alert, handshake_failure (RFC 8446 section 6), in a record of its own.
_NOT_WITH_YOU = b"\x15\x03\x03\x00\x02\x02\x28"
_MAX_RECORD = 16384  # octets in a record, RFC 8446 section 5.1
# What a client may send beside what it says: a record of one octet is 24 octets, but a flood of
# KeyUpdate (RFC 8446 section 4.6.3) says nothing, costs a lot, and has every record answered.
_MAX_BESIDE = 65536  # octets at a time, and as many in answers that nobody has taken yet
_BESIDE_ONE = 32  # octets for each that is said
_PIECE = 16384  # octets given to OpenSSL at a time; its buffer keeps the size that it once had


class TLSError(Exception):
    """A client's TLS has failed; the text is a short reason, as "no shared cipher"."""


class NotTLSError(TLSError):
    """The client's first octet already is not TLS."""


class TLSStream:
    """One client's TLS, between octets that come and go elsewhere.

    What OpenSSL needs for it is made when the ClientHello is whole: a client that sends none, or
    sends it drop by drop, costs its octets only.

    description: the version and cipher, as "TLSv1.3:TLS_AES_256_GCM_SHA384"; "" until the handshake
    is done. ended: whether the client has said that it sends no more.
    """

    __slots__ = (
        "_alert",
        "_beside",
        "_context",
        "_hello",
        "_incoming",
        "_object",
        "_outgoing",
        "description",
        "ended",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self.description = ""
        self.ended = False
        self._context = context
        self._hello: Hello | None = None
        self._object: ssl.SSLObject | None = None
        self._alert = b""  # to who was refused before there was an object
        self._beside = 0  # octets that came beside what was said

    def receive(self, octets: bytes) -> bytes:
        """All plaintext that there is after `octets` from the socket. Raises TLSError.

        There may be something in take_output even then, which tells the client why.
        """
        if self._object is None:
            octets = self._gather(octets)
        plain = []
        for start in range(0, len(octets), _PIECE):
            self._incoming.write(octets[start : start + _PIECE])
            plain += self._read()
        said = b"".join(plain)
        if self.description:
            self._check_rest(len(octets), len(said))
        return said

    def _check_rest(self, came: int, said: int) -> None:
        self._beside = max(0, self._beside + came - _BESIDE_ONE * said)
        if self._beside > _MAX_BESIDE or self._outgoing.pending > _MAX_BESIDE:
            raise TLSError("much is sent and nothing said")

    def send(self, plain: bytes) -> None:
        """Encrypt `plain` for take_output. Raises TLSError, also before the handshake is done."""
        if self._object is None or not self.description:
            raise TLSError("no handshake yet")
        try:
            rest = memoryview(plain)
            while rest:
                rest = rest[self._object.write(rest) :]
        except ssl.SSLError as error:
            raise TLSError(reason(error)) from error

    def take_output(self) -> bytes:
        """What is to be written to the socket, and not again."""
        if self._object is not None:
            return self._outgoing.read()
        alert, self._alert = self._alert, b""
        return alert

    def close(self) -> None:
        """Tell the client that no more is sent; a handshake that is not done is left as it is."""
        if self._object is not None:
            # The error may be that the client has not said the same yet, for which nobody waits.
            with suppress(ssl.SSLError):
                self._object.unwrap()

    def _gather(self, octets: bytes) -> bytes:
        """Keep what may be a ClientHello. When it is whole: all of it, and OpenSSL is there."""
        if self._hello is None:
            if not octets:
                return b""
            if octets[0] != HANDSHAKE:
                raise NotTLSError("not TLS")
            self._hello = Hello()
        hello = self._hello
        try:
            if not hello.whole(octets):
                return b""
            hello.check_groups()
        except HelloError as error:
            self._alert = _NOT_WITH_YOU
            raise TLSError(str(error)) from error
        self._hello = None
        context = self._context
        if isinstance(context, ServerContext):
            context = context.for_name(hello.server_name())
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        return bytes(hello.octets)

    def _read(self) -> list[bytes]:
        plain: list[bytes] = []
        assert self._object is not None
        try:
            if not self.description:
                self._shake_hands(self._object)
            # Where nothing is left, OpenSSL would only raise that it wants more.
            while self._incoming.pending and not self.ended:
                piece = self._object.read(_MAX_RECORD)
                self.ended = not piece
                plain.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise TLSError(reason(error)) from error
        return plain

    def _shake_hands(self, tls: ssl.SSLObject) -> None:
        tls.do_handshake()
        cipher = tls.cipher()
        self.description = f"{tls.version()}:{cipher[0] if cipher else ''}"
