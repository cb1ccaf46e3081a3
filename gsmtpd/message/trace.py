"""Which header fields does the receiving host put in front? (RFC 5321 section 4.4)"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from gsmtpd.smtp.session import Envelope

_UNSAFE = re.compile(r"[^\x21-\x27\x2a-\x7e\u00a0-\ud7ff\ue000-\U0010ffff]")
_MAX_HELO = 255


def protocol(envelope: Envelope) -> str:
    """The transmission type of RFC 3848 and RFC 6531 section 4.3."""
    if envelope.smtputf8:
        return "UTF8SMTP"
    return "ESMTP" if envelope.esmtp else "SMTP"


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))


def received(
    envelope: Envelope, client_ip: str, host_name: str, message_id: str, received_at: float
) -> str:
    """The Received field, folded, with its CRLF. received_at: Unix time in seconds.

    "for" is said only where there is one recipient, so that no recipient sees another.
    """
    ip = f"IPv6:{client_ip}" if ":" in client_ip else client_ip
    helo = _UNSAFE.sub("?", envelope.helo[:_MAX_HELO])
    for_one = f"\r\n\tfor <{envelope.recipients[0]}>" if len(envelope.recipients) == 1 else ""
    return (
        f"Received: from {helo} (unknown [{ip}])\r\n"
        f"\tby {host_name} with {protocol(envelope)} id {message_id}{for_one};\r\n"
        f"\t{_date(int(received_at))}\r\n"
    )


def delivery_fields(recipient: str, reverse_path: str) -> str:
    """Delivered-To and Return-Path, with their CRLFs. reverse_path: "" for the null one."""
    return f"Delivered-To: {recipient}\r\nReturn-Path: <{reverse_path}>\r\n"
