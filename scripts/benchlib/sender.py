"""How is mail sent at a steady rate, and how long does each reply to the final dot take?

One process, epoll, messages made beforehand. As a program it sends what its arguments say, and
writes what came of it to standard output, as JSON.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import select
import socket
import ssl
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.benchlib.scenarios import Scenario, lines, scenario

QUIET_SECONDS = 60.0  # without a reply from anywhere: then the server is given up
HEAD = b"From: a@example.org\r\nTo: b@example.com\r\nSubject: bench\r\n\r\n"
IN, OUT = select.EPOLLIN, select.EPOLLOUT
clock = time.perf_counter


class Trouble(Exception):
    """A reply that is not the wanted one, or a connection that broke."""


@dataclass(frozen=True)
class Order:
    """What to send. rate: messages a second that are begun, whatever the server does; 0: at once.

    secure: by STARTTLS.
    """

    port: int
    scenario: Scenario
    messages: int
    rate: float = 0.0
    secure: bool = False


class Script:
    """What is said to the server: one step for each reply, the same for every message."""

    def __init__(self, order: Order) -> None:
        self._fresh = order.scenario.fresh
        self.hello = b"EHLO client.example\r\n"
        self.mail = b"MAIL FROM:<a@example.org>\r\n"
        self.content = HEAD + lines(order.scenario.size, text=order.scenario.text) + b".\r\n"

    def recipient(self, number: int) -> bytes:
        """RCPT of one message."""
        return b"RCPT TO:<%db@example.com>\r\n" % number if self._fresh else _RECIPIENT


_RECIPIENT = b"RCPT TO:<b@example.com>\r\n"


class Client:
    """One connection, and where in the dialogue it is: `step` hears the next reply."""

    __slots__ = ("_heard", "_left", "_sender", "dotted", "number", "socket", "step")

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._heard = b""
        self._left: memoryview | None = None
        self.dotted = 0.0
        self.number = 0
        self.socket: socket.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reached = self.socket.connect_ex(("127.0.0.1", sender.order.port))
        if reached not in (0, errno.EINPROGRESS):
            raise Trouble(f"connect: {errno.errorcode[reached]}")
        self.step = self._greeted

    # --- events

    def readable(self) -> None:
        """Hear what has come; go on if that is a whole reply."""
        try:
            piece = self.socket.recv(16384)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            raise Trouble(f"{error} behind {self._heard!r}") from None
        if not piece:
            raise Trouble(f"the server hung up behind {self._heard!r}")
        heard = self._heard + piece if self._heard else piece
        # A reply ends with the first line whose code is followed by a space.
        start = heard.rfind(b"\n", 0, -1) + 1
        if heard[-1:] != b"\n" or heard[start + 3 : start + 4] == b"-":
            self._heard = heard
            return
        self._heard = b""
        self.step(heard[start:])

    def writable(self) -> None:
        """Go on with a message that did not fit."""
        left, self._left = self._left, None
        assert left is not None
        self._send(left)

    def _send(self, octets: bytes | memoryview) -> None:
        self.dotted = clock()
        try:
            sent = self.socket.send(octets)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError as error:
            raise Trouble(str(error)) from None
        if sent < len(octets):
            self._left = memoryview(octets)[sent:]
            self._sender.poll.modify(self.socket, OUT)
        elif isinstance(octets, memoryview):
            self._sender.poll.modify(self.socket, IN)

    # --- the dialogue; each step is given the last line of a reply

    def _greeted(self, reply: bytes) -> None:
        self._want(reply, b"220")
        self.step = self._hailed
        self._send(self._sender.script.hello)

    def _hailed(self, reply: bytes) -> None:
        self._want(reply, b"250")
        if self._sender.order.secure and not isinstance(self.socket, ssl.SSLSocket):
            self.step = self._may_shake
            self._send(b"STARTTLS\r\n")
        else:
            self.begin()

    def begin(self) -> None:
        """The next message on this connection, or the first."""
        self.step = self._from
        self._send(self._sender.script.mail)

    def _from(self, reply: bytes) -> None:
        self._want(reply, b"250")
        self.step = self._to
        self._send(self._sender.script.recipient(self.number))

    def _to(self, reply: bytes) -> None:
        self._want(reply, b"250")
        self.step = self._may_send
        self._send(b"DATA\r\n")

    def _may_send(self, reply: bytes) -> None:
        self._want(reply, b"354")
        self.step = self._taken
        self._send(self._sender.script.content)

    def _taken(self, reply: bytes) -> None:
        took = clock() - self.dotted
        self._want(reply, b"250")
        if not self._sender.taken(self, took):
            self.leave()

    def leave(self) -> None:
        """QUIT."""
        self.step = self._bye
        self._send(b"QUIT\r\n")

    def _bye(self, reply: bytes) -> None:
        self._want(reply, b"221")
        self.socket.close()
        self._sender.gone()

    def _may_shake(self, reply: bytes) -> None:
        self._want(reply, b"220")
        self._sender.poll.unregister(self.socket)
        self.socket = self._sender.tls.wrap_socket(self.socket, do_handshake_on_connect=False)
        self._sender.watch(self)
        self._sender.shaking.add(self.socket.fileno())
        self.shake()

    def shake(self) -> None:
        """Go on with the handshake of TLS."""
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            return
        except OSError as error:
            raise Trouble(f"TLS: {error}") from None
        self._sender.shaking.discard(self.socket.fileno())
        self.step = self._hailed
        self._send(self._sender.script.hello)

    @staticmethod
    def _want(reply: bytes, code: bytes) -> None:
        if reply[:3] != code:
            raise Trouble(f"{code.decode()} was expected, not {reply!r}")


class Sender:
    """The loop: begins messages when they are due, and lets each client go on when it is spoken to.

    waits: seconds from the final dot to its reply. late: seconds from when a message was due to
    when it was begun. own: seconds that each round of the loop took, in which no clock was read for
    those that wait: so much of a wait may be this process's own.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.script = Script(order)
        self.poll = select.epoll()
        self.shaking: set[int] = set()
        self.waits: list[float] = []
        self.late: list[float] = []
        self.own: list[float] = []
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._clients: dict[int, Client] = {}
        self._free: deque[Client] = deque()  # connections that wait for the next message
        self._open = 0
        self._begun = 0
        self._start = 0.0

    def run(self) -> None:
        """Send all messages. Raises Trouble at the first that was not taken."""
        self._start = clock()
        while len(self.waits) < self.order.messages or self._open:
            self._begin_due()
            before = clock()
            events = self.poll.poll(self._patience(before), 256)
            now = clock()
            if not events and now - before > QUIET_SECONDS / 2:
                raise Trouble(f"nothing came for {QUIET_SECONDS:g} s")
            for fd, event in events:
                client = self._clients[fd]
                if fd in self.shaking:
                    client.shake()
                elif event & OUT:
                    client.writable()
                else:
                    client.readable()
            self.own.append(clock() - now)

    def _due(self) -> float:
        """When the next message is due."""
        return self._start + self._begun / self.order.rate if self.order.rate else self._start

    def _patience(self, now: float) -> float:
        """How long to wait for replies: not beyond the next message that could be begun."""
        if self._begun == self.order.messages or not self._has_room():
            return QUIET_SECONDS
        return max(0.0, self._due() - now)

    def _has_room(self) -> bool:
        return bool(self._free) or self._open < self.order.scenario.sessions

    def _begin_due(self) -> None:
        while self._begun < self.order.messages and self._has_room():
            now, due = clock(), self._due()
            if now < due:
                return
            if self.order.rate:
                self.late.append(now - due)
            self._begin()

    def _begin(self) -> None:
        self._begun += 1
        if self._free:
            client = self._free.popleft()
            client.number = self._begun
            client.begin()
        else:
            client = Client(self)
            client.number = self._begun
            self._open += 1
            self.watch(client)
        if self._begun == self.order.messages:
            for client in self._free:
                client.leave()
            self._free.clear()

    def watch(self, client: Client) -> None:
        """Hear of what comes to this connection."""
        fd = client.socket.fileno()
        self._clients[fd] = client
        self.poll.register(fd, IN)

    def taken(self, client: Client, seconds: float) -> bool:
        """A message was taken so long after its dot; whether the connection goes on."""
        self.waits.append(seconds)
        if not self.order.scenario.many or self._begun == self.order.messages:
            return False
        if self.order.rate:
            self._free.append(client)
            return True
        self._begun += 1
        client.number = self._begun
        client.begin()
        return True

    def gone(self) -> None:
        """A connection has ended."""
        self._open -= 1


def main() -> int:
    """Send as the arguments say; 1 and a sentence if the server did not take it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--scenario", type=scenario, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--secure", action="store_true")
    sender = Sender(Order(**vars(parser.parse_args())))
    gc.disable()
    cpu, began = time.process_time(), clock()
    try:
        sender.run()
    except Trouble as trouble:
        print(f"after {len(sender.waits)} messages: {trouble}", file=sys.stderr)
        return 1
    done = {
        "seconds": clock() - began,
        "cpu": time.process_time() - cpu,
        "waits": sender.waits,
        "late": sender.late,
        "own": sender.own,
    }
    json.dump(done, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
