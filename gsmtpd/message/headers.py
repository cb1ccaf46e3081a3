"""What do the header fields of a message say? Any bytes in, clean Unicode out (RFC 5322, 2047)."""

from __future__ import annotations

import re
import unicodedata
from binascii import Error as Base64Error
from binascii import a2b_base64, a2b_qp
from typing import NamedTuple

from gsmtpd.message.charsets import to_text, words_to_text

MAX_HEADER = 65536  # octets of a message that are looked at
MAX_FIELDS = 1000  # header fields that are looked at
MAX_VALUE = 4096  # octets of one field body that are looked at; the columns hold 255 characters
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
        _unstructured(get("subject", "")),
        _one_line(get("message-id", "")),
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


# ---- text --------------------------------------------------------------------------------------

_WSP = " \t\r\n"  # str.strip() alone would take U+0085 and U+00A0, which are octets here
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# The UTF-8 character at the end of a body, perhaps not all of it.
_CUT_CHARACTER = re.compile(r"[\xc2-\xf4][\x80-\xbf]{0,2}\Z")
# =?charset*language?encoding?text?= (RFC 2047 section 2, RFC 2231 section 5). The text may hold
# spaces and question marks, as mailers do send them, but no beginning of the next word: so a word
# without end is not read again from each later beginning.
_WORD = re.compile(
    r"=\?([^?*\s=][^?*\s]{0,63}+)(?:\*[^?\s]*+)?\?([bBqQ])\?"
    r"((?:[^?=]++|\?(?!=)|=(?!\?[^=]))*)\?=",
    re.ASCII,
)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def _unstructured(body: str) -> str:
    if "=?" in body:
        text = _decode_words(_unfold(body, MAX_VALUE))
        return _CONTROL.sub(" ", text).strip()
    return _one_line(body)


def _one_line(body: str) -> str:
    """`body` unfolded, in Unicode, with a space for each control character."""
    body = body.strip(_WSP)
    if body.isprintable() and body.isascii() and len(body) <= MAX_VALUE:
        return body
    return _CONTROL.sub(" ", _guess(_unfold(body, MAX_VALUE))).strip()


def _unfold(body: str, limit: int) -> str:
    if len(body) > limit:
        body = _CUT_CHARACTER.sub("", body[:limit])
    return body.replace("\r\n", "").replace("\n", "").strip(_WSP)


def _guess(octets: str) -> str:
    """The text of raw 8-bit `octets` (U+0000 to U+00FF): UTF-8 (RFC 6532), else Windows-1252."""
    return octets if octets.isascii() else to_text(octets.encode("latin-1"), "")


def _decode_words(octets: str) -> str:
    """The text of `octets` (U+0000 to U+00FF) with its encoded words decoded (RFC 2047)."""
    text: list[str] = []
    words: list[bytes] = []  # adjacent ones of one charset and encoding
    kind = ("", "")
    position = 0
    for match in _WORD.finditer(octets):
        charset, encoding, encoded = match.groups()
        gap = octets[position : match.start()]
        # White space between encoded words is not displayed (section 6.2).
        plain = gap if position == 0 or gap.strip(_WSP) else ""
        if plain or kind != (charset.lower(), encoding.lower()):
            text += (words_to_text(words, kind[0]), _guess(plain))
            words, kind = [], (charset.lower(), encoding.lower())
        words.append(_decode_word(encoded.encode("latin-1"), kind[1]))
        position = match.end()
    text += (words_to_text(words, kind[0]), _guess(octets[position:]))
    return "".join(text)


def _decode_word(encoded: bytes, encoding: str) -> bytes:
    if encoding == "q":
        return a2b_qp(encoded, header=True)
    try:
        return a2b_base64(encoded + b"==")  # more padding than needed does no harm
    except Base64Error:
        digits = _NOT_BASE64.sub(b"", encoded.partition(b"=")[0])
        return a2b_base64(digits[: len(digits) // 4 * 4])


# ---- Content-Type ------------------------------------------------------------------------------

_TOKEN = r"[!#-'*+\-.0-9A-Z^-~]++"  # RFC 2045 section 5.1
_match_type = re.compile(rf"{_TOKEN}/{_TOKEN}").match
_find_parameters = re.compile(
    r';[ \t]*+([^ \t=;"]*+)[ \t]*+=[ \t]*+("(?:[^"\\]++|\\.)*|[^; \t]*+)', re.DOTALL
).findall


def _content_type(body: str) -> tuple[str, str]:
    """The value of a Content-Type field and its charset parameter (RFC 2045 section 5.1)."""
    if not body:
        return DEFAULT_TYPE, ""
    text = _one_line(body)
    before, semicolon, parameters = text.partition(";")
    kind = _match_type(before)
    parameters = semicolon + parameters
    return (kind[0].lower() if kind else DEFAULT_TYPE) + parameters, _charset(parameters)


def _charset(parameters: str) -> str:
    if "charset" not in parameters.lower():
        return ""
    found: list[tuple[str, str]] = _find_parameters(parameters)
    for name, value in found:
        name = name.lower()
        if name == "charset*":  # charset'language'value, RFC 2231 section 4
            value = value.strip("\"'").rpartition("'")[2]
        if name in ("charset", "charset*"):
            return value.strip("\"' ").lower()
    return ""


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
    octets = _unfold(body, MAX_ADDRESSES)
    if "=?" not in octets:
        return _first_address(_guess(octets))
    # In a name they are to be decoded after parsing (RFC 2047 section 6.2): so they are not looked
    # into. But some mailers encode the address, or the whole field.
    address = _first_address(_guess(_WORD.sub("\x7f", octets)))
    return address or _first_address(_decode_words(octets))


def _first_address(text: str) -> str:
    if "@" not in text:
        return ""
    address = _scan(text)
    if not address and ("@ " in text or " @" in text):  # RFC 5322 section 4.4
        for point in ("@", "."):
            text = point.join([part.strip() for part in text.split(point)])
        address = _scan(text)
    return "" if _CONTROL.search(address) else address


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
