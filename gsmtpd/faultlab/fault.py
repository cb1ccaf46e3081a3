"""What is a fault of the lab, and what is known of one while it is being injected?"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsmtpd.faultlab.lab import Lab

HAPPENS_WITHIN = 90.0  # seconds until what was armed must have happened, on a busy machine too
BACK_WITHIN = 90.0  # seconds until the lab gives up that mail is acknowledged again
_LOOK_EVERY = 0.005  # seconds


class DidNotHappenError(Exception):
    """The fault did not bite, so that the trial proves nothing; the text says what was awaited."""


class BrokenPromiseError(Exception):
    """gsmtpd did in the fault what it must never do; the text says what."""


class Dose:
    """One injection of a fault into `lab`, by the rules of a seeded `random`.

    scale: what the long faults' times are multiplied by. began, ended: monotonic seconds; the fault
    ends with `over`, or else with the function that injects it. back: seconds from the end until
    mail was acknowledged again.
    """

    def __init__(self, lab: Lab, dice: random.Random, scale: float = 1.0) -> None:
        self.lab = lab
        self.random = dice
        self.scale = scale
        self.began = time.monotonic()
        self.ended: float | None = None
        self.back: float | None = None

    def hold(self, shortest: float, longest: float | None = None) -> None:
        """Let the fault last for so many seconds, or for what the dice say between two times."""
        time.sleep(shortest if longest is None else self.random.uniform(shortest, longest))

    def hold_long(self, seconds: float) -> None:
        """As `hold`, for times that `scale` shortens."""
        time.sleep(seconds * self.scale)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until it is so. Raises DidNotHappenError, which says that `what` never was."""
        if not wait_until(condition, HAPPENS_WITHIN):
            raise DidNotHappenError(f"within {HAPPENS_WITHIN:g} s {what}")

    def over(self) -> float:
        """The fault ends now; wait until mail is acknowledged again. Seconds that took.

        Raises BrokenPromiseError where it never is.
        """
        if self.back is None:
            self.ended = ended = time.monotonic()
            senders = self.lab.senders
            if not wait_until(lambda: senders.last_acknowledged > ended, BACK_WITHIN):
                raise BrokenPromiseError(f"no mail is acknowledged {BACK_WITHIN:g} s after the end")
            self.back = senders.last_acknowledged - ended
        return self.back


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Ask again and again; False if it is still not so after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY)
    return True


Inject = Callable[["Lab", Dose], str]
"""Injects a fault, ends it, and returns by what it is known that it happened.

Raises DidNotHappenError and BrokenPromiseError.
"""


@dataclass(frozen=True)
class Fault:
    """A fault with a name.

    description: one line. inject: does it. kills: whether workers of gsmtpd end by it. armed:
    whether it needs gsmtpd's failpoints, with which each row is an INSERT of its own. galera:
    whether it needs a cluster. disk, lossy: whether the database is to have a disk of its own, one
    that can be filled, or one that forgets at a power cut.
    takes: seconds of one injection, about, which tell what to begin with. long: seconds of them
    that a scale shortens.
    """

    name: str
    description: str
    inject: Inject = field(repr=False)
    kills: bool = False
    armed: bool = False
    galera: bool = False
    disk: bool = False
    lossy: bool = False
    takes: float = 4.0
    long: float = 0.0


def fault_of(inject: Inject, name: str = "", description: str = "", **marks: Any) -> Fault:
    """The fault that `inject` is, by its own name and the first line of its docstring."""
    described = description or (inject.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return Fault(name or inject.__name__, described, inject, **marks)
