"""Which columns does the mail table have, and how does a row become SQL for them?

The table may be older or narrower than ours: the columns that exist are filled, and values are cut
to fit on a character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from gsmtpd.message.row import COLUMNS, NUMBERS, TEXTS, WIDTHS, Row
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.literal import bytes_literal, text_literal

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
        if "mail" not in found:
            raise StoreError(f"table {name}: no column `mail`; it could not keep a message")
        texts = [name for name in TEXTS if name in found]
        numbers = [name for name in NUMBERS if name in found]
        self._texts = [(COLUMNS.index(name), _fit(found[name])) for name in texts]
        self._fits = any(fit is not None for _, fit in self._texts)
        self._pick_texts = _picker(texts)
        self._pick_numbers = _picker(numbers)
        self._numbers_format = "".join(",%s" for _ in numbers)
        names = ", ".join(f"`{name}`" for name in [*texts, *numbers, "mail"])
        self._insert = f"INSERT INTO `{name}` ({names}) VALUES ".encode()

    def values(self, row: Row) -> bytes:
        """`row` as the values of an INSERT, in parentheses."""
        texts = self._pick_texts(row)
        if self._fits:
            given = [str(row[i]) for i, _ in self._texts]
            texts = tuple(f(t) if f else t for t, (_, f) in zip(given, self._texts, strict=True))
        joined = "\0".join(texts)
        if joined.count("\0") == len(texts) - 1:
            # All texts escaped at once take a third of the time of one by one.
            quoted = text_literal(joined).replace("\0", "','")
        else:
            quoted = ",".join(map(text_literal, texts))
        numbers = self._numbers_format % self._pick_numbers(row)
        return b"(%b,%b)" % ((quoted + numbers).encode(), bytes_literal(row.mail))

    def inserts(self, values: Iterable[bytes], limit: int) -> Iterator[bytes]:
        """INSERT statements for all `values`, each below `limit` octets where one row allows it.

        One at a time, so that a big batch is never in memory as SQL as a whole.
        """
        parts: list[bytes] = []
        size = len(self._insert)
        for value in values:
            if parts and size + len(value) > limit:
                yield self._insert + b",".join(parts)
                parts = []
                size = len(self._insert)
            parts.append(value)
            size += len(value) + 1
        if parts:
            yield self._insert + b",".join(parts)


def _picker(names: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    """A function that takes the columns `names` out of a row."""
    indexes = [COLUMNS.index(name) for name in names]
    if len(indexes) > 1:
        return itemgetter(*indexes)
    return lambda row: tuple(row[i] for i in indexes)


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
