"""Does every line get where it belongs, and what becomes of it where it cannot be written?"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from gsmtpd import logs
from gsmtpd.logs import LogError, Logs
from gsmtpd.maillog import MailLog
from gsmtpd.smtp import reply
from tests.servers import environment


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """The logger as it was before, when the test is over."""
    root = logging.getLogger("gsmtpd")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.level, root.propagate = before


@pytest.fixture
def opened() -> Iterator[Callable[..., Logs]]:
    """Makes Logs that are closed at the end."""
    made: list[Logs] = []

    def make(path: object, level: str = "info", style: str = "logfmt", mail: object = "") -> Logs:
        made.append(Logs(str(path), level, style, str(mail)))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Syslog:
    """A socket that stands in for /dev/log."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """The datagrams that came."""
        found = []
        while select.select([self.socket], [], [], 0)[0]:
            found.append(self.socket.recv(1 << 20).decode())
        return found


@pytest.fixture
def dev_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where gsmtpd looks for syslog; nothing is there yet."""
    path = tmp_path / "log"
    monkeypatch.setattr(logs, "SYSLOG", str(path))
    return path


def set_stderr(monkeypatch: pytest.MonkeyPatch, file: TextIO | None) -> None:
    """Have `gsmtpd.logs` take `file` for stderr; pytest sets sys.stderr itself, again and again."""
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=file))


@pytest.fixture
def stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is stderr."""
    path = tmp_path / "stderr"
    with path.open("a") as file:
        set_stderr(monkeypatch, file)
        yield path


@pytest.fixture
def no_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stderr that nobody reads, as a daemon has."""
    with open(os.devnull, "w") as file:
        set_stderr(monkeypatch, file)
        yield


