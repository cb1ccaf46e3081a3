"""How are figures shown on a terminal?"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

NO_VALUE = "–"


def progress(text: str) -> None:
    """Say on a terminal what is going on, in one line that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median, least and greatest."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}}–{most:{form}})"


def print_table(rows: list[list[str]]) -> None:
    """In columns, the first to the left and all others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  " + "  ".join([first.ljust(widths[0]), *rest]).rstrip())
