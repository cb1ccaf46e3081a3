"""Who may receive, from whom, and where does it go: asked of a running server, by every means?

What becomes of this while a database is away is in tests/faults/test_lookups_live.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from tests.accounting import (
    Client,
    Gone,
    MySQLTable,
    Table,
    count,
    send,
    table_of,
    with_token,
)
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, environment, merge, mysql_store, wait_for

OK, UNKNOWN, NOT_SERVED = "250 2.1.5", "550 5.1.1", "550 5.7.1"
LATER, DENIED = "451 4.1.1", "554 5.7.1"
SOON = 60.0  # seconds; what has changed is promised within a few
BURST = 50
QUERIES = {
    "domains": {"query": "SELECT 1 FROM served_domain WHERE name = %s"},
    "recipients": {"query": "SELECT 1 FROM gm2_address WHERE address_email = %s"},
}
TABLES = [
    "CREATE TABLE gm2_address (address_email varchar(255) PRIMARY KEY)",
    "CREATE TABLE served_domain (name varchar(255) PRIMARY KEY)",
]


class From(Client):
    """A client that comes from an address of its own."""

    def __init__(self, server: tuple[str, int], source: str) -> None:
        self.socket = socket.create_connection(server, 60, (source, 0))
        self._file = self.socket.makefile("rb")


def rcpt(daemon: Gsmtpd, *recipients: str, parameters: str = "") -> list[str]:
    """The codes that recipients are answered with, one after the other in one session."""
    with Client(daemon.address) as client:
        begun(client, parameters)
        return [client.command(f"RCPT TO:<{each}>").text[:9] for each in recipients]


def begun(client: Client, parameters: str = "") -> Client:
    """In a transaction."""
    assert client.hello().command(f"MAIL FROM:<a@example.org>{parameters}").code == 250
    return client


def soon(daemon: Gsmtpd, recipient: str, code: str) -> None:
    """It is answered so in the end."""
    wait_for(lambda: rcpt(daemon, recipient) == [code], SOON)


def stored(table: Table, id_: str) -> list[tuple]:
    """The columns `recipient` and `to` of a message's rows."""
    names = "recipient, `to`"
    return sorted(table.query(f"SELECT {names} FROM new_mail WHERE hash = '{id_}'"))


def said(daemon: Gsmtpd, text: str) -> list[str]:
    """The lines of the log that have `text` in them."""
    return [line for line in daemon.log.read_text().splitlines() if text in line]


def field(line: str, name: str) -> str:
    """The value of a field of the mail log that needs no quotes."""
    found = re.search(rf" {name}=(\S+)", line)
    assert found is not None, line
    return found[1]


# --- the administrator's own tables ---------------------------------------------------------------


class Asked(NamedTuple):
    """A daemon that asks a database with QUERIES. execute: SQL in the tables that it asks."""

    daemon: Gsmtpd
    table: Table
    execute: Callable[[str], object]


@pytest.fixture(scope="module")
def logged() -> Iterator[MariaDB]:
    """A MariaDB that logs each statement in a file `general`."""
    with MariaDB(options=["--general-log", "--general-log-file=general"]) as server:
        make_schema(server, "mail")
        for statement in TABLES:
            server.query(statement, database="mail")
        yield server


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    """With either database; an answer holds for a second, and tables are empty."""
    settings = merge(QUERIES, {"recipients": {"query_ttl": "1s"}})
    if request.param == "mariadb":
        server = request.getfixturevalue("logged")
        with Gsmtpd(mysql_store(server, "mail") | settings) as daemon:
            table = MySQLTable(server, "mail")
            yield Asked(daemon, table, lambda sql: table.query(sql.replace("%", "%%")))
    else:
        with Gsmtpd(settings) as daemon:
            sqlite = table_of(daemon)
            assert rcpt(daemon, "a@example.com", "a@sql.example") == ["451 4.4.3"] * 2
            for statement in TABLES:
                sqlite.query(statement)
            soon(daemon, "a@example.com", UNKNOWN)
            yield Asked(daemon, sqlite, sqlite.query)


