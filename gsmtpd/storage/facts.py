"""Does each database answer by now, and would it keep what it has committed?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Facts(NamedTuple):
    """What a database said of itself.

    host: as the configuration names it, or the mail file. seconds: until it had answered, None
    where it has not; then `problem` says why. settings: those that decide on durability, and the
    state of a cluster. risks: what of them can lose acknowledged mail, or take none.
    """

    host: str
    answers: bool
    seconds: float | None = None
    version: str = ""
    settings: Mapping[str, str] = {}
    risks: Sequence[str] = ()
    problem: str = ""


class Answer(NamedTuple):
    """version, settings, risks: as in Facts."""

    version: str
    settings: Mapping[str, str]
    risks: Sequence[str] = ()


def ask_all(
    asked: Mapping[str, Callable[[], Answer]],
    explain: Callable[[Exception], str],
    seconds: float,
) -> list[Facts]:
    """The facts of each of `asked`, which are asked side by side.

    Whoever has not answered within `seconds` is not waited for: names are looked up on the way,
    which nothing bounds. explain: says what an exception of theirs means.
    """
    found: dict[str, Facts] = {}
    began = time.monotonic()

    def ask(host: str, one: Callable[[], Answer]) -> None:
        try:
            answer = one()
        except Exception as error:
            found[host] = Facts(host, False, problem=explain(error))
        else:
            spent = round(time.monotonic() - began, 4)
            found[host] = Facts(host, True, spent, *answer)

    threads = [threading.Thread(target=ask, args=each, daemon=True) for each in asked.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + seconds - time.monotonic()))
    late = f"no answer within {seconds:g} s"
    return [found.get(host) or Facts(host, False, problem=late) for host in asked]
