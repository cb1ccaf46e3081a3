"""How long is it from exec to the first greeting?"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence

from scripts.benchlib.results import Start
from scripts.benchlib.rounds import Bench
from scripts.benchlib.tables import progress
from tests.servers import START_SECONDS, MissingProgramError, Server, ServerError

LOOK_SECONDS = 0.001


def start_seconds(server: Server) -> float:
    """Start it, wait for the greeting, end it. Raises ServerError if it says nothing.

    `Server.start` looks only each 20 ms.
    """
    began = time.perf_counter()
    server.launch()
    try:
        while not _greets(server.address):
            if not server.running or time.perf_counter() - began > START_SECONDS:
                raise server.error("was started and did not greet")
            time.sleep(LOOK_SECONDS)
        return time.perf_counter() - began
    finally:
        server.stop()


def _greets(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, 5) as client:
        return client.recv(512).startswith(b"220")
    return False


@contextlib.contextmanager
def _compiled() -> Iterator[None]:
    """Whatever is set here, Python keeps what it has compiled, beside the tree."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as kept:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = kept
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def measure_starts(bench: Bench, names: Sequence[str], rounds: int) -> None:
    """Several starts of each peer in turn, after one that is not counted: it compiles the modules.

    Packages and pip bring them compiled.
    """
    peers = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_compiled())
        for name in names:
            try:
                peers.append(bench.build(name))
            except MissingProgramError as error:
                bench.results.skipped[name] = str(error)
                continue
            stack.callback(peers[-1].server.close)
        for round_ in range(rounds + 1):
            progress(f"starts: round {round_} of {rounds}")
            for peer in [*peers]:
                try:
                    seconds = start_seconds(peer.server)
                except ServerError as error:
                    bench.results.failed[peer.name] = f"start: {error}"
                    peers.remove(peer)
                    continue
                bench.results.starts += [Start(round_, peer.name, seconds)] * bool(round_)
    progress("")
