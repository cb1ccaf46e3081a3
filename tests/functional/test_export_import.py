"""Does mail leave the store and come back as it was, and is that of other programs taken in?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.message.row import COLUMNS
from tests.accounting import Mail, MySQLTable, Table, count, rows, send, simple, table_of
from tests.conftest import Kept
from tests.servers import Gsmtpd, MariaDB, Redis, environment, mysql_store

OK, USAGE, UNAVAILABLE, CANTCREAT = 0, 2, 69, 73
WITH_ATTACHMENT = (
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nFrom: Joe <joe@example.org>\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nFrom me\r\n>From you\r\n"
    b"--b\r\nContent-Type: image/png; name=x.png\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    b"eHh4\r\n--b--\r\n"
)
MAILS = (
    simple("plain", Subject="Hello", From="Joe <joe@example.org>"),
    Mail(WITH_ATTACHMENT, ("u@example.com", "Postmaster", '"a b"@example.com', "v@example.com")),
    Mail(b"\r\n", sender=""),
    Mail(b""),
    Mail(b"no header\r\n", sender='"a b"@example.org'),
    Mail(b"Subject: \xff\xfe\x00\r\n\r\n\0\x80\r\nFrom \r\n\r\n\r\n"),
    Mail(b"Subject: bare\r\n\r\na\rb\nc\r\n"),
)
CRLF_ONLY = MAILS[:-1]
KINDS = ["mbox", "maildir", "eml"]
FOREIGN = b"Received: from a by b; Mon, 1 Jan 2024 01:00:00 +0100\r\nSubject: x\r\n\r\nHello\r\n"


def ctl(
    daemon: Gsmtpd, *arguments: object, code: int = OK, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run gsmtpctl with that daemon's configuration, and see how it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), *map(str, arguments)],
        check=False,
        capture_output=True,
        input=stdin,
        env=environment(),
        cwd=daemon.path,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == code, done.stderr.decode()
    return done


def content(table: Table) -> list[tuple[object, ...]]:
    """All rows and their attachments, but for their numbers."""
    names = ", ".join(f"`{name}`" for name in COLUMNS)
    found: list[tuple[object, ...]] = []
    for number, date, *values in table.query(f"SELECT mail_id, {names} FROM new_mail ORDER BY 1"):
        attached = table.query(
            "SELECT position, filename, content_type, size, sha256 FROM mail_attachment"
            f" WHERE mail_id = {number} ORDER BY position"
        )
        found.append((str(date), *values, tuple(attached)))
    return found


def receive(daemon: Gsmtpd, *mails: Mail) -> None:
    """Start the daemon, have it store `mails`, and stop it."""
    daemon.start()
    assert {reply.code for reply in send(daemon.address, *mails)} == {250}
    assert daemon.stop() == 0


Make = Callable[..., tuple[Gsmtpd, Table]]


@pytest.fixture
def make(mariadb: MariaDB, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes configurations with empty tables, with either store; no daemon is started."""
    made: list[Gsmtpd] = []

    def with_store(backend: str, settings: dict[str, Any] | None = None) -> tuple[Gsmtpd, Table]:
        name = request.getfixturevalue("schema") if backend == "mysql" else ""
        daemon = Gsmtpd(mysql_store(mariadb, name) if backend == "mysql" else {})
        if settings:
            daemon.configure(settings)
        made.append(daemon)
        daemon.ctl("init-db", "--apply")
        return daemon, MySQLTable(mariadb, name) if backend == "mysql" else table_of(daemon)

    yield with_store
    for daemon in made:
        daemon.close()


@pytest.fixture(scope="module")
def _empty() -> Iterator[Gsmtpd]:
    daemon = Gsmtpd()
    daemon.ctl("init-db", "--apply")
    yield daemon
    daemon.close()


