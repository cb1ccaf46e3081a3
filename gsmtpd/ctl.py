"""What can be said on gsmtpctl's command line? A running gsmtpd, and its mail."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gsmtpd import (
    __version__,
    app,
    cli,
    ctl_check,
    ctl_feed,
    ctl_import,
    ctl_mail,
    ctl_outbox,
    ctl_purge,
    ctl_why,
)
from gsmtpd.config import ConfigError, control_socket
from gsmtpd.config import spool as spool_of
from gsmtpd.control import ControlError, ask, ask_to_stop
from gsmtpd.mailfiles import FORMATS
from gsmtpd.storage.base import StoreError, StorePermissionError
from gsmtpd.storage.spool import look


def parser() -> argparse.ArgumentParser:
    """The command line of gsmtpctl."""
    made = argparse.ArgumentParser(
        prog="gsmtpctl", description="Look at, and look after, a running gsmtpd and its mail."
    )
    made.add_argument("-c", metavar="FILE", dest="config", default=cli.DEFAULT_CONFIG,
                      help="the configuration of gsmtpd (default: %(default)s)")  # fmt: skip
    made.add_argument("--version", action="version", version=f"gsmtpctl {__version__}")
    verbs = made.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    status = verbs.add_parser("status", help="say how the running gsmtpd does")
    status.add_argument("--json", action="store_true", help="as JSON, for programs")
    status.set_defaults(run=_status)

    reload = verbs.add_parser("reload", help="have it take over its configuration as it is now")
    reload.set_defaults(run=_reload)

    stop = verbs.add_parser("stop", help="stop it, and wait until it has ended")
    stop.set_defaults(run=_stop)

    init = verbs.add_parser("init-db", help="print the SQL that makes the tables, or apply it")
    init.add_argument("--apply", action="store_true", help="make the tables")
    init.set_defaults(run=_init_db)

    _add_mail_commands(verbs)
    return made


def _add_mail_commands(verbs: Any) -> None:
    """What is done with stored mail."""
    listing = verbs.add_parser("list", help="list the newest mails")
    listing.add_argument("-n", metavar="N", dest="limit", type=_count, default=20,
                         help="how many (default: %(default)s)")  # fmt: skip
    listing.set_defaults(run=ctl_mail.list_)

    show = verbs.add_parser("show", help="show one mail")
    show.add_argument("id", metavar="ID", type=_count, help="its number in the list")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="its bytes as stored, and nothing else")
    form.add_argument("--headers", action="store_true", help="its header as the sender wrote it")
    form.add_argument("--attachment", metavar="N", type=_number,
                      help="save attachment N, under its name in this directory")  # fmt: skip
    show.add_argument("-o", metavar="FILE", dest="output",
                      help="where to save the attachment; - is stdout")  # fmt: skip
    show.set_defaults(run=ctl_mail.show)

    tail = verbs.add_parser("tail", help="list mails as they come in, until interrupted")
    tail.add_argument("-n", metavar="N", dest="limit", type=_count, default=5,
                      help="how many earlier ones first (default: %(default)s)")  # fmt: skip
    tail.set_defaults(run=ctl_mail.tail)

    export = verbs.add_parser("export", help="write mail into files")
    export.add_argument("--format", choices=FORMATS, default=FORMATS[0],
                        help="what to make (default: %(default)s)")  # fmt: skip
    export.add_argument("--to", metavar="ADDRESS", help="only mail for that recipient")
    export.add_argument("--domain", metavar="NAME", help="only mail for that domain")
    export.add_argument("--since", metavar="TIME", type=ctl_mail.moment,
                        help="only mail received since: a time, UTC, or an age as 7d")  # fmt: skip
    export.add_argument("--until", metavar="TIME", type=ctl_mail.moment,
                        help="only mail received before that")  # fmt: skip
    export.add_argument("--id", metavar="ID", dest="ids", action="append", type=_count,
                        help="only mail of that number; may be said again")  # fmt: skip
    export.add_argument("destination", metavar="DESTINATION",
                        help="a new mbox, - for stdout; or a directory")  # fmt: skip
    export.set_defaults(run=ctl_mail.export)

    import_ = verbs.add_parser("import", help="store mail from files")
    import_.add_argument("--to", metavar="ADDRESS", type=ctl_import.address,
                         help="the recipient of mail that gsmtpd has not exported")  # fmt: skip
    import_.add_argument("sources", metavar="SOURCE", nargs="+",
                         help="an mbox, a maildir, .eml or a directory; - is stdin")  # fmt: skip
    import_.set_defaults(run=ctl_import.import_)

    feed = verbs.add_parser(
        "feed", help="have a message in a file received, as if a client sent it"
    )
    feed.add_argument("--to", metavar="ADDRESS", dest="recipients", action="append", required=True,
                      type=ctl_check.address, help="a recipient; may be said again")  # fmt: skip
    feed.add_argument("--from", metavar="ADDRESS", dest="sender", type=ctl_feed.sender,
                      help="the sender, '' for none (default: its Return-Path)")  # fmt: skip
    feed.add_argument("--client", metavar="IP", type=ctl_check.client,
                      help="as if it came from that IP address (default: 127.0.0.1)")  # fmt: skip
    feed.add_argument("source", metavar="FILE", help="with one message; - is stdin")
    feed.set_defaults(run=ctl_feed.feed)

    purge = verbs.add_parser("purge", help="delete old mail now, as keep says or an age")
    purge.add_argument("--older-than", metavar="AGE", dest="age", type=ctl_purge.age,
                       help="mail older than that, as 12h or 30d, whatever keep says")  # fmt: skip
    purge.add_argument("--domain", metavar="NAME", dest="domains", action="append",
                       type=ctl_purge.domain,
                       help="with an age: only mail for that domain; may come again")  # fmt: skip
    purge.add_argument("--dry-run", action="store_true", help="only say how much that is")
    purge.set_defaults(run=ctl_purge.purge)

    _add_outbox_commands(verbs)

    check = verbs.add_parser("check-address", help="say what would become of mail for an address")
    check.add_argument("--client", metavar="IP", type=ctl_check.client,
                       help="as if it came from that IP address")  # fmt: skip
    check.add_argument("--json", action="store_true", help="as JSON, for programs")
    check.add_argument("address", metavar="ADDRESS", type=ctl_check.address,
                       help="of a recipient")  # fmt: skip
    check.set_defaults(run=ctl_check.check_address)

    why = verbs.add_parser("why", help="say what became of mail from or to an address")
    why.add_argument("-n", metavar="N", dest="limit", type=ctl_why.limit, default=20,
                     help="how many events at most (default: %(default)s)")  # fmt: skip
    why.add_argument("--json", action="store_true", help="as JSON, for programs")
    why.add_argument("address", metavar="ADDRESS", type=ctl_why.address,
                     help="of a recipient or a sender, or the IP address of a client")  # fmt: skip
    why.set_defaults(run=ctl_why.why)


def _add_outbox_commands(verbs: Any) -> None:
    """What handlers have still to do."""
    outbox = verbs.add_parser("outbox", help="look after what handlers have still to do")
    inner = outbox.add_subparsers(dest="outbox_verb", metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="list it, the oldest first")
    listing.add_argument("-n", metavar="N", dest="limit", type=_count, default=50,
                         help="how much at most (default: %(default)s)")  # fmt: skip
    listing.add_argument("--dead", action="store_true", help="only what was given up")
    listing.add_argument("--json", action="store_true", help="as JSON, for programs")
    listing.add_argument("--handler", metavar="NAME", help="only that handler's")
    listing.set_defaults(run=ctl_outbox.list_)
    for name, run, what in (
        ("retry", ctl_outbox.retry, "have it handed over again, at once"),
        ("drop", ctl_outbox.drop, "delete it; the mail stays"),
    ):
        verb = inner.add_parser(name, help=what)
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", metavar="ID", nargs="*", type=_count, default=[],
                           help="its number in the list")  # fmt: skip
        which.add_argument("--all", action="store_true", help="all that was given up")
        verb.add_argument("--handler", metavar="NAME", help="only that handler's")
        verb.set_defaults(run=run)
    replay = verbs.add_parser("replay", help="have handlers act once more on stored mail")
    replay.add_argument("--handler", metavar="NAME", help="that one alone, whatever it matches")
    replay.add_argument("ids", metavar="ID", nargs="+", type=_count, help="its number in the list")
    replay.set_defaults(run=ctl_outbox.replay)


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")


def _number(text: str) -> int:
    if number := _count(text):
        return number
    raise argparse.ArgumentTypeError("the first has the number 1")


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


def _control_socket(options: argparse.Namespace) -> str:
    """Where the running gsmtpd is asked; its configuration may have been broken meanwhile."""
    try:
        path = control_socket(options.config)
    except ConfigError as error:
        raise cli.Stop(cli.EX_CONFIG, str(error)) from error
    if not path:
        raise ControlError("[server] control_socket is empty, so no running gsmtpd can be asked")
    return path


def _status(options: argparse.Namespace) -> int:
    status = ask(_control_socket(options), "status", 5.0)
    status["spool"] = _spool(options.config)
    print(json.dumps(status, indent=2) if options.json else "\n".join(_said(status)))
    return cli.EX_OK


def _spool(path: str) -> dict[str, Any] | None:
    """What waits in the spool of that configuration; None if it has none."""
    try:
        folder, most = spool_of(path)
        if not folder:
            return None
        return {"path": folder, **look(folder, most)._asdict()}
    except (ConfigError, StoreError) as error:
        return {"error": str(error)}  # no reason not to tell the rest


def _said_spool(found: dict[str, Any] | None) -> str:
    if found is None:
        return "off"
    if "error" in found:
        return f"unknown: {found['error']}"
    if not found["messages"]:
        return "empty"
    said = [f"{found['messages']} messages", f"{_size(found['octets'])} of {_size(found['most'])}"]
    if found["oldest"] is not None:
        said.append(f"oldest {_lasting(max(0.0, time.time() - found['oldest']))}")
    if found["aside"]:
        said.append(f"{found['aside']} set aside")
    return ", ".join(said)


def _size(octets: int) -> str:
    """Octets as people say them."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if octets >= 1 << power:
            return f"{octets / (1 << power):.3g} {unit}"
    return f"{octets / 1024:.0f} KiB"


