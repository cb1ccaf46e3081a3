"""How does mail get into files and out of them? As mbox, maildir or .eml, one message at a time.

.eml files have the octets as they are. mbox and maildir have line ends of LF, as is usual there; in
mbox "From " at the beginning of a line is quoted so that it can be undone (mboxrd).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import count
from socket import gethostname
from typing import BinaryIO, NamedTuple, Protocol

FORMATS = ("mbox", "maildir", "eml")
STANDARD = "-"  # stdin or stdout
_PIECE = 65536  # octets of a line that are read at once
_MAX_FROM_LINE = 998


class MailFileError(Exception):
    """A file cannot be read or written; the text is one clear line."""


# ---- writing -----------------------------------------------------------------------------------


class Writer(Protocol):
    """Writes mail into files that nobody else has made."""

    def add(self, number: int, octets: bytes, return_path: str, received_at: float) -> None:
        """Write a message with CRLF line ends. number: unique. received_at: Unix time, seconds.

        Raises MailFileError where a file is there already, OSError for the rest.
        """

    def close(self) -> None:
        """See that all is on the disk."""


def open_writer(kind: str, destination: str) -> Writer:
    """A writer of that format, of FORMATS. Raises MailFileError.

    destination: of a new mbox, or "-" for stdout; of a directory, made where it is missing; or of
    a single file, "….eml".
    """
    try:
        if kind == "mbox":
            return _MboxWriter(destination)
        if destination == STANDARD:
            raise MailFileError("only an mbox can be written to stdout")
        if kind == "maildir":
            return _MaildirWriter(destination)
        return _EmlWriter(destination)
    except OSError as error:
        raise _trouble(destination, error) from error


class _MboxWriter:
    def __init__(self, path: str) -> None:
        self._directory = None if path == STANDARD else _Directory(os.path.dirname(path) or ".")
        self._file = sys.stdout.buffer
        if self._directory is not None:
            self._file = self._directory.create(os.path.basename(path))

    def add(self, number: int, octets: bytes, return_path: str, received_at: float) -> None:
        sender = re.sub(r"\s", "-", return_path) or "MAILER-DAEMON"
        text = octets.replace(b"\r\n", b"\n")
        if not text.endswith(b"\n"):
            text += b"\n"
        self._file.write(f"From {sender} {time.asctime(time.gmtime(received_at))}\n".encode())
        if b"From " in text:
            text = re.sub(rb"^(>*From )", rb">\1", text, flags=re.MULTILINE)
        self._file.write(text)
        self._file.write(b"\n")

    def close(self) -> None:
        if self._directory is None:
            self._file.flush()
        else:
            _finish(self._file)
            self._directory.close()


class _MaildirWriter:
    """See https://cr.yp.to/proto/maildir.html: what is in new is whole."""

    def __init__(self, path: str) -> None:
        parts = [os.path.join(path, name) for name in ("tmp", "new", "cur")]
        if os.path.isdir(path) and os.listdir(path) and not all(map(os.path.isdir, parts)):
            raise MailFileError(f"{path}: is there and is no maildir; name another directory")
        for directory in (path, *parts):
            os.makedirs(directory, 0o700, exist_ok=True)
        self._tmp = _Directory(parts[0], follow=False)
        self._new = _Directory(parts[1], follow=False)
        began = time.time()
        host = gethostname().replace("/", "\\057").replace(":", "\\072")
        # Sorted by their names they are in the order of the export.
        front = f"{began:.0f}.M{began % 1 * 1e6:06.0f}P{os.getpid()}"
        self._names = (f"{front}Q{n:010}.{host}" for n in count(1))

    def add(self, number: int, octets: bytes, return_path: str, received_at: float) -> None:
        name = next(self._names)
        self._tmp.write(name, octets.replace(b"\r\n", b"\n"), received_at)
        tmp, new = self._tmp.descriptor, self._new.descriptor
        os.rename(name, name, src_dir_fd=tmp, dst_dir_fd=new)

    def close(self) -> None:
        self._tmp.close()
        self._new.close()


