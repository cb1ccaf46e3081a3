"""What does HTML mail say in plain text, whoever reads the HTML: lxml or the own scanner?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.message import html as module
from gsmtpd.message.html import MAX_HTML, MAX_TAGS, to_text
from tests.conftest import lacking

FRONT_ENDS = ["scanner", "lxml"]
URL = "https://example.com/"


def text_of(front_end: str, html: str, *, strict: bool = False) -> str:
    """The text of `html`, read by `front_end`; `strict`: lxml must not leave it to the scanner."""
    with pytest.MonkeyPatch.context() as patch:
        if front_end == "scanner":
            patch.setattr(module, "etree", None)
        elif module.etree is None:
            lacking("lxml")
        elif strict:
            patch.setattr(module, "_scan", None)
        return to_text(html)


CASES = {
    # ---- white space
    "nothing": ("", ""),
    "only space": (" \n\t ", ""),
    "text": ("Hello", "Hello\n"),
    "white space": (" a \n\t b\r\nc\fd ", "a b c d\n"),
    "space around tags": ("<p> a <b> b</b> <i>c </i> d</p>", "a b c d\n"),
    "no space around tags": ("a<b>b</b>c<span>d</span>.", "abcd.\n"),
    "space in wide text": ("„a“ \n  „b“ <b>ü</b> „c“", "„a“ „b“ ü „c“\n"),
    "ideographic space": ("\u65e5\u3000\u672c", "\u65e5\u3000\u672c\n"),
    "no-break spaces": ("a&nbsp;b\xa0 c&nbsp;&nbsp;&nbsp;d", "a b  c   d\n"),
    "indented": ("a<br>&nbsp;&nbsp;b", "a\n  b\n"),
    # ---- blocks
    "breaks": ("a<br>b<BR/>c<br />d", "a\nb\nc\nd\n"),
    "many breaks": ("a<br><br><br><br>b", "a\n\nb\n"),
    "break at the end of a block": ("<div>a<br></div><div>b</div>", "a\nb\n"),
    "gmail": ("<div dir=ltr>a<div><br></div><div>b</div></div>", "a\n\nb\n"),
    "apple": ("<html><body><div>a</div><div><br></div>b<div>c</div></body></html>", "a\n\nb\nc\n"),
    "outlook": ("<p class=MsoNormal>a<o:p></o:p></p><p><o:p>&nbsp;</o:p></p><p>b</p>", "a\n\nb\n"),
    "line of a no-break space": ("<div>a</div><div>&nbsp;</div><div>b</div>", "a\n\nb\n"),
    "divs": ("<div><div>a</div><div>b</div></div>c", "a\nb\nc\n"),
    "paragraphs": ("<p>a</p><p>b</p>c", "a\n\nb\n\nc\n"),
    "open paragraphs": ("<p>a<p>b<ul><li>c</ul>d", "a\n\nb\n\n* c\n\nd\n"),
    "empty paragraphs": ("<p>a</p><p></p><p>\n</p><p>&nbsp;</p><p><br></p><p>b</p>", "a\n\nb\n"),
    "headings": ("<h1>a</h1><h2>b</h2>c<h6>d</h6>", "a\n\nb\n\nc\n\nd\n"),
    "quotes": (
        "a<blockquote type=cite>b<blockquote>c</blockquote></blockquote>d",
        "a\n\nb\n\nc\n\nd\n",
    ),
    "sections": ("<header>a</header><section>b<article>c</article></section>d", "a\nb\nc\nd\n"),
    "other blocks": ("<center>a</center><address>b</address><form>c</form>d", "a\nb\nc\nd\n"),
    "rule": ("a<hr>b<hr/><hr>c", "a\n----\nb\n----\n----\nc\n"),
    "only a rule": ("<hr>", "----\n"),
    "uppercase": ("<P ALIGN=center>a</P><UL><LI>b</UL>", "a\n\n* b\n"),
    "stray end tags": ("<p>a</b></p></ul></ol></table></td></div></li></a></pre></x>b", "a\n\nb\n"),
    "nothing after the body": ("<body><p>a</p></body></html>\n<br>b", "a\n\nb\n"),
    # ---- preformatted
    "pre": ("a<pre>\nif x:\n    y  <b>z</b>\n\n\tt\n</pre>b", "a\n\nif x:\n    y  z\n\n\tt\n\nb\n"),
    "piles in pre": ("<pre>a\n\n \n\nb</pre>", "a\n\nb\n"),
    "textarea": ("a<textarea>b  c\nd</textarea>e", "a\n\nb  c\nd\n\ne\n"),
    # ---- lists
    "list": ("a<ul><li>b</li>\n<li>c</li></ul>d", "a\n\n* b\n* c\n\nd\n"),
    "open items": ("<ul><li>a<li>b</ul>c", "* a\n* b\n\nc\n"),
    "numbers": ("<ol><li>a</li><li>b</li></ol>", "1. a\n2. b\n"),
    "ten items": (
        "<ol>" + "<li>x" * 10 + "</ol>",
        "".join([f"{number}. x\n" for number in range(1, 11)]),
    ),
    "nested lists": (
        "<ol><li>a<ul><li>b</li><li>c<ol><li>d</ol></li></ul></li><li>e</li></ol>f",
        "1. a\n  * b\n  * c\n    1. d\n2. e\n\nf\n",
    ),
    "item without list": ("<li>a</li>", "* a\n"),
    "paragraphs in items": ("<ul><li><p>a</p></li><li><p>b</p></li></ul>", "* a\n\n* b\n"),
    "empty items": ("<ol><li></li><li>a</li></ol>", "2. a\n"),
    "definitions": ("<dl><dt>a<dd>b<dt>c<dd>d</dl>e", "a\nb\nc\nd\ne\n"),
    # ---- tables
    "table": (
        "a<table><thead><tr><th>b<th>c</tr></thead>"
        "<tbody>\n<tr>\n<td>d</td>\n<td>e</td>\n</tr></tbody></table>f",
        "a\n\nb c\nd e\n\nf\n",
    ),
    "open cells": ("<table><tr><td>a<td>b<tr><td>c<td>d</table>e", "a b\nc d\n\ne\n"),
    "word's table": (
        "<table>"
        "<tr><td><p>a<o:p></o:p></p></td><td><p>b</p></td></tr>"
        "<tr><td><p>c</p></td><td><p>d</p></td></tr>"
        "</table><p>e</p>",
        "a b\nc d\n\ne\n",
    ),
    "empty cells": ("<tr><td></td><td>&nbsp;</td><td>a</td><td></td><td>b</td></tr>", "a b\n"),
    "cell of two lines": ("<tr><td>a<br>b</td><td>c</td></tr><tr><td>d</td></tr>", "a\nb\nc\nd\n"),
    "list in a cell": ("<tr><td>a</td><td><ul><li>b<li>c</ul></td></tr>", "a\n* b\n* c\n"),
    "rows of layout": ("<table><tr><td><p>a</p><tr><td><p>b</p></table>", "a\n\nb\n"),
    "rows of layout with spacers": (
        "<table><tr><td>&nbsp;</td><td><p>a</p></td></tr><tr><td>&nbsp;</td><td><p>b</p></td></tr>",
        "a\n\nb\n",
    ),
    "columns of layout": (
        "<table><tr>"
        "<td><table><tr><td>a</td></tr></table></td><td><table><tr><td>b</td></tr></table></td>"
        "</tr><tr><td><table><tr><td>c</td></tr><tr><td>d</td></tr></table></td><td></td></tr>"
        "</table>",
        "a b\nc\nd\n",
    ),
    "nested layout": (
        "<table><tbody><tr><td><div>" * 9 + "a" + "</div></td></tr></tbody></table>" * 9 + "b",
        "a\n\nb\n",
    ),
    "spacers": (
        "<table><tr><td>a</td></tr>"
        + "<tr><td height=20 style='font-size:1px'>&nbsp;</td></tr>" * 4
        + "<tr><td><img src=x.gif alt=''></td></tr><tr><td>b</td></tr></table>",
        "a\n\nb\n",
    ),
    # ---- links and images
    "link": (f"see <a href='{URL}x'>here</a>.", f"see here <{URL}x>.\n"),
    "link that says its url": (f'<a href="{URL}">{URL}</a>', f"{URL}\n"),
    "link that says its host": (f'<a href="{URL}">example.com</a>', "example.com\n"),
    "link with text in tags": (f"<a href={URL}> <b>a</b><div>b</div></a>c", f"a\nb <{URL}>\nc\n"),
    "mail address": ("<a href=mailto:joe@example.com>joe@example.com</a>", "joe@example.com\n"),
    "mailto": ("<a href=mailto:joe@example.com>Joe</a>", "Joe <mailto:joe@example.com>\n"),
    "ftp": ("<a href=FTP://example.com/a>b</a>", "b <FTP://example.com/a>\n"),
    "references in a url": (
        f'<a href="{URL}?a=1&amp;b=2&copy=3&reg;=4&#x26;c">x</a>',
        f"x <{URL}?a=1&b=2&copy=3®=4&c>\n",
    ),
    "space in a url": (f"<a href=' {URL}a b\n'>x</a>", f"x <{URL}a%20b>\n"),
    "quotes in a url": (f"<a href='{URL}\"'>x</a>", f'x <{URL}">\n'),
    "other schemes": ("<a href='javascript:x()'>a</a> <a href='#b'>b</a> <a>c</a>", "a b c\n"),
    "link without text": (f"a<a href={URL}>&nbsp;<img src=x></a>b", "a b\n"),
    "link to an image": (f"<a href={URL}><img alt='Logo'></a>", f"Logo <{URL}>\n"),
    "link around a table": (
        f"<a href={URL}><table><tr><td>a</td></tr></table></a>b",
        f"a <{URL}>\n\nb\n",
    ),
    "open link": (f"<a href={URL}1>a<a href={URL}2>b", f"a <{URL}1>b <{URL}2>\n"),
    "anchor": ("<A NAME=top></A>a", "a\n"),
    "uppercase link": (f"<A HREF={URL}>a</A>b", f"a <{URL}>b\n"),
    "images": ("<img src=a alt='A  &amp;lt; B'> <img src=b> <IMG ALT=C>", "A &lt; B C\n"),
    "tracking pixel": ("a<img src=https://example.com/p.gif width=1 height=1>", "a\n"),
    # ---- what is not shown
    "head": (
        "<html><head><meta charset=utf-8><title>a</title><style>b{}</style>\n"
        "<!--[if mso]><xml><p>96</p></xml><![endif]--><base href=x></head><body>c</body></html>",
        "c\n",
    ),
    "text in the head": ("<head>a<link rel=x>b</head><body>c", "c\n"),
    "open head": ("<head><title>a</title><meta name=x><div>b</div>", "b\n"),
    "head and body": ("<head><title>a</title><body>b", "b\n"),
    "not the head": ("<header>a</header>", "a\n"),
    "style and script": ("a<STYLE>p > b { }</style >b<script>if (a<b) '</p>'</script>c", "abc\n"),
    "open style": ("a<style>b", "a\n"),
    "other elements": (
        "a<noscript><p>b</p></noscript><template><p>c</p></template><xml><o:x>96</o:x></xml>d",
        "ad\n",
    ),
    "comments": ("a<!-- <p>b</p> -- > -->c<!---->d<!-->e<!--->f<!--g--!>h", "acdefh\n"),
    "open comment": ("a<!-- b", "a\n"),
    "conditional comments": (
        "<!--[if mso]><table><tr><td>a<![endif]-->b<!--[if !mso]><!-->c<!--<![endif]-->"
        "<![if !mso]>d<![endif]>e",
        "bcde\n",
    ),
    "doctype": (
        '<!DOCTYPE html PUBLIC "-//W3C//DTD HTML 4.01//EN" "strict.dtd"><b>a</b> <i>b</i>',
        "a b\n",
    ),
    "processing instruction": ('<?xml version="1.0"?>a<?xml:namespace prefix = o />b', "ab\n"),
    "cdata": ("a<![CDATA[b]]>c", "ac\n"),
    "preheader": (
        "<div style='font-size:1px;DISPLAY : none !important'>a<div>b</div>&zwnj;</div><p>c</p>",
        "c\n",
    ),
    "hidden": ("a<p hidden>b</p><span HIDDEN=''>c<span>d</span></span>e", "ae\n"),
    "not hidden": (
        "<p class='hidden none' aria-hidden=true style='overflow:hidden;border:none'>a</p>",
        "a\n",
    ),
    "open hidden paragraph": ("<p style=display:none>a<p>b<p hidden>c<ul><li>d</ul>", "b\n\n* d\n"),
    "hidden cell": (
        "<tr><td>a</td><td hidden><table><tr><td>b</td></tr></table></td><td>c</td></tr>",
        "a c\n",
    ),
    "hidden image": ("a<img hidden alt=b><br hidden>c", "ac\n"),
    "hidden link": (f"a<a hidden href={URL}>b</a>c", "ac\n"),
    # ---- references
    "references": ("&lt;p&gt; &amp;amp; &copy; &#8364; &#x1F600;", "<p> &amp; © € \U0001f600\n"),
    "references without semicolon": ("&copy 1 &AMP&lt&notit; &#65 &#x42", "© 1 &<¬it; A B\n"),
    "no references": ("a & b &c &; &# &#x &unknown; &zzz", "a & b &c &; &# &#x &unknown; &zzz\n"),
    "windows-1252": ("&#150;&#x80;&#153;", "–€™\n"),
    "surrogates": ("&#55357;&#56832; &#xD83D;", "\ufffd\ufffd \ufffd\n"),
    "not a character": ("&#0;&#1114112;&#99999999999;&#xFFFFFFFFF;&#1;a", "\ufffd" * 4 + "a\n"),
    "zeros": ("&#" + "0" * 60 + "65;", "A\n"),
    "digits": ("&#" + "9" * 5000 + ";", "\ufffd\n"),
    "white space as references": ("a&#10;&#32;&#9;b", "a b\n"),
    "angle brackets": ("a > b, a < b, a<1, <3, 1<2>3 <=", "a > b, a < b, a<1, <3, 1<2>3 <=\n"),
    "nul": ("a\0b", "a\ufffdb\n"),
    "control characters": ("a\x01\x7fb\x1bc", "abc\n"),
    "lone surrogates": ("a\ud800b", "a?b\n"),
    "emoji": ("\U0001f468<b>\u200d\U0001f469</b>", "\U0001f468\u200d\U0001f469\n"),
    # ---- fillers
    "fillers": (
        "a<div>&#847;&zwnj;&nbsp;&#8199;&shy;&#65279;&#8203; &#847;&zwnj;</div><div>&#8202;</div>b",
        "a\n\nb\n",
    ),
    "fillers after text": ("a &zwnj;&nbsp;&zwnj;&nbsp;<br>b", "a\nb\n"),
    "joiner in a word": ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e\n"),
    "spaces at the ends of lines": ("a &nbsp; <br> b<pre>c  \nd</pre>", "a\nb\n\nc\nd\n"),
    # ---- tags
    "attributes": ("<p a=1 b='2>' c=\"3>\" d=a\"b e = x f>a</p>", "a\n"),
    "greater-than in quotes": ("<a title='a > b' href=x>c</a>", "c\n"),
    "slashes": ("a<br/>b<img src=x alt=c />d<hr />e", "a\nbcd\n----\ne\n"),
    "first attribute counts": (f"<a href={URL} href=https://example.org/>a</a>", f"a <{URL}>\n"),
    "unknown tags": ("<o:p>a</o:p><custom-tag x=y>b</custom-tag>", "ab\n"),
    "open tag": ("a<p class=b", "a\n"),
    "open quote": ("a<p class='b>c</p>", "a\n"),
}  # fmt: skip


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(("html", "text"), CASES.values(), ids=CASES)
def test_text(front_end: str, html: str, text: str) -> None:
    assert text_of(front_end, html, strict=True) == text


NEWSLETTER = """\
<!doctype html><html xmlns="http://www.w3.org/1999/xhtml" xmlns:o="urn:x:office">
<head><title>News</title><!--[if !mso]><!--><meta name="x" content="IE=edge"><!--<![endif]-->
<style type="text/css">p { display: block; } @media (min-width: 480px) { td > p { } }</style>
<!--[if mso]><noscript><xml><o:PixelsPerInch>96</o:PixelsPerInch></xml></noscript><![endif]-->
</head><body style="word-spacing:normal;">
<div style="display:none;font-size:1px;max-height:0px;">Read this &#847;&zwnj;&nbsp;</div>
<div style="background:#fff"><!--[if mso | IE]><table><tr><td width="600"><![endif]-->
 <table align="center" style="width:100%;"><tbody><tr><td style="padding:20px 0;">
  <div class="mj-column-per-50"><table width="100%"><tbody>
   <tr><td><table><tbody><tr><td style="width:250px;">
    <a href="https://example.com/c?id=1&amp;u=2"><img alt="Logo" src="https://example.com/l" /></a>
   </td></tr></tbody></table></td></tr>
   <tr><td align="left"><div style="font-size:18px;">Dear Joe,<br /><br />it is spring.</div>
   </td></tr>
   <tr><td align="center"><table><tbody><tr><td bgcolor="#414141">
    <a href="https://example.com/b" style="display:inline-block;"> Read on </a>
   </td></tr></tbody></table></td></tr>
  </tbody></table></div>
 </td></tr></tbody></table>
 <table><tbody><tr><td style="line-height:20px;">&#8202;</td></tr></tbody></table>
 <table><tbody><tr><td><table cellpadding="0"><tr><th>Item</th><th>Price</th></tr>
  <tr><td>Apple</td><td>1&nbsp;&euro;</td></tr></table></td></tr></tbody></table>
 <!--[if mso | IE]></td></tr></table><![endif]-->