def _said(status: dict[str, Any]) -> Iterator[str]:
    """The status for people."""
    yield f"gsmtpd {status['version']}, process {status['pid']}, {status['state']}"
    yield f"Since:      {_when(status['began'])}, {_lasting(time.time() - status['began'])}"
    yield f"Config:     {status['config']}"
    for listener in status["listeners"]:
        yield f"Listening:  {listener['address']} ({listener['name']})"
    for one in status["workers"]:
        about = f"{one['pid']}, {one['state']}, {_lasting(one['seconds'])}"
        if one.get("role", "smtp") == "smtp":
            yield f"Worker:     {about}, clients: {one['clients']}, accepted: {one['accepted']}"
        else:
            yield f"Handlers:   {about}"
    yield f"Replaced:   {status['replaced']} workers that had died"
    yield f"Clients:    {status['clients']} of {status['max_clients']}"
    yield (
        f"Sent away:  {status['turned_away']} (max_clients),"
        f" {status['crowded']} (max_clients_per_ip), {status['denied']} (deny)"
    )
    for host in status["database"]:
        yield f"Database:   {host['host']}{', away: it is left alone' if host['away'] else ''}"
    yield f"Overload:   {', '.join(status['overload']) or 'none'}"
    yield (
        f"Messages:   {status['accepted']} accepted ({status['received_bytes']} bytes),"
        f" {status['refused']} refused, {status['discarded']} discarded"
    )
    if any(one.get("role") == "handlers" for one in status["workers"]):
        yield (
            f"Handled:    {status['handled']} mails; {status['handler_failed']} tries failed,"
            f" {status['handler_dead']} given up"
        )
    yield f"Spool:      {_said_spool(status['spool'])}"
    reload = status["reload"]
    if reload is None:
        yield "Reload:     none yet"
    else:
        yield f"Reload:     {_when(reload['time'])}, {'done' if reload['ok'] else 'refused:'}"
    for problem in reload["problems"] if reload else ():
        yield f"            {problem}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _lasting(seconds: float) -> str:
    """A time span as people say it: its two largest units."""
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {name}"
    return f"{seconds // 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _reload(options: argparse.Namespace) -> int:
    done = ask(_control_socket(options), "reload", 60.0)
    for problem in done["problems"]:
        print(f"gsmtpctl: reload refused, nothing has changed: {problem}", file=sys.stderr)
    for warning in done["warnings"]:
        print(f"gsmtpctl: warning: {warning}", file=sys.stderr)
    if not done["ok"]:
        return cli.EX_CONFIG
    print("reloaded")
    return cli.EX_OK


def _stop(options: argparse.Namespace) -> int:
    ask_to_stop(_control_socket(options), 60.0)
    print("stopped")
    return cli.EX_OK


def _init_db(options: argparse.Namespace) -> int:
    config = cli.load(options.config)
    if options.apply:
        cli.become_owner(config)
        print(app.make_tables(config))
        return cli.EX_OK
    for statement in app.schema(config):
        print(f"{statement};\n")
    return cli.EX_OK


if __name__ == "__main__":
    sys.exit(main())
