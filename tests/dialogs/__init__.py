r"""How is an SMTP conversation written down? The format of the text files beside this module.

Each file is one conversation with a server named mx.example.com, from its greeting on::

    # A comment.
    # option: max_size=65536    a setting of this server: a field of `Options`
    C: NOOP                     the client sends this line and CRLF
    C*3: NOOP                   ... three times
    C<: MAIL\r\n\x00            the client sends these octets; the escapes are Python's
    C<*70000: x                 ... 70,000 times
    S: 250 2.0.0 Ok             the server answers with exactly this line
    S*3: 250 2.0.0 OK: que...   ... with three lines that begin so
    S: <nothing>                the server says nothing to what was sent so far
    M: one\r\n.two\r\n          the store is given these octets (seen by the pure runner only)
    S: <open>                   the end: the session goes on, or
    S: <closed>                 ... the server has closed it

Client lines that follow one another are sent as one burst. Empty lines mean nothing. A dialog that
ends with <open> must not end within a message: the live runner says QUIT there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
HOST_NAME = "mx.example.com"

_LINE = re.compile(r"([CSM])(<)?(?:\*([0-9]+))?:(?: (.*))?")
_OPTION = re.compile(r"# option: ([a-z_]+)=(.+)")


class DialogError(Exception):
    """A file breaks the format, or the server said something else; the text names file and line."""


class Options(NamedTuple):
    """What a dialog may set, as in gsmtpd.conf. accept: domains and literals, comma between.

    xclient: whether the client may say XCLIENT. With tls a dialog ends where TLS would begin.
    """

    accept: str = "example.com"
    max_size: int = 10 * 1024 * 1024
    max_recipients: int = 1000
    bare_newline: str = "accept"
    protocol: str = "smtp"
    tls: str = "off"
    chunking: str = "yes"
    xclient: str = "no"


class Expected(NamedTuple):
    """One line of the server: its text, "..." at the end for any tail, and where it stands."""

    text: str
    line_number: int

    def matches(self, said: str) -> bool:
        """Whether the server may say `said`."""
        if self.text.endswith("..."):
            return said.startswith(self.text[:-3])
        return said == self.text


class Turn(NamedTuple):
    """One burst of the client, the reply lines to it, and the messages that the store is given."""

    sent: bytes
    expected: tuple[Expected, ...]
    messages: tuple[bytes, ...]


class Dialog(NamedTuple):
    """A whole conversation. closed: whether the server closes the session at its end."""

    name: str
    options: Options
    turns: tuple[Turn, ...]
    closed: bool

    def check(self, turn: Turn, said: Sequence[str]) -> None:
        """Raises DialogError where the reply lines `said` are not those of `turn`."""
        for expected, line in zip(turn.expected, said, strict=False):
            if not expected.matches(line):
                raise self.error(expected.line_number, f"{expected.text!r} expected, {line!r} said")
        if len(said) < len(turn.expected):
            missing = turn.expected[len(said)]
            raise self.error(missing.line_number, f"{missing.text!r} expected, nothing said")
        if len(said) > len(turn.expected):
            after = turn.expected[-1].line_number if turn.expected else 0
            raise self.error(after, f"then nothing expected, {said[len(turn.expected)]!r} said")

    def error(self, line_number: int, trouble: str) -> DialogError:
        """The error `trouble`, with its place."""
        return DialogError(f"{self.name}:{line_number}: {trouble}")


def names() -> list[str]:
    """The names of all dialogs."""
    return sorted(path.stem for path in HERE.glob("*.txt"))


def load(name: str) -> Dialog:
    """The dialog of that name. Raises DialogError if its file breaks the format."""
    path = HERE / f"{name}.txt"
    return parse(name, path.read_text("utf-8"))


def parse(name: str, text: str) -> Dialog:
    """The dialog written down as `text`. Raises DialogError if that breaks the format."""
    reader = _Reader(name)
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("# option:"):
            reader.option(number, line)
        elif line and not line.startswith("#"):
            reader.line(number, line)
    return reader.dialog()


class _Reader:
    """Gathers the lines of a dialog into turns."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._options = Options()
        self._turns: list[Turn] = []
        self._turn = Turn(b"", (), ())
        self._answered = False  # whether the server's part of the turn has begun
        self._end = ""

    def option(self, number: int, line: str) -> None:
        match = _OPTION.fullmatch(line)
        if match is None or match.group(1) not in Options._fields:
            raise DialogError(f"{self._name}:{number}: no option: {line!r}")
        key, value = match.groups()
        kind = type(getattr(self._options, key))
        self._options = self._options._replace(**{key: kind(value)})

    def line(self, number: int, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise DialogError(f"{self._name}:{number}: not of the form 'C: text': {line!r}")
        if self._end:
            raise DialogError(f"{self._name}:{number}: the dialog goes on behind its end")
        who, raw, times, text = match.groups(default="")
        if who == "C":
            self._sent((unescape(text) if raw else text.encode() + b"\r\n") * int(times or 1))
        elif who == "S":
            self._said(text, number, int(times or 1))
        else:
            self._turn = self._turn._replace(messages=(*self._turn.messages, unescape(text)))

    def _sent(self, data: bytes) -> None:
        if self._answered:
            self._turns.append(self._turn)
            self._turn = Turn(b"", (), ())
            self._answered = False
        self._turn = self._turn._replace(sent=self._turn.sent + data)

    def _said(self, text: str, number: int, count: int) -> None:
        self._answered = True
        if text in ("<open>", "<closed>"):
            self._end = text
            self._turns.append(self._turn)
        elif text != "<nothing>":
            expected = self._turn.expected + (Expected(text, number),) * count
            self._turn = self._turn._replace(expected=expected)

    def dialog(self) -> Dialog:
        if not self._end:
            raise DialogError(f"{self._name}: ends with neither <open> nor <closed>")
        return Dialog(self._name, self._options, tuple(self._turns), self._end == "<closed>")


def unescape(text: str) -> bytes:
    """The octets that `text` with Python's escapes (as in a bytes literal) stands for."""
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


def reply_lines(wire: bytes) -> Iterator[str]:
    """The lines of the replies `wire`. Raises ValueError if they are not lines with CRLF."""
    if wire and not wire.endswith(b"\r\n"):
        raise ValueError(f"the last reply does not end with CR LF: {wire!r}")
    for line in wire.split(b"\r\n")[:-1]:
        yield line.decode("ascii")
