"""Do both stores keep the same, and does each say what is wrong with it?"""

from __future__ import annotations

import os
import resource
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.accounting import (
    Client,
    Ledger,
    Load,
    Mail,
    MySQLTable,
    Table,
    count,
    rows,
    send,
    simple,
    stuffed,
    table_of,
    to_several,
    with_token,
)
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for

COLUMNS = (
    "`from`, `to`, subject, body, charset, mail, spam_score, content_type, recipient, has_attach,"
    " ip_addr, return_path, helo, is_tls, message_id, reply_to, sender, mail_encoding,"
    " content_hash, size"
)
MAILS = (
    simple("plain", Subject="Hello", From="Joe <joe@example.org>"),
    simple("x", Subject="it's \\ \"quoted\" `x` %s ? \\'; --", From="o'b@example.org"),
    simple("x", Subject="\U0001f4ec \u65e5\u672c \xfc \u2028 \u202e", From="\xe9@example.org"),
    simple("nothing"),
    simple("x", Subject="\U0001f4ec" * 1000, **{"Message-ID": "<" + "i" * 2000 + "@x>"}),
    simple(
        "x", Subject="=?utf-8?q?=00NUL?= \x01\x02", Sender="s@x", **{"Reply-To": "r@example.org"}
    ),
    Mail(b"Subject: \xff\xfe\x00\xc3(\r\nContent-Type: text/html; charset=koi8-r\r\n\r\n\0\r\n"),
    Mail(b"no header\r\n", ("B@EXAMPLE.com", '"a b"@example.com', '"x\'\\\\y"@example.com')),
    Mail(b"\r\n", sender=""),
    Mail(b""),
)


def content(table: Table) -> list[tuple]:
    """All rows, but for what is another in each store: numbers, ids and times."""
    found = []
    for row in table.query(f"SELECT hash, {COLUMNS} FROM new_mail ORDER BY mail_id"):
        id_, *values = row
        mail = values[5]
        values[5] = mail.replace(id_.encode(), b"ID")[mail.rindex(b";\r\n\t") :]
        found.append(tuple(values))
    return found


def test_both_stores_keep_the_same(mariadb: MariaDB, schema: str) -> None:
    with Gsmtpd() as one, Gsmtpd(mysql_store(mariadb, schema)) as other:
        tables: tuple[Table, Table] = (table_of(one), MySQLTable(mariadb, schema))
        for daemon in (one, other):
            assert {reply.code for reply in send(daemon.address, *MAILS)} == {250}
        first, second = map(content, tables)
    assert len(first) == sum(len(mail.recipients) for mail in MAILS)
    for mine, its in zip(first, second, strict=True):
        assert mine == its


def test_the_recipients_domain_is_rewritten_where_it_is_wanted() -> None:
    settings = {"domains": {"accept": "example.com, example.net", "primary_domain": "example.com"}}
    with Gsmtpd(settings) as daemon:
        mail = Mail(b"\r\n", ("a@example.net", "b@example.com", "Postmaster"))
        assert send(daemon.address, mail)[0].code == 250
        stored = table_of(daemon).query("SELECT `to`, recipient FROM new_mail ORDER BY mail_id")
    assert stored == [
        ("a@example.com", "a@example.net"),
        ("b@example.com", "b@example.com"),
        ("postmaster@example.com", "postmaster@mx.example.com"),
    ]


def test_the_null_store_keeps_nothing() -> None:
    with Gsmtpd({"store": {"backend": "null"}}) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        assert not daemon.mail_db.exists()


# --- durability ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "warned"), [("strict", True), ("relaxed", False)])
def test_a_database_that_is_not_durable_is_warned_of(
    mariadb: MariaDB, schema: str, durability: str, warned: bool
) -> None:
    settings = mysql_store(mariadb, schema)
    settings["store"]["durability"] = durability
    mariadb.query("ALTER TABLE new_mail ENGINE=MyISAM", database=schema)
    with Gsmtpd(settings) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        log = daemon.log.read_text()
    assert ("innodb_flush_log_at_trx_commit is 0, not 1" in log) is warned
    assert ("new_mail is MyISAM, not InnoDB" in log) is warned


def test_sqlite_killed_under_load_keeps_what_it_acknowledged() -> None:
    ledger = Ledger()
    with Gsmtpd() as daemon:
        with Load(daemon.address, ledger, make=to_several) as load:
            for _ in range(2):
                load.wait_for(200)
                daemon.kill()
                daemon.start()
        ledger.check(rows(table_of(daemon)))


# --- SQLite in trouble --------------------------------------------------------------------------

