"""Which moment does somebody mean, who says a time or an age?"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

_AGE = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str) -> str:
    """A time, UTC where it says none, or an age as 15m, as the column `date` has it.

    Raises ValueError.
    """
    age = _AGE.fullmatch(text)
    try:
        if age is not None:
            at = datetime.fromtimestamp(time.time() - int(age[1]) * _UNITS[age[2]], UTC)
        else:
            said = datetime.fromisoformat(text)
            at = said.replace(tzinfo=UTC) if said.tzinfo is None else said.astimezone(UTC)
    except (OSError, OverflowError, ValueError):
        raise ValueError(
            f"{text[:40]!r} is no time; write UTC as 2026-11-22 or 2026-11-22T09:30:00Z,"
            " or an age as 15m or 7d"
        ) from None
    # strftime's %Y has no zeros in front.
    return f"{at.year:04}-{at:%m-%d %H:%M:%S}"
