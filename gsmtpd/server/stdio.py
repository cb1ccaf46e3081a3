"""Where is the client that inetd has accepted? On stdin and stdout, a socket or a pair of pipes."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from contextlib import suppress

LOCAL = ("127.0.0.1", 0)  # the address of a client without one: a pipe, or a terminal
_PIECE = 65536
_FLUSH = 5.0  # seconds that the reader of a pipe has for the last reply


class StdioError(Exception):
    """There is no client on stdin; the text is one clear line. log_to_stderr: see StdioClient."""

    def __init__(self, text: str, log_to_stderr: bool) -> None:
        super().__init__(text)
        self.log_to_stderr = log_to_stderr


class StdioClient:
    """Takes the client from stdin and stdout, which lead nowhere afterwards. Raises StdioError.

    socket, address: as from accept. log_to_stderr: whether stderr is there and is another place
    than the client: xinetd gives a program its client as all three.
    """

    def __init__(self) -> None:
        self.log_to_stderr = _same(2, 2) and not (_same(0, 2) or _same(1, 2))
        self._copiers: list[threading.Thread] = []
        source, sink = self._moved(0), self._moved(1)
        # Whatever prints from here on must not be taken for a reply.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1) if self.log_to_stderr else (0, 1, 2):
            os.dup2(nowhere, standard)
        os.close(nowhere)
        self.socket, self.address = self._joined(source, sink)

    def _moved(self, standard: int) -> int:
        try:
            return fcntl.fcntl(standard, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            raise StdioError(
                "stdin or stdout is closed; gsmtpd --inetd needs a client there",
                self.log_to_stderr,
            ) from error

    def _joined(self, source: int, sink: int) -> tuple[socket.socket, tuple[str, int]]:
        try:
            client = socket.socket(fileno=source)
        except OSError:
            return self._copied(source, sink), LOCAL
        os.close(sink)
        try:
            address = client.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                text = f"the client on stdin is gone: {error.strerror}"
                raise StdioError(text, self.log_to_stderr) from error
            raise StdioError(
                "stdin is a socket without a client; start gsmtpd --inetd for each connection:"
                " wait = no in xinetd, nowait in inetd.conf, Accept=yes in a systemd socket",
                self.log_to_stderr,
            ) from error
        if client.family not in (socket.AF_INET, socket.AF_INET6):
            return client, LOCAL
        with suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, address[:2]

    def _copied(self, source: int, sink: int) -> socket.socket:
        """A socket that is joined to the descriptors by a thread for each direction."""
        ours, theirs = socket.socketpair()
        for copy, descriptor in ((_copy_in, source), (_copy_out, sink)):
            os.set_blocking(descriptor, True)
            thread = threading.Thread(target=copy, args=(descriptor, theirs), daemon=True)
            self._copiers.append(thread)
        return ours

    def start(self) -> None:
        """Begin to copy, where the client is no socket."""
        for copier in self._copiers:
            copier.start()

    def finish(self) -> None:
        """Wait until the last reply is written; not for ever, as some do not read it."""
        if self._copiers:
            self._copiers[-1].join(_FLUSH)

    def refuse(self, farewell: bytes) -> None:
        """Say `farewell` in place of a greeting, and hang up."""
        with suppress(OSError):
            self.socket.send(farewell)
        self.socket.close()
        self.start()
        self.finish()


def _same(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False


def _copy_in(source: int, sink: socket.socket) -> None:
    with suppress(OSError):
        while octets := os.read(source, _PIECE):
            sink.sendall(octets)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _copy_out(sink: int, source: socket.socket) -> None:
    with suppress(OSError):
        while octets := source.recv(_PIECE):
            while octets:
                octets = octets[os.write(sink, octets) :]
    with suppress(OSError):
        source.shutdown(socket.SHUT_RDWR)  # who does not hear us has gone
