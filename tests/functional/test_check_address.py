"""Does gsmtpctl check-address say what the server would do, and which line makes it do so?"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.accounting import Client, MySQLTable, send, simple
from tests.conftest import make_schema
from tests.nameserver import Rbldnsd
from tests.servers import Gsmtpd, MariaDB, environment, mysql_store

STORED, NOT_STORED, USAGE, UNAVAILABLE, CONFIG = 0, 1, 2, 69, 78
FILES = {
    "domains": "# some of ours\n\nfile.example\n*.below.example  # and these\n",
    "recipients": "# who is known\nfiled@example.com\n@whole.example\n",
    "aliases": "# who gets what\nteam@example.com: known@example.com,\n  x@sql.example\n\n"
    "@file.example: known@example.com\ninfo: known\n",
    "deny": "# whom we do not like\n127.0.0.0/29\n2001:db8::/32\n",
}
LISTS = {
    "domains": {
        "accept": '"""example.com, *.wild.example,\n'
        "    .both.example,\n"
        "    [192.0.2.1], whole.example,\n"
        '    @{path}/domains"""',
        "query": "SELECT 1 FROM served_domain WHERE name = %s",
    },
    "recipients": {
        "accept": '"""known@example.com,\n    anywhere, @{path}/recipients"""',
        "query": "SELECT 1 FROM gm2_address WHERE address_email = %s",
        "aliases": "{path}/aliases",
        "plus_tags": "yes",
    },
    "clients": {"allow": "127.0.0.1, 192.0.2.0/24", "deny": "@{path}/deny"},
}


class Checked(NamedTuple):
    """A running daemon whose configuration is asked. lists: where its list files are."""

    daemon: Gsmtpd
    lists: Path
    table: MySQLTable


