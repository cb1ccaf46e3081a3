"""What does one SMTP session say to what it hears? The face of the protocol: bytes in, events out.

A driver gives what it received to `Session.receive`, deals with the event it gets back, gives the
decision to `Session.answer`, and sends `Session.take_output()`. While an event is unanswered
nothing behind it is executed, so replies keep the order of the commands (RFC 2920).
"""

from __future__ import annotations

from collections.abc import Callable

from gsmtpd.smtp import reply
from gsmtpd.smtp.envelope import Mailboxes
from gsmtpd.smtp.events import Event, MessageReceived, Paused, RecipientAsked
from gsmtpd.smtp.mailing import Mailing
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.states import State
from gsmtpd.smtp.xclient import ClientNamed

MAX_LINE = 512  # octets of a command with its CRLF, RFC 5321 section 4.5.3.1.4
MAX_LINE_WITH_PARAMETERS = 2048  # room for the parameters of MAIL, RCPT and XCLIENT
AT_ONCE = 16  # commands that are carried out before other sessions have their turn
MAX_JUNK_LINE = 65536  # octets; who sends a longer line speaks no SMTP
_LONG_LINE_KEPT = 1024  # octets of a line that is too long, to say later which command it was


class Session(Mailing):
    """One SMTP session of a server, from the greeting on; a pure machine.

    refusals: for the driver to log and clear. Its own answers to messages are not among them.
    tls: as in Envelope. The driver may set: leaving, at a server that stops: 421 at the next
    command; no_room: MAIL hears 452; speaks_for_others: XCLIENT is taken.
    """

    __slots__ = ("_asked", "_left", "_long_line", "_pending", "_skipped")

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._pending = b""
        self._left = AT_ONCE  # commands that may still be carried out before a pause
        self._skipped = 0  # octets dropped of a line that is too long
        self._long_line = b""  # how that line began
        self._asked: Event | None = None

    def take_output(self) -> bytes:
        """The replies since the last call, as one piece to send."""
        output = self._output
        if not output:
            return b""
        wire = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return wire

    @property
    def waiting(self) -> bool:
        """True while an event is unanswered: the driver should not read on."""
        return self._asked is not None

    @property
    def buffered(self) -> int:
        """Octets of input kept for later."""
        reader = self._data or self._chunks
        return len(self._pending) + (reader.kept if reader is not None else 0)

    def receive(self, data: bytes) -> Event | None:
        """Take octets from the client; the event that must be answered before all else, if any."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if self._asked is not None:
            self._pending = data
            return None
        self._left = AT_ONCE
        return self._run(data)

    def resume(self) -> Event | None:
        """Go on behind a pause."""
        if type(self._asked) is not Paused:
            raise RuntimeError("there is no pause")
        self._asked = None
        data, self._pending = self._pending, b""
        return self.receive(data)

    def answer(self, decision: Reply, mailboxes: Mailboxes | None = None) -> Event | None:
        """Answer the open event and go on with what is buffered; RuntimeError if there is none.

        mailboxes: where the mail of a recipient that is taken goes, if not into its own; () where
        it is thrown away.
        """
        asked, self._asked = self._asked, None
        if type(asked) is RecipientAsked:
            self._answer_recipient(asked.recipient, decision, mailboxes)
        elif type(asked) is MessageReceived:
            self._answer_message(decision)
        elif type(asked) is ClientNamed:
            self._answer_client(asked, decision)
        else:
            raise RuntimeError("no event is waiting for an answer")
        data, self._pending = self._pending, b""
        if data and self._left <= 0:
            self._pending = data
            self._asked = _PAUSED
            return _PAUSED
        return self._run(data) if data else None

    def secured(self, tls: str) -> None:
        """TLS is active: all that was said before is forgotten (RFC 3207 section 4.2)."""
        self._asked = None
        self._pending = b""
        self.tls = tls
        self._start_again()

    def close(self, farewell: Reply) -> None:
        """End the session, saying `farewell`; what was heard and not yet done is forgotten."""
        super().close(farewell)
        self._pending = b""

    def _run(self, data: bytes) -> Event | None:
        position = 0
        event: Event | None
        while self.farewell is None:
            if self._data is not None:
                rest = self._data.feed(data[position:] if position else data)
                if rest is None:
                    return None
                data, position = rest, 0
                event = self._end_of(self._data)
            else:
                end = data.find(b"\r\n", position)
                if end < 0:
                    self._keep_unfinished(data[position:] if position else data)
                    return None
                line = data[position:end]
                position = end + 2
                event = self._line(line, position < len(data))
            self._left -= 1
            if event is None and self._left <= 0 and position < len(data):
                event = _PAUSED
            if event is not None:
                self._asked = event
                self._pending = data[position:]
                return event
        return None

    def _keep_unfinished(self, rest: bytes) -> None:
        if rest[:1] == _TLS_HELLO and self.state is State.START and not self._skipped:
            self.close(reply.NOT_SMTP)
            return
        if not self._skipped and len(rest) <= MAX_LINE_WITH_PARAMETERS:
            self._pending = rest
            return
        if not self._skipped:
            self._long_line = rest[:_LONG_LINE_KEPT]
        # Only a last CR matters of a line that is too long already.
        keep = 1 if rest.endswith(b"\r") else 0
        self._skipped += len(rest) - keep
        self._pending = rest[len(rest) - keep :]
        if self._skipped > MAX_JUNK_LINE:
            self.close(reply.LINE_TOO_LONG)

    def _line(self, line: bytes, more: bool) -> Event | None:
        """Carry out one command. more: whether further input came in the same burst."""
        verb, _, argument = line.partition(b" ")
        command = _COMMANDS.get(verb) or _COMMANDS.get(verb.upper())
        if command is None or self._skipped or self.leaving or len(line) > MAX_LINE - 2:
            if self._refused(line):
                return None
            if command is None:
                self._unknown(line)
                return None
        if self._rules.require_tls and not self.tls and command not in _BEFORE_TLS:
            self._refuse(reply.TLS_FIRST, line)
            return None
        if b"\n" in argument or b"\r" in argument:
            self._refuse_line(reply.BARE_NEWLINE_IN_COMMAND, line)
            return None
        return command(self, argument, more)

    def _refused(self, line: bytes) -> bool:
        """Whether a line is refused, whatever command it is."""
        if line[:1] == _TLS_HELLO and self.state is State.START and not self._skipped:
            self.close(reply.NOT_SMTP)
            return True
        length = len(line) + 2 + self._skipped
        if length > MAX_LINE:
            if self._skipped:
                line = self._long_line
                self._skipped = 0
            if length > MAX_JUNK_LINE + 2:
                self.close(reply.LINE_TOO_LONG)
                return True
            may = MAX_LINE_WITH_PARAMETERS if line[:4].upper() in _WITH_PARAMETERS else MAX_LINE
            if length > may:
                self._refuse_line(reply.LINE_TOO_LONG, line)
                return True
        if self.leaving:
            self.close(reply.SHUTTING_DOWN)
            self._note_command(reply.SHUTTING_DOWN, line)
            return True
        return False

    def _unknown(self, line: bytes) -> None:
        if line[:4].upper() == b"BDAT":
            self.close(reply.BDAT_SYNTAX)
        elif b"\n" in line or b"\r" in line:
            self._refuse(reply.BARE_NEWLINE_IN_COMMAND)
        else:
            self._refuse(reply.UNKNOWN_COMMAND if line.strip() else reply.EMPTY_LINE)

    def _refuse_line(self, refusal: Reply, line: bytes) -> None:
        """Refuse a line that cannot be read; one that others take for BDAT ends the session."""
        if line[:4].upper() == b"BDAT":
            self.close(reply.BDAT_SYNTAX)
        else:
            self._refuse(refusal, line)


_PAUSED = Paused()
_TLS_HELLO = b"\x16"  # the first octet of a TLS handshake, RFC 8446 section 5.1
_WITH_PARAMETERS = (b"MAIL", b"RCPT", b"XCLI")

_Handler = Callable[[Session, bytes, bool], Event | None]
_COMMANDS: dict[bytes, _Handler] = {
    b"HELO": Session._helo,
    b"EHLO": Session._ehlo,
    b"LHLO": Session._lhlo,
    b"STARTTLS": Session._starttls,
    b"XCLIENT": Session._xclient,
    b"MAIL": Session._mail_from,
    b"RCPT": Session._rcpt_to,
    b"DATA": Session._data_command,
    b"BDAT": Session._bdat,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"HELP": Session._help,
    b"VRFY": Session._vrfy,
    b"EXPN": Session._expn,
    b"QUIT": Session._quit,
    # It would have to stand before the greeting, and to come from one we trust.
    b"PROXY": Session._proxy,
    # A browser that was sent here may carry commands in what it posts.
    **dict.fromkeys((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"), Session._not_smtp),
}
# RFC 3207 section 4, what closes the session anyway, and BDAT, whose octets have to be skipped.
_BEFORE_TLS = frozenset(
    _COMMANDS[verb]
    for verb in (
        b"EHLO",
        b"LHLO",
        b"NOOP",
        b"STARTTLS",
        b"QUIT",
        b"XCLIENT",
        b"PROXY",
        b"GET",
        b"BDAT",
    )
)
