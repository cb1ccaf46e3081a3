"""How does one client get its answers? Between its octets, its session, policy and the store.

A Connection is the socketserver request handler of one client. It belongs to one SMTP thread, and
nothing in it blocks.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from enum import IntEnum
from functools import partial
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd.message.row import Message
from gsmtpd.metrics import Counter
from gsmtpd.policy.decision import Decision, decide
from gsmtpd.policy.lookups import PATIENCE
from gsmtpd.policy.questions import Ask, Question, Unanswered
from gsmtpd.server.proxy import ProxyError, parse_proxy
from gsmtpd.server.stream import Stream
from gsmtpd.server.terms import HANDSHAKE_WITHIN, PROXY_WITHIN, RATE_WINDOW, READ_WITHIN
from gsmtpd.server.tls import NotTLSError, TLSError
from gsmtpd.smtp import reply
from gsmtpd.smtp.events import Event, MessageReceived, Paused, RecipientAsked, TLSAsked
from gsmtpd.smtp.reply import Reply, queued
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.states import State
from gsmtpd.smtp.xclient import ClientNamed
from gsmtpd.storage.base import Duplicate, Outcome
from gsmtpd.storage.writer import GIVE_UP_AFTER, Job

if TYPE_CHECKING:
    from gsmtpd.server.pool import SMTPThread
    from gsmtpd.server.tcp import SMTPServer

LINGER = 2.0  # seconds a closed session's late input is swallowed, so that its last reply arrives

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
        "_counted_as",
        "_header",
        "_held",
        "_job",
        "_lingering",
        "_octets",
        "_paused",
        "_stream",
        "_told",
        "_waiting",
        "_window",
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
        self._stream = Stream(request)
        self._job: Job | None = None
        self._waiting: _Waiting | None = None
        self._paused = False  # the session has more to carry out, and others have their turn
        self._lingering = False
        self._told = False  # the mail log has a line of the refusal that ended the session
        self._header: bytes | None = None  # what has come of a proxy's, while it is not whole
        self._counted_as = ""  # the address that is counted for max_clients_per_ip
        self._held = 0  # octets that are counted for max_memory
        self._octets = 0  # of a message that have come since _window, monotonic seconds
        self._window = 0.0  # 0: no message is coming in
        self.interest = 0  # what epoll watches for; 0: not registered
        self.thread: SMTPThread = server.pool.current()
        self.began = self.since = self.thread.now
        self.thread.adopt(self)
        if server.expects_header(self.client_ip):
            self._header = b""
            self.thread.watch(self, EPOLLIN)
        else:
            self._begin(b"")

    # Before the greeting

    def _read_header(self, octets: bytes) -> None:
        """What a proxy says first, of the client that it speaks for."""
        octets = (self._header or b"") + octets
        try:
            header = parse_proxy(octets)
        except ProxyError as error:
            self._drop(f"PROXY protocol: {error}")
            return
        if header is None:
            self._header = octets
            return
        self._header = None
        self.client_ip = header.client or self.client_ip
        refusal = self.server.refusal_of(self.client_ip)
        if refusal is None:
            self._begin(octets[header.size :])
        else:
            self._send_away(refusal)

    def _begin(self, early: bytes) -> None:
        """It is known who the client is. early: what it has said already."""
        server = self.server
        if refusal := self._count():
            self._send_away(refusal)
            return
        self.session.speaks_for_others = bool(server.manner.xclients.match(self.client_ip))
        if server.manner.implicit_tls:
            self._secure()
            self.thread.watch(self, EPOLLIN)
            if early:
                self._hear(early)
        else:
            self._greet(bool(early) or self._stream.spoke_first())

    def _secure(self) -> None:
        certificates = self.server.manner.certificates
        assert certificates is not None, "a server that offers TLS has a certificate"
        self._stream.secure(certificates.context, self.thread.now)

    def _greet(self, spoke_first: bool) -> None:
        if spoke_first:
            self._send_away(reply.OUT_OF_TURN)
            return
        if question := self.server.policy.current.client_question(self.client_ip):
            self.server.lookups.prepare(question)  # answered, mostly, at the first RCPT
        self._send()

    def _send_away(self, farewell: Reply) -> None:
        """Say `farewell` in place of the greeting."""
        self.session.take_output()
        self.end(farewell)

    def _count(self) -> Reply | None:
        """Count the connection as one of its client's address; why it is one too many, if so.

        Others may have come since `refusal_of` was asked, in other processes.
        """
        self._uncount()
        if not self.server.counts(self.client_ip):
            return None
        self._counted_as = self.client_ip
        return self.server.crowd_refusal(self.client_ip, self.server.crowd.enter(self.client_ip))

    def _uncount(self) -> None:
        if self._counted_as:
            self.server.crowd.leave(self._counted_as)
            self._counted_as = ""

    # What epoll, the store and the clock tell

    def readable(self) -> None:
        """The socket has input, or the client has gone."""
        if self._suspended:
            # What the client sends stays in the socket, which holds it back. Most clients send
            # nothing now, so the epoll is told only when one does.
            self.thread.watch(self, 0)
            return
        data = self._stream.receive()
        if data is None:
            return
        if not data:
            self.close()
        elif not self._lingering:
            if self._header is not None:
                self._read_header(data)
            else:
                self._hear(data)

    @property
    def _suspended(self) -> bool:
        """Whether the client has to wait for something to be done before it is heard again."""
        return self._job is not None or self._waiting is not None or self._paused

    def _hear(self, octets: bytes) -> None:
        """Give the session what the client says."""
        shaking_hands = self._stream.shaking_hands
        try:
            said = self._stream.decrypt(octets)
        except TLSError as error:
            self._tls_failed(error)
            return
        if said is None:
            self.close()
        elif shaking_hands:
            self._shake_hands(said)
        elif said:
            self._execute(said)

    def _shake_hands(self, said: bytes) -> None:
        greeted = self.session.waiting  # it said STARTTLS
        if self._stream.shaking_hands:
            self._send()
            return
        self.session.secured(self._stream.tls)
        self.since = self.thread.now
        if not greeted:
            self._greet(bool(said))
        elif said:
            self._execute(said)
        else:
            self._send()

    def _tls_failed(self, error: TLSError) -> None:
        if isinstance(error, NotTLSError) and not self.session.waiting:
            self._stream.in_the_clear()
            self._send_away(reply.NOT_TLS)
            return
        with suppress(OSError, TLSError):
            self._stream.send(b"", False, self.thread.now)  # an alert that says why
        self._drop(f"TLS: {error}")

    def _execute(self, said: bytes) -> None:
        session = self.session
        if session.no_room is not self.thread.overfull:
            session.no_room = self.thread.overfull
        event = session.receive(said)
        if session.state >= State.CHUNKS:
            self.since = self.thread.now
            if not self._window:
                self._window, self._octets = self.thread.now, 0
            self._octets += len(said)
            self._hold(session.buffered)
            if self.thread.overfull and self._held:
                session.drop_message()
                self._hold(session.buffered)
        elif self._window:
            self._window = 0.0
        self._go_on(event)

    def _hold(self, octets: int) -> None:
        """Count what is buffered of it."""
        if octets != self._held:
            self.thread.hold(octets - self._held, self.server.limits.max_memory)
            self._held = octets

    def writable(self) -> None:
        """The client reads again."""
        self._send()

    def finished(self, job: Job) -> None:
        """The store is done with this connection's message; called in its own thread."""
        outcome = job.outcome
        self.thread.hold(-len(job.message.content), self.server.limits.max_memory)
        if self._job is not job:
            # Answered by the clock, or gone; what was stored meanwhile may come again.
            if outcome is Outcome.STORED:
                self.thread.maillog.stored_unheard(job.message, self.thread.now - job.submitted)
            return
        self._job = None
        assert outcome is not None
        if outcome is Outcome.STORED:
            event = self._answer_message(job.message, queued(job.message.id), job.submitted)
        elif isinstance(outcome, Duplicate):
            event = self._answer_message(job.message, queued(outcome.of), job.submitted, outcome.of)
        else:
            event = self._answer_message(job.message, OUTCOMES[outcome], job.submitted)
        self._go_on(event)

    def check_time(self, now: float) -> None:
        """Close the session if it has outlived one of its limits. now: monotonic seconds."""
        limits = self.server.limits
        if self._job is not None:
            if now - self._job.submitted > GIVE_UP_AFTER:
                job, self._job = self._job, None
                trouble = reply.STORAGE_TROUBLE
                self._go_on(self._answer_message(job.message, trouble, job.submitted))
        elif self._waiting is not None:
            if now - self._waiting.since > PATIENCE:
                self._give_up(self._waiting)
        elif self._lingering:
            if now - self.since > LINGER:
                self.close()
        elif self._header is not None:
            if now - self.began > PROXY_WITHIN:
                self._drop(f"PROXY protocol: no header within {PROXY_WITHIN:g} s")
        elif self._stream.unsent:
            if now - self._stream.unsent_since > READ_WITHIN:
                self._drop(f"its replies were not read within {READ_WITHIN:g} s")
        elif self._stream.shaking_hands:
            if now - self._stream.secured_since > HANDSHAKE_WITHIN:
                self._drop(f"TLS: no handshake within {HANDSHAKE_WITHIN:g} s")
        elif now - self.since > limits.timeout:
            self.end(reply.TIMED_OUT)
        elif now - self.began > limits.session_timeout:
            self.end(reply.SESSION_TOO_LONG)
        elif self._window and now - self._window >= RATE_WINDOW:
            self._check_rate(now)

    def _check_rate(self, now: float) -> None:
        """Whether enough of the message has come since the last look."""
        if self._octets < self.server.limits.min_data_rate * (now - self._window):
            self.end(reply.TOO_SLOW)
        self._window, self._octets = now, 0

    def leave(self, how: Leave) -> None:
        """The server stops: say so. A message past its final dot still gets its own answer."""
        self.session.leaving = True
        now = how >= (Leave.IN_DATA if self.session.state >= State.CHUNKS else Leave.UNASKED)
        if now and self._job is None and not self._lingering:
            self.end(reply.SHUTTING_DOWN)

    def end(self, farewell: Reply) -> None:
        """Close the session, saying `farewell` unless it is closing already."""
        # An answer that still comes would stand behind the farewell.
        self._job = self._waiting = None
        self._paused = False
        if self._header is not None or self._stream.shaking_hands:
            self._drop(str(farewell))  # nothing can be said that would be understood
        elif self.session.farewell is None:
            self.session.close(farewell)
            self._send()

    def _drop(self, reason: str) -> None:
        """Close without a word, but in the mail log."""
        self.thread.maillog.dropped(self.client_ip, self.session.helo, reason, self._stream.tls)
        self.close()

    def describe(self, now: float) -> str:
        """One line on what it does, for the log. now: monotonic seconds."""
        doing = self.session.state.name
        if self._job is not None:
            doing = f"storing {self._job.message.id}"
        elif self._waiting is not None:
            doing = f"looking up {ascii(self._waiting.question.about)}"
        elif self._header is not None:
            doing = "waiting for the header of a proxy"
        elif self._stream.unsent:
            doing = f"not reading {len(self._stream.unsent)} octets of replies"
        elif self._stream.shaking_hands:
            doing = "shaking hands for TLS"
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
            self._paused = False
            self._uncount()
            self._hold(0)
            self.server.close_request(self.socket)

    def _go_on(self, event: Event | None) -> None:
        """Deal with what the session asks until it needs more input or an answer from elsewhere."""
        while event is not None:
            if isinstance(event, MessageReceived):
                event = self._take(event)
                continue
            if isinstance(event, Paused):
                self._paused = True
                self.thread.call_for(self, self._resume)
                break
            if isinstance(event, TLSAsked):
                self._send()  # the 220 in the clear
                self._secure()
                break
            if isinstance(event, ClientNamed):
                event = self.session.answer(self._become(event))
                continue
            decision = self._decide(event, self.thread.now, self.server.lookups.answer)
            if decision is None:
                break
            event = self.session.answer(decision.reply, decision.mailboxes)
        if self.session.refusals:
            self._log_refusals()
        self._send()

    def _resume(self) -> None:
        """Others have had their turn."""
        if self._paused:
            self._paused = False
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
        self._job = Job(message, self.thread, self, self.thread.now)
        # Until the store gives it back, whatever becomes of the client meanwhile.
        self.thread.hold(len(event.content), server.limits.max_memory)
        server.writer.submit(self._job)
        return None

    def _answer_message(
        self, message: Message, decision: Reply, submitted: float, stored_as: str = ""
    ) -> Event | None:
        row = self.thread.counters
        if not decision.positive:
            row[Counter.REFUSED] += 1
        elif not message.envelope.recipients:
            row[Counter.DISCARDED] += 1
        else:
            row[Counter.ACCEPTED] += 1
            row[Counter.RECEIVED_BYTES] += len(message.content)
        self._log_message(message, decision, self.thread.now - submitted, stored_as)
        return self.session.answer(decision)

    def _log_message(self, message: Message, decision: Reply, delay: float, stored_as: str) -> None:
        maillog = self.thread.maillog
        if stored_as:
            maillog.duplicate(message, stored_as, decision, delay)
        elif message.envelope.recipients or not decision.positive:
            maillog.message(message, decision, delay)
        if message.envelope.discarded and decision.positive:
            maillog.discarded(message, decision, delay)

    def _send(self) -> None:
        # Before TLS is active nothing is said; what is sent then is part of the handshake.
        output = b"" if self._stream.shaking_hands else self.session.take_output()
        if output:
            # A reply, and no single octet more, gives the client a new deadline.
            self.since = self.thread.now
        farewell = self.session.farewell
        try:
            done = self._stream.send(output, farewell is not None, self.thread.now)
        except (OSError, TLSError):
            self.close()
            return
        if self._held or not done:
            self._hold(self.session.buffered + len(self._stream.unsent))
        if not done:
            self.thread.watch(self, EPOLLOUT)
        elif farewell is not None:
            self._say_goodbye(farewell)
        elif not self._suspended or self.interest == EPOLLOUT:
            self.thread.watch(self, EPOLLIN)

    def _say_goodbye(self, farewell: Reply) -> None:
        if farewell is reply.BYE:
            self.close()  # the client asked for it and sends nothing more
        elif not self._lingering:
            if not self._told:
                self.thread.maillog.closed(
                    self.client_ip, self.session.helo, farewell, self._stream.tls
                )
            # Closing with unread input would reset the connection, and the reply with it.
            self._lingering = True
            self.since = self.thread.now
            self.thread.watch(self, EPOLLIN)
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()
