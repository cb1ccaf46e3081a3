"""Does the control socket answer its user, and does nobody who is rude there do any harm?"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsmtpd import control
from gsmtpd.control import MAX_CLIENTS, MAX_LINE, Answer, ControlError, ControlServer, ask
from tests.servers import wait_for


class Loop:
    """A server in a loop of its own, as the master runs it. asked: what came, in turn.

    It answers "hold" never, "release" to all who were held, and else says the command back.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[str] = []
        self.faults: list[BaseException] = []
        self.selector = selectors.DefaultSelector()
        self.server = ControlServer(self.path, self.selector, self._handle)
        self._held: list[Answer] = []
        self.long = ""  # what else it says to "release"

    def _handle(self, command: str, about: str, answer: Answer) -> None:
        self.asked.append(command)
        if about:
            answer({"said": about})
            return
        if command == "hold":
            self._held.append(answer)
            return
        more = {"long": self.long} if self.long else {}
        for held in [*self._held, answer] if command == "release" else [answer]:
            held({"said": command} | (more if command == "release" else {}))

    def round(self, seconds: float = 0.0) -> None:
        """What the master does in a round."""
        for key, _ in self.selector.select(seconds):
            key.data()

    def run(self, ended: threading.Event) -> None:
        """Rounds until `ended`."""
        while not ended.is_set():
            try:
                self.round(0.01)
            except BaseException as fault:
                self.faults.append(fault)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path / "control")
    yield made
    made.server.close()
    made.selector.close()


@pytest.fixture
def served(loop: Loop) -> Iterator[Loop]:
    """A loop that runs in a thread, and in which nothing may fail."""
    ended = threading.Event()
    thread = threading.Thread(target=loop.run, args=(ended,))
    thread.start()
    yield loop
    ended.set()
    thread.join()
    assert loop.faults == []


def connected(loop: Loop) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(loop.path)
    client.settimeout(5)
    return client


def said(client: socket.socket) -> Any:
    """All that the client hears until it is hung up on; None for nothing."""
    with client:
        octets = b""
        try:
            while more := client.recv(65536):
                octets += more
        except ConnectionResetError:
            pass
    return json.loads(octets) if octets else None


# --- who asks -------------------------------------------------------------------------------------


def test_a_question_and_its_answer(served: Loop) -> None:
    assert ask(served.path, "status", 5) == {"said": "status"}
    assert ask(served.path, "reload", 5) == {"said": "reload"}
    assert served.asked == ["status", "reload"]


def test_the_answer_may_come_later(served: Loop) -> None:
    holders = [connected(served) for _ in range(3)]
    for holder in holders:
        holder.sendall(b'{"command": "hold"}\n')
    wait_for(lambda: len(served.asked) == 3)
    assert ask(served.path, "release", 5) == {"said": "release"}
    assert [said(holder) for holder in holders] == [{"said": "release"}] * 3


def test_nobody_else_may_connect(loop: Loop) -> None:
    mode = os.stat(loop.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o777])
def test_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        server = ControlServer(str(tmp_path / "x"), selectors.DefaultSelector(), lambda *_: None)
        assert os.umask(mask) == mask, "it left another umask"
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o600
    server.close()


def test_a_server_that_ends_has_answered_nothing(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "control")
    with connected(loop) as client:
        client.sendall(b'{"command": "hold"}\n')
        loop.round()
        loop.round()
        loop.server.close()
        assert said(client) is None


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no gsmtpd answers at .*No such file.*-c") as caught:
        ask(str(tmp_path / "control"), "status", 5)
    assert not caught.value.permission


def test_nobody_there_any_more(tmp_path: Path) -> None:
    path = tmp_path / "control"
    stale(path)
    with pytest.raises(ControlError, match=r"no gsmtpd answers at .*Connection refused"):
        ask(str(path), "status", 5)


def test_a_server_that_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(ControlError, match=r"no answer within 0\.1 s"):
            ask(str(path), "status", 0.1)


def test_what_it_is_about(served: Loop) -> None:
    about = "Jörg \u2028 \U0001f4e7\n@example.com"
    assert ask(served.path, "why", 5, about) == {"said": about}
    assert served.asked == ["why"]


def test_an_answer_that_the_socket_does_not_hold_at_once(served: Loop) -> None:
    long = "x" * 3_000_000
    with connected(served) as slow, connected(served) as gone, connected(served) as waiting:
        for client in (slow, gone, waiting):
            client.sendall(b'{"command": "hold"}\n')
        wait_for(lambda: len(served.asked) == 3)
        served.long = long
        assert ask(served.path, "release", 5) == {"said": "release", "long": long}
        gone.recv(1000)
        gone.close()
        assert said(slow) == {"said": "release", "long": long}
        assert ask(served.path, "status", 5) == {"said": "status"}, "it waits for nobody"
        assert said(waiting) == {"said": "release", "long": long}


