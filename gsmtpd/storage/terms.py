"""What may somebody look for? Some text, an address or a domain, however they are said."""

from __future__ import annotations

import re

from gsmtpd.storage.addressed import mailable

MAX_TEXT = 320  # characters: an address has no more (RFC 5321 section 4.5.3.1)
_IN_BRACKETS = re.compile(r"<(.+@.+)>", re.DOTALL)


def text(said: str) -> str:
    """Some text: "" would be in all. Raises ValueError."""
    if not said or "\0" in said:
        raise ValueError("say some text, or leave it out")
    if len(said) > MAX_TEXT:
        raise ValueError(f"say {MAX_TEXT} characters at most")
    return said


def mailbox(said: str) -> str:
    """An address, as a@b or <a@b>: without the brackets. Raises ValueError."""
    found = _IN_BRACKETS.fullmatch(text(said))
    return found[1] if found else said


def address(said: str) -> str:
    """An address that mail may come for, likewise. Raises ValueError."""
    return mailable(mailbox(said))


def domain(said: str) -> str:
    """A domain, as b or @b: without the @. Raises ValueError."""
    return text(said).removeprefix("@") or said
