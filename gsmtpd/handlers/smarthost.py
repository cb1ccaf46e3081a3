"""How does a reply leave? By SMTP to the one host that is configured for it, which sends it on.

gsmtpd itself never sends mail to where an address points.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from contextlib import suppress
from typing import NamedTuple

from gsmtpd.handlers.handler import GiveUpError, RetryError
from gsmtpd.smtp.address import parse_mailbox

PORT = 25
TIMEOUT = 20.0  # seconds for each step; all of them together have the time limit of the handler
_MAX_SAID = 200  # characters of a reply
_WHERE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", re.ASCII)
# What RFC 5321 lets no mailbox have outside of quotes; and what is in quotes may be a trap, too.
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]")


class Smarthost(NamedTuple):
    """Where replies go. host: a name, or an IP address without brackets."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Smarthost:
    """The smarthost that `text` names: "host", "host:port" or "[ipv6]:port". Raises ValueError."""
    found = _WHERE.fullmatch(text)
    port = int(found[3] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        right = "mail.example.com:25 or [2001:db8::1]:25"
        raise ValueError(f"smarthost = {text}: write one like {right}")
    return Smarthost(found[1] or found[2], port)


def is_safe(address: str) -> bool:
    """Whether `address` means the same wherever it is written: on the wire, and in a header."""
    return (
        parse_mailbox(address) is not None
        and not _UNSAFE.search(address)
        and "=?" not in address  # no encoded word (RFC 2047), which readers of headers decode
    )


def send(smarthost: Smarthost, host_name: str, recipient: str, octets: bytes) -> None:
    """Hand over one message, from the null reverse-path (RFC 3834 section 3.3).

    host_name: said in EHLO. octets: with line ends of CRLF; not ASCII only where `recipient` is
    not. Raises RetryError, and GiveUpError where the smarthost will not have it.
    """
    if not is_safe(recipient):
        raise GiveUpError(f"no mail can be sent to {ascii(recipient)}")
    # RFC 6531 section 3.4: asked for only where it is needed, as not every host has it.
    options = [] if recipient.isascii() and octets.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
    link = _connected(smarthost, host_name)
    try:
        link.sendmail("", [recipient], octets, options)
    except smtplib.SMTPRecipientsRefused as error:
        raise _refused(smarthost, *error.recipients[recipient]) from error
    except smtplib.SMTPResponseException as error:
        raise _refused(smarthost, error.smtp_code, error.smtp_error) from error
    except smtplib.SMTPNotSupportedError as error:
        raise GiveUpError(f"smarthost {smarthost} has no SMTPUTF8, for {recipient}") from error
    except (OSError, smtplib.SMTPException) as error:
        raise _away(smarthost, error) from error
    else:
        # It has the message: whatever is said from now on changes nothing.
        with suppress(OSError, smtplib.SMTPException):
            link.quit()
    finally:
        link.close()


def _connected(smarthost: Smarthost, host_name: str) -> smtplib.SMTP:
    """Connected and greeted, encrypted where that is offered. Raises RetryError."""
    try:
        link = smtplib.SMTP(smarthost.host, smarthost.port, host_name, TIMEOUT)
    except (OSError, smtplib.SMTPException, ValueError) as error:
        raise _away(smarthost, error) from error  # also for 5xx: it says nothing of the message
    try:
        link.ehlo_or_helo_if_needed()
        if link.has_extn("starttls"):
            # RFC 7435: what nobody can read on its way is better, even if it goes to nobody knows
            # whom. Where the offer is withdrawn, it goes as it would have without.
            with suppress(smtplib.SMTPResponseException):
                link.starttls(context=_unverified())
            link.ehlo_or_helo_if_needed()
    except (OSError, smtplib.SMTPException, ValueError) as error:
        link.close()
        raise _away(smarthost, error) from error
    return link


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _refused(smarthost: Smarthost, code: int, said: bytes | str) -> RetryError | GiveUpError:
    reason = f"smarthost {smarthost} says {_line(code, said)}"
    return GiveUpError(reason) if 500 <= code < 600 else RetryError(reason)


def _away(smarthost: Smarthost, error: Exception) -> RetryError:
    if isinstance(error, smtplib.SMTPResponseException):
        said = f"says {_line(error.smtp_code, error.smtp_error)}"
    elif isinstance(error, OSError) and error.strerror:
        said = error.strerror
    else:
        said = str(error) or type(error).__name__
    return RetryError(f"smarthost {smarthost}: {said}")


def _line(code: int, said: bytes | str) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return " ".join(f"{code} {text}".split())[:_MAX_SAID]
