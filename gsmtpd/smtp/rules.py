"""What do all sessions of a server share? Its name, its limits, and the replies that say them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsmtpd.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Rules:
    """What all sessions of a server share. Sizes in octets.

    host_name: said in the greeting. max_size: largest message. max_recipients: per message.
    max_messages: per session; both are announced (LIMITS, RFC 9422).
    max_errors: refused commands, and max_commands: other commands, without a mail in between,
    before the session is closed. reject_bare_newline: refuse a message with a bare CR or LF.
    """

    host_name: str
    max_size: int = 10 * 1024 * 1024
    max_recipients: int = 1000
    max_messages: int = 100_000
    max_errors: int = 10
    max_commands: int = 100
    reject_bare_newline: bool = False
    greeting: Reply = field(init=False)
    ehlo: Reply = field(init=False)
    helo: Reply = field(init=False)
    help: Reply = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "greeting", Reply(220, "", f"{self.host_name} ESMTP gsmtpd"))
        put(self, "helo", Reply(250, "", self.host_name))
        put(
            self,
            "ehlo",
            Reply(
                250,
                "",
                self.host_name,
                "PIPELINING",
                f"SIZE {self.max_size}",
                "8BITMIME",
                "SMTPUTF8",
                "ENHANCEDSTATUSCODES",
                f"LIMITS MAILMAX={self.max_messages} RCPTMAX={self.max_recipients}",
                "HELP",
            ),
        )
        commands = "Commands: EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"
        put(
            self,
            "help",
            Reply(214, "2.0.0", commands, "This server receives mail; it never relays"),
        )
