"""Which parts are found, and what are their octets? The tables are the specification."""

from __future__ import annotations

import base64
import binascii
import quopri
import tracemalloc

import pytest

from gsmtpd.message import mime
from gsmtpd.message.mime import MAX_DEPTH, MAX_HEADER, MAX_PARTS, payload, read_parts

MIXED = b'Content-Type: multipart/mixed; boundary="B"\r\n\r\n'


def parts(content: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded octets of each part."""
    return [(part.kind, payload(content, part)) for part in read_parts(content)]


def bodies(content: bytes) -> list[bytes]:
    """The decoded octets of each part."""
    return [octets for _, octets in parts(content)]


# What follows the header of a multipart with the boundary "B", and the bodies of its parts.
DELIMITED = [
    (b"--B\r\n\r\na\r\n--B\r\n\r\nb\r\n--B--\r\n", [b"a", b"b"]),
    (b"\r\n--B\r\n\r\na\r\n--B--", [b"a"]),
    (b"preamble\r\n--B\r\n\r\na\r\n--B--\r\nepilogue\r\n", [b"a"]),
    (b"--B\n\na\n--B--\n", [b"a"]),
    (b"--B\r\n\r\na\n--B--\r\n", [b"a"]),
    # Line ends in front of the one that belongs to the delimiter are the part's.
    (b"--B\r\n\r\na\r\n\r\n--B--\r\n", [b"a\r\n"]),
    (b"--B\r\n\r\na\r\r\n--B--\r\n", [b"a\r"]),
    (b"--B\r\n\r\na\n\r\n--B--\r\n", [b"a\n"]),
    # No close delimiter.
    (b"--B\r\n\r\na", [b"a"]),
    (b"--B\r\n\r\na\r\n", [b"a\r\n"]),
    (b"--B\r\n\r\na\r\n--B\r\n\r\nb\r\n", [b"a", b"b\r\n"]),
    (b"--B\r\n\r\na\r\n--B\r\n", [b"a", b""]),
    (b"--B\r\n\r\na\r\n--B", [b"a", b""]),
    (b"--B", [b""]),
    (b"--B\r\n", [b""]),
    # What is behind the close delimiter is nobody's, even a delimiter.
    (b"--B\r\n\r\na\r\n--B--\r\n--B\r\n\r\nb\r\n--B--\r\n", [b"a"]),
    (b"--B--\r\n", []),
    (b"--B--", []),
    (b"\r\n--B--\r\n\r\ntext\r\n", []),
    # White space behind a delimiter is transport padding.
    (b"--B \t\r\n\r\na\r\n--B-- \t\r\nepilogue", [b"a"]),
    (b"--B" + b" " * 200 + b"\r\n\r\na\r\n--B--\r\n", [b"a"]),
    # These are no delimiters.
    (b"--B\r\n\r\na\r\n--Bx\r\n--B--\r\n", [b"a\r\n--Bx"]),
    (b"--B\r\n\r\na\r\n--B-\r\n--B--\r\n", [b"a\r\n--B-"]),
    (b"--B\r\n\r\na\r\n--B--x\r\n--B--\r\n", [b"a\r\n--B--x"]),
    (b"--B\r\n\r\na\r\n--B- -\r\n--B--\r\n", [b"a\r\n--B- -"]),
    (b"--B\r\n\r\na\r\n --B\r\n--B--\r\n", [b"a\r\n --B"]),
    (b"--B\r\n\r\na\r\n-- B\r\n--B--\r\n", [b"a\r\n-- B"]),
    (b"--B\r\n\r\na\r\n--b\r\n--B--\r\n", [b"a\r\n--b"]),
    (b"--B\r\n\r\na--B\r\n--B--\r\n", [b"a--B"]),
    (b"--B\r\n\r\na\r\n---B\r\n--B--\r\n", [b"a\r\n---B"]),
    (b"--B\r\n\r\na\r\n-- \r\n-- \r\n--B--\r\n", [b"a\r\n-- \r\n-- "]),
    # Empty parts, and parts without header, empty line or body.
    (b"--B\r\n--B\r\n--B--\r\n", [b"", b""]),
    (b"--B\r\n\r\n--B--\r\n", [b""]),
    (b"--B\r\n\r\n\r\n--B--\r\n", [b""]),
    (b"--B\r\na\r\n--B--\r\n", [b"a"]),
    (b"--B\r\nX: 1\r\n--B--\r\n", [b""]),
    (b"--B\r\nX: 1\r\na b\r\n\r\nc\r\n--B--\r\n", [b"a b\r\n\r\nc"]),
    (b"--B\r\nX: 1\r\n\r\n--B--\r\n", [b""]),
    # Never delimited.
    (b"", [b""]),
    (b"text\r\n", [b"text\r\n"]),
    (b"--C\r\n\r\na\r\n--C--\r\n", [b"--C\r\n\r\na\r\n--C--\r\n"]),
]


@pytest.mark.parametrize(("body", "wanted"), DELIMITED)
def test_delimiters(body: bytes, wanted: list[bytes]) -> None:
    assert bodies(MIXED + body) == wanted


@pytest.mark.parametrize(
    ("parameter", "boundary"),
    [
        (b"boundary=B", b"B"),
        (b"BOUNDARY=B", b"B"),
        (b"charset=x; boundary=B", b"B"),
        (b'boundary="B C"', b"B C"),
        (b'boundary="B "', b"B"),
        (b'boundary=" B"', b" B"),
        (b'boundary="a\\"b\\\\c"', b'a"b\\c'),
        (b'boundary="B', b"B"),
        (b"boundary='B'", b"'B'"),
        (b"boundary==_B_=", b"=_B_="),
        (b"\r\n\tboundary=B", b"B"),
        (b'boundary="' + b"x" * 70 + b'"', b"x" * 70),
        (b"boundary=\xfc", b"\xfc"),
    ],
)
def test_the_boundary(parameter: bytes, boundary: bytes) -> None:
    field = b"Content-Type: multipart/mixed; " + parameter + b"\r\n\r\n"
    body = b"--%b\r\n\r\na\r\n--%b--\r\n" % (boundary, boundary)
    assert bodies(field + body) == [b"a"]


@pytest.mark.parametrize("parameter", [b"", b"; boundary", b"; charset=x"])
def test_without_a_boundary_a_multipart_is_text(parameter: bytes) -> None:
    content = b"Content-Type: multipart/mixed" + parameter + b"\r\n\r\n--\r\n\r\na\r\n----\r\n"
    assert parts(content) == [("text/plain", b"--\r\n\r\na\r\n----\r\n")]


# A part's header, and the type, transfer encoding and disposition that are read from it.
HEADERS = [
    (b"", ("text/plain", "", "")),
    (b"Content-Type: image/png\r\n", ("image/png", "", "")),
    (b"content-TYPE: Image/PNG\r\n", ("image/png", "", "")),
    (b"Content-Type:image/png\r\n", ("image/png", "", "")),
    (b"Content-Type : image/png\r\n", ("image/png", "", "")),
    (b"Content-Type:\r\n image/png\r\n", ("image/png", "", "")),
    (b"Content-Type: image/png\r\nContent-Type: text/html\r\n", ("image/png", "", "")),
    (b"X: 1\r\nContent-Type: image/png\r\n", ("image/png", "", "")),
    (b"X-Content-Type: image/png\r\n", ("text/plain", "", "")),
    (b"X: 1\r\n Content-Type: image/png\r\n", ("text/plain", "", "")),
    (b"Content-Type: image\r\n", ("text/plain", "", "")),
    (b"Content-Type: \r\n", ("text/plain", "", "")),
    (b"Content-Type: ; name=x\r\n", ("text/plain", "", "")),
    (b"Content-Type: i m/png\r\n", ("text/plain", "", "")),
    (b"Content-Type: \xff/\xff\r\n", ("text/plain", "", "")),
    (b"Content-Transfer-Encoding: BASE64\r\n", ("text/plain", "base64", "")),
    (b"Content-Transfer-Encoding: base64 \r\n", ("text/plain", "base64", "")),
    (b'Content-Transfer-Encoding: "base64"\r\n', ("text/plain", "base64", "")),
    (b"Content-Transfer-Encoding:\r\n", ("text/plain", "", "")),
    (b"Content-Disposition: inline\r\n", ("text/plain", "", "inline")),
    (b"Content-Disposition:\r\n\tinline;\r\n\tx=y\r\n", ("text/plain", "", "inline;\tx=y")),
    (b"Content-Disposition: \xff\r\n", ("text/plain", "", "\xff")),
]


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(("header", "wanted"), HEADERS)
def test_a_part_s_header(header: bytes, wanted: tuple[str, str, str], line_end: bytes) -> None:
    content = (MIXED + b"--B\r\n" + header + b"\r\na\r\n--B--\r\n").replace(b"\r\n", line_end)
    (part,) = read_parts(content)
    assert (part.kind, part.encoding, part.disposition) == wanted
    assert content[part.start : part.end] == b"a"


def test_in_a_digest_parts_are_messages() -> None:
    content = (
        b"Content-Type: multipart/digest; boundary=B\r\n\r\n"
        b"--B\r\n\r\nSubject: a\r\n\r\nb\r\n"
        b"--B\r\nContent-Type: text/plain\r\n\r\nc\r\n"
        b"--B\r\nContent-Type: none\r\n\r\nd\r\n"
        b"--B--\r\n"
    )
    assert parts(content) == [
        ("message/rfc822", b"Subject: a\r\n\r\nb"),
        ("text/plain", b"c"),
        ("text/plain", b"d"),
    ]


def multipart(boundary: bytes, *inner: bytes, close: bool = True) -> bytes:
    """A multipart with its header."""
    head = b"Content-Type: multipart/mixed; boundary=" + boundary + b"\r\n\r\n"
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in inner)
    return head + body + (b"--" + boundary + b"--\r\n" if close else b"")


def test_nested_multiparts_in_order() -> None:
    content = multipart(
        b"B", multipart(b"C", b"\r\na", b"\r\nb"), b"\r\nc", multipart(b"D", b"\r\nd"), b"\r\ne"
    )
    assert bodies(content) == [b"a", b"b", b"c", b"d", b"e"]


def test_the_delimiter_outside_ends_what_is_inside() -> None:
    content = multipart(b"B", multipart(b"C", b"\r\na", b"\r\nb", close=False), b"\r\nc")
    assert bodies(content) == [b"a", b"b\r\n", b"c"]


def test_a_boundary_that_begins_like_the_one_outside() -> None:
    assert bodies(multipart(b"B", multipart(b"Bb", b"\r\na"), b"\r\nb")) == [b"a", b"b"]


def test_messages_are_not_looked_into() -> None:
    inner = multipart(b"B", b"\r\na")
    assert parts(b"Content-Type: message/rfc822\r\n\r\n" + inner) == [("message/rfc822", inner)]


# ---- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [MAX_PARTS - 2, 2 * MAX_PARTS])
def test_parts_are_counted_up_to_a_limit(count: int) -> None:
    found = bodies(multipart(b"B", *[b"\r\n%d" % number for number in range(count)]))
    assert MAX_PARTS - 2 <= len(found) <= MAX_PARTS
    assert found == [b"%d" % number for number in range(len(found))]


@pytest.mark.parametrize("depth", [1, 5, MAX_DEPTH, MAX_DEPTH + 1, 2 * MAX_DEPTH])
def test_multiparts_are_looked_into_up_to_a_limit(depth: int) -> None:
    content = b"\r\ndeep"
    for number in range(depth):
        content = multipart(b"b%dx" % number, content)
    (part,) = read_parts(content)
    if depth <= MAX_DEPTH:
        assert (part.kind, payload(content, part)) == ("text/plain", b"deep")
    else:
        assert part.kind == "multipart/mixed"
        assert b"deep" in payload(content, part)


def test_a_header_that_has_no_end() -> None:
    content = multipart(b"B", b"X: " + b"x" * MAX_HEADER + b"\r\n\r\na", b"\r\nb")
    assert bodies(content)[1] == b"b"


@pytest.mark.parametrize("more", range(-12, 13))
def test_a_header_as_long_as_is_looked_at(more: int) -> None:
    """Wherever the limit falls, the text begins behind the empty line."""
    field = b"Content-Type: text/html\r\nX: " + b"x" * 60 + b"\r\n"
    header = field + b"Y: " + b"y" * (MAX_HEADER - len(field) - 9 + more) + b"\r\nZ: 1\r\n"
    (part,) = read_parts(header + b"\r\ntext\r\n\r\nmore")
    assert part.kind == "text/html"
    assert payload(header + b"\r\ntext\r\n\r\nmore", part) == b"text\r\n\r\nmore"


def test_a_long_line_that_is_no_field_is_text() -> None:
    content = b"long " * MAX_HEADER
    assert parts(content) == [("text/plain", content)]
    assert bodies(multipart(b"B", b"X: 1\r\n" + content)) == [content]


def test_lookalikes_of_a_delimiter() -> None:
    text = b"--B-- no\r\n--Bx\r\n" * 100 + b"end"
    assert bodies(multipart(b"B", b"\r\n" + text, b"\r\nb")) == [text, b"b"]


def test_a_large_message_is_looked_into_as_a_small_one() -> None:
    """As S/MIME has it: signed > mixed > related > alternative, and all but nothing outside."""
    text = b"A line of a text.\r\n" * 900_000  # 16 MB
    content = multipart(b"alt", b"\r\n" + text)
    for boundary in (b"related", b"mixed", b"signed"):
        content = multipart(boundary, content)
    (part,) = read_parts(content)
    assert part.kind == "text/plain"
    assert part.end - part.start == len(text)


# ---- transfer encodings ------------------------------------------------------------------------

UUENCODED = b"".join(binascii.b2a_uu(b"0123456789" * 4) for _ in range(3))
ENCODED = [
    (b"", b"a=41\r\n", b"a=41\r\n"),
    (b"7bit", b"a=41", b"a=41"),
    (b"8bit", b"\xff=41", b"\xff=41"),
    (b"binary", b"\0\r\n\xff", b"\0\r\n\xff"),
    (b"x-no-such", b"a=41", b"a=41"),
    (b"quoted-printable", b"a=41=3D", b"aA="),
    (b"Quoted-Printable", b"a=e4=E4", b"a\xe4\xe4"),
    (b"quoted-printable", b"a=\r\nb=\nc\r\nd", b"abc\r\nd"),
    (b"quoted-printable", b"100 % = all", b"100 % = all"),
    (b"quoted-printable", b"\xc3\xbc=C3=BC", b"\xc3\xbc\xc3\xbc"),
    (b"quoted-printable", b"a=", b"a"),
    (b"quoted-printable", b"", b""),
    (b"base64", b"YWJj", b"abc"),
    (b"base64", b"YW\r\nJj\r\n", b"abc"),
    (b"base64", b"YWI=", b"ab"),
    (b"base64", b"YWI", b"ab"),
    (b"base64", b"YQ", b"a"),
    (b"base64", b"YQ=", b"a"),
    (b"base64", b"YWJjZ", b"abc"),
    (b"base64", b"Y", b""),
    (b"base64", b"YWJj====", b"abc"),
    (b"base64", b"Y!W#J\xffj", b"abc"),
    (b"base64", b" Y W J j ", b"abc"),
    (b"base64", b"", b""),
    (b"base64", b"=", b""),
    (b"base64", b"!!!", b""),
    (b"x-uuencode", b"begin 644 a\r\n#86)C\r\n`\r\nend\r\n", b"abc"),
    (b"uuencode", b"begin 644 a\n#86)C\n \nend\n", b"abc"),
    (b"x-uue", b"text\r\nbegin 644 a\r\n#86)C\r\nend\r\nmore\r\n", b"abc"),
    (b"x-uuencode", b"begin 644 a\r\n#86)C\r\n", b"abc"),
    (b"x-uuencode", b"begin 644 a\r\n" + UUENCODED + b"`\r\nend\r\n", b"0123456789" * 12),
    # One too many, as some encoders have it for a checksum.
    (b"x-uuencode", b"begin 644 a\r\n#86)CX\r\n`\r\nend\r\n", b"abc"),
    (b"x-uuencode", b"begin 644 a\r\n#86)C\r\n\r\n`\r\n\r\nend\r\n", b"abc"),
    (b"x-uuencode", b"nothing begins here\r\n", b"nothing begins here\r\n"),
    (b"x-uuencode", b"", b""),
]


@pytest.mark.parametrize(("encoding", "encoded", "wanted"), ENCODED)
def test_transfer_encodings(encoding: bytes, encoded: bytes, wanted: bytes) -> None:
    content = b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + encoded
    assert bodies(content) == [wanted]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 100, 101, 10_000])
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit"])
def test_a_limit_takes_the_first_octets(encoding: str, limit: int) -> None:
    octets = bytes(range(256)) * 20
    encode = {
        "base64": base64.encodebytes,
        "quoted-printable": quopri.encodestring,
        "8bit": bytes,
    }[encoding]
    content = b"Content-Transfer-Encoding: %b\r\n\r\n%b" % (encoding.encode(), encode(octets))
    (part,) = read_parts(content)
    found = payload(content, part, limit)
    assert octets.startswith(found)
    assert len(found) == min(limit, len(octets))
    assert payload(content, part) == octets


@pytest.mark.parametrize(
    "unit", [b"\n", b"\r\n", b"M\n", b"!\r\n", b"x\n", b"M" + b" " * 60 + b"\n"]
)
def test_what_is_uuencoded_does_not_grow(unit: bytes) -> None:
    lines = unit * (2_000_000 // len(unit))
    content = b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 a\n" + lines
    (part,) = read_parts(content)
    tracemalloc.start()
    try:
        payload(content, part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24_000_000


def test_nothing_is_copied_while_parts_are_looked_for() -> None:
    content = multipart(b"B", *[b"\r\n" + b"x" * 1_000_000] * 8)
    tracemalloc.start()
    try:
        assert len(read_parts(content)) == 8
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_each_part_is_a_range_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are what ends the work: with smaller ones there is less of it."""
    monkeypatch.setattr(mime, "MAX_PARTS", 10)
    content = multipart(b"B", *[multipart(b"C%d" % n, b"\r\na", b"\r\nb") for n in range(20)])
    found = read_parts(content)
    assert 0 < len(found) <= 10
    ends = [0]
    for part in found:
        assert ends[-1] <= part.start <= part.end <= len(content)
        ends.append(part.end)
