"""Does a running server say what the dialogs expect?"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from gsmtpd.server.certificates import Pair
from tests.certificates import Authority
from tests.dialogs import Dialog, Options, load, names, reply_lines
from tests.servers import Gsmtpd, freeze, tls_section

SECONDS = 20.0  # for any one reply
QUIET = 0.05  # seconds without a reply that count as silence
GREETING = b"220 mx.example.com ESMTP gsmtpd\r\n"


class Servers:
    """A running server for each set of options, started when first asked for.

    pair: its certificate.
    """

    def __init__(self, stack: ExitStack, pair: Pair) -> None:
        self._stack = stack
        self._pair = pair
        self._running: dict[Options, Gsmtpd] = {}

    def address(self, options: Options) -> tuple[str, int]:
        """Where the server with `options` listens."""
        if options not in self._running:
            server = Gsmtpd(settings(options, self._pair))
            self._running[options] = self._stack.enter_context(server)
        return self._running[options].address


def settings(options: Options, pair: Pair) -> dict[str, Any]:
    """The configuration that `options` stand for."""
    chosen = options._asdict()
    accept, xclient = chosen.pop("accept"), chosen.pop("xclient")
    listener = {key: chosen.pop(key) for key in ("protocol", "tls", "chunking")}
    if xclient == "yes":
        listener["xclient_from"] = "127.0.0.1"
    made = {"listen": {"mx": listener}, "domains": {"accept": accept}, "limits": chosen}
    certificate = {} if options.tls == "off" else {"tls": tls_section(*pair)}
    return made | {"store": {"backend": "null"}} | certificate


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    pair = Authority(tmp_path_factory.mktemp("ca")).pair("mx.example.com")
    with ExitStack() as stack:
        yield Servers(stack, pair)


@pytest.fixture(scope="module")
def address(servers: Servers) -> tuple[str, int]:
    """The server without options."""
    return servers.address(Options())


class LiveClient:
    """A client of a running server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, SECONDS)
        self._read = b""

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def lines(self, count: int) -> list[str]:
        """The next `count` lines of the server; fewer where it closes before."""
        while self._read.count(b"\r\n") < count:
            data = self.socket.recv(65536)
            if not data:
                break
            self._read += data
        lines = self._read.split(b"\r\n")
        self._read = b"\r\n".join(lines[count:])
        return [line.decode("ascii") for line in lines[:count] if line]

    def silent(self) -> bool:
        """Whether nothing comes for a moment."""
        self.socket.settimeout(QUIET)
        try:
            self._read += self.socket.recv(65536)
        except TimeoutError:
            return not self._read
        finally:
            self.socket.settimeout(SECONDS)
        return False

    def rest(self) -> bytes:
        """All that the server says until it closes."""
        said = self._read
        while data := self.socket.recv(65536):
            said += data
        return said


def converse(dialog: Dialog, client: LiveClient) -> None:
    """Hold `dialog`; raises DialogError at a difference."""
    for turn in dialog.turns:
        client.socket.sendall(turn.sent)
        if turn.expected:
            dialog.check(turn, client.lines(len(turn.expected)))
        else:
            assert client.silent(), (
                f"{dialog.name}: the server spoke although <nothing> stands there"
            )
    if not dialog.closed:
        client.socket.sendall(b"QUIT\r\n")
        assert client.rest() == b"221 2.0.0 Bye\r\n"
    else:
        assert client.rest() == b""


@pytest.mark.parametrize("name", names())
def test_dialog(servers: Servers, name: str) -> None:
    dialog = load(name)
    with closing(LiveClient(servers.address(dialog.options))) as client:
        converse(dialog, client)


def test_one_send_answers_a_whole_batch(address: tuple[str, int]) -> None:
    with closing(LiveClient(address)) as client:
        assert client.lines(1) == [GREETING.decode().strip()]
        client.socket.sendall(
            b"HELO c\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<u@example.com>\r\n" * 20 + b"DATA\r\n"
        )
        said = [*reply_lines(client.socket.recv(65536))]
    assert [line[:3] for line in said] == ["250"] * 22 + ["354"]


def test_what_was_sent_before_the_greeting_is_out_of_turn() -> None:
    with Gsmtpd({"store": {"backend": "null"}}) as server:
        workers = server.workers
        for pid in workers:
            freeze(pid)
        with closing(socket.create_connection(server.address, SECONDS)) as client:
            client.sendall(b"HELO client.example.org\r\n")
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            with closing(client.makefile("rb")) as replies:
                said = replies.readline()
        assert said.startswith(b"554 5.5.0 ")


def test_a_silent_client_is_told_and_closed() -> None:
    limits = {"timeout": "1s"}
    with (
        Gsmtpd({"store": {"backend": "null"}, "limits": limits}) as server,
        closing(LiveClient(server.address)) as client,
    ):
        said = client.rest()
    assert said == GREETING + b"421 4.4.2 Timed out waiting for you\r\n"


def test_a_server_that_stops_says_so_at_the_next_command() -> None:
    later = "import gsmtpd.server.engine; gsmtpd.server.engine.STOP_QUIET = 20.0"
    with (
        Gsmtpd({"store": {"backend": "null"}}, before=later) as server,
        closing(LiveClient(server.address)) as client,
    ):
        assert client.lines(1) == [GREETING.decode().strip()]
        os.kill(server.pid, signal.SIGTERM)
        began = time.monotonic()
        said = ["250 2.0.0 Ok"]
        while said == ["250 2.0.0 Ok"]:  # the signal is on its way
            time.sleep(0.02)
            client.socket.sendall(b"NOOP\r\n")
            said = client.lines(1)
        assert said == ["421 4.3.2 Shutting down: come back soon"]
        assert time.monotonic() - began < 15, "it was told as one that says nothing"
        assert client.rest() == b""


def test_a_fault_of_ours_is_4xx_and_costs_nobody_else() -> None:
    broken = "import gsmtpd.smtp.session as s; s._COMMANDS[b'VRFY'] = lambda *_: 1 / 0"
    with (
        Gsmtpd({"store": {"backend": "null"}}, before=broken) as server,
        closing(LiveClient(server.address)) as other,
        closing(LiveClient(server.address)) as client,
    ):
        assert client.lines(1) == other.lines(1) == [GREETING.decode().strip()]
        client.socket.sendall(b"HELO client.example.org\r\nVRFY u\r\nNOOP\r\n")
        assert client.rest().endswith(b"451 4.3.0 Internal error: try again later\r\n")
        other.socket.sendall(b"NOOP\r\n")
        assert other.lines(1) == ["250 2.0.0 Ok"]
        assert "ZeroDivisionError" in server.log.read_text()
