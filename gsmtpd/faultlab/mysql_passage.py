"""How does one connection pass from a MySQL client to its server, until a fault stops it?"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Protocol

from gsmtpd.faultlab import mysql_packets as packets
from gsmtpd.faultlab.mysql_packets import Command, Piece, Splitter

Address = tuple[str, int]

_CHUNK = 1 << 18  # octets received at once
_BEHIND_AT_MOST = 1 << 20  # octets that one end may send ahead of the other's reading
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


class Point(Enum):
    """Where in a connection's life a fault may happen."""

    CONNECT = "a client has connected, and the server does not know"
    BEFORE_BEGIN = "the client has sent BEGIN, which is not passed on yet"
    AFTER_BEGIN = "BEGIN is answered; the next statement has come, and is not passed on yet"
    BETWEEN_INSERTS = "an INSERT is answered; another one of its transaction is not passed on yet"
    BEFORE_COMMIT = "the client has sent COMMIT, which is not passed on yet"
    COMMIT_REPLY = "the server has carried a COMMIT out; its answer is not passed on yet"
    ANY = "a client has sent any statement, which is not passed on yet"


class Stop(Enum):
    """Why nothing passes on a connection."""

    DELAY = auto()
    HOLD = auto()
    DROP = auto()
    BLACK_HOLE = auto()


class Owner(Protocol):
    """Whom a passage asks at each point."""

    def reached(self, passage: Passage, points: set[Point]) -> bool:
        """It is at `points`; whether it is to pass on what has come there."""

    def closed(self, passage: Passage) -> None:
        """It has ended."""


class _End:
    """One end of a passage: its socket, and what is to be sent there."""

    def __init__(self, end: socket.socket, selector: selectors.BaseSelector) -> None:
        self.socket = end
        self.splitter = Splitter()  # of what it sends
        self.outbox = bytearray()
        self._selector = selector
        self._events = 0
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def watch(self, events: int, then: Callable[[int], None]) -> None:
        """Have `then` called when one of `events` may be had; 0 for never."""
        if events == self._events:
            return
        if not events:
            self._selector.unregister(self.socket)
        elif not self._events:
            self._selector.register(self.socket, events, then)
        else:
            self._selector.modify(self.socket, events, then)
        self._events = events

    def receive(self) -> bool:
        """Take what has come; whether more may come. Raises OSError for a reset."""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return True
        self.splitter.feed(data)
        return bool(data)

    def flush(self) -> None:
        """Send what goes out now. Raises OSError for a reset."""
        with contextlib.suppress(BlockingIOError):
            while self.outbox:
                sent = self.socket.send(self.outbox[:_CHUNK])
                del self.outbox[:sent]

    def close(self, reset: bool) -> None:
        """Hang up. reset: with RST, so that the other side sees a connection reset."""
        self.watch(0, lambda _: None)
        if reset:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()


