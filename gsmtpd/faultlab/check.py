"""Is every acknowledged mail stored, exactly and for all its recipients, and nothing by halves?

`check` holds ledgers against all rows of the store. It knows of gsmtpd only what anybody can see:
the id in a 250, and the table of mail.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gsmtpd.faultlab.account import DIGEST, Account, key_of
from gsmtpd.faultlab.mails import MARK, TAIL
from gsmtpd.faultlab.stored import StoredRow

_MAX_EXAMPLES = 20
# What is noted of each id: its mail's slot, three marks, and which recipients have their row.
_SLOT_SHIFT = 16
_SAID, _ALTERED, _WRONG = 1 << 15, 1 << 14, 1 << 13
_SEEN = _WRONG - 1


@dataclass(frozen=True, slots=True)
class Report:
    """What the checker has found: figures. Violations are those of `VIOLATIONS`."""

    mails: int  # that were to be sent
    attempts: int  # to send one
    acknowledged: int  # attempts that were answered 250
    unacknowledged: int  # mails that no attempt has brought home
    refused_4xx: int  # attempts
    refused_5xx: int  # attempts, and connections instead of a greeting
    turned_away: int  # connections that got 4xx or 5xx instead of a greeting, or later, unasked
    lost_connections: int  # attempts whose connection was lost before their answer
    abandoned: int  # attempts that the sender broke off on purpose
    in_doubt: int  # attempts whose data had left, and that nobody has answered
    torn: int  # last lines of ledgers that a killed sender has left without their end
    rows: int  # of these senders
    stored: int  # ids of these senders
    others: int  # rows of others
    unreadable: int  # rows whose octets are not in the table, so that they were not compared
    unheard: int  # mails that are stored, and whose senders never heard of it
    duplicates: int  # copies of a mail beyond the first
    duplicates_after_4xx: int  # those of them that only a 4xx behind the data can explain
    lost: int  # acknowledged, and not stored
    altered: int  # ids stored with other octets, or whose row contradicts itself
    partial: int  # ids that are not stored for each recipient exactly once
    foreign: int  # ids that nobody sent, though they look as if these senders had
    same_id: int  # ids that were said twice
    unexplained_duplicates: int  # copies that no attempt explains
    refused_for_good: int  # 5xx: the mails are without fault
    p50: float  # seconds from the end of the data to the reply
    p99: float
    max: float
    examples: tuple[str, ...] = ()  # of violations, one line each

    @property
    def violations(self) -> int:
        """The sum of all that may never be."""
        return sum(getattr(self, name) for name in VIOLATIONS)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"violations": self.violations}

    def lines(self) -> Iterator[str]:
        """For people."""
        for name, text in _TEXTS.items():
            yield f"{text:<62}{getattr(self, name):>12}"
        for name, text in VIOLATIONS.items():
            yield f"{text:<62}{getattr(self, name):>12}"
        yield (
            f"{'End of data to reply, in seconds: p50, p99, max':<50}"
            f"{self.p50:>8.3f}{self.p99:>8.3f}{self.max:>8.3f}"
        )
        yield from self.examples
        if self.unreadable:
            yield "The octets of some mail are not in the table; so they were not compared."
        yield f"violations: {self.violations}"


_TEXTS = {
    "mails": "Mails",
    "attempts": "Attempts",
    "acknowledged": "Acknowledged (250)",
    "unacknowledged": "Mails never acknowledged",
    "refused_4xx": "Attempts refused for now (4xx)",
    "turned_away": "Connections turned away",
    "lost_connections": "Attempts whose connection was lost",
    "abandoned": "Attempts broken off by the sender",
    "in_doubt": "Attempts in doubt: data sent, no answer",
    "torn": "Ledgers without their last line",
    "stored": "Ids stored",
    "rows": "Rows stored",
    "others": "Rows of others",
    "unreadable": "Rows whose octets are elsewhere",
    "unheard": "Mails stored whose senders never heard of it",
    "duplicates": "Copies beyond the first",
    "duplicates_after_4xx": "Copies beyond the first, explained by a 4xx only",
}
VIOLATIONS = {
    "lost": "LOST: acknowledged and not stored",
    "altered": "ALTERED: stored with other octets",
    "partial": "PARTIAL: not stored for each recipient once",
    "foreign": "FOREIGN: stored, and never sent",
    "same_id": "SAME ID: said twice",
    "unexplained_duplicates": "UNEXPLAINED: copies that no attempt explains",
    "refused_for_good": "REFUSED: 5xx to mail without fault",
}


def check(ledgers: Iterable[Path], rows: Iterator[StoredRow]) -> Report:
    """Hold what was sent against what is stored. Raises LedgerError, and what `rows` raises.

    rows: all of the table, in any order, read after the senders have ended.
    """
    return _Checker(Account(ledgers)).report(rows)


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and the largest; zeros if there are none."""
    if not seconds:
        return 0.0, 0.0, 0.0
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return ordered[round(last * 0.5)], ordered[round(last * 0.99)], ordered[-1]


