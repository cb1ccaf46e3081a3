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
    DATA = 4  # the message is coming in


NEXT: dict[tuple[State, bytes], State] = {
    (State.READY, b"MAIL"): State.SENDER,
    (State.SENDER, b"RCPT"): State.RECIPIENTS,
    (State.RECIPIENTS, b"RCPT"): State.RECIPIENTS,
    (State.RECIPIENTS, b"DATA"): State.DATA,
    **{(state, b"HELO"): State.READY for state in State if state < State.DATA},
    **{(state, b"EHLO"): State.READY for state in State if state < State.DATA},
    (State.START, b"RSET"): State.START,
    (State.READY, b"RSET"): State.READY,
    (State.SENDER, b"RSET"): State.READY,
    (State.RECIPIENTS, b"RSET"): State.READY,
}

WHY: dict[tuple[State, bytes], reply.Reply] = {
    (State.START, b"MAIL"): reply.HELO_FIRST,
    (State.SENDER, b"MAIL"): reply.NESTED_MAIL,
    (State.RECIPIENTS, b"MAIL"): reply.NESTED_MAIL,
    (State.START, b"RCPT"): reply.HELO_FIRST,
    (State.READY, b"RCPT"): reply.MAIL_FIRST,
    (State.START, b"DATA"): reply.HELO_FIRST,
    (State.READY, b"DATA"): reply.MAIL_FIRST,
    (State.SENDER, b"DATA"): reply.RCPT_FIRST,
}
