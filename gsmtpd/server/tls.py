"""What does a client say in TLS, and which certificate is it shown? No socket is touched here."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

HANDSHAKE = 0x16  # the first octet of whoever speaks TLS, RFC 8446 section 5.1
_MAX_FILE = 1 << 20  # octets of a PEM file
_MAX_RECORD = 16384  # octets in a record, RFC 8446 section 5.1
# Octets waited for until a ClientHello is whole. They are mostly 2 KiB or less.
_MAX_HELLO = 32768
# What a client may send beside what it says: a record of one octet is 24 octets, but a flood of
# KeyUpdate (RFC 8446 section 4.6.3) says nothing, costs a lot, and has every record answered.
_MAX_BESIDE = 65536  # octets at a time, and as many in answers that nobody has taken yet
_BESIDE_ONE = 64  # octets for each that is said
_PIECE = 16384  # octets given to OpenSSL at a time; its buffer keeps the size that it once had


class Pair(NamedTuple):
    """Paths of a certificate with its chain, and of its key; both PEM. key "": in the same file."""

    certificate: str
    key: str


class CertificateError(Exception):
    """A certificate or key cannot be used; the text is one clear line."""


class TLSError(Exception):
    """A client's TLS has failed; the text is a short reason, as "no shared cipher"."""


class NotTLSError(TLSError):
    """The client's first octet already is not TLS."""


class _Context(ssl.SSLContext):
    """What the default pair is served with; it knows the contexts of the others by name."""

    by_name: Mapping[str, ssl.SSLContext]

    def for_name(self, name: str | None) -> ssl.SSLContext:
        """The context for a client that asks for `name`: its own, that of "*.parent", or this."""
        if not name:
            return self
        found = self.by_name.get(name)
        return found or self.by_name.get("*." + name.partition(".")[2], self)


_File = tuple[int, ...] | None  # what shows whether a file is still the same; None: not there


