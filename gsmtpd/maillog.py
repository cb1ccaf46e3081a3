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
from itertools import chain

from gsmtpd.message.row import Message
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.refusal import Refusal
from gsmtpd.smtp.reply import Reply

NO_TLS = "no"
MAX_FIELD = 512  # octets of any one field
_NAMED = 5  # recipients that a line names; all are counted
_MAX_KEYS = 1000  # addresses that a record is found by
MANY_LINES = 256  # that are not kept until the end of a round
MAX_RECORDS = 65536  # octets of records between two flushes, from which on no other is taken
_VALUE = r"[\x21\x23-\x3c\x3e-\x5b\x5d-\x7e]+"  # needs no quotes in logfmt
_PLAIN = re.compile(_VALUE)
_PLAIN_TEXTS = re.compile(f"helo={_VALUE} from={_VALUE} to={_VALUE}")
_PATH = re.compile("<(.+)>", re.DOTALL)


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
    enabled: False gathers no lines. recent: takes what was not simply stored, as lines of JSON in
    ASCII, whether there are lines in the log or not; must not raise.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        line: Callable[[Iterable[tuple[str, object]]], str] = logfmt,
        enabled: bool = True,
        recent: Callable[[bytes], None] | None = None,
    ) -> None:
        self._write = write
        self._line = line
        self._enabled = enabled
        self._lines: list[str] = []
        self._recent = recent
        self._records: list[str] = []
        self._records_size = 0
        self._left_out = 0  # records that there was no room for since the last flush

    def message(self, message: Message, reply: Reply, delay: float) -> None:
        """A message past its final dot was answered with `reply` after `delay` seconds."""
        envelope = message.envelope
        if not reply.positive:
            everybody = envelope.recipients + envelope.discarded
            self._message("refused", message, everybody, delay, ("reply", str(reply)))
            return
        code = ("reply", str(reply.code))
        if envelope.mailboxes and self._recent is not None:
            self._message("accepted", message, envelope.recipients, delay, code)
            return
        if not self._enabled:
            return
        if self._line is logfmt and len(envelope.recipients) == 1:
            # The line nearly every message gets, at half the price of the way below.
            texts = (
                f"helo={envelope.helo} from=<{envelope.sender or ''}> to={envelope.recipients[0]}"
            )
            if len(texts) <= MAX_FIELD and _PLAIN_TEXTS.fullmatch(texts):
                self._lines.append(
                    f"time={timestamp(int(time.time()))} result=accepted id={message.id}"
                    f" client={message.client_ip} {texts} recipients=1"
                    f" size={len(message.content)} reply={reply.code} delay={delay:.3f}"
                    f" tls={envelope.tls or NO_TLS}"
                )
                return
        fields = _fields(message, envelope.recipients, delay, code)
        self._lines.append(self._line(_head("accepted") + fields))

    def duplicate(self, message: Message, of: str, reply: Reply, delay: float) -> None:
        """A message was answered with `reply`, but is stored already, as the one with id `of`."""
        fields = ("of", of), ("reply", str(reply.code))
        self._message("duplicate", message, message.envelope.recipients, delay, *fields)

    def spooled(self, message: Message, reply: Reply, delay: float) -> None:
        """A message was answered with `reply`, and waits in the spool until it is stored.

        It is accepted, as far as its client and those who count are concerned.
        """
        fields = ("reply", str(reply.code)), ("spooled", "yes")
        self._message("accepted", message, message.envelope.recipients, delay, *fields)

    def discarded(self, message: Message, reply: Reply, delay: float) -> None:
        """A message was answered with `reply`, and thrown away for those who are to be discarded.

        What became of it for the others has a line of its own.
        """
        fields = ("reply", str(reply.code))
        self._message("discarded", message, message.envelope.discarded, delay, fields)

    def stored_unheard(self, message: Message, delay: float) -> None:
        """A message was stored, but its client heard 4xx before, or had gone."""
        self._message("stored_unheard", message, message.envelope.recipients, delay)

    def refused(self, client_ip: str, refusal: Refusal, tls: str = "") -> None:
        """MAIL, RCPT, DATA or a message was refused by the session itself or by policy.

        tls: as in Envelope.
        """
        about = refusal.about
        fields: list[tuple[str, object]] = [("client", client_ip)]
        if refusal.helo:
            fields.append(("helo", refusal.helo))
        if about.sender is not None:
            fields.append(("from", about.sender))
        if about.recipients:
            fields.append(("to", _names(about.recipients)))
            fields.append(("recipients", len(about.recipients)))
        if about.size is not None:
            fields.append(("size", about.size))
        said = (*fields, ("reply", str(refusal.reply)), ("tls", tls or NO_TLS))
        self._add("refused", said, client_ip, about.sender, about.recipients)

    def closed(self, client_ip: str, helo: str, reply: Reply, tls: str = "") -> None:
        """A session was ended from our side with `reply`.

        helo: "" if it had said none. tls: as in Envelope.
        """
        self._ended(client_ip, helo, ("reply", str(reply)), tls)

    def dropped(self, client_ip: str, helo: str, reason: str, tls: str = "") -> None:
        """A connection was closed from our side without a reply, for `reason`; else as `closed`."""
        self._ended(client_ip, helo, ("reason", reason), tls)

    def _ended(self, client_ip: str, helo: str, why: tuple[str, object], tls: str) -> None:
        said = [("helo", helo)] if helo else []
        fields = ("client", client_ip), *said, why, ("tls", tls or NO_TLS)
        self._add("closed", fields, client_ip, None, ())

    def flush(self) -> None:
        """Write what was gathered."""
        if self._lines:
            lines = self._lines
            self._lines = []
            self._write("\n".join(lines) + "\n")
        if self._records or self._left_out:
            self._hand_on()

    def flush_many(self) -> None:
        """Write what was gathered if that is much already."""
        if len(self._lines) >= MANY_LINES:
            self.flush()

    def _hand_on(self) -> None:
        records = self._records
        if self._left_out:
            records.append(json.dumps({"lost": self._left_out}))
        self._records, self._records_size, self._left_out = [], 0, 0
        if self._recent is not None:
            self._recent(("\n".join(records) + "\n").encode())

    def _message(
        self,
        result: str,
        message: Message,
        recipients: Sequence[Mailbox],
        delay: float,
        *more: tuple[str, object],
    ) -> None:
        envelope = message.envelope
        fields = _fields(message, recipients, delay, *more)
        sender = f"<{envelope.sender or ''}>"
        mailboxes = _elsewhere(envelope) if result not in ("refused", "discarded") else ()
        self._add(result, fields, message.client_ip, sender, recipients, mailboxes)

    def _add(
        self,
        result: str,
        fields: tuple[tuple[str, object], ...],
        client_ip: str,
        sender: str | None,
        recipients: Sequence[Mailbox | str],
        mailboxes: Sequence[Mailbox] = (),
    ) -> None:
        """Gather a line, and a record with what it is found by.

        mailboxes: those of other names that it goes into, which the line does not name.
        """
        fields = _head(result) + fields
        if self._enabled:
            self._lines.append(self._line(fields))
        if self._recent is None:
            return
        if self._records_size >= MAX_RECORDS:
            self._left_out += 1
            return
        values: dict[str, object] = {name: _jsonable(value) for name, value in fields}
        if mailboxes:
            values["mailboxes"] = _names(mailboxes)
        found_by = [client_ip, *([sender] if sender else ()), *recipients, *mailboxes]
        values["keys"] = list(dict.fromkeys(map(_key, found_by[:_MAX_KEYS])))
        self._records.append(json.dumps(values))
        self._records_size += len(self._records[-1])


