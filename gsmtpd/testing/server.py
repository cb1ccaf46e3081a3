"""How does a test get a real server? In threads of its own process, with the store in memory.

What serves is what the daemon has: Engine, SMTPServer, Session, Policy, group commit. What is not
there is what a daemon needs beside: configuration, files, processes, logs, signals.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from types import TracebackType
from typing import Literal, NamedTuple, Self, get_args

from gsmtpd.maillog import MailLog
from gsmtpd.message.ids import id_maker
from gsmtpd.message.row import Decode, RowMaker
from gsmtpd.metrics import Counters
from gsmtpd.policy import names
from gsmtpd.policy.addresses import AddressSet
from gsmtpd.policy.crowd import Crowd
from gsmtpd.policy.files import Lists, PolicyFiles
from gsmtpd.policy.lookups import Lookups
from gsmtpd.policy.questions import Answer, Question
from gsmtpd.server.certificates import Certificates, Pair
from gsmtpd.server.engine import Engine
from gsmtpd.server.pool import SMTPThread, SMTPThreadPool
from gsmtpd.server.tcp import SMTPServer, bind
from gsmtpd.server.terms import Limits, Manner
from gsmtpd.smtp.rules import Rules
from gsmtpd.storage.memory import MemoryStore
from gsmtpd.storage.writer import GroupCommitWriter
from gsmtpd.testing.inbox import Inbox, ReceivedMessage

HOST = "127.0.0.1"
_QUIET = 0.2  # seconds of silence after which a client is not waited for at the end
_AT_MOST = 5.0  # seconds that clients which still speak are waited for
_LOOK = 0.005  # seconds

TLS = Literal["off", "starttls", "required", "implicit"]


class _Running(NamedTuple):
    """What there is while it runs."""

    engine: Engine
    pool: SMTPThreadPool
    port: int


class _Asked(Lookups):
    """Answers for a test which recipients there are. Others may replace reject and defer."""

    def __init__(self, reject: AddressSet, defer: AddressSet) -> None:
        super().__init__({})
        self.reject = reject
        self.defer = defer

    def answer(self, question: Question, since: float | None = None) -> Answer:
        """At once, and never kept: a test may change its mind."""
        local, _, domain = question.about.rpartition("@")
        if self.defer.match(local, domain):
            return None
        return "" if self.reject.match(local, domain) else "yes"


class TestServer:
    """A gsmtpd on a free port of 127.0.0.1, that keeps mail in memory while it is entered.

    domains: whose mail is taken, patterns as in `[domains] accept`. reject, defer: recipients that
    hear 550 and 451, each "user@example.com", "user" in every domain, or "@example.com" for all of
    it. host_name: as it calls itself. max_size: of a message, in octets. port: 0 for a free one.
    tls: "starttls" to offer it, "required" to take no mail without, "implicit" to begin with it;
    certificate, key: PEM files for it, key "" where it is in the same file. Raises ValueError for
    what is none of these, CertificateError.

    Its methods are for any thread. Entered again it serves again, with the mail it had.
    """

    __test__ = False  # for pytest: no class of tests, for all its name

    def __init__(
        self,
        *,
        domains: Collection[str] = ("*",),
        reject: Collection[str] = (),
        defer: Collection[str] = (),
        host_name: str = "localhost",
        max_size: int = 10 * 1024 * 1024,
        port: int = 0,
        tls: TLS = "off",
        certificate: str = "",
        key: str = "",
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size = {max_size}: write a number of octets above 0")
        name = names.domain_name(host_name)
        self._asked = _Asked(_addresses("reject", reject), _addresses("defer", defer))
        self._reject, self._defer = frozenset(reject), frozenset(defer)
        served = tuple(map(names.domain_pattern, _several("domains", domains)))
        self._policy = PolicyFiles(
            Lists(domains=served, own_domain=name, asks_recipients=True, always=())
        )
        self._manner = _manner(tls, certificate, key)
        self._rules = Rules(
            host_name=name,
            max_size=max_size,
            starttls=tls in ("starttls", "required"),
            require_tls=tls == "required",
        )
        self._port = port
        self._inbox = Inbox()
        self._running: _Running | None = None

    @property
    def host(self) -> str:
        """Where it listens: 127.0.0.1."""
        return HOST

    @property
    def port(self) -> int:
        """Where it listens. Raises RuntimeError where it does not."""
        if self._running is None:
            raise RuntimeError("the server is not running; write: with TestServer() as server:")
        return self._running.port

    @property
    def reject(self) -> frozenset[str]:
        """Recipients that hear 550; may be set, for the next RCPT."""
        return self._reject

    @reject.setter
    def reject(self, items: Collection[str]) -> None:
        self._asked.reject = _addresses("reject", items)
        self._reject = frozenset(items)

    @property
    def defer(self) -> frozenset[str]:
        """Recipients that hear 451; may be set, for the next RCPT."""
        return self._defer

    @defer.setter
    def defer(self, items: Collection[str]) -> None:
        self._asked.defer = _addresses("defer", items)
        self._defer = frozenset(items)

    @property
    def messages(self) -> list[ReceivedMessage]:
        """All that have come, one for each recipient, in their order."""
        return self._inbox.messages

    def clear(self) -> None:
        """Forget all mail that has come."""
        self._inbox.clear()

    def wait(
        self, to: str | None = None, timeout: float = 5.0, subject: str | None = None
    ) -> ReceivedMessage:
        """The oldest message that no `wait` has returned yet; waits until one is there.

        to: its recipient, whatever the case; None: any. subject: what its subject has in it.
        timeout: seconds. Raises NoMailError, a TimeoutError that tells what has come instead, and
        ValueError for a `to` that is no address.
        """
        return self._inbox.wait(to, timeout, subject)

    def __enter__(self) -> Self:
        """Start. Raises OSError where `port` cannot be had, and RuntimeError if it runs already."""
        if self._running is not None:
            raise RuntimeError("the server is running already; make another TestServer")
        self._running = self._start()
        self._inbox.opened(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; the mail stays. Clients that still speak are heard out for a moment."""
        assert self._running is not None
        engine, pool, _ = self._running
        engine.retire()
        deadline = time.monotonic() + _AT_MOST
        while _anyone_speaks(pool) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        engine.stop(patience=0.0)
        self._running = None
        self._inbox.opened(False)

    def _start(self) -> _Running:
        try:
            listener = bind(HOST, self._port)
        except OSError as error:
            wrong = f"{HOST}:{self._port}: {error.strerror}; leave port out, and a free one is used"
            raise OSError(error.errno, wrong) from error
        counters = Counters(2)
        (row,) = counters.take(1)
        maillog = MailLog(_nowhere, enabled=False, recent=self._inbox.note)
        pool = SMTPThreadPool([SMTPThread(f"smtp-{row}", counters.row(row), maillog)])
        rows = RowMaker(self._rules.host_name, decode=Decode.HEADERS)
        writer = GroupCommitWriter(MemoryStore(rows, self._inbox.take), 1)
        server = SMTPServer(
            listener,
            pool,
            self._rules,
            Limits(),
            self._policy,
            self._asked,
            writer,
            id_maker(time.time()),
            counters,
            Crowd(1).seat(0),
            self._manner,
        )
        engine = Engine([server], pool, writer, self._asked)
        engine.start()
        return _Running(engine, pool, server.server_address[1])


def _several(what: str, items: Collection[str]) -> Collection[str]:
    if isinstance(items, str):
        raise ValueError(f'{what} = "{items}": write a collection, as {{"{items}"}}')
    return items


def _addresses(what: str, items: Collection[str]) -> AddressSet:
    return AddressSet(map(names.address_item, _several(what, items)))


def _manner(tls: str, certificate: str, key: str) -> Manner:
    if tls not in get_args(TLS):
        raise ValueError(f'tls = "{tls}": write one of {", ".join(get_args(TLS))}')
    if (tls == "off") == bool(certificate):
        raise ValueError('tls and certificate need each other: tls="starttls", certificate="…"')
    certificates = Certificates(Pair(certificate, key), {}) if certificate else None
    return Manner(certificates=certificates, implicit_tls=tls == "implicit")


def _nowhere(text: str) -> None:
    """There is no mail log."""


def _anyone_speaks(pool: SMTPThreadPool) -> bool:
    """Whether a client has been served so lately that it may be about to say QUIT."""
    lately = time.monotonic() - _QUIET
    return any(client.since > lately for client in pool.connections())