</div><img src="https://example.com/t.gif" width="1" height="1" alt=""></body></html>
"""
NEWSLETTER_TEXT = """\
Logo <https://example.com/c?id=1&u=2>

Dear Joe,

it is spring.

Read on <https://example.com/b>

Item Price
Apple 1 €
"""

WORD = """\
<html xmlns:o="urn:schemas-microsoft-com:office:office"><head>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=iso-8859-1">
<!--[if !mso]><style>v\\:* {behavior:url(#default#VML);}</style><![endif]-->
<style><!-- p.MsoNormal {margin:0cm;} --></style></head>
<body lang=EN-GB link="#0563C1"><div class=WordSection1>
<p class=MsoNormal><span style='font-size:11.0pt'>Dear all,<o:p></o:p></span></p>
<p class=MsoNormal><span
style='font-size:11.0pt'><o:p>&nbsp;</o:p></span></p>
<p class=MsoListParagraph style='text-indent:-18.0pt'><![if !supportLists]><span>1.<span
style='font:7.0pt "Times New Roman"'>&nbsp;&nbsp; </span></span><![endif]>one
line<o:p></o:p></p>
<p class=MsoNormal>Joe</p>
<div style='border:none;border-top:solid #E1E1E1 1.0pt'>
<p class=MsoNormal><b>From:</b> Ann &lt;ann@example.com&gt;<br>
<b>Sent:</b> Monday<o:p></o:p></p></div></div></body></html>
"""
WORD_TEXT = """\
Dear all,

1.   one line

Joe

From: Ann <ann@example.com>
Sent: Monday
"""


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(
    ("html", "text"),
    [(NEWSLETTER, NEWSLETTER_TEXT), (WORD, WORD_TEXT)],
    ids=["newsletter", "word"],
)
def test_mail(front_end: str, html: str, text: str) -> None:
    assert text_of(front_end, html, strict=True) == text
    assert text_of(front_end, html.replace("\n", "\r\n"), strict=True) == text


# ---- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_characters_that_are_read(front_end: str) -> None:
    assert text_of(front_end, "a" * MAX_HTML + "b") == "a" * MAX_HTML + "\n"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_tags_that_are_read(front_end: str) -> None:
    assert text_of(front_end, "<b>" * MAX_TAGS + "a<b>b") == "a\n"


def _flood(unit: str) -> str:
    return (unit * (MAX_HTML // len(unit) + 1))[:MAX_HTML]


def _attributes(form: str) -> str:
    return "<p" + "".join([form.format(number) for number in range(30_000)]) + ">x"


# For some of these libxml2 takes time in the square of their length.
HOSTILE: dict[str, Callable[[], str]] = {
    "nested elements, other end tags": lambda: "<b>" * 16_000 + "</i>" * 16_000,
    "elements, each with another end tag": lambda: _flood("<div></b>"),
    "attributes": lambda: _attributes(" a{:x}"),
    "attributes with values": lambda: _attributes(" a{:x}=1"),
    "attributes with quotes": lambda: _attributes(' a{:x}=">"'),
    "attributes without end": lambda: _attributes(" a{:x}='>'").rstrip(">x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_lxml_does_not_see_what_takes_it_long(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    html = HOSTILE[name]()
    text = text_of("scanner", html)
    if module.etree is None:
        lacking("lxml")
    monkeypatch.setattr(module.etree, "fromstring", lambda *_: pytest.fail("lxml is asked"))
    assert to_text(html) == text


FLOODS = [
    "<", "<a ", "<a", "</", "<!", "<!--", "<!-- a", "<?", "<![CDATA[", "<!--[if mso]>", "-->",
    "&", "&#", "&#x", "&#1;", "&#55357;", "&amp", "&nbsp;", "&#9999999999", "&zwnj;&nbsp;",
    '<a b="', "<a b='\"", "<a =", "<a/", "<a href=http://x>y", "<img alt=x>", "<p hidden>x",
    "<div>", "<b>x", "<ul><li>x", "<ol><li>", "<table><tr><td>x", "<td><p>x", "<tr>", "<li>x",
    "<br>", "<hr>", "<pre>\n", "<blockquote>x", "<dl><dd>x", "<style>", "<script><!--", "<head>",
    "</table>", "</ol>", "</pre>", "</a>", "<textarea>\n x", " ", "\n", "\0", "\ud83d", "\x01",
]  # fmt: skip


def check(text: str) -> None:
    """What is true of any text."""
    text.encode()
    assert "\0" not in text
    assert "\r" not in text
    assert "\n\n\n" not in text
    assert text == "" or text == text.strip("\n") + "\n"
    assert all(line == line.rstrip() for line in text.split("\n"))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("unit", FLOODS)
def test_floods(front_end: str, unit: str) -> None:
    text = text_of(front_end, _flood(unit))
    check(text)
    assert len(text) <= 2 * MAX_HTML


# ---- anything ----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [*FLOODS, "</div>", "</p>", "</td>", "</tr>", "</ul>", "</style>", "</head>", "</b>", "-->"]
    + ["a", "b c", "\xa0", "\u200c", "\u65e5", "\U0001f600", "'", '"', ">", "=", "/", "\t", "\r\n"]
    + [" hidden", " style=display:none", "<span style='display: none'>", "</span>", "</a>"]
) | st.text(max_size=5)  # fmt: skip


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_pieces(front_end: str, html: str) -> None:
    check(text_of(front_end, html))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=())))
def test_any_text(front_end: str, html: str) -> None:
    check(text_of(front_end, html))


def _element(names: str, content: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def written(name: str, inner: str) -> str:
        return f"<{name}>{inner}</{name.partition(' ')[0]}>"

    return st.builds(written, st.sampled_from(names.split(",")), content)


def _several(content: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(content, max_size=4).map("".join)


WORDS = st.sampled_from(["a", " b", "c ", " ", "\n", "&nbsp;", "&amp;", "<br>", "<img alt=i>", "é"])
INLINE = st.recursive(
    WORDS,
    lambda inner: _element("b,span,i,u,span hidden,span class=x", _several(inner)),
    max_leaves=4,
)
LINK = _element(f"a href={URL}1,a href={URL}2", _several(INLINE))
PARAGRAPH = _element("p,h1,pre,p style=display:none", _several(INLINE | LINK))


def _blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    content = _several(inner | INLINE)
    row = _element("tr", _several(_element("td,th", content)))
    return (
        _element("div,center,blockquote,section,div hidden,div style=display:none", content)
        | _element("ul,ol", _several(_element("li", content)))
        | _element("table,table width=1", _several(row))
    )


@given(_several(st.recursive(PARAGRAPH | LINK | INLINE | st.just("<hr>"), _blocks, max_leaves=12)))
def test_both_front_ends_say_the_same_of_good_html(html: str) -> None:
    assert text_of("lxml", html, strict=True) == text_of("scanner", html)
