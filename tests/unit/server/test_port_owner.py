"""Is the one who listens found in /proc, and named as an administrator knows it?"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsmtpd.server import port_owner
from gsmtpd.server.port_owner import Process, Socket, in_the_way, listening, unit_of, who_listens
from tests.servers import free_port

HEADER = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt"
    "   uid  timeout inode\n"
)
LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of such a machine")


def line(address: str, state: str = "0A", uid: int = 0, inode: int = 7) -> str:
    """As in /proc/net/tcp, or /proc/net/tcp6."""
    nobody = "0" * (len(address) - 5) + ":0000"
    return (
        f"   0: {address} {nobody} {state} 00000000:00000000 00:00000000 00000000"
        f" {uid:5d}        0 {inode} 1 0000000000000000 100 0 0 10 0\n"
    )


def packed(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def listener(host: str, port: int = 25, inode: int = 7) -> Socket:
    return Socket(packed(host), port, 0, inode)


# --- the tables -----------------------------------------------------------------------------------


@LITTLE
@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("00000000:0019", "0.0.0.0", 25),
        ("0100007F:09DD", "127.0.0.1", 2525),
        ("0A0200C0:FFFF", "192.0.2.10", 65535),
        ("00000000000000000000000000000000:0019", "::", 25),
        ("00000000000000000000000001000000:0019", "::1", 25),
        ("B80D0120010000000200000078563412:024B", "2001:db8:0:1:0:2:1234:5678", 587),
        ("0000000000000000FFFF00000100007F:0019", "127.0.0.1", 25),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    found = [*listening([HEADER, line(address, uid=108, inode=12345)])]
    assert found == [Socket(packed(host), port, 108, 12345)]


@pytest.mark.parametrize("state", ["01", "06", "07", "0B"])
def test_what_does_not_listen(state: str) -> None:
    assert [*listening([HEADER, line("0100007F:0019", state)])] == []


@pytest.mark.parametrize("text", ["", "\n", HEADER, "   0: 0100007F:0019 00000000:0000 0A\n"])
def test_lines_that_are_no_sockets(text: str) -> None:
    assert [*listening([text])] == []


@pytest.mark.parametrize(
    ("wanted", "there", "conflict"),
    [
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("192.0.2.1", "0.0.0.0", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::", "::", True),
        ("::", "2001:db8::1", True),
        ("2001:db8::1", "::", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("2001:db8::1", "2001:db8::2", False),
        # All of IPv6 may be all of IPv4, too; ours never is.
        ("0.0.0.0", "::", True),
        ("192.0.2.1", "::", True),
        ("0.0.0.0", "::1", False),
        ("::", "0.0.0.0", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_which_addresses_exclude_one_another(wanted: str, there: str, conflict: bool) -> None:
    assert bool(in_the_way(wanted, 25, [listener(there)])) is conflict
    assert in_the_way(wanted, 26, [listener(there)]) == []


def test_all_of_ipv6_is_suspected_only_if_nobody_else_is() -> None:
    there = [listener("::"), listener("192.0.2.1")]
    assert in_the_way("0.0.0.0", 25, there) == there[1:]
    assert in_the_way("192.0.2.2", 25, there) == there[:1]


# --- the names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "text"),
    [
        (
            Process(1234, "master", "/usr/lib/postfix/sbin/master", ""),
            "/usr/lib/postfix/sbin/master (process 1234)",
        ),
        (
            Process(1234, "exim4", "/usr/sbin/exim4", "exim4.service"),
            "/usr/sbin/exim4 (process 1234, exim4.service)",
        ),
        # The kernel cuts names after 15 octets.
        (Process(7, "a-long-mailer-x", "/a-long-mailer-xyz", ""), "/a-long-mailer-xyz (process 7)"),
        (Process(7, "python3", "/usr/bin/python3.11", ""), "/usr/bin/python3.11 (process 7)"),
        # A script is not its interpreter.
        (Process(7, "gsmtpd", "/usr/bin/python3.11", ""), "gsmtpd (process 7)"),
        # Not all that can be seen of a process can be seen of each.
        (Process(7, "smtpd", "", ""), "smtpd (process 7)"),
        (Process(7, "a\nb\x1b[", "", ""), "a?b?[ (process 7)"),
    ],
)  # fmt: skip
def test_names(process: Process, text: str) -> None:
    assert str(process) == text


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/exim4.service\n", "exim4.service"),
        ("0::/system.slice/system-postfix.slice/postfix@-.service\n", "postfix@-.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/mail.service", "mail.service"),
        ("4:memory:/system.slice/exim4.service\n1:name=systemd:/\n0::/\n", "exim4.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_units(cgroups: str, unit: str) -> None:
    assert unit_of(cgroups) == unit


# --- real sockets ---------------------------------------------------------------------------------

# It listens on the addresses that it is told, then forks as often as it is told, then waits.
STRANGER = """
import os, socket, sys, time
port, forks, *hosts = sys.argv[1:]
held = []
for host in hosts:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held.append(socket.create_server((host, int(port)), family=family,
                dualstack_ipv6=host in ("::", "::ffff:127.0.0.1"), reuse_port=True))
