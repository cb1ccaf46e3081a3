"""What can be said on gsmtpd's command line?"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence

from gsmtpd import __version__, app, config, daemon
from gsmtpd.logs import SYSLOG, LogError, Logs
from gsmtpd.master import Master
from gsmtpd.storage.base import StoreError, StorePermissionError

# sysexits.h
EX_OK = 0
EX_USAGE = 2
EX_UNAVAILABLE = 69
EX_CANTCREAT = 73
EX_NOPERM = 77
EX_CONFIG = 78

UMASK = 0o027  # mail and logs are nobody else's to read
DEFAULT_CONFIG = "/etc/gsmtpd.conf"


class Stop(Exception):
    """End the program with `code`, after one line on stderr."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def parser() -> argparse.ArgumentParser:
    """The command line of gsmtpd."""
    made = argparse.ArgumentParser(
        prog="gsmtpd", description="Receive mail over SMTP and keep it in MySQL, MariaDB or SQLite."
    )
    made.add_argument("-c", metavar="FILE", dest="config", default=DEFAULT_CONFIG,
                      help="the configuration (default: %(default)s)")  # fmt: skip
    made.add_argument("-p", metavar="PORT", dest="port", type=_port,
                      help="listen on PORT instead of the configured ports")  # fmt: skip
    made.add_argument("-l", metavar="LOG", dest="log", help="write the log to the file LOG")
    made.add_argument("-v", dest="verbose", action="store_true", help="log more (level debug)")
    made.add_argument("-n", dest="foreground", action="store_true",
                      help="stay in the foreground and log to stderr")  # fmt: skip
    made.add_argument("-t", dest="test", action="store_true",
                      help="check the configuration and exit")  # fmt: skip
    made.add_argument("-T", dest="dump", action="store_true",
                      help="print the effective configuration and exit")  # fmt: skip
    made.add_argument("--version", action="version", version=f"gsmtpd {__version__}")
    return made


def _port(text: str) -> int:
    if text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port; say a number from 1 to 65535")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run gsmtpd; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except Stop as stop:
        print(f"gsmtpd: {stop}", file=sys.stderr)
        return stop.code


def load(
    path: str, port: int | None = None, log: str | None = None, verbose: bool = False
) -> config.Config:
    """The config at `path`, its warnings said on stderr. Raises Stop."""
    try:
        loaded = config.load(path, port=port, log_file=log, verbose=verbose)
    except config.ConfigError as error:
        raise Stop(EX_CONFIG, "\ngsmtpd: ".join(error.problems)) from error
    for warning in loaded.warnings:
        print(f"gsmtpd: warning: {warning}", file=sys.stderr)
    return loaded


def _run(options: argparse.Namespace) -> int:
    chosen = load(options.config, options.port, options.log, options.verbose)
    if options.dump:
        print(config.dump(chosen), end="")
        return EX_OK
    if options.test:
        print(f"{options.config}: the configuration is good")
        try:
            app.check_store(chosen)
        except StoreError as error:
            print(f"gsmtpd: warning: store: {error}", file=sys.stderr)
        return EX_OK
    return _serve(chosen, options.foreground)


def _serve(chosen: config.Config, foreground: bool) -> int:
    os.umask(UMASK)
    for unused in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(unused, signal.SIG_IGN)  # their default would end us
    _raise_descriptor_limit()
    logs = _open_logs(chosen, foreground)
    if chosen.store.backend == "sqlite":
        _check_sqlite(chosen)
    if foreground:
        return Master(chosen, _bind(chosen), logs).run()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # asks a daemon to reload, which is still to come
    try:
        pid_file = daemon.PidFile(chosen.server.pid_file)
    except daemon.PidFileError as error:
        raise Stop(EX_UNAVAILABLE if error.running else EX_CANTCREAT, str(error)) from error
    try:
        listeners = _bind(chosen)
    except Stop:
        pid_file.remove()
        raise
    kept = [*logs.descriptors, pid_file.descriptor, *(s.fileno() for s in listeners)]
    say_ready = daemon.detach(kept)
    pid_file.write()
    say_ready()
    try:
        return Master(chosen, listeners, logs, in_worker=pid_file.close).run()
    finally:
        pid_file.remove()


def _bind(chosen: config.Config) -> list[socket.socket]:
    try:
        return app.bind_listeners(chosen)
    except app.ListenError as error:
        raise Stop(EX_NOPERM if error.permission else EX_UNAVAILABLE, str(error)) from error


def _open_logs(chosen: config.Config, foreground: bool) -> Logs:
    path = chosen.log.file or ("-" if foreground else "")
    if not path and not os.path.exists(SYSLOG):
        print(
            f"gsmtpd: warning: no syslog at {SYSLOG}, so log lines are lost; set [log] file or -l",
            file=sys.stderr,
        )
    try:
        return Logs(path, chosen.log.level, chosen.log.format)
    except LogError as error:
        raise Stop(EX_CANTCREAT, str(error)) from error


def _check_sqlite(chosen: config.Config) -> None:
    """Make the mail file before the fork: unlike a database server it will not come by itself."""
    try:
        app.check_store(chosen)
    except StorePermissionError as error:
        raise Stop(EX_NOPERM, str(error)) from error
    except StoreError as error:
        raise Stop(EX_CANTCREAT, str(error)) from error


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
