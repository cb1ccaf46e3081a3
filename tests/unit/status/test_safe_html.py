"""Is there nothing in a shown mail that runs or loads, and is there all else?"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsmtpd.message.body import has_html
from gsmtpd.message.mime import Part
from gsmtpd.status import safe_html
from gsmtpd.status.safe_html import MAX_IMAGES, MAX_TAGS, safe_page

MESSAGES = Path(__file__).resolve().parents[2] / "messages"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)
DATA = "data:image/png;base64," + b64encode(PNG).decode()


def shown(html: str, charset: str = "utf-8") -> str:
    """What is shown of a mail with this HTML, without what stands in front of each."""
    header = f"Content-Type: text/html; charset={charset}\r\n\r\n".encode()
    page = safe_page(header + html.encode(charset))
    assert page is not None
    text = page.decode()
    assert text.startswith(safe_html._BEFORE)
    return text.removeprefix(safe_html._BEFORE)


def related(html: str, *images: tuple[str, bytes]) -> bytes:
    """A mail with HTML and images, each with header fields of its own."""
    parts = [f"Content-Type: text/html\r\n\r\n{html}"]
    for fields, octets in images:
        encoded = b64encode(octets).decode()
        parts.append(f"{fields}\r\nContent-Transfer-Encoding: base64\r\n\r\n{encoded}")
    body = "".join([f"--b\r\n{part}\r\n" for part in parts])
    return f"Content-Type: multipart/related; boundary=b\r\n\r\n{body}--b--\r\n".encode()


SAID = '<span class="gsmtpd-said">image not shown{}</span>'.format
CASES = {
    # ---- what stays
    "text": ("a &lt; b &amp; c", "a &lt; b &amp; c"),
    "a sign that is no tag": ("a < b > c", "a &lt; b &gt; c"),
    "elements": ("<P>a<B>b</B><br/></p>", "<p>a<b>b</b><br></p>"),
    "attributes": (
        "<td ALIGN='left' width=10 nowrap data-x=1>a",
        '<td align="left" width="10" nowrap="">a',
    ),
    "twice": ("<td width=1 width=2>", '<td width="1">'),
    "body": ("<html dir=rtl><body bgcolor=red>", '<html dir="rtl"><body bgcolor="red">'),
    "styles": (
        "<style media=print>td > a { color: red }</style><p style='color: \"x\"'>",
        '<style media="print">td > a { color: red }</style><p style="color: &quot;x&quot;">',
    ),
    "styles in a comment": (
        "<style><!-- p {} --></style>",
        '<style media="all">  p {}  </style>',
    ),
    "link": (
        "<a href='https://example.com/?a=1&amp;b=2'>x</a>",
        '<a href="https://example.com/?a=1&amp;b=2" rel="noopener noreferrer" target="_blank"'
        ' title="https://example.com/?a=1&amp;b=2">x</a>',
    ),
    "link with a title": (
        "<a href=mailto:a@b title=t>x</a>",
        '<a title="t" href="mailto:a@b" rel="noopener noreferrer" target="_blank">x</a>',
    ),
    "link within": ("<a href='#x'>x</a>", '<a href="#x" rel="noopener noreferrer">x</a>'),
    "image in a URL": (f"<img src={DATA} alt=x>", f'<img src="{DATA}" alt="x">'),
    # ---- what is told of
    "image": ("<img src=https://example.com/x>", SAID("")),
    "image that says": ("<img alt='a &quot; <b' src=x>", SAID(": a &quot; &lt;b")),
    "image to be loaded only": ("<img src=https://example.com/x width=1 height=1>", ""),
    "image that is not there": ("<img src=cid:x>", SAID("")),
    "drawing": ("<img src='data:image/svg+xml;base64,AAAA'>", SAID("")),
    # ---- what goes
    "script": ("a<script>alert('<p>')</script>b", "ab"),
    "script without an end": ("a<script>alert(1)<p>x", "a"),
    "script in capitals": ("a<SCRIPT/x>alert(1)</SCRIPT\n>b", "ab"),
    "two into one": ("<scr<script>x</script>ipt>alert(1)</script>", "xipt&gt;alert(1)"),
    "handlers": ("<p onclick=alert(1) ONload='x'>", "<p>"),
    "script in a link": ("<a href='javascript:alert(1)'>x</a>", "<a>x</a>"),
    "script in a spaced link": ("<a href=' java\nscript&#58;alert(1)'>x</a>", "<a>x</a>"),
    "data in a link": ("<a href='data:text/html,x'>x</a>", "<a>x</a>"),
    "ping": ("<a ping=https://example.com/>x</a>", "<a>x</a>"),
    "frames": ("<iframe src=x><p></iframe><frameset><frame src=x>", ""),
    "objects": ("<object data=x><embed src=x>else</object><applet>x</applet>", "else"),
    "forms": ("<form action=x><input autofocus><button>x</button></form>", "x"),
    "head": ("<head><base href=x><link rel=stylesheet href=x><meta charset=utf-7>", ""),
    "title": ("<title><img src=x onerror=alert(1)></title>", ""),
    "drawings": ("<svg><style><img src=x onerror=alert(1)></style></svg>b", "b"),
    "formulas": ("<math><mi xlink:href=x></math>b", "b"),
    "comments": ("a<!-- <p> -->b<![if !mso]>c<!DOCTYPE x>d", "abcd"),
    "media": ("<video poster=x><source src=x></video><audio src=x>", ""),
    "background": ("<td background=x>", "<td>"),
    "sources": ("<img srcset='x 2x' src=x><picture><source srcset=x></picture>", SAID("")),
    "an attribute in a value": (
        "<p title='\"><img src=x onerror=alert(1)>'>",
        '<p title="&quot;&gt;&lt;img src=x onerror=alert(1)&gt;">',
    ),
    "a name that is none": ("<p/onclick=x><p\0onclick=x><x-y>", "<p>"),
    "an end that is none": ("a</script>b</p onclick=x>", "ab</p>"),
    "a number too long": (f"<td title='&#{'9' * 5000};'>", '<td title="">'),
}


@pytest.mark.parametrize(("html", "expected"), CASES.values(), ids=CASES)
def test_what_is_shown(html: str, expected: str) -> None:
    assert shown(html) == expected


STYLES = [
    "background: url(https://example.com/)",
    "background: URL ('https://example.com/')",
    r"background: \75rl(https://example.com/)",
    r"background: u\72 l(https://example.com/)",
    "background: u/**/rl(https://example.com/)",
    "background: u<rl(https://example.com/)",
    "background: uurl(rl(https://example.com/)",
    "background: -webkit-image-set('https://example.com/' 1x)",
    "@import 'https://example.com/';",
    r"@\69mport 'https://example.com/';",
    "@/**/import 'https://example.com/';",
    "@im<!---->port 'https://example.com/';",
    "@font-face { font-family: x; src: src('https://example.com/') }",
    "/*</style><script>alert(1)</script>",
    "'</style ><img src=x onerror=alert(1)>",
]


@pytest.mark.parametrize("css", STYLES)
def test_styles_load_nothing(css: str) -> None:
    quoted = css.replace('"', "&quot;")
    for page in (shown(f"<style>{css}</style>"), shown(f'<p style="{quoted}">')):
        assert not [*wrong(page)]


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "iso-2022-jp", "koi8-r", "utf-7"])
def test_charset_is_that_of_the_mail(charset: str) -> None:
    text = "日本" if charset == "iso-2022-jp" else "день"
    assert shown(f"<p>{text}</p>", charset) == f"<p>{text}</p>"


def test_tags_of_utf_7_are_tags() -> None:
    # A browser that guessed it would run what looked harmless here.
    mail = b"Content-Type: text/html\r\n\r\n+ADw-script+AD4-alert(1)+ADw-/script+AD4-"
    assert b"+ADw-script" in (safe_page(mail) or b"")
    mail = mail.replace(b"html", b"html; charset=utf-7")
    assert b"alert" not in (safe_page(mail) or b"")


# ---- images ------------------------------------------------------------------------------------


def test_images_of_the_mail_are_in_the_page() -> None:
    html = "<img src=cid:a@b><img src=CID:none><img src=https://example.com/logo><img src=cid:t>"
    page = safe_page(
        related(
            html,
            ("Content-Type: application/x-said\r\nContent-ID: <a@b>", PNG),
            ("Content-Type: image/png\r\nContent-Location: https://example.com/logo", PNG + b"x"),
            ("Content-Type: image/png\r\nContent-ID: <t>", b"<svg onload=alert(1)>"),
        )
    )
    other = "data:image/png;base64," + b64encode(PNG + b"x").decode()
    assert page is not None
    expected = f'<img src="{DATA}">{SAID("")}<img src="{other}">{SAID("")}'
    assert page.decode().removeprefix(safe_html._BEFORE).strip() == expected


def test_images_have_a_bound_however_often_they_are_shown() -> None:
    image = PNG + bytes(300_000)
    page = safe_page(related("<img src=cid:a>" * 1000, ("Content-ID: <a>", image)))
    assert page is not None
    size = (len("data:image/png;base64,") + len(b64encode(image))) * 3 // 4
    assert page.count(b"<img") == MAX_IMAGES // size
    assert len(page) < 2 * MAX_IMAGES
    assert page.count(b"image not shown") == 1000 - page.count(b"<img")


def test_a_part_of_many_names_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each name of what is no image costs as much as the whole part."""
    read = []

    def payload(content: bytes, part: Part, most: int) -> bytes:
        read.append(part)
        return b"no image"

    monkeypatch.setattr(safe_html, "payload", payload)
    names = "\r\n".join(f"Content-ID: <k{n}>" for n in range(50))
    html = "".join(f"<img src=cid:k{n}>" for n in range(50))
    page = safe_page(related(html, (names, b"no image")))
    assert (page or b"").count(b"image not shown") == 50
    assert len(read) == 1


