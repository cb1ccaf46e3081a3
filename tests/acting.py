"""How do tests have handlers act? In a real daemon, and with handlers in plain files.

A handler waits for a test by files in the directory `signs`, which is its setting of that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.accounting import Mail, Table
from tests.servers import Gsmtpd, wait_for

SOON = {"tries": 2, "pause": "100ms", "time_limit": "1s", "processes": 1}


class Entry(NamedTuple):
    """A row of the outbox."""

    outbox_id: int
    delivery: str
    handler: str
    hash: str
    recipient: str
    state: str
    tries: int
    owner: str
    reason: str


_COLUMNS = ", ".join(f"`{name}`" for name in Entry._fields)


def outbox(table: Table) -> list[Entry]:
    """All that is in it, in the order of its numbers."""
    found = table.query(f"SELECT {_COLUMNS} FROM mail_outbox ORDER BY outbox_id")
    return [Entry(*row) for row in found]


def settled(table: Table, seconds: float = 60.0) -> list[Entry]:
    """Wait until nothing waits any more; what is dead. Raises NotYetError."""
    waiting = "SELECT COUNT(*) FROM mail_outbox WHERE state = 'waiting'"
    wait_for(lambda: table.query(waiting)[0][0] == 0, seconds)
    return outbox(table)


def notes(table: Table) -> list[tuple[str, str, str, str]]:
    """What handlers have noted: the recipient, the handler, the name and the value."""
    return table.query("SELECT recipient, handler, name, value FROM mail_note ORDER BY note_id")


def to(recipient: str, subject: str = "", sender: str = "joe@example.org", **fields: str) -> Mail:
    """A small mail. fields: header fields by name, with _ for -."""
    named = {"Subject": subject} | {name.replace("_", "-"): fields[name] for name in fields}
    header = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return Mail(f"{header}\r\nHello\r\n".encode(), (recipient,), sender)


def acting(directory: Path, code: str = "", **each: dict[str, Any]) -> dict[str, Any]:
    """Settings with handlers. code: of the module "own" in `directory`. each: their sections."""
    directory.chmod(0o755)
    if code:
        (directory / "own.py").write_text(code)
    return {"handlers": {"directory": directory, **SOON, **each}}


def dispatcher(daemon: Gsmtpd) -> int:
    """The process that runs handlers."""
    (found,) = (each["pid"] for each in daemon.status()["workers"] if each["role"] == "handlers")
    return int(found)


def runners(daemon: Gsmtpd) -> list[int]:
    """The processes of handlers, and what they have started."""
    return [pid for pid in daemon.pids() if pid not in (daemon.pid, *daemon.workers)]
