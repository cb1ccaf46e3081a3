"""How do the octets of one client get to its session and back? The only recv and send.

A Connection is the socketserver request handler of one client. It belongs to one SMTP thread, and
nothing in it blocks.
"""

from __future__ import annotations

import socket
from enum import IntEnum
from functools import partial
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd.message.row import Message
from gsmtpd.metrics import Counter
from gsmtpd.policy.decision import Decision, decide
from gsmtpd.policy.lookups import PATIENCE
from gsmtpd.policy.questions import Ask, Question, Unanswered
from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply, queued
from gsmtpd.smtp.session import Event, MessageReceived, RecipientAsked, Session
from gsmtpd.smtp.states import State
from gsmtpd.storage.base import Duplicate, Outcome
from gsmtpd.storage.writer import GIVE_UP_AFTER, Job

if TYPE_CHECKING:
    from gsmtpd.server.pool import SMTPThread
    from gsmtpd.server.tcp import SMTPServer

RECEIVE = 65536  # octets of one recv
SEND_TIMEOUT = 30.0  # seconds in which a client must read its replies
LINGER = 2.0  # seconds a closed session's late input is swallowed, so that its last reply arrives
DONTWAIT = socket.MSG_DONTWAIT  # saves the ioctl that would make each socket non-blocking

OUTCOMES: dict[Outcome, Reply] = {
    Outcome.TROUBLE: reply.STORAGE_TROUBLE,
    Outcome.NO_SPACE: reply.NO_SPACE,
}


class Leave(IntEnum):
    """How a server that stops takes leave of a client; each includes those before it."""

    AT_NEXT_COMMAND = 0  # 421 is the answer to whatever the client says next
    UNASKED = 1  # unless it is in the middle of a message, it hears 421 now
    IN_DATA = 2  # in a message as well


class _Waiting(NamedTuple):
    """A recipient that waits for answers from elsewhere. since: monotonic seconds, of the first."""

    asked: RecipientAsked
    question: Question
    since: float


def ip_of(client_address: tuple[str, int]) -> str:
    """The IP address of a client; a dual-stack socket names IPv4 as ::ffff:192.0.2.1."""
    ip = client_address[0]
    return ip[7:] if ip.startswith("::ffff:") and "." in ip else ip