def test_addresses_that_come_and_go(asked: Asked) -> None:
    """Within the time that an answer holds; no signal is sent."""
    address = "someone@example.com"
    assert rcpt(asked.daemon, address) == [UNKNOWN]
    asked.execute(f"INSERT INTO gm2_address VALUES ('{address}')")
    soon(asked.daemon, address, OK)
    reply = send(asked.daemon.address, with_token(recipients=[address]))[0]
    assert stored(asked.table, reply.id) == [(address, address)]
    asked.execute("DELETE FROM gm2_address")
    soon(asked.daemon, address, UNKNOWN)


def test_domains_that_come_and_go(asked: Asked) -> None:
    asked.execute("INSERT INTO gm2_address VALUES ('someone@sql.example')")
    assert rcpt(asked.daemon, "someone@sql.example") == [NOT_SERVED]
    asked.execute("INSERT INTO served_domain VALUES ('sql.example')")
    soon(asked.daemon, "someone@sql.example", OK)
    assert rcpt(asked.daemon, "postmaster@sql.example", "x@sql.example") == [OK, UNKNOWN]
    asked.execute("DELETE FROM served_domain")
    soon(asked.daemon, "someone@sql.example", NOT_SERVED)
    asked.execute("DELETE FROM gm2_address")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Some.One@EXAMPLE.com", "some.one@example.com"),
        ("o'neil@example.com", "o''neil@example.com"),
        ("a%s@example.com", "a%s@example.com"),
        ("a%@example.com", "a%@example.com"),
        ('"two words"@example.com', '"two words"@example.com'),
        ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
        ("b@B\u00dcCHER.example", "b@xn--bcher-kva.example"),
        ("\u00c4rger@example.com", "\u00e4rger@example.com"),
    ],
)
def test_the_parameter(asked: Asked, sent: str, kept: str) -> None:
    """It is asked for in lower case and A-labels, and it is never SQL."""
    asked.execute("DELETE FROM served_domain")
    asked.execute("INSERT INTO served_domain VALUES ('xn--bcher-kva.example')")
    asked.execute(f"INSERT INTO gm2_address VALUES ('{kept}')")
    try:
        wait_for(lambda: rcpt(asked.daemon, sent, parameters=" SMTPUTF8") == [OK], SOON)
        other = f"x{sent}" if sent[0] != '"' else f'"x{sent[1:]}'
        assert rcpt(asked.daemon, other, parameters=" SMTPUTF8") == [UNKNOWN]
    finally:
        asked.execute("DELETE FROM gm2_address")


@pytest.mark.parametrize("said", ["' OR '1'='1", "x' OR 1=1 -- ", "x\\' OR 1=1 -- "])
def test_sql_in_an_address(asked: Asked, said: str) -> None:
    asked.execute("INSERT INTO gm2_address VALUES ('someone@example.com')")
    quoted = said.replace("\\", "\\\\")
    assert rcpt(asked.daemon, f'"{quoted}"@example.com') == [UNKNOWN]
    asked.execute("DELETE FROM gm2_address")


def test_what_was_asked_is_not_asked_again(logged: MariaDB) -> None:
    """Neither what is there nor what is not."""
    logged.query("INSERT INTO gm2_address VALUES ('yes@once.example')", database="mail")
    logged.query("INSERT INTO served_domain VALUES ('once.example')", database="mail")
    with Gsmtpd(mysql_store(logged, "mail") | QUERIES) as daemon:
        with Client(daemon.address) as client:
            begun(client).send(b"RCPT TO:<yes@once.example>\r\n" * 500)
            client.send(b"RCPT TO:<Yes@Once.Example>\r\n" * 500)
            assert {client.reply().text[:9] for _ in range(1000)} == {OK}
        for refused in ("no@once.example", "no@never.example"):
            for _ in range(20):  # sessions; in one of them it would be too many commands
                with Client(daemon.address) as client:
                    begun(client).send(f"RCPT TO:<{refused}>\r\n".encode() * 50)
                    assert {client.reply().code for _ in range(50)} == {550}
    queries = (logged.path / "data" / "general").read_text(errors="replace")
    found = re.findall(r"SELECT 1 FROM (?:gm2_address|served_domain) WHERE .*", queries)
    values = [line.rpartition("= ")[2] for line in found]
    assert sorted(value for value in values if re.search(r"(once|never)\.example", value)) == [
        "'never.example'",
        "'no@once.example'",
        "'once.example'",
        "'yes@once.example'",
    ]


