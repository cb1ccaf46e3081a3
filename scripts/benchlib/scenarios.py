"""What is sent: how large, how much per connection, over how many connections at a time?"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

SESSIONS = 64
BASE_SIZE = 4096
MOST_OCTETS = 200_000_000  # of all messages of a run
FLAGS = ("text", "fresh", "tls")
WORDS = (
    "What it looks like of a message is its size, `one` or `many` messages per connection, and, if"
    " wanted, sessions at a time, `text` (words in place of X), `fresh` (another recipient in each"
    " message), `tls` (peers that speak it are spoken to with it): 75k-many, 4k-one-500-text"
)
_TEXT = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True)
class Scenario:
    """What each message looks like and how it comes. size: octets of its text; see WORDS."""

    size: int
    many: bool
    sessions: int = SESSIONS
    text: bool = False
    fresh: bool = False
    tls: bool = False

    @property
    def name(self) -> str:
        """As on the command line."""
        words = [short_size(self.size), "many" if self.many else "one"]
        words += [str(self.sessions)] * (self.sessions != SESSIONS)
        return "-".join(words + [flag for flag in FLAGS if getattr(self, flag)])

    @property
    def title(self) -> str:
        """For a heading."""
        share = "many messages per connection" if self.many else "one message per connection"
        more = {
            "text": "of words",
            "fresh": "another recipient in each",
            "tls": "TLS 1.3 to peers named so",
        }
        also = [more[flag] for flag in FLAGS if getattr(self, flag)]
        return ", ".join([long_size(self.size), *also, share, f"{self.sessions} sessions"])

    def count(self, most: int) -> int:
        """Messages in a run: fewer where they are large, and `most` where they are small."""
        fewer = most if self.size <= BASE_SIZE else int(most * (BASE_SIZE / self.size) ** 0.5)
        return max(1, min(fewer, MOST_OCTETS // self.size))


def short_size(octets: int) -> str:
    """4096 → 4k, as scenarios are named."""
    for unit, letter in ((1 << 20, "m"), (1 << 10, "k")):
        if octets % unit == 0:
            return f"{octets // unit}{letter}"
    return str(octets)


def long_size(octets: int) -> str:
    """4096 → 4 KB, for people."""
    short = short_size(octets)
    return f"{short[:-1]} {short[-1].upper()}B" if short[-1] in "km" else f"{short} octets"


def scenario(text: str, sessions: int = SESSIONS) -> Scenario:
    """The scenario of that name, with `sessions` if it says none. Raises ArgumentTypeError."""
    size, *words = text.split("-")
    number, unit = (size[:-1], size[-1]) if size[-1:] in ("k", "m") else (size, "")
    wrong = argparse.ArgumentTypeError(
        f"{text!r} is no scenario, such as 4k-one, 75k-many or 4k-one-500-text"
    )
    if not number.isdecimal() or not int(number) or not words or words[0] not in ("one", "many"):
        raise wrong
    octets = int(number) << {"": 0, "k": 10, "m": 20}[unit]
    many, *more = words
    if more and more[0].isdecimal() and int(more[0]):
        sessions = int(more.pop(0))
    if [flag for flag in FLAGS if flag in more] != more:
        raise wrong
    return Scenario(octets, many == "many", sessions, *(flag in more for flag in FLAGS))


def scenarios(text: str) -> list[Scenario]:
    """An argparse type: scenarios with commas between them."""
    return [scenario(word) for word in text.split(",")]


def lines(size: int, *, text: bool) -> bytes:
    """So many octets of lines with CRLF: X as smtp-source writes them, or words of the manual."""
    line = b"X" * 78 + b"\r\n"
    octets = line * (size // len(line) + 1)
    if text:
        words = b"".join(path.read_bytes() for path in sorted(_TEXT.glob("*.md")))
        # A dot that begins a line would have to be doubled, which changes the size.
        lf = words.decode("utf-8").encode("ascii", "replace").replace(b"\n.", b"\n ")
        crlf = lf.replace(b"\n", b"\r\n")
        octets = crlf * (size // len(crlf) + 1)
    cut = octets[: max(0, size - 2)]
    return (cut[:-1] + b"X" if cut.endswith(b"\r") else cut) + b"\r\n"
