"""What became of each mail? One line per message or refusal, for the operator and for scripts.

docs/logs.md says what each line and field means.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from gsmtpd.message.row import Message
from gsmtpd.smtp.refusal import Refusal
from gsmtpd.smtp.reply import Reply

NO_TLS = "no"
MAX_FIELD = 512  # octets of any one field
_NAMED = 5  # recipients that a line names; all are counted
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
    return " ".join([f"{name}={quote(_said(value))}" for name, value in fields])


def _said(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def json_line(fields: Iterable[tuple[str, object]]) -> str:
    """`fields` as one line of JSON."""
    return json.dumps({name: _jsonable(value) for name, value in fields})


def _jsonable(value: object) -> object:
    if isinstance(value, float):
        return round(value, 3)
    return _cut(value) if isinstance(value, str) else value


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

    def message(self, message: Message, reply: Reply, delay: float, tls: str = NO_TLS) -> None:
        """A message past its final dot was answered with `reply` after `delay` seconds."""
        if not self._enabled:
            return
        if not reply.positive:
            self._message("refused", message, delay, tls, ("reply", str(reply)))
            return
        envelope = message.envelope
        if self._line is logfmt and len(envelope.recipients) == 1:
            # The line nearly every message gets, at half the price of the way below.
            texts = (
                f"helo={envelope.helo} from=<{envelope.sender or ''}> to={envelope.recipients[0]}"
            )
            if len(texts) <= MAX_FIELD and _PLAIN_TEXTS.fullmatch(texts):
                self._lines.append(
                    f"time={timestamp(int(time.time()))} result=accepted id={message.id}"
                    f" client={message.client_ip} {texts} recipients=1"
                    f" size={len(message.content)} reply={reply.code} delay={delay:.3f} tls={tls}"
                )
                return
        self._message("accepted", message, delay, tls, ("reply", str(reply.code)))

    def duplicate(
        self, message: Message, of: str, reply: Reply, delay: float, tls: str = NO_TLS
    ) -> None:
        """A message was answered with `reply`, but is stored already, as the one with id `of`."""
        if self._enabled:
            fields = ("of", of), ("reply", str(reply.code))
            self._message("duplicate", message, delay, tls, *fields)

    def stored_unheard(self, message: Message, delay: float, tls: str = NO_TLS) -> None:
        """A message was stored, but its client heard 4xx before, or had gone."""
        if self._enabled:
            self._message("stored_unheard", message, delay, tls)

    def refused(self, client_ip: str, refusal: Refusal, tls: str = NO_TLS) -> None:
        """MAIL, RCPT, DATA or a message was refused by the session itself or by policy."""
        if not self._enabled:
            return
        fields: list[tuple[str, object]] = [("client", client_ip)]
        if refusal.helo:
            fields.append(("helo", refusal.helo))
        if refusal.about.sender is not None:
            fields.append(("from", refusal.about.sender))
        if refusal.about.recipients:
            fields.append(("to", _names(refusal.about.recipients)))
            fields.append(("recipients", len(refusal.about.recipients)))
        if refusal.about.size is not None:
            fields.append(("size", refusal.about.size))
        self._add("refused", *fields, ("reply", str(refusal.reply)), ("tls", tls))

    def closed(self, client_ip: str, helo: str, reply: Reply, tls: str = NO_TLS) -> None:
        """A session was ended from our side with `reply`. helo: "" if it had said none."""
        if self._enabled:
            said = [("helo", helo)] if helo else []
            self._add("closed", ("client", client_ip), *said, ("reply", str(reply)), ("tls", tls))

    def flush(self) -> None:
        """Write what was gathered."""
        if self._lines:
            lines = self._lines
            self._lines = []
            self._write("\n".join(lines) + "\n")

    def _message(
        self, result: str, message: Message, delay: float, tls: str, *reply: tuple[str, object]
    ) -> None:
        envelope = message.envelope
        self._add(
            result,
            ("id", message.id),
            ("client", message.client_ip),
            ("helo", envelope.helo),
            ("from", f"<{envelope.sender or ''}>"),
            ("to", _names(envelope.recipients)),
            ("recipients", len(envelope.recipients)),
            ("size", len(message.content)),
            *reply,
            ("delay", delay),
            ("tls", tls),
        )

    def _add(self, result: str, *fields: tuple[str, object]) -> None:
        head = (("time", timestamp(int(time.time()))), ("result", result))
        self._lines.append(self._line(head + fields))


def _names(recipients: Sequence[object]) -> str:
    return ",".join(map(str, recipients[:_NAMED]))
