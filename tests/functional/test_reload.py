"""Do new workers take the place of old ones unnoticed: at a reload, and when they die or hang?"""

from __future__ import annotations

import errno
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

from gsmtpd.app_policy import make_policy
from gsmtpd.config import load
from gsmtpd.control import ask
from gsmtpd.logs import Logs
from gsmtpd.workers import Setup, Workers
from tests.accounting import (
    Client,
    Gone,
    MySQLTable,
    SQLiteTable,
    count,
    send,
    stuffed,
    table_of,
    with_token,
)
from tests.functional.test_daemon import STOP, Daemon, alive
from tests.servers import (
    Gsmtpd,
    MariaDB,
    Settings,
    environment,
    free_port,
    freeze,
    mysql_store,
    wait_for,
)

BACK = 20.0  # seconds in which a dead worker is replaced, on a busy machine
HOME, ANY = "127.0.0.1", "0.0.0.0"
Slow = Callable[[], None]


def reload(server: Gsmtpd, settings: Settings | None = None) -> dict[str, Any]:
    """Have the server take over `settings`, or its file as it is; what it says of it."""
    if settings is not None:
        server.configure(settings)
    return ask(str(server.path / "control"), "reload", 30)


def reloaded(server: Gsmtpd, settings: Settings) -> None:
    """It takes over `settings` without a complaint, and the old workers go."""
    old = server.workers
    assert reload(server, settings)["problems"] == []
    wait_for(lambda: not set(old) & set(server.workers))


def status(server: Gsmtpd) -> dict[str, Any]:
    return ask(str(server.path / "control"), "status", 10)


def lines(server: Gsmtpd, part: str) -> list[str]:
    """The lines of the log that have `part` in them."""
    return [line for line in server.log.read_text().splitlines() if part in line]