def open_descriptors() -> set[int]:
    """What this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of listdir itself
            os.fstat(int(name))
            found.add(int(name))
    return found


def line(mail: MailLog, number: int = 0) -> None:
    """One line of the mail log; `number` tells it from others."""
    mail.closed(f"192.0.2.{number}", "", reply.TIMED_OUT)
    mail.flush()


def said(path: Path) -> list[str]:
    """The lines of a file."""
    return path.read_text().splitlines()


def in_children(number: int, task: Callable[[], None]) -> None:
    """Run `task` in several processes at once, forked from this one, to their ends."""
    children = []
    for _ in range(number):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                task()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * number


log = logging.getLogger("gsmtpd.test")


# Files


def test_both_logs_in_one_file(tmp_path: Path, opened: Callable[..., Logs]) -> None:
    both = opened(tmp_path / "log")
    both.install()
    log.warning("said")
    line(both.mail_log())
    first, second = said(tmp_path / "log")
    assert first.endswith(" level=warning msg=said")
    assert " result=closed client=192.0.2.0 " in second
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) & ~0o640 == 0


def test_a_file_for_each(tmp_path: Path, opened: Callable[..., Logs]) -> None:
    both = opened(tmp_path / "log", "info", "json", tmp_path / "mail")
    both.install()
    log.warning("said")
    line(both.mail_log())
    assert [json.loads(each)["msg"] for each in said(tmp_path / "log")] == ["said"]
    assert [json.loads(each)["result"] for each in said(tmp_path / "mail")] == ["closed"]


@pytest.mark.parametrize(
    ("level", "own", "mail"), [("debug", 3, 1), ("info", 2, 1), ("warning", 1, 0), ("error", 0, 0)]
)
def test_level(
    level: str, own: int, mail: int, tmp_path: Path, opened: Callable[..., Logs]
) -> None:
    both = opened(tmp_path / "log", level, "logfmt", tmp_path / "mail")
    both.install()
    log.debug("1")
    log.info("2")
    log.warning("3")
    line(both.mail_log())
    assert (len(said(tmp_path / "log")), len(said(tmp_path / "mail"))) == (own, mail)


def test_nothing_changes_before_install(tmp_path: Path, opened: Callable[..., Logs]) -> None:
    old = opened(tmp_path / "old", "error")
    old.install()
    new = opened(tmp_path / "new", "info")
    log.error("one")
    assert not log.isEnabledFor(logging.INFO)
    new.install()
    log.info("two")
    old.close()
    log.info("three")
    assert len(said(tmp_path / "old")) == 1
    assert len(said(tmp_path / "new")) == 2


@pytest.mark.parametrize(
    ("path", "mail", "setting"),
    [("nowhere/log", "", r"\[log\] file or -l"), ("log", "nowhere/mail", r"\[log\] mail_file")],
)
def test_a_file_that_cannot_be_opened(path: str, mail: str, setting: str, tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(LogError, match=rf"^cannot write the log .*: No such file.* set {setting} "):
        Logs(str(tmp_path / path), "info", "logfmt", str(tmp_path / mail) if mail else "")
    assert open_descriptors() <= before


def test_close_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_descriptors()
    both = Logs(str(tmp_path / "log"), "info", "logfmt", str(tmp_path / "mail"))
    mail = both.mail_log()
    assert {*both.descriptors} == open_descriptors() - before
    both.close()
    assert open_descriptors() == before
    line(mail)  # late, and lost
    assert said(tmp_path / "mail") == []


def test_close_leaves_stderr(stderr: Path) -> None:
    own = Logs("-", "info", "logfmt")
    own.close()
    print("still here", file=logs.sys.stderr, flush=True)
    assert said(stderr) == ["still here"]


def test_stderr_in_a_file_is_not_followed(
    stderr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Logs]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = opened("-")
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 2)
    line(own.mail_log())
    own.reopen()
    line(own.mail_log())
    assert len(said(stderr)) == 2
    assert os.listdir(tmp_path) == ["stderr"]


def test_a_fault_descriptor_is_the_programs_own_log(
    tmp_path: Path, stderr: Path, opened: Callable[..., Logs]
) -> None:
    both = opened(tmp_path / "log", "info", "logfmt", tmp_path / "mail")
    assert both.fault_descriptor is not None
    os.write(both.fault_descriptor, b"stack\n")
    assert said(tmp_path / "log") == ["stack"]
    assert opened("-").fault_descriptor == logs.sys.stderr.fileno()
    assert opened("").fault_descriptor is None


# Rotation


def test_reopen(tmp_path: Path, opened: Callable[..., Logs]) -> None:
    both = opened(tmp_path / "log", "info", "logfmt", tmp_path / "mail")
    both.install()
    mail, kept = both.mail_log(), both.descriptors
    for name in ("log", "mail"):
        (tmp_path / name).rename(tmp_path / f"{name}.1")
    log.warning("old")
    line(mail)
    both.reopen()
    log.warning("new")
    line(mail)
    assert both.descriptors == kept
    for name in ("log", "mail", "log.1", "mail.1"):
        assert len(said(tmp_path / name)) == 1


def test_a_renamed_file_is_left_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Logs]
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    mail = opened(tmp_path / "log").mail_log()
    (tmp_path / "log").rename(tmp_path / "log.1")
    line(mail)
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.01)
    line(mail)
    assert len(said(tmp_path / "log")) == len(said(tmp_path / "log.1")) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_if_no_new_file_can_be_made_the_old_one_is_kept(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Logs]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    own = opened(folder / "log")
    own.install()
    folder.rename(tmp_path / "moved")
    if asked:
        own.reopen()
    else:
        now = time.monotonic
        for seconds in (2, 4, 6):
            monkeypatch.setattr(time, "monotonic", lambda s=seconds: now() + s)
            line(own.mail_log())
    line(own.mail_log(), 9)
    first, *rest = said(tmp_path / "moved" / "log")
    expected = f"cannot open the log {folder}/log anew: No such file or directory;"
    assert f' level=error msg="{expected} the old file is written on"' in first
    assert len(rest) == (1 if asked else 4)
    assert all("result=closed" in each for each in rest)
    folder.mkdir()
    own.reopen()
    line(own.mail_log())
    assert len(said(folder / "log")) == 1


# The journal


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Stderr is the journal's socket; call it for what the journal read."""
    ours, its = socket.socketpair()
    status = os.fstat(ours.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with ours, its, ours.makefile("w") as file:
        set_stderr(monkeypatch, file)
        yield lambda: its.recv(1 << 20).decode()


def test_the_journal_gets_severities(
    journal: Callable[[], str], opened: Callable[..., Logs]
) -> None:
    own = opened("-", "debug")
    own.install()
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("one\ntwo")
    assert re.findall(r"^<(.)>.* level=(.*) msg=\"one\\ntwo\"$", journal(), re.MULTILINE) == [
        ("7", "debug"),
        ("6", "info"),
        ("4", "warning"),
        ("3", "error"),
        ("2", "critical"),
    ]


def test_the_journal_gets_a_severity_on_every_line(
    journal: Callable[[], str], opened: Callable[..., Logs]
) -> None:
    own = opened("-")
    own.install()
    mail = own.mail_log()
    mail.closed("192.0.2.1", "", reply.TIMED_OUT)
    mail.closed("192.0.2.2", "", reply.TIMED_OUT)
    mail.flush()
    assert [each[:8] for each in journal().splitlines()] == ["<6>time="] * 2
    try:
        raise ValueError("bad\nworse")
    except ValueError:
        log.exception("fault")
    text = journal()
    assert text.endswith("\n")
    assert len(text.splitlines()) > 4
    assert all(each.startswith(("<3>time=", "<3>  ")) for each in text.splitlines())


def test_another_stderr_is_no_journal(
    stderr: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Logs]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    line(opened("-").mail_log())
    assert stderr.read_text().startswith("time=")


# Syslog


def test_syslog(dev_log: Path, opened: Callable[..., Logs]) -> None:
    syslog = Syslog(dev_log)
    own = opened("", "debug")
    own.install()
    log.debug("a")
    log.warning("two\nlines")
    log.error("c")
    line(own.mail_log())
    pid = os.getpid()
    *program, mail = syslog.heard()
    assert program == [
        f"<23>gsmtpd[{pid}]: a",
        f"<20>gsmtpd[{pid}]: two",
        f"<20>gsmtpd[{pid}]: lines",
        f"<19>gsmtpd[{pid}]: c",
    ]
    assert re.fullmatch(rf"<22>gsmtpd\[{pid}\]: time=\S+ result=closed client=192.0.2.0 .*", mail)
    assert len(own.descriptors) == 1


def test_syslog_in_json(dev_log: Path, opened: Callable[..., Logs]) -> None:
    syslog = Syslog(dev_log)
    own = opened("", "info", "json")
    own.install()
    log.warning("two\nlines")
    (heard,) = syslog.heard()
    assert json.loads(heard.partition(": ")[2])["msg"] == "two\nlines"


def test_syslog_names_the_process_that_writes(dev_log: Path, opened: Callable[..., Logs]) -> None:
    syslog = Syslog(dev_log)
    own = opened("")
    line(own.mail_log())
    in_children(2, lambda: line(own.mail_log()))
    pids = [re.findall(r"gsmtpd\[(\d+)\]", each)[0] for each in syslog.heard()]
    assert len({*pids}) == 3
    assert pids[0] == str(os.getpid())


def test_syslog_may_come_later_and_be_restarted(dev_log: Path, opened: Callable[..., Logs]) -> None:
    own = opened("")
    assert own.descriptors == []
    line(own.mail_log())  # lost
    syslog = Syslog(dev_log)
    line(own.mail_log())
    assert len(syslog.heard()) == 1
    syslog.socket.close()
    line(own.mail_log())  # lost
    dev_log.unlink()
    line(own.mail_log())  # lost
    syslog = Syslog(dev_log)
    line(own.mail_log())
    own.reopen()
    line(own.mail_log())
    assert len(syslog.heard()) == 2


def test_a_line_during_the_restart_of_syslog_is_not_lost(
    dev_log: Path, opened: Callable[..., Logs]
) -> None:
    own = opened("")
    old = Syslog(dev_log)
    line(own.mail_log())
    old.socket.close()
    dev_log.unlink()
    new = Syslog(dev_log)
    line(own.mail_log())
    assert len(new.heard()) == 1


def test_a_stuck_syslog_stops_nobody(dev_log: Path, opened: Callable[..., Logs]) -> None:
    syslog = Syslog(dev_log)
    mail = opened("").mail_log()
    began = time.monotonic()
    for _ in range(5000):
        line(mail)
    assert time.monotonic() - began < 5
    assert 0 < len(syslog.heard()) < 5000


# A full disk


def fill(path: Path) -> None:
    """Leave no room in the file system of `path`."""
    with (path / "rest").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 512)


