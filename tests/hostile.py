"""What would somebody send who wants a parser of mail to stand still? Messages up to 10 MB."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Callable, Iterator

SIZE = 10_000_000
"""Octets: what a server takes that takes large mail."""
MULTIPART = b'Content-Type: multipart/mixed; boundary="B"\r\n\r\n'
DASHES = b"-" * 70  # the longest boundary (RFC 2046 section 5.1.1)

_MESSAGES: dict[str, Callable[[], bytes]] = {}


def flood(unit: bytes, size: int = SIZE) -> bytes:
    """`unit` again and again, `size` octets."""
    return (unit * (size // len(unit) + 1))[:size]


def junk(size: int) -> bytes:
    """Octets that do not repeat, and are the same each time."""
    return random.Random(1).randbytes(size)


def numbered(pattern: bytes, count: int) -> bytes:
    """`pattern` with the numbers from 0, one after the other."""
    return b"".join([pattern % number for number in range(count)])


def named(build: Callable[[], bytes]) -> Callable[[], bytes]:
    """A message, whose name is that of its function."""
    _MESSAGES[build.__name__.replace("_", " ")] = build
    return build


def names() -> list[str]:
    """All messages, in the order below."""
    return [*_MESSAGES]


def message(name: str) -> bytes:
    """The message `name`."""
    return _MESSAGES[name]()


def messages() -> Iterator[tuple[str, bytes]]:
    """Each name and its message, one in memory at a time."""
    for name in _MESSAGES:
        yield name, message(name)


def of_type(kind: bytes, body: bytes, encoding: bytes = b"8bit") -> bytes:
    """A message of one part."""
    return b"Content-Type: %b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (kind, encoding, body)


# ---- depth and number --------------------------------------------------------------------------


@named
def multiparts_2000_deep() -> bytes:
    depth = 2000
    opened = b'Content-Type: multipart/mixed; boundary="b0"\r\n\r\n'
    for n in range(depth - 1):
        opened += b'--b%d\r\nContent-Type: multipart/mixed; boundary="b%d"\r\n\r\n' % (n, n + 1)
    closed = b"".join([b"\r\n--b%d--" % n for n in reversed(range(depth))])
    return opened + b"--b%d\r\n\r\ndeep" % (depth - 1) + closed + b"\r\n"


@named
def multiparts_deep_and_much_within() -> bytes:
    opened = b'Content-Type: multipart/mixed; boundary="b0"\r\n\r\n'
    for n in range(2000):
        opened += b'--b%d\r\nContent-Type: multipart/mixed; boundary="b%d"\r\n\r\n' % (n, n + 1)
    return opened + flood(b"A line of text, and nothing else.\r\n")


@named
def multiparts_deep_and_lines_of_dashes_within() -> bytes:
    opened = b'Content-Type: multipart/mixed; boundary="b0"\r\n\r\n'
    for n in range(2000):
        opened += b'--b%d\r\nContent-Type: multipart/mixed; boundary="b%d"\r\n\r\n' % (n, n + 1)
    return opened + flood(b"\n--")


@named
def one_boundary_2000_deep() -> bytes:
    return MULTIPART + (b"--B\r\n" + MULTIPART) * 2000 + b"--B\r\n\r\ndeep\r\n--B--\r\n"


@named
def one_boundary_much() -> bytes:
    return MULTIPART + flood(b"--B\r\n" + MULTIPART)


@named
def every_part_a_multipart_of_its_own() -> bytes:
    """The outer multipart has 1,000 parts, each of which has many more."""
    inner = b'--B\r\nContent-Type: multipart/mixed; boundary="C"\r\n\r\n' + b"--C\r\n\r\n" * 1200
    return MULTIPART + flood(inner)


@named
def messages_2000_deep() -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" * 2000 + b"\r\ndeep\r\n"


@named
def messages_as_deep_as_it_gets() -> bytes:
    return flood(b"Content-Type: message/rfc822\r\n\r\n")


@named
def messages_in_base64() -> bytes:
    content = b"Content-Type: application/pdf\r\n\r\n" + junk(2_000_000)
    for _ in range(6):
        if len(content) > SIZE // 2:
            break
        content = of_type(b"message/rfc822", base64.encodebytes(content), b"base64")
    return content


@named
def many_parts() -> bytes:
    return MULTIPART + b"--B\r\n\r\na\r\n" * 100_000 + b"--B--\r\n"


@named
def many_empty_parts() -> bytes:
    return MULTIPART + flood(b"--B\r\n")


@named
def many_attachments() -> bytes:
    part = b'--B\r\nContent-Type: a/b; name="%d"\r\nContent-Disposition: attachment\r\n\r\na\r\n'
    return MULTIPART + numbered(part, 100_000) + b"--B--\r\n"


@named
def attachments_with_hard_names() -> bytes:
    words = b"=?utf-8?q?=41?= " * 250
    field = b'Content-Disposition: attachment; filename="' + words + b'"\r\n'
    part = b"--B\r\n" + field + b"Content-Type: a/b\r\n\r\na\r\n"
    return MULTIPART + flood(part)


@named
def parts_with_floods_of_fields() -> bytes:
    fields = (b"Content-Type: a/b; " + b"a=1; " * 900 + b"\r\n") * 10
    return MULTIPART + flood(b"--B\r\n" + fields + b"\r\na\r\n")


@named
def empty_multiparts() -> bytes:
    """None of them is a part that counts."""
    empty = b"--C\r\nContent-Type: multipart/x; boundary=D\r\n\r\n--D--\r\n"
    outer = b"--B\r\nContent-Type: multipart/x; boundary=C\r\n\r\n"
    return MULTIPART + flood(outer + empty * 999)


@named
def digests_of_digests() -> bytes:
    return b'Content-Type: multipart/digest; boundary="B"\r\n\r\n' + flood(
        b'--B\r\nContent-Type: multipart/digest; boundary="B"\r\n\r\n'
    )


# ---- delimiters --------------------------------------------------------------------------------


@named
def lookalikes() -> bytes:
    return MULTIPART + flood(b"\n--B")


@named
def lookalikes_with_more_behind() -> bytes:
    return MULTIPART + b"--B\r\n\r\n" + flood(b"\n--Bx")


@named
def lookalikes_that_are_long() -> bytes:
    return MULTIPART + b"--B\r\n\r\n" + flood(b"\n--B" + b" " * 250 + b"x")


@named
def lines_of_two_dashes() -> bytes:
    return MULTIPART + flood(b"\n--")


@named
def dashes() -> bytes:
    return b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n" % DASHES + flood(b"-")


@named
def lines_of_dashes() -> bytes:
    field = b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n" % DASHES
    return field + flood(b"-" * 71 + b"\r\n")


@named
def a_boundary_that_hardly_differs() -> bytes:
    """The search compares nearly all of the boundary at each place."""
    field = b"Content-Type: multipart/mixed; boundary=%bx\r\n\r\n" % (b"-" * 69)
    return field + flood(b"\n" + b"-" * 71)


@named
def a_boundary_of_4000_octets() -> bytes:
    field = b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n" % (b"-" * 3000 + b"x" * 900)
    return field + flood(b"\n" + b"-" * 3002)


# ---- header ------------------------------------------------------------------------------------


@named
def a_million_fields() -> bytes:
    return b"X: 1\r\n" * 1_000_000 + b"\r\nbody\r\n"


@named
def a_million_content_types() -> bytes:
    return b"Content-Type: text/plain; a=1\r\n" * 300_000 + b"\r\nbody\r\n"


@named
def a_header_of_one_line() -> bytes:
    return b"X: " + flood(b"x") + b"\r\n\r\nbody\r\n"


@named
def a_header_of_one_folded_field() -> bytes:
    return b"X: " + flood(b"\r\n x") + b"\r\n\r\nbody\r\n"


@named
def a_header_without_end() -> bytes:
    return flood(b"x")


@named
def encoded_words() -> bytes:
    return b"Subject: " + flood(b"=?utf-8?q?=41?= ") + b"\r\n\r\nbody\r\n"


@named
def encoded_words_without_end() -> bytes:
    return b"Subject: " + flood(b"=?utf-8?q?=41") + b"\r\n\r\nbody\r\n"


@named
def comments() -> bytes:
    return b"To: " + flood(b"(") + b"\r\n\r\nbody\r\n"


@named
def comments_in_from() -> bytes:
    return b"From: " + flood(b"(") + b" a@b.example\r\n\r\nbody\r\n"


@named
def addresses() -> bytes:
    return b"From: " + flood(b'<@(\\"a@') + b"\r\n\r\nbody\r\n"


@named
def an_endless_content_type() -> bytes:
    return b"Content-Type: text/" + flood(b"x") + b"\r\n\r\nbody\r\n"


@named
def parameters() -> bytes:
    return b"Content-Type: text/plain" + numbered(b"; a%d=1", 900_000) + b"\r\n\r\nbody\r\n"


@named
def parameters_in_a_part() -> bytes:
    field = b"Content-Type: text/plain" + flood(b'; a="')
    return MULTIPART + b"--B\r\n" + field + b"\r\n\r\nbody\r\n--B--\r\n"


@named
def semicolons_in_each_part() -> bytes:
    field = b"Content-Disposition: attachment" + b";" * 4000
    return MULTIPART + flood(b"--B\r\n" + field + b"\r\n\r\na\r\n")


@named
def quotes_in_each_part() -> bytes:
    field = b"Content-Disposition: attachment" + b';a="\\' * 800
    return MULTIPART + flood(b"--B\r\n" + field + b"\r\n\r\na\r\n")


@named
def sections_of_a_name() -> bytes:
    field = b"Content-Disposition: attachment" + numbered(b"; filename*%d=a", 10_000)
    part = b"Content-Type: a/b\r\n" + field + b"\r\n\r\na\r\n"
    return MULTIPART + b"--B\r\n" + part + b"--B--\r\n"


@named
def sections_in_each_part() -> bytes:
    sections = numbered(b";filename*%d*=%%41", 190)
    field = b"Content-Type: a/b\r\nContent-Disposition: attachment" + sections
    return MULTIPART + flood(b"--B\r\n" + field + b"\r\n\r\na\r\n")


@named
def an_endless_charset() -> bytes:
    return of_type(b'text/plain; charset="' + flood(b"x") + b'"', b"body\r\n")


@named
def scores() -> bytes:
    return b"X-Spam-Status: " + flood(b"score=") + b"\r\n\r\nbody\r\n"


# ---- bodies ------------------------------------------------------------------------------------


@named
def base64_of_junk() -> bytes:
    return of_type(b"application/x", base64.encodebytes(junk(SIZE * 3 // 4)), b"base64")


@named
def base64_that_is_junk() -> bytes:
    return of_type(b"application/x", junk(SIZE), b"base64")


@named
def base64_that_is_not_padded() -> bytes:
    return of_type(b"application/x", flood(b"A") + b"B", b"base64")


@named
def base64_of_one_octet_each() -> bytes:
    return of_type(b"application/x", flood(b"QQ==\r\n"), b"base64")


@named
def base64_line_ends() -> bytes:
    return of_type(b"text/plain", flood(b"\r\n"), b"base64")


@named
def quoted_printable_equals() -> bytes:
    return of_type(b"text/plain", flood(b"="), b"quoted-printable")


@named
def quoted_printable_equals_attached() -> bytes:
    return of_type(b"application/x", flood(b"="), b"quoted-printable")


@named
def quoted_printable_soft_line_ends() -> bytes:
    return of_type(b"application/x", flood(b"=\r\n"), b"quoted-printable")


@named
def quoted_printable_octets() -> bytes:
    return of_type(b"application/x", flood(b"=00"), b"quoted-printable")


@named
def quoted_printable_equals_and_spaces() -> bytes:
    return of_type(b"application/x", flood(b"=" + b" " * 60), b"quoted-printable")


@named
def quoted_printable_equals_without_line_end() -> bytes:
    """A soft line end is looked for to the end of the text, from each "="."""
    return of_type(b"application/x", flood(b"=x"), b"quoted-printable")


@named
def uuencoded_lines() -> bytes:
    return of_type(b"application/x", b"begin 644 a\r\n" + flood(b"!  \r\n"), b"x-uuencode")


@named
def uuencoded_junk() -> bytes:
    return of_type(b"application/x", b"begin 644 a\r\n" + flood(b"M\r\n"), b"x-uuencode")


@named
def uuencoded_line_ends() -> bytes:
    return of_type(b"application/x", flood(b"\n"), b"x-uuencode")


@named
def uuencoded_octets() -> bytes:
    return of_type(b"application/x", b"begin 644 a\n" + junk(SIZE), b"x-uuencode")


@named
def one_line() -> bytes:
    return of_type(b"text/plain; charset=utf-8", flood(b"x"))


@named
def nul() -> bytes:
    return of_type(b"text/plain; charset=utf-8", flood(b"\0"))


@named
def carriage_returns() -> bytes:
    return of_type(b"text/plain; charset=utf-8", flood(b"\r"))


@named
def line_feeds() -> bytes:
    return of_type(b"text/plain; charset=utf-8", flood(b"\n"))


@named
def line_ends() -> bytes:
    return of_type(b"text/plain; charset=utf-8", flood(b"\r\n"))


@named
def line_ends_from_the_start() -> bytes:
    return flood(b"\r\n")


@named
def nul_from_the_start() -> bytes:
    return flood(b"\0")


@named
def blank_texts() -> bytes:
    """Each might be the text that a person would read, until it is decoded."""
    return MULTIPART + (b"--B\r\n\r\n" + b" " * 9_900 + b"\r\n") * 1000 + b"--B--\r\n"


@named
def blank_texts_in_quoted_printable() -> bytes:
    part = b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=20" * 3_200 + b"\r\n"
    return MULTIPART + (b"--B\r\n" + part) * 1000 + b"--B--\r\n"


@named
def blank_html() -> bytes:
    part = b"Content-Type: text/html\r\n\r\n" + b"<p></p>" * 1_400 + b"\r\n"
    return MULTIPART + (b"--B\r\n" + part) * 999 + b"--B--\r\n"


@named
def utf_7() -> bytes:
    return of_type(b"text/plain; charset=utf-7", flood(b"+2AA-"))


@named
def iso_2022_jp() -> bytes:
    return of_type(b"text/plain; charset=iso-2022-jp", flood(b"\x1b$B0!\x1b(B"))


@named
def zlib_for_a_charset() -> bytes:
    """Python's codec of that name would unpack it."""
    bomb = zlib.compress(bytes(65_000_000), 1)
    return of_type(b"text/plain; charset=zlib", bomb, b"binary")


@named
def hz() -> bytes:
    return of_type(b"text/plain; charset=hz", flood(b"~{"))


@named
def compressible() -> bytes:
    return of_type(b"application/zip", zlib.compress(flood(b"\0")) * 900)


@named
def html_less_than() -> bytes:
    return of_type(b"text/html; charset=utf-8", flood(b"<"))


@named
def html_elements() -> bytes:
    return of_type(b"text/html; charset=utf-8", flood(b"<div><p><table>"))


@named
def html_attributes() -> bytes:
    return of_type(b"text/html; charset=utf-8", b"<a " + flood(b'href="x" style=display '))


@named
def html_references() -> bytes:
    return of_type(b"text/html; charset=utf-8", flood(b"&ampamp;&#x41"))


@named
def html_meta_without_charset() -> bytes:
    return of_type(b"text/html", b"\xff" + flood(b"<meta "))
