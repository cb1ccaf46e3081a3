"""Do the lines and descriptors that go to and come from systemd mean what its manuals say?"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gsmtpd.systemd import ActivationError, Notifier, passed_sockets

FIRST = 600  # where descriptors are passed to these tests; 3 is pytest's own


# --- socket activation --------------------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listening(stack: ExitStack) -> int:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener.setblocking(True)  # systemd's own default, NonBlocking= in systemd.exec(5)
    return listener.fileno()


def connected(stack: ExitStack) -> int:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return stack.enter_context(socket.create_connection(listener.getsockname())).fileno()


def bound_only(stack: ExitStack) -> int:
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    return bound.fileno()


def udp(stack: ExitStack) -> int:
    return stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)).fileno()


def unix(stack: ExitStack) -> int:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind("")  # the kernel gives it a name
    listener.listen()
    return listener.fileno()


def pipe(stack: ExitStack) -> int:
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends[0]


def passed(environ: dict[str, str], *descriptors: int) -> list[tuple[str, socket.socket]]:
    """What is found where `descriptors` were passed with `environ`."""
    for place, descriptor in enumerate(descriptors, FIRST):
        os.dup2(descriptor, place)
    ours = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors))}
    return passed_sockets(ours | environ, FIRST)


def test_listening_sockets_come_with_their_names(stack: ExitStack) -> None:
    originals = [listening(stack), listening(stack)]
    found = passed({"LISTEN_FDNAMES": "mx:submission"}, *originals)
    assert [name for name, _ in found] == ["mx", "submission"]
    for (_, held), original in zip(found, originals, strict=True):
        with held:
            assert os.path.sameopenfile(held.fileno(), original)
            # A worker accepts until nobody waits, and no program it starts is given the socket.
            assert not os.get_blocking(held.fileno())
            assert not os.get_inheritable(held.fileno())
            assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, ["", ""]), ("mx", ["mx", ""]), ("mx:", ["mx", ""]), ("a:b:c", ["a", "b"])],
)
def test_names_that_are_missing_or_too_many(
    stack: ExitStack, names: str | None, expected: list[str]
) -> None:
    environ = {} if names is None else {"LISTEN_FDNAMES": names}
    found = passed(environ, listening(stack), listening(stack))
    for _, held in found:
        held.close()
    assert [name for name, _ in found] == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_what_is_for_another_process_is_not_touched(environ: dict[str, str]) -> None:
    """A shell that was activated may start gsmtpd with the variables still set."""
    assert passed_sockets(environ, FIRST) == []


def test_children_are_not_told() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "mx", "HOME": "/"}
    passed_sockets(environ, FIRST)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("wrong", [connected, bound_only, udp, unix])
def test_another_socket_is_refused(stack: ExitStack, wrong: Callable[[ExitStack], int]) -> None:
    with pytest.raises(ActivationError) as caught:
        passed({"LISTEN_FDNAMES": "mx"}, wrong(stack))
    assert f"descriptor {FIRST} (mx)" in str(caught.value)
    assert "no listening TCP socket" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_socket_is_refused(stack: ExitStack) -> None:
    with pytest.raises(ActivationError, match=rf"{FIRST} \(without a name\) .* is no socket"):
        passed({}, pipe(stack))
    os.close(FIRST)


def test_a_descriptor_that_is_not_there_is_refused() -> None:
    with pytest.raises(ActivationError, match="is no socket: Bad file descriptor"):
        passed({"LISTEN_FDS": "1"})


# --- notifications ------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager, in the file system."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        yield bound


def told(manager: socket.socket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname()})


def test_messages_are_assignments_by_line(manager: socket.socket) -> None:
    notifier = told(manager)
    notifier.ready()
    assert manager.recv(4096).decode() == f"READY=1\nMAINPID={os.getpid()}"
    notifier.reloading()
    assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notifier.alive()
    assert manager.recv(4096) == b"WATCHDOG=1"
    notifier.stopping()
    assert manager.recv(4096).startswith(b"STOPPING=1\n")


def test_a_status_is_said_when_it_changes(manager: socket.socket) -> None:
    notifier = told(manager)
    for status in ("clients: 0", "clients: 0", "clients: 1", "clients: 0"):
        notifier.status(status)
    said = [manager.recv(4096).decode() for _ in range(3)]
    assert said == ["STATUS=clients: 0", "STATUS=clients: 1", "STATUS=clients: 0"]
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_without_a_manager_nothing_happens() -> None:
    Notifier({}).ready()


def test_a_manager_that_has_gone_is_no_trouble(manager: socket.socket) -> None:
    notifier = told(manager)
    manager.close()
    notifier.ready()


def test_a_manager_that_does_not_read_holds_up_nobody(manager: socket.socket) -> None:
    notifier = told(manager)
    for number in range(2000):
        notifier.status(str(number))


PID = str(os.getpid())


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "4000000"}, 2.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": PID}, 15.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({"WATCHDOG_PID": PID}, None),
        ({}, None),
    ],
)
def test_a_sign_of_life_is_due_twice_as_often_as_asked(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier(environ).watchdog == seconds


def test_no_child_tells_the_manager_anything() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(environ)
    assert environ == {"HOME": "/"}
