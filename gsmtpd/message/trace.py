"""Which header fields does the receiving host put in front, and what do they say? (RFC 5321 4.4)"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import NamedTuple

from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.envelope import Envelope

_UNSAFE = re.compile(r"[\x00-\x20()\x7f-\x9f\ud800-\udfff]")
_MAX_NAME = 255
_NAMELESS = "unknown"  # a client whose host has no name by reverse DNS, or nobody has asked


def protocol(envelope: Envelope) -> str:
    """The transmission type of RFC 3848 and RFC 6531 section 4.3."""
    secured = "S" if envelope.tls else ""
    if envelope.lmtp:
        return f"UTF8LMTP{secured}" if envelope.smtputf8 else f"LMTP{secured}"
    if envelope.smtputf8:
        return f"UTF8SMTP{secured}"
    # There is no name for HELO with TLS.
    return f"ESMTP{secured}" if envelope.esmtp else "SMTP"


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
    helo = _UNSAFE.sub("?", envelope.helo[:_MAX_NAME])
    name = _UNSAFE.sub("?", envelope.client_name[:_MAX_NAME]) or _NAMELESS
    secured = f" ({envelope.tls})" if envelope.tls else ""
    for_one = f"\r\n\tfor <{envelope.recipients[0]}>" if len(envelope.recipients) == 1 else ""
    return (
        f"Received: from {helo} ({name} [{ip}])\r\n"
        f"\tby {host_name} with {protocol(envelope)}{secured} id {message_id}{for_one};\r\n"
        f"\t{_date(int(received_at))}\r\n"
    )


def delivery_fields(recipient: str, reverse_path: str) -> str:
    """Delivered-To and Return-Path, with their CRLFs. reverse_path: "" for the null one."""
    return f"Delivered-To: {recipient}\r\n{return_path_field(reverse_path)}"


def return_path_field(reverse_path: str) -> str:
    """Return-Path, with its CRLF. reverse_path: "" for the null one."""
    return f"Return-Path: <{reverse_path}>\r\n"


# ---- reading them again ------------------------------------------------------------------------

_MAX_FRONT = 8192  # octets; two paths, HELO and host name are below 2,000 together
_TEXT = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_WORD = r"[^\x00-\x20()\x7f-\x9f\ud800-\udfff]"
_match_front = re.compile(
    rf"Delivered-To: (?P<recipient>{_TEXT}+)\r\n"
    rf"Return-Path: <(?P<sender>{_TEXT}*)>\r\n"
    rf"Received: from (?P<helo>{_WORD}*) \((?P<name>{_WORD}+)"
    r" \[(?P<ip>[0-9A-Za-z:.%]*)\]\)\r\n"
    rf"\tby (?P<host>{_WORD}+) with (?P<protocol>SMTP|(?:E|UTF8)SMTPS?|(?:UTF8)?LMTPS?)"
    r"(?: \((?P<tls>[0-9A-Za-z.:_-]+)\))? id (?P<id>[0-9a-f]{32})"
    rf"(?:\r\n\tfor <(?P<for>{_TEXT}+)>)?;\r\n"
    r"\t[A-Z][a-z]{2}, (?P<day>[0-9]{2}) (?P<month>[A-Z][a-z]{2}) (?P<year>[0-9]{4})"
    r" (?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2}) \+0000\r\n"
).match
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Front(NamedTuple):
    """What our fields in front of a message say.

    envelope: with the one recipient of this copy; helo is as Received has it, "?" for what was
    unsafe. alone: whether that was the message's only recipient. received_at: Unix time in whole
    seconds. size: octets of the fields, so where the message begins.
    """

    envelope: Envelope
    client_ip: str
    host_name: str
    id: str
    received_at: int
    alone: bool
    size: int


def parse_front(octets: bytes) -> Front | None:
    """What the fields say that `delivery_fields` and `received` have put in front of a message.

    None where the first octets are not exactly such fields, to the last one.
    """
    text = octets[:_MAX_FRONT].decode("utf-8", "surrogateescape")
    match = _match_front(text)
    found = _front(match) if match is not None else None
    # Whatever was understood must be written as it was read.
    if found is None or not octets.startswith(_written(found).encode()):
        return None
    return found


def _front(match: re.Match[str]) -> Front | None:
    said = match.groupdict()
    try:
        month = _MONTHS.index(said["month"]) + 1
        date = f"{said['year']}-{month:02}-{said['day']}T{said['time']}+00:00"
        moment = datetime.fromisoformat(date)
    except ValueError:
        return None
    recipient = _mailbox(said["recipient"])
    if said["for"] == str(POSTMASTER):
        recipient = POSTMASTER  # the row has our own domain behind it
    envelope = Envelope(
        said["helo"],
        said["protocol"] != "SMTP",
        _mailbox(said["sender"]) if said["sender"] else None,
        (recipient,),
        said["protocol"].startswith("UTF8"),
        lmtp="LMTP" in said["protocol"],
        tls=said["tls"] or "",
        client_name="" if said["name"] == _NAMELESS else said["name"],
    )
    return Front(
        envelope,
        said["ip"].removeprefix("IPv6:"),
        said["host"],
        said["id"],
        int(moment.timestamp()),
        said["for"] is not None,
        len(match[0].encode("utf-8", "surrogateescape")),
    )


def _mailbox(text: str) -> Mailbox:
    local, at, domain = text.rpartition("@")
    return Mailbox(local, domain) if at else Mailbox(text, "")


def _written(front: Front) -> str:
    """The fields that say `front`."""
    envelope = front.envelope
    recipient, sender = envelope.recipients[0], envelope.sender
    address = str(recipient) if recipient.domain else f"{recipient}@{front.host_name}"
    if not front.alone:
        envelope = envelope._replace(recipients=(recipient, recipient))
    return delivery_fields(address, "" if sender is None else str(sender)) + received(
        envelope, front.client_ip, front.host_name, front.id, front.received_at
    )
