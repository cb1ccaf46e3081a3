"""Which handlers act on the mail for an address?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from gsmtpd.policy.addresses import AddressSet
from gsmtpd.policy.names import a_labels
from gsmtpd.smtp.address import Mailbox


class Matcher:
    """Finds the handlers for addresses. Its cost does not grow with addresses without a "*".

    patterns: by the name of a handler, in the order of the configuration: "user@example.com",
    "user" in every domain, "@example.com", or any of these with "*" for any characters but "@",
    all in lower case.
    """

    def __init__(self, patterns: Mapping[str, Iterable[str]]) -> None:
        self._sets: list[tuple[str, AddressSet, re.Pattern[str] | None]] = []
        for name, some in patterns.items():
            plain = [each for each in some if "*" not in each]
            wild = [each for each in some if "*" in each]
            self._sets.append((name, AddressSet(plain), _pattern(wild) if wild else None))

    def __call__(self, recipient: Mailbox, mailbox: Mailbox) -> list[str]:
        """The names of those that act on mail for `recipient` that goes into `mailbox`."""
        addresses = [recipient] if recipient == mailbox else [recipient, mailbox]
        return self._of([(each.local.lower(), a_labels(each.domain)) for each in addresses])

    def of_texts(self, recipient: str, to: str) -> list[str]:
        """The same for the columns of a mail that is stored."""
        parts = [each.lower().rpartition("@") for each in dict.fromkeys((recipient, to))]
        return self._of([(local, a_labels(domain)) for local, _, domain in parts])

    def _of(self, normal: Sequence[tuple[str, str]]) -> list[str]:
        return [
            name
            for name, plain, wild in self._sets
            if any(
                plain.match(local, domain) or (wild and wild.fullmatch(f"{local}@{domain}"))
                for local, domain in normal
            )
        ]


def _pattern(items: Iterable[str]) -> re.Pattern[str]:
    """One expression for all `items`."""
    return re.compile("|".join(_expression(item) for item in items))


def _expression(item: str) -> str:
    if "@" not in item:
        item += "@*"
    elif item[0] == "@":
        item = "*" + item
    # A run of them is one; else its expression would try each way to share the characters.
    parts = re.split(r"\*+", item)
    return "[^@]*".join(map(re.escape, parts))
