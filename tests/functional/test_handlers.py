"""Do handlers act on mail that a real daemon has stored, and do people see and steer that?"""

from __future__ import annotations

import email
import json
import os
import re
import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gsmtpd.handlers.magic8ball import ANSWERS
from tests.accounting import Mail, MySQLTable, Table, count, rows, send, table_of
from tests.acting import acting, dispatcher, notes, outbox, settled, to
from tests.conftest import Kept, make_schema
from tests.functional.test_daemon import gsmtpd
from tests.functional.test_export_import import ctl
from tests.functional.test_reload import lines, reload
from tests.peers import Postfix
from tests.servers import Gsmtpd, MariaDB, environment, mysql_store, wait_for

DATAERR, CONFIG = 65, 78
LOOKS = 10.0  # seconds in which the dispatcher looks by itself, on a busy machine
OWN = """
import os, time
from gsmtpd.handlers import DISCARD, GiveUpError, Handler, Later

class Shout(Handler):
    def handle(self, mail):
        mail.annotate("shouted", mail.subject.upper() + "!")

class Discarding(Handler):
    def handle(self, mail):
        mail.annotate("seen", mail.subject)
        return DISCARD

class GivingUp(Handler):
    def handle(self, mail):
        if mail.subject != "good now":
            raise GiveUpError("no use of " + mail.subject)

class Patient(Handler):
    asked = 0
    def handle(self, mail):
        self.asked += 1
        if self.asked < 3:
            return Later(0.1)
        mail.annotate("attempt", f"{mail.attempt} {self.asked}")

class Raising(Handler):
    defaults = {"signs": ""}
    def handle(self, mail):
        if not os.path.exists(self.settings["signs"] + "/mended"):
            raise ZeroDivisionError("not yet mended")
        mail.annotate("attempt", str(mail.attempt))
"""
SIGNALLED = """
import os, time
from gsmtpd.handlers import Handler

class Waiting(Handler):
    defaults = {"signs": "", "say": "old"}
    def handle(self, mail):
        signs = self.settings["signs"]
        with open(signs + "/begun", "a") as file:
            file.write(mail.subject + "\\n")
        while not os.path.exists(signs + "/go"):
            time.sleep(0.01)
        mail.annotate("said", self.settings["say"] + " " + mail.subject)
"""


class Acting(NamedTuple):
    """A running daemon with handlers, what it stores, and where it finds signs."""

    daemon: Gsmtpd
    table: Table
    signs: Path


def replies(table: Table) -> list[EmailMessage]:
    """What the smarthost has got."""
    return [email.message_from_bytes(row.content, policy=policy.default) for row in rows(table)]


def empty(*tables: Table) -> None:
    for table in tables:
        for name in ("new_mail", "mail_outbox", "mail_note", "mail_reply"):
            table.query(f"DELETE FROM {name}")


# --- the Magic 8 Ball -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Kept]:
    """A second gsmtpd, where replies go."""
    with Gsmtpd({"domains": {"accept": "example.org"}}) as daemon:
        yield Kept(daemon, table_of(daemon))


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def _acting(
    request: pytest.FixtureRequest, smarthost: Kept, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Acting]:
    directory = tmp_path_factory.mktemp("handlers")
    host = f"127.0.0.1:{smarthost.daemon.port}"
    settings = acting(
        directory,
        OWN,
        ball={"match": "8ball@example.com", "class": "magic8ball", "smarthost": host},
        shout={"match": "shout@example.com, both@example.com", "class": "own.Shout"},
        discard={"match": "discard@example.com", "class": "own.Discarding"},
        giveup={"match": "giveup@example.com, both@example.com", "class": "own.GivingUp"},
        patient={"match": "patient@example.com", "class": "own.Patient"},
        raising={"match": "raise@example.com", "class": "own.Raising", "signs": directory},
    )
    if request.param == "sqlite":
        with Gsmtpd(settings) as daemon:
            yield Acting(daemon, table_of(daemon), directory)
        return
    mariadb: MariaDB = request.getfixturevalue("mariadb")
    make_schema(mariadb, "acting")
    with Gsmtpd(mysql_store(mariadb, "acting") | settings) as daemon:
        daemon.wait_for_lane()
        yield Acting(daemon, MySQLTable(mariadb, "acting"), directory)
    mariadb.query("DROP DATABASE acting")


