"""What rows does a message become? One per recipient, each with every column of `new_mail`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from time import gmtime, strftime
from typing import NamedTuple

from gsmtpd.message.headers import cut, read_headers
from gsmtpd.message.trace import delivery_fields, received
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.session import Envelope


class Message(NamedTuple):
    """A message past its final dot.

    id: said in the 250, stored as `hash`. content: octets as sent, dots unstuffed.
    received_at: Unix time in seconds.
    """

    id: str
    envelope: Envelope
    content: bytes
    client_ip: str
    received_at: float
    is_tls: bool = False


class Row(NamedTuple):
    """One row of `new_mail`: texts, numbers, the mail; `COLUMNS` has the columns' names."""

    date: str  # UTC, "YYYY-MM-DD HH:MM:SS"
    from_: str
    to: str
    subject: str
    body: str
    charset: str
    hash: str
    content_type: str
    recipient: str
    ip_addr: str
    return_path: str
    helo: str
    message_id: str
    reply_to: str
    sender: str
    mail_encoding: str
    content_hash: str
    spam_score: float
    has_attach: int
    is_tls: int
    size: int
    mail: bytes


COLUMNS = tuple(name.rstrip("_") for name in Row._fields)
TEXTS = COLUMNS[: COLUMNS.index("spam_score")]
NUMBERS = COLUMNS[len(TEXTS) : -1]

# Characters that fit into each varchar column of our own schema; a longer value is cut.
WIDTHS = {
    "from": 255,
    "to": 255,
    "subject": 255,
    "charset": 32,
    "content_type": 255,
    "recipient": 255,
    "ip_addr": 64,
    "return_path": 255,
    "helo": 255,
    "message_id": 255,
    "reply_to": 255,
    "sender": 255,
}


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return strftime("%Y-%m-%d %H:%M:%S", gmtime(second))


class RowMaker:
    """Makes the rows of messages.

    host_name: of this server, said in Received. primary_domain: the domain that the column `to`
    gets in place of the recipient's, or None to leave it.
    """

    def __init__(self, host_name: str, primary_domain: str | None = None) -> None:
        self._host_name = host_name
        self._primary_domain = primary_domain

    def rows(self, message: Message) -> Iterator[Row]:
        """The rows of `message`, in the order of its recipients; never raises for its content."""
        envelope = message.envelope
        content = message.content
        headers = read_headers(content)
        reverse_path = str(envelope.sender) if envelope.sender is not None else ""
        trace = received(
            envelope, message.client_ip, self._host_name, message.id, message.received_at
        )
        front = (
            _date(int(message.received_at)),
            cut(headers.from_ or reverse_path, WIDTHS["from"]),
        )
        subject = cut(headers.subject, WIDTHS["subject"])
        charset = cut(headers.charset, WIDTHS["charset"])
        content_type = cut(headers.content_type, WIDTHS["content_type"])
        back = (
            message.client_ip,
            reverse_path,
            cut(_one_line(envelope.helo), WIDTHS["helo"]),
            cut(headers.message_id, WIDTHS["message_id"]),
            cut(headers.reply_to, WIDTHS["reply_to"]),
            cut(headers.sender, WIDTHS["sender"]),
            "",
            sha256(content).hexdigest(),
            0.0,
            0,
            int(message.is_tls),
            len(content),
        )
        for recipient in envelope.recipients:
            full = recipient if recipient.domain else Mailbox(recipient.local, self._host_name)
            address = str(full)
            to = f"{full.local}@{self._primary_domain}" if self._primary_domain else address
            mail = (delivery_fields(address, reverse_path) + trace).encode() + content
            # One positional tuple: named fields and _replace cost as much as all the rest.
            yield Row._make(
                (
                    *front,
                    cut(to, WIDTHS["to"]),
                    subject,
                    "",
                    charset,
                    message.id,
                    content_type,
                    address,
                    *back,
                    mail,
                )
            )


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
