"""What does the administrator want? File and environment -> frozen dataclasses, or ConfigError.

gsmtpd.configspec holds every key with its type and default, config_checks.py the types. Here the
file is read with configobj, every name is held against the spec, GSMTPD_SECTION_KEY variables are
laid over it, and all that is wrong is reported together, each with its line.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from configobj import ConfigObj  # type: ignore[import-untyped]

from gsmtpd import config_handlers, config_secrets, config_status, config_tls
from gsmtpd.config_checks import (
    CHECKS,
    Address,
    BodyAddress,
    Keep,
    MySQLHost,
    ValidateError,
    Validator,
    host_name,
    optional_path,
    written,
)
from gsmtpd.config_environment import DEFAULT_LISTENER, override, variable_of
from gsmtpd.config_file import (
    MANY,
    ConfigError,
    Place,
    Report,
    check_name,
    parse,
    settle,
)
from gsmtpd.config_types import (
    BodyConfig,
    CertificateConfig,
    ClientsConfig,
    Config,
    ContentConfig,
    DomainsConfig,
    HandlersConfig,
    HooksConfig,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    MySQLConfig,
    RecipientsConfig,
    ServerConfig,
    SQLiteConfig,
    StatusConfig,
    StoreConfig,
    TLSConfig,
)
from gsmtpd.wording import printable, shown

__all__ = [
    "Address", "BodyAddress", "BodyConfig", "CertificateConfig", "ClientsConfig", "Config",
    "ConfigError", "ContentConfig", "DomainsConfig", "HandlersConfig", "HooksConfig", "Keep",
    "LimitsConfig", "ListenerConfig", "LogConfig", "MySQLConfig", "MySQLHost", "RecipientsConfig",
    "SQLiteConfig", "ServerConfig", "StatusConfig", "StoreConfig", "TLSConfig",
    "control_socket", "dump", "load", "spool",
]  # fmt: skip

SPEC = Path(__file__).with_name("gsmtpd.configspec")

_LISTENER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FIELDS = {"address": "addresses", "host": "hosts", "class": "class_name"}  # that Python names so


def load(
    path: str,
    *,
    environ: Mapping[str, str] = os.environ,
    port: int | None = None,
    log_file: str | None = None,
    verbose: bool = False,
) -> Config:
    """The configuration in the file at `path`, with `environ` and the command line laid over it.

    port (-p) takes the place of every listener's, log_file (-l) of [log] file; verbose (-v) sets
    the level to debug. Raises ConfigError with everything that is wrong.
    """
    tree, report = parse(path)
    spec = _read_spec()
    settle(tree, spec, report)
    override(tree, spec, environ, report)
    _validate(tree, spec, report)
    listeners = _listeners(tree["listen"], port, report)
    tls = config_tls.certificates(tree["tls"], report)
    config_tls.check(listeners, tls, report)
    config_tls.check_memory(tree, report)
    mysql = tree["store"]["mysql"]
    password, secret_file = config_secrets.password(mysql, ("store", "mysql"), report)
    status, status_file = config_status.status(tree["status"], report)
    _check_backend(tree, report)
    handlers = config_handlers.handlers(tree, spec, report)
    if log_file is not None:
        tree["log"]["file"] = _log_file(log_file, report)
    report.raise_problems()
    if verbose:
        tree["log"]["level"] = "debug"
    mysql["password"] = password
    made = _build(os.path.abspath(path), tree, listeners, tls, handlers, status, report)
    secret_files = (secret_file, config_handlers.secret_file(handlers, report), status_file)
    return replace(
        made,
        secret_files=tuple(dict.fromkeys(os.path.abspath(file) for file in secret_files if file)),
        key_files=config_tls.key_files(listeners, tls),
    )


def control_socket(path: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where the gsmtpd with the file at `path` is asked, however wrong all else in it may be.

    Raises ConfigError if the file cannot be read at all.
    """
    return str(_only(path, environ, "server", "control_socket")[0])


