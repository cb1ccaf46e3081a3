"""What do the commands of the fault lab say and answer, also of what is wrong?"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsmtpd.faultlab import arguments, cli, ledger
from gsmtpd.faultlab.disk import SmallDisk
from gsmtpd.faultlab.lab import Lab, Plan
from gsmtpd.faultlab.processes import MissingProgramError, environment
from gsmtpd.faultlab.send_command import Reach, last_refusal
from gsmtpd.faultlab.senders import Senders
from gsmtpd.faultlab.stored import StoredRow, sqlite_rows
from tests.servers import Gsmtpd, MariaDB, free_port
from tests.unit.faultlab.scripted import HANG_UP, RST, SILENCE, Scripted, at_times


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
    time.sleep(1)  # what came in this very second stays
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


SEND = ["send", "--server", "h:1", "--to", "a@b.c", "--ledgers", "x"]
WHOLE = "is no whole number from 1 to 1000000000"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["send"], "--server, --to, --ledgers"),
        (["send", *SEND[3:], "--server", "here"], "'here' is not like 127.0.0.1:25"),
        (["send", *SEND[3:], "--server", "h:0"], "'h:0' is not like 127.0.0.1:25"),
        ([*SEND, "--to", "a"], "'a' is no address"),
        ([*SEND, "--break-off", "2"], "'2' is no number from 0 to 1"),
        ([*SEND, "--break-off", "nan"], "'nan' is no number from 0 to 1"),
        ([*SEND, "--max-size", "20"], "'20' is too small; the least is 300"),
        ([*SEND, "--max-size", "2k"], f"'2k' {WHOLE}"),
        ([*SEND, "--rate", "0"], "'0' is no number above 0"),
        ([*SEND, "--seconds", "inf"], "'inf' is no number above 0"),
        ([*SEND, "--seed", "x"], "'x' is no whole number"),
        (["check"], "--ledgers"),
        (["check", "--ledgers", "x", "--mysql", "http://x"], "is not like mysql://"),
        (["check", "--ledgers", "x", "--wait", "-1"], "'-1' is no number of seconds from 0 on"),
        (["run", "--jobs", "two"], f"'two' {WHOLE}"),
        (["run", "--each", "0"], f"'0' {WHOLE}"),
        (["run", "--sessions", "9" * 5000], WHOLE),
        (["run", "--scale", "-1"], "'-1' is no number above 0"),
        (["run", "--quiet", "soon"], "'soon' is no number of seconds from 0 on"),
    ],
)
def test_a_wrong_command_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert said in capsys.readouterr().err


def test_right_numbers() -> None:
    assert arguments.count("1000000000") == 10**9
    assert (arguments.seed("-7"), arguments.positive("1e-3"), arguments.share("1")) == (-7, 1e-3, 1)
    assert arguments.seconds("0") == 0


def send(address: tuple[str, int], ledgers: Path, *words: str) -> int:
    """Run `send`; its exit status."""
    server = ["--server", f"{address[0]}:{address[1]}", "--to", "a@example.com"]
    return cli.main(["send", *server, "--ledgers", str(ledgers), "--sessions", "1", *words])


def test_nobody_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It says so, ends in time with both --messages and --seconds, and not as if all was well."""
    port = free_port()
    bounds = ["--messages", "9", "--seconds", "0.3"]
    assert send(("127.0.0.1", port), tmp_path, *bounds) == 1
    said = capfd.readouterr()
    assert f"127.0.0.1:{port}: Connection refused (since " in said.err
    assert "nothing was acknowledged" in said.err
    assert cli.main(["check", "--ledgers", str(tmp_path), "--sqlite", str(table(tmp_path))]) == 1
    assert "the ledgers hold no mail, so nothing is proved" in capfd.readouterr().err


def table(directory: Path) -> Path:
    """An empty one."""
    path = directory / "mail.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE new_mail (hash TEXT, recipient TEXT, mail BLOB)")
    return path


@pytest.mark.parametrize(
    ("greeting", "trouble"),
    [
        ("220 hello", ""),
        ("421 too\x1b[2J many", "421 too [2J many"),
        (HANG_UP, "connections are closed at once"),
        (RST, "Connection reset by peer"),
        (SILENCE, "no answer within 0.3 s"),
    ],
)
def test_why_no_session_begins(greeting: str, trouble: str) -> None:
    with Scripted(lambda _: greeting) as server:
        assert Reach(server.address).trouble(0.3 if greeting == SILENCE else 30) == trouble


def test_trouble_is_told_with_its_begin_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    reach = Reach(("example.com", 25))
    for trouble in ("", "gone", "still gone", "", ""):
        reach.note(trouble)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("gsmtpd-faultlab: example.com:25: gone (since ")
    assert second.replace("still ", "") == first
    assert last == "gsmtpd-faultlab: example.com:25 answers again"


