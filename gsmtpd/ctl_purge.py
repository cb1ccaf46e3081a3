"""How is old mail deleted by hand?"""

from __future__ import annotations

import argparse
from typing import Any

from gsmtpd import app, cli
from gsmtpd.config_checks import ValidateError, duration
from gsmtpd.config_checks import domain as checked_domain
from gsmtpd.progress import progress
from gsmtpd.storage.retention import Times

_LEAST, _MOST = "0s", "3650d"


def purge(options: argparse.Namespace) -> int:
    """gsmtpctl purge: returns the exit code."""
    if options.domains and options.age is None:
        raise cli.Stop(cli.EX_USAGE, "--domain is for --older-than")
    config = cli.load(options.config)
    if options.age is None:
        times = app.keep_times(config)
        if not times.distinct:
            wrong = "[store] keep says no time; say one by --older-than, e.g. --older-than 30d"
            raise cli.Stop(cli.EX_USAGE, wrong)
    elif options.domains:
        times = Times(None, [(name, options.age) for name in options.domains])
    else:
        times = Times(options.age)
    cli.become_owner(config)
    done = "found" if options.dry_run else "deleted"
    with progress(1.0) as shown:
        rows = app.purge(
            config, times, options.dry_run, lambda n, share: shown.at(share, f"{done} {n} mails")
        )
    print(f"{'would delete' if options.dry_run else 'deleted'} {rows} mails")
    return cli.EX_OK


def age(text: str) -> float:
    """An age of the command line, in seconds. Raises argparse.ArgumentTypeError."""
    try:
        return duration(text, _LEAST, _MOST)
    except ValidateError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def domain(text: str) -> str:
    """A domain of the command line. Raises argparse.ArgumentTypeError."""
    try:
        return checked_domain(text)
    except ValidateError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add(verbs: Any) -> None:
    """Add it to the commands."""
    verb = verbs.add_parser("purge", help="delete old mail now, as keep says or an age")
    verb.add_argument("--older-than", metavar="AGE", dest="age", type=age,
                       help="mail older than that, as 12h or 30d, whatever keep says")  # fmt: skip
    verb.add_argument("--domain", metavar="NAME", dest="domains", action="append",
                       type=domain,
                       help="with an age: only mail for that domain; may come again")  # fmt: skip
    verb.add_argument("--dry-run", action="store_true", help="only say how much that is")
    verb.set_defaults(run=purge)
