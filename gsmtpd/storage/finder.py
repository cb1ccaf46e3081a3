"""How does one thread find stored mail, wait for more, and delete what it was told to?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gsmtpd.storage import search
from gsmtpd.storage.addressed import is_found
from gsmtpd.storage.arrivals import START, Cursor, Settled, next_for
from gsmtpd.storage.heads import heads
from gsmtpd.storage.mail_rows import StoredMail
from gsmtpd.storage.reader import SQLReader
from gsmtpd.storage.search import Page, Wanted
from gsmtpd.storage.shelf import Found
from gsmtpd.storage.tail import Tail


class Finder:
    """What is asked of a store, over one connection. For one thread.

    All methods raise StoreError; behind one a new Finder is made. reader: reads what the store
    keeps. erase: deletes one mail, over a connection of its own, and says whether it was there.
    """

    def __init__(self, reader: SQLReader, erase: Callable[[Found], bool]) -> None:
        self.reader = reader
        self._erase = erase
        self._settled = Settled(reader.rows)

    def search(self, wanted: Wanted, limit: int, before: str = "") -> Page:
        """A page of what is `wanted`; see `search`. Raises ValueError, too."""
        return search.search(self.reader.rows, wanted, limit, before)

    def heads(self, mails: Sequence[StoredMail]) -> dict[int, bytes]:
        """How `mails` begin, by their ids, where that is soon known; see `heads`."""
        return heads(self.reader.rows, mails)

    def next_for(self, address: str, cursor: Cursor = START) -> tuple[StoredMail | None, Cursor]:
        """The oldest mail for `address` that `cursor` lacks, if any; and the next cursor.

        Without a cursor the first that is stored.
        """
        return next_for(self.reader.rows, self._settled, address, cursor)

    def is_for(self, mail: StoredMail, address: str) -> bool:
        """Whether `next_for` finds that mail for `address`."""
        rows = self.reader.rows
        return any(is_found(rows, each, address) for each in (mail.recipient, mail.to))

    def tail(self, after: str = "") -> Tail:
        """What comes from now on, or from the `cursor` of another tail. Raises ValueError, too."""
        return Tail(self.reader.rows, after)

    def take_over(self, tail: Tail) -> None:
        """Have a tail of a Finder that was lost go on with this one."""
        tail.move(self.reader.rows)

    def delete(self, mail_id: int) -> bool:
        """Delete that mail, and what is known of its attachments; whether it was there."""
        mail = self.reader.row(mail_id)
        return mail is not None and self._erase(Found(mail_id, mail.date, mail.recipient))

    def ping(self) -> None:
        """See whether the store answers."""
        self.reader.rows.query("SELECT 1")

    def close(self) -> None:
        """Close the connection."""
        self.reader.close()