@pytest.fixture
def empty(_empty: Gsmtpd) -> tuple[Gsmtpd, Table]:
    """A configuration with an empty SQLite file; it is not to be changed."""
    table = table_of(_empty)
    table.query("DELETE FROM new_mail")
    return _empty, table


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gsmtpd]:
    """A configuration with 20 mails of 3 KB in SQLite; they are not to be changed."""
    path = tmp_path_factory.mktemp("few")
    for n in range(20):
        (path / f"{n}.eml").write_bytes(FOREIGN + b"x" * 3000)
    daemon = Gsmtpd()
    daemon.ctl("init-db", "--apply")
    ctl(daemon, "import", "--to", "b@example.com", path)
    yield daemon
    daemon.close()


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_from_either_store_to_the_other(
    kind: str, kept: Kept, make: Make, tmp_path: Path
) -> None:
    mails = MAILS if kind == "eml" else CRLF_ONLY
    assert {reply.code for reply in send(kept.daemon.address, *mails)} == {250}
    said = ctl(kept.daemon, "export", "--format", kind, tmp_path / "mail")
    number = sum(len(mail.recipients) for mail in mails)
    assert said.stderr.decode() == f"exported {number} mails\n"
    assert said.stdout == b""
    other, table = make("mysql" if isinstance(kept.table, MySQLTable) is False else "sqlite")
    said = ctl(other, "import", tmp_path / "mail")
    assert said.stderr.decode() == f"imported {number} mails\n"
    assert content(table) == content(kept.table)
    assert [row.problem() for row in rows(table)] == [None] * number


def test_through_a_pipe(kept: Kept, empty: tuple[Gsmtpd, Table]) -> None:
    send(kept.daemon.address, *CRLF_ONLY)
    mbox = ctl(kept.daemon, "export", "-").stdout
    other, table = empty
    ctl(other, "import", "-", stdin=mbox)
    assert content(table) == content(kept.table)


def test_mail_that_is_compressed(make: Make, tmp_path: Path) -> None:
    """What is exported is the mail itself, and what is imported is compressed again."""
    daemon, table = make("sqlite", {"content": {"compress": 9}})
    other, its = make("sqlite", {"content": {"compress": 1, "decode": "off"}})
    receive(daemon, *CRLF_ONLY)
    ctl(daemon, "export", tmp_path / "mbox")
    ctl(other, "import", tmp_path / "mbox")
    third, plain = make("sqlite")
    ctl(third, "import", tmp_path / "mbox")
    assert [row.content for row in rows(plain)] == [
        mail.content for mail in CRLF_ONLY for _ in mail.recipients
    ]
    encodings = "SELECT DISTINCT mail_encoding, body FROM new_mail"
    assert its.query(encodings) == [("zlib", "gzencode")]
    assert b"plain\n" not in b"".join(row.mail for row in rows(table) + rows(its))
    ctl(other, "export", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "mbox").read_bytes()


def test_mail_in_a_body_store(make: Make, tmp_path: Path) -> None:
    with Redis() as redis:
        body = {"backend": "redis", "address": f"127.0.0.1:{redis.port}", "ttl": "1h"}
        daemon, table = make("sqlite", {"store": {"body": body}})
        receive(daemon, *CRLF_ONLY)
        assert table.query("SELECT DISTINCT mail_encoding, mail FROM new_mail") == [("redis", b"")]
        ctl(daemon, "export", tmp_path / "mbox")
        plain, its = make("sqlite")
        ctl(plain, "import", tmp_path / "mbox")
        assert [row.content for row in rows(its)] == [
            mail.content for mail in CRLF_ONLY for _ in mail.recipients
        ]
        assert redis.ask("FLUSHALL") == "+OK"
        said = ctl(daemon, "export", tmp_path / "gone", code=UNAVAILABLE).stderr.decode()
        assert said.count("kept in redis for its ttl, and are gone\n") == count(table)
        assert said.endswith(f"exported 0 mails; {count(table)} could not be read\n")
        # And into a body store, too.
        ctl(daemon, "import", tmp_path / "mbox")
        ctl(daemon, "export", "--until", "1d", tmp_path / "none")
        ctl(daemon, "export", tmp_path / "again")
        assert table.query("SELECT COUNT(*), COUNT(DISTINCT hash) FROM new_mail") == [
            (2 * count(its), len(CRLF_ONLY))
        ]


def test_a_mail_that_is_gone_costs_nothing_else(kept: Kept, tmp_path: Path) -> None:
    send(kept.daemon.address, simple("1"), simple("2"), simple("3"))
    gone = rows(kept.table)[1].mail_id
    # MySQL's driver takes % for a parameter, so there is none.
    kept.table.query(
        f"UPDATE new_mail SET mail = '', mail_encoding = 'redis' WHERE mail_id = {gone}"
    )
    said = ctl(kept.daemon, "export", tmp_path / "mbox", code=UNAVAILABLE).stderr.decode()
    assert said.startswith(f"gsmtpctl: mail {gone}: its bytes were kept in redis")
    assert said.endswith("exported 2 mails; 1 could not be read\n")
    text = (tmp_path / "mbox").read_bytes()
    assert b"\n1\n" in text
    assert b"\n3\n" in text


