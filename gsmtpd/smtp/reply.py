"""What can the server say? `Reply` is a value, and each canned reply stands here once, named."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply (RFC 5321 section 4.2) with its enhanced status code (RFC 2034).

    code: the three digits. enhanced: e.g. "2.1.0", or "" where RFC 2034 wants none (greeting,
    replies to EHLO and HELO). lines: the text, one string per line, without CRLF.
    wire: the bytes to send. Raises ValueError for a text that would break the reply's framing.
    """

    code: int
    enhanced: str
    lines: tuple[str, ...]
    wire: bytes = field(init=False, repr=False, compare=False)

    def __init__(self, code: int, enhanced: str, *lines: str) -> None:
        for line in lines:
            if "\r" in line or "\n" in line:
                raise ValueError(f"a reply line may not hold CR or LF: {line!r}")
        put = object.__setattr__
        put(self, "code", code)
        put(self, "enhanced", enhanced)
        put(self, "lines", lines)
        put(self, "wire", _wire(code, enhanced, lines))

    @property
    def positive(self) -> bool:
        """True for 2xx and 3xx: the command was carried out."""
        return self.code < 400

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, *self.lines)))


def _wire(code: int, enhanced: str, lines: tuple[str, ...]) -> bytes:
    prefix = f"{enhanced} " if enhanced else ""
    last = len(lines) - 1
    rows = (f"{code}{' ' if i == last else '-'}{prefix}{line}" for i, line in enumerate(lines))
    return ("\r\n".join(rows) + "\r\n").encode("ascii", "replace")


# Positive
SENDER_OK = Reply(250, "2.1.0", "Sender ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient ok")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
OK = Reply(250, "2.0.0", "Ok")
START_TLS = Reply(220, "2.0.0", "Ready to start TLS")
BYE = Reply(221, "2.0.0", "Bye")
CANNOT_VERIFY = Reply(252, "2.5.2", "Cannot VRFY, but will take mail for the domains served here")

# The command cannot be read
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")
EMPTY_LINE = Reply(500, "5.5.2", "Empty line")
BARE_NEWLINE_IN_COMMAND = Reply(
    500, "5.5.2", "A command ends with CR LF; a bare CR or LF is no end"
)
UNKNOWN_COMMAND = Reply(500, "5.5.1", "Command not recognized")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
NO_ARGUMENT_ALLOWED = Reply(501, "5.5.4", "This command takes no argument")
HELO_NEEDS_NAME = Reply(501, "5.5.4", "Say the name of your host")
VRFY_NEEDS_ARGUMENT = Reply(501, "5.5.4", "Say an address")
MAIL_SYNTAX = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "A non-ASCII address needs SMTPUTF8")
BAD_PARAMETER = Reply(501, "5.5.4", "Bad parameter value")
DUPLICATE_PARAMETER = Reply(501, "5.5.4", "Parameter given twice")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Parameter not recognized or not implemented")

BDAT_SYNTAX = Reply(501, "5.5.4", "Syntax: BDAT octets [LAST]; what follows cannot be told apart")
XCLIENT_SYNTAX = Reply(501, "5.5.4", "Syntax: XCLIENT name=value...")

# Legal, but not now
HELO_FIRST = Reply(503, "5.5.1", "Say hello first: EHLO, or LHLO with LMTP")
MAIL_FIRST = Reply(503, "5.5.1", "Say MAIL first")
RCPT_FIRST = Reply(503, "5.5.1", "No valid recipients: say RCPT first")
NESTED_MAIL = Reply(503, "5.5.1", "A sender was given already")
IN_CHUNKS = Reply(503, "5.5.1", "A message has begun with BDAT: end it with BDAT, or say RSET")
NEEDS_BDAT = Reply(503, "5.5.1", "A BINARYMIME message comes by BDAT")
NOT_IN_MAIL = Reply(503, "5.5.1", "Not in a mail transaction: say RSET first")
TLS_ALREADY = Reply(503, "5.5.1", "TLS is active already")
TLS_FIRST = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
OUT_OF_TURN = Reply(554, "5.5.0", "You spoke out of turn: wait for the reply")
NOT_SMTP = Reply(554, "5.5.1", "This is an SMTP server, and what you speak is not SMTP")
NOT_TLS = Reply(554, "5.5.1", "On this port TLS comes first: this port speaks TLS")
NOT_A_PROXY = Reply(550, "5.7.1", "You may not speak for others here")
NO_CHUNKING = Reply(502, "5.5.1", "CHUNKING is not offered here")

# Limits and refusals
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
TOO_BIG = Reply(552, "5.3.4", "Message is larger than the limit")
BARE_NEWLINE = Reply(550, "5.5.2", "Message has a bare CR or LF; lines end with CR LF")
MAIL_LOOP = Reply(554, "5.4.6", "Too many Received fields: this mail is looping")
NOT_SERVED = Reply(550, "5.7.1", "Relaying denied: this domain is not served here")
NO_SUCH_USER = Reply(550, "5.1.1", "No such user here")
USER_NOT_YET = Reply(451, "4.1.1", "This address is not known here now: try again later")
LOOKUP_TROUBLE = Reply(451, "4.4.3", "Cannot look this address up now: try again later")
CLIENT_DENIED = Reply(554, "5.7.1", "No mail is taken from your address here")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands without mail")
TOO_MANY_MESSAGES = Reply(421, "4.7.0", "Too many messages in one session: connect again")
TIMED_OUT = Reply(421, "4.4.2", "Timed out waiting for you")
SESSION_TOO_LONG = Reply(421, "4.4.2", "Session lasted too long")
SHUTTING_DOWN = Reply(421, "4.3.2", "Shutting down: come back soon")
UNAVAILABLE = Reply(421, "4.3.0", "Service not available: try again later")
TOO_MANY_CLIENTS = Reply(421, "4.3.2", "Too many connections: come back soon")
TOO_MANY_FROM_YOU = Reply(421, "4.7.0", "Too many connections from your address")
TOO_SLOW = Reply(421, "4.4.2", "Too slow: your message comes in too few octets a second")
NO_MEMORY = Reply(452, "4.3.1", "Too much mail comes in at once: try again later")
STORAGE_TROUBLE = Reply(451, "4.3.0", "Cannot store mail now: try again later")
NO_SPACE = Reply(452, "4.3.1", "No space to store mail now: try again later")
HOOK_TROUBLE = Reply(451, "4.3.0", "Cannot check this mail now: try again later")
INTERNAL_ERROR = Reply(451, "4.3.0", "Internal error: try again later")


def chunk_taken(octets: int) -> Reply:
    """For a chunk that was not the last one of its message."""
    return Reply(250, "2.0.0", f"{octets} octets received")


def queued(message_id: str) -> Reply:
    """The 250 that means committed. message_id: the id stored as `hash`, ASCII."""
    return Reply(250, "2.0.0", f"OK: queued as {message_id}")


def client_listed(client_ip: str, where: str) -> Reply:
    """For a client in a DNS blocklist. where: the list, and what it says; printable ASCII."""
    return Reply(550, "5.7.1", f"Your address {client_ip} is listed by {where}")
