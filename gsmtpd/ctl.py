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

from gsmtpd import __version__, app, cli
from gsmtpd.config import ConfigError, control_socket
from gsmtpd.control import ControlError, ask, ask_to_stop
from gsmtpd.storage.base import MailReader, StoredMail, StoreError, StorePermissionError

_TAIL_PAUSE = 0.5  # seconds between two looks for new mail


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

    listing = verbs.add_parser("list", help="list the newest mails")
    listing.add_argument("-n", metavar="N", dest="limit", type=_count, default=20,
                         help="how many (default: %(default)s)")  # fmt: skip
    listing.set_defaults(run=_list)

    show = verbs.add_parser("show", help="show one mail")
    show.add_argument("id", metavar="ID", type=_count, help="its number in the list")
    show.add_argument("--raw", action="store_true", help="its bytes as stored, and nothing else")
    show.set_defaults(run=_show)

    tail = verbs.add_parser("tail", help="list mails as they come in, until interrupted")
    tail.add_argument("-n", metavar="N", dest="limit", type=_count, default=5,
                      help="how many earlier ones first (default: %(default)s)")  # fmt: skip
    tail.set_defaults(run=_tail)
    return made


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")


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
    print(json.dumps(status, indent=2) if options.json else "\n".join(_said(status)))
    return cli.EX_OK


def _said(status: dict[str, Any]) -> Iterator[str]:
    """The status for people."""
    yield f"gsmtpd {status['version']}, process {status['pid']}, {status['state']}"
    yield f"Since:      {_when(status['began'])}, {_lasting(time.time() - status['began'])}"
    yield f"Config:     {status['config']}"
    for listener in status["listeners"]:
        yield f"Listening:  {listener['address']} ({listener['name']})"
    for one in status["workers"]:
        yield (
            f"Worker:     {one['pid']}, {one['state']}, {_lasting(one['seconds'])},"
            f" clients: {one['clients']}, accepted: {one['accepted']}"
        )
    yield f"Replaced:   {status['replaced']} workers that had died"
    yield f"Clients:    {status['clients']} of {status['max_clients']}"
    yield f"Sent away:  {status['turned_away']} clients, for max_clients"
    size = status["received_bytes"]
    yield f"Messages:   {status['accepted']} accepted ({size} bytes), {status['refused']} refused"
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


def _list(options: argparse.Namespace) -> int:
    config = cli.load(options.config)
    reader = app.make_reader(config)
    mails = reader.recent(options.limit)
    reader.close()
    if not mails:
        print("no mail yet", file=sys.stderr)
        return cli.EX_OK
    _print_head()
    for mail in mails:
        _print_mail(mail)
    return cli.EX_OK


def _show(options: argparse.Namespace) -> int:
    config = cli.load(options.config)
    reader = app.make_reader(config)
    found = reader.mail(options.id)
    reader.close()
    if found is None:
        raise cli.Stop(cli.EX_UNAVAILABLE, f"no mail {options.id}; see: gsmtpctl list")
    mail, content = found
    if options.raw:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return cli.EX_OK
    for name, value in (
        ("Id", f"{mail.mail_id} ({mail.hash})"),
        ("Date", f"{mail.date} UTC"),
        ("From", f"{mail.from_} (reverse-path <{mail.return_path}>)"),
        ("To", mail.to if mail.to == mail.recipient else f"{mail.to} (sent to {mail.recipient})"),
        ("Subject", mail.subject),
        ("Client", f"{mail.ip_addr} ({mail.helo})"),
        ("Size", f"{mail.size} bytes"),
    ):
        print(f"{name + ':':9}{printable(value)}")
    print()
    for line in content.decode("utf-8", "replace").split("\n"):
        print(printable(line.rstrip("\r"), keep="\t"))
    return cli.EX_OK


def _tail(options: argparse.Namespace) -> int:
    config = cli.load(options.config)
    reader = app.make_reader(config)
    mails = reader.recent(max(options.limit, 1))
    seen = mails[-1].mail_id if mails else 0
    _print_head()
    for mail in mails[-options.limit :] if options.limit else []:
        _print_mail(mail)
    _follow(reader, seen)
    return cli.EX_OK


def _follow(reader: MailReader, seen: int) -> None:
    while True:
        mails = reader.after(seen)
        for mail in mails:
            _print_mail(mail)
            seen = mail.mail_id
        sys.stdout.flush()
        if not mails:
            time.sleep(_TAIL_PAUSE)


def printable(text: str, keep: str = "") -> str:
    """`text` with what a terminal would obey as "?"; mail is written by strangers."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def _print_head() -> None:
    print(f"{'ID':>6}  {'DATE (UTC)':19}  {'SIZE':>8}  {'FROM':28}  {'TO':28}  SUBJECT")


def _print_mail(mail: StoredMail) -> None:
    sender = mail.from_ or "<>"
    print(
        f"{mail.mail_id:6}  {mail.date:19}  {mail.size:8}  {printable(sender):28}"
        f"  {printable(mail.recipient):28}  {printable(mail.subject)}"
    )


if __name__ == "__main__":
    sys.exit(main())
