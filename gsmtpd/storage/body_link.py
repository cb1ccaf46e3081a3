"""How is memcached or Redis reached, and how is one asked? In bounded time, whatever it does."""

from __future__ import annotations

import math
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

_Answer = TypeVar("_Answer")

TIMEOUT = 1  # seconds to connect, and for each system call, and for a request that is small
RATE = 10_000_000  # octets a second; for each so many a request may take a second more
MEMCACHED_LONGEST = 30 * 86400  # seconds; memcached takes more for a date
_TOO_LARGE = "larger than its largest item (memcached's option -I)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store listens."""

    host: str
    port: int
    unix_socket: str | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.unix_socket or f"{host}:{self.port}"

    def connect(self) -> _Socket:
        """A connection, by the first address that takes one. Raises OSError.

        pymemcache itself tries one address only: of localhost that of IPv6, and Debian's memcached
        listens at the other.
        """
        trouble: OSError | None = None
        deadline = time.monotonic() + TIMEOUT
        for family, address in self._addresses():
            try:
                return _connected(family, address)
            except OSError as error:
                trouble = error
            if time.monotonic() > deadline:
                break
        raise trouble or OSError(f"{self.host} has no address")

    def _addresses(self) -> Iterable[tuple[int, Any]]:
        if self.unix_socket:
            return [(socket.AF_UNIX, self.unix_socket)]
        return [(found[0], found[4]) for found in _resolved(self.host, self.port)]


