"""What do encoded words and raw octets in a header say? (RFC 2047, RFC 2231 section 5, RFC 6532)"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, a2b_qp

from gsmtpd.message.charsets import to_text, words_to_text

MAX_VALUE = 4096  # octets of one field body that are looked at; the columns hold 255 characters

WSP = " \t\r\n"  # str.strip() alone would take U+0085 and U+00A0, which are octets here
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# The UTF-8 character at the end of a body, perhaps not all of it.
_CUT_CHARACTER = re.compile(r"[\xc2-\xf4][\x80-\xbf]{0,2}\Z")
# =?charset*language?encoding?text?= (RFC 2047 section 2, RFC 2231 section 5). The text may hold
# spaces and question marks, as mailers do send them, but no beginning of the next word: so a word
# without end is not read again from each later beginning.
WORD = re.compile(
    r"=\?([^?*\s=][^?*\s]{0,63}+)(?:\*[^?\s]*+)?\?([bBqQ])\?"
    r"((?:[^?=]++|\?(?!=)|=(?!\?[^=]))*)\?=",
    re.ASCII,
)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def unstructured(body: str) -> str:
    """The text of the field body `body` (U+0000 to U+00FF) on one line, encoded words decoded."""
    if "=?" in body:
        text = decode_words(unfold(body, MAX_VALUE))
        return CONTROL.sub(" ", text).strip()
    return one_line(body)


def one_line(body: str) -> str:
    """`body` unfolded, in Unicode, with a space for each control character."""
    body = body.strip(WSP)
    if body.isprintable() and body.isascii() and len(body) <= MAX_VALUE:
        return body
    return CONTROL.sub(" ", guess(unfold(body, MAX_VALUE))).strip()


def unfold(body: str, limit: int) -> str:
    """At most `limit` characters of `body` without its line ends (RFC 5322 section 2.2.3)."""
    if len(body) > limit:
        body = _CUT_CHARACTER.sub("", body[:limit])
    return body.replace("\r\n", "").replace("\n", "").strip(WSP)


def guess(octets: str) -> str:
    """The text of raw 8-bit `octets` (U+0000 to U+00FF): UTF-8 (RFC 6532), else Windows-1252."""
    return octets if octets.isascii() else to_text(octets.encode("latin-1"), "")


def decode_words(octets: str) -> str:
    """The text of `octets` (U+0000 to U+00FF) with its encoded words decoded (RFC 2047)."""
    text: list[str] = []
    words: list[bytes] = []  # adjacent ones of one charset and encoding
    kind = ("", "")
    position = 0
    for match in WORD.finditer(octets):
        charset, encoding, encoded = match.groups()
        gap = octets[position : match.start()]
        # White space between encoded words is not displayed (section 6.2).
        plain = gap if position == 0 or gap.strip(WSP) else ""
        if plain or kind != (charset.lower(), encoding.lower()):
            text += (words_to_text(words, kind[0]), guess(plain))
            words, kind = [], (charset.lower(), encoding.lower())
        words.append(_decode_word(encoded.encode("latin-1"), kind[1]))
        position = match.end()
    text += (words_to_text(words, kind[0]), guess(octets[position:]))
    return "".join(text)


def _decode_word(encoded: bytes, encoding: str) -> bytes:
    if encoding == "q":
        return a2b_qp(encoded, header=True)
    try:
        return a2b_base64(encoded + b"==")  # more padding than needed does no harm
    except Base64Error:
        digits = _NOT_BASE64.sub(b"", encoded.partition(b"=")[0])
        return a2b_base64(digits[: len(digits) // 4 * 4])
