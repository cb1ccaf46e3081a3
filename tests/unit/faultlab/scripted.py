"""Which server says to a sender whatever a test wants?"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence

RESET = struct.pack("ii", 1, 0)
SILENCE, HANG_UP, RST = "silence", "hang up", "RST"
Said = Callable[[bytes], str]


class Scripted:
    """A server that says to each command what `say` says, or does SILENCE, HANG_UP or RST.

    say: is given a command, b"" for the greeting, and b"." for the end of a message.
    """

    def __init__(self, say: Said) -> None:
        self._say = say
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.commands: list[bytes] = []
        self.messages: list[bytes] = []
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as lines:
            if not self._answer(client, b""):
                return
            for line in lines:
                command = line.rstrip(b"\r\n")
                self.commands.append(command)
                said = self._answer(client, command)
                if not said:
                    return
                if said.startswith("354"):
                    message = b""
                    for text in lines:
                        if text == b".\r\n":
                            break
                        message += text[1:] if text.startswith(b".") else text
                    else:
                        return
                    self.messages.append(message)
                    if not self._answer(client, b"."):
                        return

    def _answer(self, client: socket.socket, command: bytes) -> str:
        """What was said, nothing where that was the end."""
        said = self._say(command)
        if said == RST:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if said in (HANG_UP, RST):
            client.shutdown(socket.SHUT_RDWR) if said == HANG_UP else None
            client.close()
            return ""
        if said != SILENCE:
            client.sendall(said.encode() + b"\r\n")
            if said.startswith("421"):
                client.shutdown(socket.SHUT_WR)
        return said

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for client in self._clients:
            client.close()


def usual(command: bytes) -> str:
    verb = command.split(b" ")[0]
    usually = {b"": "220 hello", b"EHLO": "250-us\r\n250 8BITMIME", b"DATA": "354 go on"}
    return usually.get(
        verb, f"250 OK: queued as {os.urandom(16).hex()}" if verb == b"." else "250 ok"
    )


def at_times(where: bytes, said: Sequence[str]) -> Said:
    """What is usual, but for the first answers to the commands that begin so."""
    left = [*said]
    lock = threading.Lock()

    def say(command: bytes) -> str:
        with lock:
            if command.startswith(where) and (where or not command) and left:
                return left.pop(0)
        return usual(command)

    return say
