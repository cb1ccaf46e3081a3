"""Does long work say how far it is, on a terminal and nowhere else?"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.accounting import count, send, simple, table_of
from tests.servers import Gsmtpd, environment, wait_for

FROM_LINE = "From joe@example.org Mon Nov 23 10:00:00 2026\n"
MAIL = f"{FROM_LINE}Delivered-To: b@example.com\nSubject: x\n\nHello.\n\n".encode()
WITHOUT_TQDM = "import sys\nsys.modules['tqdm'] = None\n"


class Terminal:
    """A terminal that a program writes to."""

    def __init__(self, columns: int = 80) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        os.set_blocking(self._master, False)
        self.text = ""

    def look(self) -> str:
        """All that was written so far."""
        while True:
            try:
                octets = os.read(self._master, 65536)
            except OSError as error:  # EIO: nobody has it open any more
                assert error.errno in (errno.EAGAIN, errno.EIO)
                return self.text
            self.text += octets.decode()

    def shows(self, pattern: str) -> bool:
        """Whether something was written that has `pattern`."""
        return re.search(pattern, self.look()) is not None

    def lines(self) -> list[str]:
        """What stays on the screen, of what was written over itself the last."""
        lines = self.look().replace("\r\n", "\n").split("\n")
        return [re.sub(r"\x1b\[\w", "", line.rpartition("\r")[2]).strip() for line in lines if line]

    def close(self) -> None:
        for descriptor in (self._master, self.slave):
            os.close(descriptor)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@contextmanager
def ctl(
    server: Gsmtpd, *arguments: str, stderr: int, before: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A gsmtpctl that runs, behind the Python `before`, and reads a pipe."""
    code = f"{before}\nimport sys, gsmtpd.ctl\nsys.exit(gsmtpd.ctl.main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "-c", str(server.conf), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment(),
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Gsmtpd]:
    with Gsmtpd() as started:
        yield started


def feed(process: subprocess.Popen[bytes], mails: int) -> None:
    assert process.stdin is not None
    process.stdin.write(MAIL * mails)
    process.stdin.flush()


def end(process: subprocess.Popen[bytes]) -> bytes:
    """What is on stdout."""
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return said


def test_an_import_of_a_pipe_counts(server: Gsmtpd, terminal: Terminal) -> None:
    """Nobody knows how much comes. The count goes as the work is done, and leaves nothing."""
    with ctl(server, "import", "-", stderr=terminal.slave) as process:
        feed(process, 250)
        wait_for(lambda: terminal.shows(r"\rimported 200 mails, 00:0\d"))
        assert "%" not in terminal.look()
        assert end(process) == b""
    assert terminal.lines()[-1] == "imported 250 mails"


def test_an_import_of_a_file_has_a_bar(server: Gsmtpd, terminal: Terminal) -> None:
    (server.path / "mbox").write_bytes(MAIL * 300)
    # What is read is held up, so that the bar is seen on a fast machine as well.
    before = (
        "import time, gsmtpd.mailfiles as m\nread = m.read_mail\n"
        "def slow(*a):\n  for n, each in enumerate(read(*a)):\n"
        "    if n == 150: time.sleep(2)\n    yield each\n"
        "m.read_mail = slow\n"
    )
    path = str(server.path / "mbox")
    with ctl(server, "import", path, stderr=terminal.slave, before=before) as process:
        wait_for(lambda: terminal.shows(r"imported 100 mails  [1-9]\d%\|.*\| 00:0\d<00:0\d"))
        end(process)
    assert terminal.lines()[-1] == "imported 300 mails"
    assert max(map(len, re.split(r"[\r\n]", terminal.text))) <= 80


def test_what_is_said_meanwhile_stands_on_lines_of_its_own(
    server: Gsmtpd, terminal: Terminal
) -> None:
    with ctl(server, "import", "-", stderr=terminal.slave) as process:
        feed(process, 100)
        wait_for(lambda: terminal.shows(r"imported \d+ mails, 00:"))
        assert process.stdin is not None
        process.stdin.write(f"{FROM_LINE}Subject: y\n\nFor nobody.\n\n".encode() + MAIL)
        process.stdin.flush()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 69
    refused = [line for line in terminal.lines() if "no field says whom it is for" in line]
    assert len(refused) == 1
    assert refused[0].startswith("gsmtpctl: stdin, message 101: ")


