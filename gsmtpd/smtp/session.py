"""What does one SMTP session say to what it hears? The face of the protocol: bytes in, events out.

A driver gives what it received to `Session.receive`, deals with the event it gets back, gives the
decision to `Session.answer`, and sends `Session.take_output()`. While an event is unanswered
nothing behind it is executed, so replies keep the order of the commands (RFC 2920).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.command import MailCommand, parse_mail, parse_rcpt
from gsmtpd.smtp.envelope import Envelope, Mailboxes
from gsmtpd.smtp.framing import DataReader, has_bare_newline
from gsmtpd.smtp.refusal import About, Refusal, about, sender_of
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.states import NEXT, WHY, State

MAX_LINE = 512  # octets of a command with its CRLF, RFC 5321 section 4.5.3.1.4
MAX_LINE_WITH_PARAMETERS = 2048  # room for the parameters of MAIL and RCPT
MAX_JUNK_LINE = 65536  # octets; who sends a longer line speaks no SMTP
MAX_RECEIVED = 100  # Received fields, RFC 5321 section 6.3
_HEADER_READ = 65536  # octets of a header that are looked at
_LONG_LINE_KEPT = 1024  # octets of a line that is too long, to say later which command it was


class RecipientAsked(NamedTuple):
    """RCPT named `recipient`: answer with a positive reply to take it, with another to refuse.

    Who takes it may name the mailboxes its mail goes into, see `Session.answer`.
    """

    recipient: Mailbox


class MessageReceived(NamedTuple):
    """The final dot came: answer with what became of the message. content: octets as sent."""

    envelope: Envelope
    content: bytes


Event = RecipientAsked | MessageReceived


class Session:
    """One SMTP session of a server, from the greeting on; a pure machine.

    refusals: for the driver to log and clear. Its own answers to messages are not among them.
    """

    __slots__ = (
        "_asked",
        "_commands",
        "_data",
        "_errors",
        "_esmtp",
        "_extra",
        "_long_line",
        "_mail",
        "_mailboxes",
        "_messages",
        "_output",
        "_pending",
        "_recipients",
        "_rules",
        "_skipped",
        "farewell",
        "helo",
        "leaving",
        "refusals",
        "state",
    )

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._output: list[bytes] = [rules.greeting.wire]
        self._pending = b""
        self._skipped = 0  # octets dropped of a line that is too long
        self._long_line = b""  # how that line began
        self._asked: Event | None = None
        self._data: DataReader | None = None
        self._mail = _NO_MAIL
        self._recipients: list[Mailbox] = []  # all that were taken
        self._mailboxes: dict[int, Mailboxes] = {}  # of those of them that have not just their own
        self._extra = 0  # copies that these come to, beyond one for each recipient
        self._errors = 0
        self._commands = 0
        self._messages = 0
        self._esmtp = False
        self.helo = ""
        self.state = State.START
        self.farewell: Reply | None = None  # why the session ends, once it does
        self.leaving = False  # set by a server that stops: 421 at the next command
        self.refusals: list[Refusal] = []

    def take_output(self) -> bytes:
        """The replies since the last call, as one piece to send."""
        output = self._output
        if not output:
            return b""
        wire = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return wire

    @property
    def closing(self) -> bool:
        """True once the session is over: the driver sends what is left and closes."""
        return self.farewell is not None

    @property
    def waiting(self) -> bool:
        """True while an event is unanswered: the driver should not read on."""
        return self._asked is not None

    @property
    def buffered(self) -> int:
        """Octets of input kept for later."""
        return len(self._pending) + (self._data.kept if self._data is not None else 0)

    def receive(self, data: bytes) -> Event | None:
        """Take octets from the client; the event that must be answered before all else, if any."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if self._asked is not None:
            self._pending = data
            return None
        return self._run(data)

    def answer(self, decision: Reply, mailboxes: Mailboxes | None = None) -> Event | None:
        """Answer the open event and go on with what is buffered; RuntimeError if there is none.

        mailboxes: where the mail of a recipient that is taken goes, if not into its own; () where
        it is thrown away.
        """
        asked, self._asked = self._asked, None
        if type(asked) is RecipientAsked:
            self._answer_recipient(asked.recipient, decision, mailboxes)
        elif asked is not None:
            self._output.append(decision.wire)
            if decision.positive:
                self._errors = self._commands = 0
            if decision.code == 421:
                self.farewell = decision
        else:
            raise RuntimeError("no event is waiting for an answer")
        data, self._pending = self._pending, b""
        return self._run(data) if data else None

    def close(self, farewell: Reply) -> None:
        """End the session, saying `farewell`; what was heard and not yet done is forgotten."""
        self._output.append(farewell.wire)
        self.farewell = farewell
        self._pending = b""
        self._data = None

    def _run(self, data: bytes) -> Event | None:
        position = 0
        event: Event | None
        while self.farewell is None:
            if self._data is not None:
                rest = self._data.feed(data[position:] if position else data)
                if rest is None:
                    return None
                data, position = rest, 0
                event = self._end_of_data(self._data)
            else:
                end = data.find(b"\r\n", position)
                if end < 0:
                    self._keep_unfinished(data[position:] if position else data)
                    return None
                line = data[position:end]
                position = end + 2
                event = self._line(line, position < len(data))
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
        length = len(line) + 2
        if line[:1] == _TLS_HELLO and self.state is State.START and not self._skipped:
            self.close(reply.NOT_SMTP)
            return None
        if self._skipped or length > MAX_LINE:
            if self._skipped:
                line = self._long_line
                length += self._skipped
                self._skipped = 0
            if length > MAX_JUNK_LINE + 2:
                self.close(reply.LINE_TOO_LONG)
                return None
            may = MAX_LINE_WITH_PARAMETERS if line[:4].upper() in (b"MAIL", b"RCPT") else MAX_LINE
            if length > may:
                self._refuse(reply.LINE_TOO_LONG, line)
                return None
        if self.leaving:
            self.close(reply.SHUTTING_DOWN)
            self._note_command(reply.SHUTTING_DOWN, line)
            return None
        verb, _, argument = line.partition(b" ")
        command = _COMMANDS.get(verb) or _COMMANDS.get(verb.upper())
        if command is None:
            self._unknown(line)
            return None
        if b"\n" in argument or b"\r" in argument:
            self._refuse(reply.BARE_NEWLINE_IN_COMMAND, line)
            return None
        return command(self, argument, more)

    def _unknown(self, line: bytes) -> None:
        if b"\n" in line or b"\r" in line:
            self._refuse(reply.BARE_NEWLINE_IN_COMMAND)
        else:
            self._refuse(reply.UNKNOWN_COMMAND if line.strip() else reply.EMPTY_LINE)

    # Each command: what it says, whether it may come now, what it does.

    def _helo(self, argument: bytes, more: bool) -> None:
        self._greeted(argument, esmtp=False)

    def _ehlo(self, argument: bytes, more: bool) -> None:
        self._greeted(argument, esmtp=True)

    def _greeted(self, argument: bytes, esmtp: bool) -> None:
        name = argument.strip()
        if not name:
            self._refuse(reply.HELO_NEEDS_NAME)
        elif self._junk():
            self.helo = name.decode("utf-8", "replace")
            self._esmtp = esmtp
            self._forget(State.READY)
            self._output.append((self._rules.ehlo if esmtp else self._rules.helo).wire)

    def _mail_from(self, argument: bytes, more: bool) -> None:
        if self._in_order(b"MAIL", argument):
            text = _text(argument)
            said = parse_mail(text) if text is not None else reply.BAD_SENDER
            if isinstance(said, Reply):
                self._refuse(said, b"MAIL " + argument)
            elif said.size > self._rules.max_size:
                if self._junk():
                    self._output.append(reply.TOO_BIG.wire)
                self._note_command(reply.TOO_BIG, b"MAIL " + argument)
            elif self._messages >= self._rules.max_messages:
                self.close(reply.TOO_MANY_MESSAGES)
                self._note_command(reply.TOO_MANY_MESSAGES, b"MAIL " + argument)
            else:
                self._mail = said
                self.state = State.SENDER
                self._output.append(reply.SENDER_OK.wire)

    def _rcpt_to(self, argument: bytes, more: bool) -> RecipientAsked | None:
        if not self._in_order(b"RCPT", argument):
            return None
        text = _text(argument)
        said = parse_rcpt(text, self._mail.smtputf8) if text is not None else reply.BAD_RECIPIENT
        if isinstance(said, Reply):
            self._refuse(said, b"RCPT " + argument)
        elif len(self._recipients) + self._extra >= self._rules.max_recipients:
            self._too_many(said)
        else:
            return RecipientAsked(said)
        return None

    def _too_many(self, recipient: Mailbox) -> None:
        # No error of the client's: RFC 5321 section 4.5.3.1.10 tells it to try the rest later.
        self._output.append(reply.TOO_MANY_RECIPIENTS.wire)
        self._note(reply.TOO_MANY_RECIPIENTS, About(sender_of(self._mail), (recipient,)))

    def _answer_recipient(
        self, recipient: Mailbox, decision: Reply, mailboxes: Mailboxes | None
    ) -> None:
        if decision.positive:
            if mailboxes is not None and not self._put_elsewhere(mailboxes):
                self._too_many(recipient)
                return
            self._recipients.append(recipient)
            self.state = State.RECIPIENTS
            self._output.append(decision.wire)
            return
        if decision.code == 421:
            self.close(decision)
        elif self._junk():
            self._output.append(decision.wire)
        self._note(decision, About(sender_of(self._mail), (recipient,)))

    def _put_elsewhere(self, mailboxes: Mailboxes) -> bool:
        """Whether mail for the next recipient can go into `mailboxes`, without too many copies."""
        # One whose mail is thrown away counts, too: it has to be remembered.
        copies = len(self._recipients) + self._extra + max(len(mailboxes), 1)
        # The first of a message always can: a client that is told to try it alone has to succeed.
        if self._recipients and copies > self._rules.max_recipients:
            return False
        self._mailboxes[len(self._recipients)] = mailboxes
        self._extra = copies - len(self._recipients) - 1
        return True

    def _data_command(self, argument: bytes, more: bool) -> None:
        if argument.strip():
            self._refuse(reply.NO_ARGUMENT_ALLOWED, b"DATA")
        elif self._in_order(b"DATA", argument):
            if more:
                # RFC 2920 section 3.1: DATA is the last command of a burst.
                self.close(reply.OUT_OF_TURN)
                self._note_command(reply.OUT_OF_TURN, b"DATA")
                return
            self._data = DataReader(self._rules.max_size)
            self.state = State.DATA
            self._output.append(reply.START_DATA.wire)

    def _end_of_data(self, data: DataReader) -> MessageReceived | None:
        self._data = None
        self._messages += 1
        mail, recipients, mailboxes = self._mail, tuple(self._recipients), self._mailboxes
        self._forget(State.READY)
        if data.too_big:
            self._output.append(reply.TOO_BIG.wire)
            self._note(reply.TOO_BIG, About(sender_of(mail), recipients, data.size))
            return None
        content = data.content()
        if self._rules.reject_bare_newline and has_bare_newline(content):
            self.close(reply.BARE_NEWLINE)
            self._note(reply.BARE_NEWLINE, About(sender_of(mail), recipients, data.size))
            return None
        if _received_fields(content) >= MAX_RECEIVED:
            self._output.append(reply.MAIL_LOOP.wire)
            self._note(reply.MAIL_LOOP, About(sender_of(mail), recipients, data.size))
            return None
        envelope = Envelope(
            self.helo, self._esmtp, mail.sender, recipients, mail.smtputf8, mail.body
        )
        if mailboxes:
            envelope = envelope.with_mailboxes(mailboxes)
        return MessageReceived(envelope, content)

    def _rset(self, argument: bytes, more: bool) -> None:
        if argument.strip():
            self._refuse(reply.NO_ARGUMENT_ALLOWED)
        elif self._junk():
            self._forget(NEXT[self.state, b"RSET"])
            self._output.append(reply.OK.wire)

    def _noop(self, argument: bytes, more: bool) -> None:
        if self._junk():
            self._output.append(reply.OK.wire)

    def _help(self, argument: bytes, more: bool) -> None:
        if self._junk():
            self._output.append(self._rules.help.wire)

    def _vrfy(self, argument: bytes, more: bool) -> None:
        if not argument.strip():
            self._refuse(reply.VRFY_NEEDS_ARGUMENT)
        elif self._junk():
            self._output.append(reply.CANNOT_VERIFY.wire)

    def _expn(self, argument: bytes, more: bool) -> None:
        self._refuse(reply.NOT_IMPLEMENTED)

    def _quit(self, argument: bytes, more: bool) -> None:
        if argument.strip():
            self._refuse(reply.NO_ARGUMENT_ALLOWED)
        else:
            self.close(reply.OUT_OF_TURN if more else reply.BYE)

    def _not_smtp(self, argument: bytes, more: bool) -> None:
        self.close(reply.NOT_SMTP)

    # What the commands share.

    def _in_order(self, verb: bytes, argument: bytes) -> bool:
        if (self.state, verb) in NEXT:
            return True
        self._refuse(WHY[self.state, verb], verb + b" " + argument)
        return False

    def _forget(self, state: State) -> None:
        self.state = state
        self._mail = _NO_MAIL
        self._recipients = []
        if self._mailboxes:
            self._mailboxes = {}
            self._extra = 0

    def _refuse(self, refusal: Reply, line: bytes = b"") -> None:
        """Count an error, and say so. line: the command, where it may be one that is noted."""
        self._errors += 1
        if self._errors >= self._rules.max_errors:
            self.close(reply.TOO_MANY_ERRORS)
        else:
            self._output.append(refusal.wire)
        if line:
            self._note_command(refusal, line)

    @property
    def _transaction(self) -> MailCommand | None:
        return self._mail if self.state >= State.SENDER else None

    def _note_command(self, refusal: Reply, line: bytes) -> None:
        """Note that the command in `line` was refused, if it is MAIL, RCPT or DATA."""
        what = about(line, self._transaction, tuple(self._recipients))
        if what is not None:
            self._note(refusal, what)

    def _note(self, refusal: Reply, what: About) -> None:
        # The client may have heard why the session ends in place of `refusal`.
        heard = self.farewell or refusal
        self.refusals.append(Refusal(heard, self.closing, self.helo, what))

    def _junk(self) -> bool:
        """Count a command that brings no mail nearer; False once there were too many."""
        self._commands += 1
        if self._commands >= self._rules.max_commands:
            self.close(reply.TOO_MANY_COMMANDS)
            return False
        return True


