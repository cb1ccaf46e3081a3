"""Where are the octets of messages kept for a while, instead of in the table? memcached or Redis.

A writer thread puts them there just before its COMMIT, while clients wait. So nothing here may take
long, and nothing may cost mail: what is not surely held goes into the table.
"""

from __future__ import annotations

import importlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.body_link import (
    RATE,
    Link,
    MemcachedLink,
    Place,
    RedisLink,
    explain,
    is_timeout,
)

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

# What makes a connection, the module it is given, and the usual port.
_BACKENDS: dict[str, tuple[Callable[[Any, Place, float], Link], str, int]] = {
    "memcached": (MemcachedLink, "pymemcache", 11211),
    "redis": (RedisLink, "redis", 6379),
}

_READ_SIZE = 4 * RATE  # octets; how large a value may be that is read, nobody knows before
PAUSE = 5.0  # seconds without a try behind trouble
REPEAT = 60.0  # seconds until the same is logged again


class BodyStore(Protocol):
    """Keeps octets under keys for a while. For any number of threads at once.

    encoding: "memcached" or "redis", what the column mail_encoding says of mail that is here.
    """

    encoding: str

    def put(self, bodies: Mapping[str, bytes]) -> set[str]:
        """Keep each under its key for the time to live; the keys of those that are surely held.

        Never raises. Takes a few seconds at most, and one more for each RATE octets; behind
        trouble no time at all for PAUSE seconds.
        """

    def get(self, key: str) -> bytes | None:
        """The octets, or None where there are none (any more). Raises StoreError."""

    def close(self) -> None:
        """Close the connections; the store may not be used afterwards."""


def open_body_store(
    backend: str, host: str, port: int | None, unix_socket: str | None, ttl: float
) -> BodyStore:
    """A store of the kind `backend`, "memcached" or "redis"; it is not connected to yet.

    port: None for the usual one. unix_socket: where that is set, host and port do not count.
    ttl: seconds that it keeps what it is given.
    Raises StoreError where the client library is not installed.
    """
    link, library, usual_port = _BACKENDS[backend]
    client = _client_library(backend, library)
    place = Place(host, port or usual_port, unix_socket)
    return _PooledBodyStore(backend, place, lambda: link(client, place, ttl))


def _client_library(backend: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StoreError(
            f"[store] [[body]] backend = {backend} needs the Debian package python3-{name},"
            f" or pip install 'gsmtpd[{backend}]' ({error})"
        ) from error


class _PooledBodyStore:
    """A BodyStore with as many connections as it has callers at once."""

    def __init__(self, encoding: str, place: Place, join: Callable[[], Link]) -> None:
        self.encoding = encoding
        self._name = f"{encoding} at {place}"
        self._join = join
        self._idle: deque[Link] = deque()
        self._breaker = _Breaker(self._name)
        self._refusals = _Refusals(self._name)

    def put(self, bodies: Mapping[str, bytes]) -> set[str]:
        """See BodyStore."""
        if not bodies or not self._breaker.allows():
            return set()
        try:
            size = sum(map(len, bodies.values()))
            refused = self._call(lambda link: link.put(bodies), size)
        except Exception as error:
            self._breaker.trouble(explain(error))
            return set()
        self._breaker.well()
        if refused:
            self._refusals.note(refused.values())
        return bodies.keys() - refused.keys()

    def get(self, key: str) -> bytes | None:
        """See BodyStore."""
        try:
            return self._call(lambda link: link.get(key), _READ_SIZE)
        except Exception as error:
            raise StoreError(f"{self._name}: {explain(error)}") from error

    def close(self) -> None:
        """See BodyStore."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _call(self, work: Callable[[Link], _Answer], size: int) -> _Answer:
        """Do `work` on a connection of its own. Raises Exception."""
        try:
            link = self._idle.pop()
        except IndexError:
            return self._use(self._join(), work, size)
        try:
            return self._use(link, work, size)
        except Exception as error:
            if is_timeout(error):
                raise
        # It was idle, and the server may have restarted since. All may be done twice.
        return self._use(self._join(), work, size)

    def _use(self, link: Link, work: Callable[[Link], _Answer], size: int) -> _Answer:
        link.socket.expect(size)
        try:
            answer = work(link)
        except BaseException:
            # An answer may still come, for another's request to read. And what befell this
            # connection may have befallen the idle ones.
            link.close()
            self.close()
            raise
        self._idle.append(link)
        return answer


class _Breaker:
    """Keeps callers from a store in trouble but for one in PAUSE seconds; logs trouble and its end.

    name: of the store, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._shut_until: float | None = None  # monotonic seconds, None where all is well
        self._tries: int | None = None  # the thread that does now
        self._quiet_until = -math.inf  # monotonic seconds

    def allows(self) -> bool:
        """Whether the caller may try. It says afterwards `trouble` or `well`."""
        if self._shut_until is None:
            return True
        with self._lock:
            if self._shut_until is None:
                return True
            if self._tries is not None or time.monotonic() < self._shut_until:
                return False
            self._tries = threading.get_ident()
            return True

    def trouble(self, why: str) -> None:
        """A try has failed."""
        with self._lock:
            now = time.monotonic()
            self._shut_until = now + PAUSE
            if self._tries == threading.get_ident():
                self._tries = None
            if now < self._quiet_until:
                return
            self._quiet_until = now + REPEAT
        _log.warning("%s: %s; mail goes into the table until this is mended", self._name, why)

    def well(self) -> None:
        """A try was a success. Behind trouble only that of the one who was to try counts."""
        if self._shut_until is None:
            return
        with self._lock:
            if self._tries != threading.get_ident():
                return
            self._tries = self._shut_until = None
            self._quiet_until = -math.inf
        _log.warning("%s: mail is kept there again", self._name)


class _Refusals:
    """Says about once a minute that a store which is well refuses messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._number = 0
        self._quiet_until = -math.inf  # monotonic seconds

    def note(self, reasons: Collection[str]) -> None:
        """Those of one put, one reason for each message."""
        with self._lock:
            self._number += len(reasons)
            now = time.monotonic()
            if now < self._quiet_until:
                return
            self._quiet_until = now + REPEAT
            number, self._number = self._number, 0
        why = "; ".join(sorted({*reasons}))
        _log.warning(
            "%s: refused %d messages, which are in the table instead: %s", self._name, number, why
        )
