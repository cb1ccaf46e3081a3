"""What is a number, a size or a duration in gsmtpd.conf?

Text in, value out, or ValueError with what is wrong and what would be right; and back.
"""

from __future__ import annotations

import re

from gsmtpd.wording import shown

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def number(value: str, least: str, most: str | None = None) -> int:
    """A whole number of that range."""
    span = f"a whole number of {least} or more" if most is None else f"{least} to {most}"
    if not re.fullmatch(r"[0-9]{1,15}", value):
        raise ValueError(f"{shown(value)} is not a whole number; write {span}")
    return int(_in_range(int(value), value, int(least), int(most) if most else None, span))


def auto_number(value: str, least: str, most: str) -> int | None:
    """A whole number of that range, or None for "auto"."""
    if value.lower() == "auto":
        return None
    try:
        return number(value, least, most)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def optional_number(value: str, least: str, most: str) -> int | None:
    """A whole number of that range, or None for "no"."""
    if value.lower() == "no":
        return None
    try:
        return number(value, least, most)
    except ValueError as error:
        raise ValueError(f"{error}, or no") from None


def size(value: str, least: str, most: str) -> int:
    """Bytes; K, M and G are powers of 1024."""
    return int(_in_range(_bytes(value), value, _bytes(least), _bytes(most), f"{least} to {most}"))


def duration(value: str, least: str, most: str) -> float:
    """Seconds."""
    span = f"{least} to {most}"
    return _in_range(_seconds(value), value, _seconds(least), _seconds(most), span)


def optional_duration(value: str, least: str, most: str) -> float | None:
    """Seconds, or None."""
    return duration(value, least, most) if value else None


def own_number(value: str, least: str, most: str) -> int | None:
    """A whole number of that range, or None for nothing."""
    return number(value, least, most) if value else None


def own_size(value: str, least: str, most: str) -> int | None:
    """Bytes, or None for nothing."""
    return size(value, least, most) if value else None


def written_size(value: int) -> str:
    """Bytes as the file has them."""
    unit = next(u for u in ("G", "M", "K", "") if value % _SIZES[u] == 0)
    return f"{value // _SIZES[unit]}{unit}"


def written_duration(value: float) -> str:
    """Seconds as the file has them."""
    unit = next((u for u in ("d", "h", "m", "s") if value % _SECONDS[u] == 0), "")
    return f"{value / _SECONDS[unit]:.0f}{unit}" if unit else f"{value!r}s"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text.upper())
    if match is None:
        raise ValueError(
            f"{shown(text)} is not a size;"
            " write a number of bytes with an optional K, M or G, e.g. 10M"
        )
    return int(match[1]) * _SIZES[match[2]]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,20})?)(ms|[smhd]?)", text)
    if match is None:
        raise ValueError(
            f"{shown(text)} is not a duration;"
            " write a number of seconds, or one with ms, s, m, h or d, e.g. 30m"
        )
    amount = float(match[1])
    return amount / 1000 if match[2] == "ms" else amount * _SECONDS[match[2] or "s"]


def _in_range(amount: float, text: str, least: float, most: float | None, span: str) -> float:
    if amount < least:
        raise ValueError(f"{shown(text)} is too small; write {span}")
    if most is not None and amount > most:
        raise ValueError(f"{shown(text)} is too big; write {span}")
    return amount
