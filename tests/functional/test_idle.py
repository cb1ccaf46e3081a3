"""What does it cost that a thousand clients are connected and say nothing?"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounting import Client, send, with_token
from tests.servers import Gsmtpd, wait_for

IDLE = 1000


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """As many open files as the system gives: the clients are ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def threads(pids: list[int]) -> int:
    """How many threads the processes have together."""
    found = (re.search(r"Threads:\s+(\d+)", Path(f"/proc/{p}/status").read_text()) for p in pids)
    return sum(int(match[1]) for match in found if match)


def descriptors(pids: list[int]) -> int:
    """How many descriptors the processes have open together."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_thousand_idle_clients_take_no_thread_and_nobodys_place(processes: int) -> None:
    settings = {"server": {"processes": processes}, "limits": {"max_clients": IDLE + 10}}
    with Gsmtpd(settings) as server:
        for _ in range(5):
            assert send(server.address, with_token())[0].code == 250
        pids = server.workers
        assert len(pids) == processes
        wait_for(lambda: len({threads([pid]) for pid in pids}) == 1)  # all have begun
        before, open_before = threads(pids), descriptors(pids)
        clients = [Client(server.address).hello() for _ in range(IDLE)]
        assert threads(pids) == before
        assert IDLE - 10 < descriptors(pids) - open_before <= IDLE
        assert send(server.address, with_token(), timeout=30)[0].code == 250
        # Each of them may wake up at any time.
        for client in clients[:: IDLE // 10]:
            assert client.deliver(with_token()).code == 250
        assert threads(pids) == before
        for client in clients:
            client.close()
        wait_for(lambda: descriptors(pids) <= open_before)
        assert server.workers == pids
