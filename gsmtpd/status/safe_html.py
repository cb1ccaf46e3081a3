"""What of a mail's HTML may be shown? A page without scripts that loads nothing, from anything.

Nothing of what was sent is passed on as it is: the page is written anew, of elements and attributes
that are known to do no harm, so it does not matter where browsers read broken HTML otherwise. It is
to be shown in a sandbox under a Content-Security-Policy all the same: each of the two is enough.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterator
from html import escape, unescape

from gsmtpd.message.body import html_of
from gsmtpd.message.html import BOGUS, COMMENT, VALUES, find_attributes
from gsmtpd.message.mime import Part, payload, read_parts
from gsmtpd.message.words import MAX_VALUE

MAX_HTML = 4 * 1024 * 1024  # octets of it that are read
MAX_TAGS = 50_000  # that are read; what is behind is left out, which is said
MAX_IMAGES = 5 * 1024 * 1024  # octets of all images in it, each as often as it is shown

_BEFORE = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<style>
html { background: #fff; color: #16181d; color-scheme: light }
body { margin: 16px; font: 15px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
:root:root { overflow: auto !important }
:root:root > body { overflow: visible !important }
img { max-width: 100%; height: auto }
.gsmtpd-said { display: inline-block; max-width: 100%; padding: 0 .4em; color: #555b66;
 background: #f1f1ee; border: 1px dashed #b4b7bd; font: 12px/1.6 system-ui, sans-serif }
</style>
"""
_CUT = '<p class="gsmtpd-said">What follows is not all: the mail has more HTML than is shown.</p>\n'

# ---- what may stay -----------------------------------------------------------------------------

_NAMES = (
    "a abbr acronym address article aside b bdi bdo big blockquote body br caption center cite code"
    " col colgroup dd del details dfn dir div dl dt em figcaption figure font footer h1 h2 h3 h4 h5"
    " h6 header hgroup hr html i ins kbd li main mark menu nav ol p pre q rp rt ruby s samp section"
    " small span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var"
    " wbr"
)
_ELEMENTS = frozenset(_NAMES.split())
# Not to be seen without what they do: they go up to their end tags, with all that is in them.
_WHOLE = (
    "applet iframe math noembed noframes noscript script select svg template textarea title xml"
)
_DROPPED = frozenset(_WHOLE.split())
_HARMLESS = (
    "align alt bgcolor border cellpadding cellspacing class clear color colspan compact datetime"
    " dir face headers height hspace id lang noshade nowrap open reversed rowspan rules scope size"
    " span start summary title type valign value vspace width"
)
_ATTRIBUTES = frozenset(_HARMLESS.split())
_is_link = re.compile(r"(?:https?://|mailto:)[^\s]|#", re.IGNORECASE).match
_is_image_data = re.compile(
    r"data:image/(?:png|jpeg|jpg|gif|webp|bmp);base64,[A-Za-z0-9+/=\s]*+\Z", re.IGNORECASE
).match

# In CSS nothing is loaded but by these; escapes could spell them otherwise, so there are none.
_comments = re.compile(r"/\*[^*]*+(?:\*(?!/)[^*]*+)*(?:\*/)?").sub
_loads = re.compile(r"(?:url|src|image|image-set)\s*+\(", re.IGNORECASE).sub
_imports = re.compile(r"@\s*+import", re.IGNORECASE).sub


def _css(css: str) -> str:
    """Style rules that load nothing, and cannot end the element or attribute they stand in."""
    css = _comments(" ", css.replace("<!--", " ").replace("-->", " "))
    css = css.replace("\\", "").replace("<", "")
    return _imports("@none", _loads("none(", css))


# ---- reading -----------------------------------------------------------------------------------

# Text, the slash of an end tag, the tag's name and its attributes. As in message/html.py, whose
# patterns these are, time is linear, and what has no end goes to the end of the document.
_match_token = re.compile(
    r"([^<]*+(?:<(?![A-Za-z/!?])[^<]*+)*)"
    rf"(?:<(?:(/?)([A-Za-z][^\s/>]*+)({VALUES})>?|{COMMENT}|{BOGUS}))?"
).match
_find_end = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search for name in {*_DROPPED, "style"}
}


def safe_page(content: bytes) -> bytes | None:
    """The HTML of the message `content` as a page in UTF-8, None where it has none; never raises.

    Images that are in the message are in the page, in place of all others stands what they show.
    """
    found = html_of(content, MAX_HTML)
    if found is None:
        return None
    writer = _Writer(found.content)
    writer.read(found.text)
    page = [_BEFORE, _CUT if writer.is_cut or len(found.text) >= MAX_HTML else "", *writer.out]
    return "".join(page).encode("utf-8", "replace")


