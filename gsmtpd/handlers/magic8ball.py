"""Will it happen? The Magic 8 Ball knows. The question is the subject."""

from __future__ import annotations

import random

from gsmtpd.handlers.handler import Handler
from gsmtpd.handlers.mail import Mail

ANSWERS = (
    "It is certain.", "It is decidedly so.", "Without a doubt.", "Yes definitely.",
    "You may rely on it.", "As I see it, yes.", "Most likely.", "Outlook good.", "Yes.",
    "Signs point to yes.", "Reply hazy, try again.", "Ask again later.",
    "Better not tell you now.", "Cannot predict now.", "Concentrate and ask again.",
    "Don't count on it.", "My reply is no.", "My sources say no.", "Outlook not so good.",
    "Very doubtful.",
)  # fmt: skip


class Magic8Ball(Handler):
    """Replies to the question in the subject."""

    replies = True

    def handle(self, mail: Mail) -> None:
        """Answer it; the same at each try."""
        answer = random.Random(mail.delivery).choice(ANSWERS)
        question = mail.subject or "(you did not ask anything)"
        mail.reply(f"You asked: {question}\n\nThe Magic 8 Ball says: {answer}\n")