@pytest.fixture
def kept(_acting: Acting, smarthost: Kept) -> Acting:
    """A daemon with handlers, and either store; all is empty."""
    settled(_acting.table)
    empty(_acting.table, smarthost.table)
    return _acting


def deliver(daemon: Gsmtpd, *mails: Mail) -> list[str]:
    """Have each stored; their ids."""
    return [reply.id for reply in send(daemon.address, *mails)]


def test_the_magic_8_ball_answers(kept: Acting, smarthost: Kept) -> None:
    question = to("8Ball@example.com", "Will it work?", Message_ID="<1@example.org>")
    deliver(kept.daemon, question)
    assert settled(kept.table) == []
    (reply,) = replies(smarthost.table)
    assert (reply["From"], reply["To"]) == ("8Ball@example.com", "joe@example.org")
    assert reply["Subject"] == "Auto: Will it work?"
    assert reply["Auto-Submitted"] == "auto-replied"
    assert (reply["In-Reply-To"], reply["References"]) == ("<1@example.org>",) * 2
    asked, _, answer = reply.get_content().splitlines()
    assert asked == "You asked: Will it work?"
    assert answer.removeprefix("The Magic 8 Ball says: ") in ANSWERS
    assert smarthost.table.query("SELECT return_path, recipient FROM new_mail") == [
        ("", "joe@example.org")
    ]
    assert count(kept.table) == 1


def test_whom_the_magic_8_ball_does_not_answer(kept: Acting, smarthost: Kept) -> None:
    deliver(
        kept.daemon,
        to("8ball@example.com", "of a list?", "a@example.org", List_Id="<x.example.org>"),
        to("8ball@example.com", "of nobody?", ""),
        to("8ball@example.com", "of a program?", "b@example.org", Auto_Submitted="auto-replied"),
        to("8ball@example.com", "of a bounce?", "mailer-daemon@example.org"),
        to("8ball@example.com", "once?", "c@example.org"),
        to("8ball@example.com", "twice?", "C@example.org"),
    )
    assert settled(kept.table) == []
    assert len(replies(smarthost.table)) == 1
    assert smarthost.table.query("SELECT recipient FROM new_mail")[0][0].lower() == "c@example.org"
    reasons = " ".join(lines(kept.daemon, "no reply: "))
    for reason in ("(List-Id)", "reverse-path is null", "(Auto-Submitted)", "program's", "lately"):
        assert reason in reasons


def test_by_postfix(tmp_path: Path, smarthost: Kept) -> None:
    """The smarthost is one that sends on."""
    empty(smarthost.table)
    relay = {"relayhost": f"[127.0.0.1]:{smarthost.daemon.port}"}
    ball = {"match": "8ball@example.com", "class": "magic8ball"}
    with Postfix(relay) as postfix:
        settings = acting(tmp_path, ball=ball)
        settings["handlers"] |= {"smarthost": f"127.0.0.1:{postfix.port}", "time_limit": "30s"}
        with Gsmtpd(settings) as daemon:
            deliver(daemon, to("8ball@example.com", "By others?"))
            wait_for(lambda: count(smarthost.table))
            assert settled(table_of(daemon)) == []
    (reply,) = replies(smarthost.table)
    assert reply["Subject"] == "Auto: By others?"
    assert "The Magic 8 Ball says: " in reply.get_content()


# --- handlers of one's own ------------------------------------------------------------------------


def test_what_a_handler_may_do(kept: Acting) -> None:
    deliver(
        kept.daemon,
        to("shout@example.com", "hello"),
        to("nobody@example.com", "hello"),
        to("discard@example.com", "a secret"),
        to("patient@example.com", "x"),
        to("giveup@example.com", "spam"),
    )
    (dead,) = settled(kept.table)
    assert (dead.handler, dead.tries, dead.reason) == ("giveup", 1, "no use of spam")
    assert (dead.state, dead.owner) == ("dead", "")
    assert sorted(notes(kept.table)) == [
        ("discard@example.com", "discard", "seen", "a secret"),
        ("patient@example.com", "patient", "attempt", "3 3"),
        ("shout@example.com", "shout", "shouted", "HELLO!"),
    ]
    assert {row.recipient for row in rows(kept.table)} == {
        f"{name}@example.com" for name in ("shout", "nobody", "patient", "giveup")
    }


