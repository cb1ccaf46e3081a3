"""Do the examples in the manual pages work? Taken from the pages, with other ports and paths."""

from __future__ import annotations

import os
import re
import shlex
import smtplib
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from configobj import ConfigObj  # type: ignore[import-untyped]
from redis import Redis as RedisClient

from tests.accounting import Mail, MySQLTable, count, rows, send, simple, table_of
from tests.servers import (
    Gsmtpd,
    MariaDB,
    Redis,
    Server,
    environment,
    find_program,
    free_port,
    mysql_store,
    wait_for,
)
from tests.unit.test_manpages import Block, block, blocks, source, views_of_the_page

MAIL = simple("Hello")
WITH_FILE = Mail(
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\nSee the file.\r\n"
    b"--b\r\nContent-Type: application/pdf; name=a.pdf\r\n\r\n%PDF\r\n"
    b"--b--\r\n"
)
OLD, YOUNG = "2001-02-03 04:05:06", "2999-02-03 04:05:06"


# --- running what is printed --------------------------------------------------------------------


def replaced(text: str, changes: Mapping[str, object]) -> str:
    """`text` with other ports and paths; each of them must be there."""
    for old, new in changes.items():
        assert old in text, f"{old} is not in\n{text}"
        text = text.replace(old, str(new))
    return text


def commands(page: str, subsection: str) -> list[str]:
    """The commands behind a prompt below a heading, a continued one as one line."""
    text = "".join(b.text for b in blocks(page) if b.subsection == subsection)
    lines = text.replace("\\\n", "").splitlines()
    return [line[2:] for line in lines if line.startswith(("# ", "$ "))]


def sql(kind: str, one: Block) -> Iterator[str]:
    """The statements of a block, if it is for that kind of database."""
    head, _, text = one.text.partition("\n")
    if head.startswith("-- ") and kind in head[3:].split(", "):
        yield from (part.strip() for part in text.split(";\n") if part.strip())


def all_sql(kind: str, subsection: str) -> list[str]:
    page = "gsmtpd-schema.5"
    return [s for b in blocks(page) if b.subsection == subsection for s in sql(kind, b)]


