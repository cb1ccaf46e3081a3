"""How do tests talk to a Session without a socket? A client, server and store in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

from gsmtpd.policy.decision import Policy, decide
from gsmtpd.policy.domains import DomainSet
from gsmtpd.policy.questions import Answer, Question, Unanswered
from gsmtpd.smtp.events import Event, MessageReceived, RecipientAsked
from gsmtpd.smtp.reply import Reply, queued
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session
from tests.dialogs import HOST_NAME, Options


class PureClient:
    """A client of a Session in this process, whose events are answered at once.

    events: all that the session asked, in order. messages: the contents among them.
    store: the reply to each message, by default 250.
    """

    def __init__(
        self,
        rules: Rules | None = None,
        accept: Iterable[str] = ("example.com",),
        store: Callable[[MessageReceived], Reply] | None = None,
    ) -> None:
        self.session = Session(rules or Rules(HOST_NAME))
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
            self.events.append(event)
            event = self.session.answer(self.decide(event))

    def decide(self, event: Event) -> Reply:
        """What a server says to `event`."""
        if isinstance(event, RecipientAsked):
            return decide(self._policy, event.recipient, "192.0.2.1", nobody).reply
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
    )
    return PureClient(rules, options.accept.split(","))
