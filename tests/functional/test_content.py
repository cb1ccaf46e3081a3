"""Does the daemon keep what [content] and dedupe_window ask for, and does it count right?"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.accounting import (
    Client,
    Ledger,
    Load,
    Mail,
    MySQLTable,
    Table,
    rows,
    send,
    simple,
    stuffed,
    table_of,
    to_several,
    with_token,
)
from tests.servers import Gsmtpd, MariaDB, Settings, merge, mysql_store, wait_for

Start = Callable[..., tuple[Gsmtpd, Table]]
THREE = tuple(f"{name}@example.com" for name in ("b", "c", "d"))
MIXED = (
    "From: Joe <joe@example.org>\r\nSubject: =?utf-8?q?=E2=82=AC?=\r\nX-Spam-Score: 4.5\r\n"
    "Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    "--b\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\ncaf\xe9\r\n"
    '--b\r\nContent-Type: application/pdf; name="a.pdf"\r\n'
    "Content-Transfer-Encoding: base64\r\n\r\ncGRm\r\n"
    "--b\r\nContent-Type: image/png\r\nContent-Disposition: inline; filename=b.png\r\n\r\npng\r\n"
    "--b--\r\n"
).encode("latin-1")


@pytest.fixture(params=["sqlite", "mariadb"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a daemon with either store and further settings."""
    with ExitStack() as stack:

        def started(settings: Settings | None = None) -> tuple[Gsmtpd, Table]:
            if request.param == "sqlite":
                daemon = stack.enter_context(Gsmtpd(settings or {}))
                return daemon, table_of(daemon)
            server: MariaDB = request.getfixturevalue("mariadb")
            schema: str = request.getfixturevalue("schema")
            merged = merge(mysql_store(server, schema), settings or {})
            return stack.enter_context(Gsmtpd(merged)), MySQLTable(server, schema)

        yield started


def content(**keys: object) -> Settings:
    return {"content": keys}


def column(table: Table, *names: str) -> list[tuple]:
    return table.query(f"SELECT {', '.join(names)} FROM new_mail ORDER BY mail_id")


# --- decode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["body", "headers", "off"])
def test_what_is_read_of_a_message(start: Start, decode: str) -> None:
    daemon, table = start(content(decode=decode))
    assert send(daemon.address, Mail(MIXED))[0].code == 250
    (found,) = column(table, "`from`", "subject", "body", "charset", "has_attach", "mail_encoding")
    from_, subject = ("joe@example.org", "\u20ac") if decode != "off" else ("a@example.org", "")
    assert found[:2] == (from_, subject)
    if decode == "body":
        assert found[2:] == ("caf\xe9", "iso-8859-1", 2, "")
    else:
        assert found[2:] == ("", "", 0, "")
    assert rows(table)[0].content == MIXED
    assert rows(table)[0].problem() is None


def test_attachments_are_listed_for_each_recipient(start: Start) -> None:
    daemon, table = start()
    assert send(daemon.address, simple("none"), Mail(MIXED, THREE))[1].code == 250
    found = table.query(
        "SELECT recipient, position, filename, a.content_type, a.size FROM mail_attachment a"
        " JOIN new_mail m ON m.mail_id = a.mail_id ORDER BY recipient, position"
    )
    assert found == [
        (recipient, *each)
        for recipient in THREE
        for each in ((1, "a.pdf", "application/pdf", 3), (2, "b.png", "image/png", 3))
    ]


@pytest.mark.parametrize(
    ("name", "score"), [("X-Spam-Score", 4.5), ("X-Spam-Level", 0.0), ("", 0.0)]
)
def test_the_score_of_a_spam_filter_in_front(start: Start, name: str, score: float) -> None:
    daemon, table = start(content(spam_score_header=name))
    assert send(daemon.address, Mail(MIXED))[0].code == 250
    assert column(table, "spam_score") == [(score,)]


def test_a_score_that_is_none_costs_no_mail(start: Start) -> None:
    daemon, table = start(content(spam_score_header="X-Spam-Score"))
    values = ["nan", "inf", "-inf", "1e39", "9" * 400, "x", "\u0663", "", "1e-400", "0x10"]
    mails = [simple("x", **{"X-Spam-Score": value}) for value in values]
    assert {reply.code for reply in send(daemon.address, *mails)} == {250}
    assert all(abs(score) < 1e6 for (score,) in column(table, "spam_score"))


# --- compress -----------------------------------------------------------------------------------


