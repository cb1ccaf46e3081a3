"""Where is the client that inetd has accepted? On stdin and stdout, a socket or a pair of pipes."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress

LOCAL = ("127.0.0.1", 0)  # the address of a client without one: a pipe, or a terminal
_PIECE = 65536


class StdioError(Exception):
    """There is no client on stdin; the text is one clear line."""


class StdioClient:
    """Takes the client from stdin and stdout, which lead nowhere afterwards. Raises StdioError.

    socket, address: as from accept. log_to_stderr: whether stderr is another place than the
    client: xinetd gives a program its client as all three.
    """

    def __init__(self) -> None:
        self.log_to_stderr = not (_same(0, 2) or _same(1, 2))
        self._copiers: list[threading.Thread] = []
        source, sink = os.dup(0), os.dup(1)
        # Whatever prints from here on must not be taken for a reply.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1) if self.log_to_stderr else (0, 1, 2):
            os.dup2(nowhere, standard)
        os.close(nowhere)
        self.socket, self.address = self._joined(source, sink)

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
                raise StdioError(f"the client on stdin is gone: {error.strerror}") from error
            raise StdioError(
                "stdin is a socket without a client; start gsmtpd --inetd for each connection:"
                " wait = no in xinetd, nowait in inetd.conf, Accept=yes in a systemd socket"
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
            thread = threading.Thread(target=copy, args=(descriptor, theirs), daemon=True)
            self._copiers.append(thread)
        return ours

    def start(self) -> None:
        """Begin to copy, where the client is no socket."""
        for copier in self._copiers:
            copier.start()

    def finish(self) -> None:
        """Wait until the last reply is written."""
        if self._copiers:
            self._copiers[-1].join()


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
