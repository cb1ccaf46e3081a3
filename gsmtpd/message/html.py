"""What does HTML mail say in plain text? Any characters in, readable Unicode out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from html.entities import html5
from types import SimpleNamespace

try:
    from lxml import etree  # type: ignore[import-untyped]
except ImportError:  # it is optional
    etree = None

MAX_HTML = 262_144  # characters that are looked at
MAX_TAGS = 25_000  # what may begin one ("<"), the same; newsletters have 20 in a kilobyte


def to_text(html: str) -> str:
    """The text of `html`, as one would write it down; never raises, whatever the characters.

    Lines end with LF, the last one, too; no two empty lines follow each other. There is no other
    control character but TAB, and no lone surrogate. Time is linear in the length of `html`.
    """
    html = html[:MAX_HTML].encode("utf-8", "replace").decode()  # no surrogates
    html = html.replace("\0", "\ufffd").replace("\r\n", "\n").replace("\r", "\n")
    if html.count("<") > MAX_TAGS:
        html = html[: -1 - len(html.split("<", MAX_TAGS + 1)[-1])]
    tokens = _parse(html) if etree else None
    return _render(_scan(html) if tokens is None else tokens)


# ---- front ends: HTML to tokens ----------------------------------------------------------------

# Text, the tag behind it as "div" or "/div" ("" where none is), and the tag's attributes.
_Attributes = str | Mapping[str, str]  # as sent, or as lxml has them
_Token = tuple[str, str, _Attributes]

# In these patterns a repetition is possessive or can go on in one way only, and what stands behind
# it cannot fail: so time is linear in what was sent. (Groups are not repeated possessively: see
# headers.py.) What has no end goes to the end of the document, as in browsers.
COMMENT = r"!--(?:-?>|[^-]*+(?:-(?!-!?>)[^-]*+)*(?:--!?>)?)"
BOGUS = (
    r"(?:[!?]|/(?![A-Za-z]))[^>]*+>?"  # <!DOCTYPE>, <![if !mso]>, <![CDATA[, <?xml:namespace>, </>
)


def _name(name: str) -> str:
    return rf"[{name[0]}{name[0].upper()}](?i:{name[1:]})(?=[\s/>])"


def _dropped(name: str) -> str:
    """An element up to its end tag."""
    return rf"{_name(name)}[^>]*+>?[^<]*+(?:<(?!/{_name(name)})[^<]*+)*"


_ELEMENTS = "script style title template noscript xml iframe noembed noframes"
_DROPPED = "|".join([_dropped(name) for name in _ELEMENTS.split()])
# The end tag of <head> may be missing: then one of these ends it.
_BODY = "a|b|blockquote|br|center|div|font|h[1-6]|hr|img|ol|p|pre|section|span|table|td|tr|ul"
_NOT_IN_HEAD = rf"(?i:/?(?:body|html)|/head|{_BODY})[\s/>]"
_HEAD = rf"{_name('head')}[^>]*+>?[^<]*+(?:<(?:{_DROPPED}|{COMMENT}|(?!{_NOT_IN_HEAD}))[^<]*+)*"
VALUES = r"[^=>]*+(?:=\s*+(?:\"[^\"]*+\"?|'[^']*+'?)?[^=>]*+){0,500}[^>]*+"
_scan = re.compile(
    r"([^<]*+(?:<(?![A-Za-z/!?])[^<]*+)*)"
    rf"(?:<(?:{_DROPPED}|{_HEAD}|(/?[A-Za-z][^\s/>]*+)({VALUES})>?|{COMMENT}|{BOGUS}))?"
).findall

# What libxml2 reads otherwise than browsers is kept from it: <![if !mso]> and CDATA (text up to
# 2.13), text in <head> and behind </body>, references, and <a>, which <table> would end.
_remove = re.compile(
    rf"<(?:{_DROPPED}|{_HEAD}|{COMMENT}|{BOGUS}|/(?i:head|body|html)(?=[\s/>])[^>]*+>?)"
).sub
_rename = re.compile(r"(?<=<)(/?)[aA](?=[\s/>])").sub
_TO_LXML = bytes.maketrans(b"&\f", b"\x7f ")
_NOT_XML = bytes({*range(32), 127} - {*b"\t\n\f"})
# For an end tag libxml2 searches all open elements, and up to 2.13 for an attribute all others of
# the tag: 256 K characters took 5 s. Below these bounds it is 30 ms.
_MAX_STEPS = 8_000_000
_MAX_TAG = 1000  # characters
_MAX_QUOTED = 8  # ">" in quotes, behind which a tag goes on
_find_quoted = re.compile(r"=\s*+(?:\"[^\">]*+>|'[^'>]*+>)").findall


def _parse(html: str) -> list[_Token] | None:
    """The tokens as lxml has them; None where it fails or might take long."""
    html = _remove("", html)
    ends = html.count("</")
    if (
        (html.count("<") - ends) * (ends + 800) > _MAX_STEPS
        or any(len(tag.partition("<")[2]) > _MAX_TAG for tag in html.split(">"))
        or len(_find_quoted(html)) > _MAX_QUOTED
    ):
        return None
    tokens: list[_Token] = []
    text: list[str] = []

    def start(tag: str, attributes: _Attributes) -> None:
        tag = tag.replace("x-a", "a")
        tokens.append(("".join(text).replace("\x7f", "&"), tag, attributes))
        text.clear()

    target = SimpleNamespace(start=start, data=text.append, close=lambda: start("", ""))
    target.end = lambda name: start("/" + name, "")
    options = {"recover": True, "huge_tree": False, "no_network": True, "encoding": "utf-8"}
    octets = _rename(r"\1x-a", "<html><body>" + html).encode().translate(_TO_LXML, _NOT_XML)
    try:
        etree.fromstring(octets, etree.HTMLParser(target=target, **options))
    except Exception:  # whatever it is, the scanner can read this
        return None
    return tokens


# ---- character references and attributes -------------------------------------------------------

# Names that need no semicolon, longer ones first; but not so in a URL: "?a=1&copy=2".
_BARE_NAMES = "|".join(sorted([name for name in html5 if name[-1] != ";"], reverse=True))
_REFERENCE = r"(&(?:\#(?:[0-9]++|[xX][0-9A-Fa-f]++);?|[A-Za-z][0-9A-Za-z]{1,31}+;|(?:%s)%s))"
_split_text = re.compile(_REFERENCE % (_BARE_NAMES, "")).split
_split_value = re.compile(_REFERENCE % (_BARE_NAMES, "(?![=0-9A-Za-z])")).split


class _References(dict[str, str]):
    """Reference to character as html.unescape() has it, which takes 0.5 us for each."""

    def __missing__(self, reference: str) -> str:
        # int() raises where there are more than 4300 digits.
        self[reference] = character = unescape(reference) if len(reference) < 4000 else "\ufffd"
        return character

    def resolve(self, split: Callable[[str], list[str]], text: str) -> str:
        """`text` with its references resolved, which `split` finds."""
        parts = split(text)
        parts[1::2] = map(self.__getitem__, parts[1::2])
        return "".join(parts)


find_attributes = re.compile(
    r"([^\s/>][^\s/>=]*+)(?:\s*+=\s*+(?:\"([^\"]*+)\"?|'([^']*+)'?|([^\s>]*+)))?"
).findall
_find_display_none = re.compile(r"display\s*+:\s*+none", re.IGNORECASE).search
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}


def _parsed(attributes: _Attributes) -> Mapping[str, str]:
    """Attributes by lower-case name; where one occurs twice, the first counts."""
    if not isinstance(attributes, str):
        return {name: value.replace("\x7f", "&") for name, value in attributes.items()}
    found: list[tuple[str, str, str, str]] = find_attributes(attributes)
    return {name.lower(): a or b or c for name, a, b, c in reversed(found)}


def _is_hidden(attributes: _Attributes) -> bool:
    if isinstance(attributes, str):
        lower = attributes.lower()
        if "none" not in lower and "hidden" not in lower:
            return False
        attributes = _parsed(attributes)
    return "hidden" in attributes or bool(_find_display_none(attributes.get("style", "")))


# ---- renderer: tokens to text ------------------------------------------------------------------

_GAPS = ("", "\n", "\n\n", " ", "\n")  # what stands before the next text, by number
_JOINED = 3  # a cell begins behind another; it may hold blocks
_TIGHT = 4  # a new line, and no empty one where a block asks for it
_AFTER_BREAK = (1, 2, 2, _JOINED, 2)
_SET_OFF = "blockquote h1 h2 h3 h4 h5 h6 p"
_LINES = (  # begin on a new line
    "address article aside caption center dd details div dl dt fieldset figcaption figure footer"
    " form header legend main nav option section summary tbody tfoot thead"
)
_BLOCKS = {"/li": 1} | {slash + name: 1 for name in _LINES.split() for slash in ("", "/")}
_BLOCKS |= {slash + name: 2 for name in _SET_OFF.split() for slash in ("", "/")}
# Not to be seen at the end of a line; newsletters fill up the preview with those of no width.
_BLANKS = "".join([chr(code) for code in range(0x3001) if chr(code).isspace()])
_BLANKS += "\xad\u034f\u180e\u200b\u200c\u200d\u2060\ufeff"
_remove_controls = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+").sub
_is_shown = re.compile(r"(?:https?|ftp)://\S|mailto:\S", re.IGNORECASE).match


class _Row:
    """A row of a table: do its cells stand on one line? Most tables are layout."""

    def __init__(self, start: int, line: int) -> None:
        self.start, self.line = start, line  # pieces of text before it; the line's number
        self.is_joined = False  # two cells are on that line


class _Page:
    """The text so far, and what is to stand before the next."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._references = _References()
        self._gap = 0
        self._has_space = False  # before the next text, if that does not begin a line
        self._is_bare = True  # nothing visible in this line
        self._line = 0  # its number
        self._marker = ""  # of the next list item
        self._lists: list[int] = []  # the next numbers of the open lists; 0: not numbered
        self._url = ""  # of the open link
        self._label = 0  # pieces of text before it
        self._preformatted = 0  # open elements
        self._row = self._joined = _Row(0, 0)
        self._rows: list[_Row] = []  # around it
        self._cell_gap = 0  # behind the cell that _JOINED joins with

    def text(self, text: str) -> None:
        if "&" in text:
            text = self._references.resolve(_split_text, text)
        (self._verbatim if self._preformatted else self._flow)(text)

    def _flow(self, text: str) -> None:
        if text.isascii():
            words = " ".join(text.split())
        else:  # str.split() alone would take U+00A0 and U+3000
            for white in "\t\n\f\r":
                text = text.replace(white, " ")
            words = " ".join([word for word in text.split(" ") if word]).replace("\xa0", " ")
        self._has_space |= "" < text[:1] <= " "
        if words:
            self._write(words)
            self._has_space = text[-1] <= " "

    def _verbatim(self, text: str) -> None:
        text = text.replace("\r", "\n")
        body = text.strip("\n")
        for _ in range(min(2, len(text) - len(text.lstrip("\n")))):
            self.line_break()
        if body:
            self._write(body)
            self._line += body.count("\n")
            self._gap = min(2, len(text) - len(text.rstrip("\n")))
        self._has_space = False

    def _write(self, words: str) -> None:
        if self._gap:
            self._begin()
        elif self._has_space and not self._is_bare:
            self._out.append(" ")
        if self._is_bare and words[0] == " " and words.isspace():  # &nbsp; in cells of layout
            words = ""
        self._is_bare = self._is_bare and not words
        self._out.append(words)

    def _begin(self) -> None:
        if self._gap == _JOINED:
            self._joined.is_joined = not self._is_bare
            self._out.append("" if self._is_bare else " ")
        else:
            self._out.append((_GAPS[self._gap] if self._out else "") + self._marker)
            self._marker = ""
            self._line += 1
            self._is_bare = True
        self._gap = 0

    def finished(self) -> str:
        self.end_link()
        text = _remove_controls("", "".join(self._out))
        if " \n" in text or not text.isascii():
            text = "\n".join([line.rstrip(_BLANKS) for line in text.split("\n")])
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        text = text.lstrip("\n").rstrip()
        return text + "\n" if text else ""

    def gap(self, gap: int) -> None:
        if self._gap < gap:
            self._gap = gap

    def line_break(self, _: _Attributes = "") -> None:
        self._gap = _AFTER_BREAK[self._gap]

    def new_line(self, _: _Attributes = "") -> None:
        """Not behind another cell."""
        self._gap = max(1, self._cell_gap if self._gap == _JOINED else self._gap)

    def rule(self, _: _Attributes) -> None:
        self.new_line()
        self._write("----")
        self._gap = 1

    def preformatted(self, step: int) -> None:
        self.gap(2)
        self._preformatted = max(0, self._preformatted + step)

    def begin_list(self, number: int) -> None:
        self.gap(1 if self._lists else 2)
        self._lists.append(number)

    def end_list(self, _: _Attributes) -> None:
        del self._lists[-1:]
        self.gap(1 if self._lists else 2)

    def item(self, _: _Attributes) -> None:
        self.new_line()
        self._marker = "* "
        if self._lists:
            number = self._lists[-1]
            if number:
                self._marker = f"{number}. "
                self._lists[-1] += 1
            self._marker = "  " * min(len(self._lists) - 1, 4) + self._marker

    def table(self, _: _Attributes) -> None:
        self.gap(2)
        self._rows.append(self._row)
        self._begin_row()

    def end_table(self, _: _Attributes) -> None:
        self.row()
        self._row = self._rows.pop() if self._rows else self._row
        self._gap = max(2, self._gap % _TIGHT)

    def row(self, _: _Attributes = "") -> None:
        """A row begins or ends."""
        if self._row.is_joined:
            self._gap = _TIGHT
        elif self._joined is self._row or self._gap != _JOINED:
            self.new_line()
        self._begin_row()

    def _begin_row(self) -> None:
        self._row = _Row(len(self._out), self._line + (self._gap != _JOINED))

    def cell(self, _: _Attributes) -> None:
        if self._gap == _JOINED or len(self._out) == self._row.start:
            return
        if self._line > self._row.line:
            self.gap(1)
        else:
            self._joined, self._cell_gap, self._gap = self._row, self._gap, _JOINED

    def link(self, attributes: _Attributes) -> None:
        self.end_link()
        self._url = "%20".join(self._value(attributes, "href").split())
        self._label = len(self._out)

    def end_link(self, _: _Attributes = "") -> None:
        """The URL behind the text of the link, if it has one that is not the URL."""
        url, self._url = self._url, ""
        if _is_shown(url):
            label = "".join(self._out[self._label :]).strip(_BLANKS).rstrip("/")
            if label and label not in (url.rstrip("/"), url.partition(":")[2].strip("/")):
                self._out.append(f" <{url}>")

    def image(self, attributes: _Attributes) -> None:
        if text := self._value(attributes, "alt"):
            self._flow(text)

    def _value(self, attributes: _Attributes, name: str) -> str:
        value = _parsed(attributes).get(name, "") if attributes else ""
        return self._references.resolve(_split_value, value) if "&" in value else value