def _resolved(host: str, port: int) -> list[Any]:
    """As by getaddrinfo, which alone could take half a minute if no name server answers."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(OSError(f"{host}: {error}"))

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except queue.Empty:
        raise OSError(f"no name server answers for {host}") from None
    if isinstance(answer, OSError):
        raise answer
    found: list[Any] = answer
    return found


def _connected(family: int, address: Any) -> _Socket:
    connected = _Socket(family, socket.SOCK_STREAM)
    try:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT, 0))
        if family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.expect(0)
        connected.bounded(connected.connect, address)
    except OSError:
        connected.close()
        raise
    return connected


class _Socket(socket.socket):
    """A blocking socket whose calls are bounded in time: each by the kernel, all by a deadline.

    With a timeout of Python's each call costs a poll more, which hands the GIL over once more, and
    neither library bounds the time of all calls for one request together.
    """

    deadline = 0.0  # monotonic seconds

    def expect(self, size: int) -> None:
        """Start the time that there is to send or receive `size` octets."""
        self.deadline = time.monotonic() + TIMEOUT + size / RATE

    def bounded(self, call: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """The answer of a call. Raises TimeoutError where the kernel says EAGAIN."""
        if time.monotonic() > self.deadline:
            raise TimeoutError("timed out")
        try:
            return call(*arguments)
        except BlockingIOError as error:
            raise TimeoutError("timed out") from error

    def sendall(self, data: Any, *flags: int) -> None:
        """As in socket. Raises TimeoutError."""
        left = memoryview(data)
        while left:
            left = left[self.bounded(super().send, left, *flags) :]

    def recv(self, *arguments: Any) -> bytes:
        """As in socket. Raises TimeoutError."""
        return self.bounded(super().recv, *arguments)

    def recv_into(self, *arguments: Any) -> int:
        """As in socket. Raises TimeoutError."""
        return self.bounded(super().recv_into, *arguments)


class Link(Protocol):
    """A connection for one thread at a time. Whatever it raises, it may not be used again."""

    socket: _Socket

    def put(self, bodies: Mapping[str, bytes]) -> dict[str, str]:
        """Store them; the keys of those that the server refuses, and why. Raises Exception."""

    def get(self, key: str) -> bytes | None:
        """Raises Exception."""

    def close(self) -> None:
        """Close the connection."""


class MemcachedLink:
    """By pymemcache."""

    def __init__(self, library: Any, place: Place, ttl: float) -> None:
        self._library = library
        # A second more: memcached counts from the start of its present second.
        self._expire = min(math.ceil(ttl) + 1, MEMCACHED_LONGEST)
        self._too_large = math.inf  # the fewest octets that were too many
        self._client = library.Client(str(place))
        self.socket = place.connect()

    def put(self, bodies: Mapping[str, bytes]) -> dict[str, str]:
        """See Link."""
        refused = {
            key: _TOO_LARGE for key, value in bodies.items() if len(value) >= self._too_large
        }
        items = {key: value for key, value in bodies.items() if key not in refused}
        if items:
            refused |= self._put(items)
        return refused

    def _put(self, items: Mapping[str, bytes]) -> dict[str, str]:
        self._client.sock = ear = _Ear(self.socket)
        try:
            failed = self._client.set_many(items, expire=self._expire, noreply=False)
            return dict.fromkeys(failed, "not stored")
        except self._library.MemcacheUnexpectedCloseError as error:
            raise ConnectionError("it closed the connection") from error
        except self._library.MemcacheUnknownCommandError as error:
            raise ConnectionError("it has no connection left") from error
        except self._library.MemcacheServerError:
            # One was refused, and pymemcache says neither which nor what became of those behind it.
            # To send them again would be wrong: memcached may still be at it, and where it refuses
            # a value it also drops the one it had.
            answers = dict(zip(items, ear.lines(len(items)), strict=True))
        return {
            key: self._why(answer, len(items[key]))
            for key, answer in answers.items()
            if answer != "STORED"
        }

    def _why(self, answer: str, size: int) -> str:
        if "too large" not in answer:
            return answer
        self._too_large = min(self._too_large, size)
        return _TOO_LARGE

    def get(self, key: str) -> bytes | None:
        """See Link."""
        self._client.sock = self.socket
        value: bytes | None = self._client.get(key)
        return value

    def close(self) -> None:
        """See Link."""
        self.socket.close()


class _Ear:
    """A socket as pymemcache has it, which notes what was received. pymemcache does not close it.

    memcached answers each value that it is given with one line.
    """

    def __init__(self, connected: _Socket) -> None:
        self._socket = connected
        self._heard = b""
        self.sendall = connected.sendall

    def recv(self, size: int) -> bytes:
        """As in socket."""
        received = self._socket.recv(size)
        self._heard += received
        return received

    def lines(self, number: int) -> list[str]:
        """All of that many lines. Raises OSError."""
        while self._heard.count(b"\r\n") < number:
            if not self.recv(4096):
                raise ConnectionError("it closed the connection")
        return self._heard.decode(errors="replace").split("\r\n")[:number]

    def close(self) -> None:
        """Leave it open."""


class RedisLink:
    """By redis-py; of its pipelines this is what goes over the wire, sent with one call."""

    def __init__(self, library: Any, place: Place, ttl: float) -> None:
        self._milliseconds = math.ceil(ttl * 1000)
        self._refusal = library.ResponseError
        self.socket = connected = place.connect()

        class Connection(library.Connection):  # type: ignore[misc]
            def _connect(self) -> _Socket:
                return connected

        # RESP2 is all that is needed, and every server has it; 4.x has no other.
        newer = int(library.__version__.partition(".")[0]) >= 5
        self._connection = Connection(**({"protocol": 2} if newer else {}))
        try:
            self._connection.connect()
        except BaseException:
            connected.close()
            raise

    def put(self, bodies: Mapping[str, bytes]) -> dict[str, str]:
        """See Link."""
        self._send("SET", [(*item, "PX", self._milliseconds) for item in bodies.items()])
        refused = {}
        for key in bodies:
            try:
                self._connection.read_response()
            except self._refusal as error:
                refused[key] = explain(error)
        return refused

    def get(self, key: str) -> bytes | None:
        """See Link."""
        self._send("GET", [(key,)])
        value: bytes | None = self._connection.read_response()
        return value

    def _send(self, command: str, calls: Iterable[tuple[Any, ...]]) -> None:
        packed = self._connection.pack_commands([(command, *arguments) for arguments in calls])
        # redis-py would send pieces of 6 KB, and hand the GIL over for each.
        self._connection.send_packed_command([b"".join(packed)])

    def close(self) -> None:
        """See Link."""
        self._connection.disconnect()


def is_timeout(error: Exception) -> bool:
    return type(error).__name__ == "TimeoutError"  # Python's or redis-py's


def explain(error: Exception) -> str:
    """What happened, on one line."""
    if is_timeout(error):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = error.args[0] if error.args else ""
    text = first.decode(errors="replace") if isinstance(first, bytes) else str(first)
    return " ".join(text.split()) or type(error).__name__
