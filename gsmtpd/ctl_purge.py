"""How is old mail deleted by hand?"""

from __future__ import annotations

import argparse

from gsmtpd import app, cli
from gsmtpd.config_checks import ValidateError, duration
from gsmtpd.config_checks import domain as checked_domain
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
    rows = app.purge(config, times, options.dry_run)
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
