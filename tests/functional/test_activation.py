"""Does gsmtpd take systemd's sockets, and does systemd hear how it does?

systemd-socket-activate passes sockets as systemd does. The service manager that is told is a
socket of the test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.accounting import Client, count, send, table_of, with_token
from tests.servers import (
    Gsmtpd,
    ServerError,
    Settings,
    environment,
    find_program,
    free_port,
    wait_for,
)

# --- socket activation --------------------------------------------------------------------------


class Activated(Gsmtpd):
    """gsmtpd -n behind systemd-socket-activate, which listens on `port` and on `more`.

    The first client starts it. names: of the sockets, as in --fdname; None: they have none.
    """

    def __init__(
        self, settings: Settings, names: str | None = "mx", more: Sequence[int] = ()
    ) -> None:
        super().__init__(settings)
        ports = (self.port, *more)
        self.activation = [f"--listen=127.0.0.1:{port}" for port in ports]
        if names is not None:
            self.activation.append(f"--fdname={names}")

    def command(self) -> list[str]:
        program = find_program("systemd-socket-activate")
        # It gives its program a new environment.
        names = ("PYTHONPATH", "PYTHONUNBUFFERED", "NOTIFY_SOCKET", "WATCHDOG_USEC")
        kept = [f"--setenv={name}" for name in names if name in environment()]
        return [program, *kept, *self.activation, *super().command()]

    def listening(self) -> list[tuple[str, str]]:
        """Names and addresses of the listeners."""
        status = json.loads(self.ctl("status", "--json"))
        return [(listener["name"], listener["address"]) for listener in status["listeners"]]


def listeners(**ports: int) -> dict[str, Any]:
    """Settings with a listener of each name."""
    return {"listen": {name: {"address": f"127.0.0.1:{port}"} for name, port in ports.items()}}


def refused(port: int) -> bool:
    """Whether nobody listens."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def announced_size(port: int) -> str:
    """The SIZE that a client hears."""
    with Client(("127.0.0.1", port)) as client:
        client.reply()
        found = re.search(r"SIZE (\d+)", client.command("EHLO client.example").text)
    assert found is not None
    return found[1]


def test_mail_through_a_passed_socket() -> None:
    port = free_port()
    with Activated(listeners(mx=port)) as server:
        with Client(server.address) as idle:  # nobody waits for the one who was accepted before
            idle.hello()
            assert send(server.address, with_token())[0].code == 250
            assert idle.command("NOOP").code == 250
        assert count(table_of(server)) == 1
        assert server.listening() == [("mx", f"127.0.0.1:{server.port}")]
        assert refused(port), "it has bound the address that the passed socket stands for"
        assert server.stop() == 0


def test_two_sockets_for_two_listeners() -> None:
    """The names tell which is which, and not their order."""
    second = free_port()
    settings = listeners(mx=free_port(), submission=free_port())
    with Activated(settings, "submission:mx", [second]) as server:
        assert sorted(server.listening()) == [
            ("mx", f"127.0.0.1:{second}"),
            ("submission", f"127.0.0.1:{server.port}"),
        ]
        for port in (server.port, second):
            assert send(("127.0.0.1", port), with_token())[0].code == 250


@pytest.mark.parametrize("names", [None, "unknown"])
def test_a_socket_without_a_name_belongs_to_the_only_listener(names: str | None) -> None:
    with Activated(listeners(mx=free_port()), names) as server:
        assert server.listening() == [("mx", f"127.0.0.1:{server.port}")]


def test_a_name_that_is_no_listener() -> None:
    server = Activated(listeners(mx=free_port(), submission=free_port()), "smtp")
    with pytest.raises(ServerError, match="ended at once"):
        server.start()
    output = server.output.read_text()
    said = [line for line in output.splitlines() if line.startswith("gsmtpd: ")]
    assert said == [
        f'gsmtpd: the socket for 127.0.0.1:{server.port} was passed with the name "smtp", which is'
        " no listener; write FileDescriptorName= with one of mx, submission in the socket unit"
    ]
    assert "Traceback" not in output
    assert server.stop() == 69
    server.close()


def test_a_connection_is_no_listener() -> None:
    """Accept=yes in the socket unit, and yet no --inetd."""
    server = Activated(listeners(mx=free_port()))
    server.activation.append("--accept")
    server.answers = lambda: not refused(server.port)  # type: ignore[method-assign]
    with server:
        with Client(server.address) as client:
            assert client.closed()
        wait_for(lambda: "gsmtpd: " in server.output.read_text())
        assert "use gsmtpd --inetd for Accept=yes" in server.output.read_text()


def test_a_process_for_each_connection() -> None:
    """What Accept=yes and StandardInput=socket do."""
    server = Activated({})
    server.activation += ["--accept", "--inetd"]
    server.arguments = ["--inetd"]
    with server:
        assert send(server.address, with_token(), with_token())[1].code == 250
        assert count(table_of(server)) == 2
        wait_for(lambda: not server.workers)


def test_a_listener_without_a_passed_socket_binds_its_own() -> None:
    own = free_port()
    with Activated(listeners(mx=free_port(), submission=own), "mx") as server:
        assert send(("127.0.0.1", own), with_token())[0].code == 250
        assert send(server.address, with_token())[0].code == 250


@pytest.mark.parametrize("how", ["signal", "gsmtpctl"])
def test_passed_sockets_are_served_behind_a_reload(how: str) -> None:
    settings = listeners(mx=free_port())
    with Activated(settings) as server:
        assert announced_size(server.port) == "10485760"
        server.configure(settings | {"limits": {"max_size": "20M"}})
        if how == "signal":
            os.kill(server.pid, signal.SIGHUP)
        else:
            server.ctl("reload")
        wait_for(lambda: announced_size(server.port) == "20971520")
        assert server.listening() == [("mx", f"127.0.0.1:{server.port}")]


