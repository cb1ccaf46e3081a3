"""Which sockets are listened on, and what stays when that changes?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from gsmtpd.server.port_owner import who_listens
from gsmtpd.server.tcp import bind, overlook_clients, share_port

HostPort = tuple[str, int]
Wanted = Mapping[str, Sequence[HostPort]]  # name of a listener → its addresses


class ListenError(Exception):
    """An address cannot be listened on. permission: whether rights are what is missing."""

    def __init__(self, text: str, permission: bool = False) -> None:
        super().__init__(text)
        self.permission = permission


class Listener(NamedTuple):
    """A listening socket. address: as it was asked for; None if the socket was passed to us."""

    name: str
    address: HostPort | None
    socket: socket.socket

    def __str__(self) -> str:
        return _written(self.socket.getsockname())


def adopt_passed(wanted: Wanted, passed: Iterable[tuple[str, socket.socket]]) -> list[Listener]:
    """The sockets `passed` by the service manager, each with a name, as listeners.

    Each belongs to the listener of its name; else to that of its address, or to the only one.
    Raises ListenError.
    """
    return [Listener(_owner(wanted, name, held), None, held) for name, held in passed]


def _owner(wanted: Wanted, name: str, held: socket.socket) -> str:
    if name in wanted:
        return name
    address = held.getsockname()[:2]
    for listener, addresses in wanted.items():
        if address in addresses or len(wanted) == 1:
            return listener
    raise ListenError(
        f'the socket for {_written(address)} was passed with the name "{name}", which is no'
        f" listener; write FileDescriptorName= with one of {', '.join(wanted)} in the socket unit"
    )


def open_listeners(
    wanted: Wanted, held: Sequence[Listener] = (), instead: str = "use -p PORT"
) -> list[Listener]:
    """A listening socket for all that is `wanted`: those of `held` where they fit, else new ones.

    A listener with passed sockets needs none of its addresses. instead: what to do where an address
    cannot be had. Raises ListenError, and then nothing has changed.
    """
    free = list(held)
    found: list[Listener] = []
    try:
        for name, addresses in wanted.items():
            passed = [h for h in held if h.address is None and h.name == name]
            found += passed
            for address in addresses if not passed else ():
                old = next((h for h in free if h.address == address), None)
                if old is None:
                    _refuse_overlap(address, found)
                    found.append(Listener(name, address, _bind(address, held, instead)))
                else:
                    free.remove(old)
                    found.append(old._replace(name=name))
    except ListenError:
        close_listeners(found, but=held)
        raise
    return found


def _refuse_overlap(address: HostPort, found: Sequence[Listener]) -> None:
    """Two of our own addresses that exclude one another are not another program's fault."""
    for other in found:
        if other.address is None or not address[1] or other.address[1] != address[1]:
            continue
        hosts = {address[0], other.address[0]}
        if "0.0.0.0" in hosts and not any(":" in host for host in hosts):  # noqa: S104
            raise ListenError(
                f"cannot listen on {_written(address)} beside {_written(other.address)}: 0.0.0.0 is"
                " all IPv4 addresses; write one of the two"
            )


def take_leave(listeners: Iterable[Listener], but: Iterable[Listener]) -> None:
    """Close those that are not in `but`, while other processes still accept who has come."""
    kept = {listener.socket for listener in but}
    for listener in listeners:
        # A passed socket stays the service manager's, who may give it to the next gsmtpd.
        if listener.socket not in kept and listener.address is not None:
            with suppress(OSError):
                overlook_clients(listener.socket)
    close_listeners(listeners, but)


def close_listeners(listeners: Iterable[Listener], but: Iterable[Listener] = ()) -> None:
    """Close the sockets of `listeners` that are not in `but` as well."""
    kept = {listener.socket for listener in but}
    for listener in listeners:
        if listener.socket not in kept:
            listener.socket.close()


def _bind(address: HostPort, held: Sequence[Listener], instead: str) -> socket.socket:
    # 127.0.0.1:25 and 0.0.0.0:25 exclude one another, and yet one may take over from the other:
    # for that moment they share the port.
    others = [h.socket for h in held if h.address and h.address[1] == address[1]]
    for other in others:
        share_port(other, True)
    try:
        return bind(*address, share=bool(others))
    except OSError as error:
        raise _explained(address, error, instead) from error
    finally:
        for other in others:
            share_port(other, False)


def _explained(address: HostPort, error: OSError, instead: str) -> ListenError:
    where = f"cannot listen on {_written(address)}"
    if isinstance(error, PermissionError):
        return ListenError(
            f"{where}: permission denied; a port below 1024 needs root at the start, or"
            f" CAP_NET_BIND_SERVICE; or {instead}",
            permission=True,
        )
    if error.errno == errno.EADDRINUSE:
        return ListenError(f"{where}: {who_listens(*address)}; stop it, or {instead}")
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"{where}: this machine has no such address; see: ip address")
    return ListenError(f"{where}: {error.strerror or error}")


def _written(address: Sequence[object]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
