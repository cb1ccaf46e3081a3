"""Does a message in a file become what it would have become, had a client sent it?"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.message.row import COLUMNS
from tests.accounting import Client, Mail, MySQLTable, Table, count, rows, send, simple, table_of
from tests.certificates import Authority
from tests.conftest import Kept
from tests.functional.test_export_import import OK, UNAVAILABLE, USAGE, Make, ctl, empty, make
from tests.functional.test_export_import import _empty as _empty
from tests.functional.test_privileges_live import PATHS, Nobodys, python
from tests.servers import Gsmtpd, environment, mysql_store, tls_section

__all__ = ["empty", "make"]

REFUSED, UNREADABLE, DEFERRED = 65, 66, 75
CONTENT = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nFrom: Joe <joe@example.org>\r\n\r\nHello\r\n"
# What DATA would not leave as it is, and what has no line end at the end.
OCTETS = b"Subject: \xff\x00\r\n\r\n.\r\n..\r\n.x\r\na\rb\nc\r\n\xfc\r\n.\r\nQUIT\r\nno end"
OWN = {"date", "hash", "ip_addr", "mail"}  # columns that are of the session
STRICT = {
    "recipients": {"accept": "b@example.com, c@example.com", "unknown": "defer"},
    "clients": {"deny": "192.0.2.0/24"},
    "limits": {"max_size": "64K", "bare_newline": "reject"},
}


def feed(
    daemon: Gsmtpd, content: bytes, *arguments: object, code: int = OK
) -> subprocess.CompletedProcess[bytes]:
    """Have a message fed from stdin, to b@example.com unless the arguments say to whom."""
    to = () if "--to" in arguments else ("--to", "b@example.com")
    return ctl(daemon, "feed", *to, *arguments, "-", code=code, stdin=content)


def columns(table: Table, *names: str) -> list[tuple[object, ...]]:
    """The columns of all rows, in their order."""
    return table.query(f"SELECT {', '.join(f'`{n}`' for n in names)} FROM new_mail ORDER BY 1")


def said(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines on stdout, then those on stderr."""
    return (done.stdout + done.stderr).decode().splitlines()


# --- as if received -------------------------------------------------------------------------------


def test_it_becomes_what_the_daemon_makes_of_it(kept: Kept, tmp_path: Path) -> None:
    mail = Mail(CONTENT, ("b@example.com", '"a, b"@example.com'))
    (tmp_path / "a.eml").write_bytes(CONTENT)
    to = [word for each in mail.recipients for word in ("--to", each)]
    done = ctl(kept.daemon, "feed", *to, "--from", mail.sender, tmp_path / "a.eml")
    with Client(kept.daemon.address) as client:
        client.reply()
        client.command("EHLO feed")
        assert client.deliver(mail).code == 250
    fed, more, *sent = rows(kept.table)
    assert said(done) == [f'fed as {fed.hash}: b@example.com, "a, b"@example.com']
    assert fed.hash == more.hash
    assert [row.problem() for row in (fed, more)] == [None, None]
    assert [row.hash == fed.hash for row in sent] == [False, False]
    names = [f"`{name}`" for name in COLUMNS if name not in OWN]
    found = kept.table.query(f"SELECT {', '.join(names)} FROM new_mail ORDER BY mail_id")
    assert found[:2] == found[2:]
    assert fed.hash not in kept.daemon.log.read_text()


def test_no_octet_is_changed(kept: Kept) -> None:
    feed(kept.daemon, OCTETS)
    feed(kept.daemon, b"Subject: x\n\n.\nlast\n\n")
    assert [row.content for row in rows(kept.table)] == [
        OCTETS,
        b"Subject: x\r\n\r\n.\r\nlast\r\n\r\n",
    ]


def test_the_daemon_stores_mail_meanwhile(kept: Kept, background: ThreadPoolExecutor) -> None:
    """Neither the one nor the other process loses anything."""
    load = [background.submit(send, kept.daemon.address, *[simple("x")] * 100) for _ in range(4)]
    fed = [background.submit(feed, kept.daemon, CONTENT) for _ in range(4)]
    assert {reply.code for each in load for reply in each.result()} == {250}
    ids = {line.split()[2].rstrip(":") for each in fed for line in said(each.result())}
    stored = {row.hash for row in rows(kept.table) if row.content == CONTENT}
    assert (len(ids), ids) == (4, stored)
    assert count(kept.table) == 404


def test_a_store_that_keeps_nothing() -> None:
    daemon = Gsmtpd({"store": {"backend": "null"}})
    assert said(feed(daemon, CONTENT))[0].startswith("fed as ")
    daemon.close()


def test_with_an_address_that_needs_smtputf8(empty: tuple[Gsmtpd, Table]) -> None:
    daemon, table = empty
    addresses = ("--to", "jürg@example.com", "--from", "ö@exämple.org")
    assert said(feed(daemon, CONTENT, *addresses))[0].endswith(": jürg@example.com")
    found = columns(table, "recipient", "return_path")
    assert found == [("jürg@example.com", "ö@exämple.org")]
    assert b" with UTF8SMTP id " in rows(table)[0].front