def test_many_in_one_burst(asked: Asked) -> None:
    """Each has to be looked up; replies keep the order, and the rows are just those taken."""
    asked.execute("INSERT INTO served_domain VALUES ('burst.example')")
    recipients, codes = [], []
    for number in range(BURST):
        domain, code = [
            ("burst.example", OK),
            ("burst.example", UNKNOWN),
            ("example.com", OK),
            ("example.com", UNKNOWN),
            (f"not{number}.example", NOT_SERVED),
        ][number * 7 % 5]
        recipients.append(f"r{number}@{domain}")
        codes.append(code)
        if code == OK:
            asked.execute(f"INSERT INTO gm2_address VALUES ('{recipients[-1]}')")
    with Client(asked.daemon.address) as client:
        client.hello().send(
            b"MAIL FROM:<a@example.org>\r\n"
            + "".join(f"RCPT TO:<{each}>\r\n" for each in recipients).encode()
            + b"DATA\r\n"
        )
        assert client.reply().code == 250
        assert [client.reply().text[:9] for _ in recipients] == codes
        assert client.reply().code == 354
        client.send(b"Subject: burst\r\n\r\nx\r\n.\r\n")
        reply = client.reply()
    taken = [each for each, code in zip(recipients, codes, strict=True) if code == OK]
    assert stored(asked.table, reply.id) == sorted((each, each) for each in taken)


def test_clients_at_once_hear_their_own_answers(asked: Asked) -> None:
    """All ask for the same and for others while lookups are under way."""
    asked.execute("DELETE FROM gm2_address")
    for number in range(0, 40, 2):
        asked.execute(f"INSERT INTO gm2_address VALUES ('s{number}@example.com')")
    clients = [Client(asked.daemon.address) for _ in range(20)]
    for each in clients:
        begun(each)
    for number, each in enumerate(clients):
        order = [(number + n) % 40 for n in range(40)]
        each.send("".join(f"RCPT TO:<s{n}@example.com>\r\n" for n in order).encode())
    for number, each in enumerate(clients):
        codes = [each.reply().text[:9] for _ in range(40)]
        assert codes == [UNKNOWN if (number + n) % 2 else OK for n in range(40)]
        each.close()


# --- what becomes of one message ------------------------------------------------------------------

MIXED = {
    "domains": {"accept": "example.com, other.example"},
    "recipients": {
        "accept": "known@example.com, anywhere, @other.example",
        "unknown": "discard",
        "plus_tags": "yes",
    },
}
ALIASES = """\
# who gets what
all@example.com: known@example.com, Second@other.example,
  third@other.example   # goes on
info: known
"""


class Mixed(NamedTuple):
    daemon: Gsmtpd
    table: Table


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def mixed(request: pytest.FixtureRequest) -> Iterator[Mixed]:
    """A daemon with every kind of recipient, and either store."""
    store, table = {}, None
    if request.param == "mariadb":
        mariadb = request.getfixturevalue("mariadb")
        make_schema(mariadb, "mixed")
        store, table = mysql_store(mariadb, "mixed"), MySQLTable(mariadb, "mixed")
    daemon = Gsmtpd()
    aliases = daemon.path / "aliases"
    aliases.write_text(ALIASES)
    daemon.configure(merge(MIXED | store, {"recipients": {"aliases": aliases}}))
    with daemon:
        yield Mixed(daemon, table or table_of(daemon))
    if request.param == "mariadb":
        mariadb.query("DROP DATABASE mixed")


