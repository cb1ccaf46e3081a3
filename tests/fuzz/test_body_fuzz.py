"""Whatever the octets: clean text and bounded work. And is well-formed mail read as Python does?

The oracle is the parser of Python's email package, with its policy compat32.
"""

from __future__ import annotations

import base64
import email
import email.policy
import quopri
import re
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.message import Message as PythonMessage
from email.utils import encode_rfc2231
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gsmtpd.message.body import (
    _MAX_NESTED,
    MAX_NAME,
    MAX_TEXT,
    Attachment,
    Body,
    attachment,
    read_body,
)
from gsmtpd.message.html import to_text
from gsmtpd.message.mime import MAX_PARTS, payload, read_parts
from gsmtpd.message.words import CONTROL

CORPUS = sorted((Path(__file__).resolve().parents[1] / "messages").glob("*.eml"))
REAL = [path.read_bytes() for path in CORPUS]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

# ---- anything ----------------------------------------------------------------------------------

PIECES = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b" ", b"\t", b":", b";", b'"', b"\\", b"=", b"--",
    b"--B", b"\r\n--B\r\n", b"\r\n--B--\r\n", b"\r\n--BB\r\n", b"\r\n--B-- x\r\n", b"\0", b"\xff",
    b"\xc3", b"\xbc", b"\xef\xbb\xbf", b"=C3=BC", b"=\r\n", b"=", b"w7w=", b"w7w", b"\x1b$B", b"a",
    b"Content-Type: multipart/mixed; boundary=B\r\n\r\n", b"Content-Type: multipart/digest;\r\n",
    b' boundary="BB"\r\n\r\n', b"Content-Type: text/html\r\n\r\n", b"Content-Type: a/b; name=x\r\n",
    b"Content-Type: text/plain; charset=utf-16\r\n\r\n", b"Content-Type: message/rfc822\r\n\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n",
    b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 a\n#86)C\n`\nend\n", b"charset=utf-7",
    b"Content-Disposition: attachment; filename=x\r\n", b"filename*0*=utf-8''%C3", b"; filename*1=",
    b"<p>", b"</p>", b"<!--", b"&#13;", b"&#0;", b"&#xD800;", b"&#x1b;", b"From ", b"X: 1\r\n",
]  # fmt: skip

