"""When does mail come for an address? gsmtpctl wait, for scripts and tests of whatever sends it."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from gsmtpd import cli
from gsmtpd.app_store import make_finder
from gsmtpd.config import Config
from gsmtpd.ctl_arguments import argument
from gsmtpd.ctl_mail import show_mail
from gsmtpd.status.mail_json import facts_of
from gsmtpd.storage.arrivals import START, Cursor, parse
from gsmtpd.storage.base import StoreError, StoreSetupError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.mail_rows import StoredMail
from gsmtpd.storage.terms import address

EX_NONE = 1
_PAUSE = 0.1  # seconds between two looks, each of which is a query or two by an index
_AFTER_TROUBLE = 0.5
_LOOK_WITHIN = 2.0
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def add(verbs: Any) -> None:
    """Add it to the commands."""
    wait_ = verbs.add_parser("wait", help="wait for mail for an address, and show it")
    wait_.add_argument("--to", metavar="ADDRESS", type=argument(address), required=True,
                       help="the recipient or mailbox")  # fmt: skip
    wait_.add_argument("--after", metavar="CURSOR", type=argument(parse), default=START,
                       help="only mail behind that of an earlier wait")  # fmt: skip
    wait_.add_argument("--timeout", metavar="TIME", type=_seconds, default=30.0,
                       help="for how long, as 30s or 5m (default: 30s)")  # fmt: skip
    form = wait_.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, for programs")
    form.add_argument("--raw", action="store_true", help="its bytes as stored, and nothing else")
    wait_.set_defaults(run=wait, headers=False, attachment=None)


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
            assert waiting.finder is not None  # who has found it
            show_mail(waiting.finder.reader, mail.mail_id, options)
    if not options.json:
        if mail is None:
            print("no mail has come", file=sys.stderr)
        print(f"for what comes next: --after {waiting.cursor}", file=sys.stderr)
    return EX_NONE if mail is None else cli.EX_OK


class _LateError(BaseException):
    """The time is over in the middle of a look; drivers catch no such error."""


class _Waiting:
    """Looks for mail, and again where the store is away."""

    def __init__(self, config: Config, address: str, cursor: Cursor) -> None:
        self.cursor = cursor
        self.finder: Finder | None = None
        self._config = config
        self._address = address
        self._said = ""

    def next(self, ends: float) -> StoredMail | None:
        """The next mail, None where none has come by then.

        ends: monotonic seconds. Raises StoreError where the store is away to the end.
        """
        while True:
            trouble: StoreError | None = None
            try:
                mail = self._look(ends)
            except StoreSetupError:
                raise
            except StoreError as error:
                mail, trouble = None, error
            left = ends - time.monotonic()
            if mail is not None or left <= 0:
                break
            if trouble is not None:
                self._say(str(trouble))
            time.sleep(min(_AFTER_TROUBLE if trouble else _PAUSE, left))
        if trouble:
            raise trouble
        return mail

    def _look(self, ends: float) -> StoredMail | None:
        """Look once, till `ends` at most, but for _LOOK_WITHIN at least. Raises StoreError."""
        try:
            with _limited(max(ends - time.monotonic(), _LOOK_WITHIN)):
                if self.finder is None:
                    self.finder = make_finder(self._config)
                mail, cursor = self.finder.next_for(self._address, self.cursor)
        except _LateError:
            self.close()
            raise StoreError("the store has not answered in time") from None
        except StoreError:
            self.close()
            raise
        self.cursor = cursor
        return mail

    def _say(self, trouble: str) -> None:
        if trouble != self._said:
            self._said = trouble
            print(f"gsmtpctl: {trouble}; it is tried again", file=sys.stderr)

    def close(self) -> None:
        """Leave the store."""
        finder, self.finder = self.finder, None
        if finder is not None:
            finder.close()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _LateError in what is within, once that time is over."""

    def ring(*_: object) -> None:
        raise _LateError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
