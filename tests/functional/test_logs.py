"""Does the log say what became of each mail, without ever standing in the way of mail?"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gsmtpd.smtp import reply
from tests.accounting import Client, count, send, stuffed, table_of, with_token
from tests.servers import Gsmtpd, environment, wait_for
from tests.unit.test_maillog import TIME, parsed


def mail_goes_in(server: Gsmtpd) -> bool:
    return send(server.address, with_token())[0].code == 250


def test_a_log_that_was_renamed_is_made_anew() -> None:
    with Gsmtpd() as server:
        assert mail_goes_in(server)
        server.log.rename(server.path / "old.log")

        def is_there() -> bool:  # it is looked at once a second
            assert mail_goes_in(server)
            return server.log.exists() and "result=accepted" in server.log.read_text()

        wait_for(is_there)


def test_a_reader_of_stderr_that_does_not_read_stops_no_mail() -> None:
    server = Gsmtpd()
    text = server.conf.read_text()
    server.conf.write_text("\n".join(x for x in text.splitlines() if "gsmtpd.log" not in x))
    command = [sys.executable, "-m", "gsmtpd", "-n", "-c", str(server.conf)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        try:
            wait_for(server.answers)
            # Each line has some 200 octets, and a pipe takes 64 KiB.
            mails = [with_token() for _ in range(800)]
            assert {reply.code for reply in send(server.address, *mails)} == {250}
        finally:
            process.terminate()
            process.communicate()
        server.close()


def test_mail_and_log_are_not_for_everybody_to_read() -> None:
    with Gsmtpd() as server:
        assert mail_goes_in(server)
        kept = [path for path in server.path.iterdir() if path.name.startswith("mail.db")]
        assert kept
        for path in [*kept, server.log]:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path


def test_the_mail_log_in_a_file_of_its_own(tmp_path: Path) -> None:
    mail = tmp_path / "mail.log"
    with Gsmtpd({"log": {"mail_file": mail}}) as server:
        assert mail_goes_in(server)
        wait_for(lambda: "result=accepted" in mail.read_text())
        assert server.stop() == 0
        assert all(" result=" in line for line in mail.read_text().splitlines())
        assert "result=" not in server.log.read_text()
        assert "stopped" in server.log.read_text()


def test_usr1_opens_both_logs_anew_at_once(tmp_path: Path) -> None:
    mail = tmp_path / "mail.log"
    with Gsmtpd({"log": {"mail_file": mail}, "server": {"processes": 2}}) as server:
        assert mail_goes_in(server)
        for path in (mail, server.log):
            path.rename(f"{path}.1")
        os.kill(server.pid, signal.SIGUSR1)
        wait_for(lambda: mail.exists() and server.log.exists())


# --- the mail log: one line for each outcome ------------------------------------------------------

MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.com>\r\n"
DATA = b"DATA\r\n"
FROM = "<a@example.org>"
TO = "b@example.com"
LIMITS = {"max_size": "64K", "max_recipients": 100, "bare_newline": "reject"}
ONE_MESSAGE_A_SESSION = """
from gsmtpd.smtp.rules import Rules
names = [n for n, f in Rules.__dataclass_fields__.items() if f.init and n != "host_name"]
values = dict(zip(names, Rules.__init__.__defaults__), max_messages=1)
Rules.__init__.__defaults__ = tuple(values.values())
"""


class Reader:
    """Reads the mail log of a daemon that writes in `style`."""

    def __init__(self, server: Gsmtpd, style: str) -> None:
        self.server = server
        self._read = json.loads if style == "json" else parsed

    def since(self, position: int) -> list[dict[str, str]]:
        """The lines of the mail log behind `position`; all that has happened has its line."""
        mark = send(self.server.address, with_token())[0].id
        wait_for(lambda: mark in self.server.log.read_text())
        text = self.server.log.read_text()[position:]
        assert text.isascii()
        assert text.endswith("\n")
        lines = [self._read(line) for line in text.split("\n")[:-1]]
        assert [line["id"] for line in lines if line.get("id") == mark] == [mark]
        return [line for line in lines if "result" in line and line.get("id") != mark]

    def lines(self, *pieces: bytes, helo: bytes = b"EHLO client.example\r\n") -> list[dict]:
        """The lines that a session leaves. pieces: each is sent behind the reply to the last."""
        position = len(self.server.log.read_text())
        with Client(self.server.address) as client:
            client.reply()
            for piece in filter(None, (helo, *pieces)):
                client.send(piece)
                client.reply()
        lines = self.since(position)
        assert all(TIME.fullmatch(line.pop("time")) for line in lines)
        return lines


@pytest.fixture(scope="module", params=["logfmt", "json"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A daemon with small limits, and its log in either style."""
    settings = {"limits": LIMITS, "log": {"format": request.param}}
    with Gsmtpd(settings, before=ONE_MESSAGE_A_SESSION) as server:
        yield Reader(server, request.param)