pieces = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join)
octets = st.one_of(pieces, st.binary(max_size=300), st.text(max_size=200).map(str.encode))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message of the corpus with some octets lost, doubled, moved or put in."""
    content = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 80)))
        cut = content[start:end]
        new = draw(st.sampled_from([b"", cut + cut, cut[::-1]]) | st.sampled_from(PIECES))
        content = content[:start] + new + content[end:]
    return content


def check(content: bytes) -> None:
    found = read_body(content)
    found.text.encode()
    assert "\0" not in found.text
    assert "\r" not in found.text
    assert len(found.text) <= 4 * MAX_TEXT
    assert not CONTROL.search(found.charset)
    assert found.charset or not found.text
    assert len(found.attachments) <= MAX_PARTS
    for number, each in enumerate(found.attachments, 1):
        assert len(each.filename) <= MAX_NAME
        assert each.filename == each.filename.strip()
        assert not {*each.filename} & {*"/\\\r\n\0"}
        each.filename.encode()
        assert len(each.content_type) <= MAX_NAME
        assert each.content_type.isascii()
        assert each.content_type.count("/") == 1
        data = attachment(content, number)
        assert (each.size, each.sha256) == (len(data), sha256(data).hexdigest())
    ends = 0
    for part in read_parts(content):
        assert ends <= part.start <= part.end <= len(content)
        ends = part.end


@settings(max_examples=400, deadline=None)
@given(octets)
def test_any_octets(content: bytes) -> None:
    check(content)
    check(b"Content-Type: multipart/mixed; boundary=B\r\n\r\n" + content)


@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(mutated())
def test_mutated_messages(content: bytes) -> None:
    check(content)


@settings(max_examples=200, deadline=None)
@given(octets, st.sampled_from(["utf-8", "utf-16", "utf-7", "iso-2022-jp", "hz", "gb18030", "x"]))
def test_any_octets_in_any_charset(content: bytes, charset: str) -> None:
    for kind in ("plain", "html"):
        head = f"Content-Type: text/{kind}; charset={charset}\r\n\r\n"
        check(head.encode() + content)


# ---- what the oracle says ----------------------------------------------------------------------


def leaves(message: PythonMessage) -> Iterator[PythonMessage]:
    """The parts that have none themselves; not into messages, as walk() would go."""
    if message.get_content_maintype() == "multipart" and message.is_multipart():
        for part in message.get_payload():  # type: ignore[union-attr]
            yield from leaves(part)  # type: ignore[arg-type]
    else:
        yield message


def parsed(content: bytes) -> PythonMessage:
    return email.message_from_bytes(content, policy=email.policy.compat32)


def name_of(part: PythonMessage) -> str:
    """get_filename() knows RFC 2231; encoded words it leaves."""
    name = part.get_filename() or ""
    name = str(make_header(decode_header(name))) if "=?" in name else name
    return name.strip()


def described(part: PythonMessage) -> Attachment:
    if part.get_content_maintype() == "message":
        # Python has parsed it and would write it anew. Its octets have a test of their own.
        return Attachment(name_of(part), part.get_content_type(), 0, "")
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    return Attachment(name_of(part), part.get_content_type(), len(data), sha256(data).hexdigest())


def comparable(found: Body) -> Body:
    """As the oracle can say it."""
    attached = [
        each._replace(size=0, sha256="") if each.content_type.startswith("message/") else each
        for each in found.attachments
    ]
    return found._replace(attachments=attached)


def text_of(part: PythonMessage) -> tuple[str, str]:
    """The text of a part as the specification has it: what is declared, else ASCII or UTF-8."""
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    charset = part.get_content_charset()
    if charset is None:
        charset = "us-ascii" if data.isascii() else "utf-8"
    text = data.decode(charset).replace("\r\n", "\n")
    return (to_text(text) if part.get_content_subtype() == "html" else text), charset


def is_text(part: PythonMessage) -> bool:
    if part.get_content_maintype() != "text":
        return False
    return part.get_content_disposition() != "attachment" and not name_of(part)


def oracle(message: PythonMessage, nested: int = 1) -> Body:
    """The rules for body and attachments, with Python's tree. nested: messages, this one, too."""
    parts = [*leaves(message)]
    whole = parts == [message] and message.get_content_maintype() == "text"
    texts = parts if whole else [part for part in parts if is_text(part)]
    attached = [part for part in parts if not any(part is text for text in texts)]
    text, charset = best(texts)
    if not texts:
        inner = next((p for p in attached if p.get_content_type() == "message/rfc822"), None)
        if inner is not None and nested < _MAX_NESTED:
            (within,) = inner.get_payload()
            text, charset, _ = oracle(within, nested + 1)  # type: ignore[arg-type]
    return Body(text, charset, [described(part) for part in attached])


def best(texts: list[PythonMessage]) -> tuple[str, str]:
    order = {"text/plain": 0, "text/html": 1}
    ordered = sorted(texts, key=lambda part: order.get(part.get_content_type(), 2))
    candidates = [text_of(part) for part in ordered]
    for text, charset in candidates:
        if text.strip():
            return text, charset
    # An empty text has no charset.
    return candidates[0] if candidates and candidates[0][0] else ("", "")


# ---- well-formed messages ----------------------------------------------------------------------


class Built(NamedTuple):
    """A part with its header, and the octets of the leaves in it."""

    content: bytes
    leaves: list[bytes]


LETTERS = "ab xyz,.;=?-_<>&'\"()"
CHARSETS = {
    None: LETTERS + "äß語👩",
    "us-ascii": LETTERS,
    "utf-8": LETTERS + "äß語👩",
    "UTF-8": LETTERS + "äß語👩",
    "iso-8859-1": LETTERS + "äßñ",
    "iso-8859-15": LETTERS + "äß€",
    "windows-1251": LETTERS + "Привет",
    "koi8-r": LETTERS + "Привет",
    "iso-2022-jp": LETTERS + "語日本",
    "shift_jis": LETTERS + "語日本",
    "gb18030": LETTERS + "語语👩",
    "big5": LETTERS + "語",
    "utf-16le": LETTERS + "語👩",
}
NAME_LETTERS = "abc 01.-_äß語'%()[]&"
BOUNDARIES = ["B%d", "=_%d", "----=_NextPart_000_%d", "b %d", "(%d)+_,-./:=?'x", "%dé".rstrip("é")]
TYPES = ["application/pdf", "image/png", "APPLICATION/X-Y", "audio/x.y+z"]


def folded(head: str, parameters: list[str]) -> str:
    return ";\r\n\t".join([head, *parameters])


