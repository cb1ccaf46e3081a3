"""Under what name does somebody write? The display name of an address (RFC 5322 section 3.4)."""

from __future__ import annotations

import re

MAX_NAME = 100  # characters

_find_quoted_pairs = re.compile(r"\\(.)", re.DOTALL)


def name_of(field: str, address: str) -> str:
    """The name that stands with `address` in the body of the field `field`, "" without one.

    For reading: both are decoded and in one line, as `read_fields` and `read_headers` give them.
    What the name says is the sender's business; at most `MAX_NAME` characters of it. Never raises.
    """
    if not address:
        return ""
    before, brackets, _ = field.partition(f"<{address}>")
    if brackets:
        name = before.strip()
    else:  # joe@example.com (Joe), as RFC 822 had it
        behind = field.partition(address)[2].strip()
        name = behind[1:-1].strip() if behind[:1] == "(" and behind[-1:] == ")" else ""
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = _find_quoted_pairs.sub(r"\1", name[1:-1]).strip()
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