def _head(result: str) -> tuple[tuple[str, object], ...]:
    return ("time", timestamp(int(time.time()))), ("result", result)


def _fields(
    message: Message,
    recipients: Sequence[Mailbox],
    delay: float,
    *more: tuple[str, object],
) -> tuple[tuple[str, object], ...]:
    envelope = message.envelope
    return (
        ("id", message.id),
        ("client", message.client_ip),
        ("helo", envelope.helo),
        ("from", f"<{envelope.sender or ''}>"),
        ("to", _names(recipients)),
        ("recipients", len(recipients)),
        ("size", len(message.content)),
        *more,
        ("delay", delay),
        ("tls", envelope.tls or NO_TLS),
    )


def _names(recipients: Sequence[object]) -> str:
    return ",".join(map(str, recipients[:_NAMED]))


def _elsewhere(envelope: Envelope) -> Sequence[Mailbox]:
    """The mailboxes that mail goes into which was not sent to them."""
    own = {*envelope.recipients}
    return [each for each in dict.fromkeys(chain(*envelope.mailboxes)) if each not in own]


def _key(of: object) -> str:
    """An address in lower case, without brackets; as well in "FROM:<a@@b>", which is none."""
    text = str(of)
    path = _PATH.search(text) if isinstance(of, str) else None
    return _cut(path[1] if path else text).lower()