def test_nothing_is_shown_in_a_pipe(server: Gsmtpd) -> None:
    with ctl(server, "import", "-", stderr=subprocess.PIPE) as process:
        stored = count(table_of(server))
        feed(process, 150)
        wait_for(lambda: count(table_of(server)) > stored or process.poll() is not None)
        time.sleep(0.7)  # longer than a bar waits
        _, said = process.communicate(timeout=60)
    assert said == b"imported 150 mails\n"


def test_without_tqdm_there_are_lines(server: Gsmtpd, terminal: Terminal) -> None:
    with ctl(server, "import", "-", stderr=terminal.slave, before=WITHOUT_TQDM) as process:
        feed(process, 150)
        wait_for(lambda: terminal.shows(r"gsmtpctl: imported 100 mails\r\n"))
        end(process)
    assert terminal.lines()[-1] == "imported 150 mails"
    assert "\r\x1b" not in terminal.look()


SLOW_WRITER = """
import time, gsmtpd.mailfiles as m
add = m._MboxWriter.add
def slow(self, number, *rest):
  add(self, number, *rest)
  self.n = getattr(self, "n", 0) + 1
  if self.n == 2: time.sleep(2)
m._MboxWriter.add = slow
"""


def test_an_export_has_a_bar(terminal: Terminal) -> None:
    with Gsmtpd() as server:
        send(server.address, *(simple("x") for _ in range(4)))
        mbox = str(server.path / "out")
        with ctl(server, "export", mbox, stderr=terminal.slave, before=SLOW_WRITER) as process:
            wait_for(lambda: terminal.shows(r"exported 1 mails  25%\|"))
            end(process)
        assert terminal.lines()[-1] == "exported 4 mails"


def test_mail_on_the_terminal_has_no_bar(terminal: Terminal) -> None:
    """It would stand in the middle of mail."""
    with Gsmtpd() as server:
        send(server.address, *(simple("x") for _ in range(4)))
        code = f"{SLOW_WRITER}\nimport sys, gsmtpd.ctl\nsys.exit(gsmtpd.ctl.main())"
        done = subprocess.run(
            [sys.executable, "-c", code, "-c", str(server.conf), "export", "-"],
            check=True, stdout=terminal.slave, stderr=terminal.slave, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0
    assert terminal.lines()[-1] == "exported 4 mails"
    assert "%" not in terminal.text


SLOW_DELETE = """
import time, gsmtpd.storage.sqlite_shelf as s
delete = s.SQLiteShelf.delete
def slow(self, rows):
  time.sleep(2)
  s.SQLiteShelf.delete = delete  # a slow machine deletes in many steps
  return delete(self, rows)
s.SQLiteShelf.delete = slow
"""


def test_a_purge_has_a_bar(terminal: Terminal) -> None:
    with Gsmtpd() as server:
        send(server.address, *(simple("x") for _ in range(300)))
        time.sleep(1.1)  # the column has whole seconds
        arguments = ("purge", "--older-than", "0s")
        with ctl(server, *arguments, stderr=terminal.slave, before=SLOW_DELETE) as process:
            wait_for(lambda: terminal.shows(r"deleted [1-9]\d+ mails +\d+%\|"))
            assert end(process) == b"deleted 300 mails\n"
        assert count(table_of(server)) == 0


SLOW_SQL = """
import time, sqlite3
from gsmtpd.storage import sqlite
make = sqlite._make_tables
def slow(connection, progress):
  make(connection, lambda done, of: (progress(done, of), time.sleep(0.3)))
sqlite._make_tables = slow
"""


def test_tables_that_are_made_have_a_bar(terminal: Terminal) -> None:
    server = Gsmtpd()
    arguments = ("init-db", "--apply")
    with ctl(server, *arguments, stderr=terminal.slave, before=SLOW_SQL) as process:
        wait_for(lambda: terminal.shows(r"statement \d of \d+ +\d+%\|"))
        assert end(process).startswith(b"the tables are in ")
    assert terminal.lines()[-1:] in ([], [""])
