"""Who mails whom, and into which mailboxes does that go?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gsmtpd.smtp.address import Mailbox

Mailboxes = tuple[Mailbox, ...]


class Envelope(NamedTuple):
    """Who mails whom. helo: as the client said it. sender: None for the null reverse-path.

    recipients: those that the message is stored for, as the client named them. mailboxes: for each
    of them those that it goes into; () where each has its own. discarded: recipients that were
    taken, too, and whose mail is thrown away. lmtp: whether it came by LMTP. tls: version and
    cipher, e.g. "TLSv1.3:TLS_AES_256_GCM_SHA384"; "" where it came in the clear.
    client_name: of the client's host by reverse DNS, as a proxy tells it; "" if nobody does.
    """

    helo: str
    esmtp: bool
    sender: Mailbox | None
    recipients: Mailboxes
    smtputf8: bool = False
    body: str = "7BIT"
    mailboxes: tuple[Mailboxes, ...] = ()
    discarded: Mailboxes = ()
    lmtp: bool = False
    tls: str = ""
    client_name: str = ""

    @property
    def copies(self) -> int:
        """How often the message is stored."""
        return sum(map(len, self.mailboxes)) if self.mailboxes else len(self.recipients)

    def with_mailboxes(self, mailboxes: Mapping[int, Mailboxes]) -> Envelope:
        """With the `mailboxes` of those recipients, by number, that have not just their own.

        Those without any are to be discarded.
        """
        taken = self.recipients
        into = [mailboxes.get(number, (each,)) for number, each in enumerate(taken)]
        return self._replace(
            recipients=tuple(each for each, some in zip(taken, into, strict=True) if some),
            mailboxes=tuple(some for some in into if some),
            discarded=tuple(each for each, some in zip(taken, into, strict=True) if not some),
        )
