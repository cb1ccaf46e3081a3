"""Which sockets stay, which are new and which go, when the addresses to listen on change?"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence

import pytest

from gsmtpd.server.listeners import (
    Listener,
    ListenError,
    adopt_passed,
    close_listeners,
    open_listeners,
)
from tests.servers import free_port

HOME, ANY = "127.0.0.1", "0.0.0.0"


class Held:
    """Listeners as a master holds them over its reloads."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def reload(self, wanted: Mapping[str, Sequence[tuple[str, int]]]) -> list[Listener]:
        """Take over what is `wanted`. Raises ListenError, and then all is as before."""
        old, self.listeners = self.listeners, open_listeners(wanted, self.listeners)
        close_listeners(old, but=self.listeners)
        return self.listeners


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    close_listeners(made.listeners)


@pytest.fixture
def port() -> int:
    return free_port()


def listens(host: str, port: int) -> bool:
    """Whether a client would be taken."""
    try:
        with socket.create_connection((host, port), 5):
            return True
    except ConnectionRefusedError:
        return False


def test_what_is_wanted_is_listened_on(held: Held, port: int) -> None:
    other = free_port()
    held.reload({"mx": [(HOME, port)], "inside": [(HOME, other), ("::1", port)]})
    assert [listener.name for listener in held.listeners] == ["mx", "inside", "inside"]
    assert [*map(str, held.listeners)] == [f"{HOME}:{port}", f"{HOME}:{other}", f"[::1]:{port}"]
    assert listens(HOME, port)
    assert listens(HOME, other)
    assert listens("::1", port)


def test_a_socket_that_is_wanted_again_stays(held: Held, port: int) -> None:
    """With the connections that wait in it."""
    [before] = held.reload({"mx": [(HOME, port)]})
    with socket.create_connection((HOME, port)) as waiting:
        [after] = held.reload({"mx": [(HOME, port)]})
        assert after.socket is before.socket
        accepted, address = after.socket.accept()
        accepted.close()
        assert address == waiting.getsockname()


def test_a_listener_with_a_new_name_keeps_its_socket(held: Held, port: int) -> None:
    [before] = held.reload({"mx": [(HOME, port)]})
    [after] = held.reload({"inside": [(HOME, port)]})
    assert after.socket is before.socket
    assert after.name == "inside"


def test_two_listeners_that_change_places(held: Held, port: int) -> None:
    other = free_port()
    held.reload({"a": [(HOME, port)], "b": [(HOME, other)]})
    held.reload({"a": [(HOME, other)], "b": [(HOME, port)]})
    assert {(x.name, str(x)) for x in held.listeners} == {
        ("a", f"{HOME}:{other}"),
        ("b", f"{HOME}:{port}"),
    }


def test_what_is_wanted_no_more_is_closed(held: Held, port: int) -> None:
    other = free_port()
    held.reload({"mx": [(HOME, port)], "inside": [(HOME, other)]})
    held.reload({"mx": [(HOME, port)]})
    assert listens(HOME, port)
    assert not listens(HOME, other)


@pytest.mark.parametrize(("before", "after"), [(HOME, ANY), (ANY, HOME)])
def test_one_address_and_all_addresses_take_over_from_one_another(
    held: Held, port: int, before: str, after: str
) -> None:
    held.reload({"mx": [(before, port)]})
    held.reload({"mx": [(after, port)]})
    assert [*map(str, held.listeners)] == [f"{after}:{port}"]
    with socket.create_connection((HOME, port)):
        held.listeners[0].socket.accept()[0].close()
    assert listens("127.0.0.2", port) is (after == ANY)


def test_and_back_and_forth_with_clients(held: Held, port: int) -> None:
    """Connections that have been accepted are in nobody's way."""
    clients = []
    for host in (HOME, ANY, HOME, ANY):
        held.reload({"mx": [(host, port)]})
        clients.append(socket.create_connection((HOME, port)))
        clients.append(held.listeners[0].socket.accept()[0])
    for client in clients:
        client.close()


def test_a_port_in_use_is_refused_and_all_stays(held: Held, port: int) -> None:
    new = free_port()
    before = held.reload({"mx": [(HOME, port)]})
    with socket.create_server((HOME, free_port())) as stranger:
        taken = stranger.getsockname()[1]
        with pytest.raises(ListenError, match=f"{HOME}:{taken}: .* listens there") as caught:
            held.reload({"new": [(HOME, new)], "mx": [(HOME, port)], "busy": [(HOME, taken)]})
    assert not caught.value.permission
    assert held.listeners == before
    assert listens(HOME, port)
    assert not listens(HOME, new)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ListenError, match="this machine has no such address"):
        open_listeners({"mx": [("192.0.2.1", free_port())]})


def test_sockets_that_were_passed_need_no_address(held: Held, port: int) -> None:
    """Their listener keeps them over reloads, whatever its address is then."""
    with socket.create_server((HOME, port)) as passed:
        wanted = {"mx": [(HOME, 25)], "inside": [(HOME, free_port())]}
        held.listeners = adopt_passed(wanted, [("mx", passed)])
        first = held.reload(wanted)
        assert first[0].socket is passed
        assert [listener.name for listener in first] == ["mx", "inside"]
        again = held.reload({"mx": [("192.0.2.1", 2525)]})
        assert [listener.socket for listener in again] == [passed]


def test_a_passed_socket_belongs_to_a_name_an_address_or_the_only_listener(port: int) -> None:
    with socket.create_server((HOME, port)) as passed:
        address = (HOME, port)
        by_name = adopt_passed({"mx": [], "inside": [address]}, [("mx", passed)])
        by_address = adopt_passed({"mx": [], "inside": [address]}, [("", passed)])
        only = adopt_passed({"mx": []}, [("what", passed)])
        assert [x[0].name for x in (by_name, by_address, only)] == ["mx", "inside", "mx"]
        with pytest.raises(ListenError, match="FileDescriptorName= with one of mx, inside"):
            adopt_passed({"mx": [], "inside": []}, [("what", passed)])