def test_one_mail_for_several_recipients_and_handlers(kept: Acting) -> None:
    recipients = ("shout@example.com", "both@example.com", "nobody@example.com")
    (id_,) = deliver(kept.daemon, to("", "spam")._replace(recipients=recipients))
    assert [(each.handler, each.recipient, each.hash) for each in settled(kept.table)] == [
        ("giveup", "both@example.com", id_)
    ]
    assert [row[:2] for row in sorted(notes(kept.table))] == [
        ("both@example.com", "shout"),
        ("shout@example.com", "shout"),
    ]


def test_what_is_fed(kept: Acting) -> None:
    """No client has sent it, and no worker has stored it; the daemon's handlers act on it."""
    ctl(kept.daemon, "feed", "--to", "shout@example.com", "-", stdin=b"Subject: fed\n\nHello\n")
    wait_for(lambda: notes(kept.table), LOOKS)
    assert settled(kept.table) == []
    assert notes(kept.table) == [("shout@example.com", "shout", "shouted", "FED!")]


def test_mail_that_inetd_brings(kept: Acting) -> None:
    """A process that serves one client writes the outbox, and the daemon acts."""
    command = [*kept.daemon.command()[:-3], "--inetd", "-c", str(kept.daemon.conf)]
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment()) as process:
        theirs.close()
        client = smtplib.SMTP(timeout=30)
        client.sock = ours
        assert client.getreply()[0] == 220
        client.sendmail("joe@example.org", "shout@example.com", b"Subject: inetd\r\n\r\n")
        assert client.quit()[0] == 221
        assert process.wait(30) == 0
    wait_for(lambda: notes(kept.table), LOOKS)
    assert notes(kept.table) == [("shout@example.com", "shout", "shouted", "INETD!")]
    assert settled(kept.table) == []


# --- what people see and do -----------------------------------------------------------------------


def listed(daemon: Gsmtpd, *arguments: object) -> list[dict[str, Any]]:
    """What gsmtpctl outbox list --json says."""
    found: list[dict[str, Any]] = json.loads(
        ctl(daemon, "outbox", "list", "--json", *arguments).stdout
    )
    return found


def test_the_outbox_is_listed_retried_and_dropped(kept: Acting) -> None:
    daemon, table, signs = kept
    before = daemon.status()
    ids = deliver(daemon, *(to("raise@example.com", f"n{n}") for n in range(3)))
    deliver(daemon, to("giveup@example.com", "spam"))
    settled(table)
    shown = ctl(daemon, "outbox", "list")
    said = shown.stdout.decode().splitlines()
    assert said[0].split() == ["ID", "HANDLER", "STATE", "TRIES", "DUE", "TO", "REASON"]
    assert sum("ZeroDivisionError: not yet mended" in line for line in said) == 3
    assert sorted(shown.stderr.decode().strip().split(", ")) == [
        "giveup: 1 dead",
        "raising: 3 dead",
    ]
    entries = listed(daemon, "--handler", "raising")
    assert [each["hash"] for each in entries] == ids
    assert {(e["state"], e["tries"], e["in_hand"]) for e in entries} == {("dead", 2, False)}
    assert len(listed(daemon)) == 4
    assert len(listed(daemon, "-n", 1)) == 1
    now = daemon.status()
    assert now["handler_dead"] - before["handler_dead"] == 4
    assert now["handler_failed"] - before["handler_failed"] == 3

    first, second, third = (each["outbox_id"] for each in entries)
    ctl(daemon, "outbox", "retry", 0, code=DATAERR)
    (signs / "mended").touch()
    assert ctl(daemon, "outbox", "retry", second).stdout == b"1 to be handed over again\n"
    wait_for(lambda: second not in [each.outbox_id for each in outbox(table)])
    assert notes(table) == [("raise@example.com", "raising", "attempt", "3")]
    assert ctl(daemon, "outbox", "drop", first).stdout == b"1 dropped; the mail stays\n"
    done = ctl(daemon, "outbox", "retry", "--handler", "raising", "--all")
    assert done.stdout == b"1 to be handed over again\n"
    wait_for(lambda: third not in [each.outbox_id for each in outbox(table)])
    assert [each["handler"] for each in listed(daemon)] == ["giveup"]
    assert ctl(daemon, "outbox", "drop", "--all").stdout == b"1 dropped; the mail stays\n"
    assert ctl(daemon, "outbox", "list").stderr == b"nothing is in the outbox\n"
    assert count(table) == 4
    (signs / "mended").unlink()


