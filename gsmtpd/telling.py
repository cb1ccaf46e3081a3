"""What are the numbers in the master's answers? Made of the counters and their history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from gsmtpd import rates
from gsmtpd.board import Shown
from gsmtpd.history import KEPT, History
from gsmtpd.metrics import BITS, TAKEN, Counter
from gsmtpd.recent import Recent

_SPAN, _STEP = 300, 1  # seconds, where `history` does not say
_LONGEST = 86400
_COMMITS_OF = 300  # seconds that a status looks back on for its commits
_MOST_SESSIONS = 100
_MOST_SLOW = 20
_OWN_NAME = {Counter.SESSIONS: "sessions_total"}


def counts(cells: Sequence[int]) -> dict[str, Any]:
    """What was counted since the start, for a status. cells: see Counters.totals."""
    told = {
        _OWN_NAME.get(counter, counter.name.lower()): cells[counter]
        for counter in Counter
        if counter not in (Counter.BEATS, *BITS)
    }
    accepted = sum(cells[counter] for counter in TAKEN)
    return told | {"accepted": accepted, "reasons": rates.reasons(cells)}


def lately(samples: History) -> dict[str, Any]:
    """How it went lately, for a status."""
    return {
        "rates": {str(span): rates.per_second(samples.ends(span)) for span in rates.SPANS},
        "commit": rates.commits(samples.ends(_COMMITS_OF)),
    }


def history(samples: History, about: str) -> dict[str, Any]:
    """How it was, as a table. about: "SECONDS STEP", or "" for five minutes by the second."""
    try:
        seconds, step = [*map(int, about.split()), *(_SPAN, _STEP)[len(about.split()) :]]
    except ValueError:
        seconds = step = 0
    if not (1 <= step <= KEPT and 1 <= seconds <= _LONGEST):
        return {"error": f"history takes SECONDS and STEP, as in 3600 10; step is at most {KEPT}"}
    table = rates.rows(samples.since(seconds, step))
    return {"step": step, "columns": [*rates.COLUMNS], "rows": table}


def sessions(shown: Sequence[Shown]) -> dict[str, Any]:
    """The sessions of all threads, the oldest first, and their slowest messages, as such."""
    all_sessions = chain.from_iterable(each.sessions for each in shown)
    slowest = chain.from_iterable(each.slowest for each in shown)
    by_age = sorted(all_sessions, key=itemgetter("seconds"), reverse=True)
    by_delay = sorted(slowest, key=itemgetter("delay"), reverse=True)
    return {"sessions": by_age[:_MOST_SESSIONS], "slowest": by_delay[:_MOST_SLOW]}


def events(recent: Recent, about: str) -> dict[str, Any]:
    """What was not simply stored since the position `about`, or "" for from now on."""
    try:
        found, position, lost = recent.since(about)
    except ValueError as error:
        return {"error": str(error)}
    return {"events": found, "position": position, "lost": lost}
