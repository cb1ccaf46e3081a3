"""Do gsmtpctl search and wait find mail, and wait for it, in either store and without a server?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.accounting import Mail, send
from tests.conftest import Kept
from tests.servers import Gsmtpd, MariaDB, environment, mysql_store, wait_for


def run(daemon: Gsmtpd, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What gsmtpctl says, which ends with that code: stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), *arguments],
        check=False, capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def subjects(text: str) -> list[str]:
    return [line.split()[-1] for line in text.splitlines()[1:]]


def mail(text: str, subject: str, to: str = "b@example.com") -> Mail:
    return Mail(f"Subject: {subject}\r\n\r\n{text}\r\n".encode(), (to,), sender="a@example.org")


# ---- search --------------------------------------------------------------------------------------


def test_search_lists_the_newest_first(kept: Kept) -> None:
    for n in range(5):
        send(kept.daemon.address, mail(f"text {n}", f"Mail {n}", f"b{n % 2}@example.com"))
    found, said = run(kept.daemon, "search", "--to", "B1@example.com")
    assert subjects(found) == ["3", "1"]
    assert said == ""
    assert subjects(run(kept.daemon, "search", "--subject", "mail")[0]) == ["4", "3", "2", "1", "0"]
    assert subjects(run(kept.daemon, "search", "--text", "text 3", "--from", "a@")[0]) == ["3"]
    assert subjects(run(kept.daemon, "search", "--since", "1h", "-n", "9")[0])[-1] == "0"
    assert run(kept.daemon, "search", "--until", "1h", code=1) == ("", "no such mail\n")


def test_search_goes_on(kept: Kept) -> None:
    send(kept.daemon.address, *(mail("x", f"Mail {n}") for n in range(5)))
    found, said = run(kept.daemon, "search", "--subject", "Mail", "-n", "2")
    assert subjects(found) == ["4", "3"]
    match = re.fullmatch(r"there may be more; the same with: --before (\S+)\n", said)
    assert match is not None
    found, said = run(kept.daemon, "search", "--subject", "Mail", "-n", "3", "--before", match[1])
    assert subjects(found) == ["2", "1", "0"]
    assert said == ""
    wrong = run(kept.daemon, "search", "--before", "x", code=2)[1]
    assert wrong == (
        "gsmtpctl: --before: 'x' is not how this search goes on; give what it said last,"
        " and search for the same\n"
    )


def test_search_by_a_domain(kept: Kept) -> None:
    send(kept.daemon.address, mail("x", "Ours", "a@example.com"), mail("x", "Its", "a@localhost"))
    assert subjects(run(kept.daemon, "search", "--domain", "Example.COM")[0]) == ["Ours"]
    assert subjects(run(kept.daemon, "search", "--domain", "@example.com")[0]) == ["Ours"]
    assert subjects(run(kept.daemon, "search", "--to", "<a@example.com>")[0]) == ["Ours"]
    assert run(kept.daemon, "search", "--domain", "le.com", code=1) == ("", "no such mail\n")


@pytest.mark.parametrize("name", ["to", "from", "subject", "text", "domain", "before"])
def test_search_for_nothing_is_refused(kept: Kept, name: str) -> None:
    send(kept.daemon.address, mail("x", "One"))
    found, said = run(kept.daemon, "search", f"--{name}", "", code=2)
    assert found == ""
    assert said.endswith(f"argument --{name}: say some text, or leave it out\n")


def test_search_for_too_much_is_refused(kept: Kept) -> None:
    found, said = run(kept.daemon, "search", "--subject", 70_000 * "x", code=2)
    assert found == ""
    assert said.endswith("argument --subject: say 320 characters at most\n")


def test_search_for_no_mail_is_refused(kept: Kept) -> None:
    assert "argument -n: it must be 1 or more" in run(kept.daemon, "search", "-n", "0", code=2)[1]


def test_search_as_json(kept: Kept) -> None:
    send(kept.daemon.address, mail("x", "One"), mail("x", "Two"))
    found = json.loads(run(kept.daemon, "search", "--json", "-n", "1")[0])
    assert [mail["subject"] for mail in found["mails"]] == ["Two"]
    assert found["mails"][0]["to"] == "b@example.com"
    rest = json.loads(run(kept.daemon, "search", "--json", "--before", found["next"])[0])
    assert [mail["subject"] for mail in rest["mails"]] == ["One"]
    assert rest["next"] is None
    nothing = run(kept.daemon, "search", "--json", "--to", "x@example.com", code=1)[0]
    assert json.loads(nothing) == {"mails": [], "next": None}


def test_search_obeys_no_stranger(kept: Kept) -> None:
    send(kept.daemon.address, mail("x", "\x1b[31mred"))
    found, _ = run(kept.daemon, "search", "--subject", "red")
    assert "\x1b" not in found


# ---- wait ----------------------------------------------------------------------------------------


def wait_json(daemon: Gsmtpd, *arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(daemon, "wait", "--json", *arguments, code=code)[0])
    return found


def test_wait_outlasts_a_reload_and_a_restart_of_the_server() -> None:
    with Gsmtpd() as daemon:
        heard: list[tuple[str, str]] = []
        thread = threading.Thread(
            target=lambda: heard.append(run(daemon, "wait", "--to", "b@example.com"))
        )
        thread.start()
        thread.join(1.0)
        daemon.ctl("reload")
        daemon.stop()
        daemon.start()
        assert thread.is_alive()
        send(daemon.address, mail("x", "Behind it"))
        thread.join(60)
    assert "Subject: Behind it\n" in heard[0][0]


def test_wait_gives_each_mail_once(kept: Kept) -> None:
    who = ("--to", "ann@example.com", "--timeout", "0")
    nothing = wait_json(kept.daemon, *who, code=1)
    assert nothing["mail"] is None
    for n in range(3):
        send(kept.daemon.address, mail("x", f"{n}", "Ann@example.com"))
        send(kept.daemon.address, mail("x", "other", "x@example.com"))
    for start in ((), ("--after", nothing["cursor"])):
        after: tuple[str, ...] = start
        for n in range(3):
            found = wait_json(kept.daemon, *who, *after)
            assert found["mail"]["subject"] == f"{n}"
            after = ("--after", found["cursor"])
        assert wait_json(kept.daemon, *who, *after, code=1)["mail"] is None


def test_wait_waits(kept: Kept) -> None:
    """It is there before the mail is sent."""
    heard: list[tuple[str, str]] = []
    thread = threading.Thread(
        target=lambda: heard.append(run(kept.daemon, "wait", "--to", "joe@example.com"))
    )
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    send(kept.daemon.address, mail("Your code is 4711", "Welcome", "joe@example.com"))
    thread.join(30)
    ((shown, said),) = heard
    assert "Subject: Welcome\n" in shown
    assert shown.endswith("Your code is 4711\n")
    assert re.fullmatch(r"for what comes next: --after [0-9a-z.]+\n", said)


def test_wait_writes_the_bytes(kept: Kept) -> None:
    send(kept.daemon.address, mail("x\r\n", "Raw", "joe@example.com"))
    shown, _ = run(kept.daemon, "wait", "--to", "joe@example.com", "--raw")
    assert shown.startswith("Delivered-To: joe@example.com")


def test_wait_ends(kept: Kept) -> None:
    shown, said = run(kept.daemon, "wait", "--to", "joe@example.com", "--timeout", "0.3s", code=1)
    assert shown == ""
    assert said.startswith("no mail has come\nfor what comes next: --after ")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--after", "?"),
        ("--timeout", "soon"),
        ("--timeout", "-1"),
        ("--raw", "--json"),
        ("--to", ""),
    ],
)
def test_what_wait_does_not_take(kept: Kept, wrong: tuple[str, str]) -> None:
    run(kept.daemon, "wait", "--to", "joe@example.com", *wrong, code=2)


def test_wait_outlasts_a_restart_of_the_database() -> None:
    with MariaDB(durable=True) as database:
        database.create_database("mail")
        with Gsmtpd(mysql_store(database, "mail")) as daemon:
            daemon.ctl("init-db", "--apply")
            heard: list[tuple[str, str]] = []
            who = ("wait", "--to", "joe@example.com", "--timeout", "60")
            thread = threading.Thread(target=lambda: heard.append(run(daemon, *who)))
            thread.start()
            thread.join(1.5)
            database.stop()
            thread.join(1.0)
            assert thread.is_alive()
            database.start()
            late = mail("x", "late", "joe@example.com")
            wait_for(lambda: send(daemon.address, late)[0].code == 250)
            thread.join(60)
            assert "Subject: late\n" in heard[0][0]
            database.stop()
            assert "no database server answers" in run(daemon, *who, code=69)[1]
