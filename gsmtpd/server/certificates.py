"""Which certificate is a client shown, and is it one that can be? Loaded here, and looked after."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from typing import NamedTuple

from gsmtpd.server.validity import complaint

_MAX_FILE = 1 << 20  # octets of a PEM file


class Pair(NamedTuple):
    """Paths of a certificate with its chain, and of its key; both PEM. key "": in the same file."""

    certificate: str
    key: str


class CertificateError(Exception):
    """A certificate or key cannot be used; the text is one clear line."""


class ServerContext(ssl.SSLContext):
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
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        _set_up(context, default)
        context.by_name = {
            name.lower(): _set_up(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
            for name, pair in by_name.items()
        }
        self.context = context

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

    def complaints(self) -> list[str]:
        """What is wrong with the times of the certificates now, a line for each."""
        contexts = [self.context, *self.context.by_name.values()]
        pairs = [self._default, *self._by_name.values()]
        found = (complaint(c, pair.certificate) for c, pair in zip(contexts, pairs, strict=True))
        return [one for one in found if one]

    def _look(self) -> tuple[_File, ...]:
        pairs = (self._default, *self._by_name.values())
        return tuple(_file(path) for pair in pairs for path in pair if path)


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
        other = b"-----BEGIN " in content
        hint = "; are certificate and key swapped, or is key = missing?" if other else ""
        raise CertificateError(
            f"{path}: no {what} in PEM in it; PEM is text, with -----BEGIN {mark.decode()}{hint}"
        )


def _why(error: ssl.SSLError, certificate: str, key: str) -> str:
    why = reason(error)
    if why in ("key values mismatch", "key type mismatch", "no certificate assigned"):
        return (
            f"{key}: not the key of the first certificate in {certificate};"
            " the server's own certificate comes first, then its chain"
        )
    if why in ("ee key too small", "ca md too weak"):
        return f"{certificate}: {why}: OpenSSL refuses it; make a new one, RSA 2048 or ECDSA"
    damaged = f"{certificate}: the certificate or its key {key} is damaged"
    return f"{damaged}: {why}" if error.reason else damaged


def reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, in a few words."""
    return (error.reason or "broken off").lower().replace("_", " ")


def _file(path: str) -> _File:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    # The change of the inode, too: a file that could not be read may have got other rights.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
