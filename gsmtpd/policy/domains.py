"""Which of the domains served is this one?"""

from __future__ import annotations

from collections.abc import Iterable

from gsmtpd.policy.names import a_labels


class DomainSet:
    """Patterns of domains, in memory; asking costs the same however many they are.

    patterns: as gsmtpd.policy.names.domain_pattern gives them.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = frozenset(patterns)
        self._all = "*" if "*" in self._patterns else ""
        # No domain begins with an asterisk or a dot, so all may be in one set.
        self._suffixes = any(pattern[0] in "*." and pattern != "*" for pattern in self._patterns)

    def __len__(self) -> int:
        return len(self._patterns)

    def match(self, domain: str) -> str:
        """The pattern that names `domain`, "" if none does: its own name, else the longest.

        domain: a Mailbox's, in lower case; it may hold U-labels, or be an address literal. The ""
        of the domainless postmaster is no domain.
        """
        return domain if domain in self._patterns else self._other(domain)

    def _other(self, domain: str) -> str:
        if not domain.isascii():
            domain = a_labels(domain)
            if domain in self._patterns:
                return domain
        # What is not ASCII even now is no name, and so not below one.
        if self._suffixes and domain.isascii() and domain[:1] != "[":
            found = self._suffix(domain)
            if found:
                return found
        return self._all if domain else ""

    def _suffix(self, domain: str) -> str:
        own = f".{domain}"
        if own in self._patterns:
            return own
        dot = domain.find(".")
        while dot >= 0:
            below = domain[dot:]
            if below in self._patterns:
                return below
            if f"*{below}" in self._patterns:
                return f"*{below}"
            dot = domain.find(".", dot + 1)
        return ""
