"""How is a message called? Ids that no restart, process or machine gives out twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count


def id_maker(now: float) -> Callable[[], str]:
    """A function that makes ids of 32 lower-case hexadecimal digits.

    now: Unix time in seconds. An id holds the millisecond its maker began, 48 random bits that are
    the maker's own, and a running number; so make one maker per process, behind the fork.
    """
    prefix = f"{int(now * 1000) & 0xFFFFFFFFFFF:011x}{os.urandom(6).hex()}"
    # next() on a count is atomic under the GIL; so threads may share one maker.
    following = count().__next__
    return lambda: f"{prefix}{following():09x}"
