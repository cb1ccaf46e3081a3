"""What became of each mail? One line per message or refusal, for the operator and for scripts."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from gsmtpd.message.row import Message
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.reply import Reply

MAX_FIELD = 512  # octets of any one field
_VALUE = r"[\x21\x23-\x3c\x3e-\x5b\x5d-\x7e]+"  # needs no quotes in logfmt
_PLAIN = re.compile(_VALUE)
_PLAIN_TEXTS = re.compile(f"helo={_VALUE} from={_VALUE} to={_VALUE}")


def quote(value: str) -> str:
    """`value` as a logfmt value on one line, at most MAX_FIELD octets of it."""
    if len(value) <= MAX_FIELD and _PLAIN.fullmatch(value):
        return value
    # JSON escapes quotes, control characters and, by ensure_ascii, every line end Unicode knows.
    return json.dumps(_cut(value))


def _cut(value: str) -> str:
    return value.encode("utf-8", "replace")[:MAX_FIELD].decode("utf-8", "ignore")


def logfmt(fields: Iterable[tuple[str, object]]) -> str:
    """`fields` as one logfmt line."""
    return " ".join([f"{name}={quote(str(value))}" for name, value in fields])


def json_line(fields: Iterable[tuple[str, object]]) -> str:
    """`fields` as one line of JSON."""
    return json.dumps({k: _cut(v) if isinstance(v, str) else v for k, v in fields})


@lru_cache(maxsize=4)
def timestamp(second: int) -> str:
    """`second` (Unix time) as RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


class LineFormatter(logging.Formatter):
    """Formats the program's own log records like the mail log: one line each, whatever they hold.

    line: `logfmt` or `json_line`.
    """

    def __init__(self, line: Callable[[Iterable[tuple[str, object]]], str]) -> None:
        super().__init__()
        self._line = line

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines of its own, indented."""
        text = self._line(
            (
                ("time", timestamp(int(record.created))),
                ("level", record.levelname.lower()),
                ("msg", record.getMessage()),
            )
        )
        if record.exc_info:
            text += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        return text


class MailLog:
    """The mail log's verbs. Lines are gathered and written together by `flush`.

    write: takes the gathered text; must not raise. line: `logfmt` or `json_line`.
    enabled: False gathers nothing.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        line: Callable[[Iterable[tuple[str, object]]], str] = logfmt,
        enabled: bool = True,
    ) -> None:
        self._write = write
        self._line = line
        self._enabled = enabled
        self._lines: list[str] = []

    def message(self, message: Message, reply: Reply, seconds: float) -> None:
        """A message past its final dot was answered with `reply` after `seconds`."""
        if not self._enabled:
            return
        envelope = message.envelope
        event = "accepted" if reply.positive else "refused"
        if self._line is logfmt and len(envelope.recipients) == 1:
            # The line nearly every message gets, at half the price of the way below.
            texts = (
                f"helo={envelope.helo} from=<{envelope.sender or ''}> to={envelope.recipients[0]}"
            )
            if len(texts) <= MAX_FIELD and _PLAIN_TEXTS.fullmatch(texts):
                self._lines.append(
                    f"time={timestamp(int(time.time()))} event={event} id={message.id}"
                    f" client={message.client_ip} {texts} recipients=1"
                    f" size={len(message.content)} seconds={seconds:.3f} reply={reply.code}"
                )
                return
        self._add(
            event,
            ("id", message.id),
            ("client", message.client_ip),
            ("helo", envelope.helo),
            ("from", f"<{envelope.sender or ''}>"),
            ("to", ",".join(map(str, envelope.recipients[:5]))),
            ("recipients", len(envelope.recipients)),
            ("size", len(message.content)),
            ("seconds", f"{seconds:.3f}"),
            ("reply", reply.code),
        )

    def stored_unheard(self, message: Message) -> None:
        """A message was stored, but its client heard 4xx before, or had gone."""
        if self._enabled:
            self._add("stored_unheard", ("id", message.id), ("client", message.client_ip))

    def recipient_refused(self, client_ip: str, recipient: Mailbox, reply: Reply) -> None:
        """RCPT for `recipient` was refused by policy."""
        if self._enabled:
            self._add(
                "refused", ("client", client_ip), ("to", str(recipient)), ("reply", str(reply))
            )

    def closed(self, client_ip: str, reply: Reply) -> None:
        """A session was ended from our side with `reply`."""
        if self._enabled:
            self._add("closed", ("client", client_ip), ("reply", str(reply)))

    def flush(self) -> None:
        """Write what was gathered."""
        if self._lines:
            lines = self._lines
            self._lines = []
            self._write("\n".join(lines) + "\n")

    def _add(self, event: str, *fields: tuple[str, object]) -> None:
        head = (("time", timestamp(int(time.time()))), ("event", event))
        self._lines.append(self._line(head + fields))
