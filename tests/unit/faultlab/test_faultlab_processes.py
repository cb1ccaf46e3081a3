"""Is a port given to one only, and is it known when a process has let go of its own?"""

from __future__ import annotations

import platform
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gsmtpd.faultlab import processes
from gsmtpd.faultlab.processes import environment, free_port, wait_for


def choose(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Have the next ports be tried in this order."""
    tried = iter(ports)
    monkeypatch.setattr(random, "randrange", lambda *_: next(tried))


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although no server listens there yet, or any more."""
    one, other = free_port(), free_port()
    choose(monkeypatch, one, other, one, 19999)
    assert free_port() == 19999


def test_nor_does_another_process_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    give = (
        "from gsmtpd.faultlab import processes; print(processes.free_port(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", give],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        choose(monkeypatch, port, 19998)
        assert free_port() == 19998
        other.communicate("\n")
    choose(monkeypatch, port)
    assert free_port() == port


def test_a_port_where_somebody_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        choose(monkeypatch, listener.getsockname()[1], 19997)
        assert free_port() == 19997


def test_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are descriptors of this process."""
    first = free_port()
    for _ in range(processes.RESERVED_AT_MOST):
        free_port()
    assert len(processes._reserved) == processes.RESERVED_AT_MOST
    choose(monkeypatch, first)
    assert free_port() == first


MAIN_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2) of this thread alone
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls have other numbers there")
def test_a_process_runs_until_its_last_thread_has_ended() -> None:
    """One that is killed may be seen like that, and has its ports and files until then."""
    process = subprocess.Popen([sys.executable, "-c", MAIN_THREAD_ENDS], start_new_session=True)
    try:
        stat = Path(f"/proc/{process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert processes._running_in_group(process.pid) == [process.pid]
    finally:
        process.kill()
    wait_for(lambda: not processes._running_in_group(process.pid))
    process.wait()