class Connection:
    """One client. request: its socket. client_address: as from accept. server: who accepted it.

    since: when the client was last asked for something, in the thread's monotonic seconds.
    """

    __slots__ = (
        "_job",
        "_lingering",
        "_send_since",
        "_told",
        "_unsent",
        "_waiting",
        "began",
        "client_ip",
        "interest",
        "server",
        "session",
        "since",
        "socket",
        "thread",
    )

    def __init__(
        self, request: socket.socket, client_address: tuple[str, int], server: SMTPServer
    ) -> None:
        self.socket = request
        self.server = server
        self.client_ip = ip_of(client_address)
        self.session = Session(server.rules)
        self._job: Job | None = None
        self._waiting: _Waiting | None = None
        self._unsent = b""
        self._send_since = 0.0
        self._lingering = False
        self._told = False  # the mail log has a line of the refusal that ended the session
        self.interest = 0  # what epoll watches for; 0: not registered
        self.thread: SMTPThread = server.pool.current()
        self.began = self.since = self.thread.now
        self.thread.adopt(self)
        if question := server.policy.current.client_question(self.client_ip):
            server.lookups.prepare(question)  # answered, mostly, when the first RCPT comes
        if self._spoke_first():
            self.session.take_output()  # no greeting
            self.end(reply.OUT_OF_TURN)
        else:
            self._send()  # the greeting

    def _spoke_first(self) -> bool:
        try:
            return bool(self.socket.recv(1, DONTWAIT | socket.MSG_PEEK))
        except OSError:
            return False

    def readable(self) -> None:
        """The socket has input, or the client has gone."""
        if self._job is not None or self._waiting is not None:
            # Suspended: what the client sends stays in the socket, which holds it back. Most
            # clients send nothing now, so the epoll is told only when one does.
            self.thread.watch(self, 0)
            return
        try:
            data = self.socket.recv(RECEIVE, DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
        elif not self._lingering:
            event = self.session.receive(data)
            if self.session.state is State.DATA:
                self.since = self.thread.now
            self._go_on(event)

    def writable(self) -> None:
        """The client reads again."""
        self._send()

    def finished(self, job: Job) -> None:
        """The store is done with this connection's message; called in its own thread."""
        outcome = job.outcome
        if self._job is not job:
            # Answered by the clock, or gone; what was stored meanwhile may come again.
            if outcome is Outcome.STORED:
                self.thread.maillog.stored_unheard(job.message, self.thread.now - job.submitted)
            return
        self._job = None
        assert outcome is not None
        if outcome is Outcome.STORED:
            self._answer_message(job.message, queued(job.message.id), job.submitted)
        elif isinstance(outcome, Duplicate):
            self._answer_message(job.message, queued(outcome.of), job.submitted, outcome.of)
        else:
            self._answer_message(job.message, OUTCOMES[outcome], job.submitted)

    def check_time(self, now: float) -> None:
        """Close the session if it has outlived one of its limits. now: monotonic seconds."""
        limits = self.server.limits
        if self._job is not None:
            if now - self._job.submitted > GIVE_UP_AFTER:
                job, self._job = self._job, None
                self._answer_message(job.message, reply.STORAGE_TROUBLE, job.submitted)
        elif self._waiting is not None:
            if now - self._waiting.since > PATIENCE:
                self._give_up(self._waiting)
        elif self._lingering:
            if now - self.since > LINGER:
                self.close()
        elif self._unsent:
            if now - self._send_since > SEND_TIMEOUT:
                self.close()
        elif now - self.since > limits.timeout:
            self.end(reply.TIMED_OUT)
        elif now - self.began > limits.session_timeout:
            self.end(reply.SESSION_TOO_LONG)

    def leave(self, how: Leave) -> None:
        """The server stops: say so. A message past its final dot still gets its own answer."""
        self.session.leaving = True
        now = how >= (Leave.IN_DATA if self.session.state is State.DATA else Leave.UNASKED)
        if now and self._job is None and not self._lingering:
            self.end(reply.SHUTTING_DOWN)

    def end(self, farewell: Reply) -> None:
        """Close the session, saying `farewell` unless it is closing already."""
        # An answer that still comes would stand behind the farewell.
        self._job = self._waiting = None
        if self.session.farewell is None:
            self.session.close(farewell)
            self._send()

    def describe(self, now: float) -> str:
        """One line on what it does, for the log. now: monotonic seconds."""
        doing = self.session.state.name
        if self._job is not None:
            doing = f"storing {self._job.message.id}"
        elif self._waiting is not None:
            doing = f"looking up {ascii(self._waiting.question.about)}"
        elif self._unsent:
            doing = f"not reading {len(self._unsent)} octets of replies"
        elif self._lingering:
            doing = "closing"
        return (
            f"client {self.client_ip} helo {ascii(self.session.helo)} {doing},"
            f" for {now - self.began:.0f} s, silent for {now - self.since:.0f} s"
        )

    def close(self) -> None:
        """Close the socket at once."""
        if self.thread.forget(self):
            self._job = self._waiting = None
            self.server.close_request(self.socket)

    def _go_on(self, event: Event | None) -> None:
        """Deal with what the session asks until it needs more input or an answer from elsewhere."""
        while event is not None:
            if isinstance(event, MessageReceived):
                self._take(event)
                break
            decision = self._decide(event, self.thread.now, self.server.lookups.answer)
            if decision is None:
                break
            event = self.session.answer(decision.reply, decision.mailboxes)
        if self.session.refusals:
            self._log_refusals()
        self._send()

    def _decide(self, asked: RecipientAsked, since: float, ask: Ask) -> Decision | None:
        """What becomes of a recipient; None while that has to be asked elsewhere."""
        try:
            return decide(self.server.policy.current, asked.recipient, self.client_ip, ask)
        except Unanswered as unanswered:
            waiting = self._waiting = _Waiting(asked, unanswered.question, since)
        resume = partial(self.thread.call_for, self, partial(self._looked_up, waiting))
        self.server.lookups.look_up(waiting.question, resume)
        return None

    def _looked_up(self, waiting: _Waiting) -> None:
        """The answer is there; called in its own thread."""
        if self._waiting is waiting:
            self._decide_again(waiting, partial(self.server.lookups.answer, since=waiting.since))

    def _give_up(self, waiting: _Waiting) -> None:
        """It has taken too long: decide with what is known."""
        self.server.lookups.give_up(waiting.question)
        self._decide_again(waiting, self.server.lookups.known)

    def _decide_again(self, waiting: _Waiting, ask: Ask) -> None:
        self._waiting = None
        decision = self._decide(waiting.asked, waiting.since, ask)
        if decision is not None:
            self._go_on(self.session.answer(decision.reply, decision.mailboxes))

    def _log_refusals(self) -> None:
        for refusal in self.session.refusals:
            self.thread.maillog.refused(self.client_ip, refusal)
            self._told = self._told or refusal.closes
        self.session.refusals.clear()

    def _take(self, event: MessageReceived) -> None:
        server = self.server
        message = Message(
            server.new_id(), event.envelope, event.content, self.client_ip, server.clock()
        )
        self._job = Job(message, self.thread, self, self.thread.now)
        if server.writer is None or not event.envelope.recipients:
            self._job.outcome = Outcome.STORED
            self.finished(self._job)
        else:
            server.writer.submit(self._job)

    def _answer_message(
        self, message: Message, decision: Reply, submitted: float, stored_as: str = ""
    ) -> None:
        row = self.thread.counters
        if not decision.positive:
            row[Counter.REFUSED] += 1
        elif not message.envelope.recipients:
            row[Counter.DISCARDED] += 1
        else:
            row[Counter.ACCEPTED] += 1
            row[Counter.RECEIVED_BYTES] += len(message.content)
        self._log_message(message, decision, self.thread.now - submitted, stored_as)
        self._go_on(self.session.answer(decision))

    def _log_message(self, message: Message, decision: Reply, delay: float, stored_as: str) -> None:
        maillog = self.thread.maillog
        if stored_as:
            maillog.duplicate(message, stored_as, decision, delay)
        elif message.envelope.recipients or not decision.positive:
            maillog.message(message, decision, delay)
        if message.envelope.discarded and decision.positive:
            maillog.discarded(message, decision, delay)

    def _send(self) -> None:
        output = self.session.take_output()
        if output:
            # A reply, and no single octet more, gives the client a new deadline.
            self.since = self.thread.now
        if self._unsent:
            output = self._unsent + output
        if output:
            try:
                sent = self.socket.send(output, DONTWAIT)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.close()
                return
            if sent or not self._unsent:
                self._send_since = self.thread.now
            self._unsent = output[sent:]
        if self._unsent:
            self.thread.watch(self, EPOLLOUT)
        elif self.session.farewell is not None:
            self._say_goodbye(self.session.farewell)
        elif (self._job is None and self._waiting is None) or self.interest == EPOLLOUT:
            self.thread.watch(self, EPOLLIN)

    def _say_goodbye(self, farewell: Reply) -> None:
        if farewell is reply.BYE:
            self.close()  # the client asked for it and sends nothing more
        elif not self._lingering:
            if not self._told:
                self.thread.maillog.closed(self.client_ip, self.session.helo, farewell)
            # Closing with unread input would reset the connection, and the reply with it.
            self._lingering = True
            self.since = self.thread.now
            self.thread.watch(self, EPOLLIN)
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()
