"""Which mail do the tests give to handlers, and who takes their replies?"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from gsmtpd.handlers.handler import Handler
from gsmtpd.handlers.mail import Facts, Mail
from gsmtpd.message.trace import delivery_fields, received
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope as Ours
from tests.servers import free_port

ID = "1a20182813111e121a47e1b000000000"
DELIVERY = "0123456789abcdef0123456789abcdef"
RECEIVED_AT = 1_763_800_000.25
FACTS = Facts(
    ID, 7, DELIVERY, 1, "joe@example.org", "ball@example.com", "ball@example.com", "192.0.2.1",
    "client.example.org", False, RECEIVED_AT,
)  # fmt: skip
CONTENT = (
    b"From: Joe <joe@example.org>\r\nTo: ball@example.com\r\nSubject: Will it rain?\r\n"
    b"Message-ID: <1@example.org>\r\n\r\nSoon, I mean.\r\n"
)

# What strangers may write, or try to, where a shell, a path, a header or an argv might see it.
HOSTILE = (
    "; rm -rf ~ #",
    "$(touch /tmp/pwned)",
    "`touch /tmp/pwned`",
    "| & > /tmp/pwned < * ? ' \" \\",
    "a\nBcc: victim@example.net",
    "a\r\n\r\nnot the header",
    "a\0b",
    "-leading",
    "--dash=1",
    "../../etc/passwd",
    "/etc/passwd",
    "=?utf-8?q?a=0d=0aBcc:=20victim=40example.net?=",
    "\udcff\ud800",
    "%s %d {0} \x1b[31m",
    "x" * 300_000,
)


def front(facts: Facts) -> bytes:
    """gsmtpd's own fields in front of a mail."""
    local, _, domain = facts.recipient.rpartition("@")
    envelope = Ours(facts.helo, True, None, (Mailbox(local, domain),))
    said = received(envelope, facts.client_ip, "mx.example.com", facts.id, facts.received_at)
    return (delivery_fields(facts.recipient, facts.sender) + said).encode()


def mail_of(content: bytes = CONTENT, **facts: Any) -> Mail:
    """A mail as the store has it, of `content`, with these facts for those that are usual here."""
    known = FACTS._replace(**facts)
    return Mail(known, front(FACTS) + content)


def with_fields(*fields: str) -> bytes:
    """`CONTENT` with further fields on top."""
    return "".join(f"{field}\r\n" for field in fields).encode() + CONTENT


_H = TypeVar("_H", bound=Handler)


def prepared(made: type[_H], **settings: str) -> _H:
    """A handler as a runner makes it. Raises ValueError."""
    handler = made()
    handler.settings = {**made.defaults, **settings}
    handler.prepare()
    return handler


class Postbox:
    """What a smarthost has taken. refuse: by the command, what it says in place of "250"."""

    def __init__(self, refuse: Mapping[str, str]) -> None:
        self.refuse = dict(refuse)
        self.mails: list[Envelope] = []
        self.sessions: list[Session] = []
        self.where = ""

    async def handle_MAIL(  # noqa: N802
        self, _: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.sessions.append(session)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return self.refuse.get("MAIL", "250 OK")

    async def handle_RCPT(  # noqa: N802
        self, _: SMTP, __: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.rcpt_tos.append(address)
        return self.refuse.get("RCPT", "250 OK")

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802
        if "DATA" in self.refuse:
            return self.refuse["DATA"]
        self.mails.append(envelope)
        return "250 OK"


@contextmanager
def smarthost(
    *, smtputf8: bool = False, tls: ssl.SSLContext | None = None, **refuse: str
) -> Iterator[Postbox]:
    """A real SMTP server that takes all it is given, but for what it is to refuse."""
    box = Postbox(refuse)
    port = free_port()
    options = {"tls_context": tls} if tls else {}
    controller = Controller(
        box, hostname="127.0.0.1", port=port, enable_SMTPUTF8=smtputf8, **options
    )
    controller.start()
    box.where = f"127.0.0.1:{port}"
    try:
        yield box
    finally:
        controller.stop()
