"""When does mail come for an address? gsmtpctl wait, for scripts and tests of whatever sends it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from contextlib import closing
from typing import Any

from gsmtpd import cli
from gsmtpd.app_store import make_finder
from gsmtpd.config import Config
from gsmtpd.ctl_mail import show_mail
from gsmtpd.status.mail_json import facts_of
from gsmtpd.storage.arrivals import START, Cursor, parse
from gsmtpd.storage.base import StoreError, StorePermissionError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.mail_rows import StoredMail

EX_NONE = 1
_PAUSE = 0.1  # seconds between two looks, each of which is a query or two by an index
_AFTER_TROUBLE = 0.5
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def add(verbs: Any) -> None:
    """Add it to the commands."""
    wait_ = verbs.add_parser("wait", help="wait for mail for an address, and show it")
    wait_.add_argument("--to", metavar="ADDRESS", required=True, help="the recipient or mailbox")
    wait_.add_argument("--after", metavar="CURSOR", type=_cursor, default=START,
                       help="only mail behind that of an earlier wait")  # fmt: skip
    wait_.add_argument("--timeout", metavar="TIME", type=_seconds, default=30.0,
                       help="for how long, as 30s or 5m (default: 30s)")  # fmt: skip
    form = wait_.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, for programs")
    form.add_argument("--raw", action="store_true", help="its bytes as stored, and nothing else")
    wait_.set_defaults(run=wait, headers=False, attachment=None)


def _cursor(text: str) -> Cursor:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)([smh]?)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write one as 30s, 5m or 0.5")
    return float(match[1]) * _UNITS[match[2]]


def wait(options: argparse.Namespace) -> int:
    """gsmtpctl wait: returns the exit code."""
    waiting = _Waiting(cli.load(options.config), options.to, options.after)
    with closing(waiting):
        mail = waiting.next(time.monotonic() + options.timeout)
        if options.json:
            facts = None if mail is None else facts_of(mail)
            print(json.dumps({"mail": facts, "cursor": str(waiting.cursor)}, indent=2))
        elif mail is not None:
            show_mail(waiting.finder.reader, mail.mail_id, options)
    if not options.json:
        if mail is None:
            print("no mail has come", file=sys.stderr)
        print(f"for what comes next: --after {waiting.cursor}", file=sys.stderr)
    return EX_NONE if mail is None else cli.EX_OK


class _Waiting:
    """Looks for mail. Who has seen the store once waits, too, while it is away."""

    def __init__(self, config: Config, address: str, cursor: Cursor) -> None:
        self.cursor = cursor
        self.finder: Finder = make_finder(config)
        self._config = config
        self._address = address

    def next(self, ends: float) -> StoredMail | None:
        """The next mail, None where none has come by then. Raises StoreError.

        ends: monotonic seconds.
        """
        mail, self.cursor = self.finder.next_for(self._address, self.cursor)
        trouble: StoreError | None = None
        while mail is None and (left := ends - time.monotonic()) > 0:
            time.sleep(min(_AFTER_TROUBLE if trouble else _PAUSE, left))
            try:
                if trouble:
                    self.finder = make_finder(self._config)
                mail, self.cursor = self.finder.next_for(self._address, self.cursor)
                trouble = None
            except StorePermissionError:
                raise
            except StoreError as error:
                self.finder.close()
                trouble = error
        if trouble:
            raise trouble
        return mail

    def close(self) -> None:
        """Leave the store."""
        self.finder.close()
