"""How is a client heard and answered, from its first octet to its last?

What comes before the greeting, TLS, time and what is buffered are dealt with here; what the client
says is carried out by the Connection that this is.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from enum import IntEnum
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING

from gsmtpd.metrics import Reason
from gsmtpd.policy.networks import ip_of
from gsmtpd.server.proxy import ProxyError, parse_proxy
from gsmtpd.server.reasons import reason_of
from gsmtpd.server.stream import COMMANDS, CONTENT, Stream
from gsmtpd.server.terms import HANDSHAKE_WITHIN, PROXY_WITHIN, RATE_WINDOW, READ_WITHIN
from gsmtpd.server.tls import NotTLSError, TLSError
from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.states import State

if TYPE_CHECKING:
    from gsmtpd.server.pool import SMTPThread
    from gsmtpd.server.tcp import SMTPServer

LINGER = 2.0  # seconds a closed session's late input is swallowed, so that its last reply arrives


class Leave(IntEnum):
    """How a server that stops takes leave of a client; each includes those before it."""

    AT_NEXT_COMMAND = 0  # 421 is the answer to whatever the client says next
    UNASKED = 1  # unless it is in the middle of a message, it hears 421 now
    IN_DATA = 2  # in a message as well


class Client(ABC):
    """One client; see Connection for its attributes."""

    _awaited: object  # what has to be done before it is heard again; None: nothing

    __slots__ = (
        "_closed",
        "_counted_as",
        "_header",
        "_held",
        "_lingering",
        "_octets_before",
        "_plain",
        "_stream",
        "_told",
        "_window",
        "began",
        "client_ip",
        "interest",
        "octets",
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
        self._lingering = False
        self._told = False  # the mail log has a line of the refusal that ended the session
        self._header: bytes | None = None  # what has come of a proxy's, while it is not whole
        self._closed = False
        self._plain = False  # nothing stands between what comes and the session
        self._counted_as = ""  # the address that is counted for max_clients_per_ip
        self._held = 0  # octets that are counted for max_memory
        self.octets = 0  # that the client has sent as commands and mail
        self._octets_before = 0  # of them, at _window
        self._window = 0.0  # since when a message comes in, monotonic seconds; 0: none does
        self.interest = 0  # what epoll watches for; 0: not registered
        self.thread: SMTPThread = server.pool.current()
        self.began = self.since = self.thread.now
        self.thread.adopt(self)
        if server.expects_header(self.client_ip):
            self._header = b""
            self.thread.watch(self, EPOLLIN)
        else:
            self._begin(b"")

    @abstractmethod
    def _execute(self, said: bytes) -> None:
        """Carry out what the client says."""

    @abstractmethod
    def facts(self, now: float) -> dict[str, object]:
        """What it does, for programs. now: monotonic seconds."""

    @abstractmethod
    def leave(self, how: Leave) -> None:
        """The server stops: say so. A message past its final dot still gets its own answer."""

    # Before the greeting

    def _read_header(self, octets: bytes) -> None:
        """What a proxy says first, of the client that it speaks for."""
        octets = (self._header or b"") + octets
        try:
            header = parse_proxy(octets)
        except ProxyError as error:
            self._drop(f"PROXY protocol: {error}", Reason.SYNTAX)
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
            self._plain = True
            self._greet(bool(early) or self._stream.spoke_first())

    def _secure(self) -> None:
        certificates = self.server.manner.certificates
        assert certificates is not None, "a server that offers TLS has a certificate"
        self._stream.secure(certificates.context, self.thread.now)
        self._plain = False

    def _greet(self, spoke_first: bool) -> None:
        if spoke_first:
            self._send_away(reply.OUT_OF_TURN)
            return
        if question := self.server.policy.current.client_question(self.client_ip):
            self.server.lookups.prepare(question)  # answered, mostly, at the first RCPT
        self._send()

    def _send_away(self, farewell: Reply) -> None:
        """Say `farewell` in place of the greeting."""
        # Of too many connections there is a line for all of them.
        self._told = farewell is reply.TOO_MANY_FROM_YOU
        if self._told:
            self.thread.count_refusal(farewell)
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

    # What it says

    def readable(self) -> None:
        """The socket has input, or the client has gone."""
        if self._awaited is not None:
            # What the client sends stays in the socket, which holds it back. Most clients send
            # nothing now, so the epoll is told only when one does.
            self.thread.watch(self, 0)
            return
        if not self._plain and not self._may_come_in():
            return  # epoll tells of it again
        data = self._stream.receive(COMMANDS if self.session.state < State.CHUNKS else CONTENT)
        if data is None:
            return
        if not data:
            self.close()
        elif self._lingering:
            pass
        elif self._plain:
            self._execute(data)
        elif self._header is not None:
            self._read_header(data)
        else:
            self._hear(data)

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
        else:
            self._send()  # TLS may have something to say by itself

    def _may_come_in(self) -> bool:
        """Whether a handshake may be begun, or gone on with, in this round of the thread."""
        if self._header is None and not self._stream.shaking_hands:
            return True
        return self.thread.may_shake_hands()

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
        self._drop(f"TLS: {error}", Reason.TLS)

    def _note_incoming(self) -> None:
        """Note how a message comes in, if one does."""
        if self.session.state >= State.CHUNKS:
            if not self._window:
                self._window, self._octets_before = self.thread.now, self.octets
            self._hold(self.session.buffered)
        elif self._window:
            self._window = 0.0

    def _hold(self, octets: int) -> None:
        """Count what is buffered of it."""
        more = octets - self._held
        if more:
            self._held = octets  # first: to make room, this very message may be dropped
            self.thread.hold(more, self.server.limits.max_memory)

    @property
    def incoming(self) -> int:
        """Octets of the message that is coming in; 0 if none is."""
        return self.session.buffered if self._window else 0

    def drop_incoming(self) -> None:
        """Keep nothing of the message that is coming in; its sender hears 452 at its end."""
        self.session.drop_message()
        self._hold(self.session.buffered + len(self._stream.unsent))

    # What it hears

    def writable(self) -> None:
        """The client reads again."""
        self._send()

    def _send(self) -> None:
        if self._closed:
            return
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
        elif self.interest != EPOLLIN and (self._awaited is None or self.interest == EPOLLOUT):
            self.thread.watch(self, EPOLLIN)

    def _say_goodbye(self, farewell: Reply) -> None:
        if farewell is reply.BYE:
            self.close()  # the client asked for it and sends nothing more
        elif not self._lingering:
            if not self._told:
                self.thread.count_refusal(farewell)
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

    # How it ends

    def check_time(self, now: float) -> None:
        """Close the session if it has outlived one of its limits. now: monotonic seconds."""
        limits = self.server.limits
        if self._lingering:
            if now - self.since > LINGER:
                self.close()
        elif self._header is not None:
            if now - self.began > PROXY_WITHIN:
                self._drop(f"PROXY protocol: no header within {PROXY_WITHIN:g} s", Reason.TIMEOUT)
        elif self._stream.unsent:
            if now - self._stream.unsent_since > READ_WITHIN:
                self._drop(f"its replies were not read within {READ_WITHIN:g} s", Reason.TIMEOUT)
            elif now - self.began > limits.session_timeout:
                self._drop(reply.SESSION_TOO_LONG.lines[0], Reason.TIMEOUT)
        elif self._stream.shaking_hands:
            if now - self._stream.secured_since > HANDSHAKE_WITHIN:
                self._drop(f"TLS: no handshake within {HANDSHAKE_WITHIN:g} s", Reason.TIMEOUT)
        elif now - self.since > limits.timeout:
            self.end(reply.TIMED_OUT)
        elif now - self.began > limits.session_timeout:
            self.end(reply.SESSION_TOO_LONG)
        elif self._window and now - self._window >= RATE_WINDOW:
            self._check_rate(now)

    def _check_rate(self, now: float) -> None:
        """Whether enough of the message has come since the last look."""
        came = self.octets - self._octets_before
        if came < self.server.limits.min_data_rate * (now - self._window):
            self.end(reply.TOO_SLOW)
        self._window, self._octets_before = now, self.octets

    def end(self, farewell: Reply) -> None:
        """Close the session, saying `farewell` unless it is closing already."""
        if self._header is not None or self._stream.shaking_hands:
            # Nothing can be said that would be understood.
            self._drop(farewell.lines[0], reason_of(farewell))
        elif self.session.farewell is None:
            self.session.close(farewell)
            self._send()

    def _drop(self, reason: str, counted_as: Reason) -> None:
        """Close without a word, but in the mail log."""
        self.thread.counters[counted_as] += 1
        self.thread.maillog.dropped(self.client_ip, self.session.helo, reason, self._stream.tls)
        self.close()

    def close(self) -> None:
        """Close the socket at once."""
        self._closed = True
        if self.thread.forget(self):
            self._uncount()
            self._hold(0)
            self.server.close_request(self.socket)

    def describe(self, now: float) -> str:
        """One line on what it does, for the log. now: monotonic seconds."""
        return (
            f"client {self.client_ip} helo {ascii(self.session.helo)} {self._doing()},"
            f" for {now - self.began:.0f} s, silent for {now - self.since:.0f} s"
        )

    def _doing(self) -> str:
        if self._header is not None:
            return "waiting for the header of a proxy"
        if self._stream.unsent:
            return f"not reading {len(self._stream.unsent)} octets of replies"
        if self._stream.shaking_hands:
            return "shaking hands for TLS"
        return "closing" if self._lingering else self.session.state.name
