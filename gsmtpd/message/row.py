"""What rows does a message become? One per recipient, each with every column of `new_mail`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from time import gmtime, strftime
from typing import NamedTuple

from gsmtpd.message.body import NOTHING, Body, read_body
from gsmtpd.message.charsets import UNKNOWN
from gsmtpd.message.headers import Headers, cut, read_headers, score_reader
from gsmtpd.message.packing import Packed
from gsmtpd.message.trace import delivery_fields, received, return_path_field
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope


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

    @property
    def is_tls(self) -> bool:
        """Whether its client has sent it by TLS."""
        return bool(self.envelope.tls)


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


class Delivery(NamedTuple):
    """A row that a handler is to act on, once it is stored.

    handler: its name. recipient, to: the columns of the row, which with `hash` say which it is.
    """

    handler: str
    recipient: str
    to: str


Match = Callable[[Mailbox, Mailbox], Iterable[str]]
"""The names of the handlers for a recipient and the mailbox that its mail goes into."""

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


def date_of(seconds: float) -> str:
    """Unix time in seconds as the column `date` has it."""
    return _date(int(seconds))


class Decode(Enum):
    """What is read out of messages."""

    BODY = "body"  # the header, the text, and what is attached
    HEADERS = "headers"
    OFF = "off"


class Reading(NamedTuple):
    """What a message's rows share, however many there are; `RowMaker.read` makes it."""

    headers: Headers
    body: Body
    spam_score: float
    content_hash: str
    packed: Packed | None  # where mail is compressed


_NO_HEADERS = Headers("", "", "", "", "", "", "", 0)
ZLIB = "zlib"
FASTEST = 1  # of zlib's levels
MARKERS = {ZLIB: "gzencode"}  # what Guerrilla SMTPd 2 wrote into `body`; else the encoding itself


class RowMaker:
    """Makes the rows of messages.

    host_name: of this server, said in Received. primary_domain: the domain that the column `to`
    gets in place of the recipient's, or None to leave it. compress: zlib's level, 1 to 9, or None.
    spam_score_header: the field that holds a score, or "". handlers: which act on a row; None where
    there are none.
    """

    def __init__(
        self,
        host_name: str,
        primary_domain: str | None = None,
        decode: Decode = Decode.BODY,
        compress: int | None = None,
        spam_score_header: str = "",
        handlers: Match | None = None,
    ) -> None:
        self._host_name = host_name
        self._primary_domain = primary_domain
        self._decode = decode
        self._compress = compress
        self._score = score_reader(spam_score_header) if spam_score_header else None
        self._handlers = handlers

    def read(self, message: Message) -> Reading:
        """Read and compress `message`, once for all its rows; never raises for its content."""
        content = message.content
        return Reading(
            _NO_HEADERS if self._decode is Decode.OFF else read_headers(content),
            _read_body(content) if self._decode is Decode.BODY else NOTHING,
            self._score(content) if self._score else 0.0,
            sha256(content).hexdigest(),
            Packed(content, self._compress) if self._compress else None,
        )

    def rows(
        self, message: Message, reading: Reading | None = None, held: str = ""
    ) -> Iterator[Row]:
        """The rows of `message`, in the order of its recipients and of their mailboxes.

        reading: what `read` has made of it. held: the name of the body store that has its octets;
        then its rows have none.
        """
        if reading is None:
            reading = self.read(message)
        envelope = message.envelope
        content = message.content
        headers, body, packed = reading.headers, reading.body, reading.packed
        reverse_path = _reverse_path(envelope)
        trace = self._trace(message)
        encoding = held or (ZLIB if packed else "")
        is_read = self._decode is Decode.BODY
        front = (
            date_of(message.received_at),
            cut(headers.from_ or reverse_path, WIDTHS["from"]),
        )
        subject = cut(headers.subject, WIDTHS["subject"])
        text = body.text if is_read else MARKERS.get(encoding, encoding)
        charset = cut(body.charset if is_read else headers.charset, WIDTHS["charset"])
        content_type = cut(headers.content_type, WIDTHS["content_type"])
        back = (
            message.client_ip,
            reverse_path,
            cut(_one_line(envelope.helo), WIDTHS["helo"]),
            cut(headers.message_id, WIDTHS["message_id"]),
            cut(headers.reply_to, WIDTHS["reply_to"]),
            cut(headers.sender, WIDTHS["sender"]),
            encoding,
            reading.content_hash,
            reading.spam_score,
            len(body.attachments),
            int(message.is_tls),
            len(content),
        )
        for recipient, mailbox in _copies(envelope):
            address, to = self._addresses(recipient, mailbox)
            if held:
                mail = b""
            else:
                added = (delivery_fields(address, reverse_path) + trace).encode()
                mail = packed.behind(added) if packed else added + content
            # One positional tuple: named fields and _replace cost as much as all the rest.
            yield Row._make(
                (
                    *front,
                    to,
                    subject,
                    text,
                    charset,
                    message.id,
                    content_type,
                    address,
                    *back,
                    mail,
                )
            )

    def shared(self, message: Message, reading: Reading) -> bytes:
        """What a body store holds for all recipients: `mail` without Delivered-To, compressed."""
        packed = reading.packed or Packed(message.content, FASTEST)
        front = return_path_field(_reverse_path(message.envelope)) + self._trace(message)
        return packed.behind(front.encode())

    @property
    def marks_encoding(self) -> bool:
        """Whether the column `body` tells how `mail` is to be read."""
        return self._decode is not Decode.BODY

    @property
    def has_handlers(self) -> bool:
        """Whether `deliveries` may find something."""
        return self._handlers is not None

    def deliveries(self, message: Message) -> tuple[Delivery, ...]:
        """What handlers are to act on of `message`, each row once."""
        match = self._handlers
        if match is None:
            return ()
        return tuple(
            dict.fromkeys(
                Delivery(name, *self._addresses(recipient, mailbox))
                for recipient, mailbox in _copies(message.envelope)
                for name in match(self._full(recipient), self._full(mailbox))
            )
        )

    def _addresses(self, recipient: Mailbox, mailbox: Mailbox) -> tuple[str, str]:
        """The columns `recipient` and `to`."""
        full = self._full(mailbox)
        to = str(full)
        address = to if mailbox is recipient else str(self._full(recipient))
        if self._primary_domain:
            to = f"{full.local}@{self._primary_domain}"
        return address, cut(to, WIDTHS["to"])

    def recipients(self, message: Message) -> list[str]:
        """The column `recipient` of its rows."""
        return [str(self._full(recipient)) for recipient in message.envelope.recipients]

    def _full(self, recipient: Mailbox) -> Mailbox:
        return recipient if recipient.domain else Mailbox(recipient.local, self._host_name)

    def _trace(self, message: Message) -> str:
        return received(
            message.envelope, message.client_ip, self._host_name, message.id, message.received_at
        )


def _copies(envelope: Envelope) -> Iterable[tuple[Mailbox, Mailbox]]:
    """Each recipient with each mailbox that its mail goes into."""
    if not envelope.mailboxes:
        return zip(envelope.recipients, envelope.recipients, strict=True)
    return [
        (recipient, mailbox)
        for recipient, mailboxes in zip(envelope.recipients, envelope.mailboxes, strict=True)
        for mailbox in mailboxes
    ]


def _read_body(content: bytes) -> Body:
    try:
        return read_body(content)
    except Exception:  # a fault of ours, or of lxml: that costs the text, and never the mail
        return Body("", UNKNOWN, ())


def _reverse_path(envelope: Envelope) -> str:
    return str(envelope.sender) if envelope.sender is not None else ""


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