def test_replay(kept: Acting) -> None:
    """The handlers act once more: those that match now, or the one that is named."""
    daemon, table, _ = kept
    deliver(daemon, to("shout@example.com", "again"), to("nobody@example.com", "good now"))
    settled(table)
    first, second = (row.mail_id for row in rows(table))
    assert ctl(daemon, "replay", first).stdout.decode() == f"{first}: shout@example.com: shout\n"
    done = ctl(daemon, "replay", second, code=DATAERR)
    assert done.stdout.decode() == f"{second}: nobody@example.com: no handler acts on it\n"
    ctl(daemon, "replay", "--handler", "shout", second)
    wait_for(lambda: len(notes(table)) == 3)
    assert settled(table) == []
    assert notes(table) == [
        ("shout@example.com", "shout", "shouted", "AGAIN!"),
        ("shout@example.com", "shout", "shouted", "AGAIN!"),
        ("nobody@example.com", "shout", "shouted", "GOOD NOW!"),
    ]
    ctl(daemon, "replay", 10**9, code=DATAERR)
    ctl(daemon, "replay", "--handler", "nobody", first, code=2)


def test_status_and_dump(kept: Acting) -> None:
    daemon, table, _ = kept
    before = daemon.status()["handled"]
    deliver(daemon, to("shout@example.com", "x"))
    settled(table)
    status = daemon.status()
    assert status["handled"] == before + 1
    pid = dispatcher(daemon)
    assert status["workers"][-1]["role"] == "handlers"
    said = daemon.ctl("status")
    assert f"Handlers:   {pid}, serving, " in said
    assert f"Handled:    {status['handled']} mails; " in said
    waiting = status["outbox"]["counts"]
    assert all(each["state"] == "dead" for each in waiting)
    assert f"Outbox:     {'' if waiting else 'empty'}" in said
    found = daemon.dump()
    wait_for(lambda: f"worker {pid}: handler shout: idle" in daemon.log.read_text())
    assert "thread MainThread" in found
    assert dispatcher(daemon) == pid


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ({"class": "own.Missing"}, "[[bad]]: own.Missing: own has no handler Missing"),
        ({"class": "nothing.Here"}, "[[bad]]: nothing.Here: there is no "),
        ({"class": "own"}, "[[bad]]: own: has not one handler but Shout, Discarding, "),
        (
            {"class": "own.Shout", "colour": "red"},
            "[[bad]]: colour: unknown key; own.Shout has none",
        ),
        ({"class": "webhook"}, "[[bad]]: url is missing: write one like https://"),
        ({"class": "magic8ball"}, "[[bad]]: magic8ball replies; write smarthost = host:port"),
    ],
)
def test_a_wrong_handler_is_said_before_it_is_needed(
    section: dict[str, Any], wrong: str, tmp_path: Path
) -> None:
    daemon = Gsmtpd(acting(tmp_path, OWN, bad={"match": "@example.com", **section}))
    done = gsmtpd("-t", "-c", daemon.conf)
    assert done.returncode == CONFIG
    (line,) = done.stderr.splitlines()[-1:]
    assert wrong in line
    assert "Traceback" not in done.stderr
    daemon.close()


def test_what_no_mail_comes_for_is_warned_of(tmp_path: Path) -> None:
    """Of addresses in domains that are not accepted, and of no others."""
    match = "a@example.com, b@Example.NET, @ä.example, c, *@example.*, d-*@a.example.org"
    settings = acting(tmp_path, OWN, shout={"match": match, "class": "own.Shout"})
    settings["domains"] = {"accept": "example.com, .example.org"}
    with Gsmtpd(settings) as daemon:
        done = gsmtpd("-t", "-c", daemon.conf)
        assert done.returncode == 0
        said = [line for line in done.stderr.splitlines() if "no mail comes for" in line]
        warned = re.findall(r"no mail comes for (\S+), as its domain is not", done.stderr)
        assert warned == ["b@example.net", "@xn--4ca.example"]
        assert all("[handlers] [[shout]]: match:" in line for line in said)
        assert re.findall(r"no mail comes for (\S+),", daemon.log.read_text()) == warned


# --- as the daemon comes and goes -----------------------------------------------------------------


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Kept]:
    """A daemon whose handler begins, and ends once there is the file `go`."""
    with Gsmtpd(_waiting(tmp_path)) as daemon:
        yield Kept(daemon, table_of(daemon))


