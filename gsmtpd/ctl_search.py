"""Which mail has this in it? gsmtpctl search, page by page, the newest first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from gsmtpd import cli
from gsmtpd.app_store import make_finder
from gsmtpd.ctl_arguments import at_most, domain, mailbox, moment, text
from gsmtpd.ctl_mail import print_head, print_mail
from gsmtpd.status.mail_json import facts_of
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.mail_rows import StoredMail
from gsmtpd.storage.search import MOST_MAILS, Wanted

EX_NONE = 1


def add(verbs: Any) -> None:
    """Add it to the commands."""
    search_ = verbs.add_parser("search", help="list the mails that have something in them")
    for name, metavar, type_, what in (
        ("to", "ADDRESS", mailbox, "only mail for that recipient or mailbox"),
        ("from", "TEXT", mailbox, "only mail with that in its From or its reverse-path"),
        ("subject", "TEXT", text, "only mail with that in its subject"),
        ("text", "TEXT", text, "only mail with that in what it says"),
        ("domain", "NAME", domain, "only mail for that domain"),
    ):
        search_.add_argument(f"--{name}", metavar=metavar, type=type_, dest=f"{name}_",
                             help=what)  # fmt: skip
    search_.add_argument("--since", metavar="TIME", type=moment,
                         help="only mail received since: a time, UTC, or an age as 7d")  # fmt: skip
    search_.add_argument("--until", metavar="TIME", type=moment,
                         help="only mail received before that")  # fmt: skip
    search_.add_argument("-n", metavar="N", dest="limit", type=at_most, default=20,
                         help="how many at most (default: %(default)s)")  # fmt: skip
    search_.add_argument("--before", metavar="PLACE", type=text,
                         help="go on where an earlier search has stopped")  # fmt: skip
    search_.add_argument("--json", action="store_true", help="as JSON, for programs")
    search_.set_defaults(run=search)


def search(options: argparse.Namespace) -> int:
    """gsmtpctl search: returns the exit code."""
    wanted = Wanted(
        to=options.to_ or "",
        from_=options.from_ or "",
        subject=options.subject_ or "",
        text=options.text_ or "",
        since=options.since or "",
        until=options.until or "",
        domain=options.domain_ or "",
    )
    with closing(make_finder(cli.load(options.config))) as finder:
        going = _Search(finder, wanted, options.before or "")
        try:
            mails = going.mails(options.limit)
            found = _say_json(mails, going) if options.json else _say(mails)
        except ValueError as error:
            raise cli.Stop(cli.EX_USAGE, f"--before: {error}") from error
        except KeyboardInterrupt:
            _say_stopped(going)
            raise
    if options.json:
        return cli.EX_OK if found else EX_NONE
    if going.place:
        _say_stopped(going)
    elif not found:
        print("no such mail", file=sys.stderr)
    return cli.EX_OK if found else EX_NONE


class _Search:
    """A search, and where it is. place: "" at its beginning, None at its end."""

    def __init__(self, finder: Finder, wanted: Wanted, before: str) -> None:
        self.place: str | None = before
        self._finder = finder
        self._wanted = wanted

    def mails(self, limit: int) -> Iterator[StoredMail]:
        """The next `limit` mails. Raises StoreError, and ValueError for a wrong place."""
        while limit and self.place is not None:
            page = self._finder.search(self._wanted, min(limit, MOST_MAILS), self.place)
            limit -= len(page.mails)
            yield from page.mails
            self.place = page.next


def _say(mails: Iterator[StoredMail]) -> int:
    """List them as they are found; how many."""
    found = 0
    for found, mail in enumerate(mails, 1):
        if found == 1:
            print_head()
        print_mail(mail)
        sys.stdout.flush()
    return found


def _say_json(mails: Iterator[StoredMail], going: _Search) -> int:
    found = [facts_of(mail) for mail in mails]
    print(json.dumps({"mails": found, "next": going.place}, indent=2))
    return len(found)


def _say_stopped(going: _Search) -> None:
    if going.place:
        print(f"there may be more; the same with: --before {going.place}", file=sys.stderr)
