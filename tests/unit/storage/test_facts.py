"""What does a database say of itself, and does one that says nothing keep anybody waiting?"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gsmtpd.storage import sqlite
from gsmtpd.storage.facts import Answer, ask_all
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_facts import ask_hosts
from gsmtpd.storage.sqlite_facts import ask_file
from tests.servers import MariaDB, free_port

SECONDS = 30.0


def database_at(server: MariaDB, *more: Host) -> Database:
    hosts = (Host("", unix_socket=str(server.socket)), *more)
    return Database(hosts, server.user, server.password, "mysql")


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    """One of its own, whose settings are changed."""
    with MariaDB(options=["--log-bin=binlog"]) as started:
        yield started


def test_a_server_says_how_durable_it_is(server: MariaDB) -> None:
    server.query("SET GLOBAL sync_binlog = 1")
    server.query("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    (facts,) = ask_hosts(database_at(server), True, SECONDS)
    assert facts.answers
    assert facts.seconds is not None
    assert 0 < facts.seconds < SECONDS
    assert "MariaDB" in facts.version
    assert facts.settings == {
        "innodb_flush_log_at_trx_commit": "1",
        "log_bin": "ON",
        "sync_binlog": "1",
        "read_only": "OFF",
    }
    assert (facts.risks, facts.problem) == ([], "")


def test_what_can_lose_mail_is_a_risk(server: MariaDB) -> None:
    server.query("SET GLOBAL sync_binlog = 0")
    server.query("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    server.query("SET GLOBAL read_only = 1")
    try:
        (facts,) = ask_hosts(database_at(server), True, SECONDS)
        (relaxed,) = ask_hosts(database_at(server), False, SECONDS)
    finally:
        server.query("SET GLOBAL read_only = 0")
    assert len(facts.risks) == 3
    assert facts.risks[0].startswith("read_only is ON")
    assert "innodb_flush_log_at_trx_commit is 2, not 1" in facts.risks
    assert "sync_binlog is 0, not 1" in facts.risks
    assert relaxed.risks == facts.risks[:1]


def test_without_a_binary_log_it_needs_no_sync(mariadb: MariaDB) -> None:
    (facts,) = ask_hosts(database_at(mariadb), True, SECONDS)
    assert facts.settings["log_bin"] == "OFF"
    assert "sync_binlog" not in facts.settings


def test_of_several_hosts_each_is_asked(mariadb: MariaDB) -> None:
    """Those that are not there, that say nothing, and that refuse us."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gone = Host("127.0.0.1", free_port())
        mute = Host("127.0.0.1", silent.getsockname()[1])
        asked = database_at(mariadb, gone, mute)
        one, two, three = ask_hosts(asked, True, 3.0)
        (four,) = ask_hosts(replace(asked, hosts=asked.hosts[:1], user="x"), True, SECONDS)
    assert one.answers
    assert [two.answers, three.answers, four.answers] == [False] * 3
    assert two.host == str(gone)
    assert "cannot connect" in two.problem
    assert (three.seconds, three.problem != "") == (None, True)
    assert "denied" in four.problem


def test_who_is_late_is_not_waited_for() -> None:
    never = threading.Event()

    def wait() -> Answer:
        never.wait()
        return Answer("", {})

    facts = ask_all({"slow": wait, "fast": lambda: Answer("1", {})}, str, 0.05)
    assert [(f.host, f.answers, f.problem) for f in facts] == [
        ("slow", False, "no answer within 0.05 s"),
        ("fast", True, ""),
    ]
    never.set()


def test_a_mail_file(tmp_path: Path) -> None:
    path = str(tmp_path / "a b%.db")
    (missing,) = ask_file(path, True, SECONDS)
    assert not missing.answers
    assert not (tmp_path / "a b%.db").exists()
    sqlite.make(path)
    (facts,) = ask_file(path, True, SECONDS)
    assert (facts.host, facts.answers, facts.risks) == (path, True, ())
    assert facts.settings == {"journal_mode": "wal", "synchronous": "FULL"}
    (relaxed,) = ask_file(path, False, SECONDS)
    assert relaxed.settings["synchronous"] == "NORMAL"