class _Writer:
    """Writes the page anew, tag by tag."""

    def __init__(self, content: bytes) -> None:
        self._images = _Images(content)
        self.out: list[str] = []
        self.is_cut = False

    def read(self, html: str) -> None:
        at, tags = 0, 0
        while at < len(html):
            match = _match_token(html, at)
            assert match is not None
            text, slash, name, attributes = match.groups()
            at = match.end()
            # References stay as they are: no character of theirs begins a tag.
            self.out.append(text.replace("<", "&lt;").replace(">", "&gt;"))
            if name is None:
                continue
            tags += 1
            if tags > MAX_TAGS:
                self.is_cut = True
                return
            name = name.lower()
            if slash:
                self.out.append(f"</{name}>" if name in _ELEMENTS else "")
            elif name in _find_end:
                end = _find_end[name](html, at)
                inside = html[at : end.start() if end else len(html)]
                at = end.start() if end else len(html)
                if name == "style":
                    media = escape(_parsed(attributes).get("media", "all"))
                    self.out.append(f'<style media="{media}">{_css(inside)}</style>')
            else:
                self._start(name, attributes)

    def _start(self, name: str, attributes: str) -> None:
        if name in ("img", "image"):
            self._image(_parsed(attributes))
        elif name in _ELEMENTS:
            kept = "".join(_kept(name, _parsed(attributes))) if attributes.strip() else ""
            self.out.append(f"<{name}{kept}>")

    def _image(self, found: dict[str, str]) -> None:
        source = self._images.source(found.get("src", "").strip())
        if source is not None:
            kept = "".join(_kept("img", found))
            self.out.append(f'<img src="{escape(source)}"{kept}>')
        elif not _is_tiny(found):
            alt = " ".join(found.get("alt", "").split())
            said = f"image not shown: {alt}" if alt else "image not shown"
            self.out.append(f'<span class="gsmtpd-said">{escape(said)}</span>')


def _parsed(attributes: str) -> dict[str, str]:
    """Attributes by lower-case name; where one occurs twice, the first counts."""
    found: dict[str, str] = {}
    for name, a, b, c in find_attributes(attributes):
        found.setdefault(name.lower(), _resolved(a or b or c))
    return found


def _resolved(value: str) -> str:
    try:
        return unescape(value) if "&" in value else value
    except ValueError:  # a number of thousands of digits
        return ""


def _kept(name: str, found: dict[str, str]) -> Iterator[str]:
    for key, value in found.items():
        if key in _ATTRIBUTES:
            yield f' {key}="{escape(value)}"'
        elif key == "style":
            yield f' style="{escape(_css(value))}"'
    if name == "a":
        # Browsers take control characters and line ends out of a URL, too.
        target = re.sub(r"[\t\r\n]", "", found.get("href", "").strip("".join(map(chr, range(33)))))
        if _is_link(target):
            yield f' href="{escape(target)}" rel="noopener noreferrer"'
            yield "" if target[0] == "#" else ' target="_blank"'
            yield "" if "title" in found or target[0] == "#" else f' title="{escape(target)}"'


def _is_tiny(found: dict[str, str]) -> bool:
    """Whether an image is there to be loaded, and not to be seen."""
    return any(found.get(side, "").strip() in ("0", "1", "2") for side in ("width", "height"))


# ---- images ------------------------------------------------------------------------------------

_find_content_id = re.compile(
    rb"^content-(?:id|location)[ \t]*+:[ \t\r\n]*+<?([^>\s]++)", re.IGNORECASE | re.MULTILINE
).findall
_KINDS = (  # by their first octets: what is said of them does not matter
    (b"\x89PNG\r\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"RIFF", "webp"),
)


class _Images:
    """The images of a message. What is shown of them counts against MAX_IMAGES."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._parts: dict[str, Part] | None = None
        self._sources: dict[str, str | None] = {}
        self._left = MAX_IMAGES
        self._read: dict[int, str | None] = {}  # by where the part begins: it may have many names

    def source(self, url: str) -> str | None:
        """What stands as src for an image with the src `url`; None where it is not shown."""
        if _is_image_data(url):
            found: str | None = url
        else:
            name = url[4:] if url[:4].lower() == "cid:" else url
            name = name[:MAX_VALUE]
            if name not in self._sources:
                self._sources[name] = self._data(name)
            found = self._sources[name]
        if found is None or len(found) * 3 // 4 > self._left:
            return None
        self._left -= len(found) * 3 // 4
        return found

    def _data(self, name: str) -> str | None:
        if self._parts is None:
            self._parts = self._found()
        part = self._parts.get(name)
        if part is None:
            return None
        if part.start not in self._read:
            self._read[part.start] = self._decoded(part)
        return self._read[part.start]

    def _decoded(self, part: Part) -> str | None:
        octets = payload(self._content, part, self._left + 1)
        kind = next((kind for magic, kind in _KINDS if octets.startswith(magic)), None)
        if kind is None or len(octets) > self._left:
            return None
        return f"data:image/{kind};base64," + b2a_base64(octets, newline=False).decode()

    def _found(self) -> dict[str, Part]:
        """The parts that have names, by these. A part's header is between it and the one before."""
        found: dict[str, Part] = {}
        behind = 0
        for part in read_parts(self._content):
            for name in _find_content_id(self._content[behind : part.start]):
                found[name[:MAX_VALUE].decode("latin-1")] = part
            behind = part.end
        return found