class Passage:
    """A connection from `client` to a server. All methods are for the thread of `selector`.

    stops: why nothing passes at the moment; both ends stay open meanwhile.
    """

    def __init__(
        self, client: socket.socket, selector: selectors.BaseSelector, owner: Owner
    ) -> None:
        self.stops: set[Stop] = set()
        self._selector = selector
        self._owner = owner
        self._client: _End | None = _End(client, selector)
        self._server: _End | None = None
        self._pending: Callable[[], None] | None = None  # what a stop keeps from being passed on
        self._greeted = False
        self._command = Command.OTHER  # the last that was begun
        self._answered = True  # whether its answer has begun to come
        self._ok = False  # whether that was OK
        self._inserts = 0  # those answered with OK in this transaction
        self._refusal: tuple[int, str] | None = None  # what the client is told instead of passing
        self._rolling_back = False
        self._ending = False
        self._closed = False

    def connect(self, server: Address) -> None:
        """Lead on to `server`, if the owner wants it."""
        self._reach({Point.CONNECT}, partial(self._connect, server))
        self._go()

    def stop(self, why: Stop) -> None:
        """Let nothing pass."""
        self.stops.add(why)
        if why is Stop.DROP:
            self._pending = None
        self._watch()

    def go_on(self, why: Stop) -> None:
        """End what was begun with `stop`. Harmless where it was not."""
        if why in self.stops:
            self.stops.discard(why)
            if not self.stops:
                pending, self._pending = self._pending, None
                if pending is not None:
                    pending()
                self._go()

    def kill(self) -> None:
        """Reset both ends."""
        self._close(True)

    def lose_client(self) -> None:
        """Reset the client's end. The server's answer to what it has got is still awaited."""
        if self._client is not None:
            self._client.close(True)
            self._client = None

    def refuse(self, errno: int, text: str) -> None:
        """Tell the client an error instead of passing on what has come, and the server ROLLBACK."""
        self._pending = None
        if self._client is None:
            return
        if self._server is None:
            self._client.outbox += packets.error(errno, text, 0)
            self._ending = True
            return
        self._refusal = errno, text
        self._roll_back()

    # --- what comes ---

    def _connect(self, server: Address) -> None:
        end = _End(socket.socket(), self._selector)
        end.splitter = packets.server_splitter()
        # The server speaks first, so that whether this succeeds is seen when it can be read from.
        end.socket.connect_ex(server)
        self._server = end

    def _on(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not end.receive():
                self._ended(end)
                return
            self._go()
        except OSError:
            self.kill()

    def _ended(self, end: _End) -> None:
        """One end hung up: what it said before still passes."""
        self._ending = True
        self._pump()
        with contextlib.suppress(OSError):
            self._flush()
        if self.stops:
            return
        if end is self._client or self._client is None or not self._client.outbox:
            self._close(False)
        self._watch()

    def _go(self) -> None:
        """Pass on all that can be."""
        try:
            self._pump()
            self._flush()
        except OSError:
            self.kill()
            return
        done = self._client is not None and not self._client.outbox
        if self._ending and done and not self.stops:
            self._close(False)
        self._watch()

    def _pump(self) -> None:
        while self._pass_on(self._client, self._from_client) or self._pass_on(
            self._server, self._from_server
        ):
            pass

    def _pass_on(self, end: _End | None, take: Callable[[Piece], None]) -> bool:
        """Take the next piece of what `end` said; whether there was one."""
        if end is None or self.stops or self._closed:
            return False
        # A client may say several things at once. Each waits for the answer to the one before, as
        # the server takes them, so that a point is the same for all clients.
        if end is self._client and end.splitter.whole and not self._answered:
            return False
        piece = end.splitter.next()
        if piece is None:
            return False
        take(piece)
        return True

    def _flush(self) -> None:
        for end in (self._client, self._server):
            if end is not None and not self.stops:
                end.flush()

    def _watch(self) -> None:
        client, server = self._client, self._server
        for end, other in ((client, server), (server, client)):
            if end is None:
                continue
            events = selectors.EVENT_WRITE if end.outbox else 0
            if not self._ending and (other is None or len(other.outbox) < _BEHIND_AT_MOST):
                events |= selectors.EVENT_READ
            end.watch(0 if self.stops else events, partial(self._on, end))

    def _close(self, reset: bool) -> None:
        for end in (self._client, self._server):
            if end is not None:
                end.close(reset)
        self._client = self._server = None
        self._closed = True
        self.stops.clear()
        self._pending = None
        self._owner.closed(self)

    # --- what is said ---

    def _reach(self, points: set[Point], passing: Callable[[], None]) -> None:
        self._pending = passing
        if self._owner.reached(self, points):
            self._pending = None
            passing()

    def _send_server(self, data: bytes) -> None:
        if self._server is not None:
            self._server.outbox += data

    def _send_client(self, data: bytes) -> None:
        if self._client is not None:
            self._client.outbox += data

    def _from_client(self, piece: Piece) -> None:
        if self._refusal is not None:
            self._roll_back()  # the rest of what is refused vanishes
        elif piece.is_command:
            command = packets.command_of(piece.first or b"")
            points = self._points(command)
            self._command, self._answered, self._ok = command, False, False
            if command in (Command.BEGIN, Command.COMMIT, Command.ROLLBACK):
                self._inserts = 0
            self._reach(points, partial(self._send_server, piece.data))
        else:
            self._send_server(piece.data)

    def _points(self, command: Command) -> set[Point]:
        points = {Point.ANY}
        if self._command is Command.BEGIN and self._ok:
            points.add(Point.AFTER_BEGIN)
        if command is Command.INSERT and self._inserts:
            points.add(Point.BETWEEN_INSERTS)
        if command is Command.BEGIN:
            points.add(Point.BEFORE_BEGIN)
        if command is Command.COMMIT:
            points.add(Point.BEFORE_COMMIT)
        return points

    def _roll_back(self) -> None:
        """Once the whole command that is refused has come: the server forgets the transaction."""
        if self._client is not None and self._client.splitter.whole:
            self._rolling_back = True
            self._send_server(packets.query("ROLLBACK"))

    def _from_server(self, piece: Piece) -> None:
        if not self._greeted:
            self._greeted = True
            assert self._server is not None
            self._send_client(packets.readable(piece.data, self._server.splitter))
        elif self._rolling_back:
            self._rolled_back()
        elif self._answered or piece.first is None:
            self._send_client(piece.data)
        else:
            self._answer(piece)

    def _rolled_back(self) -> None:
        """The server has answered our ROLLBACK."""
        if self._client is not None and self._refusal is not None:
            sequence = self._client.splitter.sequence + 1  # servers count on from the question
            self._client.outbox += packets.error(*self._refusal, sequence)
        self._rolling_back, self._refusal, self._inserts = False, None, 0
        self._answered = True

    def _answer(self, piece: Piece) -> None:
        """The first packet of an answer."""
        self._answered = True
        self._ok = piece.is_ok
        if self._ok and self._command is Command.INSERT:
            self._inserts += 1
        if self._client is None:
            self._close(False)
        elif self._ok and self._command is Command.COMMIT:
            self._reach({Point.COMMIT_REPLY}, partial(self._send_client, piece.data))
        else:
            self._send_client(piece.data)
