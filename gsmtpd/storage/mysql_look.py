"""What are the mail table and the server's settings like? Asked before the first mail is stored."""

from __future__ import annotations

import logging
from typing import Any

from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_table import Column

_log = logging.getLogger(__name__)


def read_columns(cursor: Any, table: str) -> list[Column]:
    """The columns of `table` in the current database. Raises StoreError."""
    cursor.execute(
        "SELECT column_name, character_maximum_length, character_set_name,"
        " is_nullable = 'NO' AND column_default IS NULL"
        " AND extra NOT LIKE '%%auto_increment%%', data_type"
        " FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s",
        (table,),
    )
    columns = [
        Column(str(name), width, charset, bool(needs_value), str(kind).lower())
        for name, width, charset, needs_value, kind in cursor.fetchall()
    ]
    if not columns:
        # Nothing is seen without rights on the table: ask it, for the error that says which.
        cursor.execute(f"SELECT 1 FROM `{table}` LIMIT 0")
        raise StoreError(f"table {table}: its columns cannot be read")
    return columns


def check_settings(cursor: Any, table: str, warn: bool, strict: bool) -> int:
    """The server's max_allowed_packet in octets.

    warn: say in the log what is wrong; strict: also where acknowledged mail can be lost.
    """
    cursor.execute(
        "SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog, @@read_only,"
        " @@max_allowed_packet, (SELECT engine FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND table_name = %s)",
        (table,),
    )
    flush, log_bin, sync_binlog, read_only, packet, engine = cursor.fetchone()
    if warn and int(read_only):
        _log.warning("mysql: the server is read-only")
    for bad, text in (
        (str(engine).lower() != "innodb", f"table {table} is {engine}, not InnoDB"),
        (int(flush) != 1, f"innodb_flush_log_at_trx_commit is {flush}, not 1"),
        (int(log_bin) and int(sync_binlog) != 1, f"sync_binlog is {sync_binlog}, not 1"),
    ):
        if bad and warn and strict:
            _log.warning("mysql: DURABILITY: %s; acknowledged mail can be lost", text)
    return int(packet)
