"""Does gsmtpctl tail -f say what becomes of mail as it comes, whatever is missing meanwhile?"""

from __future__ import annotations

import ipaddress
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.ctl_tail import Filter
from tests.accounting import Client, Mail, send
from tests.servers import Gsmtpd, MariaDB, environment, mysql_store, wait_for


class Following:
    """A tail that runs. It writes into files, so that nobody waits for a line in vain."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, error: Path) -> None:
        self.process = process
        self._out = out
        self._error = error

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of --json."""
        return [json.loads(line) for line in self.lines]

    @property
    def notes(self) -> str:
        return self._error.read_text()

    def wait_for(self, text: str) -> str:
        """The first line that has `text`, once it is there."""
        wait_for(lambda: any(text in line for line in self.lines))
        return next(line for line in self.lines if text in line)


@contextmanager
def tail(server: Gsmtpd, *arguments: str) -> Iterator[Following]:
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, "out"), Path(folder, "error")
        command = [sys.executable, "-m", "gsmtpd.ctl", "-c", str(server.conf), "tail", *arguments]
        with (
            out.open("wb") as stdout,
            error.open("wb") as stderr,
            subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment()) as process,
        ):
            try:
                yield Following(process, out, error)
                process.send_signal(signal.SIGINT)
                assert process.wait(30) in (130, 69)
                assert "Traceback" not in error.read_text()
            finally:
                process.kill()


def mail(subject: str, *recipients: str, sender: str = "joe@example.org") -> Mail:
    content = f"Subject: {subject}\r\n\r\nHello.\r\n".encode()
    return Mail(content, sender=sender, recipients=recipients or ("b@example.com",))


def refuse(server: Gsmtpd, *recipients: str, sender: str = "joe@example.org") -> None:
    with Client(server.address) as client:
        assert client.hello().begin(mail("x", *recipients, sender=sender)).code == 550


def ready(server: Gsmtpd, following: Following) -> None:
    """Wait until it has asked the server: from then on it misses nothing."""

    def seen() -> bool:
        refuse(server, "first@example.net", sender="ready@example.org")
        return any("ready@example.org" in line for line in following.lines)

    wait_for(seen)


@pytest.fixture(scope="module")
def server() -> Iterator[Gsmtpd]:
    settings = {
        "recipients": {"accept": "ann, b", "unknown": "discard"},
        "store": {"dedupe_window": "1h"},
    }
    with Gsmtpd(settings) as started:
        yield started


def test_what_is_stored_and_what_is_not(server: Gsmtpd) -> None:
    send(server.address, mail("before"))
    with tail(server, "-f", "-n", "1") as following:
        assert ', "before"' in following.wait_for("before")
        ready(server, following)
        one = mail("stored")
        send(server.address, one)
        send(server.address, one, mail("thrown away", "gone@example.com"))
        refuse(server, "x@example.net")
        line = following.wait_for(', "stored"')
        assert line[19:].startswith("  accepted   mail ")
        assert "from <joe@example.org> to b@example.com by 127.0.0.1" in line
        assert following.wait_for("x@example.net")[19:] == (
            "  refused    from <joe@example.org> to x@example.net by 127.0.0.1:"
            " 550 5.7.1 Relaying denied: this domain is not served here"
        )
        assert "  discarded  " in following.wait_for("gone@example.com")
        following.wait_for("  duplicate  ")
        assert following.notes == ""


def test_json_for_programs(server: Gsmtpd) -> None:
    with tail(server, "--json", "-n", "0") as following:
        ready(server, following)
        send(server.address, mail("for programs"))
        wait_for(lambda: any(e.get("subject") == "for programs" for e in following.events))
        (event,) = (e for e in following.events if "subject" in e)
        assert (event["result"], event["to"], event["client"]) == (
            "accepted", "b@example.com", "127.0.0.1",
        )  # fmt: skip
        assert event["time"].endswith("Z")
        assert following.events[0]["result"] == "refused"


def test_each_filter(server: Gsmtpd) -> None:
    with (
        tail(server, "-n", "0", "--address", "<Ann@example.com>") as by_address,
        tail(server, "-n", "0", "--address", "sue@example.org") as by_sender,
        tail(server, "-n", "0", "--domain", "@example.NET") as by_domain,
        tail(server, "-n", "0", "--client", "127.0.0.0/8", "--result", "refused") as by_client,
        tail(server, "-n", "0", "--client", "192.0.2.1") as by_nobody,
        tail(server, "-n", "0", "--result", "accepted") as by_result,
        tail(server, "-n", "0") as plain,
        tail(server, "-n", "0", "-f") as all_of_it,
    ):
        for each in (by_domain, by_client, all_of_it):
            ready(server, each)
        wait_for(lambda: plain.lines)
        sent = 0

        def both_come() -> bool:
            """Those that cannot be seen to have begun are sent to until they have."""
            nonlocal sent
            sent += 1
            send(server.address, mail(f"round {sent}", "ann@example.com", sender="sue@example.org"))
            return bool(by_address.lines and by_sender.lines and by_result.lines)

        wait_for(both_come)
        refuse(server, "ann@example.net", sender="end@example.org")
        by_domain.wait_for("end@example.org")
        by_client.wait_for("end@example.org")
        all_of_it.wait_for(f'"round {sent}"')
        assert all(" to ann@example.com " in line for line in by_address.lines)
        assert all(" from <sue@example.org> " in line for line in by_sender.lines)
        assert all("@example.net by" in line for line in by_domain.lines)
        assert {line.split()[2] for line in by_client.lines} == {"refused"}
        assert {line.split()[2] for line in by_result.lines} == {"accepted"}
        assert by_nobody.lines == []
        assert "SUBJECT" in plain.lines[0]


