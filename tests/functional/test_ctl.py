"""Does gsmtpctl show what is stored, from either store, and make the tables?"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gsmtpd.storage.schema import statements
from tests.accounting import Mail, MySQLTable, count, rows, send, simple
from tests.conftest import Kept
from tests.servers import Gsmtpd, MariaDB, environment, mysql_store, wait_for

OCTETS = Mail(
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n"
    + bytes(range(256))
    + b"\r\n..\r\n.x\r\n\x1b[31mred\x1b[0m\r\n\xff\xfe\r\n",
    sender="a@example.org",
)


def command(daemon: Gsmtpd, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), *arguments]


def raw(daemon: Gsmtpd, *arguments: str) -> bytes:
    """What gsmtpctl writes to stdout, as octets."""
    return subprocess.run(
        command(daemon, *arguments), check=True, stdout=subprocess.PIPE, env=environment()
    ).stdout


@contextmanager
def tail(daemon: Gsmtpd, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running `gsmtpctl tail`, ended as by ^C."""
    process = subprocess.Popen(
        command(daemon, "tail", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in error
    finally:
        process.kill()
        process.communicate()


def test_list_shows_the_newest(kept: Kept) -> None:
    send(kept.daemon.address, *(simple("x", Subject=f"Number {n}") for n in range(30)))
    lines = kept.daemon.ctl("list", "-n", "3").splitlines()
    assert len(lines) == 4
    assert [line.split()[-1] for line in lines[1:]] == ["27", "28", "29"]
    assert "SUBJECT" in lines[0]
    assert re.fullmatch(
        r" +\d+  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d +\d+  a@example.org +b@example.com +Number 29",
        lines[3],
    )
    assert len(kept.daemon.ctl("list").splitlines()) == 21


def test_list_of_nothing(kept: Kept) -> None:
    assert kept.daemon.ctl("list") == ""


def test_show_raw_is_what_is_stored(kept: Kept) -> None:
    assert send(kept.daemon.address, OCTETS)[0].code == 250
    (row,) = rows(kept.table)
    assert raw(kept.daemon, "show", str(row.mail_id), "--raw") == row.mail
    assert row.content == OCTETS.content


def test_show_is_for_people(kept: Kept) -> None:
    """Nothing in a mail may command the terminal."""
    reply = send(kept.daemon.address, OCTETS)[0]
    shown = kept.daemon.ctl("show", str(rows(kept.table)[0].mail_id))
    assert reply.id in shown
    assert "Subject: Grüße\n" in shown
    assert f"Size:    {len(OCTETS.content)} bytes\n" in shown
    assert "?[31mred?[0m\n" in shown
    assert "Client:  127.0.0.1 (client.example)\n" in shown
    assert all(character.isprintable() or character in "\n\t" for character in shown)


def test_tail_follows(kept: Kept) -> None:
    send(kept.daemon.address, *(simple("x", Subject=f"Old {n}") for n in range(4)))
    with tail(kept.daemon, "-n", "2") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert "SUBJECT" in lines[0]
        assert [line.split()[-1] for line in lines[1:]] == ["2", "3"]
        for number in range(2):
            send(kept.daemon.address, simple("x", Subject=f"New {number}"))
            assert process.stdout.readline().endswith(f"New {number}\n")


def test_tail_without_earlier_mail(kept: Kept) -> None:
    send(kept.daemon.address, simple("x", Subject="Old"))
    with tail(kept.daemon, "-n", "0") as process:
        assert process.stdout is not None
        assert "SUBJECT" in process.stdout.readline()
        send(kept.daemon.address, simple("x", Subject="New"))
        assert process.stdout.readline().endswith("New\n")


def test_a_reader_that_has_enough(kept: Kept) -> None:
    send(kept.daemon.address, *(simple("x", Subject="S" * 200) for _ in range(400)))
    with subprocess.Popen(
        command(kept.daemon, "list", "-n", "1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


@pytest.mark.parametrize("backend", ["sqlite", "mysql"])
def test_init_db_prints_the_sql(mariadb: MariaDB, schema: str, backend: str) -> None:
    settings = mysql_store(mariadb, schema, table="other_mail") if backend == "mysql" else {}
    daemon = Gsmtpd(settings)
    printed = daemon.ctl("init-db")
    daemon.close()
    wanted = statements(backend, "other_mail")
    assert wanted
    assert printed == "".join(f"{statement};\n\n" for statement in wanted)
    if backend == "mysql":
        for statement in filter(str.strip, printed.split(";\n")):
            mariadb.query(statement, database=schema)
        assert mariadb.query("SELECT COUNT(*) FROM other_mail", database=schema) == [(0,)]


def test_init_db_apply_makes_the_tables_and_keeps_what_is_there(
    mariadb: MariaDB, schema: str
) -> None:
    mariadb.create_database(schema)
    with Gsmtpd(mysql_store(mariadb, schema)) as daemon:
        daemon.ctl("init-db", "--apply")
        wait_for(lambda: send(daemon.address, simple("x"))[0].code == 250)
        daemon.ctl("init-db", "--apply")
    assert count(MySQLTable(mariadb, schema)) == 1
