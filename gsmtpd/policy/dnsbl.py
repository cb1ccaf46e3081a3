"""Which DNS blocklist names a client (RFC 5782)? Asked beside all else, in bounded time.

Where there is no answer in time, or none that makes sense, the client is not listed: a blocklist
that is gone holds up no mail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import Any, NamedTuple

from gsmtpd.policy.nameservers import NameServers, have_dnspython
from gsmtpd.wording import printable, shown

_log = logging.getLogger(__name__)

Done = Callable[[str, float], None]
"""Is told why the client is refused, or "", and for how many seconds that may be kept."""

MAX_QUESTIONS = 1000  # under way at a time, each with a socket
SHORTEST, LONGEST = 60.0, 3600.0  # seconds that an answer may be kept, whatever its TTL
FAILURE_TTL = 5.0  # seconds, where there was no answer
MAX_TEXT = 200  # characters
SAY_EVERY = 60.0  # seconds between two lines on the same trouble
SAY_REFUSED_EVERY = 3600.0

ANSWERS = IPv4Network("127.0.0.0/8")  # RFC 5782 section 2.1
REFUSALS = IPv4Network("127.255.255.0/24")  # asked wrongly or too often: by use, not by the RFC

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_KEY = re.compile(r"[a-z0-9]{20,}\.(?=.)")
_MAX_ZONE = 253 - 64  # with an IPv6 address in front (RFC 5782 section 2.4) it is still a name


class BlocklistError(Exception):
    """Blocklists cannot be asked; the text says what is missing."""


class Blocklist(NamedTuple):
    """A DNS zone, and which of its answers count.

    zone: lower case, no dot at the end. answers: an IPv4 network within 127.0.0.0/8, or "" for
    all of that but 127.255.255.0/24.
    """

    zone: str
    answers: str = ""

    @property
    def name(self) -> str:
        """The zone for others to see: without a customer's key in front, as Spamhaus has it."""
        return _KEY.sub("", self.zone, count=1)


def parse_blocklist(text: str) -> Blocklist:
    """A blocklist from "zone", "zone=127.0.0.2" or "zone=127.0.0.0/30".

    Raises ValueError.
    """
    zone, equals, answers = (part.strip() for part in text.partition("="))
    return Blocklist(_zone(zone), _answers(answers) if equals else "")


def _zone(text: str) -> str:
    zone = text.lower().removesuffix(".")
    labels = zone.split(".")
    if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ValueError(f"{shown(text)} is no DNS zone; write a name such as zen.example.org")
    if len(zone) > _MAX_ZONE:
        raise ValueError(f"{shown(text)} is too long; write at most {_MAX_ZONE} characters")
    return zone


def _answers(text: str) -> str:
    try:
        network = IPv4Network(text)
    except ValueError:
        network = None
    if network is None or not network.subnet_of(ANSWERS):
        raise ValueError(
            f"{shown(text)} is no answer of a blocklist; write an address such as 127.0.0.2,"
            " or a network such as 127.0.0.0/30"
        )
    if network.subnet_of(REFUSALS):
        raise ValueError(
            f"{shown(text)} says that a blocklist was asked wrongly; write answers that are not"
            f" in {REFUSALS}"
        )
    return str(network) if network.num_addresses > 1 else str(network.network_address)


