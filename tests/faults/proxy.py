"""How does a network lose what a database and its client say to each other? A TCP proxy that may.

Each connection is passed on until the client sends COMMIT. Then the fault that was armed happens,
once: the COMMIT or its answer is lost, with the connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from enum import Enum
from typing import Self

COMMIT = b"\x07\x00\x00\x00\x03COMMIT"


class Fault(Enum):
    """What happens to a COMMIT."""

    REPLY_LOST = "carried out, and the connection is lost before the reply"
    COMMIT_LOST = "the connection is lost before the COMMIT"
    CUT = "passed on, and the client's connection is lost in the same moment"
    HELD = "as CUT, but passed on only when `release` is called"


class CommitProxy:
    """Listens on 127.0.0.1 at `port` and passes connections on to `server`."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server  # where the next connection leads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._armed: list[Fault] = []
        self.happened: list[Fault] = []
        self._released = threading.Event()
        self._closing = False

    def arm(self, *faults: Fault) -> None:
        """Have `faults` happen to the next COMMITs, one each."""
        self._armed += faults

    def release(self) -> None:
        """Pass on the COMMIT that is held."""
        self._released.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.server) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                self._talk(client, server)

    def _talk(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            for end in select.select([client, server], [], [])[0]:
                data = end.recv(1 << 20)
                if not data:
                    return
                if end is client and data.endswith(COMMIT) and self._armed:
                    self._lose(self._armed.pop(0), data, client, server)
                    return
                (server if end is client else client).sendall(data)

    def _lose(
        self, fault: Fault, commit: bytes, client: socket.socket, server: socket.socket
    ) -> None:
        self.happened.append(fault)
        if fault is Fault.COMMIT_LOST:
            return
        if fault is Fault.HELD:
            client.close()
            self._released.wait(60)
        server.sendall(commit)
        if fault is Fault.CUT:
            client.close()
        server.recv(1 << 16)
