"""Does the text of a message fit into whatever column `body` there is, and cost no mail?

Text is cut on a character; a message is never refused for it, and `mail` stays whole.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from gsmtpd.message.row import Decode, Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.base import Outcome, Result
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from tests.conftest import make_schema
from tests.servers import MariaDB
from tests.unit.storage.test_mysql import ORIGINAL, SECOND, replace_table

STORED = Outcome.STORED
WHOLE = 262_144  # octets of a text that are read
Sql = Callable[..., list[tuple]]


@pytest.fixture
def sql(mariadb: MariaDB, schema: str) -> Sql:
    """Executes a statement in the schema."""

    def execute(statement: str, *arguments: object) -> list[tuple]:
        return mariadb.query(statement, arguments, database=schema, charset="utf8mb4")

    return execute


@pytest.fixture
def make(mariadb: MariaDB, schema: str) -> Iterator[Callable[..., MySQLStore]]:
    """Makes stores in the schema; keywords are those of RowMaker."""
    made = []

    def store(**rows: object) -> MySQLStore:
        host = Host("localhost", unix_socket=str(mariadb.socket))
        database = Database((host,), "root", "", schema)
        made.append(MySQLStore(database, RowMaker("mx.example.com", **rows), 2))  # type: ignore[arg-type]
        return made[-1]

    yield store
    for each in made:
        each.close()


def message(
    number: int, text: str | bytes, recipients: Sequence[str] = ("b",), kind: str = "text/plain"
) -> Message:
    octets = text.encode() if isinstance(text, str) else text
    head = f"Subject: {number}\r\nContent-Type: {kind}; charset=utf-8\r\n\r\n"
    boxes = tuple(Mailbox(name, "example.com") for name in recipients)
    envelope = Envelope("x", True, Mailbox("a", "example.org"), boxes)
    return Message(f"{number:032x}", envelope, head.encode() + octets, "192.0.2.1", 1_700_000_000.0)


def write(store: MySQLStore, *messages: Message) -> list[Result]:
    return store.write([store.encode(each) for each in messages])


TEXTS = {
    "ascii": "abcdefghij",
    "latin": "\xe9",
    "half latin": "a\xe9",
    "greek": "\u03b1\u03b2",
    "hebrew": "\u05d0",
    "euro": "\u20ac",
    "han": "\u65e5\u672c",
    "kana": "\uff71",
    "emoji": "\U0001f4ec",
    "all": "a\xe9\u03b1\u05d0\u20ac\u65e5\uff71\U0001f4ec",
    "quotes": "'\\\"",
    "octets": b"\xff",
    "nul": "\0",
}
KINDS = [
    "tinytext",
    "text",
    "mediumtext",
    "varchar(100)",
    "tinyblob",
    "blob",
    "varbinary(100)",
]
# What a strict server refuses a row for, if one character of it is left.
CHARSETS = [
    *("ascii", "latin1", "latin2", "latin7", "greek", "hebrew", "koi8r", "cp1251", "tis620"),
    *("gbk", "gb2312", "big5", "euckr", "sjis", "cp932", "ujis", "eucjpms", "utf8mb3", "utf8mb4"),
    *("ucs2", "utf16", "utf16le", "utf32"),
]
FEW_CHARSETS = ["latin1", "gbk", "sjis", "utf8mb3", "utf8mb4", "utf32"]
TEXT_KINDS = ["text", "mediumtext", "varchar(100)"]


def repeated(text: str | bytes, size: int) -> str | bytes:
    """`text`, as often as `size` octets hold it."""
    return text * (size // len(text.encode() if isinstance(text, str) else text))


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_any_kind_and_charset(
    make: Callable[..., MySQLStore], sql: Sql, kind: str
) -> None:
    """Short and long texts are there, or as much of them as fits, and no mail is refused."""
    texts = [*TEXTS.items(), *((f"long {n}", repeated(t, WHOLE)) for n, t in TEXTS.items())]
    messages = [message(number, text) for number, (_, text) in enumerate(texts)]
    refused = []
    for charset in CHARSETS if kind == "tinytext" else FEW_CHARSETS if kind in TEXT_KINDS else [""]:
        said = f"CHARACTER SET {charset}" if charset else ""
        sql("TRUNCATE TABLE new_mail")
        sql(f"ALTER TABLE new_mail MODIFY body {kind} {said} NOT NULL")
        store = make()
        outcomes = [write(store, each) for each in messages]
        store.close()
        refused += [
            f"{charset} {name}"
            for (name, _), outcome in zip(texts, outcomes, strict=True)
            if outcome != [STORED]
        ]
        found = dict(sql("SELECT subject, body FROM new_mail"))
        first = found.get(str([*TEXTS].index("ascii")))
        assert first in (TEXTS["ascii"], TEXTS["ascii"].encode()), charset
    assert ", ".join(refused) == ""


def room(sql: Sql) -> int:
    """The octets that a body column of the present kind has."""
    ((octets,),) = sql(
        "SELECT character_octet_length FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND table_name = 'new_mail' AND column_name = 'body'"
    )
    return int(octets)


@pytest.mark.parametrize("kind", ["tinytext", "text", "varchar(100)"])
def test_all_that_fits_is_kept(make: Callable[..., MySQLStore], sql: Sql, kind: str) -> None:
    sql(f"ALTER TABLE new_mail MODIFY body {kind} NOT NULL")
    most = 100 if kind.startswith("varchar") else room(sql) // 3
    store = make()
    for number, text in enumerate(["\u65e5" * most, "\u65e5" * (most + 1), "a" * 70000]):
        assert write(store, message(number, text)) == [STORED]
    fitting, cut, plain = (row[0] for row in sql("SELECT body FROM new_mail ORDER BY mail_id"))
    assert fitting == "\u65e5" * most
    assert cut == "\u65e5" * most
    assert plain == "a" * (most if kind.startswith("varchar") else room(sql))


def test_a_table_without_a_body(make: Callable[..., MySQLStore], sql: Sql) -> None:
    sql("ALTER TABLE new_mail DROP COLUMN body")
    assert write(make(), message(1, "x" * 10_000_000)) == [STORED]


# --- packets ------------------------------------------------------------------------------------

PACKET = 1 << 20


@pytest.fixture(scope="module")
def narrow() -> Iterator[MariaDB]:
    """A server that takes no statement above a megabyte."""
    with MariaDB(options=[f"--max-allowed-packet={PACKET}"]) as server:
        yield server


@pytest.mark.parametrize("charset", ["utf8mb4", "latin1", "utf8mb3", "ascii"])
@pytest.mark.parametrize(
    "text",
    [
        *("'", "a", "\u65e5", "\U0001f4ec", "a'\u65e5"),
        # An end that shrinks to a third in a narrow charset, behind much that doubles.
        "'" * 120_000 + "\u65e5" * 47_000,
    ],
    ids=["quotes", "ascii", "han", "emoji", "mixed", "quotes first"],
)
@pytest.mark.parametrize("compress", [None, 1])
def test_the_text_gives_way_where_the_packet_is_small(
    narrow: MariaDB, charset: str, text: str, compress: int | None
) -> None:
    """The largest messages that we announce are stored whole, whatever they say."""
    name = f"narrow_{charset}"
    make_schema(narrow, name)
    narrow.query(
        f"ALTER TABLE new_mail MODIFY body mediumtext CHARACTER SET {charset} NOT NULL",
        database=name,
    )
    capacity: list[int] = []
    host = Host("localhost", unix_socket=str(narrow.socket))
    rows = RowMaker("mx.example.com", compress=compress)
    store = MySQLStore(
        Database((host,), "root", "", name), rows, 1, on_capacity=capacity.append, warn=False
    )
    store.prepare()
    head = len(message(0, "").content)
    front = text.encode() * (WHOLE // len(text.encode())) + b"\r\n"
    made = []
    for size in (capacity[0], capacity[0] - 20_000):
        rest = size - head - len(front)
        for filler in (b"'" * rest, b"x" * rest, random.Random(1).randbytes(rest)):
            made.append(message(len(made), front + filler))
            assert write(store, made[-1]) == [STORED], (filler[:1], size)
    store.close()
    found = dict(narrow.query("SELECT hash, mail FROM new_mail", database=name))
    for each in made:
        mail = found[each.id]
        assert (zlib.decompress(mail) if compress else mail).endswith(each.content)


def test_many_rows_in_a_small_packet(narrow: MariaDB) -> None:
    make_schema(narrow, "rows")
    host = Host("localhost", unix_socket=str(narrow.socket))
    rows = RowMaker("mx.example.com")
    store = MySQLStore(Database((host,), "root", "", "rows"), rows, 1, warn=False)
    batch = [message(n, "'" * 200_000, ["b", "c", "d"]) for n in range(10)]
    assert write(store, *batch) == [STORED] * 10
    store.close()
    found = narrow.query("SELECT body FROM new_mail", database="rows")
    assert [*found] == [("'" * 200_000,)] * 30


def test_names_of_attachments_in_a_small_packet(narrow: MariaDB) -> None:
    make_schema(narrow, "names")
    host = Host("localhost", unix_socket=str(narrow.socket))
    rows = RowMaker("mx.example.com")
    store = MySQLStore(Database((host,), "root", "", "names"), rows, 1, warn=False)
    name = "\U0001f4ec" * 255
    part = f'--b\r\nContent-Type: {name}/{name}; name="{name}"\r\n\r\nx\r\n'
    content = (
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + part * 80 + "--b--\r\n"
    ).encode()
    made = message(1, "", [f"r{n}" for n in range(20)])._replace(content=content)
    assert write(store, made) == [STORED]
    assert narrow.query("SELECT COUNT(*) FROM mail_attachment", database="names") == [(1600,)]
    store.close()


# --- the original's tables ----------------------------------------------------------------------


def original_setting(sql: Sql) -> None:
    """`gm2_setting` as Guerrilla SMTPd had it, and nothing of ours beside the mail."""
    sql("DROP TABLE mail_attachment, gm2_received, gm2_setting")
    sql(
        "CREATE TABLE gm2_setting (setting_name varchar(64) NOT NULL PRIMARY KEY,"
        " setting_value int NOT NULL) ENGINE=InnoDB DEFAULT CHARSET=latin1"
    )
    sql("INSERT INTO gm2_setting VALUES ('received_emails', 7)")


FILES = (
    "Subject: \U0001f4ec\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    "--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + "\u65e5\U0001f4ec'" * 30000 + "\r\n"
    '--b\r\nContent-Type: application/pdf; name="\u65e5.pdf"\r\n\r\npdf\r\n--b--\r\n'
).encode()


@pytest.mark.parametrize("columns", [ORIGINAL, SECOND], ids=["version 1", "version 2"])
@pytest.mark.parametrize("charset", ["utf8mb3", "latin1"])
@pytest.mark.parametrize("compress", [None, 6])
def test_the_originals_tables_are_filled_untouched(
    make: Callable[..., MySQLStore],
    sql: Sql,
    columns: dict[str, str],
    charset: str,
    compress: int | None,
) -> None:
    replace_table(sql, columns, charset)
    original_setting(sql)
    store = make(compress=compress)
    made = message(1, "", ["b", "c"])._replace(content=FILES)
    assert write(store, made, message(2, "plain\r\n")) == [STORED] * 2
    store.close()
    found = sql("SELECT mail, body, has_attach FROM new_mail ORDER BY mail_id")
    # Nothing in these tables could say that it is compressed.
    mails = [mail for mail, _, _ in found]
    assert [mail.endswith(FILES) for mail in mails] == [True, True, False]
    assert [number for _, _, number in found] == [1, 1, 0]
    assert found[2][1] == "plain\n"
    assert set(found[0][1]) == ({*"\u65e5?'"} if charset == "utf8mb3" else {*"?'"})
    assert sql("SELECT setting_value FROM gm2_setting") == [(9,)]


@pytest.mark.parametrize("columns", [ORIGINAL, SECOND], ids=["version 1", "version 2"])
def test_the_marker_of_version_2_is_in_the_originals_body(
    make: Callable[..., MySQLStore], sql: Sql, columns: dict[str, str]
) -> None:
    """Its readers know by that word, in a table without mail_encoding, that mail is compressed."""
    replace_table(sql, columns, "utf8mb3")
    store = make(compress=6, decode=Decode.HEADERS)
    made = message(1, "x" * 1000)
    assert write(store, made) == [STORED]
    ((mail, body),) = sql("SELECT mail, body FROM new_mail")
    assert body == "gzencode"
    assert zlib.decompress(mail).endswith(made.content)
