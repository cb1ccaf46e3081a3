"""Does gsmtpctl why know what became of mail, whatever has befallen the server meanwhile?"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gsmtpd import ctl_why
from gsmtpd.recent import KEPT, SLACK
from gsmtpd.storage.reader import StoredMail
from tests.accounting import Client, Mail, count, send, table_of
from tests.servers import Gsmtpd, MariaDB, environment, mysql_store, wait_for

TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}"
NOT_SERVED = "550 5.7.1 Relaying denied"


def why(server: Gsmtpd, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What gsmtpctl why says."""
    command = [sys.executable, "-m", "gsmtpd.ctl", "-c", str(server.conf), "why", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=90, env=environment()
    )


def said(server: Gsmtpd, *arguments: str) -> list[str]:
    """The events, without their times."""
    done = why(server, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(re.match(f"{TIME}  ", line) for line in lines)
    return [line[21:] for line in lines]


def known(server: Gsmtpd, about: str) -> list[dict[str, Any]]:
    """The events as JSON; a worker notes them a moment after its reply."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = json.loads(why(server, "--json", about).stdout)
        return bool(found)

    wait_for(look)
    return found


def mail(*recipients: str, sender: str = "joe@example.org", subject: str = "hello") -> Mail:
    content = f"Subject: {subject}\r\n\r\nHello.\r\n".encode()
    return Mail(content, sender=sender, recipients=recipients)


def refuse(server: Gsmtpd, *recipients: str) -> None:
    """Have mail refused for all of those."""
    with Client(server.address) as client:
        assert client.hello().begin(mail(*recipients)).code == 550
    for each in recipients:
        known(server, each)


@pytest.fixture(scope="module")
def running() -> Iterator[Gsmtpd]:
    with Gsmtpd({"server": {"processes": 2}, "store": {"dedupe_window": "1h"}}) as server:
        yield server


# --- what is known --------------------------------------------------------------------------------


def test_a_refused_recipient(running: Gsmtpd) -> None:
    refuse(running, "Bob@example.net")
    (line,) = said(running, "bob@EXAMPLE.net")
    assert line.startswith(
        f"refused    from <joe@example.org> to Bob@example.net by 127.0.0.1: {NOT_SERVED}"
    )
    assert said(running, "<bob@example.net>") == [line]
    (event,) = known(running, "bob@example.net")
    assert (event["result"], event["to"]) == ("refused", "Bob@example.net")
    assert "keys" not in event


def test_a_sender_and_a_client(running: Gsmtpd) -> None:
    with Client(running.address) as client:
        client.hello().begin(mail("x@example.net", sender="Sales@example.org"))
    known(running, "sales@example.org")
    assert any("to x@example.net" in line for line in said(running, "SALES@example.org"))
    assert len(said(running, "127.0.0.1")) >= 1
    assert all("by 127.0.0.1" in line for line in said(running, "127.0.0.1"))
    with Client(running.address) as client:
        client.hello().command("MAIL FROM:<broken@@example.org>")
    assert len(known(running, "broken@@example.org")) == 1


def test_stored_mail_and_a_duplicate(running: Gsmtpd) -> None:
    one = mail("Ann@example.com", "tom@example.com")
    first, second = send(running.address, one, one)
    assert first.text == second.text
    wait_for(lambda: len(known(running, "ann@example.com")) == 2)
    stored, duplicate = said(running, "ann@example.com")
    table = table_of(running)
    ((mail_id,),) = table.query("SELECT mail_id FROM new_mail WHERE recipient LIKE 'ann@%'")
    assert stored == (
        f"stored     mail {mail_id}, from <joe@example.org> to Ann@example.com by 127.0.0.1"
        ', "hello"'
    )
    said_to_both = "from <joe@example.org> to Ann@example.com,tom@example.com by 127.0.0.1"
    assert duplicate == f"duplicate  of {first.text.rpartition(' ')[2]}, {said_to_both}"
    assert said(running, "-n", "1", "ann@example.com") == [duplicate]


def test_aliases_and_what_is_discarded(tmp_path: Path) -> None:
    aliases = tmp_path / "aliases"
    aliases.write_text("info: ann@example.com, tom@example.com\n")
    recipients = {"accept": "ann, tom", "unknown": "discard", "aliases": aliases}
    with Gsmtpd({"recipients": recipients}) as server:
        several = mail("info@example.com", "ann@example.com", "nobody@example.com")
        assert [r.code for r in send(server.address, several, mail("no@example.com"))] == [250] * 2
        known(server, "no@example.com")
        assert said(server, "nobody@example.com") == [
            "discarded  from <joe@example.org> to nobody@example.com by 127.0.0.1"
        ]
        assert [event["result"] for event in known(server, "ann@example.com")] == ["stored"] * 2
        assert "to info@example.com by 127.0.0.1, kept for tom@example.com" in str(
            said(server, "tom@example.com")
        )
        results = [event["result"] for event in known(server, "joe@example.org")]
        assert results == ["accepted", "discarded", "discarded"]
        assert "1 accepted (26 bytes), 0 refused, 1 discarded\n" in server.ctl("status")


def test_no_terminal_obeys_a_stranger(running: Gsmtpd) -> None:
    """What is stored and what was refused are both written by whoever comes."""
    nasty = mail("eve@example.com", subject="=?utf-8?q?=1B[31mred=E2=80=AE?=")
    assert send(running.address, nasty)[0].code == 250
    with Client(running.address) as client:
        client.hello().send(b"MAIL FROM:<eve@example.org>\r\nRCPT TO:<\x1b[2J\xc2\x9b@@eve>\r\n")
        assert [client.reply().code // 100 for _ in range(2)] == [2, 5]
    assert '"[31mred?"' in said(running, "eve@example.com")[0]
    known(running, "eve@example.org")
    assert "TO:<?[2J?@@eve>" in said(running, "eve@example.org")[0]


# --- nothing --------------------------------------------------------------------------------------


def test_nothing_is_known(running: Gsmtpd) -> None:
    done = why(running, "nobody@example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        "gsmtpctl: nothing is known of nobody@example.com: nothing was refused or thrown away since"
        f" {TIME} UTC, and no mail to it is stored; for mail from it see: gsmtpctl search --from"
        " nobody@example.com; for what would become of mail to it: gsmtpctl check-address"
        " nobody@example.com\n",
        done.stderr,
    )
    assert why(running, "--json", "nobody@example.com").stdout == "[]\n"
    assert "search" not in why(running, "<>").stderr
    done = why(running, "no body")
    assert done.stderr.endswith("see: gsmtpctl search --from 'no body'\n")
    done = why(running, "2001:DB8::0:1")
    assert done.returncode == 1
    assert "nothing is known of 2001:db8::1" in done.stderr
    assert "check-address" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [[""], ["x" * 513], ["ü" * 257], [b"\xff@example.com"], ["-n", "0", "a"], []]
)
def test_what_cannot_be_asked(running: Gsmtpd, arguments: list[Any]) -> None:
    done = why(running, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "gsmtpctl why: error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["x" * 512, "\U0001f4e7" * 128, '"\\' * 256, "\x01" * 512, "\x7f"])
def test_the_longest_address_can_be_asked_for(running: Gsmtpd, text: str) -> None:
    done = why(running, text)
    assert done.returncode == 1
    assert done.stderr.startswith("gsmtpctl: nothing is known of ")
    assert done.stderr.rstrip("\n").isprintable()


# --- who is away ----------------------------------------------------------------------------------


def test_without_a_server_there_is_stored_mail() -> None:
    with Gsmtpd() as server:
        assert send(server.address, mail("bob@example.com"))[0].code == 250
        refuse(server, "bob@example.net")
        assert server.stop() == 0
        done = why(server, "bob@example.com")
        assert done.returncode == 0
        assert "stored     mail 1, " in done.stdout
        assert re.match("gsmtpctl: no gsmtpd answers at .* stored mail alone\n", done.stderr)
        done = why(server, "bob@example.net")
        assert done.returncode == 1
        assert "nothing is known of bob@example.net: no mail to it is stored; for" in done.stderr


def test_without_a_control_socket() -> None:
    with Gsmtpd({"server": {"control_socket": ""}}) as server:
        assert send(server.address, mail("bob@example.com"))[0].code == 250
        done = why(server, "bob@example.com")
        assert (done.returncode, "stored     mail 1, " in done.stdout) == (0, True)
        assert "control_socket is empty" in done.stderr


def test_without_a_table_there_is_what_is_remembered() -> None:
    with Gsmtpd() as server:
        refuse(server, "bob@example.net")
        server.mail_db.unlink()
        done = why(server, "bob@example.net")
        assert done.returncode == 69
        assert "stored mail cannot be read: " in done.stderr
        assert "refused    from <joe@example.org>" in done.stdout


def test_where_nothing_is_stored() -> None:
    settings = {"store": {"backend": "null"}, "log": {"level": "error"}}
    with Gsmtpd(settings) as server:
        refuse(server, "bob@example.net")
        assert "result=" not in server.log.read_text(), "the memory needs no mail log"
        (line,) = said(server, "bob@example.net")
        assert line.startswith("refused ")
        done = why(server, "bob@example.com")
        assert done.returncode == 1
        assert "is stored" not in done.stderr


def test_in_mysql(mariadb: MariaDB, schema: str) -> None:
    with Gsmtpd(mysql_store(mariadb, schema)) as server:
        assert send(server.address, mail("Bob@example.com"))[0].code == 250
        assert "stored     mail 1, from <joe@example.org>" in said(server, "bob@example.com")[0]


# --- what befalls the server ----------------------------------------------------------------------


def replace_worker(server: Gsmtpd) -> None:
    before = server.workers
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: server.workers and not {*server.workers} & {*before})


def reload(server: Gsmtpd) -> None:
    assert server.ctl("reload") == "reloaded\n"


@pytest.mark.parametrize("befalls", [replace_worker, reload])
def test_the_memory_outlives_its_worker(befalls: Callable[[Gsmtpd], None]) -> None:
    with Gsmtpd() as server:
        refuse(server, "one@example.net")
        befalls(server)
        refuse(server, "two@example.net")
        befalls(server)
        events = [event["to"] for event in known(server, "joe@example.org") if "to" in event]
        assert events == ["one@example.net", "two@example.net"]


def memory_of(server: Gsmtpd) -> int:
    """Octets of memory that is shared by master and workers to remember."""
    for name in os.listdir(f"/proc/{server.pid}/fd"):
        path = f"/proc/{server.pid}/fd/{name}"
        if "memfd:gsmtpd-recent" in os.readlink(path):
            return os.stat(path).st_blocks * 512
    raise AssertionError("there is none")


def test_a_flood_of_refusals_takes_no_more_room() -> None:
    each = 90  # that one client may ask for
    with Gsmtpd({"log": {"level": "warning"}}) as server:
        refuse(server, "first@example.net")
        most = 0
        for number in range(100_000 // each + 1):
            with Client(server.address) as client:
                client.hello().send(
                    b"MAIL FROM:<flood@example.org>\r\n"
                    + b"RCPT TO:<%s@example.net>\r\n" % (b"u" * 60) * each
                    + b"RSET\r\n"
                )
                codes = [client.reply().code for _ in range(each + 2)]
            assert codes == [250, *[550] * each, 250]
            if number % 50 == 0:
                most = max(most, memory_of(server))
        assert KEPT < most <= KEPT + SLACK + 2**18
        refuse(server, "last@example.net")
        assert memory_of(server) <= KEPT + SLACK + 2**18
        assert [event["to"] for event in known(server, "last@example.net")] == ["last@example.net"]
        done = why(server, "first@example.net")
        assert done.returncode == 1
        assert len(known(server, "flood@example.org")) == 20
        assert (
            len(json.loads(why(server, "--json", "-n", "500", "flood@example.org").stdout)) == 100
        )
        assert count(table_of(server)) == 0


# --- how it is said -------------------------------------------------------------------------------

EVENT = {
    "time": "2026-11-22T15:00:01Z",
    "result": "discarded",
    "id": "1a",
    "client": "192.0.2.7",
    "from": "<x@y>",
    "to": "bob@example.com",
    "recipients": 1,
    "reply": "250",
}
MAIL = StoredMail(
    *(7, "2026-11-22 15:00:02", "x", "bob@example.com", "hi", 1, "1a"),
    *("info@example.com", "x@y", "192.0.2.7", "h"),
)
NAMES = ",".join(f"u{n}@example.com" for n in range(5))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "discarded  from <x@y> to bob@example.com by 192.0.2.7"),
        ({"result": "refused", "reply": "451 4.3.0 Later"},
         "refused    from <x@y> to bob@example.com by 192.0.2.7: 451 4.3.0 Later"),
        ({"result": "refused", "to": NAMES, "recipients": 7, "reply": "no"},
         f"refused    from <x@y> to {NAMES} and 2 more by 192.0.2.7: no"),
        ({"result": "duplicate", "of": "1b"},
         "duplicate  of 1b, from <x@y> to bob@example.com by 192.0.2.7"),
        ({"result": "accepted", "mailboxes": "a@example.com,b@example.com"},
         "accepted   from <x@y> to bob@example.com by 192.0.2.7, kept for"
         " a@example.com,b@example.com"),
        ({"result": "stored_unheard"},
         "stored     from <x@y> to bob@example.com by 192.0.2.7; its client did not hear so, and"
         " may send it again"),
    ],
)  # fmt: skip
def test_a_line(changes: dict[str, object], line: str) -> None:
    assert ctl_why.line_of(EVENT | changes) == f"2026-11-22 15:00:01  {line}"


def test_a_line_about_a_client() -> None:
    event = {"time": EVENT["time"], "result": "closed", "client": "192.0.2.7", "reply": "421 Bye"}
    assert ctl_why.line_of(event) == "2026-11-22 15:00:01  closed     by 192.0.2.7: 421 Bye"
    del event["reply"]
    event["reason"] = "TLS: no shared cipher"
    assert ctl_why.line_of(event) == (
        "2026-11-22 15:00:01  closed     by 192.0.2.7: TLS: no shared cipher"
    )


def test_what_was_stored_is_said_once() -> None:
    row = MAIL._replace(date="2026-11-22 14:00:00")
    accepted, unheard = EVENT | {"result": "accepted"}, EVENT | {"result": "stored_unheard"}
    (event,) = ctl_why._merged([accepted], [row])
    assert ctl_why.line_of(event) == (
        "2026-11-22 14:00:00  stored     mail 7, from <x@y> to info@example.com by 192.0.2.7,"
        ' kept for bob@example.com, "hi"'
    )
    (event,) = ctl_why._merged([unheard], [row])
    assert ctl_why.line_of(event).endswith(
        '"hi"; its client did not hear so, and may send it again'
    )
    refused = EVENT | {"result": "refused", "id": "1a"}
    events = ctl_why._merged([refused, EVENT, EVENT | {"result": "accepted", "id": "1b"}], [row])
    assert [e["result"] for e in events] == ["stored", "refused", "discarded", "accepted"]


def test_a_row_of_an_old_table() -> None:
    row = StoredMail(1, "", "", "bob@example.com", "", 0, "", "", "", "", "")
    closed = {"time": "2026-11-22T15:00:01Z", "result": "closed", "client": "1", "reply": "421"}
    first, _ = ctl_why._merged([closed], [row])
    assert ctl_why.line_of(first).split()[:3] == ["stored", "mail", "1,"]


def test_addresses() -> None:
    assert ctl_why.address(" <Bob@example.com> ") == "Bob@example.com"
    assert ctl_why.address("<>") == "<>"
    assert ctl_why.address("2001:DB8:0::1") == "2001:db8::1"
    with pytest.raises(argparse.ArgumentTypeError, match="write one such as"):
        ctl_why.address(" ")
