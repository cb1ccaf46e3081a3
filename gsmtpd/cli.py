"""What can be said on gsmtpd's command line?"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gsmtpd import __version__, app, app_policy, config, daemon, privileges, worker
from gsmtpd.app_listen import make_certificates
from gsmtpd.logs import SYSLOG, LogError, Logs, SysLog
from gsmtpd.master import Master
from gsmtpd.metrics import Counters
from gsmtpd.policy.crowd import Crowd
from gsmtpd.policy.files import PolicyFiles
from gsmtpd.policy.lists import ListError
from gsmtpd.server.certificates import CertificateError, Certificates
from gsmtpd.server.listeners import Listener, ListenError, adopt_passed, open_listeners
from gsmtpd.server.stdio import StdioClient, StdioError
from gsmtpd.smtp import reply
from gsmtpd.storage.base import StoreError, StorePermissionError
from gsmtpd.systemd import ActivationError, Notifier, passed_sockets
from gsmtpd.workers import Setup

_log = logging.getLogger(__name__)

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
                      help="stay in the foreground, and log to stderr by default")  # fmt: skip
    made.add_argument("--inetd", dest="inetd", action="store_true",
                      help="serve one client on stdin and stdout, as inetd, xinetd or systemd's"
                      " Accept=yes start it")  # fmt: skip
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
    said = sys.argv[1:] if arguments is None else arguments
    try:
        if "--inetd" in said:
            return _inetd(said)  # before anything can print: xinetd gives the client as stderr, too
        open_standard_files()
        return _run(parser().parse_args(said))
    except Stop as stop:
        print(f"gsmtpd: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:
        # The system has no more processes, descriptors or memory.
        print(f"gsmtpd: cannot start: {error}", file=sys.stderr)
        return EX_UNAVAILABLE


def open_standard_files() -> None:
    """Open what is closed of stdin, stdout and stderr: other files would be taken for them."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def _inetd(arguments: Sequence[str]) -> int:
    """Serve the client on stdin; what goes wrong is no client's to read."""
    try:
        client = StdioClient()
    except StdioError as error:
        if not error.log_to_stderr:
            SysLog().write(str(error), logging.ERROR)
        raise Stop(EX_USAGE, str(error)) from error
    try:
        chosen, _ = _chosen(_options(arguments))
        os.umask(UMASK)
        return _serve_one(chosen, client)
    except Stop as stop:
        if not client.log_to_stderr:
            SysLog().write(str(stop), logging.ERROR)
        client.refuse(reply.UNAVAILABLE.wire)
        raise


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Those of --inetd. Raises Stop where argparse would print and exit."""
    try:
        return parser().parse_args(arguments)
    except SystemExit as error:
        wrong = f"cannot use the arguments {' '.join(arguments)}; see: gsmtpd --help"
        raise Stop(EX_USAGE, wrong) from error


def _serve_one(chosen: config.Config, client: StdioClient) -> int:
    _become(_intended(chosen))
    policy, certificates = make_policy(chosen), _make_certificates(chosen)
    logs = _prepare(chosen, client.log_to_stderr)
    logs.install()
    if not client.log_to_stderr:  # else they were said there
        for warning in chosen.warnings:
            _log.warning("%s", warning)
    counters = Counters()
    crowd = Crowd(1)
    share = app.Share(counters, counters.take(app.threads(chosen)), crowd.seat(crowd.take()))
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        engine = app.make_engine(chosen, [], policy, certificates, share, logs, first=True)
    except config.ConfigError as error:
        raise Stop(EX_CONFIG, str(error)) from error
    worker.run_one(engine, client, logs)
    return EX_OK


def load(path: str) -> config.Config:
    """The config at `path`, its warnings said on stderr. Raises Stop."""
    return _said(partial(config.load, path))


def _said(read: Callable[[], config.Config]) -> config.Config:
    try:
        loaded = read()
    except config.ConfigError as error:
        raise Stop(EX_CONFIG, "\ngsmtpd: ".join(error.problems)) from error
    except privileges.PrivilegeError as error:
        raise Stop(EX_CONFIG, str(error)) from error
    for warning in loaded.warnings:
        print(f"gsmtpd: warning: {warning}", file=sys.stderr)
    return loaded


def _run(options: argparse.Namespace) -> int:
    chosen, load_again = _chosen(options)
    if options.dump:
        print(config.dump(chosen), end="")
        return EX_OK
    identity = _intended(chosen)
    if options.test:
        return _test(chosen, identity)
    # Until the master takes them: they would end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
    os.umask(UMASK)
    _raise_descriptor_limit()
    return _serve(chosen, identity, load_again, options.foreground)


def _chosen(options: argparse.Namespace) -> tuple[config.Config, Callable[[], config.Config]]:
    """The config, and what reads it again. Raises Stop."""
    # A daemon reads them again from another directory.
    try:
        path = os.path.abspath(options.config)
        log = os.path.abspath(options.log) if options.log else options.log
    except FileNotFoundError:
        raise Stop(EX_USAGE, "the current directory is gone; go to another one") from None
    load_again = partial(_load, path, options.port, log, options.verbose)
    return _said(load_again), load_again


def _test(chosen: config.Config, identity: privileges.Identity) -> int:
    """What can be said of a configuration as the user it is for."""
    os.umask(UMASK)
    _become(identity)
    for problem in _unreadable(chosen, identity):
        print(f"gsmtpd: warning: {problem}", file=sys.stderr)
    policy = make_policy(chosen)
    _check_hooks(chosen)
    for complaint in (*_complaints(_make_certificates(chosen)), *_unserved(chosen, policy)):
        print(f"gsmtpd: warning: {complaint}", file=sys.stderr)
    _check_handlers(chosen)
    print(f"{chosen.path}: the configuration is good")
    try:
        app.check_store(chosen)
        app.check_queries(chosen)
    except StoreError as error:
        print(f"gsmtpd: warning: store: {error}", file=sys.stderr)
    return EX_OK


def _check_handlers(chosen: config.Config) -> None:
    """Whether each handler can be had. Raises Stop."""
    if chosen.handlers.each:
        from gsmtpd import app_handlers  # only where there are any

        if wrong := list(app_handlers.check(chosen)):
            raise Stop(EX_CONFIG, "\ngsmtpd: ".join(wrong))


def _unserved(chosen: config.Config, policy: PolicyFiles) -> list[str]:
    if not chosen.handlers.each:
        return []
    from gsmtpd import app_handlers

    return list(app_handlers.unserved(chosen, policy.current))


def _load(path: str, port: int | None, log: str | None, verbose: bool) -> config.Config:
    """The config, fit for a daemon. Raises ConfigError or PrivilegeError."""
    loaded = config.load(path, port=port, log_file=log, verbose=verbose)
    for secret in loaded.secret_files:
        privileges.check_secret(secret, _identity(loaded))
    for key in loaded.key_files:
        privileges.check_key(key)
    try:
        # Whose libraries may be missing.
        app.make_body_store(loaded)
        app_policy.make_blocklists(loaded)
        app.check_status(loaded)
    except StoreError as error:
        raise config.ConfigError(f"{loaded.path}: {error}") from error
    return loaded


def make_policy(chosen: config.Config) -> PolicyFiles:
    """Who may receive, from whom. Raises Stop for a mistake in the file of a list."""
    try:
        return app_policy.make_policy(chosen)
    except ListError as error:
        raise Stop(EX_CONFIG, "\ngsmtpd: ".join(error.problems)) from error


def _make_certificates(chosen: config.Config) -> Certificates | None:
    """Those for TLS. Raises Stop."""
    try:
        return make_certificates(chosen)
    except CertificateError as error:
        raise Stop(EX_CONFIG, f"[tls] {error}") from error


def _check_hooks(chosen: config.Config) -> None:
    """Raises Stop where they cannot be had. Not as root: it is code of the administrator's."""
    try:
        app.check_hooks(chosen)
    except config.ConfigError as error:
        raise Stop(EX_CONFIG, str(error)) from error


