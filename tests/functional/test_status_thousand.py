"""Can a thousand wait at a time, each for its own mail, without a thread each?"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.accounting import Client, Mail
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for
from tests.status_client import served

pytestmark = pytest.mark.alone
WAITERS = 1000


@pytest.mark.parametrize("store", ["sqlite", "mariadb"])
def test_a_thousand_waiters(request: pytest.FixtureRequest, store: str) -> None:
    settings: dict[str, Any] = {}
    if store == "mariadb":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        make_schema(mariadb, "thousand")
        settings |= mysql_store(mariadb, "thousand")
    with served(settings) as (daemon, status):
        found, threads = asyncio.run(everybody(daemon, status.port))
    assert found == [f"mail {number}" for number in range(WAITERS)]
    assert threads < 20


async def everybody(daemon: Gsmtpd, port: int) -> tuple[list[str], int]:
    """What each waiter was given, and how many threads served them."""
    gate = asyncio.Semaphore(100)
    waiting = [asyncio.create_task(wait(port, number, gate)) for number in range(WAITERS)]
    await asyncio.to_thread(wait_for, lambda: connections(port) == WAITERS)
    threads = len([*Path(f"/proc/{worker_of(daemon)}/task").iterdir()])
    await asyncio.to_thread(send_all, daemon)
    return await asyncio.gather(*waiting), threads


async def wait(port: int, number: int, gate: asyncio.Semaphore) -> str:
    """The subject of the mail for this waiter."""
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = f"/api/wait?to=w{number}@example.com&timeout=120"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    said = await reader.read()
    writer.close()
    return str(json.loads(said.partition(b"\r\n\r\n")[2])["mail"]["subject"])


def send_all(daemon: Gsmtpd) -> None:
    """Send each its mail."""
    with Client(daemon.address) as client:
        client.hello()
        for number in range(WAITERS):
            mail = Mail(
                f"Subject: mail {number}\r\n\r\nx\r\n".encode(), (f"w{number}@example.com",)
            )
            assert client.deliver(mail).code == 250


def connections(port: int) -> int:
    """How many clients the server has accepted on that port."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        fields = [line.split() for line in file]
    return sum(each[1].endswith(f":{port:04X}") and each[3] == "01" for each in fields)


def worker_of(daemon: Gsmtpd) -> int:
    """The process that serves HTTP."""
    workers = daemon.status()["workers"]
    return next(int(one["pid"]) for one in workers if one["role"] == "status")
