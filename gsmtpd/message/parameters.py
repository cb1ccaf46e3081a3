"""What stands behind the semicolons of Content-Type and Content-Disposition? (RFC 2045, 2231)"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from gsmtpd.message.charsets import to_text
from gsmtpd.message.words import CONTROL, decode_words, guess

_TOKEN = r"[!#-'*+\-.0-9A-Z^-~]++"  # RFC 2045 section 5.1
match_type = re.compile(rf"[ \t]*+({_TOKEN}/{_TOKEN})").match
_find = re.compile(
    r';[ \t]*+([^ \t=;"]*+)[ \t]*+=[ \t]*+("(?:[^"\\]++|\\.)*"|[^;]*+)', re.DOTALL
).findall
_match_section = re.compile(r"([^*]++)\*([0-9]{1,3})(\*?)\Z").match
_COMMENT = re.compile(r"\([^()]*+\)")  # RFC 2045 section 5.1 shows one behind a charset


def find_parameters(field: str) -> dict[str, str]:
    """The parameters in `field`, unfolded, whose octets are U+0000 to U+00FF: names in lower case,
    values as sent. The first of a name counts.
    """
    found: dict[str, str] = {}
    for name, value in _find(field):
        found.setdefault(name.lower(), value.rstrip())
    return found


def parameter(parameters: dict[str, str], name: str) -> str:
    """The octets (U+0000 to U+00FF) of a parameter that is no text, "" without it."""
    if name in parameters:
        return bare(parameters[name])
    return "".join([value for value, _ in _sections(parameters, name)])


def bare(value: str) -> str:
    """`value` without its quotes. Only quotes and backslashes are unescaped: senders of
    "C:\\new.doc" do not escape what they should.
    """
    if value[:1] != '"':
        return value
    inner = value[1:-1] if len(value) > 1 and value[-1] == '"' else value[1:]
    return inner.replace("\\\\", "\\").replace('\\"', '"')


def charset_of(parameters: dict[str, str]) -> str:
    """The charset parameter in lower case, "" without one."""
    value = parameters.get("charset")
    if value is None:
        # charset'language'value, RFC 2231 section 4
        value = parameters.get("charset*", "").strip("\"'").rpartition("'")[2]
    if value[:1] == '"':
        return value.strip("\"' ").lower()
    return _COMMENT.sub(" ", value).strip("' ").partition(" ")[0].lower()


def file_name(parameters: dict[str, str], name: str) -> str:
    """The file name in the parameter `name`, on one line, without any directory; "" for none."""
    if f"{name}*" in parameters:
        text = _extended([(bare(parameters[f"{name}*"]), True)])
    elif sections := _sections(parameters, name):
        text = _extended(sections)
    else:
        text = _plain(bare(parameters.get(name, "")))
    base = text[max(text.rfind("/"), text.rfind("\\")) + 1 :]
    return CONTROL.sub(" ", base).strip()


def _plain(octets: str) -> str:
    # Encoded words may not stand in parameters (RFC 2047 section 5), but do in most of them.
    return decode_words(octets) if "=?" in octets else guess(octets)


def _sections(parameters: dict[str, str], name: str) -> list[tuple[str, bool]]:
    """The sections name*0, name*1*, … in order: each, and whether it is percent-encoded."""
    found: list[tuple[int, str, bool]] = []
    for key, value in parameters.items():
        match = _match_section(key)
        if match is not None and match[1] == name:
            found.append((int(match[2]), bare(value), bool(match[3])))
    return [(value, encoded) for _, value, encoded in sorted(found)]


def _extended(sections: list[tuple[str, bool]]) -> str:
    """RFC 2231 sections 3 and 4."""
    charset = ""
    first, encoded = sections[0]
    if encoded and first.count("'") >= 2:
        charset, _, first = first.split("'", 2)
        sections = [(first, True), *sections[1:]]
    octets = b"".join(
        unquote_to_bytes(value.encode("latin-1")) if encoded else value.encode("latin-1")
        for value, encoded in sections
    )
    if charset or any(encoded for _, encoded in sections):
        return to_text(octets, charset)
    return _plain(octets.decode("latin-1"))
