"""What do the header fields of a message say? Any bytes in, clean Unicode out (RFC 5322, 2047)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from gsmtpd.message.parameters import charset_of, find_parameters, match_type
from gsmtpd.message.words import (
    CONTROL,
    WORD,
    WSP,
    decode_words,
    guess,
    one_line,
    unfold,
    unstructured,
)

MAX_HEADER = 65536  # octets of a message that are looked at
MAX_FIELDS = 1000  # header fields that are looked at
MAX_ADDRESSES = 1024  # the same, of a field that holds addresses
DEFAULT_TYPE = "text/plain"  # RFC 2045 section 5.2


class Headers(NamedTuple):
    """What `new_mail` keeps of a header section; every str is one line that UTF-8 can encode.

    No str holds a control character, a line end or a lone surrogate, and none is None: an absent
    or unreadable field is "". Where a field occurs twice, the first counts.
    """

    from_: str
    """The first address of From, without name and brackets ("joe@example.com")."""
    subject: str
    """Unfolded, encoded words decoded (RFC 2047)."""
    message_id: str
    """As sent, with its angle brackets."""
    reply_to: str
    """The first address of Reply-To."""
    sender: str
    """The address of Sender."""
    content_type: str
    """Lower-case type and subtype, then the parameters as sent; `DEFAULT_TYPE` where unreadable."""
    charset: str
    """The charset parameter of Content-Type in lower case, without quotes."""
    received: int
    """How many Received fields there are: the hops (RFC 5321 section 6.3)."""


# ---- fields ------------------------------------------------------------------------------------

# Field bodies go on in lines that begin with SP or TAB (RFC 5322 section 2.2.3). In all patterns
# here a repetition is possessive or can go on in one way only: so time is linear in what was sent.
# Groups are repeated possessively only here, where it saves 0.5 us: before Python 3.11.5 (Debian 12
# has 3.11.2) such a group loses its place where it fails behind a repetition inside it.
_BODY = r".*+(?:\n[ \t].*+)*+"
_COLON = r"[ \t]*+:"  # space before it: RFC 5322 section 4.5.8
_MBOX_LINE = rf"(?<=\A\n)>?From (?!{_COLON}).*+"
_WANTED = (
    r"(?:[Ff](?i:rom)|[Ss](?i:ubject|ender)|[Mm](?i:essage-id)"
    r"|[Rr](?i:eceived|eply-to)|[Cc](?i:ontent-type))"
)
# Runs in C over the whole section: a match is a wanted field, or another with an empty name.
# Lines whose first letter no wanted field has are stepped over beforehand: 17 fields make 10
# matches. What is no field, as the empty line, matches with all the rest, and so ends the section;
# but mailx and old mbox tools leave their separator in front ("From joe Mon Jan  1 00:00:00 2024").
_find_fields = re.compile(
    rf"(?:\n[!-9;-BDEG-LN-QT-bdeg-ln-qt-~][!-9;-~]*+{_COLON}{_BODY})*"
    rf"(?:\n(?:({_WANTED}){_COLON}({_BODY})|[!-9;-~]++{_COLON}{_BODY}|{_MBOX_LINE}|[\s\S]*+)|\Z)",
    re.ASCII,
).findall
_match_section = re.compile(
    rf"(?:\n{_MBOX_LINE})?(?:\n[!-9;-~]++{_COLON}{_BODY}){{0,{MAX_FIELDS}}}", re.ASCII
).match
_find_each = re.compile(rf"\n([!-9;-~]++){_COLON}({_BODY})", re.ASCII).findall
_is_name = re.compile(r"[!-9;-~]+", re.ASCII).fullmatch
# In a section of 2 KB: 0.7 us, where bytes.find takes 1.1.
_find_end = re.compile(rb"\r\n\r\n").search


def read_headers(content: bytes) -> Headers:
    """The fields of the message `content` that its rows need; never raises, whatever the octets.

    The header section ends at the first empty line, or at a line that is no field. Line ends are
    CRLF; a bare LF is understood too. Only `MAX_HEADER` octets and `MAX_FIELDS` fields are read.
    """
    found: dict[str, str] = {}
    received = 0
    for name, body in _fields(content):
        name = name.lower()
        if name == "received":
            received += 1
        elif name not in found:
            found[name] = body
    get = found.get
    content_type, charset = _content_type(get("content-type", ""))
    return Headers(
        _address(get("from", "")),
        unstructured(get("subject", "")),
        one_line(get("message-id", "")),
        _address(get("reply-to", "")),
        _address(get("sender", "")),
        content_type,
        charset,
        received,
    )


def _fields(content: bytes) -> list[tuple[str, str]]:
    """Names and bodies, each octet a character of U+0000 to U+00FF; the names may be empty."""
    end = _find_end(content, 0, MAX_HEADER)
    # A line feed in front, so that the first field looks like the others.
    section = "\n" + str(content[: end.start() if end else MAX_HEADER], "latin-1")
    # A field has three octets; so most messages need no counting.
    if len(section) > 3 * MAX_FIELDS and section.count("\n") > MAX_FIELDS:
        fields = _match_section(section)
        return _find_fields(section, 0, fields.end() if fields else 0)
    return _find_fields(section)


def all_fields(content: bytes) -> list[tuple[str, str]]:
    """The name and body of each field in the message `content`, in order: decoded, in one line.

    For reading, and with the limits, of `read_fields`. Never raises.
    """
    section, end = _section(content)
    return [(name, unstructured(body)) for name, body in _find_each(section, 0, end)]


def _section(content: bytes) -> tuple[str, int]:
    """The header section, a line feed in front, and where its fields end."""
    end = _find_end(content, 0, MAX_HEADER)
    section = "\n" + str(content[: end.start() if end else MAX_HEADER], "latin-1")
    fields = _match_section(section)
    return section, fields.end() if fields else 0


def read_fields(content: bytes, name: str) -> list[str]:
    """Each field of that name in the message `content`: decoded, in one line; never raises.

    Encoded words are decoded (RFC 2047), so what comes out is for reading: of addresses in it
    `read_headers` is to be asked. Only `MAX_HEADER` octets and `MAX_FIELDS` fields are read.
    """
    if _is_name(name) is None:
        return []
    section, end = _section(content)
    find = re.compile(rf"\n{re.escape(name)}{_COLON}({_BODY})", re.ASCII | re.IGNORECASE).findall
    return [unstructured(body) for body in find(section, 0, end)]


# ---- Content-Type ------------------------------------------------------------------------------


def _content_type(body: str) -> tuple[str, str]:
    """The value of a Content-Type field and its charset parameter (RFC 2045 section 5.1)."""
    if not body:
        return DEFAULT_TYPE, ""
    text = one_line(body)
    before, semicolon, parameters = text.partition(";")
    kind = match_type(before)
    parameters = semicolon + parameters
    charset = charset_of(find_parameters(parameters)) if "charset" in text.lower() else ""
    return (kind[1].lower() if kind else DEFAULT_TYPE) + parameters, charset


# ---- addresses ---------------------------------------------------------------------------------

_ATOM = r'[^\s\x00-\x1f\x7f-\x9f"(),:;<>@\[\\\]]++'
_DOMAIN = r"(?:\w[^\s\x00-,/:-@\[-^`{-\x9f]*+|\[[^\[\]\\\s@]*+\])"
# One match for what nearly every sender writes: name <address>, "name" <address>, address.
_match_ordinary = re.compile(
    r"[ \t\r\n]*+"
    r'(?:(?:"[^"\\]*+"|[^"\\<>(),:;@\[\]]*+)[ \t\r\n]*+<'
    r"([!#-'*+\-./0-9=?A-Z^-~]++@[0-9A-Za-z][\w.-]*+)>"
    r"|([!#-'*+\-./0-9=?A-Z^-~]++@[0-9A-Za-z][\w.-]*+)[ \t\r\n]*+(?:,|\Z))",
    re.ASCII,
).match
_match_token = re.compile(
    rf'(?P<local>"(?:[^"\\]++|\\.)*"|{_ATOM})(?P<domain>(?:@{_DOMAIN})*)'
    r"|\\.|[\s:)@\]]++|.",
    re.DOTALL,
).match
_find_parentheses = re.compile(r"\\.|[()]", re.DOTALL).finditer


def _address(body: str) -> str:
    """The first address in `body`, "local@domain", or "" (RFC 5322 section 3.4).

    Not email.utils: that takes time in the square of what hostile senders write.
    """
    if not body:
        return ""
    ordinary = _match_ordinary(body, 0, MAX_ADDRESSES)
    # Encoded words may hold anything, even a false address: those take the longer way.
    if ordinary is not None and "=?" not in ordinary[0]:
        return ordinary[1] or ordinary[2]
    octets = unfold(body, MAX_ADDRESSES)
    if "=?" not in octets:
        return _first_address(guess(octets))
    # In a name they are to be decoded after parsing (RFC 2047 section 6.2): so they are not looked
    # into. But some mailers encode the address, or the whole field.
    address = _first_address(guess(WORD.sub("\x7f", octets)))
    return address or _first_address(decode_words(octets))


def _first_address(text: str) -> str:
    if "@" not in text:
        return ""
    address = _scan(text)
    if not address and ("@ " in text or " @" in text):  # RFC 5322 section 4.4
        for point in ("@", "."):
            text = point.join([part.strip() for part in text.split(point)])
        address = _scan(text)
    return "" if CONTROL.search(address) else address


def _scan(text: str) -> str:
    address = ""  # first one since the last delimiter
    name = ""  # one that stands before "<": it counts where the brackets hold none
    has_comments = True
    position = 0
    while match := _match_token(text, position):
        position = match.end()
        token = match[0]
        if token == "(" and has_comments:
            position = _end_of_comment(text, match.start())
            has_comments = position > match.end()
        elif token == "<":
            address, name = "", name or address
        elif token == ">" and (address or name):
            return address or name
        elif token in (",", ";") and address:
            return address
        elif match["domain"] and not address and match["domain"].count("@") == 1:
            in_quotes = token[0] == "'" == text[position : position + 1]
            address = token[1:] if in_quotes else token
    return address or name


def _end_of_comment(text: str, start: int) -> int:
    """Where the comment (comments nest) ends that begins at `start`; one that does not is text."""
    depth = 0
    for match in _find_parentheses(text, start):
        if match[0] == "(":
            depth += 1
        elif match[0] == ")":
            depth -= 1
            if depth == 0:
                return match.end()
    return start + 1


# ---- cutting -----------------------------------------------------------------------------------

_LONGEST_SEQUENCE = 32  # characters; more marks on one letter are mischief


def cut(text: str, length: int) -> str:
    """At most `length` characters of `text`; a letter is not parted from its combining marks."""
    if len(text) <= length:
        return text
    end = length
    while end > max(0, length - _LONGEST_SEQUENCE) and _joins(text[end]):
        end -= 1
    return text[: length if _joins(text[end]) else end]


def _joins(character: str) -> bool:
    return character == "\u200d" or unicodedata.category(character).startswith("M")


# ---- spam score --------------------------------------------------------------------------------

_NUMBER = r"[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?![0-9])"
_find_named_score = re.compile(rf"(?i:score|hits)[ \t]*=[ \t]*({_NUMBER})").search
_match_score = re.compile(rf"[ \t]*({_NUMBER})").match


def score_reader(name: str) -> Callable[[bytes], float]:
    """A function that reads a spam score out of the field `name` of a message, 0 without one.

    Known are "5.1", SpamAssassin's "Yes, score=5.1 required=5.0 …", and its "*****".
    """
    find = re.compile(rb"(?:\A|\n)" + re.escape(name.encode()) + rb"[ \t]*+:([^\n]*+)", re.I).search

    def score(content: bytes) -> float:
        end = _find_end(content, 0, MAX_HEADER)
        match = find(content, 0, end.start() + 2 if end else MAX_HEADER)
        # The header of a message with bare LF ends there, too.
        if match is None or b"\n\n" in content[: match.start() + 1]:
            return 0.0
        return _score(str(match[1], "latin-1").strip(WSP))

    return score


def _score(text: str) -> float:
    number = _find_named_score(text) or _match_score(text)
    if number:
        return float(number[1])
    return float(len(text)) if text and not text.strip("*") else 0.0
