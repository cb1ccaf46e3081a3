"""What have handlers still to do, and what of it do people decide? gsmtpctl outbox and replay."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gsmtpd import cli
from gsmtpd.app_store import make_matcher
from gsmtpd.config import Config
from gsmtpd.ctl_arguments import count
from gsmtpd.ctl_mail import printable
from gsmtpd.storage.outbox import DEAD, Chosen, Entry, Outbox, Session
from gsmtpd.storage.reader import StoredMail

EX_DATAERR = 65
_HEAD = f"{'ID':>6}  {'HANDLER':16}  {'STATE':7}  {'TRIES':>5}  {'DUE':>8}  {'TO':30}  REASON"


def list_(options: argparse.Namespace) -> int:
    """gsmtpctl outbox list: returns the exit code."""
    config = cli.load(options.config)
    known = {each.name for each in config.handlers.each}
    with _outbox(config) as (_, outbox):
        entries = outbox.entries(_chosen(options), options.limit)
        counts = outbox.counts()
    if options.json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2))
        return cli.EX_OK
    if entries:
        print(_HEAD)
    for entry in entries:
        print(_line(entry if entry.handler in known else _unknown(entry)))
    said = ", ".join(f"{name}: {number} {state}" for name, state, number in counts)
    print(said or "nothing is in the outbox", file=sys.stderr)
    return cli.EX_OK


def retry(options: argparse.Namespace) -> int:
    """gsmtpctl outbox retry: returns the exit code."""
    with _outbox(cli.load(options.config)) as (_, outbox):
        done = outbox.retry(_chosen(options), time.time())
    return _said(options, done, "to be handed over again")


def drop(options: argparse.Namespace) -> int:
    """gsmtpctl outbox drop: returns the exit code."""
    with _outbox(cli.load(options.config)) as (_, outbox):
        done = outbox.drop(_chosen(options))
    return _said(options, done, "dropped; the mail stays")


def replay(options: argparse.Namespace) -> int:
    """gsmtpctl replay: returns the exit code."""
    config = cli.load(options.config)
    found = _found(config, options)
    with _outbox(config) as (session, outbox):
        reader = session.reader()
        mails = [(mail_id, reader.row(mail_id)) for mail_id in dict.fromkeys(options.ids)]
        lacking = [str(mail_id) for mail_id, mail in mails if mail is None]
        if lacking:
            raise cli.Stop(EX_DATAERR, f"there is no mail {', '.join(lacking)}; see: gsmtpctl list")
        plans = [(mail, found(mail)) for _, mail in mails if mail is not None]
        with session.transaction():
            done = sum(outbox.add(mail, names, time.time()) for mail, names in plans)
    for mail, names in plans:
        acting = ", ".join(names) or "no handler acts on it"
        print(f"{mail.mail_id}: {printable(mail.recipient)}: {acting}")
    return cli.EX_OK if done else EX_DATAERR


def _found(config: Config, options: argparse.Namespace) -> Any:
    """What tells the handlers for a mail. Raises Stop."""
    known = [each.name for each in config.handlers.each]
    if options.handler:
        if options.handler not in known:
            there = ", ".join(known) or "none"
            wrong = f"there is no handler {options.handler} in {config.path}; there are: {there}"
            raise cli.Stop(cli.EX_USAGE, wrong)
        return lambda mail: [options.handler]
    matcher = make_matcher(config)

    def found(mail: StoredMail) -> list[str]:
        return matcher.of_texts(mail.recipient, mail.to)

    return found


@contextmanager
def _outbox(config: Config) -> Iterator[tuple[Session, Outbox]]:
    """The configured outbox. Raises StoreError and Stop."""
    from gsmtpd.app_handlers import open_session

    cli.become_owner(config)
    session = open_session(config)
    try:
        yield session, Outbox(session)
    finally:
        session.close()


def _chosen(options: argparse.Namespace) -> Chosen:
    """Which entries are meant; without ids, and but for a list, only dead ones."""
    ids = getattr(options, "ids", [])
    dead = getattr(options, "dead", not ids)
    return Chosen(ids, options.handler or "", DEAD if dead else "")


def _said(options: argparse.Namespace, done: int, what: str) -> int:
    wanted = len(set(options.ids))
    print(f"{done} {what}")
    if options.all and not done:
        whose = f" of {options.handler}'s" if options.handler else ""
        print(f"gsmtpctl: nothing{whose} was given up; see: gsmtpctl outbox list", file=sys.stderr)
    if done < wanted:
        print(
            f"gsmtpctl: {wanted - done} are not there, or just in a handler's hand", file=sys.stderr
        )
        return EX_DATAERR
    return cli.EX_OK


def _facts(entry: Entry) -> dict[str, Any]:
    """An entry for programs."""
    return entry._asdict() | {"due": entry.due / 1000, "in_hand": bool(entry.owner)}


def _unknown(entry: Entry) -> Entry:
    """An entry of a handler that is not in the configuration, which says so."""
    said = f"no handler {entry.handler} in the configuration"
    return entry._replace(reason=f"{said}; {entry.reason}" if entry.reason else said)


def _line(entry: Entry) -> str:
    """An entry for people."""
    state = "in hand" if entry.owner else entry.state
    due = "" if entry.state == DEAD or entry.owner else _until(entry.due / 1000 - time.time())
    return (
        f"{entry.outbox_id:>6}  {entry.handler:16}  {state:7}  {entry.tries:>5}  {due:>8}"
        f"  {printable(entry.recipient):30}  {printable(entry.reason)}"
    ).rstrip()


def _until(seconds: float) -> str:
    if seconds <= 0:
        return "now"
    if seconds >= 5400:
        return f"in {seconds / 3600:.0f} h"
    return f"in {seconds / 60:.0f} min" if seconds >= 90 else f"in {seconds:.0f} s"


def add(verbs: Any) -> None:
    """Add both to the commands."""
    outbox = verbs.add_parser("outbox", help="look after what handlers have still to do")
    inner = outbox.add_subparsers(dest="outbox_verb", metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="list it, the oldest first")
    listing.add_argument("-n", metavar="N", dest="limit", type=count, default=50,
                         help="how much at most (default: %(default)s)")  # fmt: skip
    listing.add_argument("--dead", action="store_true", help="only what was given up")
    listing.add_argument("--json", action="store_true", help="as JSON, for programs")
    listing.add_argument("--handler", metavar="NAME", help="only that handler's")
    listing.set_defaults(run=list_)
    for name, run, what in (
        ("retry", retry, "have it handed over again, at once"),
        ("drop", drop, "delete it; the mail stays"),
    ):
        verb = inner.add_parser(name, help=what)
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", metavar="ID", nargs="*", type=count, default=[],
                           help="its number in the list")  # fmt: skip
        which.add_argument("--all", action="store_true", help="all that was given up")
        verb.add_argument("--handler", metavar="NAME", help="only that handler's")
        verb.set_defaults(run=run)
    again = verbs.add_parser("replay", help="have handlers act once more on stored mail")
    again.add_argument("--handler", metavar="NAME", help="that one alone, whatever it matches")
    again.add_argument("ids", metavar="ID", nargs="+", type=count, help="its number in the list")
    again.set_defaults(run=replay)