def test_a_passed_socket_whose_listener_has_gone_is_closed() -> None:
    second = free_port()
    mx, submission = free_port(), free_port()
    with Activated(listeners(mx=mx, submission=submission), "mx:submission", [second]) as server:
        assert not refused(second)
        server.configure(listeners(mx=mx))
        server.ctl("reload")
        wait_for(lambda: refused(second))
        assert send(server.address, with_token())[0].code == 250


# --- notifications ------------------------------------------------------------------------------


class Message(NamedTuple):
    """What the service manager was told. when: monotonic seconds."""

    fields: dict[str, str]
    pid: int
    when: float


class Manager:
    """A socket that stands in for the service manager's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(address.replace("@", "\0"))

    def hear(self, seconds: float = 10.0) -> Message:
        """The next message. Raises TimeoutError."""
        self._socket.settimeout(seconds)
        text, ancillary, _, _ = self._socket.recvmsg(4096, 64)
        fields = dict(line.split("=", 1) for line in text.decode().split("\n"))
        pid = struct.unpack("iII", ancillary[0][2])[0]
        self.messages.append(Message(fields, pid, time.monotonic()))
        return self.messages[-1]

    def wait_for(self, key: str, value: str | None = None, seconds: float = 60.0) -> Message:
        """The next message that has `key`, with `value` if there is one."""
        deadline = time.monotonic() + seconds
        while True:
            message = self.hear(max(0.01, deadline - time.monotonic()))
            if key in message.fields and value in (None, message.fields[key]):
                return message

    def hear_for(self, seconds: float) -> list[Message]:
        """All that comes within so many seconds."""
        found = []
        deadline = time.monotonic() + seconds
        try:
            while True:
                found.append(self.hear(max(0.01, deadline - time.monotonic())))
        except TimeoutError:
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def any_manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    """A service manager for the servers that the test starts, at either kind of address."""
    abstract = f"@gsmtpd-test-{os.getpid()}"
    manager = Manager(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    yield manager
    manager.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager for the servers that the test starts."""
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    yield manager
    manager.close()


# A worker that takes its time to begin, and leaves a mark when it does.
SLOW_WORKER = """
import pathlib, sys, time
from gsmtpd import worker
run = worker.run
def late(*arguments):
    time.sleep(0.7)
    pathlib.Path(sys.argv[-1]).with_name("begun").touch()
    run(*arguments)
worker.run = late
"""


class Quiet(Gsmtpd):
    """gsmtpd -n that nobody talks to while it starts."""

    def answers(self) -> bool:
        return True


def test_it_says_ready_when_clients_are_served(any_manager: Manager) -> None:
    with Quiet(before=SLOW_WORKER) as server:
        ready = any_manager.wait_for("READY")
        assert (server.path / "begun").exists()
        assert ready.fields["READY"] == "1"
        assert ready.fields["MAINPID"] == str(server.pid)
        assert Gsmtpd.answers(server)


def test_only_the_main_process_speaks_and_says_how_it_does(manager: Manager) -> None:
    with Gsmtpd({"server": {"processes": 2}}) as server:
        manager.wait_for("READY")
        assert send(server.address, with_token())[0].code == 250
        manager.wait_for("STATUS", "clients: 0, accepted: 1, refused: 0")
        assert server.stop() == 0
        assert manager.wait_for("STOPPING").fields["STOPPING"] == "1"
        assert {message.pid for message in manager.messages} == {server.pid}


@pytest.mark.parametrize("good", [True, False])
def test_a_reload_begins_and_ends(manager: Manager, good: bool) -> None:
    """Type=notify-reload waits for both, and its clock is the monotonic one."""
    with Gsmtpd() as server:
        manager.wait_for("READY")
        server.configure({"limits": {"max_size": "20M" if good else "many"}})
        before = time.monotonic_ns() // 1000
        os.kill(server.pid, signal.SIGHUP)
        began = manager.wait_for("RELOADING")
        assert began.fields["RELOADING"] == "1"
        assert before <= int(began.fields["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert manager.wait_for("READY").fields["READY"] == "1"
        assert announced_size(server.port) == ("20971520" if good else "10485760")


def test_signs_of_life_come_twice_as_often_as_asked(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    with Gsmtpd():
        times = [manager.wait_for("READY").when]
        times += [manager.wait_for("WATCHDOG", "1").when for _ in range(2)]
    assert max(later - earlier for earlier, later in zip(times, times[1:], strict=False)) <= 2


# A worker that writes down its environment.
TELLING_WORKER = """
import json, os, pathlib, sys
from gsmtpd import worker
run = worker.run
def telling(*arguments):
    pathlib.Path(sys.argv[-1]).with_name("environment").write_text(json.dumps(dict(os.environ)))
    run(*arguments)
worker.run = telling
"""


def test_no_worker_knows_of_systemd(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    server = Activated({})
    server.before = TELLING_WORKER
    with server:
        manager.wait_for("READY")
        names = json.loads((server.path / "environment").read_text())
    assert "PYTHONPATH" in names
    assert not [name for name in names if re.match("LISTEN_|NOTIFY_|WATCHDOG_", name)]


def test_nobody_asked_for_signs_of_life(manager: Manager) -> None:
    with Gsmtpd():
        manager.wait_for("READY")
        assert not any("WATCHDOG" in message.fields for message in manager.hear_for(1.5))
