"""What is built from a Config for the HTTP server of [status]? Imported only where there is one."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gsmtpd import __version__, control
from gsmtpd.app_store import database_facts, make_finder, spool_of
from gsmtpd.config import Config, ConfigError
from gsmtpd.history import History
from gsmtpd.metrics import Counters
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.spool import look

if TYPE_CHECKING:
    from gsmtpd.status.server import StatusServer

_NEEDED = {"aiohttp": "python3-aiohttp", "prometheus_client": "python3-prometheus-client"}
_ASK_WITHIN = 2.0  # seconds that the master has to answer


def check(said_by: str) -> None:
    """Whether what it needs is installed. said_by: who wants it, for people. Raises ConfigError.

    Nothing is imported: the master has no use for it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(_NEEDED[name] for name in missing)
        raise ConfigError(
            f"{said_by}: [status] listen: needs {' and '.join(missing)}; install the Debian"
            f" package{'s' * (len(missing) > 1)} {packages}, or gsmtpd[status] by pip"
        )


class Shared(NamedTuple):
    """What the process shares with others. row: its own of the counters. stored: see app.Share."""

    counters: Counters
    history: History
    row: int
    stored: int


def make_status(config: Config, sockets: Sequence[socket.socket], shared: Shared) -> StatusServer:
    """What serves [status] on `sockets`, in a process of its own."""
    from gsmtpd.status.application import make_application
    from gsmtpd.status.parts import Parts
    from gsmtpd.status.server import StatusServer

    chosen = config.status
    parts = Parts(
        version=__version__,
        password=chosen.password,
        hosts=tuple(address.host for address in chosen.listen),
        open_finder=partial(make_finder, config),
        ask_master=partial(_ask, config.server.control_socket),
        database=partial(_database, config),
        waiting=partial(_waiting, config),
        history=shared.history,
        max_clients=config.limits.max_clients,
        stored=shared.stored,
    )
    row = shared.counters.row(shared.row)
    return StatusServer(sockets, partial(make_application, parts), row)


def _database(config: Config) -> list[dict[str, Any]]:
    """What each host of the database says of itself, as in a status."""
    return [
        facts._asdict() | {"risks": [*facts.risks], "problem": facts.problem or None}
        for facts in database_facts(config)
    ]


def _waiting(config: Config) -> dict[str, Any]:
    """What waits in the spool, and for handlers; None each where there are none."""
    spool: dict[str, Any] | None = None
    outbox: dict[str, Any] | None = None
    if folder := spool_of(config):
        try:
            spool = {"path": folder, **look(folder, config.store.spool_size)._asdict()}
        except StoreError as error:
            spool = {"error": str(error)}
    if config.handlers.each:
        try:
            outbox = {"counts": _outbox(config)}
        except StoreError as error:
            outbox = {"error": str(error)}
    return {"spool": spool, "outbox": outbox}


def _outbox(config: Config) -> list[dict[str, Any]]:
    from gsmtpd.app_handlers import outbox_counts  # only where there are any

    return outbox_counts(config)


def _ask(path: str, command: str, about: str) -> dict[str, object]:
    if not path:
        raise control.ControlError(
            "the master cannot be asked; set [server] control_socket to a path"
        )
    return control.ask(path, command, _ASK_WITHIN, about)
