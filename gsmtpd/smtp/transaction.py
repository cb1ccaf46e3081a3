"""What has the client said of its next message? The sender, and the recipients that were taken."""

from __future__ import annotations

from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.command import MailCommand
from gsmtpd.smtp.envelope import Mailboxes


class Transaction:
    """A mail transaction (RFC 5321 section 3.3) from MAIL to the final dot.

    recipients: all that were taken. mailboxes: where the mail of those of them goes, by number,
    that have not just their own. too_many: how many recipients there was no room for.
    """

    __slots__ = ("_extra", "mail", "mailboxes", "recipients", "too_many")

    def __init__(self, mail: MailCommand) -> None:
        self.mail = mail
        self.recipients: list[Mailbox] = []
        self.mailboxes: dict[int, Mailboxes] = {}
        self.too_many = 0
        self._extra = 0  # copies that these come to, beyond one for each recipient

    @property
    def sender(self) -> str:
        """The reverse-path in angle brackets."""
        return f"<{self.mail.sender or ''}>"

    def full(self, limit: int) -> bool:
        """Whether there is no room for one recipient more where `limit` copies may be made."""
        return len(self.recipients) + self._extra >= limit

    def take(self, recipient: Mailbox, mailboxes: Mailboxes | None, limit: int) -> bool:
        """Take `recipient`, whose mail goes into `mailboxes`; False if those are too many.

        mailboxes: None for its own; () where its mail is thrown away.
        """
        if mailboxes is not None:
            # One whose mail is thrown away counts, too: it has to be remembered.
            copies = len(self.recipients) + self._extra + max(len(mailboxes), 1)
            # The first of a message always can: a client told to try it alone has to succeed.
            if self.recipients and copies > limit:
                return False
            self.mailboxes[len(self.recipients)] = mailboxes
            self._extra = copies - len(self.recipients) - 1
        self.recipients.append(recipient)
        return True
