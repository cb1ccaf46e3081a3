"""What does a message say, and what comes with it? Its text in Unicode, and its attachments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from gsmtpd.message.charsets import decode
from gsmtpd.message.headers import cut
from gsmtpd.message.html import to_text
from gsmtpd.message.mime import MESSAGES, Part, payload, read_parts
from gsmtpd.message.parameters import charset_of, file_name, find_parameters
from gsmtpd.message.words import one_line

MAX_TEXT = 262_144  # octets of a text part that are read
MAX_NAME = 255  # characters of a file name or a type
_MAX_TEXTS = 16  # that are decoded, for one that is not blank
_MAX_INNER = 4 * MAX_TEXT  # octets of those
_MAX_NESTED = 4  # messages, each in the one before, that are looked into: the first with text

# <meta charset=…> and its older form, where the part itself says nothing.
_find_meta = re.compile(
    rb"<meta\s[^>]{0,200}?charset\s*=\s*[\"']?([A-Za-z0-9._-]{1,40})", re.IGNORECASE
).search


class Attachment(NamedTuple):
    """What is known of an attachment. size: octets, decoded; sha256: of those, hexadecimal."""

    filename: str
    content_type: str
    size: int
    sha256: str


class Body(NamedTuple):
    """The text of a message, the charset it was in (both "" for none), and its attachments."""

    text: str
    charset: str
    attachments: Sequence[Attachment]


NOTHING = Body("", "", ())


def read_body(content: bytes) -> Body:
    """Read the message `content`; never raises. At most `MAX_TEXT` octets of text are read.

    The text is the first text/plain that is no attachment, else the first text/html made readable,
    else another text; without any, that of a message within. Attached is all that is no text to be
    shown. charset is as declared, or "unknown-8bit" (RFC 1428) where that was not true.
    """
    texts, attached = _sorted_out(content)
    text, charset = _text(content, texts, attached)
    return Body(text, charset if text else "", [_attachment(content, part) for part in attached])


def attachment(content: bytes, number: int) -> bytes:
    """The octets of the attachment `number` (1, 2, …) of the message. Raises IndexError."""
    if number < 1:
        raise IndexError(number)
    return payload(content, _sorted_out(content)[1][number - 1])


def _sorted_out(content: bytes) -> tuple[list[Part], list[Part]]:
    """The parts to be shown as text, and those that are attachments."""
    texts: list[Part] = []
    attached: list[Part] = []
    for part in read_parts(content):
        (texts if _is_text(part) else attached).append(part)
    return texts, attached


def _is_text(part: Part) -> bool:
    if not part.kind.startswith("text/"):
        return False
    if not part.in_multipart:
        return True  # the whole message
    if part.disposition[:10].lower() == "attachment":
        return False
    return not _name(part)


def _name(part: Part) -> str:
    name = ""
    if "=" in part.disposition:
        # Some leave out "attachment" in front.
        name = file_name(find_parameters(";" + part.disposition), "filename")
    return name or (file_name(part.parameters, "name") if part.parameters else "")


def _attachment(content: bytes, part: Part) -> Attachment:
    octets = payload(content, part)
    name, kind = cut(_name(part), MAX_NAME), cut(part.kind, MAX_NAME)
    return Attachment(name, kind, len(octets), sha256(octets).hexdigest())


# ---- the text ----------------------------------------------------------------------------------


def _text(content: bytes, texts: list[Part], attached: list[Part]) -> tuple[str, str]:
    content, texts = _with_texts(content, texts, attached, _MAX_INNER)
    return _best(content, texts) if texts else ("", "")


def _with_texts(
    content: bytes, texts: list[Part], attached: list[Part], limit: int
) -> tuple[bytes, list[Part]]:
    """The texts of the message, or of one within it where it has none, and its octets."""
    for _ in range(_MAX_NESTED - 1):
        inner = next((part for part in attached if part.kind in MESSAGES), None)
        if texts or inner is None:
            break
        content = payload(content, inner, limit)
        texts, attached = _sorted_out(content)
    return content, texts


def _best(content: bytes, texts: list[Part]) -> tuple[str, str]:
    """The text of the one of `texts` that a person would read."""
    blank = ("", "")
    # sorted() keeps the order of the message among those of one kind.
    for part in sorted(texts, key=_rank)[:_MAX_TEXTS]:
        found = _decoded(content, part)
        if found[0] and not found[0].isspace():
            return found
        blank = blank if blank[1] else found
    return blank


def _rank(part: Part) -> int:
    return {"text/plain": 0, "text/html": 1}.get(part.kind, 2)


def _decoded(content: bytes, part: Part) -> tuple[str, str]:
    text, charset = _characters(content, part, MAX_TEXT)
    return (to_text(text) if part.kind == "text/html" else text), charset


def _characters(content: bytes, part: Part, limit: int) -> tuple[str, str]:
    octets = payload(content, part, limit)
    charset = one_line(charset_of(part.parameters)) if part.parameters else ""
    is_vague = part.kind == "text/html" and not charset and not octets.isascii()
    if is_vague and (meta := _find_meta(octets, 0, 2048)):
        charset = meta[1].decode().lower()
    return decode(octets, charset, cut=len(octets) == limit)


# ---- HTML as it was sent -----------------------------------------------------------------------


class Html(NamedTuple):
    """HTML as it was sent, in Unicode, and the octets of the message that it stands in."""

    text: str
    content: bytes


def has_html(content: bytes) -> bool:
    """Whether `html_of` finds any."""
    return _html_part(content)[1] is not None


def html_of(content: bytes, limit: int) -> Html | None:
    """The first text/html of the message that is no attachment, None without; never raises.

    About `limit` octets of it are read at most.
    """
    content, part = _html_part(content)
    return Html(_characters(content, part, limit)[0], content) if part is not None else None


def _html_part(content: bytes) -> tuple[bytes, Part | None]:
    content, texts = _with_texts(content, *_sorted_out(content), len(content))
    return content, next((part for part in texts if part.kind == "text/html"), None)