@pytest.mark.parametrize("option", ["--address", "--domain"])
def test_no_filter_is_no_wish_for_all(server: Gsmtpd, option: str) -> None:
    command = [sys.executable, "-m", "gsmtpd.ctl", "-c", server.conf, "tail", option, ""]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"argument {option}: say some text, or leave it out" in done.stderr


def test_a_server_that_is_not_there(server: Gsmtpd) -> None:
    """Stored mail is shown; when it is back, what it refuses as well."""
    with Gsmtpd() as daemon:
        send(daemon.address, mail("old"))
        daemon.stop()
        with tail(daemon, "-f") as following:
            following.wait_for('"old"')
            wait_for(lambda: following.notes)
            daemon.start()
            ready(daemon, following)
            send(daemon.address, mail("new"))
            following.wait_for('"new"')
            note = following.notes
            assert note.startswith("gsmtpctl: what is refused is not known, so only stored mail")
            assert note.count("\n") == 1


def test_a_database_that_goes_and_comes(mariadb: MariaDB) -> None:
    """What is refused meanwhile is shown, and all mail that is stored later, once."""
    with MariaDB(durable=True) as own:
        own.create_database("mail")
        daemon = Gsmtpd(mysql_store(own, "mail"))
        daemon.ctl("init-db", "--apply")
        with daemon, tail(daemon, "-f") as following:
            ready(daemon, following)
            send(daemon.address, mail("one"), mail("two"))
            following.wait_for('"two"')
            own.kill()
            wait_for(lambda: "stored mail cannot be read" in following.notes)
            refuse(daemon, "meanwhile@example.net")
            following.wait_for("meanwhile@example.net")
            own.start()
            wait_for(lambda: send(daemon.address, mail("three"))[0].code == 250)
            wait_for(lambda: any('"three"' in line for line in following.lines))
            assert sum('"two"' in line for line in following.lines) == 1
            assert following.notes.count("stored mail cannot be read") == 1


def test_nobody_to_ask() -> None:
    null = {"store": {"backend": "null"}, "server": {"control_socket": ""}}
    with Gsmtpd(null) as daemon, tail(daemon, "-f") as following:
        assert following.process.wait(30) == 69
        assert len(following.notes.splitlines()) == 2


def test_an_older_server(server: Gsmtpd) -> None:
    """It was left running by an upgrade."""
    before = (
        "import gsmtpd.master as m\n"
        "make = m.Master._open_control\n"
        "def old(self):\n  self._told.pop('events')\n  return make(self)\n"
        "m.Master._open_control = old\n"
    )
    with Gsmtpd(before=before) as daemon, tail(daemon, "-f") as following:
        wait_for(lambda: "is older" in following.notes)
        send(daemon.address, mail("new"))
        following.wait_for('"new"')
        # Who wants nothing else is not kept: it is not asked again.
        with tail(daemon, "-f", "--result", "refused") as refused:
            assert refused.process.wait(30) == 69
            assert refused.notes.count("is older") == 1


def test_a_server_that_is_restarted(server: Gsmtpd) -> None:
    """What the next one refuses is shown, too, and that it was gone is said once."""
    with Gsmtpd() as daemon, tail(daemon, "-f") as following:
        ready(daemon, following)
        refuse(daemon, "before@example.net")
        following.wait_for("before@example.net")
        daemon.ctl("reload")
        refuse(daemon, "reloaded@example.net")
        following.wait_for("reloaded@example.net")
        daemon.stop()
        wait_for(lambda: following.notes)
        daemon.start()
        refuse(daemon, "after@example.net")
        send(daemon.address, mail("new"))
        following.wait_for("after@example.net")
        following.wait_for('"new"')
        assert following.notes.count("\n") == 1


# --- filters ------------------------------------------------------------------------------------

REFUSED = {
    "result": "refused", "client": "2001:db8::1", "from": "<Joe@example.org>",
    "to": "a@example.com,b@Example.net", "reply": "451 4.3.0 later",
}  # fmt: skip
STORED = {
    "result": "accepted", "client": "192.0.2.1", "from": "<>", "to": "list@example.com",
    "mailbox": "ann@example.net",
}  # fmt: skip
CLOSED = {"result": "closed", "client": "", "reason": "TLS: no"}


@pytest.mark.parametrize(
    ("wanted", "matching"),
    [
        (Filter(), [REFUSED, STORED, CLOSED]),
        (Filter(addresses=["joe@example.org"]), [REFUSED]),
        (Filter(addresses=["b@example.net"]), [REFUSED]),
        (Filter(addresses=["ann@example.net", "a@example.com"]), [REFUSED, STORED]),
        (Filter(domains=["example.net"]), [REFUSED, STORED]),
        (Filter(domains=["example.org"]), []),
        (Filter(clients=[ipaddress.ip_network("2001:db8::/32")]), [REFUSED]),
        (Filter(clients=[ipaddress.ip_network("192.0.2.1")]), [STORED]),
        (Filter(results=["deferred"]), [REFUSED]),
        (Filter(results=["refused", "closed"]), [REFUSED, CLOSED]),
        (Filter(results=["accepted"], domains=["example.com"]), [STORED]),
    ],
)
def test_filters(wanted: Filter, matching: list[dict[str, str]]) -> None:
    assert [each for each in (REFUSED, STORED, CLOSED) if wanted.has(each)] == matching


def test_a_lasting_refusal_is_not_deferred() -> None:
    assert not Filter(results=["deferred"]).has(REFUSED | {"reply": "550 no"})