class Certificates:
    """The certificates of a server, loaded once. Raises CertificateError.

    Forks come afterwards: then a client may resume in one process what it began in another.

    default: shown to clients that ask for no name, or for an unknown one. by_name: for the others;
    the names are as in a certificate, "mail.example.org" or "*.example.org".
    """

    def __init__(self, default: Pair, by_name: Mapping[str, Pair]) -> None:
        self._default = default
        self._by_name = by_name
        # Before they are read, so that a change in between is seen.
        self._loaded = self._seen = self._told = self._look()
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        _set_up(context, default)
        context.by_name = {
            name.lower(): _set_up(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
            for name, pair in by_name.items()
        }
        self.context: ssl.SSLContext = context

    def changed(self) -> bool:
        """Whether the files differ from those that were loaded, and did so at the last call, too.

        A certificate and a key that are replaced one after the other have settled by then. True
        once for each state of the files, so that one that is no good is not tried for ever.
        """
        before, self._seen = self._seen, self._look()
        if self._seen == self._loaded:
            self._told = self._loaded
        if self._seen != before or self._seen == self._told:
            return False
        self._told = self._seen
        return True

    def again(self) -> Certificates:
        """The same files, loaded anew. Raises CertificateError."""
        return Certificates(self._default, self._by_name)

    def _look(self) -> tuple[_File, ...]:
        pairs = (self._default, *self._by_name.values())
        return tuple(_file(path) for pair in pairs for path in pair if path)


class TLSStream:
    """One client's TLS, between octets that come and go elsewhere.

    What OpenSSL needs for it is made when the ClientHello is whole: a client that sends none, or
    sends it drop by drop, costs its octets only.

    description: the version and cipher, as "TLSv1.3:TLS_AES_256_GCM_SHA384"; "" until the handshake
    is done. ended: whether the client has said that it sends no more.
    """

    __slots__ = (
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
        self._hello: _Hello | None = None
        self._object: ssl.SSLObject | None = None
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
            if plain:
                self._object.write(plain)
        except ssl.SSLError as error:
            raise TLSError(_reason(error)) from error

    def take_output(self) -> bytes:
        """What is to be written to the socket, and not again."""
        return self._outgoing.read() if self._object is not None else b""

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
            self._hello = _Hello()
        hello = self._hello
        if not hello.whole(octets):
            return b""
        self._hello = None
        context = self._context
        if isinstance(context, _Context):
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
            raise TLSError(_reason(error)) from error
        return plain

    def _shake_hands(self, tls: ssl.SSLObject) -> None:
        tls.do_handshake()
        cipher = tls.cipher()
        self.description = f"{tls.version()}:{cipher[0] if cipher else ''}"


class _Hello:
    """The octets of a client until its ClientHello is whole.

    The name that it asks for is read here, and not by OpenSSL's callback for it: for a name that is
    not ASCII, Python would print a traceback, and any client can send one.
    """

    __slots__ = ("_message", "_next", "octets")

    def __init__(self) -> None:
        self.octets = bytearray()
        self._message = bytearray()  # of the whole records, without their headers
        self._next = 0  # where the next record begins

    def whole(self, octets: bytes) -> bool:
        """Add `octets`. True if OpenSSL shall have all now: it is whole, or will never be."""
        self.octets += octets
        while len(self.octets) >= self._next + 5:
            kind, major, _, *length = self.octets[self._next : self._next + 5]
            size = length[0] << 8 | length[1]
            if kind != HANDSHAKE or major != 3 or not 0 < size <= _MAX_RECORD:
                return True
            start, end = self._next + 5, self._next + 5 + size
            if len(self.octets) < end:
                break
            self._message += self.octets[start:end]
            self._next = end
            if len(self._message) >= 4 and len(self._message) >= 4 + self._said():
                return True
        return len(self.octets) > _MAX_HELLO or self._said() > _MAX_RECORD

    def _said(self) -> int:
        return int.from_bytes(self._message[1:4], "big")

    def server_name(self) -> str | None:
        """The name of RFC 6066 section 3 in lower case; None if there is none, or not all of it."""
        try:
            return _server_name(bytes(self._message))
        except (IndexError, UnicodeDecodeError):
            return None


def _server_name(hello: bytes) -> str | None:
    """Raises IndexError if it is cut, UnicodeDecodeError if the name is not ASCII."""
    position = 4 + 2 + 32  # the header, the version and what is random; RFC 8446 section 4.1.2
    position += 1 + hello[position]  # the session's id
    position += 2 + _number(hello, position)  # ciphers
    position += 1 + hello[position]  # compression
    end = position + 2 + _number(hello, position)
    position += 2
    while position < end:
        kind, size = _number(hello, position), _number(hello, position + 2)
        position += 4
        if kind == 0:
            # A list of names, of which there has only ever been the one kind; OpenSSL checks that.
            length = _number(hello, position + 3)
            name = hello[position + 5 : position + 5 + length]
            return name.decode("ascii").lower().rstrip(".")
        position += size
    return None


def _number(octets: bytes, position: int) -> int:
    return octets[position] << 8 | octets[position + 1]


def _set_up(context: ssl.SSLContext, pair: Pair) -> ssl.SSLContext:
    # The ciphers are those that the system's OpenSSL takes: who is refused sends in plain text.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 1  # a mail server comes back with one connection at a time
    context.options |= (
        ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    key = pair.key or pair.certificate
    _must_hold(pair.certificate, "certificate", b"CERTIFICATE-----")
    _must_hold(key, "private key", b"PRIVATE KEY-----")
    try:
        context.load_cert_chain(pair.certificate, pair.key or None, password=_no_passphrase)
    except _Encrypted:
        raise CertificateError(
            f"{key}: the key is encrypted, and nobody is asked for its passphrase;"
            f" write it without one: openssl pkey -in {key} -out NEW"
        ) from None
    except ssl.SSLError as error:
        raise CertificateError(_why(error, pair.certificate, key)) from error
    except OSError as error:
        raise CertificateError(f"{pair.certificate}: {error.strerror}") from error
    return context


class _Encrypted(Exception):
    pass


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for it on the terminal.
    raise _Encrypted


def _must_hold(path: str, what: str, mark: bytes) -> None:
    """Raises CertificateError if the file cannot be read, or has nothing that is `what` in PEM."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CertificateError(f"{path}: not a file; write the path of a {what} in PEM")
        with open(path, "rb") as file:
            content = file.read(_MAX_FILE + 1)
    except PermissionError as error:
        raise CertificateError(
            f"{path}: the {what} cannot be read: Permission denied; the user that gsmtpd runs as"
            " has to, e.g. as a member of the group that the file belongs to"
        ) from error
    except OSError as error:
        raise CertificateError(f"{path}: the {what} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path!a}: not the path of a file") from error
    if len(content) > _MAX_FILE:
        raise CertificateError(f"{path}: larger than 1 MiB; is it a {what} in PEM?")
    if mark not in content:
        raise CertificateError(
            f"{path}: no {what} in PEM in it; PEM is text, with -----BEGIN {mark.decode()}"
        )


def _why(error: ssl.SSLError, certificate: str, key: str) -> str:
    reason = _reason(error)
    if reason in ("key values mismatch", "key type mismatch", "no certificate assigned"):
        return (
            f"{key}: not the key of the first certificate in {certificate};"
            " the server's own certificate comes first, then its chain"
        )
    if reason in ("ee key too small", "ca md too weak"):
        return f"{certificate}: {reason}: OpenSSL refuses it; make a new one, RSA 2048 or ECDSA"
    damaged = f"{certificate}: the certificate or its key {key} is damaged"
    return f"{damaged}: {reason}" if error.reason else damaged


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "broken off").lower().replace("_", " ")


def _file(path: str) -> _File:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    # The change of the inode, too: a file that could not be read may have got other rights.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
