"""What does a MAIL or RCPT command say? The path and the parameters behind it (RFC 5321 4.1.1)."""

from __future__ import annotations

import re
from typing import NamedTuple

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import MAX_LOCAL_PART, MAX_PATH, ORDINARY_PATH, Mailbox, parse_path
from gsmtpd.smtp.reply import Reply

# A quoted local part may hold spaces and angle brackets, so the path's end is found by grammar.
# Clients that leave the brackets out, or a space behind the colon, are understood as well.
_PATH = r'[ ]?(<(?:"(?:[^"\\]|\\.)*"|[^">])*>|[^\s<>]+)(?:[ ]+(.*))?'
_MAIL = re.compile(r"FROM:" + _PATH, re.IGNORECASE | re.DOTALL)
_RCPT = re.compile(r"TO:" + _PATH, re.IGNORECASE | re.DOTALL)
# What nearly every client sends, in one match.
_match_ordinary_mail = re.compile("(?i:FROM):" + ORDINARY_PATH).fullmatch
_match_ordinary_rcpt = re.compile("(?i:TO):" + ORDINARY_PATH).fullmatch
# esmtp-param of RFC 5321 section 4.1.2
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9\-]*)(?:=([\x21-\x3c\x3e-\x7e]+))?")
_SIZE = re.compile(r"[0-9]{1,20}")  # RFC 1870 section 4


class MailCommand(NamedTuple):
    """A MAIL command. sender: None for the null reverse-path. size: octets said, 0 if none."""

    sender: Mailbox | None
    size: int = 0
    smtputf8: bool = False
    body: str = "7BIT"


def parse_mail(argument: str) -> MailCommand | Reply:
    """The MAIL command with `argument` (all behind "MAIL "), or the Reply that refuses it."""
    if (ordinary := _ordinary(_match_ordinary_mail(argument))) is not None:
        return MailCommand(ordinary)
    match = _MAIL.fullmatch(argument)
    if match is None:
        return reply.MAIL_SYNTAX
    path, tail = match.groups()
    options = _mail_parameters(tail) if tail else MailCommand(None)
    if isinstance(options, Reply):
        return options
    if path == "<>":
        return options
    sender = _mailbox(path, options.smtputf8, reply.BAD_SENDER)
    if isinstance(sender, Reply):
        return sender
    return options._replace(sender=sender) if tail else MailCommand(sender)


def parse_rcpt(argument: str, smtputf8: bool) -> Mailbox | Reply:
    """The recipient of the RCPT command with `argument`, or the Reply that refuses it."""
    if (ordinary := _ordinary(_match_ordinary_rcpt(argument))) is not None:
        return ordinary
    match = _RCPT.fullmatch(argument)
    if match is None:
        return reply.RCPT_SYNTAX
    path, tail = match.groups()
    if tail:
        # No extension offered here adds a parameter to RCPT.
        parameters = _parameters(tail)
        return parameters if isinstance(parameters, Reply) else reply.UNKNOWN_PARAMETER
    return _mailbox(path, smtputf8, reply.BAD_RECIPIENT)


def _ordinary(match: re.Match[str] | None) -> Mailbox | None:
    """The mailbox of an ordinary path; None where there is none, or it is too long."""
    if match is None:
        return None
    local, domain = match.groups()
    if len(local) > MAX_LOCAL_PART or len(local) + len(domain) + len("<@>") > MAX_PATH:
        return None
    return Mailbox(local, domain)


def _mailbox(path: str, smtputf8: bool, refusal: Reply) -> Mailbox | Reply:
    if path[0] != "<":
        path = f"<{path}>"
    if not path.isascii() and not smtputf8:
        return reply.NEEDS_SMTPUTF8
    return parse_path(path) or refusal


def _parameters(tail: str) -> dict[str, str | None] | Reply:
    found: dict[str, str | None] = {}
    for word in tail.split(" "):
        match = _PARAMETER.fullmatch(word)
        if match is None:
            if not word:
                continue
            return reply.BAD_PARAMETER
        keyword = match.group(1).upper()
        if keyword in found:
            return reply.DUPLICATE_PARAMETER
        found[keyword] = match.group(2)
    return found


def _mail_parameters(tail: str) -> MailCommand | Reply:
    parameters = _parameters(tail)
    if isinstance(parameters, Reply):
        return parameters
    size, smtputf8, body = 0, False, "7BIT"
    for keyword, value in parameters.items():
        if keyword == "SIZE":
            if value is None or _SIZE.fullmatch(value) is None:
                return reply.BAD_PARAMETER
            size = int(value)
        elif keyword == "BODY":
            body = (value or "").upper()
            if body not in ("7BIT", "8BITMIME", "BINARYMIME"):
                return reply.BAD_PARAMETER
        elif keyword == "SMTPUTF8":
            if value is not None:
                return reply.BAD_PARAMETER
            smtputf8 = True
        else:
            return reply.UNKNOWN_PARAMETER
    return MailCommand(None, size, smtputf8, body)
