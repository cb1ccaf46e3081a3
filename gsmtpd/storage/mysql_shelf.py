"""How is old mail found and deleted in MySQL and MariaDB?

Whatever the table lacks is found out before any mail is touched, and said once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pymysql

from gsmtpd.complaints import Complaints
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_connection import DENIED, code_of
from gsmtpd.storage.mysql_link import Link
from gsmtpd.storage.shelf import ATTACHMENTS, Deleted, Found, SQLShelf

_LOOK_AGAIN = 600.0  # seconds; by then somebody may have made the index or the table that lacked
_MOMENTS = ("datetime", "timestamp")


class _Layout(NamedTuple):
    """What a table of MySQL is like. date_index: the one that begins with `date`."""

    date_index: str
    has_recipient: bool
    recipient_width: int | None
    has_attachments: bool
    is_partitioned: bool


class MySQLShelf(SQLShelf):
    """The mail table of `link.database`."""

    step_seconds = 0.010
    opened = 1

    def __init__(self, link: Link) -> None:
        super().__init__(link.database.table, "%s")
        self._link = link
        self._complaints = Complaints("keep")
        self._layout: _Layout | None = None
        self._looked = (0, 0.0)  # at which connection, and when

    def ready(self) -> bool:
        """Whether it is ours to purge. Raises StoreError where that cannot be done."""
        if not self._link.alone():
            return False
        self.look()
        return True

    def look(self) -> None:
        """Learn what the table is like now. Raises StoreError."""
        made, at = self._looked
        if self._layout is None or made != self._link.made or time.monotonic() > at + _LOOK_AGAIN:
            self._layout = None
            self._layout = self._read()
            self._hint = f" FORCE INDEX (`{self._layout.date_index.replace('`', '``')}`)"
            self._looked = (self._link.made, time.monotonic())

    @property
    def has_recipient(self) -> bool:
        """Whether it has the column `recipient`."""
        return self._known.has_recipient

    @property
    def recipient_width(self) -> int | None:
        """Characters of `recipient`."""
        return self._known.recipient_width

    @property
    def is_partitioned(self) -> bool:
        """Whether it has partitions."""
        return self._known.is_partitioned

    @property
    def has_attachments(self) -> bool:
        """Whether there is the table of attachments, and rows may be deleted there."""
        return self._known.has_attachments

    def delete(self, rows: Sequence[Found]) -> Deleted:
        """Delete `rows` with their attachments, all or nothing."""
        began = time.perf_counter()
        attached = self._attached([row.mail_id for row in rows])
        sql, arguments = self._delete_sql(rows)
        with self._link.transaction():
            deleted = self._link.execute(sql, *arguments)
            if attached:
                self._detach(attached, all_gone=deleted == len(rows))
            seconds = time.perf_counter() - began
        return Deleted(deleted, seconds)

    def pressure(self) -> float:
        """How full MariaDB's redo log is. When it is, all wait until pages are on the disk."""
        found = {
            str(name): int(value)
            for name, value in self._ask(
                "SHOW GLOBAL STATUS WHERE Variable_name IN"
                " ('Innodb_checkpoint_age', 'Innodb_checkpoint_max_age')"
            )
        }
        return found.get("Innodb_checkpoint_age", 0) / found.get("Innodb_checkpoint_max_age", 1)

    @property
    def _known(self) -> _Layout:
        assert self._layout is not None, "ready() comes first"
        return self._layout

    def _ask(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        return self._link.rows(sql, *arguments)

    def _attached(self, ids: Sequence[int]) -> list[int]:
        """Those of `ids` that have attachments: where nothing is, nothing is to be locked."""
        if not self._known.has_attachments:
            return []
        sql = f"SELECT DISTINCT `mail_id` FROM `{ATTACHMENTS}` WHERE {self._among(ids)}"
        return [mail_id for (mail_id,) in self._ask(sql, *ids)]

    def _detach(self, ids: Sequence[int], all_gone: bool) -> None:
        if not all_gone:
            sql = f"SELECT `mail_id` FROM `{self._table}` WHERE {self._among(ids)}"
            stayed = {mail_id for (mail_id,) in self._ask(sql, *ids)}
            ids = [mail_id for mail_id in ids if mail_id not in stayed]
        if ids:
            self._link.execute(f"DELETE FROM `{ATTACHMENTS}` WHERE {self._among(ids)}", *ids)

    def _read(self) -> _Layout:
        columns = {
            str(name): (str(kind).lower(), width)
            for name, kind, width in self._ask(
                "SELECT column_name, data_type, character_maximum_length"
                " FROM information_schema.columns"
                " WHERE table_schema = DATABASE() AND table_name = %s",
                self._table,
            )
        }
        if not columns:
            self._ask(f"SELECT 1 FROM `{self._table}` LIMIT 0")  # for the error that says why
        index = self._index(columns)
        self._link.execute(f"DELETE FROM `{self._table}` WHERE FALSE")  # is it allowed?
        return _Layout(
            index,
            "recipient" in columns,
            columns.get("recipient", ("", None))[1],
            self._has_attachments(),
            self._partitioned(),
        )

    def _index(self, columns: dict[str, tuple[str, int | None]]) -> str:
        """The index on date. Raises StoreError where old mail cannot be found without harm."""
        table = self._table
        if lacking := [name for name in ("mail_id", "date") if name not in columns]:
            raise StoreError(f"table {table} has no column `{lacking[0]}`; no mail is deleted")
        if columns["date"][0] not in _MOMENTS:
            raise StoreError(
                f"column `date` of table {table} is {columns['date'][0]}, not datetime;"
                " no mail is deleted"
            )
        first = self._ask(
            "SELECT index_name, column_name, non_unique FROM information_schema.statistics"
            " WHERE table_schema = DATABASE() AND table_name = %s AND seq_in_index = 1",
            table,
        )
        if not any(column == "mail_id" and not int(double) for _, column, double in first):
            raise StoreError(f"`mail_id` is no key of table {table}; no mail is deleted")
        for index, column, _ in first:
            if column == "date":
                return str(index)
        raise StoreError(
            f"table {table} has no index on `date`, so that each look for old mail would read all"
            f" of it; no mail is deleted; ALTER TABLE `{table}` ADD KEY `date` (`date`)"
        )

    def _has_attachments(self) -> bool:
        if not self._ask(
            "SELECT 1 FROM information_schema.columns WHERE table_schema = DATABASE()"
            " AND table_name = %s AND column_name = 'mail_id'",
            ATTACHMENTS,
        ):
            return False
        try:
            self._link.execute(f"DELETE FROM `{ATTACHMENTS}` WHERE FALSE")
        except pymysql.MySQLError as error:
            if code_of(error) not in DENIED:
                raise
            self._complaints.say(
                f"{error.args[1]}; the mail is deleted, its attachments' rows stay"
            )
            return False
        return True

    def _partitioned(self) -> bool:
        options = self._link.value(
            "SELECT create_options FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s",
            self._table,
        )
        return "partitioned" in str(options)
