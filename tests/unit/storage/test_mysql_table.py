"""How does a row become SQL for a table of ours, or for one made long ago?"""

from __future__ import annotations

import pytest

from gsmtpd.message.row import COLUMNS, WIDTHS, Row
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.literal import bytes_literal, text_literal
from gsmtpd.storage.mysql_table import Column, MailTable

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


def inserted(columns: list[Column], row: Row = ROW) -> dict[str, bytes]:
    """The literal that each column is given."""
    table = MailTable("new_mail", columns)
    (statement,) = table.inserts([table.values(row)], 1 << 20)
    head, _, values = statement.partition(b" VALUES ")
    names = head.decode().removeprefix("INSERT INTO `new_mail` (").removesuffix(")")
    return dict(zip(names.replace("`", "").split(", "), literals(values), strict=True))


def literals(values: bytes) -> list[bytes]:
    """The literals in a row of values, in parentheses."""
    assert values[:1] + values[-1:] == b"()"
    found = [b""]
    quoted = escaped = False
    for octet in values[1:-1]:
        byte = bytes([octet])
        if byte == b"," and not quoted:
            found.append(b"")
            continue
        if byte == b"'" and not escaped:
            quoted = not quoted
        escaped = byte == b"\\" and not escaped
        found[-1] += byte
    assert not quoted
    return found


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("", "''"),
        ("a", "'a'"),
        ("'", r"'\''"),
        ("\\", r"'\\'"),
        ("\\'", r"'\\\''"),
        ("''", r"'\'\''"),
        ('"', "'\"'"),
        ("\0\n\x1a%_`", "'\0\n\x1a%_`'"),
        ("\U0001f4ec", "'\U0001f4ec'"),
    ],
)
def test_a_literal(text: str, literal: str) -> None:
    assert text_literal(text) == literal
    assert bytes_literal(text.encode()) == b"_binary" + literal.encode()


def test_octets_that_are_no_text() -> None:
    assert bytes_literal(b"\xff\xc3'\xc3\\") == b"_binary'\xff\xc3\\'\xc3\\\\'"


def test_a_table_of_ours_gets_all_columns() -> None:
    found = inserted(ours())
    assert set(found) == set(COLUMNS)
    assert found["subject"] == rb"'It\'s \\ fine'"
    assert found["mail"] == b"_binary'\0\\'\\\\'"
    assert found["spam_score"] == b"0.5"
    assert found["size"] == b"3"
    assert found["date"] == b"'2025-01-02 03:04:05'"


@pytest.mark.parametrize("column_name", ["helo", "subject", "from", "reply_to", "body"])
def test_a_value_with_nul_in_it(column_name: str) -> None:
    """NUL is no end of a value: its neighbours are what they were."""
    field = "from_" if column_name == "from" else column_name
    row = ROW._replace(**{field: "a\0b\0'"})
    found = inserted(ours(), row)
    assert found.pop(column_name) == b"'a\0b\0\\''"
    wanted = inserted(ours())
    del wanted[column_name]
    assert found == wanted


def test_columns_that_are_missing_are_left_out() -> None:
    missing = {"content_hash", "size", "helo", "message_id"}
    found = inserted([c for c in ours() if c.name not in missing])
    assert set(found) == set(COLUMNS) - missing


def test_the_least_table_has_mail() -> None:
    found = inserted([column("mail", charset=None), column("to", 255)])
    assert found == {"mail": b"_binary'\0\\'\\\\'", "to": b"'b@example.com'"}


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
    assert found["subject"] == text_literal(kept).encode()
    assert found["helo"] == b"'client.example'"


def test_statements_are_bounded_and_none_is_lost() -> None:
    table = MailTable("new_mail", ours())
    values = [table.values(ROW._replace(size=n, mail=b"x" * (n % 7 * 500))) for n in range(100)]
    for limit in (1, 1000, 5000, 20_000, 1 << 30):
        statements = [*table.inserts(values, limit)]
        assert b"".join(statements).count(b"_binary'") == 100
        for statement in statements:
            rows = statement.count(b"_binary'")
            assert len(statement) <= limit or rows == 1
    assert len([*table.inserts(values, 1)]) == 100
    assert len([*table.inserts(values, 1 << 30)]) == 1
    assert [*table.inserts([], 1000)] == []
