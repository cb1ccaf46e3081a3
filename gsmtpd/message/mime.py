"""Which parts does a message have, and what are their octets? (RFC 2045, RFC 2046)

Nothing is copied while parts are looked for: a Part is a range of the message's octets. What is
hostile meets a limit, and what lies behind a limit is one part, not looked into.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, a2b_qp, a2b_uu
from typing import NamedTuple

from gsmtpd.message.parameters import find_parameters, match_type, parameter
from gsmtpd.message.words import MAX_VALUE, unfold

MAX_PARTS = 1000
MAX_DEPTH = 16  # multiparts in each other; senders have up to five
MAX_LINE = 1000  # octets; what is longer, and no field, is text (RFC 5322 section 2.1.1 has 998)
MAX_HEADER = 65536  # octets of one part's header
# Two bounds on the search for delimiters: lines that begin like one and are none, and octets looked
# at, which deeply nested parts would have looked at again and again.
MAX_LOOKALIKES = 20_000
MAX_SEARCHED = 3  # times the message: four multiparts as large as it may be in each other
MAX_HEADERS = 262_144  # octets of all parts' headers: what stands in them is what costs time
MAX_UUENCODED = 100_000  # lines, of 45 octets each
_MAX_DELIMITER = 256  # octets behind the boundary; more than white space is none

MESSAGES = ("message/rfc822", "message/global")

# As in headers.py time is linear: each repetition can go on in one way only.
_match_fields = re.compile(
    rb"(?:>?From (?![ \t]*+:)[^\n]*+\n)?"
    rb"(?:[!-9;-~]++[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*(?:\n|\Z))*"
).match
_CONTENT_FIELD = (
    rb"[Cc](?i:ontent-(type|transfer-encoding|disposition))[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*)"
)
_find_content_fields = re.compile(rb"\n" + _CONTENT_FIELD).findall
_match_content_field = re.compile(_CONTENT_FIELD).match
_match_encoding = re.compile(r"(?:[ \t]*+\([^()]*+\))*[ \t]*+\"?([A-Za-z0-9-]++)").match
# Of a gateway that pads lines: a2b_qp knows soft line breaks without white space only.
_SOFT_BREAK = re.compile(rb"=[ \t]++\r?\n")


class Part(NamedTuple):
    """A part that has no parts, or that is not looked into; [start:end] are its encoded octets."""

    kind: str
    """Type and subtype, in lower case."""
    parameters: dict[str, str]
    """Those of Content-Type, as sent."""
    disposition: str
    """The field body of Content-Disposition, unfolded; octets as U+0000 to U+00FF."""
    encoding: str
    """The transfer encoding, in lower case; "" where none is said."""
    start: int
    end: int
    in_multipart: bool


class _Search:
    """The parts of one message. What has been spent counts against the limits."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._lookalikes = 0
        self._searched = 0
        self._headers = 0
        self.found: list[Part] = []

    def run(self) -> None:
        # Depth and default type of each range that is still to be read; the next one last.
        waiting = [(0, len(self._content), 0, "text/plain")]
        searched = MAX_SEARCHED * max(len(self._content), 65536)
        looked_at = 0  # multiparts, too: they may be empty
        while waiting and looked_at < MAX_PARTS and self._headers <= MAX_HEADERS:
            start, end, depth, default = waiting.pop()
            part = self._part(start, end, default, depth > 0)
            looked_at += 1
            too_much = depth == MAX_DEPTH or self._searched > searched
            if too_much or not part.kind.startswith("multipart/"):
                self.found.append(part)
                continue
            ranges = self._split(part)
            if ranges is None:  # never delimited: there is only its text
                self.found.append(part._replace(kind="text/plain", encoding=""))
                continue
            inner = MESSAGES[0] if part.kind == "multipart/digest" else "text/plain"
            waiting += [(first, last, depth + 1, inner) for first, last in reversed(ranges)]

    def _part(self, start: int, end: int, default: str, in_multipart: bool) -> Part:
        """The part at [start:end], whose header comes first."""
        fields_end, body = _header_end(self._content, start, end)
        self._headers += fields_end - start if in_multipart else 0
        kind, parameters, encoding, disposition = default, {}, "", ""
        if fields_end > start:
            fields = _content_fields(self._content, start, fields_end)
            if b"type" in fields:
                text = _field(fields[b"type"])
                match = match_type(text)
                kind = match[1].lower() if match else "text/plain"
                parameters = find_parameters(text) if ";" in text else {}
            if b"transfer-encoding" in fields:
                match = _match_encoding(_field(fields[b"transfer-encoding"]))
                encoding = match[1].lower() if match else ""
            if b"disposition" in fields:
                disposition = _field(fields[b"disposition"])
        return Part(kind, parameters, disposition, encoding, body, end, in_multipart)

    def _split(self, part: Part) -> list[tuple[int, int]] | None:
        """Where the parts of a multipart are (RFC 2046 section 5.1.1); None without delimiters."""
        if "boundary" not in part.parameters and "boundary*0" not in part.parameters:
            return None
        boundary = parameter(part.parameters, "boundary").rstrip().encode("latin-1")
        content, end = self._content, part.end
        self._searched += end - part.start
        delimiter = b"\n--" + boundary
        ranges: list[tuple[int, int]] = []
        begin = -1  # of the part that the next delimiter ends
        # A multipart has a header, so there is a line end in front of its first octet.
        at = content.find(delimiter, part.start - 1, end)
        while at >= 0 and len(ranges) < MAX_PARTS:
            behind = at + len(delimiter)
            line_end = content.find(b"\n", behind, end)
            rest = content[behind : line_end if line_end >= 0 else end]
            kind = rest.rstrip(b" \t\r") if len(rest) <= _MAX_DELIMITER else rest
            if kind not in (b"", b"--"):
                self._lookalikes += 1
                if self._lookalikes > MAX_LOOKALIKES:
                    break
                at = content.find(delimiter, at + 1, end)
                continue
            if begin >= 0:
                stop = at - 1 if content[at - 1 : at] == b"\r" else at
                ranges.append((begin, max(begin, stop)))
            if kind and begin < 0 and content[part.start : at].strip():
                return None  # its first delimiter is lost, and all it has stands in front
            begin = line_end + 1 if line_end >= 0 else end
            if kind:
                return ranges
            at = content.find(delimiter, begin - 1, end) if line_end >= 0 else -1
        if begin >= 0 and len(ranges) < MAX_PARTS:
            ranges.append((begin, end))
        return ranges if begin >= 0 else None


