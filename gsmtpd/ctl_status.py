"""How does the running gsmtpd do? gsmtpctl status."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from gsmtpd import cli
from gsmtpd.config import ConfigError
from gsmtpd.config import spool as spool_of
from gsmtpd.control import ask
from gsmtpd.ctl_arguments import control_socket
from gsmtpd.ctl_words import lasting, size, when
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.spool import look


def add(verbs: Any) -> None:
    """Add it to the commands."""
    status_ = verbs.add_parser("status", help="say how the running gsmtpd does")
    status_.add_argument("--json", action="store_true", help="as JSON, for programs")
    status_.set_defaults(run=status)


def status(options: argparse.Namespace) -> int:
    """gsmtpctl status: returns the exit code."""
    found = ask(control_socket(options), "status", 5.0)
    found["spool"] = _spool(options.config)
    print(json.dumps(found, indent=2) if options.json else "\n".join(said(found)))
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
    said = [f"{found['messages']} messages", f"{size(found['octets'])} of {size(found['most'])}"]
    if found["oldest"] is not None:
        said.append(f"oldest {lasting(max(0.0, time.time() - found['oldest']))}")
    if found["aside"]:
        said.append(f"{found['aside']} set aside")
    return ", ".join(said)


def said(status: dict[str, Any]) -> Iterator[str]:
    """The status for people, as lines."""
    yield f"gsmtpd {status['version']}, process {status['pid']}, {status['state']}"
    yield f"Since:      {when(status['began'])}, {lasting(time.time() - status['began'])}"
    yield f"Config:     {status['config']}"
    for listener in status["listeners"]:
        yield f"Listening:  {listener['address']} ({listener['name']})"
    for one in status["workers"]:
        about = f"{one['pid']}, {one['state']}, {lasting(one['seconds'])}"
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
        yield f"Reload:     {when(reload['time'])}, {'done' if reload['ok'] else 'refused:'}"
    for problem in reload["problems"] if reload else ():
        yield f"            {problem}"
