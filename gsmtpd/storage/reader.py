"""What is in the store? The few queries that people ask, over any DB-API connection."""

from __future__ import annotations

import ipaddress
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from gsmtpd.storage.base import StoreError

_STEP = 1000  # rows that one query asks for: it has to end within the driver's timeout
_EITHER = 32 + zlib.MAX_WBITS  # gzip's header or zlib's, whichever comes
# What says that `mail` is compressed: our own word for it, and Guerrilla SMTPd's in `body`.
_ZLIB = ("zlib", "gzencode")
_BODY_STORES = ("redis", "memcached")


class UnreadableError(StoreError):
    """The octets of this one mail cannot be had; those of others may."""


class StoredMail(NamedTuple):
    """A stored row as `gsmtpctl` shows it; the columns of `new_mail` by their names.

    A column that the table lacks is "" or 0.
    """

    mail_id: int
    date: str
    from_: str
    to: str
    subject: str
    size: int
    hash: str
    recipient: str
    return_path: str
    ip_addr: str
    helo: str
    is_tls: int = 0


_NO = (0, "", "0", "\0")  # is_tls as a number, or missing, or as text, or as bit(1)
_IP_ADDR = StoredMail._fields.index("ip_addr")


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
        self._connection = connection
        self._explain = explain
        self._table = table
        self._mark = mark
        self._bodies = bodies
        self._known: set[str] = set()

    def recent(self, limit: int) -> list[StoredMail]:
        """The newest `limit` mails, oldest first. Raises StoreError."""
        return self._mails(f"ORDER BY mail_id DESC LIMIT {self._mark}", limit)[::-1]

    def after(self, mail_id: int) -> list[StoredMail]:
        """The mails with a higher id than `mail_id`, oldest first. Raises StoreError."""
        where = f"WHERE mail_id > {self._mark} ORDER BY mail_id LIMIT {_STEP}"
        return self._mails(where, mail_id)

    def for_address(self, address: str, limit: int) -> list[StoredMail]:
        """The newest `limit` mails to `address`, or in its mailbox, oldest first.

        Without regard to capitals. Raises StoreError.
        """
        # The indexes know it: MySQL finds a LIKE there, and SQLite reads no more than them. "+ 0"
        # has neither walk along the primary key instead, in search of the newest.
        like = re.sub(r"([!%_])", r"!\1", address)
        ids: set[int] = set()
        for name in ("recipient", "to"):
            if name in self._columns():
                sql = f"SELECT mail_id FROM `{self._table}` WHERE `{name}` LIKE {self._mark}"
                sql += f" ESCAPE '!' ORDER BY mail_id + 0 DESC LIMIT {self._mark}"
                ids.update(mail_id for (mail_id,) in self._query(sql, like, limit))
        newest = sorted(ids)[-limit:]
        if not newest:
            return []
        marks = ", ".join([self._mark] * len(newest))
        return self._mails(f"WHERE mail_id IN ({marks}) ORDER BY mail_id", *newest)

    def row(self, mail_id: int) -> StoredMail | None:
        """What is known of one mail, or None where there is none. Raises StoreError."""
        found = self._mails(f"WHERE mail_id = {self._mark}", mail_id)
        return found[0] if found else None

    def mail(self, mail_id: int) -> tuple[StoredMail, bytes] | None:
        """One mail and its octets, our fields in front, or None where there is none.

        Raises UnreadableError if its octets are lost or damaged, else StoreError.
        """
        mail = self.row(mail_id)
        if mail is None:
            return None
        sql = f"SELECT {self._names('mail', 'mail_encoding', 'body')} FROM `{self._table}`"
        found = self._query(f"{sql} WHERE mail_id = {self._mark}", mail_id)
        if not found:
            return None  # deleted meanwhile
        octets, encoding, body = found[0]
        return mail, self._octets(mail, _octets_of(octets), _text(encoding), _text(body))

    def text(self, mail_id: int) -> str:
        """The column `body` of one mail, "" if there is none. Raises StoreError."""
        sql = f"SELECT {self._names('body')} FROM `{self._table}` WHERE mail_id = {self._mark}"
        found = self._query(sql, mail_id)
        return _text(found[0][0]) if found else ""

    def attachments(self, mail_id: int) -> list[StoredAttachment]:
        """What is known of its attachments; nothing where the table is missing."""
        names = ", ".join(f"`{name}`" for name in StoredAttachment._fields)
        sql = f"SELECT {names} FROM `mail_attachment` WHERE mail_id = {self._mark}"
        try:
            found = self._query(f"{sql} ORDER BY position", mail_id)
        except StoreError:
            return []
        return [StoredAttachment(*row) for row in found]

    def ids(self, selection: Selection) -> Iterator[int]:
        """The ids of the mails that are meant, in rising order. Raises StoreError."""
        for name in selection.columns:
            if name not in self._columns():
                raise StoreError(f"table {self._table} has no column {name} to choose mail by")
        if selection.ids is not None:
            rows = (self.row(mail_id) for mail_id in sorted(set(selection.ids)))
            found = (row for row in rows if row is not None)
            yield from (row.mail_id for row in found if selection.has(row.recipient, row.date))
            return
        yield from self._walk(selection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # ---- choosing ------------------------------------------------------------------------------

    def _walk(self, selection: Selection) -> Iterator[int]:
        """The ids that are meant, by steps along the primary key."""
        where, values = self._spelled(selection)
        first, last = self._between(selection)
        sql = (
            f"SELECT {self._names('mail_id', 'recipient', 'date')} FROM `{self._table}`"
            f" WHERE {where}mail_id >= {self._mark} AND mail_id <= {self._mark}"
            f" ORDER BY mail_id LIMIT {_STEP}"
        )
        while first <= last:
            rows = self._query(sql, *values, first, last)
            for mail_id, recipient, date in rows:
                if selection.has(_text(recipient), _text(date)):
                    yield mail_id
            first = rows[-1][0] + 1 if rows else last + 1

    def _spelled(self, selection: Selection) -> tuple[str, list[str]]:
        """What of a WHERE clause makes the index on the recipient work, and its values.

        By values as they are stored: no index works on LOWER(), and SQLite's does not know "a" in
        "A".
        """
        if selection.recipient is None:
            return "", []
        sql = f"SELECT DISTINCT recipient FROM `{self._table}` WHERE LOWER(recipient)"
        wanted = selection.recipient.lower()
        found = [_text(row[0]) for row in self._query(f"{sql} = {self._mark}", wanted)] or [wanted]
        return f"recipient IN ({', '.join([self._mark] * len(found))}) AND ", found

    def _between(self, selection: Selection) -> tuple[int, int]:
        """The lowest and the highest id that may be meant; the index on the date knows."""
        conditions, values = [], []
        for sign, value in ((">=", selection.since), ("<", selection.until)):
            if value is not None:
                conditions.append(f"date {sign} {self._mark}")
                values.append(value)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT MIN(mail_id), MAX(mail_id) FROM `{self._table}`{where}"
        ((first, last),) = self._query(sql, *values)
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
            raise UnreadableError(f"mail {mail.mail_id}: {error}") from error
        if octets is None:
            raise UnreadableError(
                f"mail {mail.mail_id}: its bytes were kept in {where} for its ttl, and are gone"
            )
        octets = self._inflated(mail, octets)
        if octets.startswith(b"Delivered-To: "):
            return octets  # Guerrilla SMTPd puts that in, too
        return f"Delivered-To: {mail.recipient}\r\n".encode() + octets

    # ---- queries -------------------------------------------------------------------------------

    def _mails(self, where: str, *values: object) -> list[StoredMail]:
        names = (name.rstrip("_") for name in StoredMail._fields)
        sql = f"SELECT {self._names(*names)} FROM `{self._table}` {where}"
        return [_mail(row) for row in self._query(sql, *values)]

    def _names(self, *names: str) -> str:
        """The columns `names` of a SELECT, with NULL for those that are missing."""
        known = self._columns()
        return ", ".join(f"`{name}`" if name in known else "NULL" for name in names)

    def _columns(self) -> set[str]:
        if not self._known:
            cursor = self._connection.cursor()
            try:
                cursor.execute(f"SELECT * FROM `{self._table}` LIMIT 0")
                self._known = {column[0].lower() for column in cursor.description}
            except Exception as error:
                raise self._explain(error) from error
            finally:
                cursor.close()
            if "mail_id" not in self._known:
                raise StoreError(
                    f"table {self._table} has no column mail_id, so its mails have no numbers"
                )
        return self._known

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql, values)
            return list(cursor.fetchall())
        except Exception as error:
            raise self._explain(error) from error
        finally:
            cursor.close()


def _mail(row: Sequence[Any]) -> StoredMail:
    values: list[Any] = [value if isinstance(value, int) else _text(value) for value in row]
    mail = StoredMail(*values)
    return mail._replace(
        size=mail.size or 0, ip_addr=_ip(row[_IP_ADDR]), is_tls=int(mail.is_tls not in _NO)
    )


def _text(value: object) -> str:
    """A column as text, whatever type an old table gave it."""
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    return "" if value is None else str(value)


def _octets_of(value: object) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    return _text(value).encode("utf-8", "surrogateescape")


def _ip(value: object) -> str:
    """An address as text: version 2 of Guerrilla SMTPd keeps its octets in a varbinary(16)."""
    text = _text(value)
    if not isinstance(value, bytes | bytearray) or _is_ip(text):
        return text
    return str(ipaddress.ip_address(bytes(value))) if len(value) in (4, 16) else text


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
