"""Who is away, and who has changed the address? Says so to whoever writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gsmtpd.handlers.handler import Handler
from gsmtpd.handlers.mail import Mail

# Where a person is named as a recipient (RFC 5230 section 4.5).
_NAMING = ("To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc")
_IN_ADDRESS = r"[\w.!#$%&'*+/=?^`{|}~-]"


class AutoReply(Handler):
    """Replies with the same text to each. text, or text_file; subject: "" for "Auto: ..."."""

    replies = True
    defaults = {"text": "", "text_file": "", "subject": ""}

    def prepare(self) -> None:
        """Read the text. Raises ValueError."""
        path, text = self.settings["text_file"], self.settings["text"]
        if bool(path) == bool(text):
            raise ValueError(
                "autoreply needs text = what it says, or text_file = /the/path of that"
            )
        self._text = _read(path) if path else text
        if not self._text.strip():
            raise ValueError(f"{'text_file' if path else 'text'} = {path}: there is no text")

    def handle(self, mail: Mail) -> None:
        """Reply, where the mail names its recipient: what does not is for many (RFC 3834 2)."""
        if names(mail, mail.recipient) or names(mail, mail.mailbox):
            mail.reply(self._text, self.settings["subject"] or None)
        else:
            print(f"mail {mail.id}: no reply: no To or Cc names its recipient")


def names(mail: Mail, address: str) -> bool:
    """Whether `address` is one of the recipients that a person reads in `mail`.

    Fields are not taken apart: what looks like the address in a name or a comment does no harm.
    """
    whole = rf"(?<!{_IN_ADDRESS}){re.escape(address)}(?![\w.-]*\w)"
    find = re.compile(whole, re.IGNORECASE).search
    return any(find(value) for name in _NAMING for value in mail.headers(name))


def _read(path: str) -> str:
    if not os.path.isabs(path):
        raise ValueError(f"text_file = {path}: write its full path, like /etc/gsmtpd/away.txt")
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise ValueError(f"text_file = {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"text_file = {path}: it is no text in UTF-8") from error