class Blocklists:
    """Asks all of `lists` about a client, in a thread of its own.

    timeout: seconds for all that is asked about one client. resolver: host and port of the name
    server to ask, None for those of the system. Raises BlocklistError without dnspython.
    """

    def __init__(
        self, lists: Sequence[Blocklist], timeout: float, resolver: tuple[str, int] | None
    ) -> None:
        try:
            have_dnspython()
        except ImportError as error:
            raise BlocklistError(
                "[clients] dnsbl needs the Debian package python3-dnspython, or"
                f" pip install 'gsmtpd[dnsbl]' ({error})"
            ) from error
        self._zones = [_Zone(blocklist) for blocklist in lists]
        self._timeout = timeout
        self._resolver = resolver
        self._crowd = _Trouble("dnsbl")
        self._waiting: dict[str, list[Done]] = {}  # by address
        self._tasks: set[asyncio.Task[Any]] = set()
        self._questions = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; not before a fork. Raises OSError."""
        self._servers = NameServers(self._resolver, self._timeout)
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="dnsbl", daemon=True)
        self._thread.start()
        self._loop = loop

    def stop(self) -> None:
        """End the thread. Whoever waits for an answer is first told that there is none."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.call_soon_threadsafe(loop.stop)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def ask(self, ip: str, done: Done) -> None:
        """Have `done` called, once, about the client `ip`. Any thread may ask; it never blocks.

        The DNS thread calls it, as soon as one list names the client, all have answered, or the
        time is up. If the thread does not run it is called at once, with "". Addresses that are
        not public are not asked for.
        """
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin, self._loop, ip, done)
                return
        _tell(done, _Answer("", FAILURE_TTL))

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.run_until_complete(self._give_up())
        loop.close()

    async def _give_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, loop: asyncio.AbstractEventLoop, ip: str, done: Done) -> None:
        address = _public(ip)
        if address is None:
            _tell(done, _Answer("", LONGEST))
        elif str(address) in self._waiting:
            self._waiting[str(address)].append(done)
        elif self._questions + len(self._zones) > MAX_QUESTIONS:
            self._crowd.happened(f"{MAX_QUESTIONS} questions are under way already")
            _tell(done, _Answer("", FAILURE_TTL))
        else:
            self._waiting[str(address)] = [done]
            self._questions += len(self._zones)
            task = self._spawn(self._look_up(address, loop.time() + self._timeout))
            task.add_done_callback(partial(self._finish, str(address)))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _finish(self, address: str, task: asyncio.Task[_Answer]) -> None:
        self._questions -= len(self._zones)
        answer = _Answer("", FAILURE_TTL)
        if not task.cancelled():
            if task.exception() is None:
                answer = task.result()
            else:
                _log.error("dnsbl: a look-up failed", exc_info=task.exception())
        for done in self._waiting.pop(address):
            _tell(done, answer)

    async def _look_up(self, address: _Address, deadline: float) -> _Answer:
        clock = asyncio.get_running_loop().time
        asked = {self._spawn(self._question(zone, address)): zone for zone in self._zones}
        pending = set(asked)
        ttl = LONGEST
        try:
            while pending and (left := deadline - clock()) > 0:
                answered, pending = await asyncio.wait(
                    pending, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                for task in sorted(answered, key=[*asked].index):
                    listed, its_ttl = task.result()
                    if listed:
                        text = await self._text(asked[task], address, deadline - clock())
                        return _Answer(_reason(asked[task].name, text), its_ttl)
                    ttl = min(ttl, its_ttl)
        finally:
            for task in pending:
                task.cancel()
        for task in pending:
            asked[task].happened(f"no answer within {self._timeout:g} s")
            ttl = FAILURE_TTL
        return _Answer("", ttl)

    async def _question(self, zone: _Zone, address: _Address) -> tuple[bool, float]:
        """Whether it is listed, and for how many seconds that holds. Never fails."""
        try:
            found, ttl = await self._servers.ask(zone.question(address), "A")
            ttl = min(max(SHORTEST, ttl), LONGEST)
            return zone.means([IPv4Address(record.address) for record in found]), ttl
        except Exception as error:  # dnspython's, the system's, and what bad packets make it raise
            zone.failed(error)
            return False, FAILURE_TTL

    async def _text(self, zone: _Zone, address: _Address, left: float) -> str:
        """Why it is listed, in the words of the list, if that can be had in time."""
        # Not only what it raises by itself: to be listed is reason enough.
        with contextlib.suppress(Exception):
            asked = self._servers.ask(zone.question(address), "TXT")
            found, _ = await asyncio.wait_for(asked, max(0.0, left))
            return next((b"".join(record.strings).decode("latin-1") for record in found), "")
        return ""


class _Answer(NamedTuple):
    text: str
    ttl: float  # seconds


_Address = IPv4Address | IPv6Address


def _tell(done: Done, answer: _Answer) -> None:
    try:
        done(*answer)
    except Exception:
        _log.exception("dnsbl: an answer could not be delivered")


def _public(ip: str) -> _Address | None:
    """The address to ask for, or None for one that no blocklist can know."""
    try:
        address: _Address = ip_address(ip)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address if address.is_global else None


def _reversed(address: _Address) -> str:
    """As it stands in front of the zone (RFC 5782 sections 2.1 and 2.4)."""
    if isinstance(address, IPv4Address):
        return ".".join(reversed(str(address).split(".")))
    return ".".join(reversed(address.exploded.replace(":", "")))


def _reason(name: str, text: str) -> str:
    """What the client is told: printable ASCII on one line."""
    words = " ".join(f"{name}: {text}".split()).removesuffix(":")
    return "".join(c if " " <= c <= "~" else "?" for c in words)[:MAX_TEXT]


class _Trouble:
    """Says of one thing that it fails, how often, and that it is well again; not too often."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._times = 0
        self._said = False
        self._again: dict[float, float] = {}  # by pause: when the next line may be said

    def happened(self, what: str, pause: float = SAY_EVERY) -> None:
        """It failed. pause: seconds until a line of this kind may be said again."""
        self._times += 1
        now = time.monotonic()
        if now < self._again.get(pause, now):
            return
        times = "" if self._times == 1 else f" ({self._times} times)"
        _log.warning("%s: %s%s; clients are served as if not listed", self._subject, what, times)
        self._again[pause] = now + pause
        self._said, self._times = True, 0

    def well(self) -> None:
        """It did not fail."""
        if self._said:
            _log.info("%s: answers again", self._subject)
            self._said, self._times = False, 0


class _Zone(_Trouble):
    """What the answers of one list mean."""

    def __init__(self, blocklist: Blocklist) -> None:
        super().__init__(f"dnsbl {blocklist.name}")
        self.name = blocklist.name
        self._zone = blocklist.zone
        self._counts = IPv4Network(blocklist.answers) if blocklist.answers else ANSWERS

    def question(self, address: _Address) -> str:
        """The name to ask for; it is absolute, so that no search list is used."""
        return f"{_reversed(address)}.{self._zone}."

    def failed(self, error: Exception) -> None:
        """It could not be asked."""
        # dnspython names what was asked for, and with it the key.
        text = printable(str(error)).replace(self._zone, self.name)
        self.happened(text[:MAX_TEXT] or type(error).__name__)

    def means(self, answers: Sequence[IPv4Address]) -> bool:
        """Whether a client with these answers, none for one that is not known, is listed."""
        if any(answer in self._counts and answer not in REFUSALS for answer in answers):
            self.well()
            return True
        for answer in answers:
            if answer in REFUSALS:
                self.happened(
                    f"answers {answer}: it does not want to be asked like that, or so often",
                    SAY_REFUSED_EVERY,
                )
                return False
            if answer not in ANSWERS:
                self.happened(f"answers {answer}, which is no answer of a blocklist")
                return False
        self.well()
        return False
