"""How does mail come from files into the store? As if it were received, but for its envelope."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from email.parser import HeaderParser
from typing import Any, NamedTuple

from gsmtpd import app, cli
from gsmtpd.config import Config
from gsmtpd.ctl_mail import printable
from gsmtpd.mailfiles import STANDARD, TOO_LARGE, Found, MailFileError, date_in, read_mail
from gsmtpd.message.ids import id_maker
from gsmtpd.message.row import Message
from gsmtpd.message.trace import parse_front
from gsmtpd.progress import Progress, is_watched, progress
from gsmtpd.smtp.address import Mailbox, parse_mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.base import Letter, Outcome, Store

_MAX_BATCH = 100  # messages in one transaction
_MAX_BATCH_OCTETS = 8 * 1024 * 1024
_MAX_RECIPIENTS = 500  # of one message
_MAX_HEADER = 65536  # octets of a message that are looked at
_LOGGED = "gsmtpctl: %(message)s"
ROOM = 65536  # octets that may stand in front of a message of max_size


class NotImportedError(Exception):
    """What was found in a file cannot be stored; the text says why."""


class Incoming(NamedTuple):
    """A message to be stored. names: what it was in files. alone: as in Front."""

    names: tuple[str, ...]
    message: Message
    alone: bool = True


# ---- what a file's message was -----------------------------------------------------------------


def understood(found: Found, to: Mailbox | None, new_id: str, now: float) -> Incoming:
    """The message that `found` was when it was received, as far as it tells.

    One that gsmtpd has exported tells all. Others are for `to`, or else for whom a field says,
    and get `new_id`. now: Unix time in seconds. Raises NotImportedError.
    """
    if found.octets is None:
        raise NotImportedError(found.problem)
    front = parse_front(found.octets)
    if front is None:
        return Incoming((found.name,), _foreign(found, found.octets, to, new_id, now))
    content = found.octets[front.size :]
    received_at = float(front.received_at)
    message = Message(front.id, front.envelope, content, front.client_ip, received_at)
    return Incoming((found.name,), message, front.alone)


def _foreign(found: Found, octets: bytes, to: Mailbox | None, new_id: str, now: float) -> Message:
    fields = header_fields(octets)
    if not fields:
        raise NotImportedError("it begins with no header field, so it is no mail")
    recipient = to or _recipient(fields)
    if recipient is None:
        raise NotImportedError("no field says whom it is for; say so by --to ADDRESS")
    sender = mailbox_in(fields.get("return-path", found.sender))
    utf8 = not f"{sender}{recipient}".isascii()
    envelope = Envelope("import", utf8, sender, (recipient,), utf8)
    dates = (date_in(fields.get("received", "").rpartition(";")[2]), found.date)
    received_at = next((date for date in dates if date is not None and 0 <= date <= now), now)
    return Message(new_id, envelope, octets, "127.0.0.1", received_at)


def header_fields(octets: bytes) -> dict[str, str]:
    """The header fields by their names in lower case; of several the first."""
    end = octets.find(b"\r\n\r\n", 0, _MAX_HEADER)
    header = octets[: end if end >= 0 else _MAX_HEADER].decode("utf-8", "surrogateescape")
    items = HeaderParser().parsestr(header).items()
    return {name.lower(): str(value) for name, value in reversed(items)}


def _recipient(fields: dict[str, str]) -> Mailbox | None:
    names = ("delivered-to", "x-original-to", "envelope-to")
    found = (mailbox_in(fields[name]) for name in names if name in fields)
    return next((address for address in found if address is not None), None)


def mailbox_in(text: str) -> Mailbox | None:
    """The mailbox of a field, with or without angle brackets; None where it is none."""
    return parse_mailbox(text.strip().removeprefix("<").removesuffix(">"))


# ---- messages to several recipients ------------------------------------------------------------


def joined(messages: Iterable[Incoming]) -> Iterator[Incoming]:
    """`messages`, those that were one message to several recipients joined to that again.

    An export has them one after the other.
    """
    waiting: Incoming | None = None
    for each in messages:
        if waiting is not None:
            if _belongs(waiting, each) and len(waiting.names) < _MAX_RECIPIENTS:
                waiting = _join(waiting, each)
                continue
            yield waiting
        waiting = each
    if waiting is not None:
        yield waiting


def _belongs(first: Incoming, second: Incoming) -> bool:
    one, other = first.message, second.message
    return (
        one.id == other.id
        and not (first.alone or second.alone)
        and one.envelope._replace(recipients=()) == other.envelope._replace(recipients=())
        and one._replace(envelope=other.envelope) == other
    )


def _join(first: Incoming, second: Incoming) -> Incoming:
    envelope = first.message.envelope
    recipients = envelope.recipients + second.message.envelope.recipients
    message = first.message._replace(envelope=envelope._replace(recipients=recipients))
    return Incoming(first.names + second.names, message, False)


# ---- storing -----------------------------------------------------------------------------------


class _Importer:
    """Stores messages by batches, and counts them as the files have them."""

    def __init__(self, store: Store, config: Config, shown: Progress) -> None:
        self._store = store
        self._shown = shown
        self._read = 0  # octets of the files
        self._max_size = config.limits.max_size
        self._batch: list[Incoming] = []
        self._octets = 0
        self.imported = 0
        self.refused = 0

    def run(self, sources: Iterable[str], to: Mailbox | None) -> None:
        """Import all mail of `sources`. Raises StoreError or Stop where that has no sense."""
        for incoming in joined(self._understood(sources, to)):
            self._batch.append(incoming)
            self._octets += len(incoming.message.content) * len(incoming.names)
            if len(self._batch) >= _MAX_BATCH or self._octets >= _MAX_BATCH_OCTETS:
                self._flush()
        self._flush()

    def _understood(self, sources: Iterable[str], to: Mailbox | None) -> Iterator[Incoming]:
        new_id = id_maker(time.time())
        for found in self._found(sources):
            self._read += found.size
            self._shown.at(self._read, f"imported {self.imported} mails")
            try:
                incoming = understood(found, to, new_id(), time.time())
                if len(incoming.message.content) > self._max_size:
                    raise NotImportedError(TOO_LARGE)
                yield incoming
            except NotImportedError as error:
                self._refuse((found.name,), str(error))

    def _found(self, sources: Iterable[str]) -> Iterator[Found]:
        limit = self._max_size + ROOM
        for source in sources:
            try:
                yield from read_mail(source, limit)
            except MailFileError as error:
                self._refuse((), str(error))

    def _flush(self) -> None:
        batch, self._batch, self._octets = self._batch, [], 0
        if not batch:
            return
        letters = [self._store.read(each.message) for each in batch]
        outcomes = self._store.write(letters)
        lost = [n for n, outcome in enumerate(outcomes) if _is_lost(outcome)]
        self.imported += sum(len(each.names) for n, each in enumerate(batch) if n not in lost)
        if len(lost) == len(batch):
            self._store.prepare()  # raises where it is not the messages' fault
        for n in lost:
            self._try_again(batch[n], letters[n])

    def _try_again(self, incoming: Incoming, letter: Letter) -> None:
        (outcome,) = self._store.write([letter])
        if outcome is Outcome.NO_SPACE:
            raise cli.Stop(cli.EX_CANTCREAT, "the store has no space left")
        if _is_lost(outcome):
            self._refuse(incoming.names, "the store refused it")
        else:
            self.imported += len(incoming.names)

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        if why == TOO_LARGE:
            why = f"larger than max_size, {self._max_size} bytes"
        for line in [f"{name}: {why}" for name in names] or [why]:
            self.refused += 1
            self._shown.say(f"gsmtpctl: {printable(line)}")


def _is_lost(outcome: object) -> bool:
    return outcome in (Outcome.TROUBLE, Outcome.NO_SPACE, Outcome.AWAY)


# ---- the command -------------------------------------------------------------------------------


def import_(options: argparse.Namespace) -> int:
    """gsmtpctl import: returns the exit code."""
    config = cli.load(options.config)
    check_mail_file(config)
    # Whoever brings the same mail again wants it: a client's second try it is not.
    store = app.make_store(config, dedupe=False, handled=False)
    log = logging.getLogger("gsmtpd")
    log.addHandler(logging.NullHandler())
    try:
        store.prepare()
        with progress(_total(options.sources)) as shown:
            log.addHandler(_Said(shown))  # the store says there why it refuses a message
            importer = _Importer(store, config, shown)
            try:
                importer.run(options.sources, options.to)
            finally:
                shown.close()
                print(f"imported {importer.imported} mails", file=sys.stderr)
    finally:
        store.close()
    return cli.EX_UNAVAILABLE if importer.refused else cli.EX_OK


def _total(sources: Iterable[str]) -> float | None:
    """About how many octets the files have. None where that is not known, or nobody sees it."""
    if not is_watched():
        return None
    total = 0
    for source in sources:
        try:
            if source == STANDARD:
                total += os.fstat(sys.stdin.fileno()).st_size
            elif os.path.isdir(source):
                total += sum(_sizes(source))
            else:
                total += os.path.getsize(source)
        except (OSError, ValueError):
            return None
    return total or None  # of a pipe


def _sizes(folder: str) -> Iterator[int]:
    """Of the files of a maildir, or of a directory."""
    for name in ("", "new", "cur"):
        with suppress(FileNotFoundError), os.scandir(os.path.join(folder, name)) as entries:
            yield from (e.stat().st_size for e in entries if e.is_file(follow_symlinks=False))


class _Said(logging.Handler):
    """Has log lines said beside the bar, as what gsmtpctl says."""

    def __init__(self, shown: Progress) -> None:
        super().__init__()
        self._shown = shown
        self.setFormatter(logging.Formatter(_LOGGED))

    def emit(self, record: logging.LogRecord) -> None:
        """Say that line."""
        self._shown.say(self.format(record))


def check_mail_file(config: Config) -> None:
    """Whether the mail file is there. Made by root it would be root's. Raises Stop."""
    path = config.store.sqlite.path
    if config.store.backend == "sqlite" and not os.path.exists(path):
        # gsmtpd could not write to it.
        wrong = f"{path}: no mail file yet; make it by: gsmtpctl init-db --apply"
        raise cli.Stop(cli.EX_UNAVAILABLE, wrong)


def log_to_stderr() -> logging.Handler:
    """Has log lines said on stderr, as what gsmtpctl says."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_LOGGED))
    return handler


def address(text: str) -> Mailbox:
    """An address of the command line. Raises argparse.ArgumentTypeError."""
    found = parse_mailbox(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; write one like you@example.com")
    return found


def add(verbs: Any) -> None:
    """Add it to the commands."""
    verb = verbs.add_parser("import", help="store mail from files")
    verb.add_argument("--to", metavar="ADDRESS", type=address,
                         help="the recipient of mail that gsmtpd has not exported")  # fmt: skip
    verb.add_argument("sources", metavar="SOURCE", nargs="+",
                         help="an mbox, a maildir, .eml or a directory; - is stdin")  # fmt: skip
    verb.set_defaults(run=import_)
