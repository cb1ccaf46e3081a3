"""Which columns does the mail table have, and how does a row become SQL for them?

The table may be older or narrower than ours: the columns that exist are filled, and values are cut
to fit on a character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from gsmtpd.message.row import COLUMNS, WIDTHS, Row
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.literal import bytes_literal, text_literal

_MAIL = COLUMNS.index("mail")
_NOT_IN_BMP = re.compile("[\U00010000-\U0010ffff]")
_CODECS = {"latin1": "cp1252", "ascii": "ascii"}


class Column(NamedTuple):
    """A column as information_schema tells it. width: characters, None where it has no limit."""

    name: str
    width: int | None
    charset: str | None
    needs_value: bool


class MailTable:
    """The mail table `name` with its `columns`; makes the INSERTs for it."""

    def __init__(self, name: str, columns: Iterable[Column]) -> None:
        found = {column.name: column for column in columns}
        foreign = [c.name for c in found.values() if c.needs_value and c.name not in COLUMNS]
        if foreign:
            raise StoreError(
                f"table {name}: column {foreign[0]} has no default and is not one gsmtpd fills;"
                " give it a default"
            )
        wanted = [i for i, column in enumerate(COLUMNS) if column in found and i != _MAIL]
        self._indexes = wanted
        self._has_mail = "mail" in found
        if not self._has_mail:
            raise StoreError(f"table {name}: no column `mail`; it could not keep a message")
        self._fits = [(i, fit) for i in wanted if (fit := _fit(found[COLUMNS[i]])) is not None]
        names = ", ".join(f"`{COLUMNS[i]}`" for i in [*wanted, _MAIL])
        self._insert = f"INSERT INTO `{name}` ({names}) VALUES ".encode()

    def inserts(self, rows: Iterable[Row], limit: int) -> Iterator[bytes]:
        """INSERT statements for all `rows`, each below `limit` octets where a row allows it.

        One at a time, so that a big batch is never in memory as SQL as a whole.
        """
        parts: list[bytes] = []
        size = len(self._insert)
        for row in rows:
            values = self._values(row)
            if parts and size + len(values) > limit:
                yield self._insert + b",".join(parts)
                parts = []
                size = len(self._insert)
            parts.append(values)
            size += len(values) + 1
        if parts:
            yield self._insert + b",".join(parts)

    def _values(self, row: Row) -> bytes:
        fields: list[Any] = list(row)
        for i, fit in self._fits:
            fields[i] = fit(fields[i])
        text = ",".join(
            [
                text_literal(value) if type(value) is str else str(value)
                for value in [fields[i] for i in self._indexes]
            ]
        )
        return b"(%b,%b)" % (text.encode(), bytes_literal(row.mail))


def _fit(column: Column) -> Callable[[str], str] | None:
    """What must be done to a text for `column`; None where ours fit as they are."""
    steps: list[Callable[[str], str]] = []
    if column.charset in ("utf8", "utf8mb3"):
        steps.append(lambda text: _NOT_IN_BMP.sub("?", text))
    elif column.charset is not None and column.charset in _CODECS:
        codec = _CODECS[column.charset]
        steps.append(lambda text: text.encode(codec, "replace").decode(codec))
    width = column.width
    if width is not None and width < WIDTHS.get(column.name, 0):
        steps.append(lambda text: text[:width])
    if not steps:
        return None

    def fit(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return fit
