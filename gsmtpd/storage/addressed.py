"""Which mails are to an address? By the indexes, without regard to capitals."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from gsmtpd.storage.mail_rows import MOST_ID, MailRows, text_of

COLUMNS = ("recipient", "to")  # the address that the client named, and the mailbox
_MORE = 20  # rows asked for beyond what is wanted; they cost next to nothing


class Range(NamedTuple):
    """The mails from id `first` to `last`, but for those in `but`."""

    first: int = 0
    last: int = MOST_ID
    but: Collection[int] = ()


ALL = Range()


def has_address_index(rows: MailRows) -> bool:
    """Whether all columns that have addresses have an index."""
    there = [name for name in COLUMNS if name in rows.columns()]
    return bool(there) and all(rows.has_index(name) for name in there)


def equals(rows: MailRows, column: str, address: str) -> tuple[str, list[str]]:
    """What of a WHERE clause has a column be that address, and its values.

    It may find a little more: MySQL takes é for e. `is_same` knows.
    """
    if not rows.is_sqlite:
        return f"`{column}` = {rows.mark}", [address]
    if address.isascii():
        return f"`{column}` = {rows.mark} COLLATE NOCASE", [address]
    ways = spelled(address)
    return f"`{column}` COLLATE NOCASE IN ({rows.marks(ways)})", ways


def spelled(text: str) -> list[str]:
    """SQLite knows the capitals of ASCII only: the ways a text is looked for there."""
    return list(dict.fromkeys((text, text.lower(), text.upper(), text.capitalize())))


def is_same(stored: str, address: str) -> bool:
    """Whether a column has that address. The Kelvin sign is no k, as databases have it."""
    return stored.lower() == address.lower() and stored.isascii() == address.isascii()


def is_found(rows: MailRows, stored: str, address: str) -> bool:
    """Whether who looks for `address` finds what a column has, as by `equals` and `is_same`."""
    if not is_same(stored, address):
        return False
    if not rows.is_sqlite or address.isascii():
        return True
    return _ascii_lower(stored) in map(_ascii_lower, spelled(address))


def _ascii_lower(text: str) -> bytes:
    return text.encode("utf-8", "replace").lower()


def is_mailable(address: str) -> bool:
    """Whether mail may come for it: only postmaster needs no domain."""
    local_part, _, domain = address.rpartition("@")
    return bool(local_part and domain) or address.lower() == "postmaster"


def mailable(address: str) -> str:
    """`address`, if mail may come for it. Raises ValueError."""
    if not is_mailable(address):
        raise ValueError(f"{address[:40]!r} is no address; write one like user@example.com")
    return address


def ids_to(
    rows: MailRows, address: str, limit: int, within: Range = ALL, newest: bool = True
) -> list[int]:
    """The ids of `limit` mails to `address`, or in its mailbox, in their order.

    newest: from the newest down; else from the oldest up. Raises StoreError.
    """
    found: set[int] = set()
    for column in COLUMNS:
        if column in rows.columns():
            found.update(_ids_in(rows, column, address, limit, within, newest))
    return sorted(found, reverse=newest)[:limit]


def _ids_in(
    rows: MailRows, column: str, address: str, limit: int, within: Range, newest: bool
) -> list[int]:
    where, values = equals(rows, column, address)
    first, last = within.first, within.last
    skip = [*within.but]
    but = f" AND mail_id NOT IN ({rows.marks(skip)})" if skip else ""
    most = limit + _MORE
    sql = (
        f"SELECT mail_id, `{column}` FROM `{rows.table}`{rows.hint(column)} WHERE {where}"
        f" AND mail_id >= {rows.mark} AND mail_id <= {rows.mark}{but}"
        f" ORDER BY mail_id{' DESC' if newest else ''} LIMIT {most}"
    )
    ids: list[int] = []
    while first <= last:
        got = rows.query(sql, *values, first, last, *skip)
        ids += [mail_id for mail_id, stored in got if is_same(text_of(stored), address)]
        if len(got) < most or len(ids) >= limit:
            break
        if newest:
            last = got[-1][0] - 1
        else:
            first = got[-1][0] + 1
    return ids