@pytest.mark.parametrize(
    ("where", "answers", "status", "said"),
    [
        (b"RCPT", ["550 5.1.1 no such mailbox"], 0, "the last refusal: 550 5.1.1 no such mailbox"),
        (b".", ["554 a", "554 b", "554 c"], 1, "the last refusal: 554 c"),
        (b".", ["451 later"], 0, ""),
    ],
)
def test_what_the_server_has_against_it(
    where: bytes,
    answers: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Scripted(at_times(where, answers)) as server:
        assert send(server.address, tmp_path, "--messages", "3", "--seconds", "60") == status
    err = capfd.readouterr().err
    assert said in err and ("the last refusal" in err) == bool(said)
    assert ("nothing was acknowledged" in err) == (status == 1)


def test_the_last_refusal_of_several_ledgers(tmp_path: Path) -> None:
    for at in (3.0, 1.0, None):
        _, file = ledger.create(tmp_path)
        writer = ledger.Writer(file)
        if at is not None:
            writer.reply("u", 1, "mail", 550, f"550-no\n550 at {at:g}", 0.0, at)
            writer.reply("u", 1, "dot", 250, '250 "code":5', 0.0, 9.0)
            writer.other("turned_away", code=421, text=f"421 at {at:g}", at=at)
        writer.close()
    ledgers = ledger.files(tmp_path)
    assert last_refusal(ledgers, 5) == "550-no 550 at 3"
    assert last_refusal(ledgers, 4) == "421 at 3"
    assert last_refusal(ledgers[2:], 4) == ""


@pytest.mark.parametrize(("program", "package"), [("mariadbd", "mariadb-server"), ("lsof", "lsof")])
def test_a_run_says_what_is_missing(
    program: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without(program, monkeypatch)
    home = tmp_path / "home"
    assert cli.main(["run", "--galera", "--home", str(home)]) == 69
    said = capsys.readouterr()
    assert said.err == f"gsmtpd-faultlab: {program} is not installed: apt install {package}\n"
    assert said.out == "" and not home.exists()


def without(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all programs but one."""
    monkeypatch.setattr(
        "shutil.which", lambda name, path: None if name == missing else f"/usr/bin/{name}"
    )


def test_a_machine_that_cannot_make_a_small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab does without."""
    lab = Lab(tmp_path, 1, Plan(disk=True))
    with contextlib.closing(MariaDB()) as server, lab._stack:
        without("mkfs.ext4", monkeypatch)
        with pytest.raises(MissingProgramError, match="apt install e2fsprogs"):
            SmallDisk(server.path / "disk").__enter__()
        lab._move(server)
        assert lab._disk is None
        assert not (server.path / "data").is_symlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "{tmp}/none/x.json"], "{tmp}/none/x.json cannot be written to"),
        (["--markdown", "{tmp}"], "{tmp} cannot be written to"),
        (["--home", "{tmp}/a file"], "{tmp}/a file: File exists"),
        (["--home", "/proc/home"], "/proc/home: No such file or directory"),
        (["--faults", "earthquake"], "there is no fault 'earthquake'"),
    ],
)
def test_a_run_that_could_not_keep_what_it_finds(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").touch()
    assert cli.main(["run", *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert said.format(tmp=tmp_path) in capsys.readouterr().err


def test_a_run_where_one_may_not_be(tmp_path: Path) -> None:
    """In a directory that cannot be entered (one that is gone) labs are begun all the same.

    Figures may lie in a home that is new.
    """
    gone, programs = tmp_path / "gone", tmp_path / "programs"
    gone.mkdir()
    programs.mkdir()
    for name in ("mariadbd", "mariadb-install-db"):  # a lab that ends soon
        (programs / name).write_text("#!/bin/sh\nexit 7\n")
        (programs / name).chmod(0o755)
    command = [sys.executable, "-m", "gsmtpd.faultlab.cli", "run"]
    home = tmp_path / "home"
    command += ["--faults", "term", "--quiet", "0", "--home", str(home)]
    command += ["--json", str(home / "figures.json")]
    script = f"rmdir ../gone; exec {shlex.join(command)}"
    done = subprocess.run(
        ["sh", "-c", script],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=gone,
        env=environment({"PATH": f"{programs}:{os.environ['PATH']}"}),
        timeout=300,
    )
    assert "mariadb-install-db failed (7)" in done.stdout, done.stdout
    assert done.returncode == 1
    assert json.loads((home / "figures.json").read_text())["totals"]["acknowledged"] == 0