def _waiting(path: Path, **section: object) -> dict[str, Any]:
    own = {"match": "w@example.com", "class": "own", "signs": path, "time_limit": "5m"} | section
    return acting(path, SIGNALLED, waiting=own)


def begun(path: Path) -> list[str]:
    """The subjects of what was begun."""
    signs = path / "begun"
    return signs.read_text().splitlines() if signs.exists() else []


def test_a_reload_takes_over_changed_handlers(waiting: Kept, tmp_path: Path) -> None:
    """What a handler is at it finishes, as it was."""
    daemon, table = waiting
    deliver(daemon, to("w@example.com", "first"))
    wait_for(lambda: begun(tmp_path) == ["first"])
    old = dispatcher(daemon)
    daemon.configure(_waiting(tmp_path, say="new"))
    assert reload(daemon)["problems"] == []
    roles = [each["state"] for each in daemon.status()["workers"] if each["pid"] == old]
    assert roles == ["leaving"]
    (tmp_path / "go").touch()
    wait_for(lambda: old not in daemon.workers)
    deliver(daemon, to("w@example.com", "second"))
    wait_for(lambda: len(notes(table)) == 2)
    assert [row[3] for row in notes(table)] == ["old first", "new second"]
    assert settled(table) == []
    assert begun(tmp_path) == ["first", "second"]


def test_a_handler_that_cannot_be_had_keeps_nobody_waiting_but_its_mail(
    waiting: Kept, tmp_path: Path
) -> None:
    daemon, table = waiting
    daemon.configure(_waiting(tmp_path, colour="red"))
    assert reload(daemon)["problems"] == []
    wait_for(lambda: lines(daemon, "handler waiting: colour: unknown key"))
    deliver(daemon, to("w@example.com", "x"), to("nobody@example.com", "x"))
    wait_for(lambda: "colour: unknown key" in outbox(table)[0].reason)
    (entry,) = outbox(table)
    assert (entry.state, entry.tries, count(table)) == ("waiting", 0, 2)
    (tmp_path / "go").touch()
    daemon.configure(_waiting(tmp_path))
    assert reload(daemon)["problems"] == []
    ctl(daemon, "outbox", "retry", entry.outbox_id)
    wait_for(lambda: notes(table))
    assert settled(table) == []


def test_handlers_come_and_go_by_reloads(tmp_path: Path) -> None:
    with Gsmtpd() as daemon:
        (tmp_path / "go").touch()
        daemon.configure(_waiting(tmp_path))
        assert reload(daemon)["problems"] == []
        deliver(daemon, to("w@example.com", "x"))
        wait_for(lambda: notes(table_of(daemon)))
        pid = dispatcher(daemon)
        daemon.configure({})
        assert reload(daemon)["problems"] == []
        wait_for(lambda: pid not in daemon.workers)
        deliver(daemon, to("w@example.com", "y"))
        assert outbox(table_of(daemon)) == []
        assert "Handlers:" not in daemon.ctl("status")


def test_a_stop_cuts_short_and_the_mail_comes_again(waiting: Kept, tmp_path: Path) -> None:
    daemon, table = waiting
    deliver(daemon, to("w@example.com", "x"))
    wait_for(lambda: begun(tmp_path) == ["x"])
    assert "in hand" in ctl(daemon, "outbox", "list").stdout.decode()
    assert daemon.stop() == 0  # or it would have left processes behind
    (entry,) = outbox(table)
    assert (entry.state, entry.tries, entry.owner) == ("waiting", 0, "")
    assert notes(table) == []
    (tmp_path / "go").touch()
    daemon.start()
    wait_for(lambda: notes(table))
    assert settled(table) == []
    assert begun(tmp_path) == ["x", "x"]
    assert [row[3] for row in notes(table)] == ["old x"]


def test_what_a_killed_daemon_had_in_hand_comes_again_at_once(
    waiting: Kept, tmp_path: Path
) -> None:
    """Its lease would go on for minutes."""
    daemon, table = waiting
    deliver(daemon, to("w@example.com", "x"))
    wait_for(lambda: begun(tmp_path) == ["x"])
    (entry,) = outbox(table)
    assert entry.owner
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.kill()
    (tmp_path / "go").touch()
    daemon.start()
    wait_for(lambda: notes(table), 30)
    assert settled(table) == []
    assert begun(tmp_path) == ["x", "x"]
