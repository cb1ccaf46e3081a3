"""What becomes of stored mail beyond its row? A handler acts on it: a small class per address."""

from __future__ import annotations

from gsmtpd.handlers.handler import (
    DISCARD,
    Discard,
    GiveUpError,
    Handler,
    HandlerError,
    Later,
    Result,
    RetryError,
)
from gsmtpd.handlers.mail import Mail

__all__ = [
    "DISCARD", "Discard", "GiveUpError", "Handler", "HandlerError", "Later", "Mail", "Result",
    "RetryError",
]  # fmt: skip
