"""What do all sessions of a server share? Its name, its limits, and the replies that say them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.xclient import ATTRIBUTES


@dataclass(frozen=True, slots=True)
class Rules:
    """What all sessions of a server share. Sizes in octets.

    host_name: said in the greeting. max_size: largest message. max_recipients: per message.
    max_messages: per session; both are announced (LIMITS, RFC 9422).
    max_errors: refused commands, and max_commands: other commands, without a mail in between,
    before the session is closed. reject_bare_newline: refuse a message with a bare CR or LF.
    lmtp: speak LMTP (RFC 2033). starttls: offer STARTTLS; require_tls: take nothing before it.
    chunking: offer CHUNKING and BINARYMIME (RFC 3030).
    """

    host_name: str
    max_size: int = 10 * 1024 * 1024
    max_recipients: int = 1000
    max_messages: int = 100_000
    max_errors: int = 10
    max_commands: int = 100
    reject_bare_newline: bool = False
    lmtp: bool = False
    starttls: bool = False
    require_tls: bool = False
    chunking: bool = True
    greeting: Reply = field(init=False)
    helo: Reply = field(init=False)
    help: Reply = field(init=False)
    _ehlo: dict[tuple[bool, bool], Reply] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        protocol = "LMTP" if self.lmtp else "ESMTP"
        put(self, "greeting", Reply(220, "", f"{self.host_name} {protocol} gsmtpd"))
        put(self, "helo", Reply(250, "", self.host_name))
        put(self, "help", self._help())
        both = (False, True)
        put(
            self,
            "_ehlo",
            {(tls, named): self._made_ehlo(tls, named) for tls in both for named in both},
        )

    def ehlo(self, tls: bool, xclient: bool) -> Reply:
        """The reply to EHLO or LHLO. tls: whether it is active. xclient: whether it is offered."""
        return self._ehlo[tls, xclient]

    def _made_ehlo(self, tls: bool, xclient: bool) -> Reply:
        extensions = [
            "PIPELINING",
            f"SIZE {self.max_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            f"LIMITS MAILMAX={self.max_messages} RCPTMAX={self.max_recipients}",
        ]
        if self.chunking:
            extensions += ["CHUNKING", "BINARYMIME"]
        if self.starttls and not tls:
            extensions.append("STARTTLS")
        if xclient:
            extensions.append(f"XCLIENT {' '.join(ATTRIBUTES)}")
        return Reply(250, "", self.host_name, *extensions, "HELP")

    def _help(self) -> Reply:
        verbs = ["LHLO"] if self.lmtp else ["EHLO", "HELO"]
        verbs += ["STARTTLS"] if self.starttls else []
        verbs += ["MAIL", "RCPT", "DATA"]
        verbs += ["BDAT"] if self.chunking else []
        verbs += ["RSET", "NOOP", "VRFY", "HELP", "QUIT"]
        never = "This server receives mail; it never relays"
        return Reply(214, "2.0.0", f"Commands: {' '.join(verbs)}", never)
