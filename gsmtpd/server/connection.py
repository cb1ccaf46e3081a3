"""What becomes of what a client says? Between its session, policy and the store.

A Connection is the socketserver request handler of one client. It belongs to one SMTP thread, and
nothing in it blocks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
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
from gsmtpd.storage.job import Job
from gsmtpd.storage.writer import GIVE_UP_AFTER

if TYPE_CHECKING:
    from gsmtpd.handlers.hook_threads import RecipientHook
    from gsmtpd.server.tcp import SMTPServer

OUTCOMES: dict[Outcome, Reply] = {
    Outcome.TROUBLE: reply.STORAGE_TROUBLE,
    Outcome.NO_SPACE: reply.NO_SPACE,
    Outcome.AWAY: reply.STORAGE_TROUBLE,
}


_DOING = 80  # characters of what it does


class _Waiting(NamedTuple):
    """A recipient that waits for answers from elsewhere. since: monotonic seconds, of the first."""

    asked: RecipientAsked
    question: Question
    since: float


class _Asking:
    """A recipient or a message that a hook looks at. since: monotonic seconds."""

    __slots__ = ("decision", "message", "since")

    def __init__(
        self, since: float, decision: Decision | None = None, message: Message | None = None
    ) -> None:
        self.since = since
        self.decision = decision  # what RCPT is answered with where the hook lets it pass
        self.message = message


class Connection(Client):
    """One client. request: its socket. client_address: as from accept. server: who accepted it.

    since: when the client was last asked for something, in the thread's monotonic seconds.
    """

    __slots__ = ("_asked_for", "_awaited")

    def __init__(
        self, request: socket.socket, client_address: tuple[str, int], server: SMTPServer
    ) -> None:
        # What has to be done before the client is heard again: its message stored, an answer from
        # elsewhere found, a hook heard, or others had their turn.
        self._awaited: Job | _Waiting | _Asking | Paused | None = None
        self._asked_for = 0.0  # seconds that a hook has looked at the message
        super().__init__(request, client_address, server)

    def _execute(self, said: bytes) -> None:
        session = self.session
        session.no_room = self.thread.overfull
        event = session.receive(said)
        self.octets += len(said)
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
        elif not isinstance(awaited, _Asking):  # which is answered in its own time
            super().check_time(now)

    def leave(self, how: Leave) -> None:
        """The server stops: say so. A message past its final dot still gets its own answer."""
        self.session.leaving = True
        now = how >= (Leave.IN_DATA if self.session.state >= State.CHUNKS else Leave.UNASKED)
        # One that a hook looks at is not taken yet: 421 is an answer to it as well.
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

    def facts(self, now: float) -> dict[str, object]:
        """What it does, for programs. now: monotonic seconds."""
        return {
            "client": self.client_ip,
            "seconds": round(now - self.began, 1),
            "doing": self._doing()[:_DOING],
            "tls": self._stream.tls,
            "messages": self.session.messages,
            "octets": self.octets,
            "listener": self.server.manner.listener,
        }

    def _doing(self) -> str:
        if isinstance(self._awaited, Job):
            return f"storing {self._awaited.message.id}"
        if isinstance(self._awaited, _Waiting):
            return f"looking up {ascii(self._awaited.question.about)}"
        if isinstance(self._awaited, _Asking):
            return f"asking the hook {'rcpt' if self._awaited.message is None else 'data'}"
        return super()._doing()

    def _go_on(self, event: Event | None) -> None:
        """Deal with what the session asks until it needs more input or an answer from elsewhere."""
        while event is not None:
            if isinstance(event, RecipientAsked):
                decision = self._decide(event, self.thread.now, self.server.lookups.answer)
                if decision is None or (
                    self.server.rcpt_hook is not None
                    and self._asks_of(self.server.rcpt_hook, event, decision)
                ):
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
        if decision is None:
            return
        hook = self.server.rcpt_hook
        if hook is None or not self._asks_of(hook, waiting.asked, decision):
            self._go_on(self.session.answer(decision.reply, decision.mailboxes))

    def _asks_of(self, hook: RecipientHook, asked: RecipientAsked, decision: Decision) -> bool:
        """Whether `hook` has been asked: only of a recipient whose mail would be kept."""
        if not decision.reply.positive or decision.mailboxes == ():
            return False
        session = self.session
        asking = self._awaited = _Asking(self.thread.now, decision)
        then = self._then(asking)
        client = self.client_ip, session.helo, self._stream.tls
        hook.ask_of(client, session.sender, asked.recipient, session.taken, then)
        return True

    def _then(self, asking: _Asking) -> Callable[[Reply | None], None]:
        """What a hook tells, in any thread, what it says of `asking`."""

        def then(verdict: Reply | None) -> None:
            self.thread.call_for(self, partial(self._heard_hook, asking, verdict))

        return then

    def _heard_hook(self, asking: _Asking, refusal: Reply | None) -> None:
        """A hook has answered, or its time is over; called in its own thread."""
        message, decision = asking.message, asking.decision
        if message is not None:
            self.thread.hold(-len(message.content), self.server.limits.max_memory)
        if self._awaited is not asking:
            return  # the session was ended meanwhile
        self._awaited = None
        if message is not None:
            self._asked_for = self.thread.now - asking.since
            if refusal is None:
                self._go_on(self._store(message))
            else:
                self._go_on(self._answer_message(message, refusal, self.thread.now))
        elif decision is not None:
            if refusal is not None:
                decision = Decision(refusal)
            self._go_on(self.session.answer(decision.reply, decision.mailboxes))

    def _log_refusals(self) -> None:
        for refusal in self.session.refusals:
            self.thread.count_refusal(refusal.reply)
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
        if server.data_hook is not None:
            self._asked_for = 0.0
            if event.envelope.recipients:
                asking = self._awaited = _Asking(self.thread.now, message=message)
                self._hold_on_to(message)
                server.data_hook.ask_of(message, self._then(asking))
                return None
        return self._store(message)

    def _store(self, message: Message) -> Event | None:
        """As `_take`, where nobody has refused it."""
        server = self.server
        if server.writer is None or not message.envelope.recipients:
            return self._answer_message(message, queued(message.id), self.thread.now)
        job = self._awaited = Job(message, self.thread, self, self.thread.now)
        self._hold_on_to(message)
        self.thread.store(server.writer, job)
        return None

    def _hold_on_to(self, message: Message) -> None:
        """Count it until it is given back, whatever becomes of the client meanwhile."""
        self._hold(self.session.buffered)
        self.thread.hold(len(message.content), self.server.limits.max_memory)

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
            self.thread.count_refusal(decision)
        elif not message.envelope.recipients:
            row[Counter.DISCARDED] += 1
        else:
            row[Counter.DUPLICATES if stored_as else Counter.ACCEPTED] += 1
            row[Counter.RECEIVED_BYTES] += len(message.content)
            if spooled:
                row[Counter.SPOOLED] += 1
        delay = self.thread.now - submitted + self._asked_for
        if delay > self.thread.shown.slow_from:
            self.thread.shown.note(message, decision, delay, self.thread.now)
        self._log_message(message, decision, delay, stored_as, spooled)
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
