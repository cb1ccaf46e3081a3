"""What is built from a Config for handlers? Imported only where there are any."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256

from gsmtpd.app_store import make_bodies
from gsmtpd.config import Config
from gsmtpd.handlers.dispatcher import Dispatcher, Shared
from gsmtpd.handlers.hand import Plan
from gsmtpd.handlers.process import RefusedError, Runner, RunnerError, Task
from gsmtpd.policy.decision import Policy
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.outbox import Outbox, Session


def make_plans(config: Config) -> list[Plan]:
    """How each handler is run, in the order of the file."""
    chosen = config.handlers
    return [
        Plan(
            Task(
                each.name,
                each.class_name,
                chosen.directory,
                dict(each.settings),
                each.time_limit if each.time_limit is not None else chosen.time_limit,
                each.memory_limit or chosen.memory_limit,
                each.smarthost or chosen.smarthost,
                config.server.host_name,
            ),
            each.processes or chosen.processes,
            chosen.tries,
            chosen.pause,
        )
        for each in chosen.each
    ]


def make_dispatcher(config: Config, shared: Shared) -> Dispatcher:
    """What runs the handlers of the configuration, in a process of its own."""
    place = _place()
    owner = f"{place}{os.getpid()}.{_began(os.getpid())}"
    opener = partial(open_session, config)
    return Dispatcher(make_plans(config), opener, owner, place, _is_gone, shared)


def open_session(config: Config) -> Session:
    """A connection to the outbox, for one thread. Raises StoreError."""
    if config.store.backend == "sqlite":
        from gsmtpd.storage.sqlite_outbox import SQLiteSession

        return SQLiteSession(config.store.sqlite.path, make_bodies(config))
    if config.store.backend == "mysql":
        from gsmtpd.app_mysql import make_database
        from gsmtpd.storage.mysql_outbox import MySQLSession

        return MySQLSession(make_database(config), make_bodies(config))
    raise StoreError("[store] backend = null keeps no mail, and so no outbox")


def outbox_counts(config: Config) -> list[dict[str, object]]:
    """How much is there for each handler, by its state, as in a status. Raises StoreError."""
    session = open_session(config)
    try:
        counts = Outbox(session).counts()
    finally:
        session.close()
    names = ("handler", "state", "number")
    return [dict(zip(names, each, strict=True)) for each in counts]


def check(config: Config) -> Iterator[str]:
    """What is wrong with each handler that cannot be had, or not with its settings."""
    for plan in make_plans(config):
        runner = Runner(plan.task)
        try:
            runner.start()
        except (RefusedError, RunnerError) as error:
            yield f"{config.path}: [handlers] [[{plan.task.name}]]: {error}"
        finally:
            runner.end()


def unserved(config: Config, policy: Policy) -> Iterator[str]:
    """What of each `match` no mail can come for, as its domain is not accepted."""
    if policy.asks_domains:
        return
    for each in config.handlers.each:
        for item in each.match:
            domain = item.rpartition("@")[2] if "@" in item else "*"
            if "*" not in domain and not policy.domains.match(domain):
                yield (
                    f"{config.path}: [handlers] [[{each.name}]]: match: no mail comes for {item},"
                    " as its domain is not in [domains] accept"
                )


_PLACE = 9  # characters; of 32 for it, a process id, when that began, and the number of a thread


def _place() -> str:
    """This machine, since its last start, and this namespace of processes."""
    boot = ""
    # Not under systemd with ProcSubset=pid: then when a process began must do.
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read()
    facts = f"{socket.gethostname()}\n{boot}\n{os.readlink('/proc/self/ns/pid')}"
    return sha256(facts.encode()).hexdigest()[:_PLACE]


def _began(pid: int) -> str:
    """When the process began, in clock ticks; "" where there is none, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Its name, in parentheses, may hold anything.
            facts = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    # Nobody may have waited for it yet (proc(5): the states of what has ended).
    return "" if facts[0] in b"ZXx" else facts[19].decode()


def _is_gone(owner: str) -> bool:
    """Whether the process that called itself `owner`, here, is dead."""
    pid, began, *_ = [*owner[_PLACE:].split("."), ""]
    return not pid.isdigit() or not began or _began(int(pid)) != began