def gsmtpctl_reload(server: Gsmtpd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gsmtpd.ctl", "-c", str(server.conf), "reload"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


def delivered(server: Gsmtpd, recipient: str = "b@example.com") -> int:
    """The code of the answer to a mail."""
    return send(server.address, with_token(recipients=[recipient]))[0].code


class Knocking:
    """Clients that come one after the other and want a greeting. failures: who got none."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.failures: list[str] = []
        self.greeted = 0
        self._address = address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with socket.create_connection(self._address, 10) as client:
                    greeting = client.recv(512)
                    client.sendall(b"QUIT\r\n")
                    while client.recv(512):
                        pass
                assert greeting.startswith(b"220 "), greeting
                self.greeted += 1
            except (OSError, AssertionError) as failure:
                self.failures.append(repr(failure))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Gsmtpd]:
    """A daemon that each test reloads with settings of its own."""
    with Gsmtpd() as running:
        yield running


# --- what a reload changes ------------------------------------------------------------------------


def test_a_client_in_its_message_does_not_notice(server: Gsmtpd) -> None:
    """It and its session go on under the old settings, the next one has the new ones."""
    reloaded(server, {})
    before = count(table_of(server))
    [old] = server.workers
    mail = with_token()
    whole = stuffed(mail.content)
    with Client(server.address) as client:
        assert client.hello().begin(mail).code == 354
        client.send(whole[:60])
        assert reload(server, {"domains": {"accept": "example.net"}})["ok"]
        assert delivered(server, "b@example.net") == 250
        assert delivered(server, "b@example.com") == 550
        client.send(whole[60:])
        assert client.reply().code == 250
        assert client.deliver(with_token()).code == 250
        states = {one["pid"]: one["state"] for one in status(server)["workers"]}
        assert states.pop(old) == "leaving"
        assert [*states.values()] == ["serving"]
        assert client.command("QUIT").code == 221
    wait_for(lambda: old not in server.workers)
    assert count(table_of(server)) == before + 3
    assert lines(server, f"worker {old}") == [], "nothing to complain of"


def test_domains(server: Gsmtpd) -> None:
    reloaded(server, {"domains": {"accept": "example.net"}})
    assert (delivered(server, "b@example.net"), delivered(server)) == (250, 550)
    reloaded(server, {"domains": {"accept": "example.net, example.com"}})
    assert (delivered(server, "b@example.net"), delivered(server)) == (250, 250)


def test_host_name_and_max_size(server: Gsmtpd) -> None:
    reloaded(server, {"server": {"host_name": "new.example"}, "limits": {"max_size": "123456"}})
    with Client(server.address) as client:
        assert client.reply().text.startswith("220 new.example ")
        assert "250-SIZE 123456\n" in client.command("EHLO client.example").text + "\n"


def test_max_recipients(server: Gsmtpd) -> None:
    reloaded(server, {"limits": {"max_recipients": 100}})
    with Client(server.address) as client:
        client.hello().command("MAIL FROM:<a@example.org>")
        codes = [client.command(f"RCPT TO:<b{n}@example.com>").code for n in range(101)]
    assert codes == [250] * 100 + [452]


def test_timeout(server: Gsmtpd) -> None:
    reloaded(server, {"limits": {"timeout": "3s"}})
    with Client(server.address) as client:
        client.hello()
        assert client.reply().code == 421


def test_max_clients_counts_those_of_old_workers(server: Gsmtpd) -> None:
    reloaded(server, {})
    with Client(server.address) as one, Client(server.address) as two:
        one.hello()
        two.hello()
        assert reload(server, {"limits": {"max_clients": 3}})["ok"]
        with Client(server.address) as three, Client(server.address) as four:
            assert three.reply().code == 220
            assert four.reply().code == 421
            assert status(server)["clients"] == 3


def test_log_file(server: Gsmtpd) -> None:
    old, new = server.log, server.path / "new.log"
    reloaded(server, {"log": {"file": new}})
    reply = send(server.address, with_token())[0]
    wait_for(lambda: reply.id in new.read_text())
    assert "reloaded " in new.read_text()
    assert reply.id not in old.read_text()
    reloaded(server, {})
    reply = send(server.address, with_token())[0]
    wait_for(lambda: reply.id in old.read_text())


def test_mail_file(server: Gsmtpd) -> None:
    mail_log = server.path / "mail.log"
    reloaded(server, {"log": {"mail_file": mail_log}})
    reply = send(server.address, with_token())[0]
    wait_for(lambda: reply.id in mail_log.read_text())
    assert not lines(server, reply.id)


def test_log_level_and_format(server: Gsmtpd) -> None:
    path = server.path / "some.log"
    reloaded(server, {"log": {"level": "error", "file": path}})
    quiet = send(server.address, with_token())[0]
    reloaded(server, {"log": {"format": "json", "file": path}})
    loud = send(server.address, with_token())[0]
    wait_for(lambda: loud.id in path.read_text())
    assert quiet.id not in path.read_text()
    for line in path.read_text().splitlines():
        json.loads(line)


def test_another_sqlite_file(server: Gsmtpd) -> None:
    reloaded(server, {})
    before = count(table_of(server))
    path = server.path / "other.db"
    reloaded(server, {"store": {"sqlite": {"path": path}}})
    assert delivered(server) == 250
    assert count(SQLiteTable(path)) == 1
    assert count(table_of(server)) == before


def test_from_sqlite_to_mariadb_and_back(server: Gsmtpd, mariadb: MariaDB, schema: str) -> None:
    reloaded(server, {})
    before = count(table_of(server))
    reloaded(server, mysql_store(mariadb, schema))
    assert delivered(server) == 250
    assert count(MySQLTable(mariadb, schema)) == 1
    reloaded(server, {})
    assert delivered(server) == 250
    assert count(table_of(server)) == before + 1
    assert count(MySQLTable(mariadb, schema)) == 1


def test_the_number_of_workers(server: Gsmtpd) -> None:
    for number in (1, 3, 2, 1):
        reloaded(server, {"server": {"processes": number, "threads": 4 - number}})
        assert len(server.workers) == number
        assert delivered(server) == 250
        assert lines(server, "worker processes:")[-1].endswith(f'worker processes: {number}"')


def test_what_only_a_restart_can_change_is_said(server: Gsmtpd) -> None:
    elsewhere = server.path / "elsewhere"
    for setting, value in (("pid_file", elsewhere), ("control_socket", elsewhere), ("user", "bin")):
        reloaded(server, {})
        said = len(lines(server, "change at a restart"))
        reloaded(server, {"server": {setting: value}})
        assert len(lines(server, "change at a restart")) == said + 1
        assert "level=warning" in lines(server, "change at a restart")[-1]
        assert setting in lines(server, "change at a restart")[-1]
    assert not elsewhere.exists()
    reloaded(server, {})
    reloaded(server, {})


def test_counts_go_on(server: Gsmtpd) -> None:
    reloaded(server, {})
    before = status(server)
    with Client(server.address) as old:
        assert old.hello().deliver(with_token()).code == 250
        for _ in range(3):
            assert reload(server, {})["ok"]
            assert delivered(server) == 250
        wait_for(lambda: status(server)["clients"] == 1)  # the others have just hung up
        assert status(server)["accepted"] - before["accepted"] == 4
        assert old.deliver(with_token()).code == 250
        for pid in server.workers:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(Gone):
            old.deliver(with_token())
    wait_for(lambda: status(server)["replaced"] == before["replaced"] + 1, BACK)
    # The worker that the client had been with is gone as well, but nobody takes its place.
    wait_for(lambda: status(server)["clients"] == 0)
    assert status(server)["accepted"] - before["accepted"] == 5


def test_twenty_reloads_leave_nothing_behind(server: Gsmtpd) -> None:
    """No process, no descriptor, no connection refused."""

    def descriptors(pid: int) -> int:
        return len([*Path(f"/proc/{pid}/fd").iterdir()])

    def at_rest() -> list[int]:
        wait_for(lambda: len(server.workers) == 1)
        assert delivered(server) == 250
        return [descriptors(pid) for pid in server.pids()]

    reloaded(server, {})
    before = at_rest()
    with Knocking(server.address) as knocking:
        for number in range(20):
            log = {"mail_file": server.path / f"mail{number % 3}.log"}
            assert reload(server, {"log": log})["problems"] == []
        assert reload(server, {})["problems"] == []
    assert knocking.failures == []
    assert knocking.greeted > 20
    wait_for(lambda: at_rest() == before)  # the last client may still be there


# --- listeners ------------------------------------------------------------------------------------


def greeted(host: str, port: int) -> bool:
    """Whether a client is greeted there. Raises TimeoutError if it is left without a word."""
    try:
        with socket.create_connection((host, port), 20) as client:
            return client.recv(512).startswith(b"220 ")
    except (ConnectionRefusedError, ConnectionResetError):
        return False


def test_a_listener_comes_and_goes(server: Gsmtpd) -> None:
    port = free_port()
    two = {"listen": {"more": {"address": f"{HOME}:{port}"}}}
    with Knocking(server.address) as knocking:
        reloaded(server, two)
        assert greeted(HOME, port)
        reloaded(server, {})
        wait_for(lambda: not greeted(HOME, port))
        reloaded(server, two)
        assert greeted(HOME, port)
    assert knocking.failures == []


def test_a_listener_comes_and_goes_in_quick_succession(server: Gsmtpd) -> None:
    more = {"more": {"address": f"{HOME}:{free_port()}"}}
    for listen in (more, {}) * 5:
        assert reload(server, {"listen": listen})["problems"] == []


def test_a_listener_that_goes_with_a_client_on_it(server: Gsmtpd) -> None:
    """The session goes on; but nobody else is left waiting there, and the port is free."""
    port = free_port()
    two = {"listen": {"more": {"address": f"{HOME}:{port}"}}}
    reloaded(server, two)
    with Client((HOME, port)) as client:
        client.hello()
        assert reload(server, {})["ok"]
        wait_for(lambda: not greeted(HOME, port))
        assert client.deliver(with_token()).code == 250
        assert reload(server, two)["problems"] == []
        assert greeted(HOME, port)


def test_a_listener_that_is_renamed(server: Gsmtpd) -> None:
    reloaded(server, {})
    with Knocking(server.address) as knocking:
        address = f"{HOME}:{server.port}"
        reloaded(server, {"listen": {"mx": None, "inside": {"address": address}}})
        assert status(server)["listeners"] == [{"name": "inside", "address": address}]
    assert knocking.failures == []
    reloaded(server, {})


def test_from_one_address_to_all_and_back(server: Gsmtpd) -> None:
    reloaded(server, {})
    with Client(server.address) as client, Knocking(server.address) as knocking:
        client.hello()
        for host in (ANY, HOME, ANY):
            answer = reload(server, {"listen": {"mx": {"address": f"{host}:{server.port}"}}})
            assert answer["problems"] == []
            wait_for(lambda: greeted("127.0.0.2", server.port) is (host == ANY))  # noqa: B023
        assert client.deliver(with_token()).code == 250
    assert knocking.greeted > 20
    # What the kernel had given to the old socket when that was closed is lost to its client.
    assert len(knocking.failures) <= 3, knocking.failures
    reloaded(server, {})


def test_an_address_that_is_in_use(server: Gsmtpd) -> None:
    reloaded(server, {})
    before = server.workers
    with socket.create_server((HOME, free_port())) as stranger:
        taken = stranger.getsockname()[1]
        server.configure({"listen": {"more": {"address": f"{HOME}:{taken}"}}})
        done = gsmtpctl_reload(server)
    assert done.returncode == 78
    assert re.fullmatch(
        rf"gsmtpctl: reload refused, .*: cannot listen on {HOME}:{taken}: .* listens there; .*\n",
        done.stderr,
    )
    assert delivered(server) == 250
    assert server.workers == before


# --- reloads that are refused ---------------------------------------------------------------------


def add_limits(server: Gsmtpd, lines: str) -> int:
    """Write `lines` into the section that is there already; the number of the first of them."""
    text = server.conf.read_text()
    server.conf.write_text(text.replace("[limits]\n", f"[limits]\n{lines}"))
    return text.splitlines().index("[limits]") + 2


def refused(server: Gsmtpd, *problems: str) -> None:
    """A reload is refused for these reasons, both ways, and the old workers serve on."""
    before = server.workers
    done = gsmtpctl_reload(server)
    assert (done.returncode, done.stdout) == (78, "")
    said = done.stderr.splitlines()
    assert len(said) == len(problems), done.stderr
    for line, problem in zip(said, problems, strict=True):
        assert line.startswith("gsmtpctl: reload refused, nothing has changed: ")
        assert re.search(problem, line), line
    logged = len(lines(server, "reload refused"))
    os.kill(server.pid, signal.SIGHUP)
    wait_for(lambda: len(lines(server, "reload refused")) == logged + len(problems))
    for line, problem in zip(lines(server, "reload refused")[logged:], problems, strict=True):
        assert "level=error" in line
        assert re.search(problem, line.replace('\\"', '"')), line
    assert delivered(server) == 250
    assert server.workers == before
    assert status(server)["reload"]["ok"] is False


def test_a_broken_configuration(server: Gsmtpd) -> None:
    reloaded(server, {})
    line = add_limits(server, "max_size = many\n")
    refused(server, rf"{server.conf}:{line}: .*max_size.*many")


def test_a_configuration_with_several_mistakes(server: Gsmtpd) -> None:
    reloaded(server, {})
    first = add_limits(server, "max_size = many\nmax_client = 5\ntimeout = -1\n")
    problems = enumerate(("max_size", "max_client", "timeout"), first)
    refused(server, *(rf"{server.conf}:{line}: .*{key}" for line, key in problems))


def test_no_configuration(server: Gsmtpd) -> None:
    reloaded(server, {})
    server.conf.rename(server.path / "away")
    try:
        logged = len(lines(server, "reload refused"))
        os.kill(server.pid, signal.SIGHUP)
        wait_for(lambda: len(lines(server, "reload refused")) == logged + 1)
        assert f"{server.conf}: there is no such file" in lines(server, "reload refused")[-1]
        assert delivered(server) == 250
    finally:
        (server.path / "away").rename(server.conf)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"log": {"file": "/nonexistent/x.log"}}, r"cannot write the log /nonexistent/x\.log: No"),
        ({"log": {"mail_file": "/nonexistent/x.log"}}, r"cannot write the log .*mail_file"),
        ({"store": {"sqlite": {"path": "/nonexistent/x.db"}}}, "there is no directory"),
        ({"log": {"file": "/"}}, "cannot write the log /: Is a directory"),
    ],
)
def test_what_cannot_be_opened(server: Gsmtpd, settings: Settings, problem: str) -> None:
    reloaded(server, {})
    port = free_port()
    server.configure({**settings, "listen": {"more": {"address": f"{HOME}:{port}"}}})
    refused(server, problem)
    assert not greeted(HOME, port), "the new address was left open"


# --- many at once ---------------------------------------------------------------------------------


def test_hup_ten_times(server: Gsmtpd) -> None:
    reloaded(server, {})
    server.configure({"server": {"host_name": "ten.example"}})
    with Knocking(server.address) as knocking:
        for _ in range(10):
            os.kill(server.pid, signal.SIGHUP)
            time.sleep(0.01)
        wait_for(lambda: status(server)["state"] == "running")
    assert knocking.failures == []
    wait_for(lambda: len(server.workers) == 1)
    with Client(server.address) as client:
        assert client.reply().text.startswith("220 ten.example ")


def test_five_callers_at_once(server: Gsmtpd, background: ThreadPoolExecutor) -> None:
    reloaded(server, {})
    before = len(lines(server, "reloaded "))
    callers = [background.submit(gsmtpctl_reload, server) for _ in range(5)]
    callers += [background.submit(reload, server) for _ in range(5)]
    for caller in callers[:5]:
        done = caller.result()
        assert (done.returncode, done.stdout, done.stderr) == (0, "reloaded\n", "")
    assert all(caller.result()["ok"] for caller in callers[5:])
    assert 2 <= len(lines(server, "reloaded ")) - before <= 10
    wait_for(lambda: len(server.workers) == 1)


def test_a_caller_that_comes_during_a_reload_gets_what_the_file_says_then(server: Gsmtpd) -> None:
    for number in range(5):
        os.kill(server.pid, signal.SIGHUP)
        reloaded(server, {"server": {"host_name": f"n{number}.example"}})
        with Client(server.address) as client:
            assert client.reply().text.startswith(f"220 n{number}.example ")


def test_once_the_answer_has_come_no_client_is_served_as_before(server: Gsmtpd) -> None:
    for number in range(30):
        assert reload(server, {"server": {"host_name": f"n{number}.example"}})["ok"]
        clients = [Client(server.address) for _ in range(4)]
        for client in clients:
            assert client.reply().text.startswith(f"220 n{number}.example ")
            client.close()


# --- a system that gives no processes -------------------------------------------------------------


@pytest.fixture
def starved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """The workers of a master that can fork none."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    conf = tmp_path / "gsmtpd.conf"
    conf.write_text("[store]\nbackend = null\n[server]\nhost_name = mx.example.com\n")
    config = load(str(conf))
    setup = Setup(config, [], Logs("-", "info", "logfmt"), make_policy(config), None)
    with selectors.DefaultSelector() as selector:
        yield Workers(setup, selector, *[lambda *_: None] * 4)  # type: ignore[arg-type]


def test_a_worker_is_tried_again_for_days(starved: Workers) -> None:
    """It is 8.5 hours until the 1024th time, at 30 s each."""
    assert starved.start(starved._kept) is False  # type: ignore[arg-type]
    for _ in range(1200):
        starved.tick(float("inf"))
    assert [due - time.monotonic() < 31 for due in starved.next_due()] == [True]


def test_a_worker_is_tried_again_when_there_was_no_descriptor(
    starved: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def socketpair() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    assert starved.start(starved._kept) is False  # type: ignore[arg-type]
    with monkeypatch.context() as patch, suppress(OSError):
        patch.setattr(socket, "socketpair", socketpair)
        starved.tick(float("inf"))
    assert len([*starved.next_due()]) == 1


# --- servers of their own, all at once ------------------------------------------------------------


BREAKABLE = """
import os, time, gsmtpd.app, gsmtpd.master, gsmtpd.workers
made = gsmtpd.app.make_engine
gsmtpd.master.READY_WITHIN = 5.0
def make_engine(*arguments):
    if os.path.exists({path!r}):
        how = open({path!r}).read()
        if how == "hang":
            time.sleep(60)
        if how == "kill":
            os.kill(os.getpid(), 9)
        raise RuntimeError("broken on purpose")
    return made(*arguments)
gsmtpd.app.make_engine = make_engine
"""


class Breakable(Gsmtpd):
    """Its workers die at their start as long as the file `broken` says how."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.broken = self.path / "broken"
        self.before = BREAKABLE.format(path=str(self.broken))


def new_workers_that_die_change_nothing() -> None:
    with Breakable({"server": {"processes": 2}}) as server, Client(server.address) as client:
        client.hello()
        wait_for(lambda: len(server.workers) == 2)
        before = server.workers
        for how, problem in (
            ("raise", r"worker \d+ ended with exit code 70 after"),
            ("kill", r"worker \d+ ended by SIGKILL"),
            ("hang", r"its workers did not serve within 5 s"),
        ):
            server.broken.write_text(how)
            port = free_port()
            more = {"listen": {"more": {"address": f"{HOME}:{port}"}}}
            answer = reload(server, {"server": {"processes": 2}, **more})
            assert not answer["ok"]
            [said] = answer["problems"]
            assert re.search(problem, said)
            assert lines(server, f"reload refused, the old configuration stays: {said}")
            wait_for(lambda: server.workers == before)
            assert delivered(server) == 250
            assert not greeted(HOME, port)
        server.broken.unlink()
        assert reload(server, {"server": {"processes": 3}})["ok"]
        assert client.deliver(with_token()).code == 250


def a_worker_that_dies_at_once_is_tried_again_more_and_more_rarely() -> None:
    with Breakable() as server:
        [first] = server.workers
        server.broken.write_text("raise")
        time.sleep(2)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: lines(server, "starting another in 0.8 s"))
        pauses = [line.rsplit(" in ", 1)[1] for line in lines(server, "starting another in")]
        assert pauses == ['0.1 s"', '0.2 s"', '0.4 s"', '0.8 s"']
        assert len(lines(server, "RuntimeError: broken on purpose")) == 3
        server.broken.unlink()
        # Who comes meanwhile waits.
        assert delivered(server) == 250
        assert status(server)["replaced"] == 4
        # It was well for a while: all is forgotten.
        time.sleep(2)
        os.kill(server.workers[0], signal.SIGKILL)
        wait_for(lambda: len(lines(server, "starting another in 0.1 s")) == 2)


def a_reload_cures_workers_that_die() -> None:
    """The configuration was what killed them."""
    with Breakable() as server:
        server.broken.write_text("raise")
        os.kill(server.workers[0], signal.SIGKILL)
        wait_for(lambda: lines(server, "starting another in 0.4 s"))
        server.broken.unlink()
        assert reload(server, {})["ok"]
        assert delivered(server) == 250
        time.sleep(1)
        assert len(server.workers) == 1


def a_dead_worker_is_replaced_at_once() -> None:
    with Gsmtpd({"server": {"processes": 2}}) as server:
        for name, words in (
            ("KILL", "by SIGKILL (somebody killed it, or the kernel was out of memory)"),
            ("SEGV", "by SIGSEGV"),
        ):
            time.sleep(2)
            one, other = server.workers
            os.kill(one, signal.Signals[f"SIG{name}"])
            wait_for(lambda one=one: one not in server.workers)
            wait_for(lambda: len(server.workers) == 2)
            [line] = lines(server, f"worker {one} ended ")
            assert f"ended {words} after " in line
            assert "starting another in 0.1 s" in line
            assert other in server.workers
            assert delivered(server) == 250
        assert "Fatal Python error: Segmentation fault" in server.log.read_text()


HUNG_AFTER = "import gsmtpd.workers; gsmtpd.workers.HUNG_AFTER = 3\n"
LOOPS = f"""{HUNG_AFTER}
from gsmtpd.smtp.session import Session
receive = Session.receive
def looping_on_purpose(self, data):
    while b"LOOP" in data:
        pass
    return receive(self, data)
Session.receive = looping_on_purpose
"""


def a_worker_that_loops_is_replaced() -> None:
    """And the log says where it was."""
    with Gsmtpd(before=LOOPS) as server, Client(server.address) as client:
        [worker] = server.workers
        client.hello().send(b"LOOP\r\n")
        wait_for(lambda: worker not in server.workers)
        wait_for(lambda: server.answers(), BACK)
        assert lines(server, f"worker {worker} hangs: no sign of life for 3 s")
        wait_for(lambda: lines(server, f"worker {worker} ended by SIGABRT"))
        assert "looping_on_purpose" in server.log.read_text()
        assert delivered(server) == 250


def a_worker_that_is_stopped_is_replaced() -> None:
    with Gsmtpd(before=HUNG_AFTER) as server:
        [worker] = server.workers
        freeze(worker)
        wait_for(lambda: status(server)["workers"][0]["state"] == "silent")
        wait_for(lambda: not alive(worker))
        assert delivered(server) == 250
        wait_for(lambda: lines(server, f"worker {worker} ended by SIG"))


def workers_that_are_well_are_left_alone() -> None:
    """With a limit of 3 s; also one that leaves, and one without a client."""
    with Gsmtpd(before=HUNG_AFTER) as server, Client(server.address) as client:
        client.hello()
        assert reload(server)["ok"]
        workers = server.workers
        time.sleep(6)
        assert server.workers == workers
        assert client.deliver(with_token()).code == 250


def a_killed_master_leaves_nothing_behind() -> None:
    with Gsmtpd({"server": {"processes": 2}}) as server:
        workers = server.workers
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, workers)))
        server.start()
        assert delivered(server) == 250
        assert status(server)["pid"] == server.pid


def the_command_line_stays_in_force() -> None:
    server = Gsmtpd({"listen": {"mx": {"address": f"{HOME}:1"}}, "log": {"level": "error"}})
    log = server.path / "other.log"
    server.arguments = ["-p", str(server.port), "-l", str(log), "-v"]
    file = {"listen": {"mx": {"address": f"{HOME}:1"}}, "log": {"level": "error"}}
    with server:
        for name in ("one.example", "two.example"):
            reloaded(server, {"server": {"host_name": name}, **file})
            with Client(server.address) as client:
                assert client.reply().text.startswith(f"220 {name} ")
            reply = send(server.address, with_token())[0]
            wait_for(lambda reply=reply: reply.id in log.read_text())
        assert not server.log.exists()


def relative_paths_mean_the_same_after_a_reload() -> None:
    server = Daemon()
    server.pid_file = server.path / "gsmtpd.pid"
    try:
        command = [sys.executable, "-m", "gsmtpd", "-c", "gsmtpd.conf", "-l", "relative.log"]
        subprocess.run(command, check=True, cwd=server.path, env=environment())
        log = server.path / "relative.log"
        server.configure({"server": {"host_name": "new.example"}})
        os.kill(server.pid, signal.SIGHUP)
        wait_for(lambda: f"reloaded {server.conf}" in log.read_text())
        reply = send(server.address, with_token())[0]
        wait_for(lambda: reply.id in log.read_text())
    finally:
        server.close()


def a_session_outlives_many_reloads() -> None:
    with Gsmtpd() as server, Client(server.address) as client:
        client.hello()
        [first] = server.workers
        for number in range(5):
            assert reload(server, {"server": {"host_name": f"n{number}.example"}})["ok"]
        assert client.deliver(with_token()).code == 250
        wait_for(lambda: len(server.workers) == 2)
        # The end reaches it as well.
        os.kill(server.pid, signal.SIGTERM)
        assert client.reply().text.startswith("421 4.3.2 ")
        client.close()
        wait_for(lambda: not alive(first), STOP)
        wait_for(lambda: not server.running, STOP)
        assert server.stop() == 0


def a_stop_of_all_processes_at_once_restarts_none() -> None:
    """As systemd stops a service."""
    with Gsmtpd({"server": {"processes": 2}}) as server:
        workers = server.workers
        freeze(server.pid)
        for pid in (server.pid, *workers):
            os.kill(pid, signal.SIGTERM)
        for pid in workers:
            stat = Path(f"/proc/{pid}/stat")
            wait_for(lambda stat=stat: ") Z " in stat.read_text())
        os.kill(server.pid, signal.SIGCONT)
        assert server.stop() == 0
        assert not lines(server, "starting another")


def a_signal_that_is_sent_again_and_again_ends_it_as_one_does() -> None:
    with Gsmtpd() as server:
        while server.running:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGTERM)
            time.sleep(0.0005)
        assert server.stop() == 0


SLOW: tuple[Slow, ...] = (
    new_workers_that_die_change_nothing,
    a_worker_that_dies_at_once_is_tried_again_more_and_more_rarely,
    a_reload_cures_workers_that_die,
    a_dead_worker_is_replaced_at_once,
    a_worker_that_loops_is_replaced,
    a_worker_that_is_stopped_is_replaced,
    workers_that_are_well_are_left_alone,
    a_killed_master_leaves_nothing_behind,
    the_command_line_stays_in_force,
    relative_paths_mean_the_same_after_a_reload,
    a_session_outlives_many_reloads,
    a_stop_of_all_processes_at_once_restarts_none,
    a_signal_that_is_sent_again_and_again_ends_it_as_one_does,
)


@pytest.fixture(scope="module", autouse=True)
def slow(background: ThreadPoolExecutor) -> dict[str, Future[None]]:
    """All of them, under way."""
    return {scene.__name__: background.submit(scene) for scene in SLOW}


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SLOW])
def test_slowly(slow: dict[str, Future[None]], scene: str) -> None:
    slow[scene].result()