def spool(path: str, environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """The directory of the spool, "" for none, and the bytes it may take. Raises ConfigError."""
    backend, folder, most = _only(path, environ, "store", "backend", "spool", "spool_size")
    return (folder if backend == "mysql" else ""), most


def _only(path: str, environ: Mapping[str, str], section: str, *keys: str) -> list[Any]:
    """The values of a few keys of a section. Raises ConfigError."""
    tree, report = parse(path)
    spec = _read_spec()
    settle(tree, spec, report)
    values = []
    for key in keys:
        check, place = spec[section][key], Place((section,), key)
        text = environ.get(variable_of(place), tree.get(section, {}).get(key))
        try:
            values.append(Validator(CHECKS).check(check, text, missing=text is None))
        except ValidateError as error:
            raise ConfigError(f"{path}: {place}: {error}") from error
    return values


def dump(config: Config) -> str:
    """The configuration as a file that load() reads back to an equal Config, but for the password.

    A password never appears in it; password_file does.
    """
    spec = _read_spec()
    lines = [f"# What gsmtpd makes of {printable(config.path)}"]
    for name in spec.sections:
        lines += ["", f"[{name}]"]
        values = None if name == "listen" else getattr(config, name)
        lines += _dumped(spec[name], values)
        for inner in spec[name].sections:
            if inner == MANY:
                named = {each.name: each for each in _many(config, name)}
            else:
                named = {inner: getattr(values, inner)}
            for title, each in named.items():
                lines += [f"[[{title}]]", *_dumped(spec[name][inner], each)]
                if name == "handlers":
                    lines += config_handlers.dumped(each)
    return "\n".join(lines) + "\n"


def _many(config: Config, section: str) -> tuple[Any, ...]:
    """What has a [[name]] of its own there."""
    if section == "handlers":
        return config.handlers.each
    return config.listeners if section == "listen" else config.tls.names


def _dumped(spec: Any, values: object) -> Iterator[str]:
    for key in spec.scalars:
        if key == MANY:
            continue
        if check_name(spec[key]) == "secret":
            yield f"# {key} is never shown"
        else:
            value = getattr(values, key if hasattr(values, key) else _FIELDS[key])
            yield f"{key} = {written(check_name(spec[key]), value)}".rstrip()


# The spec


def _read_spec() -> Any:
    return ConfigObj(
        str(SPEC),
        interpolation=False,
        list_values=False,
        raise_errors=True,
        file_error=True,
        encoding="utf-8",
        _inspec=True,
    )


# The values


def _validate(tree: Any, spec: Any, report: Report) -> None:
    """Turn every text in `tree` into its value, and put the defaults where nothing stands."""
    if "listen" not in tree:
        tree["listen"] = {DEFAULT_LISTENER: {}}
    tree.configspec = spec
    _collect(tree.validate(Validator(CHECKS), preserve_errors=True), (), report)


def _collect(result: Any, sections: tuple[str, ...], report: Report) -> None:
    """Report what validate() found."""
    for name, outcome in result.items() if isinstance(result, dict) else ():
        if isinstance(outcome, Exception):
            for problem in outcome.args:
                report.problem(Place(sections, name), problem)
        else:
            _collect(outcome, (*sections, name), report)


def _listeners(section: Any, port: int | None, report: Report) -> tuple[ListenerConfig, ...]:
    listeners: list[ListenerConfig] = []
    if not section.sections and not report.incomplete:
        report.problem(Place(("listen",)), "has no listener; write [[mx]] and below it an address")
    if port is not None and not 0 <= port <= 65535:
        report.add(f"-p {port}: is not a port; write 0 to 65535")
        port = None
    taken: dict[Address, str] = {}
    for name in section.sections:
        place = Place(("listen", name), "address")
        if not _LISTENER_NAME.fullmatch(name):
            wrong = "is not a name for a listener; write letters, digits, - and _ only"
            report.problem(Place(place.sections), wrong)
            continue
        if report.failed(place):
            continue
        addresses = section[name]["address"]
        if port is not None:
            addresses = tuple(dict.fromkeys(replace(a, port=port) for a in addresses))
        for address in addresses:
            other = taken.setdefault(address, name)
            if address.port and (other != name or addresses.count(address) > 1):
                report.problem(place, f"{address} is also in [[{other}]]; write it once")
        others = {key: text for key, text in section[name].items() if key != "address"}
        listeners.append(ListenerConfig(name, addresses, **others))
    return tuple(listeners)


def _check_backend(tree: Any, report: Report) -> None:
    """Is there what needs another [store] backend?"""
    for section in ("domains", "recipients"):
        if tree[section]["query"] and tree["store"]["backend"] == "null":
            wrong = "asks a database, and [store] backend is null; set that to sqlite or mysql"
            report.problem(Place((section,), "query"), wrong)
    backend = tree["store"]["backend"]
    if tree["store"]["spool"] and backend != "mysql":
        place = Place(("store",), "spool")
        report.warn(place, f"is for backend = mysql; mail for {backend} never waits there")


def _log_file(name: str, report: Report) -> str:
    """The file that -l names, by its full path: a daemon leaves the directory it is started in."""
    try:
        return optional_path(os.path.abspath(name) if name else "")
    except ValidateError as error:
        report.add(f"-l: {error}")
        return ""


def _build(
    path: str,
    tree: Any,
    listeners: tuple[ListenerConfig, ...],
    tls: TLSConfig,
    handlers: HandlersConfig,
    status: StatusConfig,
    report: Report,
) -> Config:
    """The values in `tree`, all of them good, as dataclasses: their fields are the spec's keys."""
    server, domains, store = tree["server"], tree["domains"], tree["store"]
    server["host_name"] = server["host_name"] or _this_host(report)
    if not domains["accept"] and not domains["query"]:
        domains["accept"] = tuple(dict.fromkeys((server["host_name"], "localhost")))
    mysql = dict(store["mysql"])
    return Config(
        path=path,
        server=ServerConfig(**server),
        listeners=listeners,
        tls=tls,
        domains=DomainsConfig(**domains),
        recipients=RecipientsConfig(**tree["recipients"]),
        clients=ClientsConfig(**tree["clients"]),
        limits=LimitsConfig(**tree["limits"]),
        content=ContentConfig(**tree["content"]),
        store=StoreConfig(
            **{key: store[key] for key in store.scalars},
            sqlite=SQLiteConfig(**store["sqlite"]),
            mysql=MySQLConfig(hosts=mysql.pop("host"), **mysql),
            body=BodyConfig(**store["body"]),
        ),
        hooks=HooksConfig(**tree["hooks"]),
        handlers=handlers,
        log=LogConfig(**tree["log"]),
        status=status,
        warnings=tuple(report.warnings),
    )


def _this_host(report: Report) -> str:
    """The full name of this machine, or the nearest to it that is a host name."""
    names = socket.getfqdn(), socket.gethostname()
    for name in names:
        try:
            good = host_name(name)
        except ValidateError:
            continue
        if good and not good.endswith(".arpa"):  # what reverse DNS may give for ::1
            return good
    place = Place(("server",), "host_name")
    report.warn(
        place, f"{shown(names[0])}, the name of this machine, is no host name; set one here"
    )
    return "localhost"
