"""How do tests talk to a Session without a socket? A client, server and store in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

from gsmtpd.policy.decision import Policy, decide
from gsmtpd.policy.domains import DomainSet
from gsmtpd.policy.questions import Answer, Question, Unanswered
from gsmtpd.smtp.events import Event, MessageReceived, Paused, RecipientAsked, TLSAsked
from gsmtpd.smtp.reply import Reply, queued
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.xclient import ClientNamed
from tests.dialogs import HOST_NAME, Options

TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384"  # what there is behind STARTTLS


class PureClient:
    """A client of a Session in this process, whose events are answered at once.

    events: all that the session asked, in order. messages: the contents among them.
    store: the reply to each message, by default 250. STARTTLS needs no handshake.
    """

    def __init__(
        self,
        rules: Rules | None = None,
        accept: Iterable[str] = ("example.com",),
        store: Callable[[MessageReceived], Reply] | None = None,
    ) -> None:
        self._rules = rules or Rules(HOST_NAME)
        self.session = Session(self._rules)
        self.events: list[Event] = []
        self._policy = Policy(DomainSet(accept))
        self._ids = map(str, count(1))
        self._store = store or (lambda _: queued(next(self._ids)))

    @property
    def messages(self) -> list[bytes]:
        """The contents of the messages the session gave to the store."""
        return [event.content for event in self.events if isinstance(event, MessageReceived)]

    def send(self, *pieces: bytes) -> bytes:
        """What the server says to `pieces`, each received by itself, and not yet taken before."""
        for piece in pieces:
            self.answer(self.session.receive(piece))
        return self.session.take_output()

    def answer(self, event: Event | None) -> None:
        """Answer `event` and those that follow from it."""
        while event is not None:
            if isinstance(event, Paused):
                event = self.session.resume()
                continue
            self.events.append(event)
            if isinstance(event, TLSAsked):
                self.session.secured(TLS)
                return
            event = self.session.answer(self.decide(event))

    def decide(self, event: Event) -> Reply:
        """What a server says to `event`."""
        if isinstance(event, RecipientAsked):
            return decide(self._policy, event.recipient, "192.0.2.1", nobody).reply
        if isinstance(event, ClientNamed):
            return self._rules.greeting
        assert isinstance(event, MessageReceived)
        return self._store(event)


def nobody(question: Question) -> Answer:
    """Whom to ask where nothing has to be asked."""
    raise Unanswered(question)


def client_of(options: Options) -> PureClient:
    """A client of a server with the settings of a dialog."""
    rules = Rules(
        HOST_NAME,
        max_size=options.max_size,
        max_recipients=options.max_recipients,
        reject_bare_newline=options.bare_newline == "reject",
        lmtp=options.protocol == "lmtp",
        starttls=options.tls in ("starttls", "required"),
        require_tls=options.tls == "required",
        chunking=options.chunking == "yes",
    )
    client = PureClient(rules, options.accept.split(","))
    client.session.speaks_for_others = options.xclient == "yes"
    return client