def is_whole(text: str) -> bool:
    """Whether it is a line that was written to its end, alone."""
    return text.count("time=") == 1 and text.endswith((" tls=no", "}")) or "lines lost" in text


def write_until_full(mail: MailLog) -> int:
    """Write more lines than 16 KiB hold; their number."""
    for number in range(250):
        line(mail, number)
    return 250


def test_a_full_disk(small_disk: Path, stderr: Path, opened: Callable[..., Logs]) -> None:
    own = opened(small_disk / "log")
    written = write_until_full(own.mail_log())
    kept = (small_disk / "log").read_text()
    assert len(kept) == 16384
    assert said(stderr) == [
        f"gsmtpd: cannot write the log {small_disk}/log: No space left on device;"
        " log lines are lost until there is room, mail is not"
    ]
    subprocess.run(["mount", "-o", "remount,size=64k", str(small_disk)], check=True)
    line(own.mail_log(), 999)
    line(own.mail_log(), 999)
    *first, cut, report, last, end = said(small_disk / "log")
    lost = written - len(first)
    assert all(map(is_whole, first))
    assert cut == kept.rpartition("\n")[2] != ""
    assert f' level=warning msg="lines lost here because they could not be written: {lost}"' in (
        report
    )
    assert "client=192.0.2.999" in last
    assert "client=192.0.2.999" in end
    assert len(said(stderr)) == 1