def test_one_recipient_of_several(kept: Kept, empty: tuple[Gsmtpd, Table], tmp_path: Path) -> None:
    """Alone in the file it comes back alone; only Received then says for whom."""
    send(kept.daemon.address, MAILS[1])
    ctl(kept.daemon, "export", "--to", "V@example.com", "--format", "eml", tmp_path / "one.eml")
    other, table = empty
    ctl(other, "import", tmp_path / "one.eml")
    (row,) = rows(table)
    original = rows(kept.table)[-1]
    assert (row.hash, row.recipient, row.content) == (
        original.hash,
        "v@example.com",
        WITH_ATTACHMENT,
    )
    for_one = b"\r\n\tfor <v@example.com>;\r\n"
    assert row.mail.replace(for_one, b";\r\n") == original.mail


def test_a_second_import_imports_twice(make: Make, tmp_path: Path) -> None:
    """Also where dedupe_window would know a client's second try."""
    daemon, table = make("sqlite", {"store": {"dedupe_window": "1d"}})
    receive(daemon, *CRLF_ONLY)
    ctl(daemon, "export", tmp_path / "mbox")
    ctl(daemon, "import", tmp_path / "mbox", tmp_path / "mbox")
    found = content(table)
    third = len(found) // 3
    assert found[:third] == found[third : 2 * third] == found[2 * third :]


def test_import_beside_a_running_daemon(kept: Kept, tmp_path: Path) -> None:
    send(kept.daemon.address, simple("before"))
    ctl(kept.daemon, "export", tmp_path / "mbox")
    ctl(kept.daemon, "import", tmp_path / "mbox")
    assert send(kept.daemon.address, simple("behind"))[0].code == 250
    assert [row.content for row in rows(kept.table)] == [b"\r\nbefore\r\n"] * 2 + [
        b"\r\nbehind\r\n"
    ]


# --- export -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gsmtpd]:
    """A configuration with a mail of each of three days long ago, and one of now."""
    path = tmp_path_factory.mktemp("dated")
    recipients = ["joe@example.com", "ann@example.com", "Joe@example.com", "joe@example.net"]
    for n, recipient in enumerate(recipients, 1):
        received = f"Received: x; {n} Jan 2026 00:00:00 +0000\r\n" if n < 4 else ""
        text = f"Delivered-To: {recipient}\r\n{received}Subject: {n}\r\n\r\n"
        (path / f"{n}.eml").write_text(text, newline="")
    daemon = Gsmtpd()
    daemon.ctl("init-db", "--apply")
    ctl(daemon, "import", path)
    yield daemon
    daemon.close()


@pytest.mark.parametrize(
    ("arguments", "subjects"),
    [
        ([], "1234"),
        (["--to", "JOE@example.com"], "13"),
        (["--domain", "example.net"], "4"),
        (["--to", "joe@example.com", "--since", "2026-01-02"], "3"),
        (["--since", "2026-01-02", "--until", "2026-01-03T00:00:00Z"], "2"),
        (["--until", "2026-01-02T00:00+01:00"], "1"),
        (["--since", "2h"], "4"),
        (["--until", "1d"], "123"),
    ],
)
def test_what_is_chosen(arguments: list[str], subjects: str, dated: Gsmtpd) -> None:
    mbox = ctl(dated, "export", *arguments, "-").stdout.decode()
    found = [line[9:] for line in mbox.splitlines() if line.startswith("Subject: ")]
    assert "".join(found) == subjects


def test_mail_by_its_number(kept: Kept, tmp_path: Path) -> None:
    send(kept.daemon.address, *(simple("x", Subject=str(n)) for n in range(4)))
    ids = [row.mail_id for row in rows(kept.table)]
    ctl(kept.daemon, "export", "--format", "eml", "--id", ids[3], "--id", ids[1], tmp_path / "m")
    assert sorted(os.listdir(tmp_path / "m")) == sorted([f"{ids[1]}.eml", f"{ids[3]}.eml"])
    assert (tmp_path / "m" / f"{ids[1]}.eml").read_bytes() == rows(kept.table)[1].mail
    said = ctl(
        kept.daemon, "export", "--id", ids[0], "--id", 9**9, tmp_path / "x", code=UNAVAILABLE
    )
    assert said.stderr.decode() == f"gsmtpctl: no such mail {9**9}; nothing is written\n"
    assert not (tmp_path / "x").exists()


