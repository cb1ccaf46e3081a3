"""Do the senders keep a true account, whatever a server says, and when they or it are killed?"""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.check import Report, check
from gsmtpd.faultlab.mails import Mails
from gsmtpd.faultlab.senders import Senders, SendersError
from gsmtpd.faultlab.stored import sqlite_rows
from tests.servers import Gsmtpd, free_port, wait_for
from tests.unit.faultlab.scripted import HANG_UP, RST, SILENCE, Said, Scripted, at_times, usual


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
    found, _ = sent(at_times(where, [SILENCE]), tmp_path, timeout=3.0)
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
            # What has come in a round is on the disk at its end.
            (ledger,) = (path for path in tmp_path.iterdir() if path.suffix == ".jsonl")
            wait_for(lambda: ledger.read_text().count('"phase":"dot","code":250') >= 50)
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
