"""How does stored mail get into files?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

from gsmtpd import app, cli
from gsmtpd.ctl_arguments import count, domain, mailbox, moment
from gsmtpd.mailfiles import FORMATS, STANDARD, MailFileError, Writer, is_one_file, open_writer
from gsmtpd.progress import Progress, is_watched, progress
from gsmtpd.storage.reader import MailReader, Selection, UnreadableError


def add(verbs: Any) -> None:
    """Add it to the commands."""
    export_ = verbs.add_parser("export", help="write mail into files")
    export_.add_argument("--format", choices=FORMATS, default=FORMATS[0],
                        help="what to make (default: %(default)s)")  # fmt: skip
    export_.add_argument("--to", metavar="ADDRESS", type=mailbox,
                        help="only mail for that recipient")  # fmt: skip
    export_.add_argument("--domain", metavar="NAME", type=domain,
                        help="only mail for that domain")  # fmt: skip
    export_.add_argument("--since", metavar="TIME", type=moment,
                        help="only mail received since: a time, UTC, or an age as 7d")  # fmt: skip
    export_.add_argument("--until", metavar="TIME", type=moment,
                        help="only mail received before that")  # fmt: skip
    export_.add_argument("--id", metavar="ID", dest="ids", action="append", type=count,
                        help="only mail of that number; may be said again")  # fmt: skip
    export_.add_argument("destination", metavar="DESTINATION",
                        help="a new mbox, - for stdout; or a directory")  # fmt: skip
    export_.set_defaults(run=export)


def export(options: argparse.Namespace) -> int:
    """gsmtpctl export: returns the exit code."""
    selection = Selection(options.to, options.domain, options.since, options.until, options.ids)
    with closing(app.make_reader(cli.load(options.config))) as reader:
        ids = _all(options.ids, reader.ids(selection)) if options.ids else reader.ids(selection)
        first = list(islice(ids, 2))  # what is wrong shows now, before anything is made
        if not first:
            print("there is no such mail; nothing is written", file=sys.stderr)
            return cli.EX_OK
        if len(first) > 1 and is_one_file(options.format, options.destination):
            raise cli.Stop(cli.EX_USAGE, f"{options.destination}: one file is for one mail only")
        try:
            exporter = _Exporter(reader, open_writer(options.format, options.destination))
            with progress(_total(reader, first, options), _is_apart(options.destination)) as shown:
                exporter.run(chain(first, ids), shown)
        except MailFileError as error:
            raise cli.Stop(cli.EX_CANTCREAT, str(error)) from error
    return cli.EX_UNAVAILABLE if exporter.lost else cli.EX_OK


def _all(wanted: Iterable[int], found: Iterable[int]) -> Iterator[int]:
    """`found`, if that is all that was wanted. Raises Stop."""
    ids = list(found)
    for mail_id in wanted:
        if mail_id not in ids:
            raise cli.Stop(cli.EX_UNAVAILABLE, f"no such mail {mail_id}; nothing is written")
    return iter(ids)


def _total(reader: MailReader, first: list[int], options: argparse.Namespace) -> float | None:
    """How far the last id is from the first. None where that is not known, or nobody sees it."""
    if not is_watched() or options.until is not None or options.ids:
        return None
    return float(max(mail.mail_id for mail in reader.recent(1)) - first[0] + 1)


def _is_apart(destination: str) -> bool:
    """Whether mail goes elsewhere than to the terminal."""
    return not (destination == STANDARD and sys.stdout.isatty())


class _Exporter:
    """Writes mail, and counts it."""

    def __init__(self, reader: MailReader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self._written = 0
        self.lost = 0

    def run(self, ids: Iterable[int], shown: Progress) -> None:
        """Write those mails, and show how far that is.

        Raises StoreError, MailFileError or OSError, which end it.
        """
        begin: int | None = None
        try:
            for mail_id in ids:
                try:
                    self._write(mail_id)
                except UnreadableError as error:
                    self.lost += 1
                    shown.say(f"gsmtpctl: {error}")
                begin = mail_id if begin is None else begin
                shown.at(mail_id - begin + 1, f"exported {self._written} mails")
            self._writer.close()
        finally:
            shown.close()
            left = f"; {self.lost} could not be read" if self.lost else ""
            print(f"exported {self._written} mails{left}", file=sys.stderr)

    def _write(self, mail_id: int) -> None:
        found = self._reader.mail(mail_id)
        if found is not None:  # it may have been deleted meanwhile
            mail, octets = found
            self._writer.add(mail_id, octets, mail.return_path, _unix_time(mail.date))
            self._written += 1


def _unix_time(date: str) -> float:
    try:
        return datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return time.time()  # an old table may have none
