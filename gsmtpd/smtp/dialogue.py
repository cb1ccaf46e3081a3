"""What does a client say beside its mail? Its greeting, TLS, whom it speaks for, and small talk."""

from __future__ import annotations

from gsmtpd.smtp import reply
from gsmtpd.smtp.command import MailCommand
from gsmtpd.smtp.events import TLSAsked
from gsmtpd.smtp.framing import ChunkReader, DataReader
from gsmtpd.smtp.refusal import About, Refusal, about
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.states import NEXT, WHY, State
from gsmtpd.smtp.transaction import Transaction
from gsmtpd.smtp.xclient import ClientNamed, parse_xclient

NO_TRANSACTION = Transaction(MailCommand(None))  # nobody adds to it
_NOBODY = ClientNamed()


class Dialogue:
    """What has been said, and the answers to all but mail; see Session for its attributes.

    A command is a method: its argument, and whether further input came in the same burst.
    """

    __slots__ = (
        "_chunks",
        "_commands",
        "_data",
        "_errors",
        "_esmtp",
        "_messages",
        "_named",
        "_output",
        "_rules",
        "_transaction",
        "farewell",
        "helo",
        "leaving",
        "no_room",
        "refusals",
        "speaks_for_others",
        "state",
        "tls",
    )

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._output: list[bytes] = [rules.greeting.wire]
        self._data: DataReader | ChunkReader | None = None  # what takes the octets that come
        self._chunks: ChunkReader | None = None  # of the message that comes in chunks
        self._transaction = NO_TRANSACTION
        self._named = _NOBODY  # by XCLIENT
        self._errors = 0
        self._commands = 0
        self._messages = 0
        self._esmtp = False
        self.helo = ""
        self.state = State.START
        self.farewell: Reply | None = None  # why the session ends, once it does
        self.leaving = False
        self.no_room = False
        self.speaks_for_others = False
        self.tls = ""
        self.refusals: list[Refusal] = []

    def close(self, farewell: Reply) -> None:
        """End the session, saying `farewell`; what was heard and not yet done is forgotten."""
        self._output.append(farewell.wire)
        self.farewell = farewell
        self._data = self._chunks = None

    @property
    def closing(self) -> bool:
        """True once the session is over: the driver sends what is left and closes."""
        return self.farewell is not None

    def _helo(self, argument: bytes, more: bool) -> None:
        if self._rules.lmtp:
            self._refuse(reply.UNKNOWN_COMMAND)
        else:
            self._greeted(argument, esmtp=False)

    def _ehlo(self, argument: bytes, more: bool) -> None:
        if self._rules.lmtp:
            self._refuse(reply.UNKNOWN_COMMAND)
        else:
            self._greeted(argument, esmtp=True)

    def _lhlo(self, argument: bytes, more: bool) -> None:
        if self._rules.lmtp:
            self._greeted(argument, esmtp=True)
        else:
            self._refuse(reply.UNKNOWN_COMMAND)

    def _greeted(self, argument: bytes, esmtp: bool) -> None:
        name = argument.strip()
        if not name:
            self._refuse(reply.HELO_NEEDS_NAME)
        elif self._junk():
            named = self._named
            self.helo = name.decode("utf-8", "replace") if named.helo is None else named.helo
            self._esmtp = esmtp if named.esmtp is None else named.esmtp
            self._forget(State.READY)
            rules = self._rules
            said = rules.ehlo(bool(self.tls), self.speaks_for_others) if esmtp else rules.helo
            self._output.append(said.wire)

    def _starttls(self, argument: bytes, more: bool) -> TLSAsked | None:
        if not self._rules.starttls:
            self._refuse(reply.TLS_ALREADY if self.tls else reply.UNKNOWN_COMMAND)
        elif argument.strip():
            self._refuse(reply.NO_ARGUMENT_ALLOWED)
        elif self.tls:
            self._refuse(reply.TLS_ALREADY)
        elif self._in_order(b"STARTTLS", b""):
            if not more:
                self._output.append(reply.START_TLS.wire)
                return TLSAsked()
            # Whoever put it there may not be the one who speaks behind TLS (CVE-2011-0411).
            self.close(reply.OUT_OF_TURN)
        return None

    def _xclient(self, argument: bytes, more: bool) -> ClientNamed | None:
        if not self.speaks_for_others:
            self.close(reply.NOT_A_PROXY)
        elif self._in_order(b"XCLIENT", b""):
            text = text_of(argument)
            named = parse_xclient(text) if text is not None else None
            if named is None:
                self._refuse(reply.XCLIENT_SYNTAX)
            elif self._junk():
                return named
        return None

    def _answer_client(self, named: ClientNamed, decision: Reply) -> None:
        if not decision.positive:
            self.close(decision)
            return
        said = {key: value for key, value in named._asdict().items() if value is not None}
        self._named = self._named._replace(**said)
        self._start_again()
        self._output.append(decision.wire)

    def _proxy(self, argument: bytes, more: bool) -> None:
        self.close(reply.NOT_A_PROXY)

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
        self._transaction = NO_TRANSACTION
        self._chunks = None

    def _start_again(self) -> None:
        """As behind the greeting, but for what is counted."""
        self.helo = ""
        self._esmtp = False
        self._forget(State.START)

    def _refuse(self, refusal: Reply, line: bytes = b"") -> None:
        """Count an error, and say so. line: the command, where it may be one that is noted."""
        self._errors += 1
        if self._errors >= self._rules.max_errors:
            self.close(reply.TOO_MANY_ERRORS)
        else:
            self._output.append(refusal.wire)
        if line:
            self._note_command(refusal, line)

    def _note_command(self, refusal: Reply, line: bytes) -> None:
        """Note that the command in `line` was refused, if it is MAIL, RCPT, DATA or BDAT."""
        transaction = self._transaction
        mail = transaction.mail if transaction is not NO_TRANSACTION else None
        what = about(line, mail, tuple(transaction.recipients))
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


def text_of(argument: bytes) -> str | None:
    """An argument as text; None if it is not UTF-8."""
    try:
        return argument.decode("ascii" if argument.isascii() else "utf-8")
    except UnicodeDecodeError:
        return None