def test_an_image_too_large_is_not_shown() -> None:
    page = safe_page(related("<img src=cid:a>", ("Content-ID: <a>", PNG + bytes(MAX_IMAGES))))
    assert page is not None
    assert b"<img" not in page


# ---- which part --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in MESSAGES.glob("*.eml")))
def test_messages_of_many_senders(name: str) -> None:
    content = (MESSAGES / f"{name}.eml").read_bytes()
    page = safe_page(content)
    assert (page is not None) is has_html(content)
    assert page is None or not [*wrong(page.decode())]


def test_mail_without_html() -> None:
    assert safe_page(b"Subject: x\r\n\r\n<p>text</p>") is None
    attached = related("<p>x").replace(b"text/html", b"text/html; name=x.html")
    assert safe_page(attached) is None


def test_a_forwarded_message_is_looked_into() -> None:
    inner = b"Content-Type: message/rfc822\r\n\r\n" + related("<p>x")
    assert b"<p>x" in (safe_page(inner) or b"")


# ---- whatever is sent --------------------------------------------------------------------------


class Seen(HTMLParser):
    """The tags, attributes and styles of a page, as Python's parser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        if tag not in safe_html._ELEMENTS | {"img", "style"}:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            self._look(tag, name, value or "")

    def _look(self, tag: str, name: str, value: str) -> None:
        known = {**dict.fromkeys(safe_html._ATTRIBUTES), "style": 0, "target": 0, "rel": 0}
        if (tag, name) == ("img", "src"):
            is_right = value.startswith("data:image/")
        elif (tag, name) == ("a", "href"):
            is_right = bool(re.match(r"https?://|mailto:|#", value, re.IGNORECASE))
        elif (tag, name) == ("style", "media"):
            is_right = True
        else:
            is_right = name in known
        if not is_right:
            self.found.append(f"{tag} {name}={value}")
        if name == "style":
            self._css(value)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._css(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def _css(self, css: str) -> None:
        if re.search(r"url\s*\(|src\s*\(|image-set\s*\(|@\s*import|[\\<]", css, re.IGNORECASE):
            self.found.append(css)

    def handle_comment(self, data: str) -> None:
        self.found.append(f"<!--{data}")

    def handle_pi(self, data: str) -> None:
        self.found.append(f"<?{data}")

    def handle_decl(self, decl: str) -> None:
        self.found.append(f"<!{decl}")


def wrong(page: str) -> Iterator[str]:
    """What a page has that it should not."""
    seen = Seen()
    seen.feed(page.removeprefix(safe_html._BEFORE))
    seen.close()
    yield from seen.found


PIECES = (
    "< > </ <! <!-- --> --!> <? ' \" = / & &lt; &#60; \0 \n p a img svg style script template table"
    " <p <a <img <style> </style> <script> </script> <svg> <math> <title> </title> <textarea>"
    " href= src= style= onerror= title= url( @import \\ /* */ javascript: https: cid:x ; :"
    " ]]> <![CDATA[ x"
)


@given(
    st.lists(st.sampled_from(PIECES.split(" ")) | st.text(max_size=3), max_size=40).map(
        lambda all: "".join(all)
    )
)
@example("<p title='</style>'><style><p title='</style><img src=x onerror=y>'>")
@example("<svg></p><style><a title='</style><img src onerror=alert(1)>'>")
@example("<math><mtext><table><mglyph><style><!--</style><img title='--><img src=1 onerror=x>'>")
def test_whatever_is_sent(html: str) -> None:
    assert not [*wrong(shown(html.encode("utf-8", "replace").decode()))]


HOSTILE = [
    *("<div>", "<", "<!--", "<!", "<a ", "<a b='", '<a b="', "</a", "<a x=<", "<p style='/*"),
    *("<style>", "<style>/*", "<style></style>", "<svg><style>", "<script></script>", "<title>"),
    *("&#9", "&amp", "<img src=cid:x>", "<img src=x alt='", "url(", "\\", "/*", " =", "<td a b c"),
]


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("before", ["", '<p style="', "<style>"])
def test_no_time_is_lost_with_a_mebibyte(unit: str, before: str) -> None:
    """Where the time is not linear this takes minutes, and ends by pytest-timeout."""
    shown(before + unit * ((1 << 20) // len(unit)))


def test_what_is_left_out_is_said() -> None:
    page = shown("<b>x" * (MAX_TAGS + 1))
    assert page.startswith(safe_html._CUT)
    assert page.count("<b>") == MAX_TAGS
    assert safe_html._CUT not in shown("<b>x" * MAX_TAGS)
