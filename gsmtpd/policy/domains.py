"""Is this recipient ours? Mail for the domains served is taken, all else refused: never a relay."""

from __future__ import annotations

from collections.abc import Iterable

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.reply import Reply


class DomainPolicy:
    """Accepts recipients by their domain.

    accept: domain names in lower case (IDN as A-labels) and address literals in canonical form.
    """

    def __init__(self, accept: Iterable[str]) -> None:
        # "" is the domainless <Postmaster>, which every server takes (RFC 5321 section 4.5.1).
        self._accept = frozenset(accept) | {""}

    def recipient(self, mailbox: Mailbox) -> Reply:
        """The reply to RCPT for `mailbox`."""
        domain = mailbox.domain
        if domain in self._accept or (not domain.isascii() and _a_labels(domain) in self._accept):
            return reply.RECIPIENT_OK
        return reply.NOT_SERVED


def _a_labels(domain: str) -> str | None:
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return None
