"""Does gsmtpctl show what is stored, from either store, and make the tables?"""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gsmtpd.ctl_mail import safe_name
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


def part(kind: str, content: bytes, disposition: str = "attachment") -> bytes:
    """A part of a multipart with the boundary "b"."""
    head = (
        f"--b\r\nContent-Type: {kind}\r\nContent-Disposition: {disposition}\r\n"
        "Content-Transfer-Encoding: base64\r\n\r\n"
    )
    return head.encode() + base64.encodebytes(content).replace(b"\n", b"\r\n")


PICTURE = bytes(range(256)) * 4
WITH_ATTACHMENTS = Mail(
    b"Subject: files\r\nX-Odd: \x1b[31m=?utf-8?q?=C3=BC?=\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>Gr\xc3\xbc\xc3\x9fe<p>Joe\r\n"
    + part("image/png", PICTURE, 'attachment; filename="../../.p\x1bi c.png"')
    + part("application/pdf", b"%PDF")
    + part("text/plain", b"--\r\n", "attachment; filename=-rf")
    + b"--b--\r\n"
)


@pytest.fixture
def shown(kept: Kept) -> tuple[Gsmtpd, str]:
    """A daemon that has a mail with attachments, and its number."""
    assert send(kept.daemon.address, WITH_ATTACHMENTS)[0].code == 250
    return kept.daemon, str(rows(kept.table)[0].mail_id)


def run(
    daemon: Gsmtpd, *arguments: str, code: int, directory: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """gsmtpctl, which ends with that code."""
    done = subprocess.run(
        command(daemon, *arguments), check=False, capture_output=True, env=environment(),
        cwd=directory,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_show_reads_the_text_and_lists_what_is_attached(shown: tuple[Gsmtpd, str]) -> None:
    daemon, number = shown
    lines = daemon.ctl("show", number).splitlines()
    assert lines[:8] == [
        f"Id:      {number} ({lines[0].split('(')[1]}",
        *lines[1:4],
        "Subject: files",
        *lines[5:6],
        f"Size:    {len(WITH_ATTACHMENTS.content)} bytes",
        "",
    ]
    assert lines[8:] == [
        "Gr\xfc\xdfe",
        "",
        "Joe",
        "",
        "Attachments:",
        "  1  image/png                             1024  .p i c.png",
        "  2  application/pdf                          4",
        "  3  text/plain                               4  -rf",
    ]


def test_show_headers(shown: tuple[Gsmtpd, str]) -> None:
    """As the sender wrote them."""
    daemon, number = shown
    assert daemon.ctl("show", number, "--headers") == (
        "Subject: files\nX-Odd: ?[31m=?utf-8?q?=C3=BC?=\n"
        "Content-Type: multipart/mixed; boundary=b\n"
    )


def test_show_headers_of_what_has_none(kept: Kept) -> None:
    send(kept.daemon.address, Mail(b"\r\ntext\r\n"), Mail(b""), Mail(b"Subject: x\r\n"))
    said = [kept.daemon.ctl("show", str(row.mail_id), "--headers") for row in rows(kept.table)]
    assert said == ["", "", "Subject: x\n"]


def test_an_attachment_is_saved(shown: tuple[Gsmtpd, str], tmp_path: Path) -> None:
    """Under a name that does no harm, and never in place of another file."""
    daemon, number = shown
    (tmp_path / "p i c-1.png").symlink_to(tmp_path / "target")
    for name in ("p i c.png", "p i c-2.png"):
        done = run(daemon, "show", number, "--attachment", "1", code=0, directory=tmp_path)
        assert done.stdout.decode() == f"saved 1024 bytes as {tmp_path / name}\n"
        assert (tmp_path / name).read_bytes() == PICTURE
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    for which, name in (("2", "attachment-2.pdf"), ("3", "rf")):
        run(daemon, "show", number, "--attachment", which, code=0, directory=tmp_path)
        assert (tmp_path / name).is_file()
    assert sorted(os.listdir(tmp_path)) == [
        "attachment-2.pdf", "p i c-1.png", "p i c-2.png", "p i c.png", "rf",
    ]  # fmt: skip
    assert not (tmp_path / "target").exists()


def test_an_attachment_is_saved_where_it_is_wanted(
    shown: tuple[Gsmtpd, str], tmp_path: Path
) -> None:
    daemon, number = shown
    assert raw(daemon, "show", number, "--attachment", "1", "-o", "-") == PICTURE
    file = str(tmp_path / "x")
    run(daemon, "show", number, "--attachment", "2", "-o", file, code=0)
    assert Path(file).read_bytes() == b"%PDF"
    done = run(daemon, "show", number, "--attachment", "1", "-o", file, code=73)
    assert done.stderr.decode() == f"gsmtpctl: {file}: is there already; nothing is overwritten\n"
    assert Path(file).read_bytes() == b"%PDF"
    missing = str(tmp_path / "no" / "x")
    done = run(daemon, "show", number, "--attachment", "1", "-o", missing, code=73)
    assert b"No such file or directory" in done.stderr


def test_an_attachment_that_is_not_there(shown: tuple[Gsmtpd, str]) -> None:
    daemon, number = shown
    done = run(daemon, "show", number, "--attachment", "4", code=69)
    assert done.stderr == b"gsmtpctl: no attachment 4; there are 3\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attachment", "0"], b"the first has the number 1"),
        (["--attachment", "x"], b"'x' is not a number"),
        (["--raw", "--headers"], b"not allowed with"),
        (["-o", "x"], b"-o is for --attachment"),
    ],
)
def test_arguments_of_show(arguments: list[str], said: bytes) -> None:
    daemon = Gsmtpd()
    assert said in run(daemon, "show", "1", *arguments, code=2).stderr
    daemon.close()


