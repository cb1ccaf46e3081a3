"""How does a row become an INSERT into a table of ours, or into one made long ago?"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from gsmtpd.message.row import COLUMNS, WIDTHS, Row
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.mysql_table import ROWS, Column, MailTable
from gsmtpd.storage.mysql_wire import length_of

ROW = Row(
    date="2025-01-02 03:04:05",
    from_="a@example.org",
    to="b@example.com",
    subject="It's \\ fine",
    body="",
    charset="utf-8",
    spam_score=0.5,
    hash="0" * 32,
    content_type="text/plain",
    recipient="b@example.com",
    has_attach=0,
    ip_addr="192.0.2.1",
    return_path="a@example.org",
    helo="client.example",
    is_tls=0,
    message_id="<1@example.org>",
    reply_to="",
    sender="",
    mail_encoding="",
    content_hash="f" * 64,
    size=3,
    mail=b"\0'\\",
)


def column(
    name: str, width: int | None = None, charset: str | None = "utf8mb4", needs: bool = False
) -> Column:
    return Column(name, width, charset, needs)


def ours() -> list[Column]:
    return [column("mail_id", charset=None), *(column(name, WIDTHS.get(name)) for name in COLUMNS)]


def inserted(columns: list[Column], row: Row = ROW) -> dict[str, object]:
    """What each column is given: octets, numbers, or SQL as a str."""
    table = MailTable("new_mail", columns)
    head, _, marks = table.insert(1).decode().partition(" VALUES ")
    names = head.removeprefix("INSERT INTO `new_mail` (").removesuffix(")").replace("`", "")
    found = [*parameters(table.types, table.values(row))]
    given = [found.pop(0) if mark == "?" else mark for mark in marks[1:-1].split(",")]
    assert not found
    return dict(zip(names.split(", "), given, strict=True))


def parameters(types: bytes, values: bytes) -> Iterator[object]:
    """The parameters of a row, as a server reads them."""
    at = 0
    for kind in struct.unpack(f"<{len(types) // 2}H", types):
        if kind in (5, 8):
            yield struct.unpack_from("<d" if kind == 5 else "<q", values, at)[0]
            at += 8
            continue
        assert kind in (0xFC, 0xFD)
        octets = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(values[at], 0)
        length = int.from_bytes(values[at + 1 : at + 1 + octets], "little") or values[at]
        at += 1 + octets + length
        yield values[at - length : at]
        assert at <= len(values)
    assert at == len(values)


@pytest.mark.parametrize(
    ("octets", "length"),
    [
        (0, b"\0"),
        (250, b"\xfa"),
        (251, b"\xfc\xfb\0"),
        (65535, b"\xfc\xff\xff"),
        (65536, b"\xfd\0\0\1"),
        ((1 << 24) - 1, b"\xfd\xff\xff\xff"),
        (1 << 24, b"\xfe\0\0\0\1\0\0\0\0"),
    ],
)
def test_a_length(octets: int, length: bytes) -> None:
    assert length_of(octets) == length


@pytest.mark.parametrize("size", [0, 1, 250, 251, 252, 65535, 65536, 1 << 24])
def test_a_mail_of_any_size(size: int) -> None:
    mail = b"'\\\0\xff" * (size // 4) + b"x" * (size % 4)
    assert inserted(ours(), ROW._replace(mail=mail))["mail"] == mail


def test_a_table_of_ours_gets_all_columns() -> None:
    found = inserted(ours())
    assert set(found) == set(COLUMNS)
    assert found["subject"] == b"It's \\ fine"
    assert found["mail"] == b"\0'\\"
    assert found["spam_score"] == 0.5
    assert found["size"] == 3
    assert found["date"] == b"2025-01-02 03:04:05"


@pytest.mark.parametrize("column_name", ["helo", "subject", "from", "reply_to", "body"])
def test_a_value_with_nul_in_it(column_name: str) -> None:
    """NUL is no end of a value: its neighbours are what they were."""
    field = "from_" if column_name == "from" else column_name
    row = ROW._replace(**{field: "a\0b\0'"})
    found = inserted(ours(), row)
    assert found.pop(column_name) == b"a\0b\0'"
    wanted = inserted(ours())
    del wanted[column_name]
    assert found == wanted


def test_columns_that_are_missing_are_left_out() -> None:
    missing = {"content_hash", "size", "helo", "message_id"}
    found = inserted([c for c in ours() if c.name not in missing])
    assert set(found) == set(COLUMNS) - missing


def test_the_least_table_has_mail() -> None:
    found = inserted([column("mail", charset=None), column("to", 255)])
    assert found == {"mail": b"\0'\\", "to": b"b@example.com"}


def test_a_table_without_mail_is_no_mail_table() -> None:
    with pytest.raises(StoreError, match="no column `mail`"):
        MailTable("new_mail", [c for c in ours() if c.name != "mail"])


def test_columns_of_others_are_left_to_their_defaults() -> None:
    found = inserted([*ours(), column("note", 10)])
    assert "note" not in found


@pytest.mark.parametrize(
    ("charset", "width", "text", "kept"),
    [
        ("utf8mb4", 255, "a" * 255, "a" * 255),
        ("utf8mb4", 128, "\U0001f4ec" * 200, "\U0001f4ec" * 128),
        ("utf8mb3", 255, "a\U0001f4ec\u20ac", "a?\u20ac"),
        ("utf8", 3, "\U0001f4ec\u20ac\U0001f4ec\u20ac", "?\u20ac?"),
        ("latin1", 255, "\u20ac\xfc\u65e5\U0001f4ec", "\u20ac\xfc??"),
        ("ascii", 255, "a\xfc\U0001f4ec", "a??"),
        ("ascii", 2, "\xfc\xfca", "??"),
    ],
)
def test_a_narrow_column_is_cut_on_a_character(
    charset: str, width: int, text: str, kept: str
) -> None:
    columns = [c for c in ours() if c.name != "subject"]
    found = inserted([*columns, column("subject", width, charset)], ROW._replace(subject=text))
    assert found["subject"] == kept.encode()
    assert found["helo"] == b"client.example"


def test_groups_are_bounded_and_none_is_lost() -> None:
    table = MailTable("new_mail", ours())
    values = [table.values(ROW._replace(size=n, mail=b"x" * (n % 7 * 500))) for n in range(100)]
    for limit in (1, 1000, 5000, 20_000, 1 << 30):
        groups = [*table.groups(values, limit)]
        assert [row for group in groups for row in group] == values
        for group in groups:
            assert len(group) == 1 or sum(map(len, group)) <= limit
            assert len(group) in ROWS
    assert len([*table.groups(values, 1)]) == 100
    assert [len(group) for group in table.groups(values, 1 << 30)] == [32, 32, 32, 4]
    assert [*table.groups([], 1000)] == []


def test_groups_are_made_one_by_one() -> None:
    table = MailTable("new_mail", ours())
    asked = []

    def values() -> Iterator[bytes]:
        for n in range(10):
            asked.append(n)
            yield b"x" * 100

    groups = table.groups(values(), 250)
    assert len(next(groups)) == 2
    assert asked == [0, 1, 2]


def test_an_insert_has_marks_for_all_its_rows() -> None:
    table = MailTable("new_mail", [*ours(), column("note", 10, needs=True)._replace(kind="int")])
    for rows in ROWS:
        sql = table.insert(rows)
        assert sql.count(b"?") * 2 == rows * len(table.types)
        assert sql.count(b",0)") == rows
        assert table.insert(rows) is sql