class _EmlWriter:
    def __init__(self, path: str) -> None:
        self._name = os.path.basename(path) if is_one_file("eml", path) else ""
        if not self._name:
            os.makedirs(path, 0o700, exist_ok=True)
        self._directory = _Directory((os.path.dirname(path) or ".") if self._name else path)

    def add(self, number: int, octets: bytes, return_path: str, received_at: float) -> None:
        self._directory.write(self._name or f"{number}.eml", octets, received_at)

    def close(self) -> None:
        self._directory.close()


def is_one_file(kind: str, destination: str) -> bool:
    """Whether that format makes one file there, for one message."""
    return kind == "eml" and destination.lower().endswith(".eml") and not os.path.isdir(destination)


def create_file(path: str, directory: int | None = None) -> BinaryIO:
    """A new file for mail, the owner's only. Raises FileExistsError, also for a link; OSError.

    directory: the descriptor of that in which it is made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600, dir_fd=directory), "wb")


class _Directory:
    """An open directory. Root may work in one of a user's, who could put a link in its place.

    follow: whether `path` itself may be a link. Raises OSError.
    """

    def __init__(self, path: str, follow: bool = True) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        self.path = path
        self.descriptor = os.open(path, flags)

    def create(self, name: str) -> BinaryIO:
        """A new file. Raises MailFileError if it is there."""
        try:
            return create_file(name, self.descriptor)
        except FileExistsError:
            path = os.path.normpath(os.path.join(self.path, name))
            raise MailFileError(f"{path}: is there already; nothing is overwritten") from None

    def write(self, name: str, octets: bytes, received_at: float) -> None:
        """Write a file that is there as a whole or not at all. Its time is that of the mail."""
        file = self.create(name)
        try:
            file.write(octets)
            file.flush()
            os.utime(file.fileno(), (received_at, received_at))
            _finish(file)
        except BaseException:
            os.unlink(name, dir_fd=self.descriptor)
            raise

    def open(self, name: str) -> BinaryIO | None:
        """A file in it, to be read, None where it is none. Raises OSError, also for a link."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=self.descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "rb")
        os.close(descriptor)
        return None

    def close(self) -> None:
        """See that its files are on the disk, and close it."""
        os.fsync(self.descriptor)
        os.close(self.descriptor)


def _finish(file: BinaryIO) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())


def _trouble(path: str, error: OSError) -> MailFileError:
    return MailFileError(f"{path}: {_why(error)}")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