@pytest.fixture(scope="module")
def checked(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    lists = tmp_path_factory.mktemp("lists")
    for name, text in FILES.items():
        (lists / name).write_text(text)
    make_schema(mariadb, "checked")
    for table, column, value in (
        ("gm2_address", "address_email", "x@sql.example"),
        ("served_domain", "name", "sql.example"),
    ):
        sql = f"CREATE TABLE {table} ({column} varchar(255) PRIMARY KEY)"
        mariadb.query(sql, database="checked")
        mariadb.query(f"INSERT INTO {table} VALUES ('{value}')", database="checked")
    settings = {
        section: {key: value.format(path=lists) for key, value in keys.items()}
        for section, keys in LISTS.items()
    }
    with Gsmtpd(mysql_store(mariadb, "checked") | settings) as daemon:
        yield Checked(daemon, lists, MySQLTable(mariadb, "checked"))
    mariadb.query("DROP DATABASE checked")


def check(
    daemon: Gsmtpd, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What gsmtpctl check-address says."""
    command = [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), "check-address"]
    return subprocess.run(
        [*command, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        env=environment() | (variables or {}),
    )


def found(daemon: Gsmtpd, *arguments: str, **variables: str) -> dict[str, Any]:
    """It as JSON."""
    done = check(daemon, "--json", *arguments, variables=variables)
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (STORED if answer["outcome"] == "accepted" else NOT_STORED)
    return answer


def line(path: Path, text: str) -> str:
    """Where the first line with `text` is, as check-address says it."""
    lines = path.read_text().splitlines()
    return f"{path}, line {next(n for n, one in enumerate(lines, 1) if text in one)}"


def rcpt(daemon: Gsmtpd, address: str, source: str) -> str:
    """What a client from `source` hears in answer to RCPT, or to its connection."""
    with Client.__new__(Client) as client:
        client.socket = socket.create_connection(daemon.address, 60, (source, 0))
        client._file = client.socket.makefile("rb")
        greeting = client.reply()
        if greeting.code != 220:
            return greeting.text
        for command in ("EHLO client.example", "MAIL FROM:<a@example.org>"):
            assert client.command(command).code == 250
        return client.command(f"RCPT TO:<{address}>").text


class Case(NamedTuple):
    """An address, what becomes of it, and the steps on the way: the rule, its item, its place.

    A place is a text in the configuration, or the name of a list's file and a text in it.
    """

    address: str
    outcome: str
    mailboxes: list[str]
    steps: list[tuple[str, str, str | tuple[str, str]]]
    client: str = ""


DOMAINS, DOMAIN_QUERY = "[domains] accept", "[domains] query"
RECIPIENTS, RECIPIENT_QUERY = "[recipients] accept", "[recipients] query"
ALIASES, ALWAYS = "[recipients] aliases", "[recipients] always_accept"
UNKNOWN, PLUS_TAGS = "[recipients] unknown", "[recipients] plus_tags"
ALLOW, DENY = "[clients] allow", "[clients] deny"
EXAMPLE = (DOMAINS, "example.com", 'accept = """example.com')
BY_SQL = (DOMAIN_QUERY, "", "query = SELECT 1 FROM served_domain")
ASKED = (RECIPIENT_QUERY, "", "query = SELECT 1 FROM gm2_address")
IN_FILE = (DOMAINS, "file.example", ("domains", "file.example"))
DEFAULT = "the default"
CASES = [
    Case(
        "known@example.com", "accepted", ["known@example.com"],
        [EXAMPLE, (RECIPIENTS, "known@example.com", "known@example.com,")],
    ),
    Case(
        "Known@EXAMPLE.com", "accepted", ["Known@example.com"],
        [EXAMPLE, (RECIPIENTS, "known@example.com", "known@example.com,")],
    ),
    Case(
        "known+a@example.com", "accepted", ["known@example.com"],
        [
            EXAMPLE,
            (RECIPIENTS, "known@example.com", "known@example.com,"),
            (PLUS_TAGS, "", "plus_tags = yes"),
        ],
    ),
    Case(
        "anywhere@a.wild.example", "accepted", ["anywhere@a.wild.example"],
        [(DOMAINS, "*.wild.example", "*.wild.example"), (RECIPIENTS, "anywhere", "anywhere, @")],
    ),
    Case(
        "anywhere@a.both.example", "accepted", ["anywhere@a.both.example"],
        [(DOMAINS, ".both.example", ".both.example"), (RECIPIENTS, "anywhere", "anywhere, @")],
    ),
    Case(
        "anywhere@[192.0.2.1]", "accepted", ["anywhere@[192.0.2.1]"],
        [(DOMAINS, "[192.0.2.1]", "[192.0.2.1]"), (RECIPIENTS, "anywhere", "anywhere, @")],
    ),
    Case(
        "filed@example.com", "accepted", ["filed@example.com"],
        [EXAMPLE, (RECIPIENTS, "filed@example.com", ("recipients", "filed@"))],
    ),
    Case(
        "x@whole.example", "accepted", ["x@whole.example"],
        [
            (DOMAINS, "whole.example", "whole.example,"),
            (RECIPIENTS, "@whole.example", ("recipients", "@whole")),
        ],
    ),
    Case(
        "anywhere@a.below.example", "accepted", ["anywhere@a.below.example"],
        [
            (DOMAINS, "*.below.example", ("domains", "*.below")),
            (RECIPIENTS, "anywhere", "anywhere, @"),
        ],
    ),
    Case("x@sql.example", "accepted", ["x@sql.example"], [BY_SQL, ASKED]),
    Case(
        "y@sql.example", "refused", [],
        [BY_SQL, ASKED, (UNKNOWN, "", DEFAULT)],
    ),
    Case("x@other.example", "refused", [], [BY_SQL]),
    Case(
        "team@example.com", "accepted", ["known@example.com", "x@sql.example"],
        [EXAMPLE, (ALIASES, "team@example.com", ("aliases", "team")), BY_SQL],
    ),
    Case(
        "info@file.example", "accepted", ["known@file.example"],
        [IN_FILE, (ALIASES, "info", ("aliases", "info"))],
    ),
    Case(
        "nobody@file.example", "accepted", ["known@example.com"],
        [IN_FILE, ASKED, (ALIASES, "@file.example", ("aliases", "@file")), EXAMPLE],
    ),
    Case(
        "postmaster@example.com", "accepted", ["postmaster@example.com"],
        [EXAMPLE, (ALWAYS, "postmaster", DEFAULT)],
    ),
    Case(
        "postmaster", "accepted", ["postmaster@mx.example.com"],
        [(ALWAYS, "postmaster", DEFAULT)] * 2,
    ),
    Case("nobody@example.com", "refused", [], [EXAMPLE, ASKED, (UNKNOWN, "", DEFAULT)]),
    Case(
        "known@example.com", "refused", [],
        [(DENY, "127.0.0.0/29", ("deny", "127.0.0.0"))],
        client="127.0.0.2",
    ),
    Case(
        "known@example.com", "accepted", ["known@example.com"],
        [
            (ALLOW, "127.0.0.1", "allow = 127.0.0.1"),
            EXAMPLE,
            (RECIPIENTS, "known@example.com", "known@example.com,"),
        ],
        client="127.0.0.1",
    ),
    Case(
        "nobody@example.com", "refused", [],
        [EXAMPLE, ASKED, (UNKNOWN, "", DEFAULT)],
        client="127.0.0.8",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.address} {c.client}".strip())
def test_what_becomes_of_it_and_why(checked: Checked, case: Case) -> None:
    """And the server does so."""
    client = ["--client", case.client] if case.client else []
    answer = found(checked.daemon, *client, case.address)
    assert (answer["outcome"], answer["mailboxes"]) == (case.outcome, case.mailboxes)
    steps = [(step["rule"], step["item"], step["where"]) for step in answer["reasons"]]
    assert steps == [(rule, item, where(checked, place)) for rule, item, place in case.steps]
    source = case.client or "127.0.0.1"
    assert rcpt(checked.daemon, case.address, source) == answer["reply"]
    if case.outcome == "accepted" and source == "127.0.0.1":
        mail = simple("x")._replace(recipients=(case.address,))
        id_ = send(checked.daemon.address, mail)[0].id
        rows = checked.table.query(f"SELECT `to` FROM new_mail WHERE hash = '{id_}'")
        assert sorted(to for (to,) in rows) == sorted(case.mailboxes)


def where(checked: Checked, place: str | tuple[str, str]) -> str:
    if isinstance(place, tuple):
        return line(checked.lists / place[0], place[1])
    return place if place == DEFAULT else line(checked.daemon.conf, place)


def test_for_people(checked: Checked) -> None:
    done = check(checked.daemon, "<team@example.com>")
    assert (done.returncode, done.stderr) == (STORED, "")
    conf, aliases = checked.daemon.conf, checked.lists / "aliases"
    first, reply, *rest = done.stdout.splitlines()
    assert first == "team@example.com: accepted"
    assert reply.split(":", 1)[1].strip() == "250 2.1.5 Recipient ok"
    assert [one.split(":", 1)[1].strip() for one in rest[:2]] == [
        "known@example.com",
        "x@sql.example",
    ]
    places = [line(conf, "accept = "), line(aliases, "team"), line(conf, BY_SQL[2])]
    assert len(rest) == 2 + len(places)
    for one, place in zip(rest[2:], places, strict=True):
        assert one.endswith(f"({place})")


def test_what_is_refused_for_people(checked: Checked) -> None:
    done = check(checked.daemon, "nobody@example.com")
    assert (done.returncode, done.stderr) == (NOT_STORED, "")
    first, reply, *rest = done.stdout.splitlines()
    assert first == "nobody@example.com: refused"
    assert reply.endswith("550 5.1.1 No such user here")
    assert rest[-1].endswith("(the default)")
    assert "stored for" not in done.stdout


def test_a_variable(checked: Checked) -> None:
    """In place of what the file says."""
    answer = found(
        checked.daemon, "anywhere@variable.example", GSMTPD_DOMAINS_ACCEPT="variable.example"
    )
    assert answer["outcome"] == "accepted"
    assert answer["reasons"][0]["where"] == "the variable GSMTPD_DOMAINS_ACCEPT"
    listed = f"a.example, @{checked.lists}/domains"
    answer = found(checked.daemon, "anywhere@file.example", GSMTPD_DOMAINS_ACCEPT=listed)
    assert answer["reasons"][0]["where"] == line(checked.lists / "domains", "file.example")


@pytest.mark.parametrize(
    ("unknown", "outcome", "code"),
    [
        ("reject", "refused", "550 5.1.1"),
        ("discard", "accepted and discarded", "250 2.1.5"),
        ("defer", "deferred", "451 4.1.1"),
    ],
)
def test_what_is_unknown(checked: Checked, unknown: str, outcome: str, code: str) -> None:
    answer = found(checked.daemon, "nobody@example.com", GSMTPD_RECIPIENTS_UNKNOWN=unknown)
    assert (answer["outcome"], answer["reply"][:9]) == (outcome, code)
    assert answer["mailboxes"] == []
    assert answer["reasons"][-1]["where"] == "the variable GSMTPD_RECIPIENTS_UNKNOWN"


def test_the_primary_domain(checked: Checked) -> None:
    answer = found(
        checked.daemon, "team@example.com", GSMTPD_DOMAINS_PRIMARY_DOMAIN="primary.example"
    )
    assert answer["mailboxes"] == ["known@primary.example", "x@primary.example"]


def test_a_client_in_a_blocklist(checked: Checked) -> None:
    with Rbldnsd({"zen.example.org": ["1.2.3.4 :127.0.0.2:See the list"]}) as names:
        variables = {
            "GSMTPD_CLIENTS_DNSBL": "zen.example.org",
            "GSMTPD_CLIENTS_DNSBL_RESOLVER": f"127.0.0.1:{names.port}",
            "GSMTPD_CLIENTS_DNSBL_TIMEOUT": "5s",
        }
        known = "known@example.com"
        listed = found(checked.daemon, "--client", "1.2.3.4", known, **variables)
        assert listed["reply"] == (
            "550 5.7.1 Your address 1.2.3.4 is listed by zen.example.org: See the list"
        )
        assert listed["reasons"][-1]["where"] == "the variable GSMTPD_CLIENTS_DNSBL"
        other = found(checked.daemon, "--client", "1.2.3.5", known, **variables)
        assert other["outcome"] == "accepted"
        postmaster = found(checked.daemon, "--client", "1.2.3.4", "abuse@example.com", **variables)
        assert postmaster["outcome"] == "accepted"
        nobodys = found(checked.daemon, known, **variables)
        assert [step["rule"] for step in nobodys["reasons"]] == [DOMAINS, RECIPIENTS]


def test_a_database_that_is_away(checked: Checked) -> None:
    variables = {"GSMTPD_STORE_MYSQL_HOST": str(checked.lists / "none")}
    done = check(checked.daemon, "--json", "x@example.com", variables=variables)
    assert done.returncode == NOT_STORED
    assert "no database server answers" in done.stderr
    answer = json.loads(done.stdout)
    assert (answer["outcome"], answer["reply"][:9]) == ("deferred", "451 4.4.3")
    # Nobody has to be asked for this one.
    assert found(checked.daemon, "known@example.com", **variables)["outcome"] == "accepted"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a@b@example.com"],
        ["a@example.com", "b@example.com"],
        ["<>"],
        [""],
        ["nobody"],
        ["a@example.com\r\nRCPT TO:<b@example.com>"],
        ["--client", "example.com", "a@example.com"],
        ["--client", "192.0.2.0/24", "a@example.com"],
        ["--client", "", "a@example.com"],
        ["--client", "127.1", "a@example.com"],
    ],
)
def test_arguments_that_are_wrong(checked: Checked, arguments: list[str]) -> None:
    done = check(checked.daemon, *arguments)
    assert done.returncode == USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("usage: gsmtpctl ")


def test_a_configuration_that_is_wrong(checked: Checked, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("example.com\nno domain\n")
    variables = {"GSMTPD_DOMAINS_ACCEPT": f"@{broken}"}
    done = check(checked.daemon, "a@example.com", variables=variables)
    assert done.returncode == CONFIG
    assert f"gsmtpctl: {broken}:2: " in done.stderr
    done = check(checked.daemon, "a@b.example", variables={"GSMTPD_DOMAINS_ACCEPT": "no domain"})
    assert done.returncode == CONFIG
    assert "GSMTPD_DOMAINS_ACCEPT" in done.stderr


def test_without_lists() -> None:
    """As installed, without a server: nothing but this machine's own name is served."""
    daemon = Gsmtpd({"domains": {"accept": None}})  # never started
    served = found(daemon, "anybody@mx.example.com")
    assert (served["outcome"], served["mailboxes"]) == ("accepted", ["anybody@mx.example.com"])
    assert [step["where"] for step in served["reasons"]] == ["the default"] * 2
    assert found(daemon, "a@example.com")["outcome"] == "refused"
    daemon.close()


def test_with_sqlite() -> None:
    query = {"query": "SELECT 1 FROM new_mail WHERE recipient = %s"}
    daemon = Gsmtpd({"recipients": query})
    before = check(daemon, "a@example.com")
    assert before.returncode == UNAVAILABLE
    assert before.stderr.startswith(f"gsmtpctl: {daemon.mail_db}: no mail file yet; ")
    assert not daemon.mail_db.exists()
    assert found(daemon, "postmaster@example.com")["outcome"] == "accepted"
    with daemon:
        assert found(daemon, "a@example.com")["reply"].startswith("550 5.1.1 ")
        mail = simple("x")._replace(recipients=("postmaster@example.com",))
        assert send(daemon.address, mail)[0].code == 250
        assert found(daemon, "postmaster+x@example.com")["outcome"] == "refused"
