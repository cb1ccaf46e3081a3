"""Which values are read from a header section? The tables are the specification."""

from __future__ import annotations

import codecs
from encodings.aliases import aliases

import pytest

from gsmtpd.message.charsets import to_text
from gsmtpd.message.headers import (
    DEFAULT_TYPE,
    MAX_FIELDS,
    MAX_HEADER,
    Headers,
    cut,
    read_headers,
)
from gsmtpd.message.words import MAX_VALUE

NOTHING = Headers("", "", "", "", "", DEFAULT_TYPE, "", 0)

MESSAGE = b"""\
Return-Path: <bounce-1234@lists.example.org>
Received: from mail.example.com (mail.example.com [192.0.2.45])
\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))
\tby mx.example.net (Postfix) with ESMTPS id 4XyZ1234abc
\tfor <sam@spam4.me>; Tue, 14 Oct 2025 08:15:30 +0000 (UTC)
Received: by mail.example.com with SMTP id a640c23a62f3a
        for <sam@spam4.me>; Tue, 14 Oct 2025 01:15:30 -0700 (PDT)
X-Received: by 2001:db8::1234 with SMTP id a640c23a62f3a
MIME-Version: 1.0
From: Joe Sender <Joe.Sender@example.com>
Sender: "The List" <list-owner@lists.example.org>
Date: Tue, 14 Oct 2025 10:15:17 +0200
Message-ID: <CAF8x1234567890=A@mail.example.com>
Subject: Your registration at example.com,
 please confirm
To: sam@spam4.me
Reply-To: Help Desk <help@example.com>
Content-Type: Multipart/Alternative;
\tboundary="0000Aa"
Content-Transfer-Encoding: 7bit

Subject: not this one
"""


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_an_ordinary_message(line_end: bytes) -> None:
    assert read_headers(MESSAGE.replace(b"\n", line_end)) == Headers(
        from_="Joe.Sender@example.com",
        subject="Your registration at example.com, please confirm",
        message_id="<CAF8x1234567890=A@mail.example.com>",
        reply_to="help@example.com",
        sender="list-owner@lists.example.org",
        content_type='multipart/alternative; boundary="0000Aa"',
        charset="",
        received=2,
    )


SECTIONS = [
    (b"", ""),
    (b"\r\n", ""),
    (b"\r\nSubject: body\r\n", ""),
    (b"\nSubject: body\n", ""),
    (b"Just a line of text.\r\nSubject: body\r\n", ""),
    (b" Subject: begins with a space\r\nSubject: body\r\n", ""),
    (b"Subject: a\r\n\r\nbody", "a"),
    (b"Subject: no line end", "no line end"),
    (b"Subject: no empty line\r\n", "no empty line"),
    (b"sUBJECT: any case\r\n\r\n", "any case"),
    (b"Subject:no space\r\n\r\n", "no space"),
    (b"Subject : space before the colon\r\n\r\n", "space before the colon"),
    (b"Subject: the first\r\nSubject: the second\r\n\r\n", "the first"),
    (b"Subject:\r\nSubject: the first was empty\r\n\r\n", ""),
    (b"Subject: a: b\r\n\r\n", "a: b"),
    (b"X-Subject: no\r\nSubjects: no\r\nSubject: a\r\n\r\n", "a"),
    (b"X: a\r\n\r\nSubject: body\r\n", ""),
    (b"X: a\n\nSubject: body\r\n\r\n", ""),
    (b"X: a\r\nno field\r\nSubject: body\r\n\r\n", ""),
    (b"X: a\r\n: no name\r\nSubject: body\r\n\r\n", ""),
    (b"X: a\r\nGr\xfc\xdfe: no name\r\nSubject: body\r\n\r\n", ""),
    (b"X: a\r\nno name: b\r\nSubject: body\r\n\r\n", ""),
    (b"X: a\r\nFrom no mbox line here\r\nSubject: body\r\n\r\n", ""),
    (b"From joe Mon Jan  1 00:00:00 2024\r\nSubject: mbox\r\n\r\n", "mbox"),
    (b">From joe Mon Jan  1 00:00:00 2024\nSubject: mbox\n\n", "mbox"),
    (b"From joe\r\n\r\nSubject: body\r\n\r\n", ""),
    (b"X: a\r\n\tgoes on\r\n \r\n and on\r\nSubject: a\r\n\r\n", "a"),
    (b"X: a\r\n Subject: folded\r\n\r\n", ""),
]


