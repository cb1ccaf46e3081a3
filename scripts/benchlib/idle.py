"""What do clients cost that are connected and say nothing?"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from scripts.benchlib.clocks import memory
from scripts.benchlib.results import Idle
from scripts.benchlib.rounds import Amount, Bench
from scripts.benchlib.runs import measure
from scripts.benchlib.scenarios import Scenario
from scripts.benchlib.tables import progress
from tests.servers import ServerError

IP_BIND_ADDRESS_NO_PORT = 24
PER_ADDRESS = 10_000


@contextlib.contextmanager
def idle_clients(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """Connections that have read the greeting and say nothing.

    They come from addresses of their own, 127.0.1.1 and on: the load needs the ports of 127.0.0.1.
    """
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(1, count + 1):
            client = stack.enter_context(socket.socket())
            client.settimeout(10)
            client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind((f"127.0.1.{1 + number // PER_ADDRESS}", 0))
            client.connect(address)
            if not client.recv(512).startswith(b"220"):
                raise ServerError(f"idle client {number} was not greeted")
            clients.append(client)
        yield clients


def still_open(client: socket.socket) -> bool:
    """Whether the server has neither spoken nor hung up."""
    client.setblocking(False)
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def measure_idle(bench: Bench, name: str, scenario: Scenario, clients: int, amount: Amount) -> None:
    """Memory and speed of a peer with idle clients, beside one of its kind without.

    Both have been warmed up. It has failed if a single idle client was lost.
    """
    count = scenario.count(amount.messages)
    with contextlib.ExitStack() as stack:
        alone, busy = bench.build(name), bench.build(name)
        with bench.judging(busy, f"{clients} idle clients"):
            for peer in (alone, busy):
                stack.enter_context(peer.server)
                measure(peer, scenario, count)
            before = memory(busy.server.pids())
            connected = stack.enter_context(idle_clients(busy.server.address, clients))
            for round_ in range(1, amount.rounds + 1):
                progress(f"{clients} idle clients of {name}: round {round_} of {amount.rounds}")
                order = (alone, busy) if round_ % 2 else (busy, alone)
                runs = {peer is busy: measure(peer, scenario, count, round_) for peer in order}
                after = memory(busy.server.pids())
                bench.results.idle.append(
                    Idle(
                        round=round_,
                        peer=name,
                        scenario=scenario.name,
                        clients=clients,
                        rate_without=runs[False].rate,
                        rate_with=runs[True].rate,
                        cpu_without=runs[False].server_us,
                        cpu_with=runs[True].server_us,
                        rss=after.rss,
                        pss=after.pss,
                        rss_before=before.rss,
                        pss_before=before.pss,
                    )
                )
            if lost := sum(not still_open(client) for client in connected):
                raise ServerError(f"{lost} of {clients} idle clients were hung up on")
    progress("")
