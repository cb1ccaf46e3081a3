"""Which mail was refused? What can be said of a MAIL, RCPT, DATA or final dot that failed."""

from __future__ import annotations

from typing import NamedTuple

from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.command import MailCommand, parse_mail, parse_rcpt
from gsmtpd.smtp.reply import Reply


class About(NamedTuple):
    """What is known of a mail.

    sender: the path in angle brackets, or what stood behind MAIL if that cannot be read; None
    before MAIL. recipients: of RCPT the one that was asked for, or what stood behind RCPT. size:
    in octets, None if unknown.
    """

    sender: str | None
    recipients: tuple[Mailbox | str, ...] = ()
    size: int | None = None


class Refusal(NamedTuple):
    """A refusal. reply: what the client heard. closes: whether the session ended with it."""

    reply: Reply
    closes: bool
    helo: str
    about: About


def sender_of(mail: MailCommand) -> str:
    """The reverse-path in angle brackets."""
    return f"<{mail.sender or ''}>"


def about(line: bytes, mail: MailCommand | None, recipients: tuple[Mailbox, ...]) -> About | None:
    """What a refused command was about; None if it is none of MAIL, RCPT, DATA and BDAT.

    line: the command. mail, recipients: of the transaction before it, None where there is none.
    """
    verb, _, argument = line.partition(b" ")
    verb = verb.upper()
    text = argument.decode("utf-8", "replace")
    sender = sender_of(mail) if mail is not None else None
    if verb == b"MAIL":
        said = parse_mail(text)
        if isinstance(said, Reply):
            return About(text)
        return About(sender_of(said), size=said.size or None)
    if verb == b"RCPT":
        recipient = parse_rcpt(text, mail is not None and mail.smtputf8)
        return About(sender, (text if isinstance(recipient, Reply) else recipient,))
    return About(sender, recipients) if verb in (b"DATA", b"BDAT") else None
