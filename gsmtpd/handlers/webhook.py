"""How is an application called for each mail? A signed POST, as Standard Webhooks has it.

https://www.standardwebhooks.com: Webhook-Id is the same at each try, Webhook-Timestamp is when it
was signed, and Webhook-Signature is "v1," and the base64 of the HMAC-SHA256 of "id.timestamp.body".
The body is the same at each try, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import math
import ssl
import string
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from gsmtpd.handlers.handler import GiveUpError, Handler, RetryError
from gsmtpd.handlers.mail import Mail

SECRET_PREFIX = "whsec_"  # what follows is base64 (Standard Webhooks, "Signature scheme")
KEY_SIZE = (24, 64)  # octets, the least and the most (the same)
MAX_REASON = 200  # octets of what the other side says
_LONGEST_PAUSE = 86400.0  # seconds that a Retry-After may ask for
_UNWANTED = (406, 410)
_PRINTABLE = "".join(set(string.punctuation) - {"%"})  # that need no "%" in a field


class Response(NamedTuple):
    """What came back. said: the reason and the body, no more than needed.

    pause: seconds until it may be tried again, None where it does not say.
    """

    status: int
    said: str
    pause: float | None


class Webhook(Handler):
    """Posts each mail to `url`. body: json, or raw for the message as it is stored.

    secret, or the first line of secret_file: "whsec_" and base64; without, nothing is signed.
    timeout: seconds for each step.
    """

    defaults = {"url": "", "secret": "", "secret_file": "", "body": "json", "timeout": "10"}

    def prepare(self) -> None:
        """Check the settings. Raises ValueError."""
        self._url = _url(self.settings["url"])
        self._key = _key(self.settings["secret"], self.settings["secret_file"])
        self._timeout = _seconds(self.settings["timeout"])
        self._body = self.settings["body"]
        if self._body not in ("json", "raw"):
            raise ValueError(f"body = {self._body}: write json or raw")
        self._context = ssl.create_default_context() if self._url.scheme == "https" else None

    def handle(self, mail: Mail) -> None:
        """Post it. Raises RetryError and GiveUpError."""
        if self._body == "raw":
            response = self._post(mail.raw, envelope_fields(mail), mail.delivery)
        else:
            body = json.dumps(document(mail), ensure_ascii=False).encode(errors="replace")
            response = self._post(body, {"Content-Type": "application/json"}, mail.delivery)
        if 200 <= response.status < 300:
            return
        said = f"{response.status} {response.said}".strip()
        if response.status in _UNWANTED:
            raise GiveUpError(f"{self._url.hostname} wants no more of this: {said}")
        if 300 <= response.status < 400:
            said += "; redirects are not followed: set url to where it is now"
        raise RetryError(f"{self._url.hostname} says {said}", response.pause)

    def _post(self, body: bytes, fields: dict[str, str], delivery: str) -> Response:
        """Post `body`. Raises RetryError."""
        timestamp = str(int(time.time()))
        headers = fields | {
            "User-Agent": "gsmtpd",
            "Webhook-Id": delivery,
            "Webhook-Timestamp": timestamp,
        }
        if self._key:
            headers["Webhook-Signature"] = signature(self._key, delivery, timestamp, body)
        path = self._url.path or "/"
        query = f"?{self._url.query}" if self._url.query else ""
        connection = self._connection()
        try:
            connection.request("POST", path + query, body, headers)
            return _response(connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise RetryError(f"{self._url.hostname}: {said}") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)


def _response(response: http.client.HTTPResponse) -> Response:
    body = b""
    # It has answered: that it breaks off behind that changes nothing.
    with suppress(OSError, http.client.HTTPException):
        body = response.read(MAX_REASON)
    said = f"{response.reason[:MAX_REASON]} {body.decode(errors='replace')}"
    pause = _pause(response.getheader("Retry-After"))
    return Response(response.status, " ".join(said.split())[:MAX_REASON], pause)


def document(mail: Mail) -> dict[str, Any]:
    """What is posted as JSON; the same at each try."""
    facts = mail.facts
    return {
        "type": "mail.received",
        "timestamp": mail.received.isoformat().replace("+00:00", "Z"),
        "data": {
            "delivery": facts.delivery,
            "id": facts.id,
            "mail_id": facts.row,
            "sender": facts.sender,
            "recipient": facts.recipient,
            "mailbox": facts.mailbox,
            "client_ip": facts.client_ip,
            "helo": facts.helo,
            "tls": facts.is_tls,
            "from": mail.header("From"),
            "to": mail.header("To"),
            "subject": mail.subject,
            "message_id": mail.header("Message-ID"),
            "text": mail.text,
            "size": len(mail.raw),
            "raw": base64.b64encode(mail.raw).decode(),
        },
    }


def envelope_fields(mail: Mail) -> dict[str, str]:
    """What is said beside a raw body. The signature does not cover it, but Return-Path and
    Delivered-To, which the body begins with, say the same.

    What is no printable ASCII is percent-encoded: so nothing here can end its field.
    """
    values = {
        "Gsmtpd-Id": mail.id,
        "Gsmtpd-Sender": mail.sender,
        "Gsmtpd-Recipient": mail.recipient,
    }
    encoded = {name: quote(text, _PRINTABLE, errors="replace") for name, text in values.items()}
    return {"Content-Type": "message/rfc822", **encoded}


def signature(key: bytes, delivery: str, timestamp: str, body: bytes) -> str:
    """The value of Webhook-Signature."""
    signed = b".".join((delivery.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _url(text: str) -> SplitResult:
    right = "write one like https://app.example.com/mail"
    if not text:
        raise ValueError(f"url is missing: {right}")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError(f"url = {text}: spaces and what is not ASCII are written as %20 and so on")
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError as error:
        raise ValueError(f"url = {text}: {error}") from error
    if not usable:
        raise ValueError(f"url = {text}: {right}")
    if url.username is not None:
        raise ValueError("url: it may have no user or password; use secret, and check signatures")
    return url


def _key(secret: str, file: str) -> bytes:
    """The octets behind `whsec_`, which sign; none where there is neither."""
    if secret and file:
        raise ValueError("secret and secret_file: write one of them")
    name = "secret"
    if file:
        name = f"secret_file = {file}"
        try:
            with open(file, encoding="utf-8") as lines:
                secret = lines.readline().strip()
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{name}: it is no text") from error
    elif not secret:
        return b""
    least, most = KEY_SIZE
    # Never as it stands: other libraries would take it for base64, and no signature were right.
    with suppress(binascii.Error, ValueError):
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        if secret.startswith(SECRET_PREFIX) and least <= len(key) <= most:
            return key
    raise ValueError(
        f"{name}: write {SECRET_PREFIX} and the base64 of {least} to {most} octets, such as"
        f" those of: openssl rand -base64 32"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_PAUSE:
        raise ValueError(f"timeout = {text}: write a number of seconds above 0, like 10")
    return seconds


def _pause(retry_after: str | None) -> float | None:
    """The seconds that a Retry-After asks for (RFC 9110 section 10.2.3)."""
    if not retry_after:
        return None
    try:
        if retry_after.strip().isdecimal():
            seconds = float(retry_after)
        else:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None
    return min(max(seconds, 0.0), _LONGEST_PAUSE)
