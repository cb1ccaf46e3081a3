"""Who listens on an address that we cannot have, as far as Linux lets us see it?"""

from __future__ import annotations

import os
import pwd
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
LOOK_FOR = 1.0  # seconds; a machine may have a million descriptors
MAX_SOCKETS = 10_000  # of each table; those that listen stand first
_LISTEN = "0A"  # TCP_LISTEN of net/tcp_states.h
_MAPPED = bytes(10) + b"\xff\xff"  # IPv4 in IPv6, RFC 4291 2.5.5.2


class Socket(NamedTuple):
    """A listening socket. address: its 4 or 16 octets. uid: the user it belongs to."""

    address: bytes
    port: int
    uid: int
    inode: int


class Process(NamedTuple):
    """A process. name: as it calls itself. program: the file it runs. unit: its systemd service.

    program and unit are "" where they are not known.
    """

    pid: int
    name: str
    program: str
    unit: str

    def __str__(self) -> str:
        # A script has its own name, and its interpreter's program.
        is_script = not os.path.basename(self.program).startswith(self.name)
        shown = self.name if is_script else self.program
        unit = f", {self.unit}" if self.unit else ""
        text = f"{shown} (process {self.pid}{unit})"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


def who_listens(host: str, port: int) -> str:
    """A sentence on who listens on `host` and `port`, or on how to find out; it never raises."""
    with suppress(OSError, ValueError, LookupError):
        found = in_the_way(host, port, [*_table("tcp"), *_table("tcp6")])
        process = _eldest(_holders({socket.inode for socket in found}))
        if process is not None and process.pid == 1 and process.name == "systemd":
            return "systemd listens there for a socket unit, see: systemctl list-sockets"
        if process is not None:
            return f"{process} listens there"
        if found:
            return f"a program of the user {_user(found[0].uid)} listens there{_how(port)}"
    return f"another program has this port (see, as root: ss -tanp 'sport = :{port}')"


def _how(port: int) -> str:
    """Why we do not see which program it is."""
    if os.geteuid() == 0:
        return ", which cannot be seen from here (is it in a container?)"
    return f" (see which, as root: ss -ltnp 'sport = :{port}')"


def listening(lines: Iterable[str]) -> Iterator[Socket]:
    """The listening sockets of /proc/net/tcp or /proc/net/tcp6, see proc_net(5)."""
    for line in lines:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTEN:
            address, port = words[1].split(":")
            yield Socket(_octets(address), int(port, 16), int(words[7]), int(words[9]))


def _octets(hexadecimal: str) -> bytes:
    # Words of 32 bits, each a number in the byte order of this machine.
    words = [int(hexadecimal[at : at + 8], 16) for at in range(0, len(hexadecimal), 8)]
    return struct.pack(f"={len(words)}I", *words).removeprefix(_MAPPED)


def in_the_way(host: str, port: int, sockets: Iterable[Socket]) -> list[Socket]:
    """Those of `sockets` that keep us from listening on `host` and `port`."""
    wanted = ip_address(host).packed
    same_port = [socket for socket in sockets if socket.port == port]
    found = [
        socket
        for socket in same_port
        if len(socket.address) == len(wanted)
        and (socket.address == wanted or not any(socket.address) or not any(wanted))
    ]
    if found or len(wanted) == 16:
        return found
    # [::] may be all of IPv4, too. The table does not say whether it is, but something must be.
    return [socket for socket in same_port if socket.address == bytes(16)]


def unit_of(cgroups: str) -> str:
    """The systemd service in the text of /proc/PID/cgroup, or ""."""
    parts = [part for line in cgroups.splitlines() for part in line.split("/")]
    return next((part for part in reversed(parts) if part.endswith(".service")), "")


def _table(name: str) -> list[Socket]:
    try:
        # Not /proc/net, which ProcSubset=pid of systemd hides.
        with (PROC / "self/net" / name).open() as lines:
            return [*listening(islice(lines, MAX_SOCKETS))]
    except FileNotFoundError:  # a machine without IPv6
        return []


def _holders(inodes: Collection[int]) -> list[int]:
    """The processes that have one of these sockets and let us see it."""
    links = {f"socket:[{inode}]" for inode in inodes}
    deadline = time.monotonic() + LOOK_FOR
    return [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir(PROC)))
        if links and time.monotonic() < deadline and _holds(pid, links, deadline)
    ]


def _holds(pid: int, links: Collection[str], deadline: float) -> bool:
    with suppress(OSError):  # it is another user's, or has ended
        directory = str(PROC / str(pid) / "fd")
        for descriptor in os.listdir(directory):
            with suppress(FileNotFoundError):  # it has been closed
                if os.readlink(f"{directory}/{descriptor}") in links:
                    return True
            if time.monotonic() > deadline:
                break
    return False


def _eldest(pids: Collection[int]) -> Process | None:
    """Of the processes that share a socket the one that began first: it has made the others."""
    for pid in sorted(pids, key=lambda pid: (_began(pid), pid)):
        with suppress(OSError):  # it has ended
            return _process(pid)
    return None


def _began(pid: int) -> int:
    with suppress(OSError):
        # The name may hold anything; see proc_pid_stat(5), the 22nd field.
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    return 0


def _process(pid: int) -> Process:
    home = PROC / str(pid)
    name = (home / "comm").read_text(errors="replace").strip()
    program = unit = ""
    with suppress(OSError):
        program = os.readlink(home / "exe").removesuffix(" (deleted)")
    with suppress(OSError):
        unit = unit_of((home / "cgroup").read_text(errors="replace"))
    return Process(pid, name, program, unit)


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)
