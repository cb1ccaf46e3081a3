"""Does a running gsmtpd do as it is told: by gsmtpctl, by signals, and by its pid file?"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.config import SPEC
from gsmtpd.control import ControlError, ask, ask_to_stop
from gsmtpd.ctl_status_text import said as said_of
from tests.accounting import Client, count, send, stuffed, table_of, with_token
from tests.functional.test_daemon import STOP, Daemon, alive, gsmtpd
from tests.servers import Gsmtpd, MariaDB, environment, free_port, mysql_store, wait_for

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

AS_NOBODY = """
import os, pwd
# From a directory that nobody may not be able to read:
import encodings.utf_8_sig, gsmtpd.cli, gsmtpd.ctl
entry = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(entry.pw_gid)
os.setuid(entry.pw_uid)
"""


def ctl(server: Gsmtpd, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run gsmtpctl with the configuration of `server`, behind the Python `before`."""
    code = f"{before}\nimport sys, gsmtpd.ctl\nsys.exit(gsmtpd.ctl.main())"
    return subprocess.run(
        [sys.executable, "-c", code, "-c", str(server.conf), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        env=environment(),
    )


def status(server: Gsmtpd) -> dict[str, Any]:
    return ask(str(server.path / "control"), "status", 10)


def lines(server: Gsmtpd, part: str) -> list[str]:
    """The lines of the log that have `part` in them."""
    return [line for line in server.log.read_text().splitlines() if part in line]


@pytest.fixture(scope="module")
def running() -> Iterator[Gsmtpd]:
    """A daemon with two workers, for tests that leave it as it is."""
    with Gsmtpd({"server": {"processes": 2}}) as server:
        yield server


# --- gsmtpctl -------------------------------------------------------------------------------------


def test_status_for_programs(running: Gsmtpd) -> None:
    before = json.loads(ctl(running, "status", "--json").stdout)
    with Client(running.address) as client:
        mail = with_token(500)
        assert client.hello().deliver(mail).code == 250
        assert client.deliver(with_token(recipients=["x@example.net"])).code == 550
        now = json.loads(ctl(running, "status", "--json").stdout)
    assert now["pid"] == running.pid
    assert now["state"] == "running"
    assert now["config"] == str(running.conf)
    assert now["listeners"] == [{"name": "mx", "address": f"127.0.0.1:{running.port}"}]
    assert sorted(worker["pid"] for worker in now["workers"]) == sorted(running.workers)
    assert {worker["state"] for worker in now["workers"]} == {"serving"}
    assert now["clients"] == sum(worker["clients"] for worker in now["workers"]) == 1
    assert now["accepted"] - before["accepted"] == 1
    assert now["received_bytes"] - before["received_bytes"] == len(mail.content)
    assert (now["replaced"], now["reload"], now["max_clients"]) == (0, None, 1000)
    assert (now["turned_away"], now["crowded"], now["denied"], now["overload"]) == (0, 0, 0, [])
    assert abs(now["began"] - time.time()) < 300


def test_status_for_people(running: Gsmtpd) -> None:
    done = ctl(running, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"process {running.pid}, running" in done.stdout
    assert f"Listening:  127.0.0.1:{running.port} (mx)" in done.stdout
    for worker in running.workers:
        assert re.search(rf"^Worker: +{worker}, serving, ", done.stdout, re.MULTILINE)
    assert re.search(r"^Clients: +0 of 1000, \d+ sessions so far$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^Messages: +\d+ accepted \(\d+ bytes\), \d+ refused, 0 discarded$", done.stdout, re.M
    )
    assert "Sent away:  0 (max_clients), 0 (max_clients_per_ip), 0 (deny)\n" in done.stdout
    assert "Overload:   none\n" in done.stdout
    assert re.search(r"^Spool: +off\nReload: +none yet$", done.stdout, re.MULTILINE)
    database = rf"Database: +{re.escape(str(running.mail_db))}, answers in .* ms, 3\.\d+"
    assert re.search(database, done.stdout.replace("\n            ", " "))
    assert "            journal_mode = wal, synchronous = FULL\n" in done.stdout
    assert len(done.stdout.splitlines()) <= 30


def test_status_says_how_it_went_lately(running: Gsmtpd) -> None:
    send(running.address, *(with_token() for _ in range(3)))
    with Client(running.address) as client:
        assert client.hello().deliver(with_token(recipients=["x@example.net"])).code == 550
    wait_for(lambda: "Refusals:   relay " in ctl(running, "status").stdout)
    wait_for(lambda: "Commits:    median " in ctl(running, "status").stdout)
    shown = ctl(running, "status").stdout
    (head,) = (line for line in shown.splitlines() if line.startswith("A second: "))
    assert head.split()[2:] == ["accepted", "refused", "received", "sessions", "commits"]
    lately = [line.split() for line in shown.splitlines() if re.match(r"  (10 s|[15] min) ", line)]
    assert [[*line[:2]] for line in lately] == [["10", "s"], ["1", "min"], ["5", "min"]]
    assert all(float(line[2]) > 0 for line in lately[1:])
    assert max(map(len, shown.splitlines())) < 80 + len(str(running.path))


def test_an_older_server_is_understood(running: Gsmtpd) -> None:
    """An upgrade leaves it running where its new configuration has a mistake."""
    new = {
        "rates", "commit", "queue", "memory", "max_memory", "reasons", "sessions_total", "spooled",
        "duplicates", "outbox", "rss",
    }  # fmt: skip
    old = {name: value for name, value in status(running).items() if name not in new}
    for worker in old["workers"]:
        worker.pop("rss", None)
        worker.pop("role")
    lines_ = [*said_of(old)]
    assert lines_[0].startswith("gsmtpd ")
    assert "Clients:    0 of 1000" in lines_


def test_many_workers_leave_room(running: Gsmtpd) -> None:
    now = status(running)
    now["workers"] = now["workers"] * 20
    shown = [line for line in said_of(now) if "clients: " in line]
    assert len(shown) == 6
    assert shown[-1].startswith("            and 35 more, clients: 0, accepted: ")


def test_a_database_that_does_not_answer(mariadb: MariaDB) -> None:
    """The status says so at once, and for programs, too."""
    mariadb.create_database("gone")
    settings = mysql_store(mariadb, "gone")
    settings["store"]["mysql"]["host"] = f"{mariadb.socket}, 127.0.0.1:{free_port()}"
    server = Gsmtpd(settings)
    server.ctl("init-db", "--apply")
    with server, socket.create_server(("127.0.0.1", 0)) as mute:
        now = server.status()["database"]
        assert [host["answers"] for host in now] == [True, False]
        assert now[0]["version"].startswith("1")
        assert now[0]["settings"]["innodb_flush_log_at_trx_commit"] == "0"
        assert now[0]["risks"] == ["innodb_flush_log_at_trx_commit is 0, not 1"]
        assert "cannot connect" in now[1]["problem"]
        settings["store"]["mysql"]["host"] = f"127.0.0.1:{mute.getsockname()[1]}"
        server.configure(settings)  # the running one keeps its own
        shown = server.ctl("status")
    assert "RISK: " not in shown
    assert re.search(r"Database: +127.0.0.1:\d+\n +does not answer: ", shown)


def test_who_was_sent_away_and_why(running: Gsmtpd) -> None:
    trouble = {"overload": ["max_memory", "file descriptors"], "crowded": 7, "denied": 12}
    said = [*said_of(status(running) | trouble | {"spool": None})]
    assert "Sent away:  0 (max_clients), 7 (max_clients_per_ip), 12 (deny)" in said
    assert "Overload:   max_memory, file descriptors" in said


def test_a_client_that_is_denied_is_counted() -> None:
    with Gsmtpd({"clients": {"deny": "127.0.0.2"}}) as server:
        for _ in range(3):
            with socket.create_connection(server.address, 10, ("127.0.0.2", 0)) as denied:
                assert denied.recv(1000).startswith(b"554 ")
        wait_for(lambda: status(server)["clients"] == 0)
        now = status(server)
        assert (now["denied"], now["turned_away"], now["crowded"]) == (3, 0, 0)


def test_only_its_user_may_ask(running: Gsmtpd) -> None:
    assert stat.S_IMODE((running.path / "control").stat().st_mode) == 0o600


@needs_root
def test_another_user_is_told_so() -> None:
    with Gsmtpd() as server:
        server.path.chmod(0o755)
        server.conf.chmod(0o644)
        spec = shutil.copy(SPEC, server.path)  # nobody may not be able to read this tree
        before = f"{AS_NOBODY}\nimport gsmtpd.config\ngsmtpd.config.SPEC = {str(spec)!r}"
        for verb in ("status", "reload", "stop"):
            done = ctl(server, verb, before=before)
            assert done.returncode == 77, done.stderr
            assert re.fullmatch(r"gsmtpctl: .*/control: permission denied; .*\n", done.stderr)
        assert status(server)["state"] == "running"


@pytest.mark.parametrize("verb", ["status", "reload", "stop"])
def test_nobody_there(verb: str) -> None:
    server = Gsmtpd()
    done = ctl(server, verb)
    assert (done.returncode, done.stdout) == (69, "")
    assert re.fullmatch(r"gsmtpctl: no gsmtpd answers at .*; is it running.* -c\n", done.stderr)


def test_no_control_socket() -> None:
    with Gsmtpd({"server": {"control_socket": ""}}) as server:
        assert send(server.address, with_token())[0].code == 250
        assert not (server.path / "control").exists()
        done = ctl(server, "status")
        assert done.returncode == 69
        assert done.stderr.startswith("gsmtpctl: [server] control_socket is empty")
        os.kill(server.pid, signal.SIGHUP)
        wait_for(lambda: lines(server, "reloaded "))
        assert server.stop() == 0


def test_a_configuration_that_was_broken_meanwhile_is_in_nobodys_way() -> None:
    """It is the running server that is asked about and stopped."""
    with Gsmtpd() as server:
        text = server.conf.read_text()
        server.conf.write_text(text.replace("[limits]\n", "[limits]\nmax_size = many\n"))
        assert ctl(server, "status").returncode == 0
        done = ctl(server, "stop")
        assert (done.returncode, done.stdout) == (0, "stopped\n")
        wait_for(lambda: not server.running)


def test_a_stale_socket_is_taken_over_and_removed_at_the_end() -> None:
    with Gsmtpd() as server:
        server.kill()
        assert (server.path / "control").exists()
        server.start()
        assert status(server)["pid"] == server.pid
        assert server.stop() == 0
        assert not (server.path / "control").exists()


def test_a_file_in_its_place_is_left_alone() -> None:
    """Mail is more important."""
    server = Gsmtpd()
    (server.path / "control").write_text("precious")
    with server:
        assert send(server.address, with_token())[0].code == 250
        [warning] = lines(server, "cannot make the control socket")
        assert "level=warning" in warning
        assert server.stop() == 0
        assert (server.path / "control").read_text() == "precious"


def test_a_second_server_leaves_the_control_socket_to_the_first() -> None:
    with Gsmtpd() as first:
        second = Gsmtpd({"server": {"control_socket": first.path / "control"}})
        with second:
            assert lines(second, "another gsmtpd uses it")
            assert send(second.address, with_token())[0].code == 250
            assert second.stop() == 0
        assert status(first)["pid"] == first.pid


def test_stop_does_not_say_stopped_for_nothing() -> None:
    """Where there are too many who ask."""
    with Gsmtpd() as server, contextlib.ExitStack() as crowd:
        for _ in range(30):
            guest = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            guest.connect(str(server.path / "control"))
        done = ctl(server, "stop")
        assert (done.returncode == 0) == (not alive(server.pid))


# --- signals --------------------------------------------------------------------------------------


def test_usr1_opens_renamed_logs_anew(running: Gsmtpd) -> None:
    """As logrotate does it: rename, signal, and from then on the old file is at rest."""
    mail_log = running.path / "mail.log"
    two = {"server": {"processes": 2}, "log": {"mail_file": mail_log}}
    with Gsmtpd(two) as server:
        mail_log = running.path / "mail.log"
        assert send(server.address, with_token())[0].code == 250
        wait_for(lambda: "result=accepted" in mail_log.read_text())
        old = [path.rename(path.with_suffix(".1")) for path in (server.log, mail_log)]
        os.kill(server.pid, signal.SIGUSR1)
        wait_for(lambda: server.log.exists() and mail_log.exists())

        def open_by_all() -> bool:
            files = {os.path.realpath(path) for path in (server.log, mail_log)}
            return all(files <= opened(pid) for pid in server.pids())

        wait_for(open_by_all)
        assert not any(str(path) in opened(pid) for pid in server.pids() for path in old)
        size = [path.stat().st_size for path in old]
        reply = send(server.address, with_token())[0]
        wait_for(lambda: reply.id in mail_log.read_text())
        assert [path.stat().st_size for path in old] == size


def opened(pid: int) -> set[str]:
    """The files that a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(descriptor))
    return found


def test_usr2_tells_what_all_do(running: Gsmtpd) -> None:
    with Client(running.address) as client:
        client.hello()
        began = time.monotonic()
        assert client.begin(with_token()).code == 354
        os.kill(running.pid, signal.SIGUSR2)
        for pid in running.workers:
            wait_for(lambda pid=pid: lines(running, f"worker {pid}: thread MainThread"))
            assert lines(running, f"worker {pid}: sessions: ")
            assert lines(running, f"worker {pid}: thread smtp-")
            assert lines(running, f"worker {pid}: thread store-") or lines(running, "thread writer")
        master = f"master {running.pid}: "
        for said in ("thread MainThread", "clients: 1", "state: running"):
            wait_for(lambda said=said: lines(running, f"{master}{said}"))
        [session] = lines(running, "session: client 127.0.0.1 helo 'client.example' DATA")
        silent = re.search(r"silent for (\d+) s", session)
        assert silent
        assert int(silent[1]) <= time.monotonic() - began
        client.send(stuffed(b"Subject: x\r\n\r\n"))
        assert client.reply().code == 250


@pytest.mark.parametrize("name", ["HUP", "USR1", "USR2", "PIPE", "CHLD"])
def test_signals_that_do_not_end_a_worker(running: Gsmtpd, name: str) -> None:
    before = running.workers
    for pid in before:
        os.kill(pid, signal.Signals[f"SIG{name}"])
    time.sleep(0.1)
    for _ in range(5):
        assert send(running.address, with_token())[0].code == 250
    assert running.workers == before


def test_the_terminal_is_closed() -> None:
    """Whoever started it by hand, over ssh, and was cut off: it ends, and does not reload."""
    server = Gsmtpd()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, server.command(), environment())
    try:
        wait_for(server.answers)
        os.close(terminal)
        wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
        assert lines(server, "stopping: its terminal was closed")
        assert not lines(server, "reload")
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        server.close()


def test_hup_in_a_terminal_reloads() -> None:
    server = Gsmtpd()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, server.command(), environment())
    try:
        wait_for(server.answers)
        os.kill(pid, signal.SIGHUP)
        wait_for(lambda: lines(server, "reloaded "))
        assert server.answers()
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        os.close(terminal)
        server.close()


# --- the pid file ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as made:
        yield made


def test_a_stale_pid_file_is_taken_over_with_a_word() -> None:
    server = Daemon()
    (server.path / "gsmtpd.pid").write_text("4000000\n")
    with server:
        assert alive(server.pid)
        [line] = lines(server, "took over the pid file of process 4000000")
        assert "level=warning" in line


@pytest.mark.parametrize("text", ["", "what is this?\n", "1" * 100, "\0\xff"])
def test_nonsense_in_the_pid_file_is_in_nobodys_way(text: str) -> None:
    server = Daemon()
    (server.path / "gsmtpd.pid").write_text(text)
    with server:
        assert alive(server.pid)


@pytest.mark.parametrize("where", ["same port", "other port"])
def test_a_second_daemon_with_the_same_pid_file(daemon: Daemon, where: str) -> None:
    more = ["-p", free_port()] if where == "other port" else []
    done = gsmtpd("-c", daemon.conf, *more)
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert f"runs already as process {daemon.pid} " in done.stderr
    assert daemon.answers()
    assert status(daemon)["pid"] == daemon.pid


def test_a_pid_file_where_nothing_can_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "gsmtpd.pid"):
        server = Gsmtpd({"server": {"pid_file": path}})
        done = gsmtpd("-c", server.conf)
        assert done.returncode == 73
        assert re.fullmatch(rf"gsmtpd: cannot write the pid file {path}: .*\n", done.stderr)


def test_a_symbolic_link_as_pid_file(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "gsmtpd.pid"
    target.write_text("precious")
    link.symlink_to(target)
    server = Gsmtpd({"server": {"pid_file": link}})
    done = gsmtpd("-c", server.conf)
    assert done.returncode == 73
    assert re.fullmatch(r"gsmtpd: .*: it is a symbolic link; .*\n", done.stderr)
    assert target.read_text() == "precious"
    assert link.is_symlink()


def test_the_pid_file_of_another_is_not_removed() -> None:
    with Daemon() as server:
        pid = server.pid
        server.pid_file.unlink()
        server.pid_file.write_text("1234567\n")
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), STOP)
        assert server.pid_file.read_text() == "1234567\n"
        server.pid_file.unlink()


def test_a_pid_file_that_is_gone_does_not_stop_the_end() -> None:
    with Daemon() as server:
        pid = server.pid
        server.pid_file.unlink()
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), STOP)
        assert "Traceback" not in server.log.read_text()


def test_a_start_that_fails_leaves_no_pid_file() -> None:
    server = Gsmtpd({"log": {"file": "/nonexistent/gsmtpd.log"}})
    done = gsmtpd("-c", server.conf)
    assert done.returncode == 73
    assert done.stderr.count("\n") == 1
    assert not (server.path / "gsmtpd.pid").exists()


# --- what takes a while: all at once --------------------------------------------------------------


def stop_waits_until_all_processes_are_gone() -> None:
    with Daemon({"server": {"processes": 3}}) as daemon, Client(daemon.address) as client:
        client.hello()
        pids = [daemon.pid, *daemon.workers]
        ask_to_stop(str(daemon.path / "control"), STOP)
        assert [pid for pid in pids if alive(pid)] == []
        assert not daemon.pid_file.exists()


def stop_and_start() -> None:
    """As a restart does it."""
    with Daemon() as daemon:
        for _ in range(3):
            done = ctl(daemon, "stop")
            assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
            daemon.start()


def asked_while_it_stops() -> None:
    with Gsmtpd() as server, Client(server.address) as client:
        assert client.hello().begin(with_token()).code == 354
        server_stop = subprocess.Popen(
            [sys.executable, "-m", "gsmtpd.ctl", "-c", str(server.conf), "stop"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: status(server)["state"] == "stopping")
        assert status(server)["listeners"] == []
        done = ctl(server, "reload")
        assert done.returncode == 69
        assert re.fullmatch(r"gsmtpctl: .*it is stopping\n", done.stderr)
        os.kill(server.pid, signal.SIGHUP)
        os.kill(server.pid, signal.SIGTERM)
        assert server_stop.poll() is None
        client.send(stuffed(with_token().content))
        assert client.reply().code == 250
        client.close()
        assert server_stop.communicate(timeout=STOP)[0] == "stopped\n"
        wait_for(lambda: not server.running)
        assert count(table_of(server)) == 1


def a_message_may_be_finished(pause: float = 5.0) -> None:
    """Up to 10 s after the stop began; the next thing its client hears is the end."""
    with Gsmtpd() as server, Client(server.address) as client:
        mail = with_token()
        assert client.hello().begin(mail).code == 354
        whole = stuffed(mail.content)
        client.send(whole[:50])
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(pause)
        client.send(whole[50:])
        assert client.reply().code == 250
        assert client.reply().text.startswith("421 4.3.2 ")
        assert client.closed()
        client.close()
        wait_for(lambda: not server.running, STOP)
        assert count(table_of(server)) == 1
        assert server.stop() == 0


def a_message_may_not_take_for_ever() -> None:
    with Gsmtpd() as server, Client(server.address) as client:
        assert client.hello().begin(with_token()).code == 354
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert client.reply().text.startswith("421 4.3.2 ")
        assert 9 < time.monotonic() - began < 25
        wait_for(lambda: not server.running, STOP)


def an_idle_client_hears_the_end_soon() -> None:
    with Gsmtpd() as server, Client(server.address) as client:
        client.hello()
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert client.reply().text.startswith("421 4.3.2 ")
        assert 1.5 < time.monotonic() - began < 9
        wait_for(lambda: not server.running, STOP)


def rude_guests_do_no_harm() -> None:
    def there_is_room() -> bool:
        with contextlib.suppress(ControlError):
            return bool(status(server))
        return False

    with Gsmtpd() as server:
        path = str(server.path / "control")
        guests = []
        for number in range(50):
            guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            guest.connect(path)
            guest.settimeout(10)
            guests.append(guest)
            with contextlib.suppress(OSError):  # there may be no room for more
                guest.sendall((b"", b"\xff\n", b"x" * 10000, b'{"command"')[number % 4])
        assert send(server.address, with_token())[0].code == 250
        # Who says nothing is sent away after a while; then there is room again.
        wait_for(there_is_room)
        for guest in guests:
            with contextlib.suppress(ConnectionResetError):
                while guest.recv(4096):
                    pass
            guest.close()
        assert not lines(server, "fault")


def silence_at_the_control_socket_is_ended() -> None:
    with Gsmtpd() as server, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
        guest.connect(str(server.path / "control"))
        guest.settimeout(10)
        assert guest.recv(1) == b""


def a_reload_and_a_stop_at_once() -> None:
    """The new workers come too late; nothing goes wrong."""
    for pause in (0.0, 0.002, 0.004, 0.008):
        with Gsmtpd() as server:
            os.kill(server.pid, signal.SIGHUP)
            time.sleep(pause)
            os.kill(server.pid, signal.SIGTERM)
            assert server.stop(STOP) == 0
            assert "Traceback" not in server.log.read_text()


SLOW: tuple[Callable[[], None], ...] = (
    stop_waits_until_all_processes_are_gone,
    stop_and_start,
    asked_while_it_stops,
    a_message_may_be_finished,
    a_message_may_not_take_for_ever,
    an_idle_client_hears_the_end_soon,
    rude_guests_do_no_harm,
    silence_at_the_control_socket_is_ended,
    a_reload_and_a_stop_at_once,
)


@pytest.fixture(scope="module", autouse=True)
def slow(background: ThreadPoolExecutor) -> dict[str, Future[None]]:
    """All of them, under way."""
    return {scene.__name__: background.submit(scene) for scene in SLOW}


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SLOW])
def test_slowly(slow: dict[str, Future[None]], scene: str) -> None:
    slow[scene].result()
