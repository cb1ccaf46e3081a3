"""What is a message's text, in which charset was it, and what is attached? Tables first."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any

import pytest

from gsmtpd.message import row as row_module
from gsmtpd.message.body import MAX_NAME, MAX_TEXT, NOTHING, attachment, read_body
from gsmtpd.message.charsets import UNKNOWN
from gsmtpd.message.headers import MAX_HEADER, score_reader
from gsmtpd.message.row import WIDTHS, Decode, Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope

ENVELOPE = Envelope("h", True, None, (Mailbox("u", "example.com"),))
REPLACED = "\ufffd"


def text_of(content: bytes) -> tuple[str, str]:
    """The text and its charset."""
    found = read_body(content)
    return found.text, found.charset


def of_type(kind: str, body: bytes, *fields: str) -> bytes:
    """A message, or a part, of one text."""
    head = "".join(f"{field}\r\n" for field in (f"Content-Type: {kind}", *fields))
    return head.encode("latin-1") + b"\r\n" + body


def multipart(subtype: str, *inner: bytes, boundary: str = "B") -> bytes:
    """A multipart of those."""
    parts = b"".join(b"--%b\r\n%b\r\n" % (boundary.encode(), part) for part in inner)
    body = parts + b"--%b--\r\n" % boundary.encode()
    return of_type(f'multipart/{subtype}; boundary="{boundary}"', body)


PLAIN = of_type("text/plain", b"plain")
HTML = of_type("text/html", b"<p>html</p>")
BLANK = of_type("text/plain", b" \r\n\t\r\n")
CALENDAR = of_type("text/calendar", b"calendar")
ENRICHED = of_type("text/enriched", b"<b>enriched</b>")
PDF = of_type("application/pdf", b"%PDF")
NAMED = of_type("text/plain; name=a.txt", b"named")
ATTACHED = of_type("text/plain", b"attached", "Content-Disposition: attachment")
FORWARDED = of_type("message/rfc822", b"Subject: x\r\n\r\nforwarded\r\n")
PNG = of_type("image/png", b"png", "Content-Disposition: inline")

# A message, its text, and the types of its attachments.
CHOICES: list[tuple[bytes, str, list[str]]] = [
    (PLAIN, "plain", []),
    (HTML, "html\n", []),
    (CALENDAR, "calendar", []),
    (NAMED, "named", []),
    (ATTACHED, "attached", []),
    (PDF, "", ["application/pdf"]),
    (b"", "", []),
    (b"\r\ntext", "text", []),
    (multipart("alternative", PLAIN, HTML), "plain", []),
    (multipart("alternative", HTML, PLAIN), "plain", []),
    (multipart("alternative", BLANK, HTML), "html\n", []),
    (multipart("alternative", BLANK, CALENDAR), "calendar", []),
    (multipart("mixed", BLANK), " \n\t\n", []),
    (multipart("mixed", BLANK, PDF), " \n\t\n", ["application/pdf"]),
    (multipart("mixed", BLANK, PLAIN), "plain", []),
    (multipart("mixed", CALENDAR, HTML), "html\n", []),
    (multipart("mixed", CALENDAR, ENRICHED), "calendar", []),
    (multipart("mixed", ENRICHED, PLAIN), "plain", []),
    (multipart("mixed", PLAIN, of_type("text/plain", b"more")), "plain", []),
    (multipart("mixed", NAMED, HTML), "html\n", ["text/plain"]),
    (multipart("mixed", ATTACHED, HTML), "html\n", ["text/plain"]),
    (multipart("mixed", NAMED), "", ["text/plain"]),
    (multipart("mixed", PDF, PLAIN), "plain", ["application/pdf"]),
    (multipart("mixed", FORWARDED, PLAIN), "plain", ["message/rfc822"]),
    (multipart("mixed", FORWARDED), "forwarded\n", ["message/rfc822"]),
    (multipart("mixed", PDF, FORWARDED), "forwarded\n", ["application/pdf", "message/rfc822"]),
    (multipart("mixed", NAMED, FORWARDED), "forwarded\n", ["text/plain", "message/rfc822"]),
    (FORWARDED, "forwarded\n", ["message/rfc822"]),
    (of_type("message/rfc822", FORWARDED), "forwarded\n", ["message/rfc822"]),
    (of_type("message/rfc822", multipart("mixed", PNG, HTML)), "html\n", ["message/rfc822"]),
    (multipart("related", HTML, PNG), "html\n", ["image/png"]),
    (multipart("mixed"), "", []),
    (
        multipart("mixed", multipart("alternative", HTML, PLAIN, boundary="C"), PDF, PLAIN),
        "plain",
        ["application/pdf"],
    ),
    (multipart("mixed", of_type("text/plain; name=", b"no name")), "no name", []),
    (multipart("mixed", of_type("text/plain", b"a", "Content-Disposition: INLINE")), "a", []),
    (
        multipart("mixed", of_type("text/plain", b"a", "Content-Disposition: ATTACHMENT")),
        "",
        ["text/plain"],
    ),
    (
        multipart("mixed", of_type("text/plain", b"a", "Content-Disposition: inline; filename=a")),
        "",
        ["text/plain"],
    ),
]


@pytest.mark.parametrize(("content", "text", "attached"), CHOICES)
def test_the_text_and_what_is_attached(content: bytes, text: str, attached: list[str]) -> None:
    found = read_body(content)
    assert found.text == text
    assert [each.content_type for each in found.attachments] == attached


# Octets, the charset that is said of them, and what they become.
GRUSS = "Grüße"
CHARSETS: list[tuple[bytes, str | None, str, str]] = [
    (b"abc", None, "abc", "us-ascii"),
    (b"", None, "", ""),
    (b"", "utf-8", "", ""),
    (GRUSS.encode(), None, GRUSS, "utf-8"),
    (GRUSS.encode("cp1252"), None, GRUSS, UNKNOWN),
    (b"abc", "us-ascii", "abc", "us-ascii"),
    (GRUSS.encode(), "us-ascii", GRUSS, "utf-8"),
    (GRUSS.encode("cp1252"), "us-ascii", GRUSS, UNKNOWN),
    (b"abc", "utf-8", "abc", "utf-8"),
    (b"abc", "UTF-8", "abc", "utf-8"),
    (b"abc", '"utf-8"', "abc", "utf-8"),
    (GRUSS.encode(), "utf-8", GRUSS, "utf-8"),
    (b"a\xff", "utf-8", "a" + REPLACED, UNKNOWN),
    (GRUSS.encode("latin-1"), "iso-8859-1", GRUSS, "iso-8859-1"),
    (b"\x80 5", "iso-8859-1", "€ 5", "iso-8859-1"),
    (GRUSS.encode("utf-16-le"), "utf-16le", GRUSS, "utf-16le"),
    (GRUSS.encode("utf-16"), "utf-16", GRUSS, "utf-16"),
    (GRUSS.encode("utf-32"), "utf-32", GRUSS, "utf-32"),
    ("語".encode("iso2022_jp"), "ISO-2022-JP", "語", "iso-2022-jp"),
    ("語".encode("shift_jis"), "Shift_JIS", "語", "shift_jis"),
    ("语".encode("gb2312"), "gb2312", "语", "gb2312"),
    ("镕".encode("gb18030"), "gb2312", "镕", "gb2312"),
    ("한".encode("cp949"), "ks_c_5601-1987", "한", "ks_c_5601-1987"),
    ("Привет".encode("koi8-r"), "koi8-r", "Привет", "koi8-r"),
    (b"abc", "x-no-such", "abc", "x-no-such"),
    (GRUSS.encode(), "x-no-such", GRUSS, "utf-8"),
    (GRUSS.encode("cp1252"), "x-no-such", GRUSS, UNKNOWN),
    # Of utf-16 there are two octets each.
    (b"abc", "utf-16", "扡" + REPLACED, UNKNOWN),
    # A byte order mark is not text.
    (b"\xef\xbb\xbfabc", "utf-8", "abc", "utf-8"),
    (b"\xef\xbb\xbfabc", None, "abc", "utf-8"),
    (b"\xff\xfea\0", "utf-16", "a", "utf-16"),
    (b"\xff\xfea\0", "utf-16le", "a", "utf-16le"),
    # Line ends and NUL.
    (b"a\r\nb\rc\nd\r\r\ne\r", None, "a\nb\nc\nd\n\ne\n", "us-ascii"),
    ("a\r\nb\rc\n".encode("utf-16-le"), "utf-16le", "a\nb\nc\n", "utf-16le"),
    ("a\r\nb\rc\n".encode("utf-32-be"), "utf-32be", "a\nb\nc\n", "utf-32be"),
    ("ഊഊ".encode("utf-16-be"), "utf-16be", "ഊഊ", "utf-16be"),  # of octets that are CR LF
    (b"a\0b", None, "a" + REPLACED + "b", "us-ascii"),
    (b"a\0b", "utf-8", "a" + REPLACED + "b", "utf-8"),
    ("a\0b".encode("utf-16-le"), "utf-16le", "a" + REPLACED + "b", "utf-16le"),
    (b"+2AA-", "utf-7", REPLACED, "utf-7"),  # half of a pair
    (b"\xed\xa0\x80", "utf-8", REPLACED * 3, UNKNOWN),
    # No charsets, but codecs of Python.
    *[
        (b"abc", name, "abc", name)
        for name in ("zlib", "bz2", "hex", "base64", "rot13", "uu", "idna", "punycode", "mbcs")
    ],
]


@pytest.mark.parametrize(("octets", "charset", "text", "said"), CHARSETS)
def test_charsets(octets: bytes, charset: str | None, text: str, said: str) -> None:
    kind = "text/plain" if charset is None else f"text/plain; charset={charset}"
    assert text_of(of_type(kind, octets)) == (text, said)
    in_base64 = of_type(kind, base64.encodebytes(octets), "Content-Transfer-Encoding: base64")
    assert text_of(in_base64) == (text, said)


@pytest.mark.parametrize("charset", ["zlib", "bz2", "hex", "base64", "rot13", "uu", "quopri"])
@pytest.mark.parametrize("count", [MAX_TEXT - 1, MAX_TEXT, MAX_TEXT + 1])
def test_a_codec_that_is_no_charset_is_not_used(charset: str, count: int) -> None:
    content = of_type(f"text/plain; charset={charset}", b"4" * count)
    assert text_of(content) == ("4" * min(count, MAX_TEXT), charset)


@pytest.mark.parametrize(
    ("charset", "letters"),
    [
        ("utf-8", "aü語👩"),
        ("utf-16", "aü語👩"),
        ("utf-16le", "aü語👩"),
        ("utf-32", "aü語👩"),
        ("gb18030", "aü語👩"),
        ("big5", "a語"),
        ("shift_jis", "a語ｱ"),
        ("euc-jp", "a語ｱ"),
        ("iso-2022-jp", "a語語"),
        ("iso-2022-kr", "a한한"),
        ("utf-7", "a語"),
        ("iso-8859-1", "aü"),
    ],
)
@pytest.mark.parametrize("shift", range(6))
def test_a_long_text_is_cut_on_a_character(charset: str, letters: str, shift: int) -> None:
    text = "a" * shift + letters * (MAX_TEXT // len(letters))
    content = of_type(f"text/plain; charset={charset}", text.encode(charset))
    found, said = text_of(content)
    assert said == charset
    assert text.startswith(found)
    # Not much is lost at the end, and not much more than promised is read.
    assert MAX_TEXT - 16 <= len(found.encode(charset)) <= MAX_TEXT + 16


@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
def test_a_text_as_long_as_is_read(encoding: str) -> None:
    for count in (MAX_TEXT - 1, MAX_TEXT, MAX_TEXT + 1):
        octets = b"x" * count
        body = base64.encodebytes(octets) if encoding == "base64" else octets
        content = of_type("text/plain", body, f"Content-Transfer-Encoding: {encoding}")
        assert text_of(content) == ("x" * min(count, MAX_TEXT), "us-ascii")


@pytest.mark.parametrize(
    ("kind", "html", "text", "charset"),
    [
        ("text/html", '<meta charset="iso-8859-1">\xfc', "ü\n", "iso-8859-1"),
        ("text/html", "<META CHARSET=koi8-r>\xc1", "а\n", "koi8-r"),
        (
            "text/html",
            "<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>\xc1",
            "а\n",
            "koi8-r",
        ),
        # What the part itself says counts.
        ("text/html; charset=iso-8859-1", "<meta charset=koi8-r>\xfc", "ü\n", "iso-8859-1"),
        # In ASCII there is nothing to know.
        ("text/html", "<meta charset=koi8-r>a", "a\n", "us-ascii"),
        # Only at the beginning, and only in HTML.
        ("text/html", "x" * 3000 + "<meta charset=koi8-r>\xfc", "x" * 3000 + "ü\n", UNKNOWN),
        ("text/plain", "<meta charset=koi8-r>\xfc", "<meta charset=koi8-r>ü", UNKNOWN),
        ("text/html", "<meta charset=no-such>\xfc", "ü\n", UNKNOWN),
        ("text/html", "<meta charset=''>\xfc", "ü\n", UNKNOWN),
    ],
)
def test_html_may_say_its_charset(kind: str, html: str, text: str, charset: str) -> None:
    assert text_of(of_type(kind, html.encode("latin-1"))) == (text, charset)


@pytest.mark.parametrize(
    "charset",
    ['"utf-8\x1b[31m"', '"a\tb"', "a\0b", '"a\x85b"', '"\xc3\xbc"', "x" * 3000, '"a\r\n b"'],
)
@pytest.mark.parametrize("decode", [Decode.BODY, Decode.HEADERS])
def test_the_charset_is_one_clean_line(charset: str, decode: Decode) -> None:
    content = of_type(f"text/plain; charset={charset}", b"text")
    message = Message("0" * 32, ENVELOPE, content, "192.0.2.1", 1_700_000_000.9)
    (row,) = RowMaker("mx.example.com", decode=decode).rows(message)
    assert row.charset.isprintable()
    assert len(row.charset) <= WIDTHS["charset"]


# ---- attachments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "encoded", "octets"),
    [
        ("7bit", b"abc", b"abc"),
        ("8bit", b"\xff\r\n", b"\xff\r\n"),
        ("base64", b"AAEC/w==", b"\0\1\2\xff"),
        ("quoted-printable", b"=00=FF\r\n", b"\0\xff\r\n"),
        ("base64", b"", b""),
    ],
)
def test_size_and_digest_are_those_of_the_octets(
    encoding: str, encoded: bytes, octets: bytes
) -> None:
    part = of_type(
        'APPLICATION/X; name="other"',
        encoded,
        f"Content-Transfer-Encoding: {encoding}",
        'Content-Disposition: attachment; filename="a b.bin"',
    )
    content = multipart("mixed", PLAIN, part, PDF)
    found = read_body(content)
    assert found.attachments[0] == (
        "a b.bin",
        "application/x",
        len(octets),
        sha256(octets).hexdigest(),
    )
    assert attachment(content, 1) == octets
    assert attachment(content, 2) == b"%PDF"


@pytest.mark.parametrize("number", [-1, 0, 2])
def test_an_attachment_that_is_not_there(number: int) -> None:
    with pytest.raises(IndexError):
        attachment(multipart("mixed", PLAIN, PDF), number)


@pytest.mark.parametrize(
    ("kind", "disposition", "name"),
    [
        ("a/b; name=type.txt", "attachment; filename=disposition.txt", "disposition.txt"),
        ("a/b; name=type.txt", "attachment", "type.txt"),
        ("a/b; name=type.txt", "attachment; filename=", "type.txt"),
        ("a/b; name*=utf-8''%C3%BC", "attachment", "ü"),
        ("a/b", "attachment; filename*0=a; filename*1=b", "ab"),
        ("a/b", "attachment; filename=" + "x" * 3000, "x" * MAX_NAME),
        ("a/b", "attachment", ""),
        ("a/b", "", ""),
    ],
)
def test_the_name_of_an_attachment(kind: str, disposition: str, name: str) -> None:
    part = of_type(kind, b"", f"Content-Disposition: {disposition}")
    (found,) = read_body(multipart("mixed", part)).attachments
    assert found.filename == name


# ---- limits ------------------------------------------------------------------------------------


def test_a_large_attachment_is_read_whole() -> None:
    octets = bytes(range(256)) * 4096 * 3
    part = of_type("a/b", base64.encodebytes(octets), "Content-Transfer-Encoding: base64")
    (found,) = read_body(multipart("mixed", PLAIN, part)).attachments
    assert (found.size, found.sha256) == (len(octets), sha256(octets).hexdigest())


def test_messages_in_messages_are_looked_into_a_few_deep() -> None:
    content = b"\r\ndeep"
    for depth in range(1, 40):
        content = of_type("message/rfc822", content)
        found = read_body(content)
        assert found.text == ("deep" if depth < 4 else "")
        assert len(found.attachments) == 1


def test_nothing_is_nothing() -> None:
    assert NOTHING.text == NOTHING.charset == ""
    assert not NOTHING.attachments


# ---- spam scores -------------------------------------------------------------------------------

SCORES = [
    (b"5.1", 5.1),
    (b" 5.1 ", 5.1),
    (b"-2.5", -2.5),
    (b"+3", 3.0),
    (b".5", 0.5),
    (b"5.", 5.0),
    (b"0", 0.0),
    (b"5.1 (spam)", 5.1),
    (b"Yes, score=5.1 required=5.0 tests=A,B", 5.1),
    (b"No, score=-1.9 tagged_above=-999 required=5", -1.9),
    (b"No, hits=2.5 required=5.0", 2.5),
    (b"Yes, SCORE = 5.1", 5.1),
    (b"*****", 5.0),
    (b"*", 1.0),
    (b"", 0.0),
    (b"Yes", 0.0),
    (b"nan", 0.0),
    (b"inf", 0.0),
    (b"-", 0.0),
    (b"** **", 0.0),
    (b"\xff\xfe", 0.0),
    (b"1e400", 1.0),
    (b"9" * 400, 0.0),
    (b"score=" + b"9" * 400, 0.0),
]


@pytest.mark.parametrize(("value", "score"), SCORES)
@pytest.mark.parametrize("name", [b"X-Spam-Score", b"x-spam-SCORE "])
def test_spam_scores(value: bytes, score: float, name: bytes) -> None:
    read = score_reader("X-Spam-Score")
    field = name + b":" + value + b"\r\n"
    assert read(field) == read(b"A: b\r\n" + field + b"\r\nbody") == score


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n\r\nX-Spam-Score: 5\r\n",
        b"A: b\r\n\r\nX-Spam-Score: 5\r\n",
        b"A: b\n\nX-Spam-Score: 5\n",
        b"X-Spam-Scores: 5\r\n\r\n",
        b"Y-X-Spam-Score: 5\r\n\r\n",
        b"A: X-Spam-Score: 5\r\n\r\n",
        b"A: b\r\n X-Spam-Score: 5\r\n\r\n",
        b"A: " + b"x" * MAX_HEADER + b"\r\nX-Spam-Score: 5\r\n\r\n",
    ],
)
def test_where_there_is_no_score(content: bytes) -> None:
    assert score_reader("X-Spam-Score")(content) == 0.0


def test_the_first_score_counts() -> None:
    """Our own filter writes above what the sender has written."""
    assert score_reader("X-S")(b"X-S: 1\r\nX-S: 99\r\n\r\n") == 1.0


def test_the_name_of_the_field_is_no_pattern() -> None:
    assert score_reader("X.S")(b"X-S: 1\r\nX.S: 2\r\n\r\n") == 2.0


# ---- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError, KeyError])
def test_a_fault_costs_the_text_and_never_the_mail(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(_content: bytes) -> Any:
        raise error("a fault of ours")

    monkeypatch.setattr(row_module, "read_body", fails)
    content = b"Subject: a\r\nFrom: joe@example.com\r\n\r\ntext\r\n"
    message = Message("0" * 32, ENVELOPE, content, "192.0.2.1", 1_700_000_000.9)
    (row,) = RowMaker("mx.example.com").rows(message)
    assert row.mail.endswith(content)
    assert (row.subject, row.from_, row.size) == ("a", "joe@example.com", len(content))
    assert (row.body, row.charset, row.has_attach) == ("", UNKNOWN, 0)