# ---- reading -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """A message in a file. octets: with CRLF line ends, None where `problem` says why not.

    name: for people. sender, date: what an mbox says in front of it, the date in Unix time; ""
    and None where nothing does. size: the octets that it takes in the file.
    """

    name: str
    octets: bytes | None
    problem: str = ""
    sender: str = ""
    date: float | None = None
    size: int = 0


TOO_LARGE = "too large"


def read_mail(source: str, limit: int) -> Iterator[Found]:
    """All messages in `source`: an mbox, a maildir, a directory of .eml files, or one of those.

    "-" is an mbox or one message on stdin. limit: octets; what is larger is found without its
    octets. Raises MailFileError if `source` cannot be read.
    """
    try:
        if source == STANDARD:
            yield from _in_file(sys.stdin.buffer, "stdin", limit)
        elif os.path.isdir(source):
            yield from _in_directory(source, limit)
        else:
            with open(source, "rb") as file:
                yield from _in_file(file, source, limit)
    except OSError as error:
        raise _trouble(source, error) from error


def _in_directory(path: str, limit: int) -> Iterator[Found]:
    """The messages of a maildir, or else the .eml files, in the order in which they were made."""
    parts = [os.path.join(path, name) for name in ("new", "cur")]
    if all(map(os.path.isdir, parts)):
        places = [_Directory(part, follow=False) for part in parts]
        files = [(name, n) for n, place in enumerate(places) for name in _names(place)]
        files = sorted(file for file in files if file[0][:1] != ".")
    else:
        places = [_Directory(path)]
        files = [(name, 0) for name in _names(places[0]) if name.lower().endswith(".eml")]
        files.sort(key=lambda file: _number(file[0]))
        if not files:
            raise MailFileError(f"{path}: neither a maildir nor a directory with .eml files")
    try:
        for name, n in files:
            yield from _in_place(places[n], name, limit)
    finally:
        for place in places:
            os.close(place.descriptor)


def _names(place: _Directory) -> list[str]:
    return os.listdir(place.descriptor)


def _number(name: str) -> tuple[int, str]:
    stem = name[:-4]
    return int(stem) if stem.isascii() and stem.isdecimal() else sys.maxsize, name


def _in_place(place: _Directory, name: str, limit: int) -> Iterator[Found]:
    path = os.path.join(place.path, name)
    try:
        file = place.open(name)
        if file is not None:
            with file:
                yield _one(file, path, limit)
    except OSError as error:
        link = error.errno == errno.ELOOP
        yield Found(path, None, "a link is not followed" if link else _why(error))


def _in_file(file: BinaryIO, name: str, limit: int) -> Iterator[Found]:
    blank, first = b"", file.readline(_PIECE)
    while first in (b"\n", b"\r\n") and len(blank) < _PIECE:
        blank += first
        first = file.readline(_PIECE)
    if first.startswith(b"From "):
        yield from _in_mbox(file, first, name, limit)
    elif first:
        yield _one(file, name, limit, blank + first)


def _one(file: BinaryIO, name: str, limit: int, first: bytes = b"") -> Found:
    octets = first + file.read(limit + 1)
    if len(octets) > limit:
        size = max(len(octets), os.fstat(file.fileno()).st_size)  # 0 of a pipe
        return Found(name, None, TOO_LARGE, size=size)
    lines = octets if b"\r\n" in octets else octets.replace(b"\n", b"\r\n")
    return Found(name, lines, size=len(octets))


# The date is what tells it from text that nobody quoted.
_match_from_line = re.compile(
    rb"From (.*?)[ \t]*\b((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?[ \t]+"
    rb"(?:[A-Z][a-z]{2}[ \t]+\d{1,2}|\d{1,2}[ \t]+[A-Z][a-z]{2})\b.*\d{1,2}:\d\d.*)"
).match


def _in_mbox(file: BinaryIO, first: bytes, name: str, limit: int) -> Iterator[Found]:
    """The messages of an mbox; its first line has been read."""
    front, size, begins = first, 0, True
    numbers = count(1)
    lines: list[bytes] = []
    for piece in iter(partial(file.readline, _PIECE), b""):
        if begins and piece.startswith(b"From ") and _is_from_line(piece):
            yield _mbox_message(front, lines, size, limit, f"{name}, message {next(numbers)}")
            front, size, lines = piece, 0, []
        else:
            size += len(piece)
            if size <= limit:
                lines.append(piece)
            else:
                lines.clear()
        begins = piece.endswith(b"\n")
    yield _mbox_message(front, lines, size, limit, f"{name}, message {next(numbers)}")


def _is_from_line(line: bytes) -> bool:
    return len(line) <= _MAX_FROM_LINE and _match_from_line(line) is not None


def _mbox_message(front: bytes, lines: list[bytes], size: int, limit: int, name: str) -> Found:
    match = _match_from_line(front[:_MAX_FROM_LINE])
    sender = (match[1] if match else front[5:]).decode("utf-8", "replace").strip()
    date = date_in(match[2].decode("utf-8", "replace")) if match else None
    whole = len(front) + size
    if size > limit:
        return Found(name, None, TOO_LARGE, sender, date, whole)
    if lines and lines[-1] in (b"\n", b"\r\n"):
        del lines[-1]  # it belongs to what follows
    text = b"".join(lines)
    if b"\n>" in text or text.startswith(b">"):
        text = re.sub(rb"^>(>*From )", rb"\1", text, flags=re.MULTILINE)
    octets = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return Found(name, octets, "", sender, date, whole)


def date_in(text: str) -> float | None:
    """The Unix time in the date of a header field or an mbox; UTC where it names no zone."""
    try:
        said = parsedate_to_datetime(text)
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    except (IndexError, OverflowError, TypeError, ValueError):
        return None
