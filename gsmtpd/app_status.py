"""What is built from a Config for the HTTP server of [status]? Imported only where there is one."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gsmtpd import __version__, control
from gsmtpd.app_store import make_finder
from gsmtpd.config import Config, ConfigError
from gsmtpd.history import History
from gsmtpd.metrics import Counters

if TYPE_CHECKING:
    from gsmtpd.status.server import StatusServer

_NEEDED = {"aiohttp": "python3-aiohttp", "prometheus_client": "python3-prometheus-client"}
_ASK_WITHIN = 2.0  # seconds that the master has to answer


def check(path: str) -> None:
    """Whether what it needs is installed. path: of the configuration. Raises ConfigError.

    Nothing is imported: the master has no use for it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(_NEEDED[name] for name in missing)
        raise ConfigError(
            f"{path}: [status] listen: needs {' and '.join(missing)}; install the Debian"
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
        counters=shared.counters,
        history=shared.history,
        stored=shared.stored,
    )
    row = shared.counters.row(shared.row)
    return StatusServer(sockets, partial(make_application, parts), row)


def _ask(path: str, command: str, about: str) -> dict[str, object]:
    if not path:
        raise control.ControlError(
            "the master cannot be asked; set [server] control_socket to a path"
        )
    return control.ask(path, command, _ASK_WITHIN, about)
