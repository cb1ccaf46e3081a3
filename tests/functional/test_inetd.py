"""Does gsmtpd --inetd serve one client as the daemon would, whoever has accepted it?

xinetd gives its programs the client as stdin, stdout and stderr; others give a pair of pipes.
"""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import smtplib
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.accounting import (
    Client,
    Ledger,
    MySQLTable,
    Table,
    count,
    rows,
    send,
    stuffed,
    table_of,
    with_token,
)
from tests.servers import (
    ROOT,
    START_SECONDS,
    Gsmtpd,
    Server,
    Settings,
    descendants,
    environment,
    find_program,
    mysql_store,
    wait_for,
)

EXAMPLE = ROOT / "etc/examples/xinetd-gsmtpd"
UNAVAILABLE = b"421 4.3.0 Service not available: try again later\r\n"
BROKEN = "[limits]\nsecret_word = 1\n"
# What the program runs first where a test wants to read its syslog.
SYSLOG = "import gsmtpd.logs; gsmtpd.logs.SYSLOG = {path!r}"


class Xinetd(Server):
    """A real xinetd that starts gsmtpd for each client, as our example file says.

    settings: of gsmtpd. changes: other values in the example file. before: as of Gsmtpd.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        changes: Mapping[str, str] | None = None,
        before: str = "",
    ) -> None:
        super().__init__("xinetd")
        self.gsmtpd = Gsmtpd(settings, before=before)  # never started: its files
        program = self.path / "program"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(self.gsmtpd.command()[:-3])} "$@"\n')
        program.chmod(0o755)
        values = {
            "port": str(self.port),
            "user": getpass.getuser(),
            "server": str(program),
            "server_args": f"--inetd -c {self.gsmtpd.conf}",
        }
        # Then a client that no program accepts has one started behind the other.
        self._waits = (changes or {}).get("wait") == "yes"
        text = EXAMPLE.read_text()
        for name, value in (values | dict(changes or {})).items():
            text = _with_value(text, name, value)
        self.file = self.path / "xinetd.conf"
        self.file.write_text(text.replace("\tport", "\tbind = 127.0.0.1\n\tport"))

    def command(self) -> list[str]:
        return [
            *(find_program("xinetd"), "-dontfork", "-f", str(self.file)),
            *("-pidfile", str(self.path / "pid"), "-filelog", str(self.path / "log")),
        ]

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(self.address, 5):
            return True
        return False

    @property
    def programs(self) -> list[int]:
        """The processes that serve clients now."""
        return descendants(self.pid)

    def start(self, seconds: float = START_SECONDS) -> None:
        super().start(seconds)
        if not self._waits:
            wait_for(lambda: not self.programs)  # that of `answers`

    def kill(self) -> None:
        for pid in self.programs if self.running else ():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        super().kill()

    def close(self) -> None:
        super().close()
        self.gsmtpd.close()

    def last_words(self) -> str:
        return super().last_words() + (self.path / "log").read_text()


def _with_value(text: str, name: str, value: str) -> str:
    lines = text.splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if line.split()[:2] == [name, "="]]
    assert len(found) == 1, f"the example sets {name} {len(found)} times"
    lines[found[0]] = f"\t{name} = {value}\n"
    return "".join(lines)


class Kept(NamedTuple):
    """A running xinetd and what its gsmtpd stores."""

    xinetd: Xinetd
    table: Table


@pytest.fixture(params=["sqlite", "mariadb"])
def kept_by_xinetd(request: pytest.FixtureRequest) -> Iterator[Kept]:
    """xinetd with gsmtpd and either store."""
    if request.param == "sqlite":
        with Xinetd() as xinetd:
            yield Kept(xinetd, table_of(xinetd.gsmtpd))
    else:
        mariadb, schema = request.getfixturevalue("mariadb"), request.getfixturevalue("schema")
        with Xinetd(mysql_store(mariadb, schema)) as xinetd:
            yield Kept(xinetd, MySQLTable(mariadb, schema))


class Syslog:
    """A socket that stands in for /dev/log."""

    def __init__(self, path: Path) -> None:
        self.before = SYSLOG.format(path=str(path))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def line(self) -> str:
        """The next line, without its head."""
        return self._socket.recv(65536).decode().partition(": ")[2]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    """A syslog for programs that run its `before` first."""
    found = Syslog(tmp_path / "syslog")
    yield found
    found.close()


# --- xinetd -------------------------------------------------------------------------------------


def test_mail_through_xinetd(kept_by_xinetd: Kept) -> None:
    xinetd, table = kept_by_xinetd
    ledger = Ledger()
    several = with_token(recipients=[f"r{number}@example.com" for number in range(20)])
    mails = [with_token(), several, with_token(5 << 20), with_token()]
    for mail, reply in zip(mails, send(xinetd.address, *mails), strict=True):
        ledger.note(mail, reply, True)
    assert len(ledger.acknowledged) == len(mails)
    ledger.check(rows(table))
    wait_for(lambda: not xinetd.programs)


def test_clients_at_once(kept_by_xinetd: Kept) -> None:
    """Each has a process of its own, and all write to one store."""
    xinetd, table = kept_by_xinetd
    ledger = Ledger()

    def one_client(_: int) -> None:
        mails = [with_token() for _ in range(3)]
        for mail, reply in zip(mails, send(xinetd.address, *mails), strict=True):
            ledger.note(mail, reply, True)

    with ThreadPoolExecutor(6) as executor:
        [*executor.map(one_client, range(6))]
    assert len(ledger.acknowledged) == 18
    ledger.check(rows(table))


def test_the_client_is_who_xinetd_has_accepted() -> None:
    with Xinetd() as xinetd:
        with smtplib.SMTP(*xinetd.address, source_address=("127.0.0.2", 0)) as client:
            client.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nx\r\n")
        assert table_of(xinetd.gsmtpd).query("SELECT ip_addr FROM new_mail") == [("127.0.0.2",)]
        log = xinetd.gsmtpd.log
        wait_for(lambda: "result=accepted" in log.read_text())
        assert "127.0.0.2" in log.read_text()


def test_a_broken_configuration_is_no_clients_to_read(syslog: Syslog) -> None:
    with Xinetd(before=syslog.before) as xinetd:
        xinetd.gsmtpd.conf.write_text(BROKEN)
        with socket.create_connection(xinetd.address, 10) as client:
            assert client.makefile("rb").read() == UNAVAILABLE
        assert "secret_word" in syslog.line()


def test_a_log_that_cannot_be_written(syslog: Syslog) -> None:
    with Xinetd(before=syslog.before) as xinetd:
        xinetd.gsmtpd.configure({"log": {"file": "/dev/null/log"}})
        with socket.create_connection(xinetd.address, 10) as client:
            assert client.makefile("rb").read() == UNAVAILABLE
        assert "/dev/null/log" in syslog.line()


def test_xinetd_that_gives_its_listening_socket(syslog: Syslog) -> None:
    """With wait = yes a program is to accept clients by itself. The line is for syslog."""
    with Xinetd(changes={"wait": "yes"}, before=syslog.before) as xinetd:
        with socket.create_connection(xinetd.address, 10):
            line = syslog.line()
        assert line.startswith("stdin is a socket without a client; start gsmtpd --inetd for each")
        assert "wait = no in xinetd" in line


def test_a_client_that_leaves_in_its_message() -> None:
    with Xinetd() as xinetd:
        with Client(xinetd.address) as client:
            assert client.hello().begin(with_token()).code == 354
            client.send(b"half a mess")
            assert xinetd.programs
        wait_for(lambda: not xinetd.programs)
        assert count(table_of(xinetd.gsmtpd)) == 0


def test_a_client_that_speaks_first() -> None:
    with Xinetd() as xinetd, socket.create_connection(xinetd.address, 10) as client:
        client.sendall(b"EHLO client.example\r\n")
        assert client.makefile("rb").read().startswith(b"554 5.5.0 ")


def test_a_stop_during_a_session() -> None:
    """As from the daemon: mail in its message is brought home, the client hears 421."""
    with Xinetd() as xinetd, Client(xinetd.address) as client:
        mail = with_token()
        assert client.hello().begin(mail).code == 354
        for pid in xinetd.programs:
            os.kill(pid, signal.SIGTERM)
        client.send(stuffed(mail.content))
        assert client.reply().code == 250
        assert client.command("NOOP").text.startswith("421 4.3.2 ")
        client.close()
        wait_for(lambda: not xinetd.programs)
        assert count(table_of(xinetd.gsmtpd)) == 1


# --- sockets and pipes, without xinetd ----------------------------------------------------------


class Once:
    """Files for gsmtpd --inetd, started by `run` and `start`."""

    def __init__(self, before: str = "") -> None:
        self.gsmtpd = Gsmtpd(before=before)

    @property
    def command(self) -> list[str]:
        """gsmtpd --inetd."""
        return [*self.gsmtpd.command()[:-3], "--inetd", "-c", str(self.gsmtpd.conf)]

    def run(self, said: bytes, **files: int) -> subprocess.CompletedProcess[bytes]:
        """All that it answers to what comes through a pipe."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | files
        return subprocess.run(
            self.command, check=False, input=said, timeout=30, env=environment(), **given
        )

    @contextmanager
    def start(self, stdin: int, stdout: int, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
        """Run it beside the test."""
        process = subprocess.Popen(
            self.command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment()
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    @contextmanager
    def pipes(self) -> Iterator[tuple[Talk, subprocess.Popen[bytes]]]:
        """Run it behind three pipes."""
        with self.start(*[subprocess.PIPE] * 3) as process:
            assert process.stdin is not None and process.stdout is not None
            pipe = process.stdin.fileno()
            yield Talk(process.stdout, partial(_write_all, pipe)), process

    @contextmanager
    def serve(self, client: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
        """Run it with a client as xinetd does."""
        fd = client.fileno()
        with self.start(fd, fd, fd) as process:
            client.close()
            yield process


def _write_all(descriptor: int, octets: bytes) -> None:
    while octets:
        octets = octets[os.write(descriptor, octets) :]


@pytest.fixture
def once() -> Iterator[Once]:
    found = Once()
    yield found
    found.gsmtpd.close()


def codes(said: bytes) -> list[int]:
    """The codes of all replies."""
    return [int(line[:3]) for line in said.splitlines() if line[3:4] == b" "]


class Talk:
    """A client's part, over any two ends."""

    def __init__(self, read: IO[bytes], write: Callable[[bytes], object]) -> None:
        self.read = read
        self.write = write

    def code(self) -> int:
        """The code of the next reply."""
        while (line := self.read.readline())[3:4] == b"-":
            pass
        return int(line[:3])

    def codes(self) -> list[int]:
        """The codes of all replies until the end."""
        return codes(self.read.read())

    def deliver(self, content: bytes) -> None:
        """Send a message; it waits for 354 alone."""
        self.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
        assert [self.code() for _ in range(3)] == [250, 250, 354]
        self.write(content + b".\r\n")

    def session(self, *contents: bytes) -> None:
        """Send messages from greeting to QUIT."""
        assert self.code() == 220
        self.write(b"EHLO client.example\r\n")
        assert self.code() == 250
        for content in contents:
            self.deliver(content)
            assert self.code() == 250
        self.write(b"QUIT\r\n")
        assert self.codes() == [221]


def connection(host: str) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over `host`: the client's and the server's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2], 10)
        return client, listener.accept()[0]


def over(client: socket.socket) -> Talk:
    """A talk over a socket."""
    return Talk(client.makefile("rb"), client.sendall)


def test_mail_through_pipes(once: Once) -> None:
    """Nobody sees who is at the other end of a pipe, so it is this machine."""
    large = (b"x" * 98 + b"\r\n") * 50_000
    with once.pipes() as (client, process):
        client.session(large, b"Subject: second\r\n\r\n")
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == b""
    table = table_of(once.gsmtpd)
    assert table.query("SELECT ip_addr, size FROM new_mail ORDER BY mail_id") == [
        ("127.0.0.1", len(large)),
        ("127.0.0.1", 19),
    ]


def test_what_waits_in_a_pipe_has_not_come_too_early(once: Once) -> None:
    done = once.run(b"EHLO x\r\nNOOP\r\nQUIT\r\n")
    assert codes(done.stdout) == [220, 250, 250, 221]
    assert done.stderr == b""
    assert done.returncode == 0


def test_a_pipe_that_ends_without_quit(once: Once) -> None:
    """Its last message is answered all the same."""
    with once.pipes() as (client, process):
        assert client.code() == 220
        client.write(b"HELO x\r\n")
        assert client.code() == 250
        client.deliver(b"x\r\n")
        assert process.stdin is not None
        process.stdin.close()
        assert client.codes() == [250]
        assert process.wait(30) == 0
    assert count(table_of(once.gsmtpd)) == 1


def test_a_pipe_that_does_not_block(once: Once) -> None:
    """Whoever has the other end may have said so; no input yet is not the end of it."""
    ours, theirs = os.pipe2(os.O_NONBLOCK), os.pipe()
    with once.start(ours[0], theirs[1], subprocess.DEVNULL) as process:
        os.close(theirs[1])
        with os.fdopen(theirs[0], "rb") as answers:
            assert answers.readline().startswith(b"220")
            os.write(ours[1], b"QUIT\r\n")
            assert answers.read().startswith(b"221")
        assert process.wait(30) == 0
    for end in ours:
        os.close(end)


def test_log_lines_and_replies_are_not_mixed(once: Once) -> None:
    """Without a log file the log is stderr, which is another place than the client here."""
    once.gsmtpd.configure({"log": {"file": ""}})
    with once.pipes() as (client, process):
        client.session(b"x\r\n")
        assert process.stderr is not None and b"result=accepted" in process.stderr.read()


def test_the_client_hears_no_log_line(syslog: Syslog) -> None:
    """Where stderr is the client, the log is syslog."""
    once = Once(syslog.before)
    once.gsmtpd.configure({"log": {"file": ""}})
    ours, theirs = connection("127.0.0.1")
    with once.serve(theirs) as process, ours:
        over(ours).session(b"x\r\n")
        assert "result=accepted" in syslog.line()
        assert process.wait(30) == 0
    once.gsmtpd.close()


def test_a_broken_configuration_through_pipes(once: Once) -> None:
    once.gsmtpd.conf.write_text(BROKEN)
    done = once.run(b"EHLO x\r\n")
    assert done.stdout == UNAVAILABLE
    assert b"secret_word" in done.stderr
    assert done.returncode == 78


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_without_a_client(once: Once, closed: str) -> None:
    command = ["sh", "-c", f'"$@" {closed}', "sh", *once.command]
    done = subprocess.run(
        command, check=False, capture_output=True, input=b"", timeout=30, env=environment()
    )
    assert done.returncode == 2
    needs = b"gsmtpd: stdin or stdout is closed; gsmtpd --inetd needs a client there\n"
    assert done.stderr == (b"" if "2>&-" in closed else needs)
    assert done.stdout == b""


def test_without_stderr(once: Once) -> None:
    """Its descriptor must not become another file's, which would then be given the log."""
    once.gsmtpd.configure({"log": {"file": ""}})
    command = ["sh", "-c", '"$@" 2>&-', "sh", *once.command]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        input=b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nQUIT\r\n",
        timeout=30,
        env=environment(),
    )
    assert codes(done.stdout) == [220, 250, 250, 550, 221]
    assert done.returncode == 0


