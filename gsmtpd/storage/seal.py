"""Is this text one that we have said ourselves? What goes on somewhere carries its own check.

Whether a store has given out an id says nothing reliable of a cursor: the highest mail may have
been deleted, and another host of a cluster may not have it yet. So what is made up, cut or mistyped
is told by three characters at its end. They keep no secret.
"""

from __future__ import annotations

import zlib

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
LENGTH = 3  # characters of a check
_CHECKS = len(DIGITS) ** LENGTH


def base36(number: int) -> str:
    """A number that is not negative, as `int(…, 36)` reads it."""
    digits = ""
    while True:
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
        if not number:
            return digits


def sealed(text: str) -> str:
    """`text` with its check behind it."""
    return text + base36(zlib.crc32(text.encode()) % _CHECKS).rjust(LENGTH, "0")


def unsealed(text: str) -> str | None:
    """What `sealed` has made into `text`; None where that was not so."""
    said = text[:-LENGTH]
    return said if said and text.isascii() and sealed(said) == text else None
