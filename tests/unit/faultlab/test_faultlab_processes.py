"""Is a port that was given to one given to nobody else?"""

from __future__ import annotations

import random
import socket
import subprocess
import sys

import pytest

from gsmtpd.faultlab import processes
from gsmtpd.faultlab.processes import environment, free_port


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