@pytest.mark.parametrize(("content", "subject"), SECTIONS)
def test_where_the_header_section_begins_and_ends(content: bytes, subject: str) -> None:
    assert read_headers(content)._replace(received=0) == NOTHING._replace(subject=subject)


def test_an_obsolete_from_field_is_no_mbox_line() -> None:
    assert read_headers(b"From : joe@example.com\r\nSubject: a\r\n\r\n") == NOTHING._replace(
        from_="joe@example.com", subject="a"
    )


SUBJECTS = [
    # Plain text
    (b"Hello", "Hello"),
    (b"  Hello \t", "Hello"),
    (b"Hello,\r\n World", "Hello, World"),
    (b"Hello,\r\n\tWorld", "Hello, World"),
    (b"\r\n Hello", "Hello"),
    (b"Hello,\r\n \r\n World", "Hello,  World"),
    (b"a\x00b\x07c\x7fd\x1b[1m", "a b c d [1m"),
    (b"a\rSubject: b", "a Subject: b"),
    (b"1 =? 2 ?= 3", "1 =? 2 ?= 3"),
    (b"a=b=?c?d", "a=b=?c?d"),
    # 8 bits
    ("Grüße".encode(), "Grüße"),
    ("日本語 📧".encode(), "日本語 📧"),
    ("Grüße, 10 €".encode("cp1252"), "Grüße, 10 €"),
    ("déjà".encode(), "déjà"),  # ends in A0, which is a no-break space only in Latin-1
    (b"caf\xe9", "café"),
    (b"bad \x81\xfe", "bad \ufffdþ"),
    ("a\u2028b\u2029c\u0085d".encode(), "a b c d"),
    ("Grüße, ".encode() + b"=?iso-8859-1?q?J=F6rg?=", "Grüße, Jörg"),
    # Encoded words, RFC 2047 section 8 among them
    (b"=?ISO-8859-1?Q?a?=", "a"),
    (b"=?ISO-8859-1?Q?a?= b", "a b"),
    (b"a =?ISO-8859-1?Q?b?= c", "a b c"),
    (b"=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=", "ab"),
    (b"=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=", "ab"),
    (b"=?ISO-8859-1?Q?a?=\r\n    =?ISO-8859-1?Q?b?=", "ab"),
    (b"=?ISO-8859-1?Q?a_b?=", "a b"),
    (b"=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=", "a b"),
    (b"=?ISO-8859-1?Q?a?=b=?ISO-8859-1?Q?c?=", "abc"),
    (b"=?ISO-8859-1?Q?a?==?ISO-8859-1?Q?b?=", "ab"),
    (b"=?utf-8?Q?a?= - =?utf-8?B?Yg==?=", "a - b"),
    (b"=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=", "If you can read this yo"),
    (b"=?utf-8?q?=E2=82=AC_100?=", "€ 100"),
    (b"=?UTF-8?b?8J+Tpw==?=", "📧"),
    (b"=?utf-8*en-us?Q?colour?=", "colour"),
    (b'"=?utf-8?Q?Gr=C3=BC=C3=9Fe?="', '"Grüße"'),
    (b"Re:=?utf-8?Q?Gr=C3=BC=C3=9Fe?=!", "Re:Grüße!"),
    (b"(=?utf-8?Q?a?=)", "(a)"),
    (b"=?utf-8?Q??=", ""),
    # Characters and streams split across words
    (b"=?utf-8?Q?=E2=82?= =?utf-8?Q?=AC?=", "€"),
    (b"=?utf-8?B?4oI=?=\r\n =?UTF-8?b?rA==?=", "€"),
    (b"=?gb2312?B?1tA=?= =?gb2312?B?zg==?= =?gb2312?B?xA==?=", "中文"),
    (b"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?= =?iso-2022-jp?B?GyRCOGwbKEI=?=", "日本語"),
    (b"=?utf-7?Q?+AGE?= =?utf-7?Q?+AGI-?=", "ab"),
    (b"=?utf-8?Q?=E2=82?= =?utf-8?Q?x?=", "\ufffdx"),
    # Broken words
    (b"=?utf-8?B?SGVsbG8?=", "Hello"),
    (b"=?utf-8?B?SGVsbG8====?=", "Hello"),
    (b"=?utf-8?B?SGVs bG8!=?=", "Hello"),
    (b"=?utf-8?B?SGVsbG8gV?=", "Hello"),
    (b"=?utf-8?B?????=", ""),
    (b"=?utf-8?Q?100=25=?=", "100%"),
    (b"=?utf-8?Q?100%=zz?=", "100%=zz"),
    (b"=?utf-8?Q?How are you??=", "How are you?"),
    (b"=?utf-8?Q?Hello World?=", "Hello World"),
    (b"=?utf-8?Q?Hello\r\n World?=", "Hello World"),
    ("=?utf-8?Q?Grüße?=".encode(), "Grüße"),
    (b"=?utf-8?Q?no end", "=?utf-8?Q?no end"),
    (b"=?utf-8?Q?no end =?utf-8?Q?an_end?=", "=?utf-8?Q?no end an end"),
    (b"=?utf-8?X?a?=", "=?utf-8?X?a?="),
    (b"=??Q?a?=", "=??Q?a?="),
    (b"=?utf-8?Q?a=0D=0ASubject:_b=00?=", "a  Subject: b"),
    (b"=?utf-8?Q?=ED=A0=80?=", "\ufffd\ufffd\ufffd"),
    (b"=?utf-7?Q?+2AA-?=", "\ufffd"),
    (b"=?us-ascii?Q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
    (b"=?us-ascii?Q?Gr=FC=DFe?=", "Grüße"),
    (b"=?utf-8?Q?Gr=FC=DFe?=", "Gr\ufffd\ufffde"),
    (b"=?x-unknown?Q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
    (b"=?x-unknown?Q?Gr=FC=DFe?=", "Grüße"),
    (b"=?rot13?Q?uryyb?=", "uryyb"),
]


@pytest.mark.parametrize(("body", "subject"), SUBJECTS)
def test_subject(body: bytes, subject: str) -> None:
    content = b"Subject: " + body + b"\r\nX: y\r\n\r\n"
    assert read_headers(content) == NOTHING._replace(subject=subject)


ADDRESSES = [
    (b"joe@example.com", "joe@example.com"),
    (b"<joe@example.com>", "joe@example.com"),
    (b"Joe Doe <joe@example.com>", "joe@example.com"),
    (b'"Doe, Joe" <joe@example.com>', "joe@example.com"),
    (b'"Joe \\"the man\\" Doe" <joe@example.com>', "joe@example.com"),
    (b'Joe "the man" Doe <joe@example.com>', "joe@example.com"),
    (b"J. Doe <joe@example.com>", "joe@example.com"),
    (b"Joe<joe@example.com>", "joe@example.com"),
    (b"joe@example.com (Joe)", "joe@example.com"),
    (b"Joe <joe@example.com> trailing", "joe@example.com"),
    (b"Joe\r\n\t<joe@example.com>", "joe@example.com"),
    (b"joe+tag.x_y-z=a/b@sub.example.com", "joe+tag.x_y-z=a/b@sub.example.com"),
    (b"<+joe@example.com>", "+joe@example.com"),
    (b"joe@localhost", "joe@localhost"),
    (b"Joe@Example.COM", "Joe@Example.COM"),
    # Which one?
    (b"a@example.com, b@example.com", "a@example.com"),
    (b"Joe, <b@example.com>", "b@example.com"),
    (b",, <b@example.com>, c@example.com", "b@example.com"),
    (b'"a@example.com" <real@example.org>', "real@example.org"),
    (b"a@example.com <real@example.org>", "real@example.org"),
    (b"a@example.com (b@example.com) <real@example.org>", "real@example.org"),
    (b"a@example.com <>", "a@example.com"),
    (b"a@example.com <nothing>, b@example.com", "a@example.com"),
    (b"<> b@example.com", "b@example.com"),
    (b"Joe joe@example.com", "joe@example.com"),
    (b"Friends: a@example.com, b@example.com;", "a@example.com"),
    (b"Friends: Joe <a@example.com>;", "a@example.com"),
    (b"None:; , b@example.com", "b@example.com"),
    (b"mailto:joe@example.com", "joe@example.com"),
    (b"<@a.example,@b.example:joe@example.com>", "joe@example.com"),
    (b"Joe <@a.example:joe@example.com>", "joe@example.com"),
    # Comments and quotes
    (b"(a@example.com) joe@example.com", "joe@example.com"),
    (b"joe(a (nested \\) one))@example.com", ""),
    (b"(a (nested \\) ) one, it's \") joe@example.com", "joe@example.com"),
    (b"Joe <joe@example.com (Joe)>", "joe@example.com"),
    (b"Joe (work <joe@example.com>", "joe@example.com"),
    (b'"Joe <joe@example.com>', "joe@example.com"),
    (b'Joe" <joe@example.com>', "joe@example.com"),
    (b'"joe doe"@example.com', '"joe doe"@example.com'),
    (b'<"joe@home"@example.com>', '"joe@home"@example.com'),
    (b"'joe@example.com' <joe@example.org>", "joe@example.org"),
    (b"'joe@example.com'", "joe@example.com"),
    (b"joe\\ <joe@example.com>", "joe@example.com"),
    # Obsolete and broken forms
    (b"joe @ example . com", "joe@example.com"),
    (b"< joe@example.com >", "joe@example.com"),
    (b"<joe@example.com", "joe@example.com"),
    (b"Joe <joe@example.com, Ann <ann@example.com>", "joe@example.com"),
    (b"joe@example.com>", "joe@example.com"),
    (b"<<joe@example.com>>", "joe@example.com"),
    (b"joe@[192.0.2.1]", "joe@[192.0.2.1]"),
    (b"Joe <joe@[IPv6:2001:db8::1]>", "joe@[IPv6:2001:db8::1]"),
    # Unicode
    ("Jörg <joerg@example.com>".encode(), "joerg@example.com"),
    ("Jörg <jörg@grüße.example>".encode(), "jörg@grüße.example"),
    ("用户@例え.テスト".encode(), "用户@例え.テスト"),
    ("Jörg <jörg@example.com>".encode("latin-1"), "jörg@example.com"),
    ("joe\u3000joe@example.com".encode(), "joe@example.com"),
    # Encoded words
    (b"=?utf-8?Q?J=C3=B6rg?= <joerg@example.com>", "joerg@example.com"),
    (b"=?utf-8?B?RG9lLCBKb2U=?= <joe@example.com>", "joe@example.com"),
    (b"=?utf-8?Q?<bad@example.org>,_J?= <joe@example.com>", "joe@example.com"),
    (b'"=?utf-8?Q?bad@example.org?=" <joe@example.com>', "joe@example.com"),
    (b"=?utf-8?Q?(?= <joe@example.com>", "joe@example.com"),
    (b"=?utf-8?Q?Joe_=3Cjoe@example.com=3E?=", "joe@example.com"),
    (b"<=?utf-8?Q?j=C3=B6rg?=@example.com>", "jörg@example.com"),
    # Nothing that can be read
    (b"", ""),
    (b"Joe", ""),
    (b"<>", ""),
    (b"joe at example.com", ""),
    (b"undisclosed-recipients:;", ""),
    (b"@example.com", ""),
    (b"joe@", ""),
    (b"joe@@example.com", ""),
    (b"a@b@example.com", ""),
    (b"(joe@example.com)", ""),
    (b'"joe@example.com"', ""),
    (b'"a\x00b"@example.com', ""),
    (b"joe@\x00", ""),
    (b"joe@-", ""),
]


@pytest.mark.parametrize(("body", "address"), ADDRESSES)
def test_from(body: bytes, address: str) -> None:
    content = b"From: " + body + b"\r\nX: y\r\n\r\n"
    assert read_headers(content) == NOTHING._replace(from_=address)


def test_reply_to_and_sender_are_read_like_from() -> None:
    headers = read_headers(b"Sender: Joe <a@x.example>\r\nReply-To: b@x.example (Ann), c@d\r\n")
    assert (headers.sender, headers.reply_to) == ("a@x.example", "b@x.example")


CONTENT_TYPES = [
    (b"text/plain", "text/plain", ""),
    (b"TEXT/Plain; Charset=UTF-8", "text/plain; Charset=UTF-8", "utf-8"),
    (b'text/html;charset="ISO-8859-1"', 'text/html;charset="ISO-8859-1"', "iso-8859-1"),
    (b"text/plain;\r\n\tcharset=us-ascii", "text/plain; charset=us-ascii", "us-ascii"),
    (b"text/plain; charset=us-ascii (Plain text)", None, "us-ascii"),
    (b"text/plain; charset='utf-8'", None, "utf-8"),
    (b'text/plain; charset="utf-8', None, "utf-8"),
    (b"text/plain; charset = utf-8 ; format=flowed", None, "utf-8"),
    (b"text/plain; format=flowed; charset=utf-8; delsp=yes", None, "utf-8"),
    (b'text/plain; name="; charset=bad"; charset=utf-8', None, "utf-8"),
    (b'text/plain; name="\\"; charset=bad"; charset=utf-8', None, "utf-8"),
    (b"text/plain; charset=a; charset=b", None, "a"),
    (b"text/plain; charset*=us-ascii'en'utf-8", None, "utf-8"),
    (b"text/plain; charset=", None, ""),
    (b"text/plain; charset", None, ""),
    (b"text/plain; x-charset=utf-8", None, ""),
    (b"multipart/mixed; boundary=Aa", "multipart/mixed; boundary=Aa", ""),
    (b"text/plain (comment); charset=utf-8", "text/plain; charset=utf-8", "utf-8"),
    (b"application/vnd.ms-excel", "application/vnd.ms-excel", ""),
    (b"text", "text/plain", ""),
    (b"text; charset=koi8-r", "text/plain; charset=koi8-r", "koi8-r"),
    (b"/; x=y", "text/plain; x=y", ""),
    (b"", "text/plain", ""),
    ("text/plain; name=Grüße".encode(), "text/plain; name=Grüße", ""),
    (b"text/plain; name=\xfc\x00", "text/plain; name=ü", ""),
]


@pytest.mark.parametrize(("body", "content_type", "charset"), CONTENT_TYPES)
def test_content_type(body: bytes, content_type: str | None, charset: str) -> None:
    headers = read_headers(b"Content-Type: " + body + b"\r\n\r\n")
    assert headers.charset == charset
    assert headers.content_type == (body.decode() if content_type is None else content_type)


MESSAGE_IDS = [
    (b"<1@example.com>", "<1@example.com>"),
    (b" <1@example.com>\t", "<1@example.com>"),
    (b"\r\n <1@example.com>", "<1@example.com>"),
    (b"1@example.com", "1@example.com"),
    (b"<=?utf-8?Q?a?=@example.com>", "<=?utf-8?Q?a?=@example.com>"),
    ("<grüße@example.com>".encode(), "<grüße@example.com>"),
    (b"<1\x00@example.com>", "<1 @example.com>"),
    (b"", ""),
]


@pytest.mark.parametrize(("body", "message_id"), MESSAGE_IDS)
@pytest.mark.parametrize("name", [b"Message-ID", b"Message-Id", b"MESSAGE-ID"])
def test_message_id(name: bytes, body: bytes, message_id: str) -> None:
    assert read_headers(name + b":" + body + b"\r\n\r\n").message_id == message_id


def test_received_fields_are_counted_without_their_likes() -> None:
    content = (
        b"Received: a\r\n\tb\r\nRECEIVED:c\r\nX-Received: d\r\nReceived-SPF: e\r\n\r\nReceived: f"
    )
    assert read_headers(content).received == 2


def test_only_so_many_fields_are_read() -> None:
    many = b"Received: x\n" * (MAX_FIELDS - 1)
    assert read_headers(many + b"Subject: last\n\n") == NOTHING._replace(
        subject="last", received=MAX_FIELDS - 1
    )
    assert read_headers(b"X:\n" + many + b"Subject: late\n\n").subject == ""
    assert read_headers(b"From joe\n" + many + b"Subject: last\n\n").subject == "last"
    folds = b"X: " + b"\n " * (2 * MAX_FIELDS)
    assert read_headers(folds + b"\nSubject: second\n\n").subject == "second"


def test_only_so_many_octets_are_read() -> None:
    line = b"X: " + b"x" * 1019 + b"\r\n"
    most = line * (MAX_HEADER // len(line) - 1)
    assert read_headers(most + b"Subject: a\r\n\r\n").subject == "a"
    assert read_headers(most + line + b"Subject: a\r\n\r\n").subject == ""


@pytest.mark.parametrize("character", ["a", "é", "語", "📧"])
@pytest.mark.parametrize("before", range(4))
def test_a_long_value_is_cut_on_a_character(character: str, before: int) -> None:
    text = "x" * before + character * MAX_VALUE
    subject = read_headers(b"Subject: " + text.encode() + b"\r\n\r\n").subject
    assert 255 < len(subject) <= MAX_VALUE
    assert text.startswith(subject)


CHARSETS = [
    ("utf-8", "Grüße 語"),
    ("UTF8", "Grüße 語"),
    ("utf-16le", "Grüße 語"),
    ("iso-8859-15", "10 €"),
    ("koi8-r", "Привет"),
    ("koi8-u", "Привіт"),
    ("iso-2022-jp", "日本語"),
    ("euc-jp", "日本語"),
    ("iso-2022-kr", "한국어"),
    ("hz-gb-2312", "中文"),
    ("big5-hkscs", "中文"),
    ("macintosh", "Grüße"),
]


@pytest.mark.parametrize(("charset", "text"), CHARSETS)
def test_charsets_that_python_knows(charset: str, text: str) -> None:
    assert to_text(text.encode(charset), charset) == text


SENDERS_CHARSETS = [
    ("ks_c_5601-1987", "cp949", "한국어 똠"),
    ("euc-kr", "cp949", "한국어 똠"),
    ("x-windows-949", "cp949", "한국어 똠"),
    ("gb2312", "gb18030", "中文 镕"),
    ("GBK", "gb18030", "中文 镕"),
    ("x-gbk", "gb18030", "中文 镕"),
    ("gb_2312-80", "gb18030", "中文 镕"),
    ("big5", "cp950", "中文"),
    ("shift_jis", "cp932", "日本語 ①"),
    ("x-sjis", "cp932", "日本語 ①"),
    ("windows-31j", "cp932", "日本語 ①"),
    ("windows-1252", "cp1252", "10 €"),
    ("x-windows-1251", "cp1251", "Привет"),
    ("win-1251", "cp1251", "Привет"),
    ("cp-850", "cp850", "Grüße"),
    ("cp1250", "cp1250", "Łódź"),
    ("windows-874", "cp874", "ไทย"),
    ("tis-620", "cp874", "ไทย"),
    ("iso-8859-11", "cp874", "ไทย"),
    ("iso-8859-1", "cp1252", "Grüße “quoted” €"),
    ("latin1", "cp1252", "Grüße “quoted” €"),
    ("ISO_8859-1:1987", "cp1252", "Grüße “quoted” €"),
    ("iso8859-1", "cp1252", "Grüße “quoted” €"),
    ("iso-8859-9", "cp1254", "ğış €"),
    ("iso-8859-8-i", "iso8859_8", "שלום"),
    ("iso-8859-8-e", "iso8859_8", "שלום"),
    ("unicode-1-1-utf-7", "utf_7", "Grüße 語"),
    ("x-mac-cyrillic", "mac_cyrillic", "Привет"),
    ("x-mac-ce", "mac_latin2", "Łódź"),
    ("x-mac-japanese", "cp932", "日本語"),
    ("ansi_x3.4-1968", "ascii", "plain"),
    ("utf8mb4", "utf_8", "📧"),
    (' "utf-8" ', "utf_8", "Grüße"),
    ("'iso-8859-2'", "iso8859_2", "Łódź"),
]


@pytest.mark.parametrize(("charset", "codec", "text"), SENDERS_CHARSETS)
def test_charsets_by_the_names_senders_use(charset: str, codec: str, text: str) -> None:
    assert to_text(text.encode(codec), charset) == text


NO_CHARSETS = [
    "rot13", "hex", "zlib", "bz2", "base64", "uu", "quopri", "idna", "punycode",
    "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem", "ansi", "charmap",
    "unknown-8bit", "x-user-defined", "8bit", "us-ascii", "encodings.utf_8",
]  # fmt: skip


@pytest.mark.parametrize("charset", ["", "\x00", "\ud800", "é", "x" * 100_000, *NO_CHARSETS])
def test_what_is_no_charset_is_guessed(charset: str) -> None:
    assert to_text("Grüße \\u0041".encode(), charset) == "Grüße \\u0041"
    assert to_text("Grüße \\u0041".encode("cp1252"), charset) == "Grüße \\u0041"


def test_every_charset_of_python_decodes_any_octets_to_unicode() -> None:
    octets = bytes(range(256)) * 3 + b"+2AA-" + b"\x1b$B~~\xff\xfe\xd8\x00\x80"
    for charset in [*aliases, *aliases.values()]:
        to_text(octets, charset).encode()


def test_an_unknown_charset_is_not_kept_by_python(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(codecs, "lookup", asked.append)
    codecs.register(search := lambda name: asked.append(name))
    try:
        assert to_text(b"text", "x-made-up-by-a-sender") == "text"
    finally:
        codecs.unregister(search)
    assert asked == []


CUTS = [
    ("", 5, ""),
    ("short", 5, "short"),
    ("longer", 5, "longe"),
    ("abc", 0, ""),
    ("日本語", 2, "日本"),
    ("📧📧📧", 2, "📧📧"),
    ("abe\u0301", 3, "ab"),
    ("abe\u0301", 4, "abe\u0301"),
    ("abe\u0301\u0302x", 4, "ab"),
    ("ab\u0915\u093f", 3, "ab"),
    ("a\u2764\ufe0f", 2, "a"),
    ("a👩\u200d👩", 2, "a"),
    ("e" + "\u0301" * 500, 255, "e" + "\u0301" * 254),
    ("\u0301" * 500, 5, "\u0301" * 5),
]


@pytest.mark.parametrize(("text", "length", "expected"), CUTS)
def test_cut(text: str, length: int, expected: str) -> None:
    assert cut(text, length) == expected
