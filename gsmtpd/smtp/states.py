"""What is legal when? The order of commands as data (RFC 5321 section 4.1.4).

`NEXT[state, verb]` is the state behind a command that succeeds; a missing key means the command is
out of order, and `WHY[state, verb]` is the Reply that says what should have come first.
"""

from __future__ import annotations

from enum import IntEnum

from gsmtpd.smtp import reply


class State(IntEnum):
    """How far the client has come."""

    START = 0  # greeted by us, not yet by the client
    READY = 1  # HELO or EHLO said, no transaction
    SENDER = 2  # MAIL accepted
    RECIPIENTS = 3  # at least one RCPT accepted
    CHUNKS = 4  # the message is coming in, in chunks (RFC 3030)
    DATA = 5  # the message is coming in


_IN_COMMANDS = [state for state in State if state is not State.DATA]
_IN_MAIL = [State.SENDER, State.RECIPIENTS, State.CHUNKS]

NEXT: dict[tuple[State, bytes], State] = {
    (State.READY, b"MAIL"): State.SENDER,
    (State.SENDER, b"RCPT"): State.RECIPIENTS,
    (State.RECIPIENTS, b"RCPT"): State.RECIPIENTS,
    (State.RECIPIENTS, b"DATA"): State.DATA,
    (State.RECIPIENTS, b"BDAT"): State.CHUNKS,
    (State.CHUNKS, b"BDAT"): State.CHUNKS,
    **{
        (state, verb): State.READY for state in _IN_COMMANDS for verb in (b"HELO", b"EHLO", b"LHLO")
    },
    (State.START, b"RSET"): State.START,
    **{(state, b"RSET"): State.READY for state in (State.READY, *_IN_MAIL)},
    **{(state, b"STARTTLS"): State.START for state in (State.START, State.READY)},
    **{(state, b"XCLIENT"): State.START for state in (State.START, State.READY)},
}

WHY: dict[tuple[State, bytes], reply.Reply] = {
    (State.START, b"MAIL"): reply.HELO_FIRST,
    **{(state, b"MAIL"): reply.NESTED_MAIL for state in _IN_MAIL},
    (State.START, b"RCPT"): reply.HELO_FIRST,
    (State.READY, b"RCPT"): reply.MAIL_FIRST,
    (State.CHUNKS, b"RCPT"): reply.IN_CHUNKS,
    **{(State.START, verb): reply.HELO_FIRST for verb in (b"DATA", b"BDAT")},
    **{(State.READY, verb): reply.MAIL_FIRST for verb in (b"DATA", b"BDAT")},
    **{(State.SENDER, verb): reply.RCPT_FIRST for verb in (b"DATA", b"BDAT")},
    (State.CHUNKS, b"DATA"): reply.IN_CHUNKS,
    **{(state, b"STARTTLS"): reply.NOT_IN_MAIL for state in _IN_MAIL},
    **{(state, b"XCLIENT"): reply.NOT_IN_MAIL for state in _IN_MAIL},
}
