"""How does a stored mail look in JSON?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from gsmtpd.message.body import Attachment, has_html, read_body
from gsmtpd.message.headers import all_fields, read_fields
from gsmtpd.message.names import name_of
from gsmtpd.message.trace import parse_front
from gsmtpd.storage.reader import StoredAttachment, StoredMail

_DATE = re.compile(r"(\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2})", re.ASCII)
_find_end = re.compile(rb"\n\r?\n").search


def facts_of(mail: StoredMail) -> dict[str, Any]:
    """What lists say of it."""
    return {
        "id": mail.mail_id,
        "hash": mail.hash,
        "date": _date(mail.date),
        "from": mail.from_,
        "to": mail.to,
        "recipient": mail.recipient,
        "return_path": mail.return_path,
        "subject": mail.subject,
        "size": mail.size,
        "ip_addr": mail.ip_addr,
        "helo": mail.helo,
        "tls": bool(mail.is_tls),
        "has_attach": int(getattr(mail, "has_attach", 0) or 0),
    }


def named(mails: Sequence[StoredMail], heads: Mapping[int, bytes]) -> list[dict[str, Any]]:
    """The same of each, and the name in its From as far as its head says it."""
    return [
        facts_of(mail) | {"from_name": _name(mail, heads.get(mail.mail_id, b""))} for mail in mails
    ]


def _name(mail: StoredMail, octets: bytes) -> str:
    fields = read_fields(octets, "From")
    return name_of(fields[0], mail.from_) if fields else ""


def _date(text: str) -> str:
    """As RFC 3339 has it; an old table may have none."""
    match = _DATE.match(text)
    return f"{match[1]}T{match[2]}Z" if match else text


def whole(mail: StoredMail, octets: bytes) -> dict[str, Any]:
    """All that is shown of a mail whose octets are there."""
    content = content_of(octets)
    body = read_body(content)
    return facts_of(mail) | {
        "from_name": _name(mail, octets),
        "text": body.text,
        "headers": [[name, value] for name, value in all_fields(octets)],
        "attachments": _attachments(body.attachments),
        "has_html": has_html(content),
        "unreadable": None,
    }


def without_octets(
    mail: StoredMail, text: str, attachments: Sequence[StoredAttachment], why: str
) -> dict[str, Any]:
    """What the database itself has of a mail. why: its octets cannot be had."""
    return facts_of(mail) | {
        "from_name": "",
        "text": text,
        "headers": [],
        "attachments": _attachments(attachments),
        "has_html": False,
        "unreadable": why,
    }


def _attachments(found: Sequence[Attachment | StoredAttachment]) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "filename": each.filename,
            "content_type": each.content_type,
            "size": each.size,
        }
        for number, each in enumerate(found, 1)
    ]


def content_of(octets: bytes) -> bytes:
    """The message as its sender has sent it, without our fields in front."""
    front = parse_front(octets)
    return octets[front.size :] if front is not None else octets


def header_of(octets: bytes) -> bytes:
    """The header section, without the empty line that ends it."""
    if octets.startswith((b"\r\n", b"\n")):
        return b""
    end = _find_end(octets)
    return octets[: end.start() + 1] if end else octets


def to_be_saved(name: str) -> str:
    """A Content-Disposition for a file called `name` by who has sent it (RFC 6266, RFC 8187).

    The name leads out of no directory and hides nothing.
    """
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(c if c.isprintable() else "_" for c in name).strip(" .")[:150] or "attachment"
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-") else "_" for c in name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
