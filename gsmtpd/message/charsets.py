"""Which characters do these octets mean? Charsets as senders name them, and valid Unicode out."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from encodings.aliases import aliases as _python_aliases
from typing import Final

# Names that senders use and Python does not know, or not so; in the form of `_normal`.
_SENDERS_NAMES: Final = {
    "8859_1": "cp1252",
    "big5_eten": "cp950",
    "cn_big5": "cp950",
    "cn_gb": "gb18030",
    "gb_2312": "gb18030",
    "gb_2312_80": "gb18030",
    "iso_8859_6_e": "iso8859_6",
    "iso_8859_6_i": "iso8859_6",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_8_i": "iso8859_8",
    "koi8": "koi8_r",
    "koi8_ru": "koi8_u",
    "koi8_u": "koi8_u",
    "mac": "mac_roman",
    "mac_ce": "mac_latin2",
    "mac_centraleurroman": "mac_latin2",
    "mac_chinesesimp": "gb18030",
    "mac_chinesetrad": "cp950",
    "mac_croatian": "mac_croatian",
    "mac_icelandic": "mac_iceland",
    "mac_japanese": "cp932",
    "mac_korean": "cp949",
    "mac_romanian": "mac_romanian",
    "mac_ukrainian": "mac_cyrillic",
    "thai": "cp874",
    "win_1251": "cp1251",
    "windows_31j": "cp932",
    "windows_936": "gb18030",
    "utf8mb3": "utf_8",
    "utf8mb4": "utf_8",
}
# Senders who say the left mean the right, which has all its characters and the vendors' too.
# US-ASCII is said for anything: octets above 127 in it are guessed.
_SUPERSETS: Final = {
    "ascii": "",
    "big5": "cp950",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso2022_jp": "iso2022_jp_ext",
    "iso2022_jp_1": "iso2022_jp_ext",
    "iso8859_9": "cp1254",
    "iso8859_11": "cp874",
    "latin_1": "cp1252",
    "shift_jis": "cp932",
    "tis_620": "cp874",
}
_TRANSFORMS: Final = (
    "base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec",
    "mbcs", "oem",  # of Windows only
)  # fmt: skip
_NO_ALIAS: Final = ("cp720", "cp737", "cp856", "cp874", "cp1006", "mac_arabic", "mac_farsi")


def _codecs() -> dict[str, str]:
    """Charset name, in the form of `_normal`, to Python's codec.

    A table and not codecs.lookup(): that one tries to import, and remembers for good, every name
    a sender thinks up; and it knows unicode_escape, idna, punycode and undefined, which are no
    charsets. (base64, rot13 and their like bytes.decode() itself refuses.)
    """
    table: dict[str, str] = {codec: codec for codec in (*_python_aliases.values(), *_NO_ALIAS)}
    table |= _python_aliases
    # Those that are no charsets: an incremental decoder of zlib would unpack 256 KB to 256 MB.
    table = {name: codec for name, codec in table.items() if codec not in _TRANSFORMS}
    for codec in list(table.values()):
        if codec.startswith("cp"):
            table["windows_" + codec[2:]] = table["cp_" + codec[2:]] = codec
            table["windows" + codec[2:]] = table["ibm_" + codec[2:]] = codec
    table |= _SENDERS_NAMES
    table = {name: _SUPERSETS.get(codec, codec) for name, codec in table.items()}
    # With hyphens too, as they are mostly sent: those need no `_normal`.
    return {name.replace("_", "-"): codec for name, codec in table.items()} | table


_CODECS: Final = _codecs()
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")


def _normal(charset: str) -> str:
    return _NOT_ALPHANUMERIC.sub("_", charset[:64].lower()).strip("_").removeprefix("x_")


def _codec(charset: str) -> str:
    """Python's codec for a charset as senders name it, "" where there is none."""
    codec = _CODECS.get(charset)
    return codec if codec is not None else _CODECS.get(_normal(charset), "")


def _checked(text: str, codec: str) -> str:
    if codec == "utf_7":  # the one codec that lets surrogates through
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def to_text(octets: bytes, charset: str) -> str:
    """`octets` in the charset that a sender named so ("ks_c_5601-1987"), as valid Unicode.

    Never raises: what the charset does not have is U+FFFD. An unknown charset, "" and US-ASCII
    mean UTF-8 where `octets` are that, else Windows-1252. Control characters are left in.
    """
    codec = _codec(charset)
    if codec:
        try:
            return _checked(octets.decode(codec, "replace"), codec)
        except (UnicodeError, LookupError):  # a codec that this Python was built without
            pass
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("cp1252", "replace")


def words_to_text(words: list[bytes], charset: str) -> str:
    """The text of adjacent encoded words, of which each should stand alone (RFC 2047 section 5).

    Where one does not, its last character goes on in the next. They are not joined at once: then
    the shift states of UTF-7 and ISO-2022-JP would run on.
    """
    codec = _codec(charset)
    if len(words) > 1 and codec:
        try:
            return "".join([_checked(word.decode(codec), codec) for word in words])
        except (UnicodeError, LookupError):
            pass
    return to_text(b"".join(words), charset)


# ---- bodies ------------------------------------------------------------------------------------

_find_bare_cr = re.compile(rb"\r[^\n]").search
UNKNOWN = "unknown-8bit"  # RFC 1428 section 3


def decode(octets: bytes, charset: str, cut: bool) -> tuple[str, str]:
    """The text of a body in the charset that its sender named, and the charset it truly was in.

    That is `charset`, or where that was not true "utf-8" or `UNKNOWN`; then what cannot be decoded
    is U+FFFD, or Windows-1252. cut: the last character may be incomplete. Line ends become LF,
    NUL becomes U+FFFD, a byte order mark is taken away. Never raises.
    """
    codec = _codec(charset)
    if codec.startswith(("utf_16", "utf_32")):
        text, said = _decoded(octets, codec, charset, cut)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    else:
        text, said = _decoded(_with_lf(octets), codec, charset, cut)
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    return text.removeprefix("\ufeff"), said


def _decoded(octets: bytes, codec: str, charset: str, cut: bool) -> tuple[str, str]:
    if not codec:  # none is said, none that is known, or US-ASCII, which is said of anything
        if octets.isascii():
            return octets.decode("ascii"), charset or "us-ascii"
        text = _strictly(octets, "utf_8", cut)
        return (octets.decode("cp1252", "replace"), UNKNOWN) if text is None else (text, "utf-8")
    text = _strictly(octets, codec, cut)
    return (to_text(octets, charset), UNKNOWN) if text is None else (_checked(text, codec), charset)


def _strictly(octets: bytes, codec: str, cut: bool) -> str | None:
    """The text of `octets`, or None. cut: the last character may be incomplete."""
    try:
        return getincrementaldecoder(codec)().decode(octets) if cut else octets.decode(codec)
    except (UnicodeError, LookupError):
        return None


def _with_lf(octets: bytes) -> bytes:
    """`octets` with LF for CRLF and CR. That is safe in all charsets but UTF-16 and UTF-32."""
    if b"\r" not in octets:
        return octets
    # Taking single octets away is four times as fast as replacing pairs.
    without = octets.replace(b"\r", b"")
    if _find_bare_cr(octets) is None and not octets.endswith(b"\r"):
        return without
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