@st.composite
def names(draw: st.DrawFn, parameter: str) -> list[str]:
    """A parameter with a file name, in one of the ways of senders."""
    # Begins with what is no space, and is ASCII: an empty name is none, and Python's is one.
    name = "a" + draw(st.text(NAME_LETTERS, max_size=40))
    way = draw(st.sampled_from(["plain", "2231", "continued", "2047"]))
    if way == "2231":
        return [f"{parameter}*={encode_rfc2231(name, 'utf-8')}"]
    if way == "continued":
        encoded = encode_rfc2231(name, "utf-8")
        # Not within a %XX.
        cuts = [n for n in range(8, len(encoded), 9) if "%" not in encoded[n - 2 : n]]
        edges = [0, *cuts, len(encoded)]
        slices = zip(edges, edges[1:], strict=False)
        return [f"{parameter}*{n}*={encoded[a:b]}" for n, (a, b) in enumerate(slices)]
    if way == "2047":
        return [f'{parameter}="=?utf-8?B?{base64.b64encode(name.encode()).decode()}?="']
    return [f'{parameter}="{"".join(c for c in name if c.isascii())}"']


def encoded(data: bytes, encoding: str) -> bytes:
    if encoding == "base64":
        return base64.encodebytes(data).replace(b"\n", b"\r\n")
    bare = data.replace(b"\r\n", b"")
    if encoding == "quoted-printable" and any(octet in bare for octet in (b"\0", b"\r", b"\n")):
        return b"=\r\n".join(
            b"".join(b"=%02X" % octet for octet in data[at : at + 24])
            for at in range(0, len(data), 24)
        )
    if encoding == "quoted-printable":
        lines = [quopri.encodestring(line, quotetabs=True) for line in data.split(b"\r\n")]
        # Soft line ends are ends of lines, too.
        return b"\r\n".join(line.replace(b"\n", b"\r\n") for line in lines)
    return data


@st.composite
def texts(draw: st.DrawFn) -> Built:
    """A text part, shown or attached."""
    charset = draw(st.sampled_from([*CHARSETS]))
    lines = draw(st.lists(st.text(CHARSETS[charset], max_size=60), max_size=5))
    data = "\r\n".join(lines).encode(charset or "utf-8")
    kind = draw(
        st.sampled_from(["text/plain"] * 3 + ["text/html"] * 2 + ["text/calendar", "TEXT/Plain"])
    )
    parameters = [] if charset is None else [draw(st.sampled_from([
        f"charset={charset}", f'charset="{charset}"', f"CHARSET={charset}",
        f"charset*=utf-8''{charset}",
    ]))]  # fmt: skip
    encodings = ["base64", "quoted-printable", "Base64"]
    encodings += ["8bit", "7bit", "binary", ""] if charset != "utf-16le" else []
    return _leaf(draw, kind, parameters, data, draw(st.sampled_from(encodings)))


@st.composite
def files(draw: st.DrawFn) -> Built:
    """A part that is no text."""
    data = draw(st.binary(max_size=200))
    encoding = draw(st.sampled_from(["base64", "quoted-printable", "BASE64"]))
    return _leaf(draw, draw(st.sampled_from(TYPES)), [], data, encoding)


def _leaf(draw: st.DrawFn, kind: str, parameters: list[str], data: bytes, encoding: str) -> Built:
    fields = [folded("Content-Type: " + kind, parameters)]
    if draw(st.booleans()):
        fields = [folded(fields[0], draw(names("name")))]
    if encoding:
        fields.append(f"Content-Transfer-Encoding: {encoding}")
    disposition = draw(st.sampled_from([None, "inline", "attachment", "Attachment"]))
    if disposition:
        has_name = draw(st.booleans())
        parameters = draw(names("filename")) if has_name else []
        fields.append(folded(f"Content-Disposition: {disposition}", parameters))
    fields = draw(st.permutations(fields))
    body = encoded(data, encoding.lower())
    return Built(("\r\n".join(fields) + "\r\n\r\n").encode() + body, [data])


@st.composite
def forwarded(draw: st.DrawFn, inner: st.SearchStrategy[Built]) -> Built:
    """A message in the message."""
    content = b"Subject: forwarded\r\n" + draw(inner).content
    return Built(b"Content-Type: message/rfc822\r\n\r\n" + content, [content])


