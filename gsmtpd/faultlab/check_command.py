"""What does `gsmtpd-faultlab check` do? It holds ledgers against the database, read afresh."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gsmtpd import config
from gsmtpd.faultlab import arguments, ledger, stored
from gsmtpd.faultlab.check import Report, check
from gsmtpd.faultlab.ledger import LedgerError
from gsmtpd.faultlab.stored import MySQLAddress, StoredError, StoredRow

_LOOK_AGAIN = 2.0  # seconds

Rows = Callable[[], Iterator[StoredRow]]


def add_commands(verbs: Any) -> None:
    """Its place on the command line."""
    made = verbs.add_parser("check", help="compare ledgers with what the database has")
    made.add_argument("--ledgers", metavar="DIRECTORY", type=Path, required=True,
                      help="that `send` has written")  # fmt: skip
    where = made.add_mutually_exclusive_group()
    where.add_argument("-c", metavar="FILE", dest="config", default="/etc/gsmtpd.conf",
                       help="the configuration of the gsmtpd that stored the mail"
                       " (default: %(default)s)")  # fmt: skip
    where.add_argument("--mysql", metavar="URL", type=_url,
                       help="or mysql://USER:PASSWORD@HOST:PORT/DATABASE/TABLE")  # fmt: skip
    where.add_argument("--sqlite", metavar="FILE", type=Path, help="its SQLite file")
    made.add_argument("--wait", metavar="S", type=arguments.seconds, default=0.0,
                      help="while acknowledged mail is missing, look again for so long,"
                      " as a spool may hold it")  # fmt: skip
    made.add_argument("--json", action="store_true", help="as JSON, for programs")
    made.set_defaults(run=check_)


def check_(options: argparse.Namespace) -> int:
    """Check; 0 if nothing is wrong, 1 if something is, or not all, or no mail, could be compared.

    Raises LedgerError, StoredError, and ConfigError.
    """
    ledgers = ledger.files(options.ledgers)
    if not ledgers:
        raise LedgerError(f"{options.ledgers}: there are no ledgers")
    rows = _rows(options)
    until = time.monotonic() + options.wait
    report = check(ledgers, rows())
    while report.lost and time.monotonic() < until:
        time.sleep(_LOOK_AGAIN)
        report = check(ledgers, rows())
    _print(report, options.json)
    if not report.mails:
        said = "the ledgers hold no mail, so nothing is proved"
        print(f"gsmtpd-faultlab: {options.ledgers}: {said}", file=sys.stderr)
    return 1 if report.violations or report.unreadable or not report.mails else 0


def _print(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print("\n".join(report.lines()))


def _rows(options: argparse.Namespace) -> Rows:
    if options.mysql is not None:
        return lambda: stored.mysql_rows([options.mysql])
    if options.sqlite is not None:
        return lambda: stored.sqlite_rows(options.sqlite)
    return _configured(options.config)


def _configured(path: str) -> Rows:
    """The rows of the gsmtpd with that configuration. Raises StoredError and ConfigError."""
    store = config.load(path).store
    if store.backend == "sqlite":
        return lambda: stored.sqlite_rows(Path(store.sqlite.path))
    if store.backend != "mysql":
        raise StoredError(f"{path}: [store] backend = {store.backend} keeps nothing to check")
    mysql = store.mysql
    addresses = [
        MySQLAddress(
            host.host,
            host.port,
            host.unix_socket,
            mysql.user,
            mysql.password,
            mysql.database,
            mysql.table,
        )
        for host in mysql.hosts
    ]
    return lambda: stored.mysql_rows(addresses)


def _url(text: str) -> MySQLAddress:
    try:
        return stored.mysql_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
