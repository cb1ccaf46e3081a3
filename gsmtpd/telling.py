"""What are the numbers in the master's answers? Made of the counters and their history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gsmtpd import rates
from gsmtpd.history import KEPT, History
from gsmtpd.metrics import BITS, Counter

_SPAN, _STEP = 300, 1  # seconds, where `history` does not say
_LONGEST = 86400
_COMMITS_OF = 300  # seconds that a status looks back on for its commits
_OWN_NAME = {Counter.SESSIONS: "sessions_total"}


def counts(cells: Sequence[int]) -> dict[str, Any]:
    """What was counted since the start, for a status. cells: see Counters.totals."""
    told = {
        _OWN_NAME.get(counter, counter.name.lower()): cells[counter]
        for counter in Counter
        if counter not in (Counter.BEATS, *BITS)
    }
    return told | {"reasons": rates.reasons(cells)}


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