def test_nothing_to_export(few: Gsmtpd, tmp_path: Path) -> None:
    said = ctl(few, "export", "--until", "100d", "--since", "200d", tmp_path / "mbox")
    assert said.stderr == b"there is no such mail; nothing is written\n"
    assert not (tmp_path / "mbox").exists()


def test_an_mbox_is_not_overwritten(few: Gsmtpd, tmp_path: Path) -> None:
    (tmp_path / "mbox").write_text("mine")
    said = ctl(few, "export", tmp_path / "mbox", code=CANTCREAT).stderr.decode()
    assert said == f"gsmtpctl: {tmp_path}/mbox: is there already; nothing is overwritten\n"
    assert (tmp_path / "mbox").read_text() == "mine"


def test_one_file_for_two_mails(few: Gsmtpd, tmp_path: Path) -> None:
    said = ctl(few, "export", "--format", "eml", tmp_path / "x.eml", code=USAGE)
    assert b"one file is for one mail only" in said.stderr
    assert not (tmp_path / "x.eml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday", "x"], "'yesterday' is no time"),
        (["--id", "x", "x"], "'x' is not a number"),
        (["--format", "pst", "x"], "invalid choice: 'pst'"),
        ([], "required: DESTINATION"),
    ],
)
def test_arguments_of_export(arguments: list[str], said: str, few: Gsmtpd) -> None:
    assert said in ctl(few, "export", *arguments, code=USAGE).stderr.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full(kind: str, few: Gsmtpd, small_disk: Path) -> None:
    said = ctl(few, "export", "--format", kind, small_disk / "mail", code=CANTCREAT)
    assert b"No space left on device" in said.stderr


