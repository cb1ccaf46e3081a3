"""Which columns does the mail table have, and how does a row become what is inserted into them?

The table may be older or narrower than ours: the columns that exist are filled, and values are cut
to fit on a character.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from gsmtpd.message.body import MAX_TEXT
from gsmtpd.message.row import COLUMNS, NUMBERS, TEXTS, WIDTHS, Row
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_wire import SHORT, length_of

_NOT_IN_GREEK = re.compile("[\u20ac\u20af\u037a]")
_NOT_IN_BMP = re.compile("[\U00010000-\U0010ffff]")
# Charsets of MySQL and MariaDB as Python calls them. A strict server refuses a row for one
# character that its column lacks; and CONVERT(… USING …) is refused as well.
_CODECS = {
    "ascii": "ascii",
    "big5": "big5",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1256": "cp1256",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp866": "cp866",
    "cp932": "cp932",
    "eucjpms": "euc_jp",
    "euckr": "euc_kr",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "hebrew": "iso8859_8",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "latin1": "cp1252",
    "latin2": "iso8859_2",
    "latin5": "iso8859_9",
    "latin7": "iso8859_13",
    "sjis": "shift_jis",
    "tis620": "tis_620",
    "ujis": "euc_jp",
}
_LONGEST = WIDTHS | {"body": MAX_TEXT}  # characters of what is stored
# What columns hold whose size is counted in octets; longer ones hold more than a body ever has.
_OCTETS = {"tinytext": 255, "text": 65535, "tinyblob": 255, "blob": 65535}
_MOST_OCTETS = {"sjis": 2, "ujis": 3, "eucjpms": 3}  # of a character that has fewer in UTF-8
_BINARY = ("binary", "varbinary")
_WIDE = {"ucs2": "utf-16-be", "utf16": "utf-16-be", "utf16le": "utf-16-le", "utf32": "utf-32-be"}
# How many rows an INSERT has: few lengths, as a server keeps each one that is prepared. All of
# these together take 1.7 MB in MariaDB 10.11, for each connection.
ROWS = (32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1)
_TEXT, _OCTETS_AS_THEY_ARE = b"\xfd\0", b"\xfc\0"  # MYSQL_TYPE_VAR_STRING, MYSQL_TYPE_BLOB
_DOUBLE, _INTEGER = ("d", b"\5\0"), ("q", b"\x08\0")  # MYSQL_TYPE_DOUBLE, MYSQL_TYPE_LONGLONG
_NUMBERS = {name: _DOUBLE if name == "spam_score" else _INTEGER for name in NUMBERS}
# What a column gets that gsmtpd does not fill and that has no default.
_FILLERS = {
    **dict.fromkeys(("char", "varchar", "tinytext", "text", "mediumtext", "longtext"), "''"),
    **dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"), "''"),
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "bit"), "0"),
    **dict.fromkeys(("decimal", "float", "double"), "0"),
    **dict.fromkeys(("date", "datetime", "timestamp"), "UTC_TIMESTAMP()"),
}


class Column(NamedTuple):
    """A column as information_schema tells it.

    width: characters, None where it has no limit. needs_value: it has no default. kind: its
    data type in lower case.
    """

    name: str
    width: int | None
    charset: str | None
    needs_value: bool
    kind: str = ""


class MailTable:
    """The mail table `name` with its `columns`; makes the INSERTs for it.

    room: octets that the values of one row may have. Where they have more, `body` is cut: what it
    holds is in `mail` as well. types: of the values of a row, for the server.
    """

    def __init__(self, name: str, columns: Iterable[Column], room: int = 1 << 30) -> None:
        self._name = name
        self._room = room
        found = {column.name: column for column in columns}
        foreign = [c for c in found.values() if c.needs_value and c.name not in COLUMNS]
        for column in foreign:
            if column.kind not in _FILLERS:
                raise StoreError(
                    f"table {name}: column {column.name} has no default and is not one gsmtpd"
                    " fills; give it a default"
                )
        self._kinds = {column.name: column.kind for column in found.values()}
        self.require(["mail"])
        texts = [name for name in TEXTS if name in found]
        numbers = [name for name in NUMBERS if name in found]
        self._fits = [(i, fit) for i, name in enumerate(texts) if (fit := _fit_for(found[name]))]
        self._fits_by_name = {texts[i]: fit for i, fit in self._fits}
        self._pick_texts = _picker(texts)
        self._pick_numbers = _picker(numbers)
        self._numbers = struct.Struct("<" + "".join(_NUMBERS[name][0] for name in numbers))
        self.types = b"".join(
            [_TEXT * len(texts), *(_NUMBERS[name][1] for name in numbers), _OCTETS_AS_THEY_ARE]
        )
        filled = [*texts, *numbers, "mail", *(column.name for column in foreign)]
        names = ", ".join(f"`{name.replace('`', '``')}`" for name in filled)
        self._insert = f"INSERT INTO `{name}` ({names}) VALUES "
        marks = ["?"] * (len(texts) + len(numbers) + 1)
        self._marks = f"({','.join(marks + [_FILLERS[column.kind] for column in foreign])})"
        self._made: dict[int, bytes] = {}

    def require(self, columns: Iterable[str]) -> None:
        """Raises StoreError if a column is missing."""
        for name in columns:
            if name not in self._kinds:
                raise StoreError(f"table {self._name} has no column `{name}`")

    def has(self, *columns: str) -> bool:
        """Whether it has all `columns`."""
        return all(name in self._kinds for name in columns)

    @property
    def has_moments(self) -> bool:
        """Whether `date` tells when a message was received, to the second."""
        return self._kinds.get("date") in ("datetime", "timestamp")

    def fitted(self, name: str, text: str) -> str:
        """`text` as the column `name` has it once it is stored."""
        fit = self._fits_by_name.get(name)
        return text if fit is None else fit(text)

    def values(self, row: Row) -> bytes:
        """`row` as the values of an INSERT, one behind the other."""
        made = self._values(row)
        while len(made) > self._room and row.body:
            # A character that the column's charset lacks has fewer octets there: then it comes
            # again.
            octets = row.body.encode()
            fitting = octets[: max(0, len(octets) - (len(made) - self._room))]
            row = row._replace(body=fitting.decode("utf-8", "ignore"))
            made = self._values(row)
        return made

    def _values(self, row: Row) -> bytes:
        texts = self._pick_texts(row)
        if self._fits:
            fitting = [*texts]
            for i, fit in self._fits:
                fitting[i] = fit(fitting[i])
            texts = tuple(fitting)
        parts: list[bytes] = []
        for each in texts:
            octets = each.encode()
            length = len(octets)
            parts.append(SHORT[length] if length < len(SHORT) else length_of(length))
            parts.append(octets)
        parts.append(self._numbers.pack(*self._pick_numbers(row)))
        parts.append(length_of(len(row.mail)))
        parts.append(row.mail)
        return b"".join(parts)

    def insert(self, rows: int) -> bytes:
        """The INSERT for so many rows, with a mark for each of their values."""
        made = self._made.get(rows)
        if made is None:
            made = self._made[rows] = (self._insert + ",".join([self._marks] * rows)).encode()
        return made

    def groups(self, values: Iterable[bytes], limit: int) -> Iterator[list[bytes]]:
        """The `values` of rows in groups, each for one INSERT of one of a few lengths.

        limit: octets of a group, where one row allows it. One by one, so that a big batch is never
        in memory as a whole.
        """
        waiting: list[bytes] = []
        size = 0
        for value in values:
            if waiting and (len(waiting) == ROWS[0] or size + len(value) > limit):
                yield from _cut(waiting)
                waiting, size = [], 0
            waiting.append(value)
            size += len(value)
        yield from _cut(waiting)


def _cut(rows: list[bytes]) -> Iterator[list[bytes]]:
    """Rows as groups of the lengths in ROWS."""
    begin = 0
    while left := len(rows) - begin:
        length = next(length for length in ROWS if length <= left)
        yield rows[begin : begin + length]
        begin += length


def _picker(names: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    """A function that takes the columns `names` out of a row."""
    indexes = [COLUMNS.index(name) for name in names]
    if len(indexes) > 1:
        return itemgetter(*indexes)
    return lambda row: tuple(row[i] for i in indexes)


def _fit_for(column: Column) -> Callable[[str], str] | None:
    """What makes a text into one that `column` takes, with "?" for what its charset lacks.

    None where it takes all.
    """
    octets = _OCTETS.get(column.kind, column.width if column.kind in _BINARY else None)
    if octets is not None:
        fit = _fit_of(column.charset, None)
        cut = _cutter(column.charset or "", octets)
        return cut if fit is None else lambda text: fit(cut(text))
    width = column.width
    if width is None or width >= _LONGEST.get(column.name, 0):
        width = None
    return _fit_of(column.charset, width)


def _cutter(charset: str, octets: int) -> Callable[[str], str]:
    """What cuts a text, on a character, to so many octets of a charset as the server calls it."""
    if charset in _MOST_OCTETS:
        return lambda text: text[: octets // _MOST_OCTETS[charset]]
    codec = _WIDE.get(charset)
    if codec is None:  # its characters may be fewer octets there than in UTF-8, but not more
        return lambda text: text.encode()[:octets].decode("utf-8", "ignore")
    return lambda text: text.encode(codec)[:octets].decode(codec, "ignore")


def _fit_of(charset: str | None, width: int | None) -> Callable[[str], str] | None:
    if charset in ("utf8", "utf8mb3", "ucs2"):
        return lambda text: _NOT_IN_BMP.sub("?", text)[:width]
    if charset == "greek":  # that of 1987; Python has the one of 2003
        text_of = _NOT_IN_GREEK.sub
        return lambda text: (
            text_of("?", text).encode("iso8859_7", "replace").decode("iso8859_7")[:width]
        )
    codec = _CODECS.get(charset or "")
    if codec is not None:
        return lambda text: text.encode(codec, "replace").decode(codec)[:width]
    return None if width is None else lambda text: text[:width]