class Shell:
    """Runs commands in a directory where some programs are ours.

    programs: the text of a line of shell for each name.
    """

    def __init__(self, directory: Path, programs: Mapping[str, str]) -> None:
        self._directory = directory
        self._bin = directory / "bin"
        self._bin.mkdir()
        for name, line in programs.items():
            file = self._bin / name
            file.write_text(f"#!/bin/sh\n{line}\n")
            file.chmod(0o755)

    def run(self, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `script`; it ends where a command of it fails."""
        path = f"{self._bin}:{os.environ['PATH']}:/usr/sbin"
        return subprocess.run(
            ["sh", "-e", "-c", script],
            check=False,
            capture_output=True,
            text=True,
            cwd=self._directory,
            env=environment() | {"PATH": path} | environ,
            timeout=60,
        )

    def works(self, script: str, **environ: str) -> str:
        """Its output; an assertion fails unless it ends well."""
        done = self.run(script, **environ)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def ours(conf: Path | None = None) -> dict[str, str]:
    """gsmtpd and gsmtpctl as they are here, with another configuration as the default."""
    front = f"exec {shlex.quote(sys.executable)} -m"
    c = f"-c {conf}" if conf else ""
    return {"gsmtpd": f'{front} gsmtpd {c} "$@"', "gsmtpctl": f'{front} gsmtpd.ctl {c} "$@"'}


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """A directory with swaks at hand."""
    find_program("swaks")
    return tmp_path


# --- the first mail -----------------------------------------------------------------------------


def test_the_first_mail(sandbox: Path) -> None:
    """As installed: gsmtpd serves localhost."""
    with Gsmtpd({"domains": {"accept": ""}}) as daemon:
        shell = Shell(sandbox, ours(daemon.conf) | {"systemctl": "exit 0"})
        check, _, swaks, listing, show = commands("gsmtpd.8", "The first mail")
        assert "the configuration is good" in shell.works(check)
        said = shell.works(replaced(swaks, {"127.0.0.1": f"127.0.0.1:{daemon.port}"}))
        assert "250 2.0.0 OK: queued as " in said
        assert "you@localhost" in shell.works(listing)
        assert re.search(r"^To: +you@localhost$", shell.works(show), re.MULTILINE)


def test_a_trial_without_root(sandbox: Path) -> None:
    script = replaced(block("gsmtpd.8", "A trial without root", "mkdir"), {"2525": free_port()})
    shell = Shell(sandbox, ours())
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    try:
        said = shell.works(script, GSMTPD_SERVER_USER=user)
    finally:
        shell.run("gsmtpctl -c trial/gsmtpd.conf stop")  # if it did not come so far
    listed = next(line for line in said.splitlines() if line.startswith("     1  "))
    assert "you@example.com" in listed
    assert "\nTo:      you@example.com\n" in said
    assert "\n\nThis is a test mailing\n" in said
    assert said.endswith("stopped\n")
    assert "result=accepted" in (sandbox / "trial" / "gsmtpd.log").read_text()


# --- TLS ----------------------------------------------------------------------------------------


def certificate(directory: Path) -> None:
    """What certbot leaves."""
    subprocess.run(
        [
            *(find_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-keyout", "privkey.pem", "-out", "fullchain.pem", "-subj", "/CN=mx.example.com"),
        ],
        check=True,
        capture_output=True,
        cwd=directory,
    )


def test_tls(sandbox: Path) -> None:
    """The hook, the listeners, and who tries them; but for certbot, whose part is `certificate`."""
    page, renewed, kept = "gsmtpd.conf.5", sandbox / "live/mx.example.com", sandbox / "etc"
    renewed.mkdir(parents=True)
    certificate(renewed)
    hook = sandbox / "hook"
    group = subprocess.run(["id", "-gn"], check=True, capture_output=True, text=True).stdout.strip()
    paths = {"/etc/gsmtpd": kept, "-g gsmtpd": f"-g {group}"}
    hook.write_text(replaced(block(page, "TLS", "#!/bin/sh"), paths))
    hook.chmod(0o755)
    said = commands(page, "TLS")
    by_hand = [c for c in said if c.startswith(("export ", "/etc/letsencrypt/"))]
    changes = {
        "/etc/letsencrypt/live": renewed.parent,
        "/etc/letsencrypt/renewal-hooks/deploy/gsmtpd": hook,
    }
    shell = Shell(sandbox, {})
    shell.works(replaced("\n".join(by_hand), changes))
    assert (kept / "mx.example.com/privkey.pem").stat().st_mode & 0o777 == 0o640
    text = replaced(block(page, "TLS", "[server]"), {"/etc/gsmtpd": kept})
    settings = ConfigObj(text.splitlines(), interpolation=False, list_values=False).dict()
    daemon = Gsmtpd()
    ports = {"tls": daemon.port, "tlsc": free_port()}
    for listener, port in zip(settings["listen"].values(), ports.values(), strict=True):
        listener["address"] = f"127.0.0.1:{port}"
    daemon.configure(settings)
    with daemon:
        for option, port in ports.items():
            (swaks,) = (c for c in said if c.startswith("swaks") and f"--{option} " in c)
            heard = shell.works(replaced(swaks, {"mx.example.com": f"127.0.0.1:{port}"}))
            assert "=== TLS started" in heard
            assert "250 2.0.0 OK: queued as " in heard
        assert table_of(daemon).query("SELECT is_tls FROM new_mail") == [(1,), (1,)]
        wait_for(lambda: daemon.log.read_text().count(" tls=TLSv1.3:TLS_") == 2)


# --- a balancer ---------------------------------------------------------------------------------

BALANCER = "127.0.0.10"


class HAProxy(Server):
    """HAProxy with the configuration of the page in front of two daemons."""

    def __init__(self, first: Gsmtpd, second: Gsmtpd) -> None:
        super().__init__("haproxy")
        changes = {
            ":::25 v4v6": f"127.0.0.1:{self.port}",
            "192.0.2.11:25": f"127.0.0.1:{first.port} source {BALANCER}",
            "192.0.2.12:25": f"127.0.0.1:{second.port} source {BALANCER}",
        }
        text = replaced(block("gsmtpd.8", "Two machines", "frontend"), changes)
        (self.path / "haproxy.cfg").write_text(text)

    def command(self) -> list[str]:
        return [find_program("haproxy"), "-db", "-f", str(self.path / "haproxy.cfg")]


def test_haproxy(mariadb: MariaDB, schema: str) -> None:
    (text,) = (b.text for b in blocks("gsmtpd.8") if b.text.startswith("[listen]"))
    text = replaced(text, {"192.0.2.10": BALANCER})
    settings = mysql_store(mariadb, schema) | ConfigObj(text.splitlines(), list_values=False).dict()
    del settings["listen"]["mx"]["address"]
    with Gsmtpd(settings) as first, Gsmtpd(settings) as second, HAProxy(first, second) as balancer:
        check = [find_program("haproxy"), "-c", "-f", str(balancer.path / "haproxy.cfg")]
        subprocess.run(check, check=True, capture_output=True)
        for last in range(1, 5):
            here = (f"127.0.0.{last}", 0)
            with smtplib.SMTP(*balancer.address, timeout=60, source_address=here) as client:
                assert client.sendmail("a@example.org", "b@example.com", MAIL.content) == {}
        for daemon in (first, second):
            wait_for(lambda: "result=accepted" in daemon.log.read_text())  # noqa: B023
        table = MySQLTable(mariadb, schema)
        found = table.query("SELECT ip_addr FROM new_mail ORDER BY ip_addr")
        assert found == [(f"127.0.0.{last}",) for last in range(1, 5)]
        assert first.stop() == 0
        for _ in range(4):
            assert send(balancer.address, MAIL)[0].code == 250
        assert count(table) == 8


# --- the table in MySQL -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MariaDB, Gsmtpd]]:
    """A MariaDB with the settings of gsmtpd-schema(5), a gsmtpd as in gsmtpd.conf(5), one mail."""
    page, heading = "gsmtpd.conf.5", "MySQL in five lines"
    (settings,) = (b.lines for b in blocks("gsmtpd-schema.5") if b.lines[0] == "[mysqld]")
    options = [f"--{line.replace(' ', '')}" for line in settings[1:]]
    # The binary log is what sync_binlog is for.
    with MariaDB(durable=True, options=[*options, "--log-bin"]) as server:
        for statement in block(page, heading, "CREATE DATABASE").split(";\n"):
            if statement.strip():
                server.query(statement)
        secret = tmp_path_factory.mktemp("etc") / "gsmtpd.password"
        install, echo, init_db, check, _ = commands(page, heading)
        install = install.replace(" -g gsmtpd", "").replace("640", "600")
        for command in (install, echo):
            script = replaced(command, {"/etc/gsmtpd.password": secret})
            subprocess.run(["sh", "-e", "-c", script], check=True)
        text = replaced(
            block(page, heading, "[store]"),
            {"/run/mysqld/mysqld.sock": server.socket, "/etc/gsmtpd.password": secret},
        )
        lines = text.splitlines()
        assert len(lines) == 5
        daemon = Gsmtpd(ConfigObj(lines, interpolation=False, list_values=False).dict())
        shell = Shell(daemon.path, ours(daemon.conf))
        assert shell.works(init_db) == "the tables are in database gsmtpd\n"
        assert "warning" not in shell.run(check).stderr
        with daemon:
            assert send(daemon.address, MAIL)[0].code == 250
            yield server, daemon


def test_reading_in_mysql(five_lines: tuple[MariaDB, Gsmtpd]) -> None:
    server, daemon = five_lines
    server.query("TRUNCATE new_mail", database="gsmtpd")
    uncounted = "SELECT id FROM gm2_received"
    wait_for(lambda: server.query(uncounted, database="gsmtpd") == [])
    server.query("UPDATE gm2_setting SET setting_value = 0", database="gsmtpd")
    assert send(daemon.address, WITH_FILE)[0].code == 250
    counted = "SELECT setting_value FROM gm2_setting"
    wait_for(lambda: server.query(counted, database="gsmtpd") == [(1,)])
    statements = [s.replace("you@", "b@") for s in all_sql("MySQL", "Reading")]
    check_reading([server.query(statement, database="gsmtpd") for statement in statements])
    for table in ("new_mail", "mail_attachment"):
        assert server.query(f"SELECT COUNT(*) FROM {table}", database="gsmtpd") == [(0,)]


def test_the_views_in_mysql(five_lines: tuple[MariaDB, Gsmtpd]) -> None:
    server, _ = five_lines
    found: dict[str, list[str]] = {}
    for view, column in server.query(
        "SELECT c.table_name, c.column_name FROM information_schema.columns AS c"
        " JOIN information_schema.views AS v USING (table_schema, table_name)"
        " WHERE table_schema = 'gsmtpd' ORDER BY table_name, ordinal_position"
    ):
        found.setdefault(view, []).append(column)
    assert found == views_of_the_page()


def test_compressed_mail_in_mysql_and_python(mariadb: MariaDB, schema: str) -> None:
    settings = mysql_store(mariadb, schema) | {"content": {"compress": "9"}}
    (in_front, as_sent) = (s for b in blocks("gsmtpd-schema.5") if b.section == "COMPRESSED MAIL"
                           for s in sql("MySQL", b))  # fmt: skip
    with Gsmtpd(settings) as daemon:
        assert send(daemon.address, MAIL)[0].code == 250
        ((octets,),) = mariadb.query(in_front, database=schema)
        assert octets.startswith(b"Delivered-To: b@example.com\r\nReturn-Path: ")
        assert octets.endswith(MAIL.content)
        assert mariadb.query(as_sent, database=schema) == [(MAIL.content,)]
        ((mail,),) = mariadb.query("SELECT mail FROM new_mail", database=schema)
        assert python_of_the_page("decompress(row", {"mail": mail}) == octets


def python_of_the_page(part: str, row: Mapping[str, object], **others: object) -> object:
    """What the line of Python in COMPRESSED MAIL with that part in it makes of a row."""
    (line,) = (line for b in blocks("gsmtpd-schema.5") for line in b.lines if part in line)
    expression = line.removeprefix("Python:").partition(" = ")[2] or line.removeprefix("Python:")
    return eval(expression.strip(), {"zlib": zlib, "row": row, **others})  # noqa: S307


def test_rights_in_mysql(five_lines: tuple[MariaDB, Gsmtpd]) -> None:
    server, daemon = five_lines
    statements = [s for b in blocks("gsmtpd-schema.5") if b.section == "RIGHTS"
                  for s in sql("MySQL", b)]  # fmt: skip
    assert len(statements) == 5
    for statement in statements:
        server.query(statement)
    daemon.kill()
    daemon.start()
    assert send(daemon.address, MAIL)[0].code == 250
    reader = {"user": "reader", "password": "another password", "database": "gsmtpd"}
    ((highest,),) = server.query("SELECT MAX(mail_id) FROM mail_inbox", **reader)
    for table in ("new_mail", "mail_attachment"):
        server.query(f"DELETE FROM {table} WHERE mail_id = %s", (highest,), **reader)


def test_deleting_by_hand_in_mysql(five_lines: tuple[MariaDB, Gsmtpd]) -> None:
    server, daemon = five_lines
    server.query("TRUNCATE new_mail", database="gsmtpd")
    server.query("TRUNCATE mail_attachment", database="gsmtpd")
    for date in (OLD, YOUNG):
        assert send(daemon.address, WITH_FILE)[0].code == 250
        newest = "UPDATE new_mail SET date = %s ORDER BY mail_id DESC LIMIT 1"
        server.query(newest, (date,), database="gsmtpd")
    for statement in all_sql("MySQL", "By hand"):
        server.query(statement, database="gsmtpd")
    found = server.query("SELECT mail_id, date FROM new_mail", database="gsmtpd")
    assert [str(date) for _, date in found] == [YOUNG]
    attached = server.query("SELECT mail_id FROM mail_attachment", database="gsmtpd")
    assert attached == [(found[0][0],)]


def hours(server: MariaDB, database: str) -> int:
    """How many partitions new_mail has."""
    sql = (
        "SELECT COUNT(partition_name) FROM information_schema.partitions"
        " WHERE table_schema = %s AND table_name = 'new_mail'"
    )
    return int(str(server.query(sql, (database,))[0][0]))


def test_partitions(mariadb: MariaDB, schema: str) -> None:
    convert, back = all_sql("MySQL", "Partitions")
    table = MySQLTable(mariadb, schema)
    settings = mysql_store(mariadb, schema, partition="hour")
    settings["store"]["keep"] = "3650d"
    with Gsmtpd(mysql_store(mariadb, schema)) as daemon:
        assert send(daemon.address, MAIL)[0].code == 250
        mariadb.query(convert, database=schema)
        assert hours(mariadb, schema) == 2
        daemon.configure(settings)
        daemon.ctl("reload")
        wait_for(lambda: hours(mariadb, schema) > 24)
        assert send(daemon.address, MAIL)[0].code == 250
        daemon.configure(mysql_store(mariadb, schema))
        daemon.ctl("reload")
        mariadb.query(back, database=schema)
        assert send(daemon.address, MAIL)[0].code == 250
    assert hours(mariadb, schema) == 0
    assert [row.content for row in rows(table)] == [MAIL.content] * 3


def test_mail_for_an_hour(five_lines: tuple[MariaDB, Gsmtpd], tmp_path: Path) -> None:
    server, _ = five_lines
    page, heading = "gsmtpd.conf.5", "Mail for an hour"
    options = [word for line in block(page, heading, "maxmemory").splitlines()
               for word in f"--{line}".split()]  # fmt: skip
    server.query("CREATE DATABASE hours CHARACTER SET utf8mb4")
    (grant,) = (part for part in block(page, "MySQL in five lines", "CREATE").split(";\n")
                if part.startswith("GRANT"))  # fmt: skip
    server.query(replaced(grant, {"gsmtpd.*": "hours.*"}))
    secret = tmp_path / "password"
    secret.write_text("a password\n")
    secret.chmod(0o600)
    with Redis(options=options) as redis:
        text = replaced(
            block(page, heading, "[domains]").partition("\n\n")[2],
            {
                "/run/mysqld/mysqld.sock": f"{server.socket}\ndatabase = hours",
                "/etc/gsmtpd.password": secret,
                "backend = redis": f"backend = redis\naddress = {redis.socket}",
            },
        )
        store = ConfigObj(text.splitlines(), interpolation=False, list_values=False).dict()
        daemon = Gsmtpd(store)
        Shell(tmp_path, ours(daemon.conf)).works("gsmtpctl init-db --apply")
        assert hours(server, "hours") > 24
        with daemon:
            assert send(daemon.address, MAIL)[0].code == 250
            sql = "SELECT mail_encoding, mail, body, hash FROM new_mail"
            ((encoding, mail, body, key),) = server.query(sql, database="hours")
            assert (encoding, mail, body) == ("redis", b"", "Hello\n")
            client = SimpleNamespace(Redis=lambda: RedisClient(unix_socket_path=str(redis.socket)))
            octets = python_of_the_page("redis.Redis", {"hash": key}, redis=client)
            assert isinstance(octets, bytes)
            assert octets.startswith(b"Return-Path: <a@example.org>\r\nReceived: from ")
            assert octets.endswith(MAIL.content)
            assert daemon.ctl("show", "1").endswith("\n\nHello\n")
        server.query("DROP DATABASE hours")


def test_the_settings_of_the_database(mariadb: MariaDB, five_lines: tuple[MariaDB, Gsmtpd]) -> None:
    _, daemon = five_lines
    said = daemon.log.read_text()
    assert "result=accepted" in said
    assert "DURABILITY" not in said
    assert "max_allowed_packet" not in said
    ((packet,),) = mariadb.query("SELECT @@max_allowed_packet")  # as by default
    assert f"to {packet - 65536} bytes" in source("gsmtpd-schema.5")


def check_reading(found: list[list[tuple[object, ...]]]) -> None:
    """What the statements in "Reading" have found, where there is one mail, WITH_FILE."""
    size = len(WITH_FILE.content)
    newest, whole, sent, by_id, files, others, twice, last_hour, hours, domains, count = found[:11]
    assert [row[2:] for row in newest] == [
        ("b@example.com", "a@example.org", "", "See the file.", 1, size)
    ]
    assert bytes(sent[0][0]) == WITH_FILE.content  # type: ignore[arg-type]
    assert bytes(whole[0][0]).endswith(WITH_FILE.content)  # type: ignore[arg-type]
    assert bytes(whole[0][0]).startswith(b"Delivered-To: b@example.com\r\n")  # type: ignore[arg-type]
    assert by_id == twice == []
    assert files == [(1, "a.pdf", "application/pdf", 4)]
    assert [row[0] for row in others] == ["b@example.com"]
    assert last_hour == [(1, size)]
    assert [row[1:] for row in hours] == [(1, 1, size)]
    assert [row[:3] for row in domains] == [("example.com", 1, size)]
    assert count == [(1,)]
    assert [row[0] for row in found[11]] == [newest[0][0]]


# --- the table in SQLite ------------------------------------------------------------------------


def test_reading_in_sqlite() -> None:
    with Gsmtpd() as daemon:
        assert send(daemon.address, WITH_FILE)[0].code == 250
        with sqlite3.connect(daemon.mail_db) as connection:
            check_reading(
                [
                    connection.execute(s.replace("you@", "b@")).fetchall()
                    for s in all_sql("SQLite", "Reading")
                ]
            )
            for table in ("new_mail", "mail_attachment"):
                assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)


def test_purging_by_hand(tmp_path: Path) -> None:
    there, one, kept = commands("gsmtpd-schema.5", "By hand")
    with Gsmtpd({"domains": {"accept": "example.com, example.net"}}) as daemon:
        other = MAIL._replace(recipients=("b@example.net",))
        send(daemon.address, MAIL, other, MAIL)
        with sqlite3.connect(daemon.mail_db) as connection:
            connection.execute("UPDATE new_mail SET date = ? WHERE mail_id < 3", (OLD,))
        connection.close()
        shell = Shell(tmp_path, ours(daemon.conf))
        assert shell.works(there) == "would delete 2 mails\n"
        assert shell.works(one) == "deleted 1 mails\n"
        assert shell.works(kept, GSMTPD_STORE_KEEP="1h") == "deleted 1 mails\n"
        assert [row.mail_id for row in rows(table_of(daemon))] == [3]


def test_copying_and_shrinking_in_sqlite(sandbox: Path) -> None:
    page = "gsmtpd-schema.5"
    find_program("sqlite3")
    with Gsmtpd() as daemon:
        send(daemon.address, *[MAIL] * 3)
        shell = Shell(sandbox, {"runuser": 'shift 3; exec "$@"', "systemctl": "exit 0"})
        (copy,) = commands(page, "A copy of the mail file")
        shell.works(replaced(copy, {"/var/lib/gsmtpd": daemon.path, "/root": sandbox}))
        with sqlite3.connect(sandbox / "mail.db") as copied:
            assert copied.execute("SELECT COUNT(*) FROM new_mail").fetchone() == (3,)
        assert daemon.stop() == 0
        smaller = "\n".join(commands(page, "A smaller mail file"))
        shell.works(replaced(smaller, {"/var/lib/gsmtpd": daemon.path}))
        assert count(table_of(daemon)) == 3
