"""Which DNS servers are asked, and what do they say? By dnspython, 2.3 or newer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it is loaded only where it is needed, which costs time and memory
    import dns.asyncresolver
    import dns.message

_log = logging.getLogger(__name__)

RESOLV_CONF = "/etc/resolv.conf"
PORT = 53  # of the servers in it
KEEP_NAME = 60.0  # seconds for the addresses of a server that is given by name
RETRY_NAME = 5.0  # seconds, where it has none


def have_dnspython() -> None:
    """Load dnspython. Raises ImportError."""
    import dns.asyncresolver  # noqa: F401


class NameServers:
    """Servers that are asked by the tasks of one event loop.

    place: host and port of one, None for those of the system. timeout: seconds in which each of
    them has its turn; whoever asks ends what takes longer. Raises ImportError without dnspython.
    """

    def __init__(self, place: tuple[str, int] | None, timeout: float) -> None:
        import dns.inet

        self._place = place
        self._timeout = timeout
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._seen: tuple[int, int, int] | None = None  # the look of resolv.conf when it was read
        self._search: asyncio.Future[list[str]] | None = None
        self._search_at = 0.0
        self._fixed = place is not None and dns.inet.is_address(place[0])
        if place is not None and self._fixed:
            self._resolver = self._made([place[0]], place[1])

    async def ask(self, name: str, kind: str) -> tuple[Sequence[Any], float]:
        """The records, none if there are none, and for how many seconds that may be kept.

        name: absolute, with a dot at the end. Raises Exception.
        """
        import dns.asyncbackend
        import dns.name
        import dns.resolver

        resolver = await self._current()
        backend = dns.asyncbackend.get_backend("asyncio")
        question = dns.name.from_text(name)
        try:
            answer = await resolver.resolve(
                question, kind, raise_on_no_answer=False, search=False, backend=backend
            )
        except dns.resolver.NXDOMAIN as error:
            return [], _negative_ttl(error.response(question))  # type: ignore[no-untyped-call]
        if answer.rrset is None:
            return [], _negative_ttl(answer.response)
        return [*answer.rrset], float(answer.rrset.ttl)

    async def _current(self) -> dns.asyncresolver.Resolver:
        if self._place is None:
            return self._of_the_system()
        if not self._fixed:
            await self._find(*self._place)
        assert self._resolver is not None
        return self._resolver

    def _of_the_system(self) -> dns.asyncresolver.Resolver:
        """By resolv.conf as it is now; if it cannot be used, as it was. Raises Exception."""
        try:
            now = os.stat(RESOLV_CONF)
            look = now.st_mtime_ns, now.st_size, now.st_ino
            if look != self._seen:
                self._seen = look
                self._resolver = self._made_from(RESOLV_CONF)
        except Exception as error:
            if self._resolver is None:
                self._seen = None
                raise
            if not isinstance(error, FileNotFoundError):  # it is being replaced
                _log.warning("dnsbl: %s: %s; the name servers it had are kept", RESOLV_CONF, error)
        assert self._resolver is not None
        return self._resolver

    async def _find(self, host: str, port: int) -> None:
        """Find the addresses of a server by name, again and again. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self._search is None and loop.time() >= self._search_at:
            search: asyncio.Future[list[str]] = loop.create_future()
            search.add_done_callback(partial(self._found, loop, port))
            threading.Thread(
                target=_find, args=(host, loop, search), name="dnsbl-name", daemon=True
            ).start()
            self._search = search
        if self._resolver is None and self._search is not None:
            await asyncio.shield(self._search)
        if self._resolver is None:
            raise OSError(f"{host} has no address")

    def _found(
        self, loop: asyncio.AbstractEventLoop, port: int, search: asyncio.Future[list[str]]
    ) -> None:
        self._search = None
        self._search_at = loop.time() + RETRY_NAME
        if not search.cancelled() and search.exception() is None:
            self._resolver = self._made(search.result(), port)
            self._search_at = loop.time() + KEEP_NAME

    def _made(self, addresses: Iterable[str], port: int) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver

        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.port = port  # dnspython 2.3 wants it before the addresses
        resolver.nameservers = [*addresses]
        return self._timed(resolver)

    def _made_from(self, path: str) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver
        import dns.inet

        resolver = dns.asyncresolver.Resolver(filename=path)
        for server in resolver.nameservers:  # dnspython 2.3 takes anything
            if not dns.inet.is_address(str(server)):
                raise ValueError(f"{server} is no address of a nameserver")
        resolver.port = PORT
        return self._timed(resolver)

    def _timed(self, resolver: dns.asyncresolver.Resolver) -> dns.asyncresolver.Resolver:
        """Each server has its turn within the time, and the first a second one."""
        resolver.timeout = self._timeout / (len(resolver.nameservers) + 1)
        resolver.lifetime = 2 * self._timeout
        return resolver


def _find(host: str, loop: asyncio.AbstractEventLoop, search: asyncio.Future[list[str]]) -> None:
    """As by getaddrinfo, which blocks, and may do so for half a minute."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        tell = partial(_settle, search, [str(place[4][0]) for place in found], None)
    except (OSError, UnicodeError) as error:
        tell = partial(_settle, search, [], OSError(f"{host}: {error}"))
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(tell)


def _settle(search: asyncio.Future[list[str]], found: list[str], error: Exception | None) -> None:
    if search.done():
        return
    if error is None:
        search.set_result(found)
    else:
        search.set_exception(error)


def _negative_ttl(response: dns.message.Message) -> float:
    """By the SOA of an answer that says there is nothing (RFC 2308 section 5)."""
    for rrset in response.authority:
        for record in rrset:
            if hasattr(record, "minimum"):
                return float(min(rrset.ttl, record.minimum))
    return 0.0
