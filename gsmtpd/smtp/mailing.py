"""How does mail come in? MAIL and RCPT, and the message itself by DATA or by BDAT."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.command import MailCommand, parse_mail, parse_rcpt
from gsmtpd.smtp.dialogue import Dialogue, text_of
from gsmtpd.smtp.envelope import Envelope, Mailboxes
from gsmtpd.smtp.events import MessageReceived, RecipientAsked
from gsmtpd.smtp.framing import ChunkReader, DataReader, has_bare_newline
from gsmtpd.smtp.loops import is_looping
from gsmtpd.smtp.refusal import About, sender_of
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.states import NEXT, WHY, State
from gsmtpd.smtp.transaction import Transaction

_BINARY = "BINARYMIME"
_TOO_MANY_NOTED = 100  # recipients over the limit: nothing else bounds how many a client names
_BDAT = re.compile(rb"[ ]*([0-9]{1,20})(?:[ ]+(LAST))?[ ]*", re.IGNORECASE)


class Mailing(Dialogue):
    """The mail transactions of a session."""

    __slots__ = ("_finals",)

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._finals = 1  # how often the answer to a message is said

    @property
    def sender(self) -> Mailbox | None:
        """Of the mail transaction: the reverse-path, None for the null one."""
        return self._transaction.mail.sender

    @property
    def taken(self) -> Sequence[Mailbox]:
        """Of the mail transaction: the recipients that were taken so far."""
        return self._transaction.recipients

    @property
    def messages(self) -> int:
        """How many it has answered, taken or not."""
        return self._messages

    def drop_message(self) -> None:
        """Keep nothing of the message that is coming in; its sender hears 452 at its end."""
        reader = self._data or self._chunks
        if reader is not None:
            reader.drop()

    def _mail_from(self, argument: bytes, more: bool) -> None:
        if self._in_order(b"MAIL", argument):
            text = text_of(argument)
            said = parse_mail(text) if text is not None else reply.BAD_SENDER
            if not isinstance(said, Reply) and said.body == _BINARY and not self._rules.chunking:
                said = reply.BAD_PARAMETER
            if isinstance(said, Reply):
                self._refuse(said, b"MAIL " + argument)
            elif said.size > self._rules.max_size:
                self._turn_away(reply.TOO_BIG, b"MAIL " + argument)
            elif self.no_room:
                self._turn_away(reply.NO_MEMORY, b"MAIL " + argument)
            elif self._messages >= self._rules.max_messages:
                self.close(reply.TOO_MANY_MESSAGES)
                self._note_command(reply.TOO_MANY_MESSAGES, b"MAIL " + argument)
            else:
                self._transaction = Transaction(said)
                self.state = State.SENDER
                self._output.append(reply.SENDER_OK.wire)

    def _turn_away(self, refusal: Reply, line: bytes) -> None:
        """Refuse a command that is no error; it brings no mail nearer either."""
        if self._junk():
            self._output.append(refusal.wire)
        self._note_command(refusal, line)

    def _rcpt_to(self, argument: bytes, more: bool) -> RecipientAsked | None:
        if not self._in_order(b"RCPT", argument):
            return None
        text = text_of(argument)
        utf8 = self._transaction.mail.smtputf8
        said = parse_rcpt(text, utf8) if text is not None else reply.BAD_RECIPIENT
        if isinstance(said, Reply):
            self._refuse(said, b"RCPT " + argument)
        elif self._transaction.full(self._rules.max_recipients):
            self._too_many(said)
        else:
            return RecipientAsked(said)
        return None

    def _too_many(self, recipient: Mailbox) -> None:
        # No error of the client's: RFC 5321 section 4.5.3.1.10 tells it to try the rest later.
        self._output.append(reply.TOO_MANY_RECIPIENTS.wire)
        self._transaction.too_many += 1
        if self._transaction.too_many <= _TOO_MANY_NOTED:
            self._note_recipient(reply.TOO_MANY_RECIPIENTS, recipient)

    def _answer_recipient(
        self, recipient: Mailbox, decision: Reply, mailboxes: Mailboxes | None
    ) -> None:
        if decision.positive:
            if not self._transaction.take(recipient, mailboxes, self._rules.max_recipients):
                self._too_many(recipient)
                return
            self.state = State.RECIPIENTS
            self._output.append(decision.wire)
            return
        if decision.code == 421:
            self.close(decision)
        elif self._junk():
            self._output.append(decision.wire)
        self._note_recipient(decision, recipient)

    def _note_recipient(self, refusal: Reply, recipient: Mailbox) -> None:
        self._note(refusal, About(sender_of(self._transaction.mail), (recipient,)))

    # The message comes in.

    def _data_command(self, argument: bytes, more: bool) -> None:
        if argument.strip():
            self._refuse(reply.NO_ARGUMENT_ALLOWED, b"DATA")
        elif self._in_order(b"DATA", argument):
            if self._transaction.mail.body == _BINARY:
                self._refuse(reply.NEEDS_BDAT, b"DATA")
                return
            if more:
                # RFC 2920 section 3.1: DATA is the last command of a burst.
                self.close(reply.OUT_OF_TURN)
                self._note_command(reply.OUT_OF_TURN, b"DATA")
                return
            self._data = DataReader(self._rules.max_size)
            self.state = State.DATA
            self._output.append(reply.START_DATA.wire)

    def _bdat(self, argument: bytes, more: bool) -> None:
        said = _BDAT.fullmatch(argument)
        if said is None or not self._rules.chunking:
            # Its octets would be taken for commands.
            self.close(reply.BDAT_SYNTAX if self._rules.chunking else reply.NO_CHUNKING)
            return
        reader = self._chunks
        if (self.state, b"BDAT") not in NEXT:
            reader = ChunkReader(0, WHY[self.state, b"BDAT"])
        elif reader is None:
            reader = self._chunks = ChunkReader(self._rules.max_size)
            self.state = State.CHUNKS
        self._data = reader
        reader.expect(int(said[1]), said[2] is not None)

    def _end_of(self, data: DataReader | ChunkReader) -> MessageReceived | None:
        """All octets that a DATA or a BDAT announced have come."""
        self._data = None
        if isinstance(data, ChunkReader):
            if data.refusal is not None:
                # A client may have sent further chunks before it heard that one was refused.
                self._turn_away(data.refusal, b"BDAT")
                return None
            if not data.last and not data.too_big:
                # A chunk of nothing brings no mail nearer.
                if data.chunk or self._junk():
                    self._output.append(reply.chunk_taken(data.chunk).wire)
                return None
            self._chunks = None
        return self._end_of_message(data)

    def _end_of_message(self, data: DataReader | ChunkReader) -> MessageReceived | None:
        self._messages += 1
        transaction = self._transaction
        mail, recipients = transaction.mail, tuple(transaction.recipients)
        whole = not isinstance(data, ChunkReader) or data.last
        self._finals = len(recipients) if self._rules.lmtp and whole else 1
        self._forget(State.READY)
        content = b"" if data.too_big else data.content()
        refusal = self._fault(data, content, mail)
        if refusal is not None:
            self._say_final(refusal)
            if refusal is reply.BARE_NEWLINE:
                self.farewell = refusal
            self._note(refusal, About(sender_of(mail), recipients, data.size))
            return None
        envelope = Envelope(
            self.helo,
            self._esmtp,
            mail.sender,
            recipients,
            mail.smtputf8,
            mail.body,
            lmtp=self._rules.lmtp,
            tls=self.tls,
            client_name=self._named.name or "",
        )
        if transaction.mailboxes:
            envelope = envelope.with_mailboxes(transaction.mailboxes)
        return MessageReceived(envelope, content)

    def _fault(
        self, data: DataReader | ChunkReader, content: bytes, mail: MailCommand
    ) -> Reply | None:
        """Why a message is refused, if it is."""
        if data.dropped:
            return reply.NO_MEMORY
        if data.too_big:
            return reply.TOO_BIG
        strict = self._rules.reject_bare_newline and mail.body != _BINARY
        if strict and has_bare_newline(content):
            return reply.BARE_NEWLINE
        return reply.MAIL_LOOP if is_looping(content) else None

    def _say_final(self, decision: Reply) -> None:
        """Answer a message: once, or once for each recipient (RFC 2033 section 4.2)."""
        self._output.append(decision.wire if self._finals == 1 else decision.wire * self._finals)

    def _answer_message(self, decision: Reply) -> None:
        self._say_final(decision)
        if decision.positive:
            self._errors = self._commands = 0
        if decision.code == 421:
            self.farewell = decision
