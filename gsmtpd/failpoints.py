"""Where in a message's life can gsmtpd be made to die, for a test of what survives?

Off, and free of any cost, unless gsmtpd is started with GSMTPD_FAILPOINTS=DIRECTORY: only then are
the methods wrapped that carry out the steps. A file DIRECTORY/STEP has the first process that
passes STEP take it away and do what it says:

    die             SIGKILL of that process
    stall SECONDS   sleep there
    raise           RuntimeError
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gsmtpd.maillog import MailLog
from gsmtpd.server.carrier import Carrier
from gsmtpd.server.connection import Connection
from gsmtpd.server.tcp import SMTPServer
from gsmtpd.smtp.framing import DataReader
from gsmtpd.smtp.transaction import Transaction
from gsmtpd.storage import writer
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_lane import MySQLLane
from gsmtpd.storage.mysql_pool import SteadyDBConnection
from gsmtpd.storage.mysql_table import MailTable
from gsmtpd.storage.spool import Spool
from gsmtpd.storage.sqlite import SQLiteStore

_log = logging.getLogger(__name__)


STEPS = {
    "connected": "a client has been accepted",
    "mail": "MAIL has been taken",
    "recipient": "a RCPT has been decided",
    "data": "DATA has been taken, and the message is coming in",
    "dot": "the message is whole",
    "queued": "it waits for a writer thread",
    "encoded": "what can be made before the transaction is made",
    "taken": "a thread that writes has taken its batch",
    "before_begin": "the transaction has not begun",
    "after_begin": "it has begun (MySQL)",
    "between_inserts": "one row of it is made (MySQL; rows are inserted one by one then)",
    "before_commit": "all rows are inserted (MySQL)",
    "committed": "the COMMIT is acknowledged",
    "handed_back": "the SMTP threads have been told (where one stores it itself: and reply)",
    "before_reply": "the reply is not made yet",
    "replied": "the reply is sent",
    "logged": "the mail log is written",
    "spooling": "a batch is about to go into the spool",
    "spooled": "it is in the spool",
    "draining": "mail of the spool is in the table, and about to be taken out of the spool",
    "drained": "it is out of the spool",
}

Pass = Callable[[str], None]


def arm(directory: str) -> None:
    """Wrap what carries out the steps, in this process, to look into `directory`."""
    passed = functools.partial(_passed, Path(directory))
    _around(SMTPServer, "finish_request", passed, after="connected")
    _around(Transaction, "__init__", passed, after="mail")
    _around(Connection, "_decide", passed, after="recipient")
    _around(DataReader, "__init__", passed, after="data")
    _around(Connection, "_take", passed, before="dot")
    _around(writer.GroupCommitWriter, "submit", passed, after="queued")
    _around(writer.GroupCommitWriter, "_enqueue", passed, after="encoded")
    _around(writer.GroupCommitWriter, "_write", passed, before="taken")
    for store in (MySQLStore, SQLiteStore):
        _around(store, "_transaction", passed, before="before_begin", after="committed")
    _around(SteadyDBConnection, "begin", passed, after="after_begin")
    _around(SteadyDBConnection, "commit", passed, before="before_commit")
    _around(Carrier, "_begin", passed, before="taken")
    _around(MySQLLane, "write", passed, before="before_begin", after="after_begin")
    _around(MySQLLane, "_commit", passed, before="before_commit")
    _around(MySQLLane, "done", passed, before="committed")
    _around(writer, "_hand_back", passed, after="handed_back")
    _around(Carrier, "_committed", passed, after="handed_back")
    _around(Connection, "_answer_message", passed, before="before_reply")
    _around(Connection, "finished", passed, after="replied")
    _around(MailLog, "flush", passed, after="logged")
    _around(Spool, "add", passed, before="spooling", after="spooled")
    _around(Spool, "remove", passed, before="draining", after="drained")
    _wrap_inserts(passed)
    _log.warning("failpoints are armed in %s", directory)


def _passed(directory: Path, step: str) -> None:
    """Do what a file for `step` says, if there is one and no other process took it."""
    file = directory / step
    if not file.exists():
        return
    with suppress(FileNotFoundError):
        action, _, argument = file.read_text().strip().partition(" ")
        file.unlink()
        _act(step, action, argument)


def _act(step: str, action: str, argument: str) -> None:
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stall":
        time.sleep(float(argument))
    else:
        raise RuntimeError(f"failpoint {step}")


def _around(owner: Any, name: str, passed: Pass, before: str = "", after: str = "") -> None:
    """Have `passed` called with the steps before and after what `owner` calls `name`."""
    wrapped = getattr(owner, name)

    @functools.wraps(wrapped)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        if before:
            passed(before)
        result = wrapped(*arguments, **named)
        if after:
            passed(after)
        return result

    setattr(owner, name, wrapper)


def _wrap_inserts(passed: Pass) -> None:
    def wrapper(self: MailTable, values: Iterable[bytes], limit: int) -> Iterator[list[bytes]]:
        for number, row in enumerate(values):
            if number:
                passed("between_inserts")
            yield [row]

    MailTable.groups = wrapper  # type: ignore[method-assign]
