"""What is in the store? The few queries that people ask, over any DB-API connection."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from gsmtpd.storage.addressed import equals, ids_to
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mail_rows import MOST_ID, MailRows, StoredMail, octets_of, text_of

__all__ = [
    "Bodies", "BodyStoreAwayError", "MailReader", "SQLReader", "Selection", "StoredAttachment",
    "StoredMail", "UnreadableError",
]  # fmt: skip

_ENDS = ("MIN", "MAX")
_STEP = 1000  # rows that one query asks for: it has to end within the driver's timeout
_EITHER = 32 + zlib.MAX_WBITS  # gzip's header or zlib's, whichever comes
# What says that `mail` is compressed: our own word for it, and Guerrilla SMTPd's in `body`.
_ZLIB = ("zlib", "gzencode")
_BODY_STORES = ("redis", "memcached")


class UnreadableError(StoreError):
    """The octets of this one mail cannot be had; those of others may."""


class BodyStoreAwayError(UnreadableError):
    """The body store that has them does not answer: they may be had later."""


class StoredAttachment(NamedTuple):
    """A row of `mail_attachment`. size: octets; sha256: of those, hexadecimal."""

    position: int
    filename: str
    content_type: str
    size: int
    sha256: str


class Selection(NamedTuple):
    """Which mails are meant: those for which all is so that is not None.

    recipient: an address, domain: that of the recipient, both without regard to capitals. since,
    until: UTC, "YYYY-MM-DD HH:MM:SS", the first moment that counts and the first that does not.
    ids: values of mail_id.
    """

    recipient: str | None = None
    domain: str | None = None
    since: str | None = None
    until: str | None = None
    ids: Sequence[int] | None = None

    @property
    def columns(self) -> list[str]:
        """Those that are looked at."""
        needed = {"recipient": self.recipient or self.domain, "date": self.since or self.until}
        return [name for name, value in needed.items() if value is not None]

    def has(self, recipient: str, date: str) -> bool:
        """Whether a mail with these values is meant, as far as its id does not decide."""
        address = recipient.lower()
        return (
            (self.recipient is None or address == self.recipient.lower())
            and (self.domain is None or address.rpartition("@")[2] == self.domain.lower())
            and (self.since is None or date >= self.since)
            and (self.until is None or date < self.until)
        )


class Bodies(Protocol):
    """Where the octets of mail may be that the table does not hold."""

    def get(self, key: str) -> bytes | None:
        """What is held under `key`, None where nothing is."""


class MailReader(Protocol):
    """Reads what a store keeps, for people."""

    def recent(self, limit: int) -> list[StoredMail]:
        """The newest `limit` mails, oldest first. Raises StoreError."""

    def after(self, mail_id: int) -> list[StoredMail]:
        """The mails with a higher id than `mail_id`, oldest first. Raises StoreError."""

    def for_address(self, address: str, limit: int) -> list[StoredMail]:
        """The newest `limit` mails to `address`, or in its mailbox, oldest first.

        Without regard to capitals. Raises StoreError.
        """

    def row(self, mail_id: int) -> StoredMail | None:
        """What is known of one mail, or None where there is none. Raises StoreError."""

    def mail(self, mail_id: int) -> tuple[StoredMail, bytes] | None:
        """One mail and its octets, our fields in front, or None where there is none.

        Raises UnreadableError if its octets are lost or damaged, else StoreError.
        """

    def text(self, mail_id: int) -> str:
        """The column `body` of one mail, "" if there is none. Raises StoreError."""

    def attachments(self, mail_id: int) -> list[StoredAttachment]:
        """What is known of its attachments; nothing where the table is missing."""

    def ids(self, selection: Selection) -> Iterator[int]:
        """The ids of the mails that are meant, in rising order. Raises StoreError."""

    def close(self) -> None:
        """Close the connection."""


class SQLReader:
    """Reads mail through a DB-API connection.

    table: its name, `\\w+`; it may lack columns. mark: the driver's parameter mark, "?" or "%s".
    explain: makes the StoreError of a driver's error. bodies: the body store, if there is one.
    """

    def __init__(
        self,
        connection: Any,
        table: str,
        mark: str,
        explain: Callable[[Exception], StoreError],
        bodies: Bodies | None = None,
    ) -> None:
        self.rows = MailRows(connection, table, mark, explain)
        self._bodies = bodies

    def recent(self, limit: int) -> list[StoredMail]:
        """The newest `limit` mails, oldest first. Raises StoreError."""
        return self.rows.mails(f"ORDER BY mail_id DESC LIMIT {self.rows.mark}", limit)[::-1]

    def after(self, mail_id: int) -> list[StoredMail]:
        """The mails with a higher id than `mail_id`, oldest first. Raises StoreError."""
        where = f"WHERE mail_id > {self.rows.mark} ORDER BY mail_id LIMIT {_STEP}"
        return self.rows.mails(where, mail_id)

    def for_address(self, address: str, limit: int) -> list[StoredMail]:
        """The newest `limit` mails to `address`, or in its mailbox, oldest first.

        Without regard to capitals. Raises StoreError.
        """
        return self.rows.by_ids(ids_to(self.rows, address, limit))

    def row(self, mail_id: int) -> StoredMail | None:
        """What is known of one mail, or None where there is none. Raises StoreError."""
        if mail_id > MOST_ID:
            return None
        found = self.rows.mails(f"WHERE mail_id = {self.rows.mark}", mail_id)
        return found[0] if found else None

    def mail(self, mail_id: int) -> tuple[StoredMail, bytes] | None:
        """One mail and its octets, our fields in front, or None where there is none.

        Raises UnreadableError if its octets are lost or damaged, else StoreError.
        """
        mail = self.row(mail_id)
        if mail is None:
            return None
        sql = f"SELECT {self.rows.names('mail', 'mail_encoding', 'body')} FROM `{self.rows.table}`"
        found = self.rows.query(f"{sql} WHERE mail_id = {self.rows.mark}", mail_id)
        if not found:
            return None  # deleted meanwhile
        octets, encoding, body = found[0]
        return mail, self._octets(mail, octets_of(octets), text_of(encoding), text_of(body))

    def text(self, mail_id: int) -> str:
        """The column `body` of one mail, "" if there is none. Raises StoreError."""
        rows = self.rows
        sql = f"SELECT {rows.names('body')} FROM `{rows.table}` WHERE mail_id = {rows.mark}"
        found = self.rows.query(sql, mail_id)
        return text_of(found[0][0]) if found else ""

    def attachments(self, mail_id: int) -> list[StoredAttachment]:
        """What is known of its attachments; nothing where the table is missing."""
        names = ", ".join(f"`{name}`" for name in StoredAttachment._fields)
        sql = f"SELECT {names} FROM `mail_attachment` WHERE mail_id = {self.rows.mark}"
        try:
            found = self.rows.query(f"{sql} ORDER BY position", mail_id)
        except StoreError:
            return []
        return [StoredAttachment(*row) for row in found]

    def ids(self, selection: Selection) -> Iterator[int]:
        """The ids of the mails that are meant, in rising order. Raises StoreError."""
        for name in selection.columns:
            if name not in self.rows.columns():
                raise StoreError(f"table {self.rows.table} has no column {name} to choose mail by")
        if selection.ids is not None:
            rows = (self.row(mail_id) for mail_id in sorted(set(selection.ids)))
            found = (row for row in rows if row is not None)
            yield from (row.mail_id for row in found if selection.has(row.recipient, row.date))
            return
        yield from self._walk(selection)

    def close(self) -> None:
        """Close the connection."""
        self.rows.close()

    # ---- choosing ------------------------------------------------------------------------------

    def _walk(self, selection: Selection) -> Iterator[int]:
        """The ids that are meant, by steps along the primary key."""
        where, hint = "", ""
        values: list[str] = []
        if selection.recipient is not None:
            where, values = equals(self.rows, "recipient", selection.recipient)
            where, hint = f"{where} AND ", self.rows.hint("recipient")
        first, last = self._between(selection)
        mark = self.rows.mark
        sql = (
            f"SELECT {self.rows.names('mail_id', 'recipient', 'date')} FROM `{self.rows.table}`"
            f"{hint} WHERE {where}mail_id >= {mark} AND mail_id <= {mark}"
            f" ORDER BY mail_id LIMIT {_STEP}"
        )
        while first <= last:
            rows = self.rows.query(sql, *values, first, last)
            for mail_id, recipient, date in rows:
                if selection.has(text_of(recipient), text_of(date)):
                    yield mail_id
            first = rows[-1][0] + 1 if rows else last + 1

    def _between(self, selection: Selection) -> tuple[int, int]:
        """The lowest and the highest id that may be meant; the index on the date knows."""
        conditions, values = [], []
        for sign, value in ((">=", selection.since), ("<", selection.until)):
            if value is not None:
                conditions.append(f"date {sign} {self.rows.mark}")
                values.append(value)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        # Each by itself: SQLite reads the whole index for both at once.
        found = (f"(SELECT {end}(mail_id) FROM `{self.rows.table}`{where})" for end in _ENDS)
        ((first, last),) = self.rows.query(f"SELECT {', '.join(found)}", *values, *values)
        return (0, -1) if first is None else (first, last)

    # ---- octets --------------------------------------------------------------------------------

    def _octets(self, mail: StoredMail, octets: bytes, encoding: str, body: str) -> bytes:
        """The mail as it was before it was stored. body: may be Guerrilla SMTPd's marker."""
        if encoding in _ZLIB:
            return self._inflated(mail, octets)
        if encoding in _BODY_STORES:
            return self._fetched(mail, encoding)
        if encoding:
            raise UnreadableError(f"mail {mail.mail_id}: stored as {encoding!r}, unknown here")
        if body in _BODY_STORES and not octets:
            return self._fetched(mail, body)
        # Somebody may have sent just this word: then these octets begin with a header field.
        if body in _ZLIB and octets[:1] in (b"\x78", b"\x1f"):
            return self._inflated(mail, octets)
        return octets

    def _inflated(self, mail: StoredMail, octets: bytes) -> bytes:
        try:
            return zlib.decompress(octets, _EITHER)
        except zlib.error as error:
            raise UnreadableError(f"mail {mail.mail_id}: its bytes are damaged: {error}") from error

    def _fetched(self, mail: StoredMail, where: str) -> bytes:
        """What a body store holds for all recipients, with the field of this one in front."""
        if self._bodies is None:
            raise UnreadableError(
                f"mail {mail.mail_id}: its bytes were kept in {where}, and the configuration says"
                " not where that is; set [store] [[body]]"
            )
        try:
            octets = self._bodies.get(mail.hash)
        except StoreError as error:
            raise BodyStoreAwayError(f"mail {mail.mail_id}: {error}") from error
        if octets is None:
            raise UnreadableError(
                f"mail {mail.mail_id}: its bytes were kept in {where} for its ttl, and are gone"
            )
        octets = self._inflated(mail, octets)
        if octets.startswith(b"Delivered-To: "):
            return octets  # Guerrilla SMTPd puts that in, too
        return f"Delivered-To: {mail.recipient}\r\n".encode() + octets
