"""What is a hook given, and what may it answer? For those who write one; docs/hooks.md shows how.

A hook is a function that is called before the reply: with a Recipient for RCPT, with Incoming at
the end of a message. It returns None to go on, or a Reply that the client hears.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gsmtpd.message.headers import read_fields
from gsmtpd.smtp.reply import Reply

if TYPE_CHECKING:
    from email.message import EmailMessage

__all__ = ["MAX_TEXT", "Incoming", "Recipient", "Reply", "defer", "fault_of", "refuse"]

MAX_TEXT = 490  # characters of a line: with both codes it has to fit into 512 octets with its CRLF
_PRINTABLE = re.compile(r"[ -~]+")
_ENHANCED = re.compile(r"[45]\.[0-9]{1,3}\.[0-9]{1,3}")  # RFC 3463 section 2
_MAX_LINES = 10


@dataclass(frozen=True)
class Recipient:
    """A RCPT that gsmtpd would take.

    client_ip: of the client. helo: as it said it. sender: of the envelope, "" for the null
    reverse-path. recipient: as the client named it. is_tls: whether it came by TLS. recipients:
    those of this mail that were taken before.
    """

    client_ip: str
    helo: str
    sender: str
    recipient: str
    is_tls: bool
    recipients: tuple[str, ...]


@dataclass(frozen=True)
class Incoming:
    """A message that is whole, and not stored yet.

    id: which a 250 would name, and which the mail log has. recipients: all that were taken, those
    among them whose mail is discarded last. content: octets as sent. Else as Recipient.
    """

    id: str
    client_ip: str
    helo: str
    sender: str
    is_tls: bool
    recipients: tuple[str, ...]
    content: bytes

    def header(self, name: str) -> str:
        """The first field of that name, decoded, in one line; "" if there is none. Never raises."""
        return next(iter(read_fields(self.content, name)), "")

    @cached_property
    def message(self) -> EmailMessage:
        """It as Python's `email` reads it, all of it. What is not well formed may raise there."""
        from email import message_from_bytes, policy

        return message_from_bytes(self.content, policy=policy.default)


def refuse(text: str) -> Reply:
    """550 5.7.1: never. text: one line in printable ASCII. Raises ValueError."""
    return Reply(550, "5.7.1", _checked(text))


def defer(text: str) -> Reply:
    """451 4.7.1: not now, the client tries again later. text: as `refuse`. Raises ValueError."""
    return Reply(451, "4.7.1", _checked(text))


def fault_of(said: object) -> str:
    """Why `said` is nothing that a hook may return, "" if it is."""
    if said is None:
        return ""
    if not isinstance(said, Reply):
        return f"it returned {type(said).__name__}; a hook returns None or a Reply"
    if type(said.code) is not int or not 400 <= said.code <= 599 or said.code == 421:
        return f"it returned {said.code!r}; a hook's Reply has a code of 4xx or 5xx, but 421"
    enhanced = said.enhanced
    if enhanced and not (_ENHANCED.fullmatch(enhanced) and enhanced[0] == str(said.code)[0]):
        return f"it returned {said.code} with {enhanced!r}; write e.g. {str(said.code)[0]}.7.1"
    if not 1 <= len(said.lines) <= _MAX_LINES:
        return f"it returned a Reply of {len(said.lines)} lines; write 1 to {_MAX_LINES}"
    try:
        for line in said.lines:
            _checked(line)
    except ValueError as error:
        return f"it returned a Reply with a text that cannot be sent: {error}"
    return ""


def _checked(text: str) -> str:
    if not isinstance(text, str) or not _PRINTABLE.fullmatch(text):
        raise ValueError(f"{text!r:.80} is not one line of printable ASCII; write that, in English")
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text)} characters; write {MAX_TEXT} at most")
    return text
