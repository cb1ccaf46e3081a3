"""What does a handler get? One stored mail, with its envelope, and parsed where that is asked for.

Nothing here reaches the database: what a handler wants done there is noted, and done by the process
that has called it. What takes long to import is imported where it is asked for: many handlers never
do, and each runner would pay for it as it starts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd.message.headers import MAX_HEADER, read_fields
from gsmtpd.message.trace import parse_front

if TYPE_CHECKING:
    from email.message import EmailMessage
    from email.message import Message as Fields

_find_end = re.compile(rb"\n\r?\n").search


class Facts(NamedTuple):
    """What is known of a mail beside its octets.

    id: of the message, as said in the 250. row: `mail_id` of its row. delivery: of this mail to
    this handler, the same at each try. attempt: from 1. sender: of the envelope, "" for the null
    reverse-path. recipient: as the client named it. mailbox: into which it went.
    received_at: Unix time in seconds.
    """

    id: str
    row: int
    delivery: str
    attempt: int
    sender: str
    recipient: str
    mailbox: str
    client_ip: str
    helo: str
    is_tls: bool
    received_at: float


class Answer(NamedTuple):
    """A reply that goes to the sender once the handler has returned.

    subject: None for "Auto: " and the mail's own (RFC 3834 section 3.1.5).
    """

    text: str
    subject: str | None


class Mail:
    """One mail. facts: see Facts; nearly all of them are attributes, too.

    raw: as it is stored, with gsmtpd's own fields in front: Delivered-To, Return-Path, Received.
    notes, answer: what `annotate` and `reply` were given.
    """

    def __init__(self, facts: Facts, raw: bytes) -> None:
        self.facts = facts
        self.raw = raw
        self.notes: list[tuple[str, str]] = []
        self.answer: Answer | None = None

    @property
    def id(self) -> str:
        """Of the message, as said in the 250."""
        return self.facts.id

    @property
    def row(self) -> int:
        """Of its row: `mail_id`."""
        return self.facts.row

    @property
    def delivery(self) -> str:
        """Of this mail to this handler, the same at each try."""
        return self.facts.delivery

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return self.facts.attempt

    @property
    def sender(self) -> str:
        """Of the envelope; "" for the null reverse-path, to which nobody may reply."""
        return self.facts.sender

    @property
    def recipient(self) -> str:
        """Of the envelope, as the client named it."""
        return self.facts.recipient

    @property
    def mailbox(self) -> str:
        """Into which it went: the recipient, or what an alias has made of that."""
        return self.facts.mailbox

    @property
    def client_ip(self) -> str:
        """Of the host that has sent it."""
        return self.facts.client_ip

    @property
    def helo(self) -> str:
        """What that host has called itself."""
        return self.facts.helo

    @property
    def is_tls(self) -> bool:
        """Whether it came by TLS."""
        return self.facts.is_tls

    @property
    def received(self) -> datetime:
        """When its final dot came, in UTC."""
        return datetime.fromtimestamp(self.facts.received_at, UTC)

    @cached_property
    def _front(self) -> int:
        """How many octets of `raw` are gsmtpd's own fields."""
        front = parse_front(self.raw)
        return front.size if front is not None else 0

    @cached_property
    def content(self) -> bytes:
        """The octets of its sender, without gsmtpd's own fields in front."""
        return self.raw[self._front :]

    @cached_property
    def message(self) -> EmailMessage:
        """`raw` as Python's `email` reads it. Fields that are not well formed may raise there."""
        from email import policy
        from email.parser import BytesParser

        return BytesParser(policy=policy.default).parsebytes(self.raw)

    @cached_property
    def header_message(self) -> Fields:
        """Its fields alone, as they were sent: cheap, however large the mail is.

        Values are not decoded, and `email.header.Header` where they are not ASCII.
        """
        from email.parser import BytesHeaderParser

        section = self.raw[: self._front + MAX_HEADER]
        end = _find_end(section)
        return BytesHeaderParser().parsebytes(section[: end.end()] if end else section)

    @cached_property
    def subject(self) -> str:
        """The Subject, decoded, in one line; "" if there is none."""
        return self.header("Subject")

    @cached_property
    def text(self) -> str:
        """What a person would read: the text, or what is legible of the HTML; "" for neither."""
        from gsmtpd.message.body import read_body

        try:
            return read_body(self.content).text
        except MemoryError:
            raise
        except Exception:  # a fault of ours, or of lxml
            return ""

    def header(self, name: str) -> str:
        """The first field of that name, decoded, in one line; "" if there is none. Never raises."""
        return next(iter(self.headers(name)), "")

    def headers(self, name: str) -> list[str]:
        """All fields of that name, the topmost first, as `header` has them. Never raises."""
        front = self.raw[: self._front]
        return [*read_fields(front, name), *read_fields(self.content, name)]

    def annotate(self, name: str, value: str) -> None:
        """Note something of this mail in the table `mail_note`, once the handler has returned."""
        # No database takes a lone surrogate, as `email` has for octets that it cannot read.
        pair = [str(text).encode(errors="replace").decode() for text in (name, value)]
        self.notes.append((pair[0], pair[1]))

    def reply(self, text: str, subject: str | None = None) -> None:
        """Answer its sender, once the handler has returned, through `[handlers] smarthost`.

        Nothing is sent where RFC 3834 forbids it; see `gsmtpd.handlers.replying`.
        subject: None for "Auto: " and the mail's own. Raises ValueError for a second answer.
        """
        if self.answer is not None:
            raise ValueError("a mail is replied to once")
        self.answer = Answer(str(text), None if subject is None else str(subject))