def _complaints(certificates: Certificates | None) -> list[str]:
    return [] if certificates is None else certificates.complaints()


def _identity(chosen: config.Config) -> privileges.Identity:
    return privileges.intended(chosen.server.user, chosen.server.group)


def _serve(
    chosen: config.Config,
    identity: privileges.Identity,
    load_again: Callable[[], config.Config],
    foreground: bool,
) -> int:
    """Bind as root, then become `identity`; all else is done as that."""
    notifier = Notifier()
    listeners, status = _bind(chosen)
    for held in (*listeners, *status) if os.geteuid() == 0 else ():
        # The kernel lets sockets of one user only share a port, see open_listeners.
        os.fchown(held.socket.fileno(), identity.uid, identity.gid)
    for path in (chosen.server.pid_file, chosen.server.control_socket):
        privileges.make_directory(os.path.dirname(path), identity)
    _become(identity)
    if foreground:
        setup = _setup(chosen, identity, listeners, status, True)
        return Master(setup, load_again, notifier, True).run()
    pid_file = _pid_file(chosen)
    try:
        setup = _setup(chosen, identity, listeners, status, False)
        if pid_file.stale:
            _log.warning(
                "took over the pid file of process %s, which has not ended well", pid_file.stale
            )
        kept = [*setup.logs.descriptors, pid_file.descriptor]
        sockets = [held.socket.fileno() for held in (*listeners, *status)]
        caller = daemon.detach([*kept, *sockets])
        pid_file.write()
        return _run_daemon(setup, load_again, notifier, pid_file, caller)
    finally:
        pid_file.remove()