def test_compressed_mail_is_exactly_what_was_sent(start: Start) -> None:
    daemon, table = start(content(compress=6))
    mails = []
    for size in (0, 10, 5_000, 8_192, 8_193, 70_000, 2_000_000):
        noise = os.urandom(size // 2).replace(b"\r", b"x").replace(b"\n", b"y") + b"\r\n"
        mails.append(Mail(MIXED + noise + b"z" * (size // 2) + b"\r\n", THREE))
    said = {reply.id: mail for mail, reply in zip(mails, send(daemon.address, *mails), strict=True)}
    found = rows(table)
    assert len(found) == 3 * len(mails)
    for row in found:
        opened = row._replace(mail=zlib.decompress(row.mail))
        assert opened.content == said[row.hash].content
        assert opened.problem() is None
    assert sorted((row.hash, row.recipient) for row in found) == sorted(
        (id_, recipient) for id_ in said for recipient in THREE
    )
    assert {encoding for (encoding,) in column(table, "mail_encoding")} == {"zlib"}


@pytest.mark.parametrize(
    ("decode", "body"), [("body", "caf\xe9"), ("headers", "gzencode"), ("off", "gzencode")]
)
def test_the_marker_of_compressed_mail(start: Start, decode: str, body: str) -> None:
    daemon, table = start(content(compress=1, decode=decode))
    assert send(daemon.address, Mail(MIXED))[0].code == 250
    assert column(table, "mail_encoding", "body") == [("zlib", body)]


HELD = """
import threading
from gsmtpd.message.row import RowMaker
held = threading.Event()
really = RowMaker.read
def read(self, message):
    if len(message.content) > 8_000_000:
        held.wait(60)
    elif b"let the big one go" in message.content:
        held.set()
    return really(self, message)
RowMaker.read = read
"""


def test_a_big_message_does_not_hold_up_small_ones(start: Start) -> None:
    """The big one is read only once a small one that came after it has been read, too."""
    daemon, table = start(content(compress=9))
    daemon.stop()
    daemon.before = HELD
    daemon.start()
    big = Mail(b"x" * 8_000_001 + b"\r\n")
    with Client(daemon.address) as client:
        client.hello()
        assert client.begin(big).code == 354
        client.send(stuffed(big.content))
        small = [with_token() for _ in range(100)]
        assert {reply.code for reply in send(daemon.address, *small)} == {250}
        assert len(rows(table)) == 100
        assert send(daemon.address, simple("let the big one go"))[0].code == 250
        assert client.reply().code == 250
    wait_for(lambda: len(rows(table)) == 102)
    assert rows(table)[-1].size == len(big.content)


# --- dedupe_window ------------------------------------------------------------------------------


def test_a_message_that_comes_again_is_answered_as_the_first(start: Start) -> None:
    daemon, table = start({"store": {"dedupe_window": "10m"}})
    mail, other = Mail(MIXED, THREE), Mail(MIXED, THREE[:2])
    first, again, different = (send(daemon.address, each)[0] for each in (mail, mail, other))
    assert again == first
    assert different.code == 250 and different.id != first.id
    assert len(rows(table)) == 5
    wait_for(lambda: "result=duplicate" in daemon.log.read_text())
    (line,) = [line for line in daemon.log.read_text().splitlines() if "result=duplicate" in line]
    assert f"of={first.id}" in line
    assert "recipients=3" in line and "reply=250" in line
    assert re.search(rf"\bid=(?!{first.id})[0-9a-f]{{32}}\b", line)


def test_without_a_window_a_message_that_comes_again_is_stored_again(start: Start) -> None:
    daemon, table = start()
    first, again = (send(daemon.address, Mail(MIXED))[0] for _ in range(2))
    assert again.id != first.id
    assert len(rows(table)) == 2


def test_many_that_come_twice_under_load(start: Start) -> None:
    """Each is stored once or, where both were on their way at once, twice; never not at all."""
    daemon, table = start({"store": {"dedupe_window": "10m"}, "server": {"processes": 3}})
    mails = [with_token() for _ in range(200)]
    said: list[tuple[Mail, str]] = []

    def work() -> None:
        for mail, reply in zip(mails, send(daemon.address, *mails), strict=True):
            said.append((mail, reply.id))

    for _ in range(2):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    kept = {row.hash: row.content for row in rows(table)}
    assert len(said) == 800
    assert all(kept[id_] == mail.content for mail, id_ in said)
    assert 200 <= len(kept) <= 400


# --- the counter --------------------------------------------------------------------------------


def counted(table: Table) -> int:
    """received_emails, with what it does not count yet."""
    sql = "SELECT setting_value FROM gm2_setting WHERE setting_name = 'received_emails'"
    if not isinstance(table, MySQLTable):
        return table.query(sql)[0][0]
    sql = f"SELECT ({sql}) + (SELECT COALESCE(SUM(messages), 0) FROM gm2_received)"
    return int(table.query(sql)[0][0])


def test_the_counter_is_exact_whatever_is_killed(start: Start) -> None:
    settings: dict[str, Any] = {"server": {"processes": 3}, "store": {"dedupe_window": "10m"}}
    daemon, table = start(settings)
    ledger = Ledger()
    with Load(daemon.address, ledger, make=to_several) as load:
        for _ in range(3):
            load.wait_for(100)
            os.kill(daemon.workers[0], signal.SIGKILL)
        load.wait_for(100)
        daemon.kill()
        daemon.start()
        load.wait_for(100)
    assert daemon.stop() == 0
    stored = rows(table)
    assert counted(table) == len({row.hash for row in stored})
    assert len({row.hash for row in stored}) >= 500
    known = {row.hash for row in stored}
    assert {attempt.reply.id for attempt in ledger.acknowledged if attempt.reply} <= known


@pytest.mark.parametrize("library", ["redis", "pymemcache"])
def test_a_library_that_is_missing_is_a_mistake_in_the_configuration(library: str) -> None:
    backend = {"redis": "redis", "pymemcache": "memcached"}[library]
    missing = f"import sys\nsys.modules[{library!r}] = None"
    with contextlib.closing(
        Gsmtpd({"store": {"body": {"backend": backend}}}, before=missing)
    ) as daemon:
        for arguments in ([], ["-t"]):
            done = subprocess.run(
                [*daemon.command(), *arguments], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 78
            assert f"needs the Debian package python3-{library}" in done.stderr
