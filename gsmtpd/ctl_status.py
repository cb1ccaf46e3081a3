"""How does the running gsmtpd do? What it says itself, its database, and what waits."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from typing import Any

from gsmtpd import app_store, cli, config, privileges
from gsmtpd.control import ask
from gsmtpd.ctl_arguments import control_socket
from gsmtpd.ctl_status_text import said
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.spool import look

_PATIENCE = 2.0  # seconds for databases, which are asked side by side

Found = dict[str, Any]


def add(verbs: Any) -> None:
    """Add it to the commands."""
    status_ = verbs.add_parser("status", help="say how the running gsmtpd does")
    status_.add_argument("--json", action="store_true", help="as JSON, for programs")
    status_.set_defaults(run=status)


def status(options: argparse.Namespace) -> int:
    """gsmtpctl status: returns the exit code."""
    found = ask(control_socket(options), "status", 5.0)
    found |= _beside(options.config, found.get("database", []))
    print(json.dumps(found, indent=2) if options.json else "\n".join(said(found)))
    return cli.EX_OK


def _beside(path: str, hosts: list[Found]) -> Found:
    """What the server does not say, by the configuration as it is now: no reason to fail.

    hosts: the database's as the server knows them.
    """
    found: Found = {"database": hosts, "spool": None, "outbox": None}
    try:
        chosen = config.load(path)
    except (config.ConfigError, privileges.PrivilegeError) as error:
        problem = str(error).partition("\n")[0]
        return found | {"spool": _spool(path), "config_problem": problem}
    waiting = _Aside(lambda: _outbox(chosen)) if chosen.handlers.each else None
    facts = app_store.database_facts(chosen, _PATIENCE)
    known = {host["host"]: host for host in hosts}
    for each in facts:
        entry = known.setdefault(each.host, {"host": each.host, "away": False})
        entry |= each._asdict() | {"risks": [*each.risks], "problem": each.problem or None}
    found["database"] = [*known.values()]
    found["spool"] = _spool(path)
    if waiting is not None:
        found["outbox"] = waiting.result()
    return found


class _Aside:
    """Something that is asked meanwhile, and not waited for when it is late."""

    def __init__(self, what: Callable[[], Found]) -> None:
        self._what = what
        self._found: Found = {"error": f"no answer within {_PATIENCE:g} s"}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._what()
        except Exception as error:
            self._found = {"error": str(error)}

    def result(self) -> Found:
        """What was found by now, or within the time that is left."""
        self._thread.join(_PATIENCE)
        return self._found


def _outbox(chosen: config.Config) -> Found:
    """How much handlers have still to do. Raises StoreError."""
    from gsmtpd.app_handlers import outbox_counts  # only where there are any

    return {"counts": outbox_counts(chosen)}


def _spool(path: str) -> Found | None:
    """What waits in the spool of that configuration; None if it has none."""
    try:
        folder, most = config.spool(path)
        if not folder:
            return None
        return {"path": folder, **look(folder, most)._asdict()}
    except (config.ConfigError, StoreError) as error:
        return {"error": str(error)}  # no reason not to tell the rest