def test_a_reader_that_leaves(once: Once) -> None:
    """Who does not hear the replies has gone, though stdin stays open."""
    with once.start(subprocess.PIPE, subprocess.PIPE, subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().startswith(b"220")
        process.stdout.close()
        process.stdin.write(b"NOOP\r\n")
        process.stdin.flush()
        assert process.wait(30) == 0


def test_a_reader_that_does_not_read() -> None:
    """It is not waited for, once its time is over."""
    once = Once("import gsmtpd.server.stdio as s; s._FLUSH = 0.5")
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:
            os.write(theirs, b"x" * 4096)
    os.set_blocking(theirs, True)
    with once.start(subprocess.DEVNULL, theirs, subprocess.DEVNULL) as process:
        assert process.wait(30) == 0
    os.close(ours)
    os.close(theirs)
    once.gsmtpd.close()


def test_a_stop_of_a_session_through_pipes(once: Once) -> None:
    with once.start(subprocess.PIPE, subprocess.PIPE, subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"220")
        process.terminate()
        assert process.stdout.readline().startswith(b"421 4.3.2 ")
        assert process.wait(30) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_that_hangs_up_before_it_is_served(once: Once, host: str) -> None:
    ours, theirs = connection(host)
    ours.close()
    with once.serve(theirs) as process:
        assert process.wait(30) in (0, 2)


def test_a_client_over_ipv6(once: Once) -> None:
    ours, theirs = connection("::1")
    with once.serve(theirs) as process, ours:
        over(ours).session(b"x\r\n")
        assert process.wait(30) == 0
    assert table_of(once.gsmtpd).query("SELECT ip_addr FROM new_mail") == [("::1",)]


def test_a_listening_socket_is_no_client(once: Once) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run(
            once.command, check=False, stdin=listener, capture_output=True, env=environment()
        )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"gsmtpd: stdin is a socket without a client; start gsmtpd")
    assert done.stderr.count(b"\n") == 1
