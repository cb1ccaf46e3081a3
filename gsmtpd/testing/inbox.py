"""Which mail has come, and which is the next for a test? One for each recipient, in order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from itertools import chain
from typing import NamedTuple

from gsmtpd.policy.names import a_labels
from gsmtpd.smtp.address import Mailbox, parse_mailbox
from gsmtpd.storage.base import Letter
from gsmtpd.wording import MAX_SHOWN, printable, shown

_LISTED = 20  # mails, and refusals, that an error tells of


class Envelope(NamedTuple):
    """What was said of a message beside its octets.

    sender: "" for the null reverse-path. recipient: whom this copy is for. recipients: all that
    were accepted, in their order. helo: as the client said it. id: as said in the 250.
    tls: version and cipher, "" where it came in the clear. received_at: Unix time in seconds.
    """

    sender: str
    recipient: str
    recipients: tuple[str, ...]
    helo: str
    client_ip: str
    id: str
    tls: str
    received_at: float


class ReceivedMessage(EmailMessage):
    """A message that was received; lines end in "\\n", as in one that Python has made.

    raw: its octets as they were sent, dots unstuffed.
    """

    envelope: Envelope
    raw: bytes


class NoMailError(TimeoutError):
    """The mail that was waited for has not come; the text tells what has."""


class _Copy:
    """A message for one of its recipients. returned: whether a wait has had it."""

    def __init__(self, letter: Letter, recipient: Mailbox) -> None:
        self._letter = letter
        self._recipient = recipient
        self._message: ReceivedMessage | None = None
        self.key = _key(recipient)
        self.subject = letter.reading.headers.subject
        self.returned = False

    @property
    def message(self) -> ReceivedMessage:
        """It, parsed; the same object each time."""
        if self._message is None:
            message, envelope = self._letter.message, self._letter.message.envelope
            self._message = _parsed(message.content, envelope.body == "BINARYMIME")
            self._message.envelope = Envelope(
                "" if envelope.sender is None else str(envelope.sender),
                str(self._recipient),
                tuple(map(str, envelope.recipients)),
                envelope.helo,
                message.client_ip,
                message.id,
                envelope.tls,
                message.received_at,
            )
        return self._message

    def __str__(self) -> str:
        past = " (an earlier wait has returned it)" if self.returned else ""
        return f"to {printable(str(self._recipient))}: {shown(self.subject)}{past}"


def _parsed(content: bytes, is_binary: bool) -> ReceivedMessage:
    # With CRLF get_content() would differ from what the sender has given to set_content().
    text = content if is_binary else content.replace(b"\r\n", b"\n")
    parsed = BytesParser(policy=policy.default).parsebytes(text)
    # Not by a factory: that makes the parts as well, which have no envelope.
    message = ReceivedMessage(policy=policy.default)
    vars(message).update(vars(parsed))
    message.raw = content
    return message


def _key(mailbox: Mailbox) -> tuple[str, str]:
    """What addresses have in common that are the same to a test."""
    return mailbox.local.lower(), a_labels(mailbox.domain)


class Inbox:
    """Keeps what has come. For any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._copies: list[_Copy] = []
        self._refused: list[str] = []
        self._open = False

    def opened(self, is_open: bool) -> None:
        """Whether more may come from now on; where not, nobody waits."""
        with self._changed:
            self._open = is_open
            self._changed.notify_all()

    def take(self, letter: Letter) -> None:
        """A message has come."""
        with self._changed:
            self._copies += [_Copy(letter, each) for each in letter.message.envelope.recipients]
            self._changed.notify_all()

    def note(self, records: bytes) -> None:
        """Something was not simply stored. records: as MailLog gives them to `recent`."""
        found = [json.loads(line) for line in records.splitlines()]
        refused = [_refusal(each) for each in found if each.get("result") == "refused"]
        with self._changed:
            self._refused += refused

    @property
    def messages(self) -> list[ReceivedMessage]:
        """All that have come, in their order."""
        with self._changed:
            return [copy.message for copy in self._copies]

    def clear(self) -> None:
        """Forget all that has come."""
        with self._changed:
            self._copies, self._refused = [], []

    def wait(self, to: str | None, timeout: float, subject: str | None) -> ReceivedMessage:
        """The oldest that fits and was not returned yet. Raises NoMailError, ValueError."""
        key = None if to is None else _asked(to)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for copy in self._copies:
                    if not copy.returned and _fits(copy, key, subject):
                        copy.returned = True
                        return copy.message
                left = deadline - time.monotonic()
                if left <= 0 or not self._open:
                    raise NoMailError("\n".join(self._explain(to, timeout, subject)))
                self._changed.wait(left)

    def _explain(self, to: str | None, timeout: float, subject: str | None) -> Iterator[str]:
        whom = "" if to is None else f" to {printable(to)}"
        about = "" if subject is None else f" with {shown(subject)} in its subject"
        when = f"came within {timeout:g} s" if self._open else "has come, and the server is stopped"
        yield f"no mail{whom}{about} {when}; {'this' if self._copies else 'nothing'} has come:"
        yield from _last([str(copy) for copy in self._copies])
        if self._refused:
            yield "this was refused:"
            yield from _last(self._refused)


def _asked(to: str) -> tuple[str, str]:
    mailbox = parse_mailbox(to)
    if mailbox is None:
        raise ValueError(f"to = {shown(to)} is not an address; write one like user@example.com")
    return _key(mailbox)


def _fits(copy: _Copy, key: tuple[str, str] | None, subject: str | None) -> bool:
    return key in (None, copy.key) and (subject is None or subject in copy.subject)


def _refusal(record: dict[str, str]) -> str:
    whom = record.get("to") or f"from {record.get('from', '<>')}"
    return f"{printable(whom[:MAX_SHOWN])}: {record['reply']}"


def _last(lines: list[str]) -> Iterator[str]:
    more = len(lines) - _LISTED
    earlier = [f"{more} more before"] if more > 0 else []
    return (f"  {line}" for line in chain(earlier, lines[-_LISTED:]))
