"""What do ledgers say was sent, and what was answered? Read into little memory.

A million mails take some 200 MB: each has a slot, its place in a few arrays.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.ledger import LedgerError
from gsmtpd.faultlab.mails import UID

_QUEUED = re.compile(r"queued as ([!-~]+)")
_MOST = 255  # what an item of an array of octets can count to
DIGEST = 32  # octets of a SHA-256


class Account:
    """The ledgers as they were read. Raises LedgerError.

    digests: SHA-256 of each slot's mail. recipients: the place of its recipients in `sets`.
    said: how often it was acknowledged. doubts: how many of its attempts may have been stored
    without an answer, by a lost connection or a sender's end. put_off: how many were answered 4xx
    behind the end of the data. ids: of the acknowledged copies, each with its slot.
    """

    def __init__(self, ledgers: Iterable[Path]) -> None:
        self.digests = bytearray()
        self.recipients = array("I")
        self.sets: list[tuple[str, ...]] = []
        self.said = bytearray()
        self.doubts = bytearray()
        self.put_off = bytearray()
        self.ids: dict[bytes, int] = {}
        self.same_ids: list[str] = []
        self.refusals: list[str] = []
        self.unnamed: dict[int, int] = {}  # acknowledged without an id: how often, by slot
        self.seconds = array("d")  # from the end of the data to the reply, whatever it was
        self.own: set[str] = set()  # recipients that nobody else uses
        self.figures = dict.fromkeys(
            (
                "mails",
                "attempts",
                "acknowledged",
                "refused_4xx",
                "refused_5xx",
                "lost_connections",
                "abandoned",
                "in_doubt",
                "turned_away",
                "torn",
            ),
            0,
        )
        self._places: dict[tuple[str, ...], int] = {}
        self._books: dict[tuple[bytes, bytes], list[int]] = {}  # the first slot, how many
        self._runs: set[bytes] = set()
        self._open: dict[tuple[str, int], int] = {}
        for path in ledgers:
            self._read(path)

    # --- for the checker ----------------------------------------------------------------------

    def slot(self, uid: bytes) -> int | None:
        """The slot of the mail with that id, None if none was sent."""
        parts = uid.split(b"-")
        if len(parts) != 3:
            return None
        book = self._books.get((parts[0], parts[1]))
        if book is None or not parts[2].isdigit():
            return None
        number = int(parts[2])
        return book[0] + number if number < book[1] else None

    def is_ours(self, uid: bytes) -> bool:
        """Whether an id is of one of these runs, be there such a mail or not."""
        return uid.partition(b"-")[0] in self._runs

    def name(self, slot: int) -> str:
        """The id of the mail in a slot."""
        for (run, sender), (base, count) in self._books.items():
            if base <= slot < base + count:
                return f"{run.decode()}-{sender.decode()}-{slot - base}"
        raise KeyError(slot)

    # --- reading ------------------------------------------------------------------------------

    def _read(self, path: Path) -> None:
        torn: list[str] = []
        self._open.clear()
        try:
            for step in ledger.read(path, torn):
                self._take(step)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LedgerError(f"{path}: a step is not as it should be: {error!r}") from error
        self.figures["torn"] += len(torn)
        # What a sender that was killed has not seen answered may be stored all the same.
        for slot in self._open.values():
            self._doubt(slot)
            self.figures["attempts"] += 1

    def _take(self, step: dict[str, Any]) -> None:
        kind = step["step"]
        if kind == "mail":
            self._mail(step)
        elif kind == "dot":
            self._open[step["id"], step["attempt"]] = self._slot(step)
        elif kind == "reply":
            self._reply(step, self._concluded(step))
        elif kind in ("lost", "abandoned"):
            self._broken(step, self._concluded(step))
        elif kind == "run":
            self._run(step)
        elif kind == "turned_away":
            self.figures["turned_away"] += 1
            if step["code"] >= 500:
                self._refused("a session", step)

    def _run(self, step: dict[str, Any]) -> None:
        if step["format"] != ledger.FORMAT:
            raise ValueError(f"format {step['format']}")
        key = (step["run"].encode(), str(step["sender"]).encode())
        if key in self._books:
            raise ValueError(f"the sender {step['run']}-{step['sender']} is there twice")
        self._books[key] = [len(self.recipients), 0]
        self._runs.add(key[0])
        if step["own"]:
            self.own.update(step["recipients"])

    def _mail(self, step: dict[str, Any]) -> None:
        match = UID.fullmatch(step["id"])
        if match is None:
            raise ValueError(step["id"])
        run, sender, number = match.groups()
        book = self._books[run.encode(), sender.encode()]
        if int(number) != book[1] or sum(book) != len(self.recipients):
            raise ValueError(f"mail {step['id']} out of its order")
        book[1] += 1
        to = tuple(step["to"])
        place = self._places.setdefault(to, len(self.sets))
        if place == len(self.sets):
            self.sets.append(to)
        self.recipients.append(place)
        self.digests += bytes.fromhex(step["sha256"])
        for counts in (self.said, self.doubts, self.put_off):
            counts.append(0)
        self.figures["mails"] += 1

    def _slot(self, step: dict[str, Any]) -> int:
        slot = self.slot(step["id"].encode())
        if slot is None:
            raise ValueError(f"{step['id']} is no mail of this ledger")
        return slot

    def _concluded(self, step: dict[str, Any]) -> int:
        self.figures["attempts"] += 1
        self._open.pop((step["id"], step["attempt"]), None)
        return self._slot(step)

    def _reply(self, step: dict[str, Any], slot: int) -> None:
        code, at_dot = step["code"], step["phase"] == "dot"
        if at_dot:
            self.seconds.append(step["seconds"])
        if code >= 500:
            self._refused(f"mail {step['id']}", step)
        elif code >= 300 or not at_dot:
            self.figures["refused_4xx"] += 1
            _add(self.put_off, slot, at_dot)
        else:
            self.figures["acknowledged"] += 1
            _add(self.said, slot)
            self._acknowledged(slot, step["text"])

    def _acknowledged(self, slot: int, text: str) -> None:
        match = _QUEUED.search(text)
        if match is None:
            self.unnamed[slot] = self.unnamed.get(slot, 0) + 1
            return
        key = key_of(match[1])
        if key in self.ids:
            self.same_ids.append(f"id {match[1]} was said for {self.name(slot)} and before")
        self.ids[key] = slot

    def _refused(self, what: str, step: dict[str, Any]) -> None:
        self.figures["refused_5xx"] += 1
        self.refusals.append(f"{what} was refused for good: {step['text']}")

    def _broken(self, step: dict[str, Any], slot: int) -> None:
        self.figures["lost_connections" if step["step"] == "lost" else "abandoned"] += 1
        if step["phase"] == "dot":
            self._doubt(slot)

    def _doubt(self, slot: int) -> None:
        self.figures["in_doubt"] += 1
        _add(self.doubts, slot)


def _add(counts: bytearray, slot: int, number: int = 1) -> None:
    counts[slot] = min(_MOST, counts[slot] + number)


def key_of(id_: str) -> bytes:
    """An id in few octets: 16 for those of gsmtpd."""
    if len(id_) == 32:
        try:
            return bytes.fromhex(id_)
        except ValueError:
            pass
    return id_.encode()
