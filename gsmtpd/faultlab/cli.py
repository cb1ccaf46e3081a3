"""What can be said on gsmtpd-faultlab's command line? Send, break, and hold to account."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from gsmtpd import __version__
from gsmtpd.config import ConfigError
from gsmtpd.faultlab import check_command, run_command, send_command
from gsmtpd.faultlab.ledger import LedgerError
from gsmtpd.faultlab.processes import ServerError
from gsmtpd.faultlab.senders import SendersError
from gsmtpd.faultlab.stored import StoredError

# sysexits.h
EX_UNAVAILABLE = 69
EX_CONFIG = 78


def parser() -> argparse.ArgumentParser:
    """The command line of gsmtpd-faultlab."""
    made = argparse.ArgumentParser(
        prog="gsmtpd-faultlab",
        description="Prove by faults that no acknowledged mail is lost: on test installations.",
    )
    made.add_argument("--version", action="version", version=f"gsmtpd-faultlab {__version__}")
    verbs = made.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    send_command.add_commands(verbs)
    check_command.add_commands(verbs)
    run_command.add_commands(verbs)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run gsmtpd-faultlab; returns the exit code."""
    options = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (LedgerError, StoredError, SendersError, ServerError) as error:
        print(f"gsmtpd-faultlab: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    except ConfigError as error:
        print(f"gsmtpd-faultlab: {error}", file=sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
