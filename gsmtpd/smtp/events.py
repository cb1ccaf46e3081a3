"""What does a session ask of its driver? Each event is answered before anything else goes on."""

from __future__ import annotations

from typing import NamedTuple

from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.xclient import ClientNamed


class RecipientAsked(NamedTuple):
    """RCPT named `recipient`: answer with a positive reply to take it, with another to refuse.

    Who takes it may name the mailboxes its mail goes into, see `Session.answer`.
    """

    recipient: Mailbox


class MessageReceived(NamedTuple):
    """The final dot came: answer with what became of the message. content: octets as sent."""

    envelope: Envelope
    content: bytes


class TLSAsked(NamedTuple):
    """STARTTLS was said, and answered with 220: call `Session.secured` when TLS is active."""


class Paused(NamedTuple):
    """More was said than is carried out at once: let others have their turn, then `resume`."""


Event = RecipientAsked | MessageReceived | TLSAsked | ClientNamed | Paused
