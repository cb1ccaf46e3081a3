"""What is the HTTP server given to show?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gsmtpd.history import History
from gsmtpd.storage.finder import Finder


class Parts(NamedTuple):
    """What gsmtpd has for the HTTP server.

    password: "" for none. hosts: names and addresses that are listened on. open_finder: makes what
    asks the store, for one thread; raises StoreError. ask_master: its answer to a command that is
    about something, or about ""; raises ControlError. database: what each host of the database says
    of itself. waiting: the "spool" and the "outbox" of a status. stored: the eventfd that is
    written behind each COMMIT.
    """

    version: str
    password: str
    hosts: tuple[str, ...]
    open_finder: Callable[[], Finder]
    ask_master: Callable[[str, str], dict[str, Any]]
    database: Callable[[], list[dict[str, Any]]]
    waiting: Callable[[], dict[str, Any]]
    history: History
    max_clients: int
    stored: int