def test_a_mail_that_is_not_there(kept: Kept) -> None:
    assert b"no mail 7; see: gsmtpctl list" in run(kept.daemon, "show", "7", code=69).stderr


def test_show_has_what_is_left_of_a_mail(shown: tuple[Gsmtpd, str], kept: Kept) -> None:
    """Its octets were kept elsewhere for a while: the rest is in the database."""
    daemon, number = shown
    before = daemon.ctl("show", number)
    kept.table.query("UPDATE new_mail SET mail = '', mail_encoding = 'redis'")
    done = run(daemon, "show", number, code=69)
    assert done.stdout.decode() == before
    assert done.stderr.startswith(f"gsmtpctl: mail {number}: its bytes were kept in redis".encode())
    for form in (["--raw"], ["--headers"], ["--attachment", "1"]):
        assert run(daemon, "show", number, *form, code=69).stdout == b""


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("invoice.pdf", "invoice.pdf"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("../", "attachment-7.png"),
        ("..", "attachment-7.png"),
        (". .", "attachment-7.png"),
        ("", "attachment-7.png"),
        (".bashrc", "bashrc"),
        ("-rf", "rf"),
        ("--help -x", "help -x"),
        ("~root", "root"),
        ("a\nb\tc\x00d\x7fe\x9bf", "a_b_c_d_e_f"),
        ("exe\u202egpj.scr", "exe_gpj.scr"),
        ("Gr\xfc\xdfe.txt", "Gr\xfc\xdfe.txt"),
        ("x" * 300 + ".pdf", "x" * 197 + ".pdf"),
        ("\xfc" * 300, "\xfc" * 100),
        ("a." + "x" * 300, "a." + "x" * 198),
        ("name.", "name"),
    ],
)
def test_names_of_files(name: str, safe: str) -> None:
    assert safe_name(name, 7, "image/png") == safe


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("message/rfc822", ".eml"), ("application/pdf", ".pdf"), ("x/y", ".bin"), ("", ".bin")],
)
def test_names_of_what_has_none(kind: str, ending: str) -> None:
    assert safe_name("", 1, kind) == f"attachment-1{ending}"


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
            mariadb.query(statement.replace("%", "%%"), database=schema)
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
