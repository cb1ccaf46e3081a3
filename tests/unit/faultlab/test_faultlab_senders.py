"""Do the senders keep a true account, whatever a server says, and when they or it are killed?"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.faultlab import cli, ledger
from gsmtpd.faultlab.check import Report, check
from gsmtpd.faultlab.mails import Mails
from gsmtpd.faultlab.senders import Senders, SendersError
from gsmtpd.faultlab.stored import StoredRow, sqlite_rows
from tests.servers import Gsmtpd, free_port, wait_for

RESET = struct.pack("ii", 1, 0)
SILENCE, HANG_UP, RST = "silence", "hang up", "RST"
Said = Callable[[bytes], str]


class Scripted:
    """A server that says to each command what `say` says, or does SILENCE, HANG_UP or RST.

    say: is given a command, b"" for the greeting, and b"." for the end of a message.
    """

    def __init__(self, say: Said) -> None:
        self._say = say
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.commands: list[bytes] = []
        self.messages: list[bytes] = []
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as lines:
            if not self._answer(client, b""):
                return
            for line in lines:
                command = line.rstrip(b"\r\n")
                self.commands.append(command)
                said = self._answer(client, command)
                if not said:
                    return
                if said.startswith("354"):
                    message = b""
                    for text in lines:
                        if text == b".\r\n":
                            break
                        message += text[1:] if text.startswith(b".") else text
                    else:
                        return
                    self.messages.append(message)
                    if not self._answer(client, b"."):
                        return

    def _answer(self, client: socket.socket, command: bytes) -> str:
        """What was said, nothing where that was the end."""
        said = self._say(command)
        if said == RST:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if said in (HANG_UP, RST):
            client.shutdown(socket.SHUT_RDWR) if said == HANG_UP else None
            client.close()
            return ""
        if said != SILENCE:
            client.sendall(said.encode() + b"\r\n")
            if said.startswith("421"):
                client.shutdown(socket.SHUT_WR)
        return said

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for client in self._clients:
            client.close()


def usual(command: bytes) -> str:
    verb = command.split(b" ")[0]
    usually = {b"": "220 hello", b"EHLO": "250-us\r\n250 8BITMIME", b"DATA": "354 go on"}
    return usually.get(
        verb, f"250 OK: queued as {os.urandom(16).hex()}" if verb == b"." else "250 ok"
    )


def at_times(where: bytes, said: Sequence[str]) -> Said:
    """What is usual, but for the first answers to the commands that begin so."""
    left = [*said]
    lock = threading.Lock()

    def say(command: bytes) -> str:
        with lock:
            if command.startswith(where) and (where or not command) and left:
                return left.pop(0)
        return usual(command)

    return say


def steps(directory: Path) -> list[dict[str, Any]]:
    return [step for path in ledger.files(directory) for step in ledger.read(path)]


def kinds(directory: Path) -> Counter[tuple[str, ...]]:
    """How many steps of each kind there are, with their phase and code."""
    return Counter(
        tuple(str(step[name]) for name in ("step", "phase", "code") if name in step)
        for step in steps(directory)
    )


def sent(
    say: Said, directory: Path, messages: int = 3, **options: Any
) -> tuple[Counter[tuple[str, ...]], Scripted]:
    with Scripted(say) as server:
        options = {"sessions": 1, "messages": messages} | options
        with Senders(server.address, directory, 7, **options) as senders:
            assert senders.wait(60)
            assert senders.acknowledged == kinds(directory)["reply", "dot", "250"]
    return kinds(directory), server


def test_what_is_sent_is_what_the_ledger_says(tmp_path: Path) -> None:
    found, server = sent(usual, tmp_path, 50)
    assert found == {
        ("run",): 1,
        ("mail",): 50,
        ("dot",): 50,
        ("reply", "dot", "250"): 50,
        ("end",): 1,
    }
    all_steps = steps(tmp_path)
    run = all_steps[0]
    mails = [step for step in all_steps if step["step"] == "mail"]
    assert [sha256(message).hexdigest() for message in server.messages] == [
        step["sha256"] for step in mails
    ]
    maker = Mails(run["run"], 7, run["sender"], run["recipients"], run["max_size"])
    for number, (step, message) in enumerate(zip(mails, server.messages, strict=True)):
        assert message == maker.mail(number).content
        assert step["to"] == [*maker.mail(number).to] and step["size"] == len(message)
    said = [c.decode() for c in server.commands if c.startswith(b"RCPT")]
    assert said == [f"RCPT TO:<{to}>" for step in mails for to in step["to"]]


DOT, MAIL = ("reply", "dot"), ("reply", "mail")


@pytest.mark.parametrize(
    ("where", "said", "noted"),
    [
        (b"", "421 later", ("turned_away", "421")),
        (b"", "554 never", ("turned_away", "554")),
        (b"EHLO", "421 later", ("turned_away", "421")),
        (b"MAIL", "451 later", (*MAIL, "451")),
        (b"MAIL", "421 later", (*MAIL, "421")),
        (b"RCPT", "452 later", (*MAIL, "452")),
        (b"DATA", "451 later", (*MAIL, "451")),
        (b".", "451 later", (*DOT, "451")),
        (b".", "421 later", (*DOT, "421")),
        (b"MAIL", HANG_UP, ("lost", "mail")),
        (b"MAIL", RST, ("lost", "mail")),
        (b"DATA", HANG_UP, ("lost", "mail")),
        (b".", HANG_UP, ("lost", "dot")),
        (b".", RST, ("lost", "dot")),
        (b"MAIL", "what", ("lost", "mail")),
        (b".", "099 what", ("lost", "dot")),
    ],
)
def test_trouble_is_noted_and_the_mail_comes_again(
    tmp_path: Path, where: bytes, said: str, noted: tuple[str, ...]
) -> None:
    found, _ = sent(at_times(where, [said] * 2), tmp_path, recipients=["one@example.com"])
    assert found[noted] == 2
    assert found[*DOT, "250"] == 3


@pytest.mark.parametrize("where", [b"MAIL", b"."])
def test_silence_is_a_loss(tmp_path: Path, where: bytes) -> None:
    found, _ = sent(at_times(where, [SILENCE]), tmp_path, timeout=0.3)
    assert found["lost", "dot" if where == b"." else "mail"] == 1
    assert found[*DOT, "250"] == 3


def test_a_5xx_is_the_end_of_a_mail(tmp_path: Path) -> None:
    found, server = sent(at_times(b".", ["554 no"]), tmp_path)
    assert (found[*DOT, "554"], found[*DOT, "250"], len(server.messages)) == (1, 2, 3)


def test_after_a_refusal_the_transaction_is_reset(tmp_path: Path) -> None:
    _, server = sent(at_times(b"DATA", ["451 later"]), tmp_path, 1)
    verbs = [command.split(b" ")[0] for command in server.commands]
    begin = verbs.index(b"DATA")
    assert verbs[begin + 1 : begin + 3] == [b"RSET", b"MAIL"]


def test_what_not_all_recipients_may_get_is_not_sent(tmp_path: Path) -> None:
    """One of several is refused, DATA is let through: the connection ends without a message."""
    say = at_times(b"RCPT", ["250 ok", "452 later"])
    found, server = sent(say, tmp_path, 20)
    assert found[*MAIL, "452"] == 1
    assert len(server.messages) == found[*DOT, "250"] == 20


def test_a_server_that_is_away_and_comes(tmp_path: Path) -> None:
    with Gsmtpd() as daemon:
        daemon.stop()
        with Senders(daemon.address, tmp_path, 1, messages=20) as senders:
            assert not senders.wait(0.5)
            daemon.start()
            assert senders.wait(60)
            assert senders.last_acknowledged > 0
        assert senders_report(tmp_path, daemon).acknowledged == 20


def senders_report(directory: Path, daemon: Gsmtpd) -> Report:
    report = check(ledger.files(directory), sqlite_rows(daemon.mail_db))
    assert report.violations == 0, [*report.lines()]
    return report


def test_broken_off_attempts(tmp_path: Path) -> None:
    with Gsmtpd() as daemon:
        with Senders(daemon.address, tmp_path, 1, messages=200, break_off=0.5) as senders:
            assert senders.wait(100)
            assert senders.abandoned > 50
            senders.break_off = 0.0
        report = senders_report(tmp_path, daemon)
    found = kinds(tmp_path)
    assert found["abandoned", "data"] and found["abandoned", "dot"]
    assert report.in_doubt == found["abandoned", "dot"]
    assert report.acknowledged == report.mails == 200


def test_several_processes_with_a_rate_pause_and_stop(tmp_path: Path) -> None:
    with Gsmtpd() as daemon:
        with Senders(daemon.address, tmp_path, 1, processes=2, sessions=4, rate=100) as senders:
            senders.wait_for(20)
            assert senders.connections == 4
            assert senders.last_acknowledged > 0
            assert senders.last_trouble == 0
            senders.pause()
            wait_for(lambda: senders.attempts == senders.acknowledged)
            paused = senders.acknowledged
            senders.rate = None
            assert senders.acknowledged == paused
            senders.resume()
            senders.wait_for(200)
            senders.stop()
            assert not senders.running
            acknowledged = senders.acknowledged
        report = senders_report(tmp_path, daemon)
    assert len(ledger.files(tmp_path)) == 2
    assert report.acknowledged == acknowledged == report.mails
    assert kinds(tmp_path)["end",] == 2


def test_a_rate_is_kept(tmp_path: Path) -> None:
    with Gsmtpd() as daemon, Senders(daemon.address, tmp_path, 1, messages=60, rate=50) as senders:
        assert not senders.wait(0.5)
        assert senders.wait(60)
    mails = [step["at"] for step in steps(tmp_path) if step["step"] == "mail"]
    assert mails[-1] - mails[0] > 0.7  # 60 at 50/s, less what may come at once


def test_what_is_given_up_is_noted(tmp_path: Path) -> None:
    with (
        Scripted(at_times(b".", [SILENCE] * 100)) as server,
        Senders(server.address, tmp_path, 1, sessions=2) as senders,
    ):
        wait_for(lambda: senders.attempts == 2)
        senders.stop(0.0)
    assert kinds(tmp_path)["lost", "dot"] == 2


def test_a_sender_that_is_killed(tmp_path: Path) -> None:
    with Gsmtpd() as daemon:
        senders = Senders(daemon.address, tmp_path, 1)
        with pytest.raises(SendersError, match="ended with status -9"), senders:
            senders.wait_for(50)
            os.kill(senders.pids[0], signal.SIGKILL)
            senders.wait_for(10**9)
        wait_for(lambda: not daemon.status()["clients"])
        assert senders_report(tmp_path, daemon).acknowledged >= 50


def test_they_end_with_their_parent(tmp_path: Path) -> None:
    with Gsmtpd() as daemon, Senders(daemon.address, tmp_path, 1) as senders:
        (process,) = senders._processes
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(30) == 1
        senders._processes.clear()


def test_they_go_on_behind_the_ledgers_that_are_there(tmp_path: Path) -> None:
    with Gsmtpd() as daemon:
        for _ in range(2):
            with Senders(daemon.address, tmp_path, 1, messages=5) as senders:
                assert senders.wait(60)
        report = senders_report(tmp_path, daemon)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("sender")) == [
        "sender-0.jsonl",
        "sender-1.jsonl",
    ]
    assert report.acknowledged == report.stored == 10


def test_a_sender_that_cannot_write_its_ledger_says_so(tmp_path: Path) -> None:
    with (
        Gsmtpd() as daemon,
        pytest.raises(SendersError, match=r"ended with status 1: (?s:.*)File too large"),
        Senders(daemon.address, tmp_path, 1) as senders,
    ):
        senders.wait_for(1)
        resource.prlimit(senders.pids[0], resource.RLIMIT_FSIZE, (4096, 4096))
        senders.wait_for(10**9)


def test_nobody_listens(tmp_path: Path) -> None:
    with Senders(("127.0.0.1", free_port()), tmp_path, 1) as senders:
        with pytest.raises(SendersError, match="not acknowledged in 0.3 s"):
            senders.wait_for(1, 0.3)
        senders.stop(0.1)


@pytest.fixture
def daemon() -> Iterator[Gsmtpd]:
    with Gsmtpd() as made:
        yield made


def test_the_commands(daemon: Gsmtpd, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = f"{daemon.address[0]}:{daemon.address[1]}"
    ledgers = str(tmp_path / "ledgers")
    to = ["a@example.com", "b@example.com", "c@example.com"]
    words = ["send", "--server", server, "--to", *to, "--ledgers", ledgers, "--seed", "9"]
    assert cli.main([*words, "--messages", "30"]) == 0
    assert "acknowledged: 30, refused: 0," in capfd.readouterr().out
    assert cli.main([*words, "--seconds", "0.5", "--rate", "50", "--sessions", "2"]) == 0
    capfd.readouterr()
    for where in (["-c", str(daemon.conf)], ["--sqlite", str(daemon.mail_db)]):
        assert cli.main(["check", "--ledgers", ledgers, *where]) == 0
        assert "violations: 0" in capfd.readouterr().out
    daemon.ctl("purge", "--older-than", "0s", "--domain", "example.com")
    where = ["-c", str(daemon.conf)]
    assert cli.main(["check", "--ledgers", ledgers, *where, "--json", "--wait", "0.1"]) == 1
    figures = json.loads(capfd.readouterr().out)
    assert figures["lost"] == figures["acknowledged"] == figures["violations"] >= 30


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "--ledgers", "/nowhere"], 69, "/nowhere: No such file"),
        (["check", "--ledgers", "{ledgers}", "-c", "/nowhere"], 78, "/nowhere"),
        (["check", "--ledgers", "{ledgers}", "--sqlite", "/nowhere"], 69, "/nowhere"),
        (["check", "--ledgers", "{tmp}", "--sqlite", "/nowhere"], 69, "there are no ledgers"),
    ],
)
def test_what_the_commands_cannot_do(
    words: list[str], code: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, file = ledger.create(tmp_path / "some")
    os.close(file)
    places = {"tmp": str(tmp_path), "ledgers": str(tmp_path / "some")}
    words = [word.format(**places) for word in words]
    assert cli.main(words) == code
    assert said in capfd.readouterr().err


def test_octets_that_were_not_compared_are_no_success(
    daemon: Gsmtpd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Senders(daemon.address, tmp_path, 1, messages=5) as senders:
        assert senders.wait(60)
    rows = [row._replace(mail=None, kept="redis") for row in sqlite_rows(daemon.mail_db)]
    monkeypatch.setattr("gsmtpd.faultlab.stored.sqlite_rows", lambda path: iter(rows))
    assert isinstance(rows[0], StoredRow)
    assert cli.main(["check", "--ledgers", str(tmp_path), "--sqlite", str(daemon.mail_db)]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["send"],
        ["send", "--server", "here", "--to", "a@b.c", "--ledgers", "x"],
        ["send", "--server", "h:0", "--to", "a@b.c", "--ledgers", "x"],
        ["send", "--server", "h:1", "--to", "a", "--ledgers", "x"],
        ["send", "--server", "h:1", "--to", "a@b.c", "--ledgers", "x", "--break-off", "2"],
        ["send", "--server", "h:1", "--to", "a@b.c", "--ledgers", "x", "--max-size", "20"],
        ["send", "--server", "h:1", "--to", "a@b.c", "--ledgers", "x", "--rate", "0"],
        ["check"],
        ["check", "--ledgers", "x", "--mysql", "http://x"],
    ],
)
def test_a_wrong_command_line(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