def test_who_does_not_read_is_hung_up_on(served: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(served) as client:
        client.sendall(b'{"command": "hold"}\n')
        wait_for(lambda: served.asked == ["hold"])
        served.long = "x" * 3_000_000
        ask(served.path, "release", 5)
        client.sendall(b'{"command": "status"}\n')  # is no question any more
        monkeypatch.setattr(control, "SILENCE", -1.0)
        served.server.sweep()
        octets = b""
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(65536):
                octets += more
        assert 0 < len(octets) < len(served.long)
    assert served.asked == ["hold", "release"]


# --- who is rude ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"\n",
        b"status\n",
        b"\xff\x00\xfe\n",
        b"[1, 2]\n",
        b'"status"\n',
        b"null\n",
        b"{}\n",
        b'{"command": null}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "what", "about": ["stop", {}]}\n',
        b"[" * 4000 + b"\n",
        b"9" * 4000 + b"\n",
        b'{"command": "\\ud800"}\n',
    ],
)
def test_garbage_is_no_known_command(served: Loop, octets: bytes) -> None:
    with connected(served) as client:
        client.sendall(octets)
        said(client)
    assert served.asked[0:1] not in (["status"], ["stop"], ["reload"])
    assert ask(served.path, "status", 5) == {"said": "status"}


def test_a_line_in_pieces(served: Loop) -> None:
    with connected(served) as client:
        for octet in b'{"command": "status"}\n':
            client.sendall(bytes([octet]))
            time.sleep(0.001)
        assert said(client) == {"said": "status"}
    assert served.asked == ["status"]


def test_half_a_line_is_no_command(served: Loop) -> None:
    with connected(served) as client:
        client.sendall(b'{"command": "stop"}')
        client.shutdown(socket.SHUT_WR)
        assert said(client) is None
    assert served.asked == []


def test_a_line_without_an_end(served: Loop) -> None:
    with connected(served) as client:
        try:
            for _ in range(100):
                client.sendall(b"x" * MAX_LINE)
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            pytest.fail("it reads on and on")
    assert ask(served.path, "status", 5) == {"said": "status"}


def test_two_commands_at_once_are_one(served: Loop) -> None:
    with connected(served) as client:
        client.sendall(b'{"command": "status"}\n{"command": "stop"}\n')
        assert said(client) == {"said": "status"}
    assert served.asked == ["status"]


def test_silence_is_hung_up_on(served: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(served) as silent, connected(served) as half, connected(served) as waiting:
        half.sendall(b'{"command"')
        waiting.sendall(b'{"command": "hold"}\n')
        wait_for(lambda: served.asked == ["hold"])
        monkeypatch.setattr(control, "SILENCE", -1.0)
        served.server.sweep()
        assert said(silent) is None
        assert said(half) is None
        assert ask(served.path, "release", 5) == {"said": "release"}
        assert said(waiting) == {"said": "release"}, "who has asked may wait"


def test_more_clients_than_there_is_room_for(served: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [connected(served) for _ in range(50)]
    for late in crowd[MAX_CLIENTS:]:
        assert "try again" in said(late)["error"]
    monkeypatch.setattr(control, "SILENCE", -1.0)
    served.server.sweep()
    for early in crowd[:MAX_CLIENTS]:
        assert said(early) is None
    assert ask(served.path, "status", 5) == {"said": "status"}


def test_a_client_that_leaves_before_its_answer(served: Loop) -> None:
    for _ in range(20):
        with connected(served) as client:
            client.sendall(b'{"command": "hold"}\n')
    wait_for(lambda: len(served.asked) == 20)
    assert ask(served.path, "release", 5) == {"said": "release"}


def test_a_client_that_leaves_while_it_is_answered(loop: Loop) -> None:
    """In one round: one asks for what ends the wait of another, who has just hung up."""
    waiting, asking = connected(loop), connected(loop)
    for _ in range(4):
        loop.round()
    waiting.sendall(b'{"command": "hold"}\n')
    for _ in range(2):  # the second forgets that it was ready: the other is the first to be so
        loop.round()
    asking.sendall(b'{"command": "release"}\n')
    waiting.close()
    loop.round()
    assert said(asking) == {"said": "release"}


# --- the path -------------------------------------------------------------------------------------


def stale(path: Path) -> None:
    """The socket of a server that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()


def test_it_is_removed_at_the_end(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "control")
    loop.server.close()
    assert not os.path.exists(loop.path)


def test_but_not_what_another_has_put_there(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "control")
    os.unlink(loop.path)
    other = Loop(tmp_path / "control")
    loop.server.close()
    assert os.path.exists(other.path)
    other.server.close()


def test_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    stale(tmp_path / "control")
    loop = Loop(tmp_path / "control")
    with connected(loop):
        pass
    loop.server.close()


def test_another_server_is_left_alone(served: Loop) -> None:
    with pytest.raises(ControlError, match="another gsmtpd uses it"):
        Loop(Path(served.path))
    assert ask(served.path, "status", 5) == {"said": "status"}


@pytest.mark.parametrize("what", ["file", "directory", "link to a file", "link to nothing"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, what: str) -> None:
    path, target = tmp_path / "control", tmp_path / "target"
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_text("precious")
    else:
        path.symlink_to(target)
        if what == "link to a file":
            target.write_text("precious")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ControlError, match=r"cannot make the control socket .*\[server\]"):
        Loop(path)
    assert sorted(tmp_path.iterdir()) == before
    assert what != "file" or path.read_text() == "precious"


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="No such file or directory"):
        Loop(tmp_path / "missing" / "control")


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    """108 octets, see unix(7); the error of Python has no strerror for it."""
    path = tmp_path / ("x" * 120)
    with pytest.raises(ControlError, match="too long"):
        Loop(path)
    with pytest.raises(ControlError, match="too long"):
        ask(str(path), "status", 5)
