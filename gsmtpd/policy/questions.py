"""What may have to be asked elsewhere before a recipient is decided, and what comes of it?"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What is asked for, and in which form."""

    DOMAIN = "domain"  # a name in A-labels or an address literal, in lower case: is it served?
    RECIPIENT = "recipient"  # an address, all in lower case: does it have mail here?
    CLIENT = "client"  # an IP address: is it in a DNS blocklist?


class Question(NamedTuple):
    """Something that no list in memory knows."""

    kind: Kind
    about: str


Answer = str | None
"""Why yes, in words; "" for no; None where nobody can say now."""


class Unanswered(Exception):  # noqa: N818 (no error: the answer is still to come)
    """An answer is needed that is not known yet."""

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self.question = question


Ask = Callable[[Question], Answer]
"""Gives the answer that is known by now. Raises Unanswered."""
