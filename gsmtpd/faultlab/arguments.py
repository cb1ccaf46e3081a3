"""Which numbers may be said on the command line, and what is said of others?"""

from __future__ import annotations

from argparse import ArgumentTypeError

_MOST = 1e9  # and "inf" is none


def seed(text: str) -> int:
    """A whole number. Raises ArgumentTypeError, as all of these do."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number") from None


def count(text: str) -> int:
    """A whole number from 1 on."""
    if text.isascii() and text.isdigit() and 0 < float(text) <= _MOST:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no whole number from 1 to {_MOST:.0f}")


def positive(text: str) -> float:
    """A number above 0: seconds, a rate, a factor."""
    value = _number(text)
    if value is None or not 0 < value <= _MOST:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def seconds(text: str) -> float:
    """Seconds, 0 for none."""
    value = _number(text)
    if value is None or not 0 <= value <= _MOST:
        raise ArgumentTypeError(f"{text!r} is no number of seconds from 0 on")
    return value


def share(text: str) -> float:
    """A part of a whole."""
    value = _number(text)
    if value is None or not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
