"""How is a value written in a message?"""

from __future__ import annotations

MAX_SHOWN = 80  # characters of a value


def printable(text: str) -> str:
    """`text` on one line, with control characters and the like written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: str) -> str:
    """`value` in quotes for a message, cut where it is long."""
    return f'"{printable(value if len(value) <= MAX_SHOWN else value[: MAX_SHOWN - 3] + "...")}"'