def test_whatever_the_listener_asks_of_clients(make: Make, tmp_path: Path) -> None:
    """There is no TLS here, no proxy, and one reply, not one for each recipient."""
    pair = Authority(tmp_path).pair("mx.example.com")
    asks = {"protocol": "lmtp", "tls": "required", "proxy_from": "127.0.0.1", "chunking": "no"}
    daemon, table = make("sqlite", {"listen": {"mx": asks}, "tls": tls_section(*pair)})
    feed(daemon, OCTETS, "--to", "b@example.com", "--to", "c@example.com")
    assert [row.content for row in rows(table)] == [OCTETS] * 2
    assert b" with ESMTP id " in rows(table)[0].front


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_may_feed_what_the_user_of_gsmtpd_cannot_read(tmp_path: Path) -> None:
    """It is root only until it has read that."""
    (tmp_path / "a.eml").write_bytes(CONTENT)
    (tmp_path / "a.eml").chmod(0o600)
    daemon = Nobodys()
    users = []
    for command in (["init-db", "--apply"], ["feed", "--to", "b@example.com", "a.eml"]):
        code = f"{PATHS}\nimport os, gsmtpd.ctl\nprint(gsmtpd.ctl.main(), os.getresuid())"
        done = subprocess.run(
            [python(), "-c", code, "-c", str(daemon.conf), *command],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(),
        )
        users.append(done.stdout.splitlines()[-1])
    assert users == [f"0 {(daemon.path.stat().st_uid,) * 3}"] * 2
    assert count(table_of(daemon)) == 1
    daemon.close()


# --- from whom ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("front", "arguments", "sender"),
    [
        (b"", (), ""),
        (b"Return-Path: <joe@example.org>\n", (), "joe@example.org"),
        (b"Return-Path: <joe@example.org>\n", ("--from", "<ann@example.org>"), "ann@example.org"),
        (b"Return-Path: <joe@example.org>\n", ("--from", ""), ""),
        (b"Return-Path: <>\n", (), ""),
        (b"From joe@example.net Mon Jan  1 00:00:00 2024\n", (), "joe@example.net"),
    ],
)
def test_the_sender(
    empty: tuple[Gsmtpd, Table], front: bytes, arguments: Sequence[str], sender: str
) -> None:
    daemon, table = empty
    feed(daemon, front + b"Subject: x\n\nHello\n", *arguments)
    assert columns(table, "return_path") == [(sender,)]


def test_mail_that_was_received_before(empty: tuple[Gsmtpd, Table]) -> None:
    """It does not grow, and comes from whom it came."""
    daemon, table = empty
    feed(daemon, CONTENT, "--from", "joe@example.org")
    shown = ctl(daemon, "show", "--raw", rows(table)[0].mail_id).stdout
    feed(daemon, shown, "--to", "c@example.com", "--client", "192.0.2.1")
    assert [row.content for row in rows(table)] == [CONTENT] * 2
    assert columns(table, "recipient", "return_path", "ip_addr") == [
        ("b@example.com", "joe@example.org", "127.0.0.1"),
        ("c@example.com", "joe@example.org", "192.0.2.1"),
    ]


# --- what is not taken ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[Gsmtpd]:
    daemon = Gsmtpd(STRICT)
    daemon.ctl("init-db", "--apply")
    yield daemon
    daemon.close()


@pytest.mark.parametrize(
    ("addresses", "code", "begins"),
    [
        ("x@example.net", REFUSED, ["x@example.net: 550 5.7.1 "]),
        ("b@example.com x@example.com", DEFERRED, ["fed as ", "x@example.com: 451 4.1.1 "]),
        (
            "x@example.net b@example.com c@example.com b@example.com x@example.com",
            REFUSED,
            ["fed as ", "x@example.net: 550 5.7.1 ", "x@example.com: 451 4.1.1 "],
        ),
    ],
)
def test_each_recipient_has_its_reply(
    strict: Gsmtpd, addresses: str, code: int, begins: list[str]
) -> None:
    table = table_of(strict)
    table.query("DELETE FROM new_mail")
    to = [word for each in addresses.split() for word in ("--to", each)]
    lines = said(feed(strict, CONTENT, *to, code=code))
    for line, begin in zip(lines, begins, strict=True):
        assert line.removeprefix("gsmtpctl: ").startswith(begin)
    named = lines[0].partition(": ")[2].split(", ") if begins[0] == "fed as " else []
    assert [row.recipient for row in rows(table)] == named


def test_a_session_that_ends_early_takes_nothing(strict: Gsmtpd) -> None:
    """Who was taken before has not got it; who was refused before was refused for that."""
    table = table_of(strict)
    table.query("DELETE FROM new_mail")
    strangers = [f"{n}@example.net" for n in range(110)]
    to = [word for each in ("b@example.com", *strangers) for word in ("--to", each)]
    first, *others = said(feed(strict, CONTENT, *to, code=REFUSED))
    assert first == "gsmtpctl: b@example.com: 421 4.7.0 Too many commands without mail"
    codes = [line.split()[2] for line in others]
    assert codes == sorted(codes, reverse=True)  # 550, then 421
    assert [line.split()[1] for line in others] == [f"{each}:" for each in strangers]
    assert codes.count("421") > 5
    assert count(table) == 0