def _setup(
    chosen: config.Config,
    identity: privileges.Identity,
    listeners: list[Listener],
    status: list[Listener],
    foreground: bool,
) -> Setup:
    """What the first workers are made from, its logs in use. Raises Stop."""
    policy, certificates = make_policy(chosen), _make_certificates(chosen)
    _check_hooks(chosen)
    logs = _prepare(chosen, foreground)
    setup = Setup(chosen, listeners, logs, policy, certificates, status)
    setup.logs.install()
    # A log that cannot be written is complained of on stderr, and soon that is nobody's.
    _log.info("gsmtpd %s starts", __version__)
    _warn_of_user(chosen, identity)
    _warn_of_control(chosen)
    for complaint in (*_complaints(certificates), *_unserved(chosen, policy)):
        _log.warning("%s", complaint)
    return setup


def _run_daemon(
    setup: Setup,
    load_again: Callable[[], config.Config],
    notifier: Notifier,
    pid_file: daemon.PidFile,
    caller: daemon.Caller,
) -> int:
    try:
        return Master(
            setup,
            load_again,
            notifier,
            foreground=False,
            on_ready=caller.say_ready,
            in_worker=partial(_close, pid_file, caller),
        ).run()
    except Exception:
        _log.exception("gsmtpd ends by a fault")  # stderr is nobody's to read
        raise


def _close(*masters: daemon.PidFile | daemon.Caller) -> None:
    """In a worker: what is the master's alone."""
    for one in masters:
        one.close()


def _intended(chosen: config.Config) -> privileges.Identity:
    try:
        return _identity(chosen)
    except privileges.PrivilegeError as error:
        raise Stop(EX_CONFIG, str(error)) from error


def become_owner(chosen: config.Config) -> None:
    """As root, become the user who must be able to write the mail file. Raises Stop."""
    if chosen.store.backend == "sqlite":
        _become(_intended(chosen))


def _become(identity: privileges.Identity) -> None:
    try:
        if os.geteuid() != 0:
            privileges.confine()
            return
        privileges.become(identity)
        privileges.check_program(__file__)
    except (OSError, privileges.PrivilegeError) as error:
        raise Stop(EX_NOPERM, str(error)) from error


def _warn_of_user(chosen: config.Config, identity: privileges.Identity) -> None:
    """A reload reads the configuration again, as whom we are by now."""
    if identity.uid == 0:
        _log.warning("running as root, as [server] user says")
    for problem in _unreadable(chosen, identity):
        _log.warning("%s", problem)


def _warn_of_control(chosen: config.Config) -> None:
    path = chosen.server.control_socket
    if path and not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        print(
            f"gsmtpd: warning: cannot make the control socket {path}, so gsmtpctl status, reload"
            " and stop will not reach this server; set [server] control_socket",
            file=sys.stderr,
        )


def _unreadable(chosen: config.Config, identity: privileges.Identity) -> Iterator[str]:
    for path in dict.fromkeys((chosen.path, *chosen.secret_files)):
        if not os.access(path, os.R_OK):
            yield (
                f"{path} cannot be read as the user {identity.user}, so a reload will be refused,"
                " and a start by systemd as that user;"
                f" cure it with: chgrp {identity.group} {path} && chmod 640 {path}"
            )


def _pid_file(chosen: config.Config) -> daemon.PidFile:
    try:
        return daemon.PidFile(chosen.server.pid_file)
    except daemon.PidFileError as error:
        raise Stop(EX_UNAVAILABLE if error.running else EX_CANTCREAT, str(error)) from error


def _bind(chosen: config.Config) -> tuple[list[Listener], list[Listener]]:
    """The sockets of the listeners, and those of [status]. Raises Stop."""
    addresses = app.wanted(chosen)
    try:
        passed = adopt_passed(addresses, passed_sockets())
        return open_listeners(addresses, passed), app.open_status(chosen)
    except ActivationError as error:
        raise Stop(EX_UNAVAILABLE, str(error)) from error
    except ListenError as error:
        pid = daemon.runs_as(chosen.server.pid_file)
        if pid is not None:
            said = daemon.already_running(pid, chosen.server.pid_file)
            raise Stop(EX_UNAVAILABLE, str(said)) from error
        raise Stop(EX_NOPERM if error.permission else EX_UNAVAILABLE, str(error)) from error


def _prepare(chosen: config.Config, foreground: bool) -> Logs:
    """What must be there before the first worker: the mail file, and the logs, which it opens."""
    if not foreground and not chosen.log.file and not os.path.exists(SYSLOG):
        print(
            f"gsmtpd: warning: no syslog at {SYSLOG}, so log lines are lost; set [log] file or -l",
            file=sys.stderr,
        )
    try:
        app.prepare_store(chosen)
        return app.make_logs(chosen, foreground)
    except LogError as error:
        raise Stop(EX_CANTCREAT, str(error)) from error
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
