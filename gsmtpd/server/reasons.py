"""Why was it refused, in one word? From what the client hears to what is counted."""

from __future__ import annotations

from gsmtpd.metrics import Reason
from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply, client_listed

_REPLIES = {
    Reason.RELAY: (reply.NOT_SERVED,),
    Reason.NO_SUCH_USER: (reply.NO_SUCH_USER,),
    Reason.NOT_YET: (reply.USER_NOT_YET,),
    Reason.LOOKUP: (reply.LOOKUP_TROUBLE,),
    Reason.CLIENT_DENIED: (reply.CLIENT_DENIED,),
    Reason.TOO_MANY_CLIENTS: (reply.TOO_MANY_CLIENTS,),
    Reason.TOO_MANY_FROM_YOU: (reply.TOO_MANY_FROM_YOU,),
    Reason.TOO_BIG: (reply.TOO_BIG,),
    Reason.BARE_NEWLINE: (reply.BARE_NEWLINE, reply.BARE_NEWLINE_IN_COMMAND),
    Reason.LOOP: (reply.MAIL_LOOP,),
    Reason.TOO_MANY_RECIPIENTS: (reply.TOO_MANY_RECIPIENTS,),
    Reason.MEMORY: (reply.NO_MEMORY,),
    Reason.STORAGE: (reply.STORAGE_TROUBLE,),
    Reason.NO_SPACE: (reply.NO_SPACE,),
    Reason.TIMEOUT: (reply.TIMED_OUT, reply.SESSION_TOO_LONG, reply.TOO_SLOW),
    Reason.TOO_MANY_ERRORS: (
        reply.TOO_MANY_ERRORS,
        reply.TOO_MANY_COMMANDS,
        reply.TOO_MANY_MESSAGES,
    ),
    Reason.TLS: (reply.TLS_FIRST, reply.NOT_TLS),
    Reason.HOOK: (reply.HOOK_TROUBLE,),
    Reason.SHUTDOWN: (reply.SHUTTING_DOWN,),
    Reason.OTHER: (reply.INTERNAL_ERROR, reply.UNAVAILABLE),
}
_KNOWN = {said: reason for reason, replies in _REPLIES.items() for said in replies}
# Any other that stands in `reply` is about how the client speaks.
_KNOWN |= {
    said: Reason.SYNTAX
    for said in vars(reply).values()
    if isinstance(said, Reply) and not said.positive and said not in _KNOWN
}
_LISTED = client_listed("", "").lines[0].split()[:2]


def reason_of(said: Reply) -> Reason:
    """Why the client hears `said`. What nobody else here says is said by a hook."""
    known = _KNOWN.get(said)
    if known is not None:
        return known
    return Reason.DNSBL if said.lines[0].split()[:2] == _LISTED else Reason.HOOK
