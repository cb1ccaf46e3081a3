"""Who injects faults into a lab, and writes down when, and what came of it?"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pymysql

from gsmtpd.faultlab.fault import BrokenPromiseError, DidNotHappenError, Dose, Fault
from gsmtpd.faultlab.lab import Lab
from gsmtpd.faultlab.processes import ServerError

_UNDER_LOAD = 10  # mails that are acknowledged before a fault is injected
_AFTERWARDS = 10  # and behind it, before the next one


@dataclass(frozen=True)
class Injection:
    """A fault that was injected.

    at: Unix time. seconds: from its begin to its end. back: seconds from its end until mail was
    acknowledged again, None if it never was. acknowledged, attempts, refused, lost: mails
    acknowledged, and final dots, refusals and lost connections from its begin until service was
    back. evidence: by what it is known that it happened. did_not_happen, broken: what is wrong, ""
    for nothing.
    """

    fault: str
    at: float
    seconds: float
    back: float | None
    acknowledged: int
    attempts: int
    refused: int
    lost: int
    evidence: str = ""
    did_not_happen: str = ""
    broken: str = ""

    @property
    def until(self) -> float:
        """When service was back, as Unix time."""
        return self.at + self.seconds + (self.back or 0.0)


class Nemesis:
    """Injects faults into `lab`, one at a time, and writes each to `journal` as a JSON line."""

    def __init__(self, lab: Lab, dice: random.Random, scale: float, journal: Path) -> None:
        self._lab = lab
        self._random = dice
        self._scale = scale
        self._journal = journal

    def inject(self, fault: Fault) -> Injection:
        """Inject `fault` under load, end it, wait until mail is acknowledged again, and mend."""
        lab = self._lab
        lab.await_load(_UNDER_LOAD)
        time.sleep(self._random.uniform(0.0, 0.3))
        at, before = time.time(), self._counts()
        dose = Dose(lab, self._random, self._scale)
        evidence = did_not_happen = broken = ""
        try:
            evidence = fault.inject(lab, dose)
            dose.over()
        except DidNotHappenError as error:
            did_not_happen = str(error)
        except (BrokenPromiseError, ServerError, OSError, pymysql.MySQLError) as error:
            broken = str(error)
        ended = dose.ended or time.monotonic()
        done = Injection(
            fault.name,
            at,
            ended - dose.began,
            dose.back,
            *self._since(before),
            evidence,
            did_not_happen,
            broken,
        )
        self._note(done)
        lab.mend()
        lab.await_load(_AFTERWARDS)
        return done

    def _counts(self) -> tuple[int, int, int, int]:
        senders = self._lab.senders
        return senders.acknowledged, senders.attempts, senders.refused, senders.lost

    def _since(self, before: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        now = self._counts()
        return now[0] - before[0], now[1] - before[1], now[2] - before[2], now[3] - before[3]

    def _note(self, done: Injection) -> None:
        line: dict[str, Any] = {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in asdict(done).items()
        }
        with self._journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
