"""Which words may stand on the command line of a bench?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def positive(text: str) -> int:
    """An argparse type: a whole number above zero."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)


def processes(text: str) -> str:
    """An argparse type: a number above zero, or auto."""
    return text if text == "auto" else str(positive(text))


def choices(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """An argparse type: some of the allowed words, with commas between them."""

    def chosen(text: str) -> list[str]:
        words = text.split(",")
        if wrong := [word for word in words if word not in allowed]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(allowed)}")
        return [word for word in allowed if word in words]

    return chosen
