"""Does gsmtpd behave as a daemon should: command line, pid file, signals, a graceful end?"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from gsmtpd import __version__
from tests.accounting import (
    Client,
    Ledger,
    MySQLTable,
    count,
    rows,
    send,
    stuffed,
    table_of,
    with_token,
)
from tests.conftest import make_schema
from tests.servers import (
    START_SECONDS,
    Gsmtpd,
    MariaDB,
    environment,
    free_port,
    mysql_store,
    wait_for,
)

STOP = 30.0  # seconds in which a stop is done


def gsmtpd(*arguments: object, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run gsmtpd, to its end or until it has gone into the background."""
    return subprocess.run(
        [sys.executable, "-m", "gsmtpd", *map(str, arguments)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment(),
    )


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Daemon(Gsmtpd):
    """gsmtpd in the background, as `gsmtpd -c FILE` starts it; it is nobody's child."""

    pid_file: Path

    def start(self, seconds: float = START_SECONDS) -> None:
        self.pid_file = self.path / "gsmtpd.pid"
        done = gsmtpd("-c", self.conf, *self.arguments, seconds=seconds)
        assert done.returncode == 0, done.stderr
        assert done.stdout == done.stderr == ""
        wait_for(self.answers, seconds)

    @property
    def pid(self) -> int:
        """What the pid file says."""
        return int(self.pid_file.read_text())

    def kill(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            for pid in [self.pid, *children(self.pid)]:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


# --- the command line ---------------------------------------------------------------------------


def test_version() -> None:
    done = gsmtpd("--version")
    assert (done.returncode, done.stdout) == (0, f"gsmtpd {__version__}\n")


def test_check_of_a_good_configuration() -> None:
    server = Gsmtpd()
    done = gsmtpd("-c", server.conf, "-t")
    assert done.returncode == 0
    assert str(server.conf) in done.stdout
    assert done.stderr == ""


def test_check_says_what_is_wrong_with_the_store(mariadb: MariaDB) -> None:
    server = Gsmtpd(mysql_store(mariadb, "nowhere"))
    done = gsmtpd("-c", server.conf, "-t")
    assert done.returncode == 0
    assert re.fullmatch(r"gsmtpd: warning: store: .*'nowhere'.*\n", done.stderr)


def test_the_effective_configuration_is_a_configuration(tmp_path: Path) -> None:
    server = Gsmtpd({"limits": {"max_clients": 77}})
    done = gsmtpd("-c", server.conf, "-T", "-p", "2626")
    assert done.returncode == 0
    assert "max_clients = 77" in done.stdout
    assert ":2626" in done.stdout
    copy = tmp_path / "copy.conf"
    copy.write_text(done.stdout)
    again = gsmtpd("-c", copy, "-T")
    assert again.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]


@pytest.mark.parametrize("arguments", [["-p", "0"], ["-p", "65536"], ["-p", "x"], ["--what"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = gsmtpd(*arguments)
    assert done.returncode == 2
    assert "usage: gsmtpd" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_and_log_of_the_command_line(tmp_path: Path) -> None:
    server = Gsmtpd({"listen": {"mx": {"address": "127.0.0.1:1"}}})
    log = tmp_path / "other.log"
    server.arguments = ["-p", str(server.port), "-l", str(log)]
    with server:
        reply = send(server.address, with_token())[0]
        wait_for(lambda: f"id={reply.id}" in log.read_text())
        assert not server.log.exists()


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_logs_more_than_errors_only(verbose: bool) -> None:
    with Gsmtpd({"log": {"level": "error"}}, ["-v"] * verbose) as server:
        assert send(server.address, with_token())[0].code == 250
        assert server.stop() == 0
        assert ("result=accepted" in server.log.read_text()) is verbose


def test_without_a_log_file_the_foreground_logs_to_stderr() -> None:
    with Gsmtpd({"log": {"file": ""}}) as server:
        reply = send(server.address, with_token())[0]
        wait_for(lambda: f"id={reply.id}" in server.output.read_text())


# --- the daemon ---------------------------------------------------------------------------------


def test_it_goes_into_the_background_and_takes_mail(daemon: Daemon) -> None:
    assert send(daemon.address, with_token())[0].code == 250
    assert count(table_of(daemon)) == 1
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == "/"
    assert len(children(daemon.pid)) == 1
    for stream in (0, 1, 2):
        assert os.readlink(f"/proc/{daemon.pid}/fd/{stream}") == "/dev/null"
    assert os.getsid(daemon.pid) != os.getsid(0)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert re.search(r"^Umask:\s+0*27$", status, re.MULTILINE)


def test_the_pid_file_is_there_when_the_command_returns() -> None:
    """A script that starts gsmtpd and then reads the file must not lose a race."""
    server = Daemon()
    server.pid_file = server.path / "gsmtpd.pid"
    command = [sys.executable, "-m", "gsmtpd", "-c", str(server.conf)]
    try:
        assert subprocess.call(command, env=environment()) == 0
        assert alive(int(server.pid_file.read_text()))
    finally:
        wait_for(server.answers)
        server.close()


def test_it_can_start_with_relative_paths(tmp_path: Path) -> None:
    """The daemon works in /, so what the command line names must be found from there."""
    server = Daemon()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gsmtpd", "-c", server.conf.name, "-l", "relative.log"],
            check=False,
            cwd=server.path,
            env=environment(),
        )
        server.pid_file = server.path / "gsmtpd.pid"
        assert done.returncode == 0
        wait_for(server.answers)
        assert send(server.address, with_token())[0].code == 250
        wait_for(lambda: "result=accepted" in (server.path / "relative.log").read_text())
    finally:
        server.close()


@pytest.mark.parametrize("name", ["TERM", "INT", "QUIT"])
def test_a_signal_stops_it_and_removes_the_pid_file(name: str) -> None:
    with Daemon() as daemon:
        pids = [daemon.pid, *children(daemon.pid)]
        os.kill(daemon.pid, signal.Signals[f"SIG{name}"])
        wait_for(lambda: not any(map(alive, pids)), STOP)
        assert not daemon.pid_file.exists()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(daemon.address):
            pass


def test_a_stale_pid_file_is_taken_over(daemon: Daemon) -> None:
    pids = [daemon.pid, *children(daemon.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)))
    assert daemon.pid_file.exists()
    daemon.start()
    wait_for(lambda: daemon.pid_file.read_text().strip() not in ("", str(pids[0])))
    assert alive(daemon.pid)
    assert send(daemon.address, with_token())[0].code == 250


def test_a_second_daemon_with_the_same_pid_file(daemon: Daemon) -> None:
    wait_for(lambda: daemon.pid_file.read_text())
    done = gsmtpd("-c", daemon.conf, "-p", free_port())
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert str(daemon.pid) in done.stderr
    assert daemon.answers()
    assert alive(daemon.pid), "the second one took the pid file away"


# --- the end ------------------------------------------------------------------------------------
#
# Clients are given some seconds to leave by themselves, so these take a while: all run at once.


def mail_in_its_commit(mariadb: MariaDB, how: signal.Signals) -> None:
    """The commit is under way when the signal comes: the reply arrives, and then the end."""
    schema = f"end{how}"
    make_schema(mariadb, schema)
    ledger = Ledger()
    mails = [with_token(recipients=["b@example.com", "c@example.com"]) for _ in range(5)]
    with Gsmtpd(mysql_store(mariadb, schema) | {"server": {"processes": 2}}) as server:
        clients = [Client(server.address).hello() for _ in mails]
        idle = Client(server.address).hello()
        pids = server.pids()
        with mariadb.connect(database=schema) as locker, locker.cursor() as cursor:
            cursor.execute("LOCK TABLES new_mail READ")
            for client, mail in zip(clients, mails, strict=True):
                assert client.begin(mail).code == 354
                client.send(stuffed(mail.content))
            time.sleep(0.3)  # all are past their final dot now, and wait
            os.kill(server.pid, how)
            assert idle.reply().text.startswith("421 4.3.2 ")
            assert idle.closed()
            cursor.execute("UNLOCK TABLES")
        for client, mail in zip(clients, mails, strict=True):
            ledger.note(mail, client.reply(), True)
            client.close()
        idle.close()
        assert server.stop(STOP) == 0
        assert not any(map(alive, pids))
    assert len(ledger.acknowledged) == len(mails)
    ledger.check(rows(MySQLTable(mariadb, schema)))


def client_between_commands(mariadb: MariaDB, how: signal.Signals) -> None:
    """It hears 421 at its next command."""
    with Gsmtpd() as server, Client(server.address) as client:
        client.hello()
        assert client.command("MAIL FROM:<a@example.org>").code == 250
        os.kill(server.pid, how)
        reply = client.command("RCPT TO:<b@example.com>")
        while reply.code == 250:  # the signal is on its way
            time.sleep(0.02)
            reply = client.command("RCPT TO:<b@example.com>")
        assert reply.text.startswith("421 4.3.2 ")
        client.close()
        assert server.stop(STOP) == 0


def client_in_its_message(mariadb: MariaDB, how: signal.Signals) -> None:
    """It does not hold up the end, and its half message is not stored."""
    with Gsmtpd() as server, Client(server.address) as client:
        assert client.hello().begin(with_token()).code == 354
        client.send(b"half a mess")
        os.kill(server.pid, how)
        assert client.reply().text.startswith("421 4.3.2 ")
        assert server.stop(STOP) == 0
        assert count(table_of(server)) == 0


def clients_that_never_hang_up(mariadb: MariaDB, how: signal.Signals) -> None:
    """They hear 421, and the end comes."""
    with Gsmtpd({"server": {"processes": 2}}) as server:
        clients = [Client(server.address).hello() for _ in range(10)]
        os.kill(server.pid, how)
        assert server.stop(STOP) == 0
        for client in clients:
            assert client.reply().text.startswith("421 4.3.2 ")
            client.close()


ENDINGS = (
    mail_in_its_commit,
    client_between_commands,
    client_in_its_message,
    clients_that_never_hang_up,
)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
Endings = dict[tuple[str, signal.Signals], Future[None]]


@pytest.fixture(scope="module")
def endings(mariadb: MariaDB, background: ThreadPoolExecutor) -> Endings:
    """All endings, under way."""
    return {
        (ending.__name__, how): background.submit(ending, mariadb, how)
        for ending in ENDINGS
        for how in SIGNALS
    }


@pytest.mark.parametrize("how", SIGNALS, ids=lambda how: how.name)
@pytest.mark.parametrize("ending", [ending.__name__ for ending in ENDINGS])
def test_a_graceful_end(endings: Endings, ending: str, how: signal.Signals) -> None:
    endings[ending, how].result()


def test_a_signal_during_the_start_is_not_lost() -> None:
    server = Gsmtpd()
    process = subprocess.Popen(
        server.command(), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: server.log.exists() and "listening" in server.log.read_text())
        process.terminate()
        assert process.wait(STOP) == 0
    finally:
        process.kill()
        process.wait()
        server.close()