def test_each_full_disk_is_said(
    small_disk: Path, stderr: Path, opened: Callable[..., Logs]
) -> None:
    own = opened(small_disk / "log", "info", "json")
    mail = own.mail_log()
    for times in (1, 2, 3):
        fill(small_disk)
        write_until_full(mail)
        assert len(said(stderr)) == times
        (small_disk / "rest").unlink()
        (small_disk / "log").rename(small_disk / f"log.{times}")
        own.reopen()
        line(mail)
        report, last = map(json.loads, said(small_disk / "log"))
        assert report["level"] == "warning"
        assert last["result"] == "closed"
        (small_disk / f"log.{times}").unlink()


def test_a_full_disk_is_said_once_by_all_processes(
    small_disk: Path, stderr: Path, opened: Callable[..., Logs]
) -> None:
    own = opened(small_disk / "log")
    fill(small_disk)

    in_children(8, lambda: write_until_full(own.mail_log()))
    assert len(said(stderr)) == 1
    assert said(small_disk / "log") == []
    (small_disk / "rest").unlink()
    # Whoever writes first says it, also one that has lost nothing itself.
    in_children(4, lambda: line(own.mail_log()))
    lines = said(small_disk / "log")
    assert [each for each in lines if "lines lost" in each] == lines[:1]
    assert lines[0].endswith(f': {8 * 250}"')
    assert sum("result=closed" in each for each in lines) == 4
    assert len(said(stderr)) == 1


@pytest.mark.parametrize("there", ["file", "null", "log", "none"])
def test_without_stderr_syslog_is_told(
    there: str,
    dev_log: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., Logs],
) -> None:
    syslog = Syslog(dev_log)
    with open({"null": os.devnull, "log": "/dev/full"}.get(there, dev_log.parent / "f"), "w") as f:
        set_stderr(monkeypatch, None if there == "none" else f)
        mail = opened("/dev/full").mail_log()
        line(mail)
        line(mail)
    heard = syslog.heard()
    if there == "file":
        assert heard == []
    else:
        (only,) = heard
        assert only.startswith(f"<19>gsmtpd[{os.getpid()}]: cannot write the log /dev/full: No ")


def test_what_nobody_could_be_told_is_told_later(
    dev_log: Path, no_stderr: None, opened: Callable[..., Logs]
) -> None:
    mail = opened("/dev/full").mail_log()
    line(mail)
    syslog = Syslog(dev_log)
    line(mail)
    line(mail)
    assert len(syslog.heard()) == 1


def test_other_trouble_is_said_in_other_words(
    tmp_path: Path, stderr: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Logs]
) -> None:
    own = opened(tmp_path / "log")
    write = os.write

    def broken(descriptor: int, octets: bytes) -> int:
        if descriptor == own.fault_descriptor:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(descriptor, octets)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        line(own.mail_log())
    assert said(stderr) == [
        f"gsmtpd: cannot write the log {tmp_path}/log: Input/output error;"
        " log lines are lost until it can be written again, mail is not"
    ]
    line(own.mail_log())
    assert len(said(tmp_path / "log")) == 2


# A pipe


def test_a_pipe_that_nobody_reads_loses_whole_lines(
    monkeypatch: pytest.MonkeyPatch, dev_log: Path, opened: Callable[..., Logs]
) -> None:
    syslog = Syslog(dev_log)
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 8192)
    with open(into, "w") as file, open(out, "rb", buffering=0) as reader:
        set_stderr(monkeypatch, file)
        mail = opened("-").mail_log()
        for _ in range(10):
            for number in range(30):
                mail.closed(f"192.0.2.{number}", "", reply.TIMED_OUT)
            mail.flush()
        first = reader.read(1 << 20)
        line(mail)
        rest = reader.read(1 << 20)
        lines = (first + rest).decode().splitlines()
    whole = [each for each in lines if each.startswith("time=") and each.endswith("tls=no")]
    assert len(lines) - len(whole) <= 2  # one that was cut, and the report
    (report,) = [each for each in lines if "lines lost" in each]
    assert report.endswith(f': {301 - len(whole)}"')
    assert syslog.heard() == []


def test_a_reader_that_went_away_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, dev_log: Path, opened: Callable[..., Logs]
) -> None:
    syslog = Syslog(dev_log)
    out, into = os.pipe()
    with open(into, "w") as file:
        set_stderr(monkeypatch, file)
        mail = opened("-").mail_log()
        os.close(out)
        line(mail)
        line(mail)
    assert syslog.heard() == []


def test_the_journal_of_a_real_process(tmp_path: Path) -> None:
    """A process started as systemd does it, on a descriptor that is stderr from the start."""
    program = (
        "import logging, os, sys\n"
        "status = os.fstat(2)\n"
        "os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'\n"
        "from gsmtpd.logs import Logs\n"
        "Logs('-', 'info', 'json').install()\n"
        "logging.getLogger('gsmtpd').error('said')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert re.fullmatch(r'<3>\{"time": ".*", "level": "error", "msg": "said"\}\n', done.stderr)
