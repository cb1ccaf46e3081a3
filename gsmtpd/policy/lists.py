"""What does a list file say, where is it wrong, and has it changed?

One item per line, in UTF-8. "#" begins a comment at the start of a line or behind white space, but
not within double quotes. Empty lines, CRLF and a byte order mark mean nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gsmtpd.wording import printable

MAX_LIST = 64 << 20  # bytes; what is larger is some other file
MAX_PROBLEMS = 10  # of one file: with more of them it is no such list
_MOST_RESTLESS = 5  # looks
_SPACE = " \t\r"  # str.strip() alone would take U+0085 and U+00A0 as well
_MARK = re.compile(r"(?:^|(?<=[ \t]))#")
# A quote that is not closed goes to the end, so that each character is looked at once.
_QUOTED_OR_MARK = re.compile(rf'{_MARK.pattern}|"(?:[^"\\]|\\.)*+(?P<open>$)?"?')


class ListError(Exception):
    """A list cannot be used. problems: "path:line: text" for each thing that is wrong with it."""

    def __init__(self, problems: Iterable[str]) -> None:
        found = [*problems]
        more = len(found) - MAX_PROBLEMS
        if more > 0:
            found[MAX_PROBLEMS:] = [f"and {more} more"]
        super().__init__(*found)
        self.problems: tuple[str, ...] = tuple(found)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def read_list(path: str, parse: Callable[[str], str]) -> list[str]:
    """What `parse` makes of each item in the file, in its order.

    parse: raises ValueError for what is no item. Raises ListError with all that is wrong.
    """
    text = _text(path)
    try:
        said = (_uncommented(line) if "#" in line else line for line in text.split("\n"))
        return [parse(item) for line in said if (item := line.strip(_SPACE))]
    except ValueError:
        pass  # below each is found with its line
    good: list[str] = []
    bad: list[str] = []
    for number, line in _numbered(text):
        try:
            good.append(parse(line.strip(_SPACE)))
        except ValueError as error:
            bad.append(f"{printable(path)}:{number}: {error}")
    if bad:
        raise ListError(bad)
    return good


def lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers, from 1.

    Comments, and white space at the end, are gone; white space at the start is not. Raises
    ListError, at once, where the file cannot be read.
    """
    return _numbered(_text(path))


def line_of(path: str, parse: Callable[[str], str], item: str) -> int:
    """The first line that says `item`, 0 if none does. Raises ListError as `lines` does."""
    for number, line in lines(path):
        try:
            if parse(line.strip(_SPACE)) == item:
                return number
        except ValueError:
            continue
    return 0


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        said = (_uncommented(line) if "#" in line else line).rstrip(_SPACE)
        if said:
            yield number, said


def _uncommented(line: str) -> str:
    for found in _QUOTED_OR_MARK.finditer(line):
        # A quote that is open is none at all.
        mark = found if found["open"] is None else _MARK.search(line, found.start())
        if mark is not None and mark[0] == "#":
            return line[: mark.start()]
    return line


def _text(path: str) -> str:
    name = printable(path)
    try:
        data = _octets(path)
    except FileNotFoundError:
        raise ListError([f"{name}: there is no such file; make it, or name another"]) from None
    except PermissionError:
        wrong = "permission denied; let the user that gsmtpd runs as read it"
        raise ListError([f"{name}: {wrong}"]) from None
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}; check its path"
        raise ListError([f"{name}: {wrong}"]) from None
    except ValueError as error:  # a NUL in the path
        raise ListError([f"{name}: cannot be read: {error}; check its path"]) from None
    if data is None:
        raise ListError([f"{name}: is not a file; name one that holds a list"])
    if len(data) > MAX_LIST:
        raise ListError([f"{name}: is larger than {MAX_LIST >> 20} MiB; make several files of it"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Behind a byte order mark `start` counts without it; no line ends in one.
        number = error.object.count(b"\n", 0, error.start) + 1
        wrong = f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ListError([f"{name}:{number}: {wrong}"]) from None


def _octets(path: str) -> bytes | None:
    """What is in the file, but no more than a byte beyond MAX_LIST; None for what is no file."""
    # A FIFO would wait for who writes to it, were it not for O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_LIST + 1)
    finally:
        os.close(descriptor)


class _Identity(NamedTuple):
    """What tells one version of a file from the next."""

    mtime_ns: int
    size: int
    inode: int


class Watch:
    """Whether files have changed since they were read. Make it before they are read.

    A file counts as changed once it looks other than it did then, and all have looked the same at
    two looks in a row: one that is still being written is left alone until it is whole, or has been
    another at each of several looks. So the looks should be a second or so apart. A file that has
    vanished has not changed: who had read it keeps what it said.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._read = {path: _identity(path) for path in paths}
        self._seen = dict(self._read)
        self._restless = 0  # looks in a row at which a file was another each time

    def changed(self) -> bool:
        """Look at all of them: has one changed?"""
        settled = restless = False
        for path, read in self._read.items():
            now = _identity(path)
            if now is not None and now != read:
                settled |= now == self._seen[path]
                restless |= now != self._seen[path]
            self._seen[path] = now
        self._restless = self._restless + 1 if restless else 0
        return (settled and not restless) or self._restless > _MOST_RESTLESS

    @property
    def is_unchanged(self) -> bool:
        """Whether each file was at the last look as it was read."""
        return self._seen == self._read

    def missing(self) -> list[str]:
        """Those that were not there at the last look."""
        return [path for path, identity in self._seen.items() if identity is None]


def _identity(path: str) -> _Identity | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return _Identity(found.st_mtime_ns, found.st_size, found.st_ino)