for _ in range(int(forks)):
    if not os.fork():
        break
os.write(1, b"listening\\n")
time.sleep(60)
"""


@contextlib.contextmanager
def stranger(port: int, *hosts: str, forks: int = 0) -> Iterator[int]:
    """The id of another program that listens."""
    command = [sys.executable, "-c", STRANGER, str(port), str(forks), *hosts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(forks + 1):
                assert process.stdout.readline() == b"listening\n"
            yield process.pid
        finally:
            os.killpg(process.pid, 9)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::1", "::"),
        ("::", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_program_is_named(theirs: str, ours: str) -> None:
    port = free_port()
    with stranger(port, theirs) as pid:
        program = os.readlink(f"/proc/{pid}/exe")
        assert who_listens(ours, port) == f"{program} (process {pid}) listens there"


@pytest.mark.parametrize(("theirs", "ours"), [("127.0.0.1", "::1"), ("127.0.0.1", "127.0.0.2")])
def test_who_is_not_in_the_way_is_not_named(theirs: str, ours: str) -> None:
    port = free_port()
    with stranger(port, theirs):
        said = f"another program has this port (see, as root: ss -tanp 'sport = :{port}')"
        assert who_listens(ours, port) == said


def test_of_many_processes_the_one_that_made_the_others() -> None:
    port = free_port()
    with stranger(port, "127.0.0.1", forks=5) as pid:
        assert f"(process {pid})" in who_listens("127.0.0.1", port)


def test_of_many_sockets_the_one_who_came_first() -> None:
    """SO_REUSEPORT lets several programs of a user share an address."""
    port = free_port()
    with stranger(port, "127.0.0.1") as first:
        time.sleep(0.02)  # the kernel counts hundredths
        with stranger(port, "127.0.0.1"):
            assert f"(process {first})" in who_listens("127.0.0.1", port)


def test_a_socket_that_no_process_holds() -> None:
    """It is on its way from one process to another; or its process is of another PID namespace."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        with socket.create_server(("127.0.0.1", free_port())) as held:
            port = held.getsockname()[1]
            ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", held.fileno()))
            here.sendmsg([b"x"], [ancillary])
        said = who_listens("127.0.0.1", port)
    assert said.startswith("a program of the user ")
    assert ("which cannot be seen from here" if os.geteuid() == 0 else "as root: ss -ltnp") in said


def test_a_machine_that_shows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(port_owner, "PROC", tmp_path)
    assert who_listens("127.0.0.1", 25).startswith("another program has this port")
    (tmp_path / "self/net").mkdir(parents=True)
    (tmp_path / "self/net/tcp").write_text(HEADER + "   0: nonsense:x 0:0 0A 0 0 0 0 0 0 0\n")
    assert who_listens("127.0.0.1", 25).startswith("another program has this port")


def test_a_busy_machine_is_not_searched_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_owner, "LOOK_FOR", 0.0)
    port = free_port()
    with stranger(port, "127.0.0.1"):
        assert who_listens("127.0.0.1", port).startswith("a program of the user ")