SHORT_WAIT = "import gsmtpd.storage.sqlite; gsmtpd.storage.sqlite._BUSY_TIMEOUT = 5.0"


@pytest.fixture
def impatient() -> Iterator[Gsmtpd]:
    """A daemon that waits for 5 s, not for ten, for another process's lock on its file."""
    with Gsmtpd(before=SHORT_WAIT) as daemon:
        yield daemon


@pytest.mark.parametrize(("in_time", "code"), [(True, 250), (False, 451)])
def test_sqlite_locked_by_another_program(impatient: Gsmtpd, in_time: bool, code: int) -> None:
    ledger = Ledger()
    mail = to_several()
    with closing(sqlite3.connect(impatient.mail_db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Client(impatient.address) as client:
            client.hello().begin(mail)
            client.send(stuffed(mail.content))
            if in_time:
                time.sleep(0.5)
                other.execute("ROLLBACK")
            ledger.note(mail, client.reply(), True)
            if not in_time:
                other.execute("ROLLBACK")
            ledger.note(mail, client.deliver(mail), True)
    assert [a.reply.code for a in ledger.attempts if a.reply] == [code, 250]
    stored = rows(table_of(impatient))
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_sqlite_refuses_one_row_of_many() -> None:
    with Gsmtpd() as daemon:
        with closing(sqlite3.connect(daemon.mail_db, isolation_level=None)) as other:
            other.execute(
                "CREATE TRIGGER poison BEFORE INSERT ON new_mail WHEN NEW.subject = 'poison'"
                " BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
            other.execute("BEGIN IMMEDIATE")
            mails = [simple("x", Subject="poison" if n in (3, 17) else "good") for n in range(20)]
            clients = [Client(daemon.address).hello() for _ in mails]
            for client, mail in zip(clients, mails, strict=True):
                assert client.begin(mail).code == 354
                client.send(stuffed(mail.content))
            time.sleep(0.2)  # they gather behind the first, which waits for the lock
            other.execute("ROLLBACK")
        codes = [client.reply().code for client in clients]
        for client in clients:
            client.close()
        assert [n for n, code in enumerate(codes) if code != 250] == [3, 17]
        assert codes[3] == codes[17] == 451
        assert count(table_of(daemon)) == 18


def test_sqlite_without_space_for_its_file() -> None:
    """A limit of the file's size stands for a full disk; it is lifted again."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, -1))"
    ledger = Ledger()
    big = with_token(size=300_000, recipients=("a@example.com", "b@example.com"))
    small = with_token()
    with Gsmtpd({"log": {"file": "/dev/null"}}, before=limit) as daemon:
        with Client(daemon.address) as client:
            client.hello()
            for mail in (small, big):
                ledger.note(mail, client.deliver(mail), True)
            for pid in daemon.pids():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (-1, -1))
            for mail in (big, with_token()):
                ledger.note(mail, client.deliver(mail), True)
        codes = [a.reply.code for a in ledger.attempts if a.reply]
        assert codes[0] == codes[2] == codes[3] == 250
        assert codes[1] in (451, 452)
        stored = rows(table_of(daemon))
        ledger.check(stored)
        assert ledger.duplicates(stored) == 0


def test_sqlite_whose_file_is_moved_away() -> None:
    """As by a rotation of the mail file: the next mail goes into a new one, none is lost."""
    with Gsmtpd() as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        for end in ("", "-wal", "-shm"):
            os.rename(f"{daemon.mail_db}{end}", f"{daemon.mail_db}.old{end}")
        wait_for(lambda: send(daemon.address, with_token())[0].code == 250)
        wait_for(lambda: send(daemon.address, with_token())[0].code == 250)
        assert count(table_of(daemon)) == 2


# --- group commit -------------------------------------------------------------------------------


def test_senders_in_parallel_share_commits(mariadb: MariaDB, schema: str) -> None:
    """Group commit, seen from outside: far fewer commits than messages."""
    with Gsmtpd(mysql_store(mariadb, schema, connections=1)) as daemon:
        before = commits(mariadb)
        with ThreadPoolExecutor(16) as executor:
            mails = [[with_token() for _ in range(30)] for _ in range(16)]
            sent = [*executor.map(lambda some: send(daemon.address, *some), mails)]
        assert {reply.code for replies in sent for reply in replies} == {250}
        assert commits(mariadb) - before < 16 * 30 * 3 / 4
    assert count(MySQLTable(mariadb, schema)) == 16 * 30


def commits(server: MariaDB) -> int:
    """How many transactions the server has committed."""
    return int(server.query("SHOW GLOBAL STATUS LIKE 'Com_commit'")[0][1])