_TLS_HELLO = b"\x16"  # the first octet of a TLS handshake, RFC 8446 section 5.1
_NO_MAIL = MailCommand(None)

_Handler = Callable[[Session, bytes, bool], Event | None]
_COMMANDS: dict[bytes, _Handler] = {
    b"HELO": Session._helo,
    b"EHLO": Session._ehlo,
    b"MAIL": Session._mail_from,
    b"RCPT": Session._rcpt_to,
    b"DATA": Session._data_command,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"HELP": Session._help,
    b"VRFY": Session._vrfy,
    b"EXPN": Session._expn,
    b"QUIT": Session._quit,
    # A browser that was sent here may carry commands in what it posts.
    **dict.fromkeys((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"), Session._not_smtp),
}


def _text(argument: bytes) -> str | None:
    try:
        return argument.decode("ascii" if argument.isascii() else "utf-8")
    except UnicodeDecodeError:
        return None


# A header may be empty, and its lines may end with LF alone.
_END_OF_HEADER = re.compile(rb"\A\r?\n|\n\r?\n")


def _received_fields(content: bytes) -> int:
    end = content.find(b"\r\n\r\n", 0, _HEADER_READ)
    header = content[: end if end >= 0 else _HEADER_READ]
    if header.count(b"\n") < MAX_RECEIVED - 1:
        return 0
    end_of_header = _END_OF_HEADER.search(header)
    if end_of_header is not None:
        header = header[: end_of_header.start()]
    return (b"\n" + header.lower()).count(b"\nreceived:")