class _Checker:
    def __init__(self, account: Account) -> None:
        self._account = account
        self._ids = account.ids
        for id_, slot in self._ids.items():
            self._ids[id_] = slot << _SLOT_SHIFT | _SAID
        self._copies = array("H", bytes(2 * len(account.said)))
        self._foreign: dict[bytes, str] = {}
        self._examples: dict[str, list[str]] = {name: [] for name in VIOLATIONS}
        self._found = dict.fromkeys(
            [*VIOLATIONS, "rows", "stored", "others", "unreadable", "unheard", "duplicates",
             "duplicates_after_4xx", "unacknowledged"], 0
        )  # fmt: skip

    def report(self, rows: Iterator[StoredRow]) -> Report:
        for row in rows:
            self._row(row)
        for id_, noted in self._ids.items():
            self._id(id_, noted)
        self._mails()
        self._account_alone()
        examples = [one for found in self._examples.values() for one in found]
        p50, p99, most = percentiles(self._account.seconds)
        return Report(
            **self._account.figures, **self._found, p50=p50, p99=p99, max=most,
            examples=tuple(examples[:_MAX_EXAMPLES]),
        )  # fmt: skip

    def _violation(self, kind: str, text: str, number: int = 1) -> None:
        self._found[kind] += number
        if len(self._examples[kind]) < _MAX_EXAMPLES // len(VIOLATIONS) + 1:
            self._examples[kind].append(f"{kind}: {text}")

    # --- rows ---------------------------------------------------------------------------------

    def _row(self, row: StoredRow) -> None:
        key = key_of(row.id)
        noted = self._ids.get(key)
        content, uid = _message(row.mail)
        slot = self._account.slot(uid) if uid else None
        if noted is None:
            if slot is None:
                self._nobody_sent(row, key, uid)
                return
            noted = slot << _SLOT_SHIFT
        else:
            slot = noted >> _SLOT_SHIFT
        if not noted & (_SEEN | _WRONG):
            self._found["stored"] += 1
            self._copies[slot] += 1
        self._found["rows"] += 1
        if content is None:
            self._found["unreadable"] += 1
        elif not self._is_as_sent(row, content, slot):
            noted |= _ALTERED
        self._ids[key] = noted | self._recipient(row.recipient, slot, noted)

    def _is_as_sent(self, row: StoredRow, content: bytes, slot: int) -> bool:
        digest = sha256(content)
        if digest.digest() != self._account.digests[slot * DIGEST : slot * DIGEST + DIGEST]:
            return False
        if row.size is not None and row.size != len(content):
            return False
        return row.content_hash is None or row.content_hash == digest.hexdigest()

    def _recipient(self, recipient: str, slot: int, noted: int) -> int:
        """The mark for a row of that recipient."""
        to = self._account.sets[self._account.recipients[slot]]
        if recipient not in to:
            matching = [one for one in to if one.lower() == recipient.lower()]
            if not matching:
                return _WRONG
            (recipient,) = matching
        mark = 1 << to.index(recipient)
        return _WRONG if noted & mark else mark

    def _nobody_sent(self, row: StoredRow, key: bytes, uid: bytes) -> None:
        if self._account.is_ours(uid):
            self._foreign.setdefault(key, f"id {row.id} names itself {uid!r}")
        elif row.recipient not in self._account.own:
            self._found["others"] += 1
        elif row.mail is None:
            self._found["unreadable"] += 1
        else:
            self._foreign.setdefault(key, f"id {row.id} is for {row.recipient}")

    # --- what came of it ----------------------------------------------------------------------

    def _id(self, id_: bytes, noted: int) -> None:
        slot = noted >> _SLOT_SHIFT
        to = self._account.sets[self._account.recipients[slot]]
        if noted & _ALTERED:
            self._violation("altered", self._named(id_, slot))
        if not noted & (_SEEN | _WRONG):
            self._violation("lost", self._named(id_, slot))
        elif noted & _WRONG or noted & _SEEN != (1 << len(to)) - 1:
            there = (noted & _SEEN).bit_count()
            wrong = ", and a row too many" if noted & _WRONG else ""
            text = f"{self._named(id_, slot)}: {there} of {len(to)} recipients{wrong}"
            self._violation("partial", text)

    def _named(self, id_: bytes, slot: int) -> str:
        if len(self._examples["lost"]) >= _MAX_EXAMPLES:
            return ""
        return f"mail {self._account.name(slot)}, id {id_.hex() if len(id_) == 16 else id_!r}"

    def _mails(self) -> None:
        account = self._account
        found = self._found
        for slot, copies in enumerate(self._copies):
            said = account.said[slot]
            found["unacknowledged"] += not said
            if not copies:
                missing = account.unnamed.get(slot, 0)
                if missing:
                    self._violation("lost", f"mail {account.name(slot)}, no id was said", missing)
                continue
            found["unheard"] += not said
            found["duplicates"] += copies - 1
            beyond = copies - said - account.doubts[slot]
            put_off = min(max(0, beyond), account.put_off[slot])
            # The first copy of a mail is none too many: after a 4xx it is unheard.
            found["duplicates_after_4xx"] += min(put_off, copies - 1)
            if beyond > put_off:
                text = f"mail {account.name(slot)}: {copies} copies, {said} acknowledged"
                self._violation("unexplained_duplicates", text, beyond - put_off)

    def _account_alone(self) -> None:
        for kind, texts in (
            ("same_id", self._account.same_ids),
            ("refused_for_good", self._account.refusals),
            ("foreign", [*self._foreign.values()]),
        ):
            for text in texts:
                self._violation(kind, text)


def _message(mail: bytes | None) -> tuple[bytes | None, bytes]:
    """The message behind gsmtpd's own fields, and the id it names; b"" if it names none."""
    if mail is None:
        return None, b""
    begin = mail.find(MARK)
    if begin < 0:
        return mail, b""
    end = mail.find(TAIL, begin, begin + 100)
    return mail[begin:], b"" if end < 0 else mail[begin + len(MARK) : end]
