"""What becomes of what a client says? Between its session, policy and the store.

A Connection is the socketserver request handler of one client. It belongs to one SMTP thread, and
nothing in it blocks.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd.message.row import Message
from gsmtpd.metrics import Counter
from gsmtpd.policy.decision import Decision, decide
from gsmtpd.policy.lookups import PATIENCE
from gsmtpd.policy.questions import Ask, Question, Unanswered
from gsmtpd.server.client import Client, Leave
from gsmtpd.smtp import reply
from gsmtpd.smtp.events import Event, MessageReceived, Paused, RecipientAsked, TLSAsked
from gsmtpd.smtp.reply import Reply, queued
from gsmtpd.smtp.states import State
from gsmtpd.smtp.xclient import ClientNamed
from gsmtpd.storage.base import Duplicate, Outcome
from gsmtpd.storage.writer import GIVE_UP_AFTER, Job

if TYPE_CHECKING:
    from gsmtpd.server.tcp import SMTPServer

OUTCOMES: dict[Outcome, Reply] = {
    Outcome.TROUBLE: reply.STORAGE_TROUBLE,
    Outcome.NO_SPACE: reply.NO_SPACE,
    Outcome.AWAY: reply.STORAGE_TROUBLE,
}


class _Waiting(NamedTuple):
    """A recipient that waits for answers from elsewhere. since: monotonic seconds, of the first."""

    asked: RecipientAsked
    question: Question
    since: float


class Connection(Client):
    """One client. request: its socket. client_address: as from accept. server: who accepted it.

    since: when the client was last asked for something, in the thread's monotonic seconds.
    """

    __slots__ = ("_awaited",)

    def __init__(
        self, request: socket.socket, client_address: tuple[str, int], server: SMTPServer
    ) -> None:
        # What has to be done before the client is heard again: its message stored, an answer from
        # elsewhere found, or others had their turn.
        self._awaited: Job | _Waiting | Paused | None = None
        super().__init__(request, client_address, server)

    def _execute(self, said: bytes) -> None:
        session = self.session
        session.no_room = self.thread.overfull
        event = session.receive(said)
        self._octets += len(said)
        if session.state >= State.CHUNKS:
            self.since = self.thread.now
        self._go_on(event)

    def finished(self, job: Job) -> None:
        """The store is done with this connection's message; called in its own thread."""
        outcome = job.outcome
        self.thread.hold(-len(job.message.content), self.server.limits.max_memory)
        if self._awaited is not job:
            # Answered by the clock, or gone; what was stored meanwhile may come again.
            if outcome in (Outcome.STORED, Outcome.SPOOLED):
                self.thread.maillog.stored_unheard(job.message, self.thread.now - job.submitted)
            return
        self._awaited = None
        assert outcome is not None
        if outcome is Outcome.STORED:
            event = self._answer_message(job.message, queued(job.message.id), job.submitted)
        elif isinstance(outcome, Duplicate):
            event = self._answer_message(job.message, queued(outcome.of), job.submitted, outcome.of)
        elif outcome is Outcome.SPOOLED:
            event = self._answer_message(
                job.message, queued(job.message.id), job.submitted, spooled=True
            )
        else:
            event = self._answer_message(job.message, OUTCOMES[outcome], job.submitted)
        self._go_on(event)

    def check_time(self, now: float) -> None:
        """Close the session if it has outlived one of its limits. now: monotonic seconds."""
        awaited = self._awaited
        if isinstance(awaited, Job):
            if now - awaited.submitted > GIVE_UP_AFTER:
                self._awaited = None
                trouble = reply.STORAGE_TROUBLE
                self._go_on(self._answer_message(awaited.message, trouble, awaited.submitted))
        elif isinstance(awaited, _Waiting):
            if now - awaited.since > PATIENCE:
                self._give_up(awaited)
        else:
            super().check_time(now)

    def leave(self, how: Leave) -> None:
        """The server stops: say so. A message past its final dot still gets its own answer."""
        self.session.leaving = True
        now = how >= (Leave.IN_DATA if self.session.state >= State.CHUNKS else Leave.UNASKED)
        if now and not isinstance(self._awaited, Job) and not self._lingering:
            self.end(reply.SHUTTING_DOWN)

    def end(self, farewell: Reply) -> None:
        """Close the session, saying `farewell` unless it is closing already."""
        self._awaited = None  # an answer that still comes would stand behind the farewell
        super().end(farewell)

    def close(self) -> None:
        """Close the socket at once."""
        self._awaited = None
        super().close()

    def _doing(self) -> str:
        if isinstance(self._awaited, Job):
            return f"storing {self._awaited.message.id}"
        if isinstance(self._awaited, _Waiting):
            return f"looking up {ascii(self._awaited.question.about)}"
        return super()._doing()

    def _go_on(self, event: Event | None) -> None:
        """Deal with what the session asks until it needs more input or an answer from elsewhere."""
        while event is not None:
            if isinstance(event, RecipientAsked):
                decision = self._decide(event, self.thread.now, self.server.lookups.answer)
                if decision is None:
                    break
                event = self.session.answer(decision.reply, decision.mailboxes)
            elif isinstance(event, MessageReceived):
                event = self._take(event)
            elif isinstance(event, ClientNamed):
                event = self.session.answer(self._become(event))
            else:
                self._make_ready(event)
                break
        if self._window or self.session.state >= State.CHUNKS:
            self._note_incoming()
        if self.session.refusals:
            self._log_refusals()
        if not isinstance(self._awaited, Paused):
            self._send()  # the replies to a whole batch at once

    def _make_ready(self, event: TLSAsked | Paused) -> None:
        """Begin what has to be over before the session goes on."""
        if isinstance(event, TLSAsked):
            self._send()  # the 220 in the clear
            self._secure()
        else:
            self._awaited = event
            self.thread.call_for(self, self._resume)

    def _resume(self) -> None:
        """Others have had their turn."""
        if isinstance(self._awaited, Paused):
            self._awaited = None
            self._go_on(self.session.resume())

    def _become(self, named: ClientNamed) -> Reply:
        """Be the connection of the client that a proxy has named; what that client hears."""
        if named.ip is not None and named.ip != self.client_ip:
            self.client_ip = named.ip
            refusal = self.server.refusal_of(named.ip) or self._count()
            if refusal is not None:
                return refusal
            if question := self.server.policy.current.client_question(named.ip):
                self.server.lookups.prepare(question)
        return self.server.rules.greeting

    def _decide(self, asked: RecipientAsked, since: float, ask: Ask) -> Decision | None:
        """What becomes of a recipient; None while that has to be asked elsewhere."""
        try:
            return decide(self.server.policy.current, asked.recipient, self.client_ip, ask)
        except Unanswered as unanswered:
            waiting = self._awaited = _Waiting(asked, unanswered.question, since)
        resume = partial(self.thread.call_for, self, partial(self._looked_up, waiting))
        self.server.lookups.look_up(waiting.question, resume)
        return None

    def _looked_up(self, waiting: _Waiting) -> None:
        """The answer is there; called in its own thread."""
        if self._awaited is waiting:
            self._decide_again(waiting, partial(self.server.lookups.answer, since=waiting.since))

    def _give_up(self, waiting: _Waiting) -> None:
        """It has taken too long: decide with what is known."""
        self.server.lookups.give_up(waiting.question)
        self._decide_again(waiting, self.server.lookups.known)

    def _decide_again(self, waiting: _Waiting, ask: Ask) -> None:
        self._awaited = None
        decision = self._decide(waiting.asked, waiting.since, ask)
        if decision is not None:
            self._go_on(self.session.answer(decision.reply, decision.mailboxes))

    def _log_refusals(self) -> None:
        for refusal in self.session.refusals:
            self.thread.maillog.refused(self.client_ip, refusal, self._stream.tls)
            self._told = self._told or refusal.closes
        self.session.refusals.clear()
        self.thread.maillog.flush_many()

    def _take(self, event: MessageReceived) -> Event | None:
        """Have a message stored; what the session asks next if it is answered at once."""
        server = self.server
        message = Message(
            server.new_id(), event.envelope, event.content, self.client_ip, server.clock()
        )
        if server.writer is None or not event.envelope.recipients:
            return self._answer_message(message, queued(message.id), self.thread.now)
        job = self._awaited = Job(message, self.thread, self, self.thread.now)
        self._hold(self.session.buffered)
        # Until the store gives it back, whatever becomes of the client meanwhile.
        self.thread.hold(len(event.content), server.limits.max_memory)
        self.thread.store(server.writer, job)
        return None

    def _answer_message(
        self,
        message: Message,
        decision: Reply,
        submitted: float,
        stored_as: str = "",
        spooled: bool = False,
    ) -> Event | None:
        row = self.thread.counters
        if not decision.positive:
            row[Counter.REFUSED] += 1
        elif not message.envelope.recipients:
            row[Counter.DISCARDED] += 1
        else:
            row[Counter.ACCEPTED] += 1
            row[Counter.RECEIVED_BYTES] += len(message.content)
        self._log_message(message, decision, self.thread.now - submitted, stored_as, spooled)
        return self.session.answer(decision)

    def _log_message(
        self, message: Message, decision: Reply, delay: float, stored_as: str, spooled: bool
    ) -> None:
        maillog = self.thread.maillog
        if stored_as:
            maillog.duplicate(message, stored_as, decision, delay)
        elif spooled:
            maillog.spooled(message, decision, delay)
        elif message.envelope.recipients or not decision.positive:
            maillog.message(message, decision, delay)
        if message.envelope.discarded and decision.positive:
            maillog.discarded(message, decision, delay)