@pytest.mark.parametrize(
    ("protocol", "is_tls"),
    [
        ("LMTP", 0),
        ("ESMTPS (TLSv1.3:TLS_AES_256_GCM_SHA384)", 1),
        ("UTF8LMTPS (TLSv1.2:ECDHE-RSA-AES128-GCM-SHA256)", 1),
    ],
)
def test_how_it_was_received(
    protocol: str, is_tls: int, empty: tuple[Gsmtpd, Table], tmp_path: Path
) -> None:
    """A message to two, as it was exported; it is one message again."""
    front = (
        "Delivered-To: {}@example.com\r\nReturn-Path: <sender@example.org>\r\n"
        "Received: from client.example.org (unknown [192.0.2.1])\r\n"
        f"\tby mx.example.com with {protocol} id {'1a' * 16};\r\n"
        "\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )
    for number, name in enumerate("uv"):
        (tmp_path / f"{number}.eml").write_bytes(front.format(name).encode() + FOREIGN)
    daemon, table = empty
    assert ctl(daemon, "import", tmp_path).stderr == b"imported 2 mails\n"
    names = "`recipient`, `is_tls`, `hash`, `ip_addr`"
    assert table.query(f"SELECT {names} FROM new_mail ORDER BY 1") == [
        (f"{name}@example.com", is_tls, "1a" * 16, "192.0.2.1") for name in "uv"
    ]
    ctl(daemon, "export", "--format", "eml", tmp_path / "again")
    exported = {path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert exported == {front.format(name).encode() + FOREIGN for name in "uv"}


# --- mail of other programs ---------------------------------------------------------------------


def imported(daemon: Gsmtpd, table: Table, *arguments: object, code: int = OK) -> tuple[Any, str]:
    """The one row that an import has made, with its columns by name, and stderr."""
    names = ("date", "from", "to", "recipient", "return_path", "helo", "ip_addr", "is_tls", "hash")
    said = ctl(daemon, "import", *arguments, code=code).stderr.decode()
    text = ", ".join(f"`{name}`" for name in names)
    (row,) = table.query(f"SELECT {text} FROM new_mail")
    return dict(zip(names, row, strict=True)), said


def test_mail_of_another_program(empty: tuple[Gsmtpd, Table], tmp_path: Path) -> None:
    (tmp_path / "x.eml").write_bytes(b"Return-Path: <A@example.org>\r\n" + FOREIGN)
    row, said = imported(*empty, "--to", "b@example.com", tmp_path / "x.eml")
    assert said == "imported 1 mails\n"
    assert len(row.pop("hash")) == 32
    assert row == {
        "date": "2024-01-01 00:00:00", "from": "A@example.org", "to": "b@example.com",
        "recipient": "b@example.com", "return_path": "A@example.org", "helo": "import",
        "ip_addr": "127.0.0.1", "is_tls": 0,
    }  # fmt: skip
    (stored,) = rows(empty[1])
    assert stored.content == b"Return-Path: <A@example.org>\r\n" + FOREIGN
    assert stored.problem() is None


@pytest.mark.parametrize(
    ("fields", "recipient"),
    [
        ("Delivered-To: b@Example.com\n", "b@example.com"),
        ("Delivered-To: b@example.com\nDelivered-To: c@example.com\n", "b@example.com"),
        ("X-Original-To: b@example.com\nDelivered-To: c@example.com\n", "c@example.com"),
        ("x-original-to: <b@example.com>\n", "b@example.com"),
        ("Envelope-To: b@example.com\nDelivered-To: joe\n", "b@example.com"),
        ("Delivered-To: \xfc@example.com\n", "\xfc@example.com"),
    ],
)
def test_whom_it_is_for(
    fields: str, recipient: str, empty: tuple[Gsmtpd, Table], tmp_path: Path
) -> None:
    (tmp_path / "mail").write_text(f"{fields}Subject: x\n\n", encoding="utf-8")
    row, _ = imported(*empty, tmp_path / "mail")
    assert row["recipient"] == recipient
    assert row["return_path"] == ""


def test_nobody_says_whom_it_is_for(empty: tuple[Gsmtpd, Table], tmp_path: Path) -> None:
    daemon, table = empty
    for name, field in (
        ("1", b""),
        ("2", b"Delivered-To: joe\r\n"),
        ("3", b"Delivered-To: a@b\r\n"),
    ):
        (tmp_path / f"{name}.eml").write_bytes(field + FOREIGN)
    said = ctl(daemon, "import", tmp_path, code=UNAVAILABLE).stderr.decode()
    assert said == (
        f"gsmtpctl: {tmp_path}/1.eml: no field says whom it is for; say so by --to ADDRESS\n"
        f"gsmtpctl: {tmp_path}/2.eml: no field says whom it is for; say so by --to ADDRESS\n"
        "imported 1 mails\n"
    )
    assert count(table) == 1
    ctl(daemon, "import", "--to", "b@example.com", tmp_path)
    assert [row.recipient for row in rows(table)] == ["a@b"] + ["b@example.com"] * 3


def test_what_an_mbox_says(empty: tuple[Gsmtpd, Table], tmp_path: Path) -> None:
    (tmp_path / "mbox").write_bytes(
        b"From joe@example.org Mon Jan  1 00:00:00 2024\nSubject: x\n\nHello\n\n"
    )
    row, _ = imported(*empty, "--to", "b@example.com", tmp_path / "mbox")
    assert row["date"] == "2024-01-01 00:00:00"
    assert row["return_path"] == "joe@example.org"


@pytest.mark.parametrize("received", [b"from the future; Mon, 1 Jan 2999 00:00:00 +0000", b"x; y"])
def test_a_date_that_cannot_be(
    received: bytes, empty: tuple[Gsmtpd, Table], tmp_path: Path
) -> None:
    (tmp_path / "x.eml").write_bytes(b"Received: " + received + b"\r\n\r\n")
    before = time.time()
    row, _ = imported(*empty, "--to", "b@example.com", tmp_path / "x.eml")
    now = [time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) for at in (before, time.time())]
    assert now[0] <= row["date"] <= now[1]


def test_the_front_of_another_mail_is_not_ours(
    kept: Kept, empty: tuple[Gsmtpd, Table], tmp_path: Path
) -> None:
    """A mail that was forwarded behind us is another program's, with our fields within."""
    send(kept.daemon.address, simple("x"))
    (row,) = rows(kept.table)
    octets = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n" + row.mail
    (tmp_path / "x.eml").write_bytes(octets)
    daemon, table = empty
    ctl(daemon, "import", tmp_path / "x.eml")
    (again,) = rows(table)
    assert again.content == octets
    assert again.hash != row.hash


# --- what is refused ----------------------------------------------------------------------------


def test_what_is_refused_costs_nothing_else(make: Make, tmp_path: Path) -> None:
    daemon, table = make("sqlite", {"limits": {"max_size": "100K"}})
    daemon.ctl("list")
    texts = {
        "1": FOREIGN,
        "2": FOREIGN + b"x" * 200_000,
        "3": FOREIGN + b"x" * (102_401 - len(FOREIGN)),
        "4": FOREIGN + b"x" * (102_400 - len(FOREIGN)),
        "5": b"\x89PNG\r\n\x1a\n\0\0",
        "6": FOREIGN.replace(b"Subject: x", b"Subject: bad"),
        "7": FOREIGN,
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.eml").write_bytes(text)
    (tmp_path / "8.eml").symlink_to("missing")
    table.query(
        "CREATE TRIGGER poison BEFORE INSERT ON new_mail WHEN NEW.subject = 'bad'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    arguments = ["--to", "b@example.com", tmp_path / "missing", tmp_path]
    said = ctl(daemon, "import", *arguments, code=UNAVAILABLE).stderr.decode()
    front = f"gsmtpctl: {tmp_path}"
    for line in (
        f"{front}/missing: No such file or directory",
        f"{front}/2.eml: larger than max_size, 102400 bytes",
        f"{front}/3.eml: larger than max_size, 102400 bytes",
        f"{front}/5.eml: it begins with no header field, so it is no mail",
        f"{front}/6.eml: the store refused it",
        f"{front}/8.eml: a link is not followed",
    ):
        assert said.splitlines().count(line) == 1
    assert said.endswith("imported 3 mails\n")
    assert [row.content for row in rows(table)] == [texts["1"], texts["4"], texts["7"]]


def test_many_batches_with_one_that_is_refused(
    mariadb: MariaDB, make: Make, tmp_path: Path
) -> None:
    daemon, table = make("mysql")
    table.query("ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> 'bad')")
    text = b"".join(
        b"From x Mon Jan  1 00:00:00 2024\nSubject: %s\n\n%d\n\n"
        % (b"bad" if n == 150 else b"x", n)
        for n in range(1, 351)
    )
    (tmp_path / "mbox").write_bytes(text)
    arguments = ["import", "--to", "b@example.com", tmp_path / "mbox"]
    said = ctl(daemon, *arguments, code=UNAVAILABLE).stderr.decode()
    assert f"gsmtpctl: {tmp_path}/mbox, message 150: the store refused it\n" in said
    assert said.endswith("imported 349 mails\n")
    assert [int(row.content.split()[-1]) for row in rows(table)] == [
        n for n in range(1, 351) if n != 150
    ]


def test_a_database_that_is_away(make: Make, mariadb: MariaDB, tmp_path: Path) -> None:
    daemon, _ = make("mysql")
    daemon.configure(mysql_store(mariadb, "gone"))
    (tmp_path / "x.eml").write_bytes(FOREIGN)
    for arguments in (["import", "--to", "b@example.com", tmp_path / "x.eml"], ["export", "x"]):
        said = ctl(daemon, *arguments, code=UNAVAILABLE).stderr.decode()
        assert said.count("there is no database 'gone'") == 1
        assert len(said.splitlines()) == 1
    assert not (daemon.path / "x").exists()


def test_no_mail_file_yet(tmp_path: Path) -> None:
    """Made by root it would be root's, and the daemon could not write."""
    daemon = Gsmtpd()
    (tmp_path / "x.eml").write_bytes(FOREIGN)
    said = ctl(daemon, "import", "--to", "a@b", tmp_path / "x.eml", code=UNAVAILABLE).stderr
    assert b"no mail file yet; make it by: gsmtpctl init-db --apply" in said
    assert not daemon.mail_db.exists()
    daemon.close()


def test_the_null_store(tmp_path: Path) -> None:
    daemon = Gsmtpd({"store": {"backend": "null"}})
    (tmp_path / "x.eml").write_bytes(FOREIGN)
    said = ctl(daemon, "import", "--to", "a@b", tmp_path / "x.eml", code=UNAVAILABLE).stderr
    assert b"backend = null" in said
    daemon.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "required: SOURCE"), (["--to", "joe", "x"], "'joe' is no address")],
)
def test_arguments_of_import(arguments: list[str], said: str, few: Gsmtpd) -> None:
    assert said in ctl(few, "import", *arguments, code=USAGE).stderr.decode()