def test_each_recipient_has_its_own_fate(mixed: Mixed) -> None:
    """All of one message, which is answered once."""
    recipients = {
        "Known+tag@example.com": OK,
        "nobody@example.com": OK,  # discarded
        "a@elsewhere.example": NOT_SERVED,
        "all@example.com": OK,
        "INFO+x@other.example": OK,
        "noone@example.com": OK,  # discarded
        "broken@@example.com": "501 5.1.3",
        "postmaster": OK,
    }
    with Client(mixed.daemon.address) as client:
        begun(client)
        codes = [client.command(f"RCPT TO:<{each}>").text[:9] for each in recipients]
        assert codes == [*recipients.values()]
        assert client.command("DATA").code == 354
        reply = client.command("Subject: fates\r\n\r\nx\r\n.")
    assert stored(mixed.table, reply.id) == sorted(
        [
            ("Known+tag@example.com", "Known@example.com"),
            ("all@example.com", "known@example.com"),
            ("all@example.com", "Second@other.example"),
            ("all@example.com", "third@other.example"),
            ("INFO+x@other.example", "known@other.example"),
            ("postmaster@mx.example.com", "postmaster@mx.example.com"),
        ]
    )
    wait_for(lambda: len(said(mixed.daemon, f"id={reply.id}")) == 2)
    accepted, discarded = said(mixed.daemon, f"id={reply.id}")
    assert field(accepted, "result") == "accepted"
    assert field(accepted, "recipients") == "4"
    assert "nobody" not in accepted
    assert field(discarded, "result") == "discarded"
    assert field(discarded, "recipients") == "2"
    assert field(discarded, "to") == "nobody@example.com,noone@example.com"
    assert field(discarded, "reply") == "250"


def test_all_are_discarded(mixed: Mixed) -> None:
    before = count(mixed.table)
    mail = with_token(recipients=["nobody@example.com", "noone@example.com"])
    first, second = send(mixed.daemon.address, mail, mail)
    assert first.code == second.code == 250
    assert first.id != second.id
    wait_for(lambda: said(mixed.daemon, f"id={second.id}"))
    (line,) = said(mixed.daemon, f"id={second.id}")
    assert field(line, "result") == "discarded"
    assert count(mixed.table) == before


def test_mail_behind_mail_that_is_thrown_away(mixed: Mixed) -> None:
    """In one session, pipelined: the next message is nobody's but its own."""
    mails = [
        with_token(recipients=[each])
        for each in (
            "nobody@example.com",
            "known@example.com",
            "noone@example.com",
            "info@example.com",
        )
    ]
    replies = send(mixed.daemon.address, *mails)
    found = [stored(mixed.table, reply.id) for reply in replies]
    assert found == [
        [],
        [("known@example.com", "known@example.com")],
        [],
        [("info@example.com", "known@example.com")],
    ]


def test_a_mailbox_that_two_recipients_lead_to(mixed: Mixed) -> None:
    mail = with_token(recipients=["known@example.com", "all@example.com", "known@example.com"])
    reply = send(mixed.daemon.address, mail)[0]
    found = stored(mixed.table, reply.id)
    assert found.count(("all@example.com", "known@example.com")) == 1
    assert ("known@example.com", "known@example.com") in found