@st.composite
def multiparts(draw: st.DrawFn, inner: st.SearchStrategy[Built]) -> Built:
    """Some parts, whose boundary is filled in later: it must be another for each."""
    parts = draw(st.lists(inner, min_size=1, max_size=4))
    subtype = draw(st.sampled_from(["mixed", "alternative", "related", "signed", "X-Y"]))
    boundary = draw(st.sampled_from(BOUNDARIES)) % draw(st.integers(0, 10**12))
    # An outer boundary that begins as an inner one would be ambiguous for Python, too.
    assume(not any(f"--{boundary}".encode() in part.content for part in parts))
    line = b"\r\n--" + boundary.encode()
    head = folded(f"Content-Type: multipart/{subtype}", [f'boundary="{boundary}"']) + "\r\n\r\n"
    preamble = draw(st.sampled_from([b"", b"This is a multi-part message in MIME format."]))
    epilogue = draw(st.sampled_from([b"", b"\r\n", b"\r\nepilogue\r\n"]))
    content = head.encode() + preamble
    content += b"".join(line + b"\r\n" + part.content for part in parts) + line + b"--" + epilogue
    return Built(content, [leaf for part in parts for leaf in part.leaves])


parts = st.recursive(
    texts() | texts() | files(),
    lambda inner: multiparts(inner) | multiparts(inner) | forwarded(inner),
    max_leaves=8,
)
SECTION = b"From: joe@example.com\r\nSubject: a\r\nMIME-Version: 1.0\r\n"


@settings(max_examples=400, deadline=None, suppress_health_check=SLOW)
@given(parts)
def test_leaves_are_found_with_their_octets(part: Built) -> None:
    content = SECTION + part.content
    assert [payload(content, each) for each in read_parts(content)] == part.leaves


@settings(max_examples=600, deadline=None, suppress_health_check=SLOW)
@given(parts)
def test_well_formed_messages_are_read_as_python_does(part: Built) -> None:
    content = SECTION + part.content
    assert comparable(read_body(content)) == oracle(parsed(content))


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(parts)
def test_line_ends_of_unix_make_no_difference_to_the_structure(part: Built) -> None:
    content = (SECTION + part.content).replace(b"\r\n", b"\n")
    kinds = [each.get_content_type() for each in leaves(parsed(content))]
    assert [each.kind for each in read_parts(content)] == kinds


# ---- what was well-formed ----------------------------------------------------------------------

# Where we differ on purpose from Python, whose parser wants what the standards want of senders:
DIFFERENT = re.compile(
    rb"\r(?!\n)"  # a bare CR ends no line: SMTP has only CRLF (RFC 5321 section 2.3.8)
    # Gateways pad lines; a soft line end is one all the same (RFC 2045 section 6.7, rule 3).
    rb"|=[ \t]+\r?\n"
    # A separator of mbox files is left out at the beginning only, and nowhere else a field.
    rb"|^>?From "
    # Of a uuencoded line that is wrong we leave out the line, Python decodes nothing then.
    rb"|^begin ",
    re.MULTILINE,
)
_TYPE = re.compile(r"\s*[!#-'*+\-.0-9A-Z^-~]+/[!#-'*+\-.0-9A-Z^-~]+\s*(?:;|\Z)")
_ENCODING = re.compile(r"[A-Za-z0-9-]+\Z")


def is_plain(part: PythonMessage) -> bool:
    """Neither Python nor we have to guess what the fields mean: comments, two words, octets."""
    fields = [(part.get("content-type"), _TYPE), (part.get("content-transfer-encoding"), _ENCODING)]
    return all(value is None or pattern.match(str(value)) for value, pattern in fields)


def is_empty(message: PythonMessage) -> bool:
    """Whether a message has neither fields nor a body."""
    return not message.items() and not message.get_payload()


def everything(message: PythonMessage) -> Iterator[PythonMessage]:
    """All parts, but not those of messages within."""
    yield message
    if message.get_content_maintype() == "multipart" and message.is_multipart():
        for part in message.get_payload():  # type: ignore[union-attr]
            yield from everything(part)  # type: ignore[arg-type]


@settings(max_examples=600, deadline=None, suppress_health_check=SLOW)
@given(mutated())
def test_where_python_finds_no_defect_the_octets_are_the_same(content: bytes) -> None:
    assume(not DIFFERENT.search(content))
    message = parsed(content)
    expected = []
    for part in leaves(message):
        is_message = part.is_multipart() or part.get_content_maintype() == "message"
        data = None if is_message else part.get_payload(decode=True)
        # A message without an octet within one is an empty part, too.
        expected.append(b"" if part.is_multipart() and is_empty(part.get_payload(0)) else data)
    # Decoding finds defects, too.
    assume(all(is_plain(part) and not part.defects for part in everything(message)))
    parts = read_parts(content)
    assume(not any(part.kind.startswith("multipart/") for part in parts))  # behind our limits
    found = [payload(content, part) for part in parts]
    # Of delimiters that follow each other at once Python makes one; we, empty parts.
    found = [data for data in found if data]
    expected = [data for data in expected if data != b""]
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert its is None or mine == its