def read_parts(content: bytes) -> list[Part]:
    """The parts of the message `content` that have no parts themselves, in their order.

    There is at least one, unless a multipart has none. message/rfc822 is not looked into. Never
    raises.
    """
    search = _Search(content)
    search.run()
    return search.found


def _header_end(content: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the header fields of a part end, and where its body begins.

    The header ends at an empty line, or at a line that is no field.
    """
    limit = min(end, start + MAX_HEADER)
    match = _match_fields(content, start, limit)
    assert match is not None
    at = match.end()
    if limit < end and limit - at < MAX_LINE and content.find(b"\n", at, limit) < 0:
        blank = content.find(b"\r\n\r\n", at - 3, end)  # it goes on: nobody reads all that
        return at, blank + 4 if blank >= 0 else end
    if content.startswith(b"\r\n", at, end):
        return at, at + 2
    return at, at + 1 if content.startswith(b"\n", at, end) else at


def _content_fields(content: bytes, start: int, end: int) -> dict[bytes, bytes]:
    """The bodies of the Content-… fields in a header; the first of each counts."""
    found: dict[bytes, bytes] = {}
    first = _match_content_field(content, start, end)
    if first is not None:
        found[first[1].lower()] = first[2]
    for name, body in _find_content_fields(content, start, end):
        found.setdefault(name.lower(), body)
    return found


def _field(body: bytes) -> str:
    return unfold(str(body, "latin-1"), MAX_VALUE)


# ---- transfer encodings ------------------------------------------------------------------------

_match_uu_begin = re.compile(rb"begin [0-7]++ [^\n]*+(?:\n|\Z)").match
_MAX_BEGINS = 1000  # that are none
_UUENCODED = ("x-uuencode", "uuencode", "x-uue", "uue")
_LONGEST = 4  # encoded octets for one, at most: "=3D", and soft line ends between


def payload(content: bytes, part: Part, limit: int | None = None) -> bytes:
    """The octets of `part` with its transfer encoding undone; `limit`: about so many at most.

    What is wrong in the encoding is stepped over, as far as the standard library does.
    """
    end = part.end
    if limit is not None:
        encoded = part.encoding in ("quoted-printable", "base64", *_UUENCODED)
        end = min(end, part.start + limit * (_LONGEST if encoded else 1))
    octets = content[part.start : end]
    if part.encoding == "quoted-printable":
        padded = b"= " in octets or b"=\t" in octets
        octets = a2b_qp(_SOFT_BREAK.sub(b"", octets) if padded else octets)
    elif part.encoding == "base64":
        octets = _base64(octets)
    elif part.encoding in _UUENCODED:
        octets = _uudecoded(octets)
    return octets if limit is None else octets[:limit]


def _base64(octets: bytes) -> bytes:
    try:
        return a2b_base64(octets + b"==")  # more padding than needed does no harm
    except Base64Error:  # one digit more than full groups, which says nothing
        return a2b_base64(octets + b"A==")[:-1]


def _uudecoded(octets: bytes) -> bytes:
    """`octets` as they stand where nothing is uuencoded in them."""
    begin = _uu_begin(octets)
    if begin is None:
        return octets
    found: list[bytes] = []
    # Without a bound 10 MB of short lines would take seconds, and become 300 MB.
    for line in octets[begin.end() :].split(b"\n", MAX_UUENCODED)[:MAX_UUENCODED]:
        line = line.rstrip(b"\r")
        if line == b"end":
            break
        if line:  # a2b_uu() makes 32 octets of an empty one
            found.append(_uudecoded_line(line))
    return b"".join(found)


def _uu_begin(octets: bytes) -> re.Match[bytes] | None:
    """The first line of what is uuencoded."""
    at = 0 if octets.startswith(b"begin ") else octets.find(b"\nbegin ") + 1
    for _ in range(_MAX_BEGINS):
        begin = _match_uu_begin(octets, at)
        following = octets.find(b"\nbegin ", at)
        if begin is not None or following < 0:
            return begin
        at = following + 1
    return None


def _uudecoded_line(line: bytes) -> bytes:
    try:
        return a2b_uu(line)
    except Base64Error:  # of encoders that count their last line wrongly
        try:
            return a2b_uu(line[: (((line[0] - 32) & 63) * 4 + 5) // 3])
        except Base64Error:
            return b""
