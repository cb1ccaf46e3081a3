"""How is what is known of a message written beside its octets, and read again by a later version?

As JSON with a version number. A member that is missing has its default, so that what an older
version has written can be read.
"""

from __future__ import annotations

import json
from typing import Any

from gsmtpd.message.row import Message
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope, Mailboxes

VERSION = 1  # of what cannot be read by who does not know it


class UnknownFactsError(Exception):
    """They were written by another program, or by a newer version; the text says so."""


def facts_of(message: Message) -> str:
    """What is known of `message` beside its id, time and octets; ASCII, whatever was said."""
    envelope = message.envelope._asdict()
    return json.dumps({"version": VERSION, "client_ip": message.client_ip, **envelope})


def message_of(number: str, received_at: float, facts: str, content: bytes) -> Message:
    """The message that `facts_of` was called with. Raises UnknownFactsError."""
    try:
        known: dict[str, Any] = json.loads(facts)
        version = known.pop("version")
        if version != VERSION:
            raise UnknownFactsError(f"version {version} is unknown to this gsmtpd")
        client_ip = str(known.pop("client_ip"))
        if known["sender"] is not None:
            known["sender"] = Mailbox(*known["sender"])
        for name in ("recipients", "discarded"):
            known[name] = _mailboxes(known.get(name, ()))
        known["mailboxes"] = tuple(map(_mailboxes, known.get("mailboxes", ())))
        return Message(number, Envelope(**known), content, client_ip, received_at)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnknownFactsError(f"they cannot be read: {error!r}") from error


def _mailboxes(pairs: Any) -> Mailboxes:
    return tuple(Mailbox(*pair) for pair in pairs)