def test_the_client_and_the_message_are_judged(strict: Gsmtpd) -> None:
    for content, arguments, begins in (
        (CONTENT, ["--client", "192.0.2.9"], "b@example.com: 554 5.7.1 "),
        (b"Subject: x\r\n\r\na\nb\r\n", [], "b@example.com: 550 5.5.2 "),
        (b"x" * 65537, [], "b@example.com: 552 5.3.4 "),
        (b"x" * 65536 * 3, [], "stdin: larger than max_size, 65536 bytes"),
    ):
        (line,) = said(feed(strict, content, *arguments, code=REFUSED))
        assert line.startswith(f"gsmtpctl: {begins}")


def test_what_gsmtpd_has_put_in_front_does_not_count_for_max_size(
    strict: Gsmtpd, empty: tuple[Gsmtpd, Table]
) -> None:
    daemon, table = empty
    feed(daemon, b"x" * 65536)
    feed(strict, rows(table)[0].mail)
    assert rows(table_of(strict))[-1].content == b"x" * 65536


def test_what_is_thrown_away_or_there_already_is_said_so(make: Make) -> None:
    settings: dict[str, Any] = {
        "recipients": {"accept": "b@example.com", "unknown": "discard"},
        "store": {"dedupe_window": "1h"},
    }
    daemon, table = make("sqlite", settings)
    everybody = ("--to", "b@example.com", "--to", "x@example.com")
    first = said(feed(daemon, CONTENT, *everybody))
    number = rows(table)[0].hash
    assert first == [f"fed as {number}: b@example.com", "discarded: x@example.com"]
    again = said(feed(daemon, CONTENT, *everybody))
    assert again == [f"stored before as {number}: b@example.com", "discarded: x@example.com"]
    assert said(feed(daemon, CONTENT, "--to", "x@example.com")) == ["discarded: x@example.com"]
    assert count(table) == 1


@pytest.mark.parametrize("backend", ["sqlite", "mysql"])
def test_the_database_is_asked(make: Make, backend: str) -> None:
    daemon, table = make(backend)
    feed(daemon, CONTENT)
    store = mysql_store(table.server, table.schema) if isinstance(table, MySQLTable) else {}
    query = "SELECT 1 FROM new_mail WHERE recipient = %s"
    daemon.configure({**store, "recipients": {"query": query}})
    feed(daemon, CONTENT)
    feed(daemon, CONTENT, "--to", "c@example.com", code=REFUSED)
    assert count(table) == 2


def test_trouble_with_the_database_has_its_reason(make: Make) -> None:
    daemon, table = make("mysql")
    table.query("ALTER TABLE new_mail ADD CONSTRAINT c CHECK (recipient <> 'b@example.com')")
    lines = said(feed(daemon, CONTENT, code=DEFERRED))
    assert lines[-1].startswith("gsmtpctl: b@example.com: 451 4.3.0 ")
    assert any("CONSTRAINT" in line for line in lines[:-1])
    table.query("DROP TABLE new_mail")
    (line,) = said(feed(daemon, CONTENT, code=UNAVAILABLE))
    assert "new_mail" in line


# --- what cannot be fed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "code", "wrong"),
    [
        ("missing.eml", UNREADABLE, "missing.eml: No such file or directory"),
        (".", UNREADABLE, ".: a directory; name a file with one message, or - for stdin"),
        ("empty.eml", REFUSED, "empty.eml: empty; there is no message to feed"),
        (
            "mbox",
            REFUSED,
            "mbox: several messages; feed takes one, gsmtpctl import takes them all",
        ),
    ],
)
def test_a_file_without_a_message(
    empty: tuple[Gsmtpd, Table], source: str, code: int, wrong: str
) -> None:
    daemon, table = empty
    (daemon.path / "empty.eml").write_bytes(b"")
    (daemon.path / "mbox").write_bytes(b"From x Mon Jan  1 00:00:00 2024\nA: b\n\n" * 2)
    done = ctl(daemon, "feed", "--to", "b@example.com", source, code=code)
    assert said(done) == [f"gsmtpctl: {wrong}"]
    assert count(table) == 0


def test_no_mail_file_is_made() -> None:
    daemon = Gsmtpd()
    (line,) = said(feed(daemon, CONTENT, code=UNAVAILABLE))
    assert line.endswith("no mail file yet; make it by: gsmtpctl init-db --apply")
    assert not daemon.mail_db.exists()
    daemon.close()


@pytest.mark.parametrize("arguments", [["x"], ["--to", "b", "x"], ["--from", "b", "x"]])
def test_a_wrong_command_line(empty: tuple[Gsmtpd, Table], arguments: list[str]) -> None:
    ctl(empty[0], "feed", *arguments, code=USAGE)
