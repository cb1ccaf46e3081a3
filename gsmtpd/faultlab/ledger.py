"""What is written down of each mail that is sent, when, and how is it read again?

A ledger is a file `sender-K.jsonl` of one sender, with a JSON object on each line: a step. What a
step says has reached the disk before the octets that it speaks of leave the sender::

    {"step":"run","run":"1f0a","sender":0,"seed":7,"format":1,"began":1795.0,"recipients":[…],…}
    {"step":"mail","id":"1f0a-0-12","at":…,"to":["…"],"size":512,"sha256":"…"}   before MAIL
    {"step":"dot","id":"1f0a-0-12","attempt":1,"at":…}    from here on it may be stored
    {"step":"reply","id":"1f0a-0-12","attempt":1,"phase":"dot","code":250,"text":"…",
     "seconds":0.004,"at":…}
    {"step":"lost","id":…,"attempt":1,"phase":"dot","why":"…","at":…}   the connection is gone
    {"step":"abandoned","id":…,"attempt":1,"phase":"data","at":…}       broken off on purpose
    {"step":"turned_away","code":421,"text":"…","at":…}                 instead of a greeting
    {"step":"end","at":…,"cpu":…}

`phase` is `mail` up to the answer to DATA, `data` until the last octet has left, then `dot`.
Only an attempt that was lost or abandoned in phase `dot`, or had an answer there, can be stored.
Times are Unix seconds; `seconds` is from the last octet's leaving to the reply.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1
_NAME = re.compile(r"sender-(\d+)\.jsonl")


class LedgerError(Exception):
    """A ledger cannot be read, or is none; the text is one line."""


def files(directory: Path) -> list[Path]:
    """The ledgers in a directory, in the order of their senders. Raises LedgerError."""
    try:
        found = {path: _NAME.fullmatch(path.name) for path in directory.iterdir()}
    except OSError as error:
        raise LedgerError(f"{directory}: {error.strerror}") from error
    numbered = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(numbered, key=lambda path: numbered[path])


def create(directory: Path) -> tuple[int, int]:
    """Make the next ledger of a directory; its number, and its descriptor for writing."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.stem.split("-")[1]) for path in files(directory)), default=-1)
    while True:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            file = os.open(directory / f"sender-{number}.jsonl", flags, 0o640)
        except FileExistsError:
            number += 1
            continue
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return number, file


class Writer:
    """Writes steps; they are on the disk when `sync` returns. Raises OSError as files do.

    Strings are put in by `_quoted` where they may hold anything; ids and phases are ours.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._lines: list[str] = []

    def sync(self) -> None:
        """Put what was noted on the disk."""
        if not self._lines:
            return
        data = "".join(self._lines).encode()
        self._lines.clear()
        while data:
            data = data[os.write(self._file, data) :]
        os.fdatasync(self._file)

    def close(self) -> None:
        """Put the rest on the disk, and end."""
        self.sync()
        os.close(self._file)

    def other(self, step: str, **values: object) -> None:
        """A step that is seldom noted."""
        self._lines.append(json.dumps({"step": step, **values}, separators=(",", ":")) + "\n")

    def mail(self, uid: str, at: float, to: Sequence[str], size: int, sha256: str) -> None:
        """A mail is going to be sent. size: in octets, of what `sha256` is the digest of."""
        self._lines.append(
            f'{{"step":"mail","id":"{uid}","at":{at:.3f},"to":{_quoted(to)},"size":{size},'
            f'"sha256":"{sha256}"}}\n'
        )

    def dot(self, uid: str, attempt: int, at: float) -> None:
        """The end of its data may leave."""
        self._lines.append(f'{{"step":"dot","id":"{uid}","attempt":{attempt},"at":{at:.3f}}}\n')

    def reply(
        self, uid: str, attempt: int, phase: str, code: int, text: str, seconds: float, at: float
    ) -> None:
        """The answer to an attempt. seconds: since its last octet left, 0 before that."""
        self._lines.append(
            f'{{"step":"reply","id":"{uid}","attempt":{attempt},"phase":"{phase}","code":{code},'
            f'"text":{_quoted(text)},"seconds":{seconds:.6f},"at":{at:.3f}}}\n'
        )

    def lost(self, uid: str, attempt: int, phase: str, why: str, at: float) -> None:
        """The connection of an attempt is gone before its answer."""
        self.other("lost", id=uid, attempt=attempt, phase=phase, why=why, at=round(at, 3))

    def abandoned(self, uid: str, attempt: int, phase: str, at: float) -> None:
        """An attempt was broken off by the sender itself."""
        self.other("abandoned", id=uid, attempt=attempt, phase=phase, at=round(at, 3))


_encoder = json.JSONEncoder(separators=(",", ":"))


def _quoted(value: str | Sequence[str]) -> str:
    return _encoder.encode(value)


def read(path: Path, torn: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The steps of a ledger.

    A last line without its end, as a sender that was killed leaves it, is no step: nothing of what
    it speaks of has happened. It is added to `torn`. Raises LedgerError for any other line that is
    not one.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    if torn is not None:
                        torn.append(line.decode(errors="replace"))
                    return
                yield _step(path, number, line)
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error


def _step(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        step = json.loads(line)
        if isinstance(step, dict) and isinstance(step.get("step"), str):
            return step
    except ValueError:
        pass
    raise LedgerError(f"{path}: line {number} is no step of a ledger")
