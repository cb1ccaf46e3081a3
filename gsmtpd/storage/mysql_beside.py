"""What is written beside the mail, in its transaction? Its attachments, how much came, the outbox.

Neither of the first two may cost mail: without a table, or the right to write there, they are left
out. But where handlers are configured each mail is promised to them: no mail is stored without.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pymysql

from gsmtpd.message.body import Attachment
from gsmtpd.message.row import date_of
from gsmtpd.storage.base import LISTED, Letter
from gsmtpd.storage.literal import text_literal
from gsmtpd.storage.mysql_connection import ALTERED, DENIED, LOST, code_of
from gsmtpd.storage.mysql_table import MailTable
from gsmtpd.storage.outbox import INSERT_MANY, INSERT_NONE, Fitted, as_it_is, outbox_rows

_log = logging.getLogger(__name__)

_NAMES = ", ".join(f"`{name}`" for name in Attachment._fields)
# A mail_id may come again, in a table that was emptied.
_AGAIN = " ON DUPLICATE KEY UPDATE " + ", ".join(
    f"`{name}` = VALUES(`{name}`)" for name in Attachment._fields
)
_INSERT_ATTACHMENTS = f"INSERT IGNORE INTO `mail_attachment` (`mail_id`, `position`, {_NAMES}) "
_COUNT = (
    "UPDATE `gm2_setting` SET `setting_value` = `setting_value` + %s"
    " WHERE `setting_name` = 'received_emails'"
)
_NONE = " WHERE FALSE"
_COUNT_EVERY = 1.0  # seconds; the row is locked for a moment, and all writers want it
_ROWS_AT_ONCE = 500


class Beside:
    """What can be written beside the mail table `table`, as `look` has found.

    warn: say in the log what cannot. owes: whether mail may come that handlers are to act on.
    """

    def __init__(self, table: str, warn: bool, owes: bool = False) -> None:
        self._table = table
        self._warn = warn
        self._owes = owes
        self._said: set[str] = set()
        self._fitted: Fitted = as_it_is
        self._has_moments = False
        self._is_ours = False
        self._keeps_attachments = False
        self._again = _AGAIN
        self._keeps_received = False
        self._counts_itself = False
        self._lock = threading.Lock()
        self._uncounted = 0
        self._counted_at = time.monotonic()

    def look(self, cursor: Any, table: MailTable) -> None:
        """See which tables are there beside `table`, and may be written.

        Raises StoreError where `table` cannot have an outbox, and pymysql.err.Error without one.
        """
        if self._owes:
            table.require(("mail_id", "hash", "recipient", "to"))
            cursor.execute(f"{INSERT_NONE} SELECT {', '.join(['0'] * 6)} FROM DUAL{_NONE}")
        self._fitted = table.fitted
        self._has_moments = table.has_moments
        self._is_ours = table.has("mail_encoding")
        self._keeps_attachments = (
            table.has("mail_id", "hash") and self._may_list(cursor) and self._has_index(cursor)
        )
        counts = (_COUNT % "0").replace("WHERE", "WHERE FALSE AND")
        # Rows that nobody takes away would be more and more.
        self._keeps_received = (
            self._may(cursor, "INSERT INTO `gm2_received` (`messages`) SELECT 0 FROM DUAL" + _NONE)
            and self._may(cursor, "DELETE FROM `gm2_received`" + _NONE)
            and self._may(cursor, counts)
        )
        # A table of Guerrilla SMTPd's own, without ours beside it.
        self._counts_itself = not self._keeps_received and self._may(cursor, counts)

    def _may_list(self, cursor: Any) -> bool:
        """Whether attachments can be listed; without the right to UPDATE what is there stays."""
        select = f"{_INSERT_ATTACHMENTS} SELECT 0, 0, '', '', 0, '' FROM DUAL{_NONE}"
        self._again = _AGAIN if self._may(cursor, select + _AGAIN, quiet=True) else ""
        return bool(self._again) or self._may(cursor, select)

    def _warn_once(self, text: str) -> None:
        if self._warn and text not in self._said:
            self._said.add(text)
            _log.warning("mysql: %s", text)

    def _has_index(self, cursor: Any) -> bool:
        """Whether a message's rows are found by its id without reading all of them."""
        cursor.execute(
            "SELECT 1 FROM information_schema.statistics WHERE table_schema = DATABASE()"
            " AND table_name = %s AND column_name = 'hash' AND seq_in_index = 1 LIMIT 1",
            (self._table,),
        )
        found = cursor.fetchone() is not None
        if not found:
            self._warn_once(f"table {self._table} has no key on `hash`; attachments are not listed")
        return found

    def _may(self, cursor: Any, sql: str, quiet: bool = False) -> bool:
        """Whether the statement, which has a condition that nothing fulfils, is carried out."""
        try:
            cursor.execute(sql)
        except pymysql.MySQLError as error:
            code = code_of(error)
            if code in LOST:
                raise
            if code in DENIED and not quiet:
                self._warn_once(f"{error.args[1]}; mail is stored without that")
            elif self._is_ours and code in ALTERED:  # Guerrilla SMTPd's own has none beside it
                self._warn_once(
                    f"{error.args[1]}; mail is stored without that; make it by: gsmtpctl init-db"
                    " --apply, then gsmtpctl reload"
                )
            return False
        return True

    def write(self, cursor: Any, letters: Sequence[Letter]) -> None:
        """Write what belongs to `letters`, whose rows have been inserted in this transaction."""
        if self._keeps_attachments:
            with_some = [letter for letter in letters if self.asks(letter)]
            for first in range(0, len(with_some), _ROWS_AT_ONCE):
                self._write_attachments(cursor, with_some[first : first + _ROWS_AT_ONCE])
        for statement in self.statements(letters):
            cursor.execute(statement)

    @property
    def comes_behind(self) -> bool:
        """Whether something is written behind the COMMIT."""
        return self._counts_itself

    def asks(self, letter: Letter) -> bool:
        """Whether `write` asks the database for something, where `letter` is stored."""
        return self._keeps_attachments and bool(letter.reading.body.attachments)

    def statements(self, letters: Sequence[Letter]) -> list[str]:
        """What `write` executes for `letters` of which it `asks` nothing."""
        made = [_received(len(letters))] if self._keeps_received else []
        # Not left out where it cannot be written: a handler is promised each mail that is stored.
        deliveries = [
            f"({','.join(map(text_literal, row[:-1]))},{row[-1]})"
            for letter in letters
            if letter.deliveries
            for row in outbox_rows(letter, self._fitted)
        ]
        if deliveries:
            made.append(INSERT_MANY + ",".join(deliveries))
        return made

    def _write_attachments(self, cursor: Any, letters: Sequence[Letter]) -> None:
        # Asked for, instead of reckoned from LAST_INSERT_ID(): that is right for no setting of
        # innodb_autoinc_lock_mode and auto_increment_increment by any promise.
        found = {letter.message.id: letter.reading.body.attachments for letter in letters}
        marks = ", ".join(["%s"] * len(found))
        where, arguments = f"`hash` IN ({marks})", [*found]
        if self._has_moments:  # so that not all partitions are looked into
            dates = [date_of(letter.message.received_at) for letter in letters]
            where += " AND `date` BETWEEN %s AND %s"
            arguments += [min(dates), max(dates)]
        cursor.execute(f"SELECT `mail_id`, `hash` FROM `{self._table}` WHERE {where}", arguments)
        values = [
            value
            for mail_id, message_id in cursor.fetchall()
            for value in _values(mail_id, found[message_id])
        ]
        for first in range(0, len(values), _ROWS_AT_ONCE):
            some = ",".join(values[first : first + _ROWS_AT_ONCE])
            cursor.execute(f"{_INSERT_ATTACHMENTS} VALUES {some}{self._again}")

    def stored(self, connection: Any, messages: int) -> None:
        """Count `messages` that are committed, where the database is to be told from here."""
        if not self._counts_itself:
            return
        now = time.monotonic()
        with self._lock:
            self._uncounted += messages
            if now - self._counted_at < _COUNT_EVERY:
                return
            self._counted_at = now
        self.count(connection)

    @property
    def uncounted(self) -> int:
        """How many messages the database has not been told of."""
        return self._uncounted

    def count(self, connection: Any) -> None:
        """Tell the database of what it has not been told."""
        with self._lock:
            messages, self._uncounted = self._uncounted, 0
        if not messages:
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute(_COUNT, (messages,))
        except (pymysql.MySQLError, OSError):
            with self._lock:
                self._uncounted += messages


def _received(messages: int) -> str:
    # A row of its own, that no other writer wants; see counter.py for what becomes of it.
    return f"INSERT INTO `gm2_received` (`messages`) VALUES ({messages})"


def _values(mail_id: int, attachments: Sequence[Attachment]) -> Iterator[str]:
    for position, each in enumerate(attachments[:LISTED], 1):
        name, kind = text_literal(each.filename), text_literal(each.content_type)
        yield f"({mail_id},{position},{name},{kind},{each.size},'{each.sha256}')"