class Case(NamedTuple):
    """What a client says, and the fields of the one line that it leaves."""

    pieces: list[bytes]
    reply: reply.Reply
    fields: dict[str, object]


REFUSED = {
    "mail-syntax": Case([b"MAIL FROM:<>x\r\n"], reply.MAIL_SYNTAX, {"from": "FROM:<>x"}),
    "bad-sender": Case([b"MAIL FROM:<a@@b>\r\n"], reply.BAD_SENDER, {"from": "FROM:<a@@b>"}),
    "sender-utf8": Case(
        ["MAIL FROM:<ü@b>\r\n".encode()], reply.NEEDS_SMTPUTF8, {"from": "FROM:<ü@b>"}
    ),
    "mail-parameter": Case(
        [b"MAIL FROM:<> RET=FULL\r\n"], reply.UNKNOWN_PARAMETER, {"from": "FROM:<> RET=FULL"}
    ),
    "size-parameter": Case(
        [b"MAIL FROM:<a@example.org> SIZE=65537\r\n"],
        reply.TOO_BIG,
        {"from": FROM, "size": 65537},
    ),
    "second-mail": Case([MAIL, MAIL], reply.NESTED_MAIL, {"from": FROM}),
    "rcpt-before-mail": Case([RCPT], reply.MAIL_FIRST, {"to": TO, "recipients": 1}),
    "rcpt-syntax": Case(
        [MAIL, b"RCPT b\r\n"], reply.RCPT_SYNTAX, {"from": FROM, "to": "b", "recipients": 1}
    ),
    "bad-recipient": Case(
        [MAIL, b"RCPT TO:<\xff@b>\r\n"],
        reply.BAD_RECIPIENT,
        {"from": FROM, "to": "TO:<\ufffd@b>", "recipients": 1},
    ),
    "rcpt-parameter": Case(
        [MAIL, b"RCPT TO:<b@example.com> NOTIFY=NEVER\r\n"],
        reply.UNKNOWN_PARAMETER,
        {"from": FROM, "to": "TO:<b@example.com> NOTIFY=NEVER", "recipients": 1},
    ),
    "relay": Case(
        [b"MAIL FROM:<>\r\n", b"RCPT TO:<c@example.net>\r\n"],
        reply.NOT_SERVED,
        {"from": "<>", "to": "c@example.net", "recipients": 1},
    ),
    "too-many-recipients": Case(
        [MAIL, *[RCPT] * 100, b"RCPT TO:<c@example.com>\r\n"],
        reply.TOO_MANY_RECIPIENTS,
        {"from": FROM, "to": "c@example.com", "recipients": 1},
    ),
    "data-before-mail": Case([DATA], reply.MAIL_FIRST, {}),
    "data-before-rcpt": Case([MAIL, DATA], reply.RCPT_FIRST, {"from": FROM}),
    "data-out-of-turn": Case(
        [MAIL, RCPT, DATA + b"NOOP\r\n"],
        reply.OUT_OF_TURN,
        {"from": FROM, "to": TO, "recipients": 1},
    ),
    "too-big": Case(
        [MAIL, RCPT, RCPT, DATA, b"x" * 65535 + b"\r\n..\r\n.\r\n"],
        reply.TOO_BIG,
        {"from": FROM, "to": f"{TO},{TO}", "recipients": 2, "size": 65540},
    ),
    "bare-newline": Case(
        [MAIL, RCPT, DATA, b"a\nb\r\n.\r\n"],
        reply.BARE_NEWLINE,
        {"from": FROM, "to": TO, "recipients": 1, "size": 5},
    ),
    "mail-loop": Case(
        [MAIL, RCPT, DATA, b"Received: x\r\n" * 100 + b".\r\n"],
        reply.MAIL_LOOP,
        {"from": FROM, "to": TO, "recipients": 1, "size": 1300},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line(reader: Reader, name: str) -> None:
    case = REFUSED[name]
    (line,) = reader.lines(*case.pieces)
    expected: dict[str, object] = {
        "result": "refused",
        "client": "127.0.0.1",
        "helo": "client.example",
        "reply": str(case.reply),
        "tls": "no",
    }
    for field in ("recipients", "size"):
        if field in line:
            line[field] = int(line[field])
    assert line == expected | case.fields


@pytest.mark.parametrize("command", [MAIL, RCPT, DATA])
def test_a_refusal_before_helo_is_one_line(reader: Reader, command: bytes) -> None:
    (line,) = reader.lines(command, helo=b"")
    assert "helo" not in line
    assert (line["result"], line["reply"]) == ("refused", str(reply.HELO_FIRST))


def test_too_many_messages_are_one_line(reader: Reader) -> None:
    stored, line = reader.lines(MAIL, RCPT, DATA, b".\r\n", MAIL)
    assert stored["result"] == "accepted"
    assert (line["result"], line["from"]) == ("refused", FROM)
    assert line["reply"] == str(reply.TOO_MANY_MESSAGES)


def test_an_accepted_message_is_one_line(reader: Reader) -> None:
    (line,) = reader.lines(MAIL, RCPT, RCPT, DATA, b"abc\r\n.\r\n")
    assert len(line.pop("id")) == 32
    assert 0 <= float(line.pop("delay")) < 10
    assert {name: str(value) for name, value in line.items()} == {
        "result": "accepted",
        "client": "127.0.0.1",
        "helo": "client.example",
        "from": FROM,
        "to": f"{TO},{TO}",
        "recipients": "2",
        "size": "5",
        "reply": "250",
        "tls": "no",
    }


def test_a_message_to_some_of_its_recipients(reader: Reader) -> None:
    relay = b"RCPT TO:<c@example.net>\r\n"
    refused, accepted = reader.lines(MAIL, RCPT, relay, RCPT, DATA, b".\r\n")
    assert (refused["result"], refused["to"]) == ("refused", "c@example.net")
    assert (accepted["result"], accepted["to"]) == ("accepted", f"{TO},{TO}")


@pytest.mark.parametrize(
    ("pieces", "result", "said"),
    [
        ([b"FOO\r\n"] * 10, "closed", reply.TOO_MANY_ERRORS),
        ([b"GET / HTTP/1.1\r\n"], "closed", reply.NOT_SMTP),
        ([*[b"FOO\r\n"] * 9, DATA], "refused", reply.TOO_MANY_ERRORS),
    ],
)
def test_a_session_that_we_end_is_one_line(
    reader: Reader, pieces: list[bytes], result: str, said: reply.Reply
) -> None:
    assert reader.lines(*pieces) == [
        {
            "result": result,
            "client": "127.0.0.1",
            "helo": "client.example",
            "reply": str(said),
            "tls": "no",
        }
    ]


def test_an_end_for_another_reason_has_its_own_line(reader: Reader) -> None:
    refused, closed = reader.lines(RCPT, *[b"FOO\r\n"] * 9)
    assert (refused["result"], refused["reply"]) == ("refused", str(reply.MAIL_FIRST))
    assert (closed["result"], closed["reply"]) == ("closed", str(reply.TOO_MANY_ERRORS))


def test_what_is_no_mail_has_no_line(reader: Reader) -> None:
    talk = b"NOOP", b"FOO", b"VRFY", b"EXPN a", b"RSET x", b"HELO", b"STARTTLS", b"QUIT"
    assert reader.lines(*(command + b"\r\n" for command in talk)) == []


HOSTILE = {
    "control characters": b"x\x00\x1b[31m\x08\x7f\x0b\x0c\x1c",
    "line ends of Unicode": "x\x85\u2028\u2029".encode(),
    "quotes": b'x" result=accepted id="y\\',
    "no UTF-8": b"x\xff\xfe\xc3",
    "bare LF": b"x\ntime=1 result=accepted",
    "bare CR": b"x\rtime=1 result=accepted",
    "long": b"x" * 400,
    "2,000 octets": b"\x01" * 2000,
    "3,000 octets": b"\xc3\xbc" * 1500,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_client_gets_one_line_a_refusal(reader: Reader, name: str) -> None:
    evil = HOSTILE[name]
    lines = reader.lines(
        b"MAIL FROM:<" + evil + b">\r\n",
        MAIL,
        b"RCPT TO:<" + evil + b">\r\n",
        helo=b"EHLO " + evil + b"\r\n",
    )
    if "helo" not in lines[0]:  # it was refused as well: without HELO, all that follows is
        assert len(lines) == 3
    else:
        assert len(lines) == 2
        assert lines[0]["helo"].startswith("x")
    assert {line["result"] for line in lines} == {"refused"}
    assert all(len(str(value).encode()) <= 512 for line in lines for value in line.values())


def test_a_hostile_helo_in_the_line_of_a_message(reader: Reader) -> None:
    (line,) = reader.lines(MAIL, RCPT, DATA, b".\r\n", helo=b'EHLO x\x1b" result=refused\r\n')
    assert line["result"] == "accepted"
    assert line["helo"] == 'x\x1b" result=refused'


def test_a_client_that_is_too_slow() -> None:
    with Gsmtpd({"limits": {"timeout": "3s"}}) as server, Client(server.address) as client:
        client.hello()
        assert client.reply().code == 421
        wait_for(lambda: "result=closed" in server.log.read_text())
        (line,) = [line for line in server.log.read_text().splitlines() if "result=closed" in line]
    assert parsed(line)["helo"] == "client.example"
    assert parsed(line)["reply"] == str(reply.TIMED_OUT)


def test_a_message_that_cannot_be_stored() -> None:
    nowhere = {"backend": "mysql", "mysql": {"host": "127.0.0.1:1"}}
    with Gsmtpd({"store": nowhere}) as server:
        mail = with_token()
        assert send(server.address, mail)[0].code == 451
        wait_for(lambda: "result=refused" in server.log.read_text())
        (line,) = [line for line in server.log.read_text().splitlines() if "result=" in line]
    fields = parsed(line)
    assert fields["reply"] == str(reply.STORAGE_TROUBLE)
    assert (fields["size"], fields["to"]) == (str(len(mail.content)), TO)
    assert len(fields["id"]) == 32
    assert "delay" in fields


def test_a_message_that_is_stored_after_its_client_heard_451() -> None:
    impatient = "import gsmtpd.server.connection as c; c.GIVE_UP_AFTER = 0.1"
    with Gsmtpd(before=impatient) as server, Client(server.address) as client:
        mail = with_token()
        assert client.hello().begin(mail).code == 354
        locker = sqlite3.connect(server.mail_db)
        locker.execute("BEGIN IMMEDIATE")
        client.send(stuffed(mail.content))
        assert client.reply().code == 451
        locker.rollback()
        locker.close()
        wait_for(lambda: "result=stored_unheard" in server.log.read_text())
        assert count(table_of(server)) == 1
        lines = [line for line in server.log.read_text().splitlines() if "result=" in line]
    refused, stored = map(parsed, lines)
    assert (refused["result"], refused["reply"]) == ("refused", str(reply.STORAGE_TROUBLE))
    assert stored["result"] == "stored_unheard"
    assert float(stored["delay"]) >= float(refused["delay"]) > 0
    for field in ("id", "client", "helo", "from", "to", "recipients", "size", "tls"):
        assert stored[field] == refused[field]


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_under_the_log_stops_no_mail_and_is_said_once(small_disk: Path) -> None:
    log = small_disk / "log"
    settings = {"server": {"processes": 3}, "store": {"backend": "null"}, "log": {"file": log}}
    with Gsmtpd(settings) as server:
        for _ in range(30):  # the kernel spreads connections over the processes
            mails = [with_token() for _ in range(10)]
            assert {reply.code for reply in send(server.address, *mails)} == {250}
        assert log.stat().st_size == 16384
        assert [line for line in server.output.read_text().splitlines() if "log" in line] == [
            f"gsmtpd: cannot write the log {log}: No space left on device;"
            " log lines are lost until there is room, mail is not"
        ]
        subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
        assert mail_goes_in(server)
        wait_for(lambda: "result=accepted" in log.read_text()[16384:])
        lines = log.read_text().splitlines()
    (report,) = [line for line in lines if "lines lost" in line]
    written = sum("result=accepted" in line and line.endswith("tls=no") for line in lines)
    assert report.endswith(f': {301 - written}"')