@pytest.mark.parametrize("backend", ["sqlite", "mariadb"])
def test_duplicates_of_what_an_alias_spread(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same message again is one, by the same recipients; to others it is not."""
    aliases = tmp_path / "aliases"
    aliases.write_text("team@example.com: a@example.com, b@example.com\n")
    settings: dict[str, Any] = {"recipients": {"aliases": aliases}}
    if backend == "mariadb":
        mariadb, schema = request.getfixturevalue("mariadb"), request.getfixturevalue("schema")
        settings |= mysql_store(mariadb, schema)
    with Gsmtpd(merge(settings, {"store": {"dedupe_window": "1h"}})) as daemon:
        table: Table = table_of(daemon)
        if backend == "mariadb":
            table = MySQLTable(mariadb, schema)
        mail = with_token(recipients=["team@example.com", "c@example.com"])
        first, again = send(daemon.address, mail, mail)
        assert first.id == again.id
        assert count(table) == 3
        for other in ("team@example.com", "a@example.com"):
            one, two = send(daemon.address, *[mail._replace(recipients=(other,))] * 2)
            assert one.id == two.id != first.id
        assert count(table) == 3 + 2 + 1
        wait_for(lambda: len(said(daemon, "result=duplicate")) == 3)


# --- files ----------------------------------------------------------------------------------------


class Files(NamedTuple):
    """A daemon whose lists are in files of one item each."""

    daemon: Gsmtpd
    path: Path

    def by_rename(self, name: str, text: str) -> None:
        """As an editor or a script does it well."""
        new = self.path / f"{name}.new"
        new.write_text(text)
        new.replace(self.path / name)

    def in_place(self, name: str, text: str) -> None:
        """As an editor or a script does it badly."""
        (self.path / name).write_text(text)


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    with TemporaryDirectory() as path:  # a short one: a line of the log is cut at 512 octets
        yield from _with_files(Path(path))


def _with_files(path: Path) -> Iterator[Files]:
    for name in ("domains", "recipients", "aliases", "allow", "deny"):
        (path / name).write_text("")
    (path / "domains").write_text("served.example\n")
    settings = {
        "domains": {"accept": f"@{path}/domains"},
        "recipients": {"accept": f"@{path}/recipients", "aliases": path / "aliases"},
        "clients": {"allow": f"@{path}/allow", "deny": f"@{path}/deny"},
        "server": {"processes": 2},
        "store": {"backend": "null"},
    }
    with Gsmtpd(settings) as daemon:
        yield Files(daemon, path)


Write = Callable[[Files, str, str], None]


def greeting(daemon: Gsmtpd, source: str) -> int:
    """The code that a client from there is greeted with."""
    with From(daemon.address, source) as client:
        return client.reply().code


def everywhere(daemon: Gsmtpd, answers: Callable[[], list[Any]], expected: list[Any]) -> None:
    """All workers answer so in the end."""

    def of_each() -> list[list[Any]]:
        return [_of(worker, daemon, answers) for worker in daemon.workers]

    wait_for(lambda: answers() == expected, SOON)
    wait_for(lambda: of_each() == [expected] * len(daemon.workers), SOON)


def _of(worker: int, daemon: Gsmtpd, answers: Callable[[], list[Any]]) -> list[Any]:
    """What is answered while all other workers stand still: mostly, one takes all clients."""
    others = [each for each in daemon.workers if each != worker]
    for other in others:
        os.kill(other, signal.SIGSTOP)
    # One that is about to stop may still be told of a client, and tell nobody.
    wait_for(lambda: all(map(_stands_still, others)))
    try:
        return answers()
    finally:
        for other in others:
            # One that stands still for long, on a machine that crawls, is replaced.
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    """Whether all its threads are stopped."""
    states = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state.rpartition(") ")[2].startswith("T") for state in states)


@pytest.mark.parametrize("write", [Files.by_rename, Files.in_place], ids=["rename", "in place"])
def test_files_that_change(files: Files, write: Write) -> None:
    """What they say counts soon, in each worker, without a signal."""

    def answers() -> list[Any]:
        new = ("postmaster@a.new.example", "someone@served.example", "team@served.example")
        try:
            return [*rcpt(files.daemon, *new), greeting(files.daemon, "127.0.0.2")]
        except (Gone, OSError):
            return []  # deny was read already, and allow not yet

    assert answers() == [NOT_SERVED, UNKNOWN, UNKNOWN, 220]
    before = {path.name: path.read_text() for path in files.path.iterdir()}
    write(files, "domains", "\ufeff# ours\r\nserved.example\r\n*.new.example # all below\r\n")
    write(files, "recipients", "Someone@Served.Example")
    write(files, "aliases", "team: a, b\n")
    write(files, "deny", "127.0.0.0/29\n")
    write(files, "allow", "127.0.0.1\n")
    everywhere(files.daemon, answers, [OK, OK, OK, 554])
    for name, text in before.items():
        write(files, name, text)
    everywhere(files.daemon, answers, [NOT_SERVED, UNKNOWN, UNKNOWN, 220])


def test_mistakes_leave_all_as_it_was(files: Files) -> None:
    broken = {
        "domains": "served.example\nlater.example\n\nno domain\n",
        "recipients": "x@@y\nlater@served.example\n",
        "aliases": "later: a\nwithout a colon\n",
        "deny": "0.0.0.0/0\n192.0.2.1/24\n",
    }
    lines = {"domains": 4, "recipients": 1, "aliases": 2, "deny": 2}
    good = {name: (files.path / name).read_text() for name in broken}
    for name, text in broken.items():
        files.by_rename(name, text)

    def complaints() -> list[str]:
        wheres = [f"{files.path}/{name}:{line}: " for name, line in lines.items()]
        return [line for line in said(files.daemon, "lists: ") if all(w in line for w in wheres)]

    wait_for(lambda: len(complaints()) == 2, SOON)  # one of each worker
    later = ("postmaster@served.example", "postmaster@later.example", "later@served.example")
    everywhere(files.daemon, lambda: rcpt(files.daemon, *later), [OK, NOT_SERVED, UNKNOWN])
    for name, text in good.items():
        files.by_rename(name, text)
    wait_for(lambda: len(said(files.daemon, "lists: it works again")) == 2, SOON)
    assert len(complaints()) == 2
    files.in_place("recipients", "mended@served.example\n")
    soon(files.daemon, "mended@served.example", OK)
    files.in_place("recipients", good["recipients"])
    soon(files.daemon, "mended@served.example", UNKNOWN)


def test_half_a_million_domains(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("".join(f"d{number}.example\n" for number in range(500_000)))
    with Gsmtpd({"domains": {"accept": f"@{path}"}, "store": {"backend": "null"}}) as daemon:
        asked = ("a@d0.example", "a@d499999.example", "a@d500000.example")
        assert rcpt(daemon, *asked) == [OK, OK, NOT_SERVED]
        with path.open("a") as file:
            file.write("d500000.example\n")
        soon(daemon, "a@d500000.example", OK)
        assert rcpt(daemon, *asked) == [OK] * 3


# --- clients --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picky() -> Iterator[Gsmtpd]:
    """A daemon on IPv4 and IPv6 that some may not come to."""
    daemon = Gsmtpd()
    daemon.configure(
        {
            "listen": {"mx": {"address": f"127.0.0.1:{daemon.port}, [::1]:{daemon.port}"}},
            "clients": {"allow": "127.0.0.1, 127.0.1.0/24", "deny": "127.0.0.0/8, ::1"},
            "server": {"processes": 2},
        }
    )
    with daemon:
        yield daemon


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.2.1", "::1"])
def test_a_client_that_is_denied(picky: Gsmtpd, source: str) -> None:
    server = ("::1", picky.port) if ":" in source else picky.address
    with From(server, source) as client:
        assert client.reply().text == "554 5.7.1 No mail is taken from your address here"
        assert client.closed()
    wait_for(lambda: said(picky, f"client={source} "))
    (line,) = said(picky, f"client={source} ")
    assert "result=closed" in line
    assert 'reply="554 5.7.1 No mail is taken from your address here"' in line


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.1.9"])
def test_to_be_allowed_counts_more(picky: Gsmtpd, source: str) -> None:
    with From(picky.address, source) as client:
        assert client.hello().deliver(with_token()).code == 250


def test_a_denied_client_costs_no_other_its_place(picky: Gsmtpd) -> None:
    """However many they are, and whether they read or not."""
    denied = [From(picky.address, "127.0.0.3") for _ in range(200)]
    assert send(picky.address, with_token())[0].code == 250
    for each in denied:
        assert each.reply().code == 554
        each.close()


# --- inetd ----------------------------------------------------------------------------------------


@contextmanager
def inetd(daemon: Gsmtpd, source: str) -> Iterator[Client]:
    """A client whom a gsmtpd --inetd serves with the files of `daemon`."""
    command = [*daemon.command()[:-3], "--inetd", "-c", str(daemon.conf)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = From(listener.getsockname(), source)
        accepted, _ = listener.accept()
    with (
        accepted,
        subprocess.Popen(
            command, stdin=accepted, stdout=accepted, stderr=subprocess.DEVNULL, env=environment()
        ) as process,
    ):
        try:
            accepted.close()
            with client:
                yield client
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_all_of_it_by_inetd(mariadb: MariaDB, schema: str, tmp_path: Path) -> None:
    for statement in TABLES:
        mariadb.query(statement, database=schema)
    mariadb.query("INSERT INTO gm2_address VALUES ('known@sql.example')", database=schema)
    mariadb.query("INSERT INTO served_domain VALUES ('sql.example')", database=schema)
    (tmp_path / "domains").write_text("file.example\n")
    (tmp_path / "aliases").write_text("team@file.example: known@sql.example, x@file.example\n")
    settings = {
        "domains": {"accept": f"@{tmp_path}/domains"},
        "recipients": {"aliases": tmp_path / "aliases", "unknown": "discard"},
        "clients": {"deny": "127.0.0.2"},
    }
    daemon = Gsmtpd(merge(mysql_store(mariadb, schema) | QUERIES, settings))  # never started
    with inetd(daemon, "127.0.0.1") as client:
        begun(client)
        known, discarded = "known@sql.example", "x@sql.example"
        for recipient in (known, discarded, "team@file.example"):
            assert client.command(f"RCPT TO:<{recipient}>").text.startswith(OK)
        assert client.command("RCPT TO:<a@no.example>").text.startswith(NOT_SERVED)
        assert client.command("DATA").code == 354
        reply = client.command("Subject: x\r\n\r\nx\r\n.")
        assert client.command("QUIT").code == 221
    assert stored(MySQLTable(mariadb, schema), reply.id) == [
        (known, known),
        ("team@file.example", known),
        ("team@file.example", "x@file.example"),
    ]
    with inetd(daemon, "127.0.0.2") as client:
        assert client.reply().text.startswith(DENIED)
        assert client.closed()
    results = [field(line, "result") for line in said(daemon, " result=")]
    assert results == ["refused", "accepted", "discarded", "closed"]
    daemon.close()


# --- several workers, and a reload ----------------------------------------------------------------


def test_a_reload_brings_new_rules(tmp_path: Path) -> None:
    """To all workers, and to nobody in the middle of a session."""
    aliases = tmp_path / "aliases"
    aliases.write_text("team@example.com: a@example.com\n")
    asked = ("x@example.com", "team@example.com")
    with Gsmtpd() as daemon:

        def configure(**recipients: object) -> None:
            known = {"accept": "a@example.com"} | recipients
            daemon.configure({"recipients": known, "server": {"processes": 2}})

        configure()
        assert daemon.ctl("reload") == "reloaded\n"
        assert rcpt(daemon, *asked) == [UNKNOWN, UNKNOWN]
        with Client(daemon.address) as client:
            begun(client)
            assert client.command("RCPT TO:<x@example.com>").text.startswith(UNKNOWN)
            configure(unknown="defer", aliases=aliases)
            assert daemon.ctl("reload") == "reloaded\n"
            assert rcpt(daemon, *asked) == [LATER, OK]
            assert client.command("RCPT TO:<x@example.com>").text.startswith(UNKNOWN)
        configure(unknown="discard")
        assert daemon.ctl("reload") == "reloaded\n"
        assert rcpt(daemon, *asked) == [OK, OK]
        reply = send(daemon.address, with_token(recipients=["x@example.com"]))[0]
        assert reply.code == 250
        assert count(table_of(daemon)) == 0
        status = daemon.ctl("status", "--json")
        assert '"discarded": 1' in status


@pytest.mark.parametrize("name", ["domains", "aliases"])
def test_a_reload_is_refused_for_a_mistake_in_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("example.com\n" if name == "domains" else "a@example.com: b@example.com\n")
    domains = {"accept": f"@{path}" if name == "domains" else "example.com"}
    recipients = {"aliases": path} if name == "aliases" else {}
    with Gsmtpd({"domains": domains, "recipients": recipients}) as daemon:
        workers = daemon.workers
        path.write_text("not so: a, b, [\n")
        done = gsmtpctl(daemon, "reload")
        assert done.returncode == 78
        assert f"{path}:1: " in done.stderr
        assert daemon.workers == workers
        assert rcpt(daemon, "a@example.com") == [OK]
        daemon.stop()
        checked = subprocess.run(
            [*daemon.command(), "-t"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert checked.returncode == 78
        assert f"{path}:1: " in checked.stderr


def gsmtpctl(daemon: Gsmtpd, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        env=environment(),
    )
