"""What does the mail file of SQLite say of itself?"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from functools import partial
from urllib.parse import quote

from gsmtpd.storage import sqlite
from gsmtpd.storage.facts import Answer, Facts, ask_all


def ask_file(path: str, durable: bool, seconds: float) -> list[Facts]:
    """What the mail file at `path` says, within `seconds`; nothing is made.

    durable: whether gsmtpd syncs at each commit.
    """
    asked = {path: partial(_ask, path, durable, seconds)}
    return ask_all(asked, lambda error: str(sqlite.store_error(path, error)), seconds)


def _ask(path: str, durable: bool, seconds: float) -> Answer:
    where = f"file:{quote(os.path.abspath(path))}?mode=rw"
    with closing(sqlite3.connect(where, timeout=seconds, uri=True)) as connection:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        connection.execute("SELECT 1 FROM new_mail LIMIT 1").fetchone()
    # SQLite has this for each connection: it is what those of gsmtpd ask for.
    settings = {"journal_mode": str(mode), "synchronous": "FULL" if durable else "NORMAL"}
    return Answer(sqlite3.sqlite_version, settings)
