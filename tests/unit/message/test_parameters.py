"""Which parameters are read, and which file names? (RFC 2045, RFC 2231, and what senders send)"""

from __future__ import annotations

import pytest

from gsmtpd.message.parameters import bare, charset_of, file_name, find_parameters, match_type

FIELDS = [
    ("text/plain", {}),
    ("text/plain;", {}),
    ("text/plain; charset=utf-8", {"charset": "utf-8"}),
    ("text/plain;charset=utf-8", {"charset": "utf-8"}),
    ("text/plain; CharSet = utf-8", {"charset": "utf-8"}),
    ('text/plain; charset="utf-8"', {"charset": '"utf-8"'}),
    ('a/b; a="x; b=y"; c=z', {"a": '"x; b=y"', "c": "z"}),
    ('a/b; a="x\\"; b=y"; c=z', {"a": '"x\\"; b=y"', "c": "z"}),
    ("a/b; a=1; a=2", {"a": "1"}),
    ("a/b; a=1; A=2", {"a": "1"}),
    ("a/b; a=; b=2", {"a": "", "b": "2"}),
    ("a/b;; ;a=1", {"a": "1"}),
    ("a/b; a=x=y", {"a": "x=y"}),
    ("a/b; a*=utf-8''x; a*0*=y", {"a*": "utf-8''x", "a*0*": "y"}),
    ('a/b; a="no end', {"a": '"no end'}),
    ("a/b; a", {}),
    ("", {}),
]


@pytest.mark.parametrize(("field", "wanted"), FIELDS)
def test_parameters(field: str, wanted: dict[str, str]) -> None:
    assert find_parameters(field) == wanted


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("text/plain", "text/plain"),
        (" text/plain; a=b", "text/plain"),
        ("text/x.y-z+xml;a", "text/x.y-z+xml"),
        ("text", None),
        ("/plain", None),
        ("text/", None),
        ("text /plain", None),
        ("te xt/plain", None),
        ("\xe4/\xf6", None),
        ("", None),
    ],
)
def test_types(field: str, wanted: str | None) -> None:
    match = match_type(field)
    assert (match[1] if match else None) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a", "a"),
        ('"a"', "a"),
        ('"a b"', "a b"),
        ('"a\\"b"', 'a"b'),
        ('"C:\\\\new.doc"', "C:\\new.doc"),
        ('"C:\\new.doc"', "C:\\new.doc"),
        ('"', ""),
        ('""', ""),
        ('"no end', "no end"),
        ('in "the" middle', 'in "the" middle'),
        ("", ""),
    ],
)
def test_quotes(value: str, wanted: str) -> None:
    assert bare(value) == wanted


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("t/p; charset=UTF-8", "utf-8"),
        ('t/p; charset="UTF-8"', "utf-8"),
        ("t/p; charset='utf-8'", "utf-8"),
        ('t/p; charset=" utf-8 "', "utf-8"),
        ("t/p; charset*=us-ascii'en'ISO-8859-1", "iso-8859-1"),
        ("t/p; charset*=''utf-8", "utf-8"),
        ("t/p; charset*=utf-8", "utf-8"),
        ("t/p; charset=", ""),
        ("t/p", ""),
    ],
)
def test_charsets(field: str, wanted: str) -> None:
    assert charset_of(find_parameters(field)) == wanted


NAMES = [
    ("filename=a.txt", "a.txt"),
    ('filename="a b.txt"', "a b.txt"),
    ('filename=" a.txt "', "a.txt"),
    ('filename=""', ""),
    ("filename=", ""),
    ("", ""),
    ("name=a.txt", ""),
    # RFC 2231
    ("filename*=utf-8''%C3%BC.txt", "ü.txt"),
    ("filename*=UTF-8'de'%c3%bc.txt", "ü.txt"),
    ("filename*=iso-8859-1''%FC.txt", "ü.txt"),
    ("filename*=\"utf-8''%C3%BC.txt\"", "ü.txt"),
    ("filename*=utf-8''it's.txt", "it's.txt"),
    ("filename*=''%C3%BC.txt", "ü.txt"),
    ("filename*=%C3%BC.txt", "ü.txt"),
    ("filename*=no-such''%C3%BC.txt", "ü.txt"),
    ("filename*=utf-8''%FF.txt", "\ufffd.txt"),
    ("filename*=utf-8''100%.txt", "100%.txt"),
    ("filename*=utf-8''%4", "%4"),
    ("filename=plain.txt; filename*=utf-8''%C3%BC.txt", "ü.txt"),
    ("filename*=utf-8''%C3%BC.txt; filename=plain.txt", "ü.txt"),
    ("filename*0=a; filename*1=b.txt", "ab.txt"),
    ("filename*1=b.txt; filename*0=a", "ab.txt"),
    ('filename*0="a b"; filename*1=" c.txt"', "a b c.txt"),
    ("filename*0*=utf-8''%C3; filename*1*=%BC.txt", "ü.txt"),
    ("filename*0*=utf-8''%C3%BC; filename*1=%41.txt", "ü%41.txt"),
    ("filename*0=a%41; filename*1*=%42.txt", "a%41B.txt"),
    ("; ".join(f"filename*{n}=x" for n in range(12)), "x" * 12),
    ("filename*10=z; filename*9=y; filename*0=x", "xyz"),
    # RFC 2047, as most mailers of its time
    ('filename="=?utf-8?Q?=C3=BC.txt?="', "ü.txt"),
    ("filename==?utf-8?B?w7wudHh0?=", "ü.txt"),
    ('filename="=?utf-8?Q?a?= =?utf-8?Q?b.txt?="', "ab.txt"),
    # Raw octets
    ('filename="\xc3\xbc.txt"', "ü.txt"),
    ('filename="\xfc.txt"', "ü.txt"),
    # No directories
    ('filename="/etc/passwd"', "passwd"),
    ('filename="../../x"', "x"),
    ('filename="C:\\\\temp\\\\a.txt"', "a.txt"),
    ('filename="C:\\temp\\a.txt"', "a.txt"),
    ('filename="dir/"', ""),
    ("filename*=utf-8''..%2F..%2Fx", "x"),
    ("filename*=utf-8''..%5Cx", "x"),
    ('filename="=?utf-8?Q?a=2Fb?="', "b"),
    # One line
    ("filename*=utf-8''a%0D%0Ab%00c", "a  b c"),
    ("filename*=utf-8''a%E2%80%A8b", "a b"),
    ("filename*=utf-8''%C2%85a", "a"),
]


@pytest.mark.parametrize(("field", "wanted"), NAMES)
def test_file_names(field: str, wanted: str) -> None:
    assert file_name(find_parameters("attachment; " + field), "filename") == wanted
