"""What do the hosts of MySQL and MariaDB say of themselves?"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from gsmtpd.storage.facts import Answer, Facts, ask_all
from gsmtpd.storage.mysql_connection import Database, Host, close, connect_to

_ASKED = ("version", "innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog", "read_only")
_OF_GALERA = ("wsrep_cluster_status", "wsrep_cluster_size", "wsrep_local_state_comment")


def ask_hosts(database: Database, strict: bool, seconds: float) -> list[Facts]:
    """What each host of `database` says, all asked at once and for `seconds` at most.

    strict: whether what loses acknowledged mail is a risk, or as it is wanted.
    """
    asked = {str(host): partial(_ask, host, database, strict, seconds) for host in database.hosts}
    return ask_all(asked, _said, seconds)


def _ask(host: Host, database: Database, strict: bool, seconds: float) -> Answer:
    connection = connect_to(host, database, math.ceil(seconds), seconds)
    try:
        with connection.cursor() as cursor:
            known = _shown(cursor, "VARIABLES", (*_ASKED, "wsrep_on"))
            galera = known.pop("wsrep_on", "OFF") == "ON"
            if galera:
                known |= {"wsrep_on": "ON", **_shown(cursor, "STATUS", _OF_GALERA)}
    finally:
        close(connection)
    if known.get("log_bin") != "ON":
        known.pop("sync_binlog", None)  # it syncs nothing
    return Answer(known.pop("version", ""), known, _risks(known, strict))


def _said(error: Exception) -> str:
    """The server's or the driver's own words."""
    return str(error.args[-1] if error.args else error)


def _shown(cursor: Any, what: str, names: tuple[str, ...]) -> dict[str, str]:
    """Variables or status values by their names, in the order of `names`."""
    marks = ", ".join(["%s"] * len(names))
    cursor.execute(f"SHOW GLOBAL {what} WHERE variable_name IN ({marks})", names)
    found = {str(name).lower(): str(value) for name, value in cursor.fetchall()}
    return {name: found[name] for name in names if name in found}


def _risks(settings: dict[str, str], strict: bool) -> list[str]:
    """What is not as docs/durability.md has it, or keeps mail from being stored."""
    right = {"read_only": "OFF", "wsrep_cluster_status": "Primary"}
    if strict:
        right |= {"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1"}
    found = [(name, settings.get(name, wanted), wanted) for name, wanted in right.items()]
    return [f"{name} is {value}, not {wanted}" for name, value, wanted in found if value != wanted]
