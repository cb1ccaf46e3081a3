"""What can be said on gsmtpctl's command line? A running gsmtpd, and its mail."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from gsmtpd import (
    __version__,
    app,
    cli,
    ctl_check,
    ctl_export,
    ctl_feed,
    ctl_import,
    ctl_mail,
    ctl_outbox,
    ctl_purge,
    ctl_search,
    ctl_status,
    ctl_tail,
    ctl_top,
    ctl_wait,
    ctl_why,
)
from gsmtpd.control import ControlError, ask, ask_to_stop
from gsmtpd.ctl_arguments import control_socket
from gsmtpd.progress import progress
from gsmtpd.storage.base import StoreError, StorePermissionError

_OF_MAIL = (
    ctl_mail, ctl_tail, ctl_search, ctl_wait, ctl_export, ctl_import, ctl_feed, ctl_purge,
    ctl_outbox, ctl_check, ctl_why,
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line of gsmtpctl."""
    made = argparse.ArgumentParser(
        prog="gsmtpctl", description="Look at, and look after, a running gsmtpd and its mail."
    )
    made.add_argument("-c", metavar="FILE", dest="config", default=cli.DEFAULT_CONFIG,
                      help="the configuration of gsmtpd (default: %(default)s)")  # fmt: skip
    made.add_argument("--version", action="version", version=f"gsmtpctl {__version__}")
    verbs = made.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    ctl_status.add(verbs)
    ctl_top.add(verbs)

    reload = verbs.add_parser("reload", help="have it take over its configuration as it is now")
    reload.set_defaults(run=_reload)

    stop = verbs.add_parser("stop", help="stop it, and wait until it has ended")
    stop.set_defaults(run=_stop)

    init = verbs.add_parser("init-db", help="print the SQL that makes the tables, or apply it")
    init.add_argument("--apply", action="store_true", help="make the tables")
    init.set_defaults(run=_init_db)

    for module in _OF_MAIL:
        module.add(verbs)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run gsmtpctl; returns the exit code."""
    options = parser().parse_args(arguments)
    os.umask(cli.UMASK)
    cli.open_standard_files()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # mail may hold what this terminal cannot show
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
        return code
    except cli.Stop as stop:
        print(f"gsmtpctl: {stop}", file=sys.stderr)
        return stop.code
    except StoreError as error:
        print(f"gsmtpctl: {error}", file=sys.stderr)
        return cli.EX_NOPERM if isinstance(error, StorePermissionError) else cli.EX_UNAVAILABLE
    except ControlError as error:
        print(f"gsmtpctl: {error}", file=sys.stderr)
        return cli.EX_NOPERM if error.permission else cli.EX_UNAVAILABLE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return cli.EX_OK
    except OSError as error:
        print(f"gsmtpctl: cannot write the output: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return cli.EX_CANTCREAT


def _reload(options: argparse.Namespace) -> int:
    done = ask(control_socket(options), "reload", 60.0)
    for problem in done["problems"]:
        print(f"gsmtpctl: reload refused, nothing has changed: {problem}", file=sys.stderr)
    for warning in done["warnings"]:
        print(f"gsmtpctl: warning: {warning}", file=sys.stderr)
    if not done["ok"]:
        return cli.EX_CONFIG
    print("reloaded")
    return cli.EX_OK


def _stop(options: argparse.Namespace) -> int:
    ask_to_stop(control_socket(options), 60.0)
    print("stopped")
    return cli.EX_OK


def _init_db(options: argparse.Namespace) -> int:
    config = cli.load(options.config)
    if options.apply:
        cli.become_owner(config)
        with progress(1.0) as shown:
            shown.at(0.0, "making the tables")
            where = app.make_tables(
                config, lambda done, of: shown.at(done / of, f"statement {done} of {of}")
            )
        print(where)
        return cli.EX_OK
    for statement in app.schema(config):
        print(f"{statement};\n")
    return cli.EX_OK


if __name__ == "__main__":
    sys.exit(main())
