"""May a program reply to this mail, and what does its reply look like? (RFC 3834)"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email import policy
from email.message import EmailMessage

from gsmtpd.handlers import smarthost
from gsmtpd.handlers.handler import GiveUpError
from gsmtpd.handlers.mail import Answer, Mail

# Section 2: those that are programs, or reach many. Their local parts, as RFC 5230 section 4.6 and
# older programs have them.
_PROGRAMS = re.compile(
    r"(?:mailer-daemon|mailerdaemon|majordomo|listserv|postmaster|bounces?|nobody"
    r"|no-?reply|do-?not-?reply)(?:[+=].*)?"
    r"|(?:owner|bounces?|no-?reply)-.*"
    r"|.*-(?:request|owner|bounces?)(?:[+=].*)?",
    re.IGNORECASE,
)
_LISTS = ("List-Id", "List-Help", "List-Unsubscribe", "List-Subscribe", "List-Post", "List-Owner",
          "List-Archive", "Mailing-List", "X-Mailing-List", "X-BeenThere")  # fmt: skip
_AUTOMATA = ("X-Autoreply", "X-Autorespond", "X-Autoresponder")  # before there was a standard
_MANY = re.compile(r"\s*(?:bulk|list|junk|auto_reply)\b", re.IGNORECASE)
_SUPPRESSED = re.compile(r"\b(?:all|autoreply|oof)\b", re.IGNORECASE)  # MS-OXCMAIL 2.2.3.2.14
_find_ids = re.compile(r"<[!-;=?-~]{1,250}>", re.ASCII).findall
_MAX_REFERENCES = 800  # characters; the field is one line (RFC 5322 section 2.1.1)
_MAX_SUBJECT = 250  # characters
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Values are one line each: when Python folds a long message id it makes an encoded word of it.
_HEADER = policy.SMTP.clone(max_line_length=998, cte_type="7bit")
_NO_DOMAIN = "gsmtpd.invalid"  # RFC 2606

MayReply = Callable[[str], bool]
"""Whether an address may have a reply, as it has had none lately; then it is noted as given."""


def send(mail: Mail, replies: Mapping[str, str], may_reply: MayReply) -> str:
    """Send the answer that `mail` was given: what has become of it, in one line; "" without one.

    replies: "smarthost", where they go, "" for nowhere; "host_name", said to it.
    Raises RetryError and GiveUpError: then the mail is to be handed over again, or is not.
    """
    if mail.answer is None:
        return ""
    if reason := why_not(mail):
        return f"no reply: {reason}"
    if not replies["smarthost"]:
        raise GiveUpError("it replies, and [handlers] smarthost does not say by which host")
    try:
        where = smarthost.parse(replies["smarthost"])
    except ValueError as error:
        raise GiveUpError(str(error)) from error
    if not may_reply(mail.sender):
        return f"no reply: {mail.sender} has had one lately"
    smarthost.send(where, replies["host_name"], mail.sender, octets_of(compose(mail, mail.answer)))
    return f"replied to {mail.sender}"


def why_not(mail: Mail) -> str:
    """Why no program may reply to `mail`; "" if it may (section 2, RFC 5230 sections 4.5, 4.6)."""
    sender = mail.sender
    if not sender:
        return "its reverse-path is null"
    if not smarthost.is_safe(sender) or not smarthost.is_safe(mail.recipient):
        return "its addresses cannot be written safely"
    if _PROGRAMS.fullmatch(sender.rpartition("@")[0]):
        return f"{sender} is a program's address"
    if sender.lower() in (mail.recipient.lower(), mail.mailbox.lower()):
        return "it is from the address that it came to"
    for value in mail.headers("Auto-Submitted"):
        # RFC 3834 section 5: a comment or a parameter may follow.
        if re.split(r"[\s;(]", value.strip(), maxsplit=1)[0].lower() != "no":
            return "it is an automaton's (Auto-Submitted)"
    for name in _AUTOMATA:
        if mail.headers(name):
            return f"it is an automaton's ({name})"
    for name in _LISTS:
        if mail.headers(name):
            return f"it comes from a list ({name})"
    if any(_MANY.match(value) for value in mail.headers("Precedence")):
        return "it goes to many (Precedence)"
    if any(_SUPPRESSED.search(value) for value in mail.headers("X-Auto-Response-Suppress")):
        return "its sender wants no automatic reply (X-Auto-Response-Suppress)"
    if mail.header("Content-Type").lower().startswith("multipart/report"):
        return "it is a report (RFC 6522)"
    return ""


def compose(mail: Mail, answer: Answer) -> EmailMessage:
    """The reply, as section 3 wants it; the same at each try, so that a second copy can be told.

    The addresses of `mail` must be those that `why_not` lets pass.
    """
    made = EmailMessage(policy=_HEADER)
    subject = answer.subject if answer.subject is not None else f"Auto: {mail.subject}"
    made["From"] = mail.recipient
    made["To"] = mail.sender
    made["Subject"] = _line(subject)[:_MAX_SUBJECT]
    made["Date"] = mail.received
    domain = mail.recipient.rpartition("@")[2]
    made["Message-ID"] = f"<{mail.delivery}@{domain if domain.isascii() else _NO_DOMAIN}>"
    made["Auto-Submitted"] = "auto-replied"
    made["Precedence"] = "bulk"
    if message_id := next(iter(_ids(mail, "Message-ID")), ""):
        made["In-Reply-To"] = message_id
        made["References"] = " ".join(_thread(mail, message_id))
    made.set_content(_NOT_TEXT.sub("", answer.text.replace("\r\n", "\n").replace("\r", "\n")))
    return made


def octets_of(reply: EmailMessage) -> bytes:
    """`reply` as it is sent: in ASCII, but for addresses that cannot be (RFC 6532)."""
    is_ascii = f"{reply['From']}{reply['To']}".isascii()
    return reply.as_bytes(policy=_HEADER.clone(utf8=not is_ascii))


def _thread(mail: Mail, message_id: str) -> list[str]:
    """What References holds (RFC 5322 section 3.6.4): the oldest goes where it gets too long."""
    before = _ids(mail, "References") or _ids(mail, "In-Reply-To")[:1]
    found = [*(each for each in before if each != message_id), message_id]
    while len(" ".join(found)) > _MAX_REFERENCES:
        del found[0]
    return found


def _ids(mail: Mail, name: str) -> list[str]:
    """The message ids in the first field of that name. What looks like an encoded word is none."""
    return [each for each in _find_ids(mail.header(name)) if "=?" not in each]


def _line(text: str) -> str:
    """In one line, and with nothing in it that `email` would decode once more."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split()).replace("=?", "= ?")
