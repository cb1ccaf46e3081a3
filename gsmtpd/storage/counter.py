"""How does received_emails count every message once, while nobody waits for it?

Writers insert what they have stored as a row of its own into gm2_received, in the mail's own
transaction. Here these rows are taken out and added to the one row that all would fight for.
"""

from __future__ import annotations

from gsmtpd.storage.mysql_link import Link, OnMySQL
from gsmtpd.storage.upkeep import AFTER_DENIED, Chore

_EVERY = 1.0  # seconds
_AT_ONCE = 1000  # rows of gm2_received
_ADD = (
    "UPDATE `gm2_setting` SET `setting_value` = `setting_value` + %s"
    " WHERE `setting_name` = 'received_emails'"
)


class _Raced(Exception):
    """Somebody else has taken some of the same rows."""


class Counter:
    """Adds what gm2_received holds to received_emails, through `link`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._checked = 0  # the connection at which the table was seen

    def step(self) -> float:
        """One transaction; seconds until the next. Raises pymysql.err.Error."""
        if not self._is_there():
            return AFTER_DENIED  # a user's own tables; nobody inserts there either
        try:
            taken = self.fold()
        except _Raced:
            return _EVERY
        return 0.0 if taken == _AT_ONCE else _EVERY

    def fold(self) -> int:
        """Take rows out and add them up, both or neither; how many rows. Raises pymysql.err.Error.

        What a writer has not committed yet is not seen, and is taken by a later one.
        """
        rows = self._link.rows(
            f"SELECT `id`, `messages` FROM `gm2_received` ORDER BY `id` LIMIT {_AT_ONCE}"
        )
        if rows:
            with self._link.transaction():
                self._take([number for number, _ in rows])
                self._add(sum(int(messages) for _, messages in rows))
        return len(rows)

    def _take(self, ids: list[int]) -> None:
        marks = ", ".join(["%s"] * len(ids))
        taken = self._link.execute(f"DELETE FROM `gm2_received` WHERE `id` IN ({marks})", *ids)
        if taken != len(ids):
            raise _Raced

    def _add(self, messages: int) -> None:
        if not self._link.execute(_ADD, messages):
            self._link.execute(
                "INSERT INTO `gm2_setting` (`setting_name`, `setting_value`)"
                " VALUES ('received_emails', %s)",
                messages,
            )

    def _is_there(self) -> bool:
        if not self._checked or self._checked != self._link.made:
            found = self._link.value(
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()"
                " AND table_name IN ('gm2_received', 'gm2_setting')"
            )
            self._checked = self._link.made if found == 2 else 0
        return bool(self._checked)


def counter_chore(link: Link) -> Chore:
    """The chore that keeps received_emails up to date, about once a second."""
    return OnMySQL("received_emails", link, Counter(link).step)