_ACTIONS: dict[str, Callable[[_Page, _Attributes], None]] = {
    **dict.fromkeys(["dir", "menu", "ul"], lambda page, _: page.begin_list(0)),
    **dict.fromkeys(["/dir", "/menu", "/ol", "/ul"], _Page.end_list),
    **dict.fromkeys(["pre", "textarea"], lambda page, _: page.preformatted(1)),
    **dict.fromkeys(["/pre", "/textarea"], lambda page, _: page.preformatted(-1)),
    **dict.fromkeys(["td", "th"], _Page.cell),
    **dict.fromkeys(["tr", "/tr"], _Page.row),
    "/a": _Page.end_link,
    "/table": _Page.end_table,
    "a": _Page.link,
    "br": _Page.line_break,
    "hr": _Page.rule,
    "img": _Page.image,
    "li": _Page.item,
    "ol": lambda page, _: page.begin_list(1),
    "table": _Page.table,
}
_END_P = (_BLOCKS.keys() | _ACTIONS.keys()) - {"/p", "a", "/a", "br", "img"}  # as "</p>" does


def _render(tokens: Iterable[_Token]) -> str:
    page = _Page()
    hidden = ""  # the name of an element that is not shown
    depth = 0  # open elements of that name
    for text, tag, attributes in tokens:
        tag = tag.lower()
        if hidden:
            depth += (tag == hidden) - (tag == "/" + hidden)
            is_outside = hidden == "p" and tag in _END_P
            if is_outside or not depth:
                hidden = ""
            if not is_outside:
                continue
        elif text:
            page.text(text)
        if attributes and tag[0] != "/" and _is_hidden(attributes):
            hidden, depth = "" if tag in _VOID else tag, 1
        elif tag in _BLOCKS:
            page.gap(_BLOCKS[tag])
        elif tag in _ACTIONS:
            _ACTIONS[tag](page, attributes)
    return page.finished()
