"""How much memory can a client, or all of them together, have the server take?

What is asserted is the most that was resident at any moment, against what was before; the same was
done once in small first, so that what is kept for good is there already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.accounting import Client, Gone, count, send, table_of, with_token
from tests.certificates import Authority
from tests.conftest import make_schema
from tests.peers import TLSClient
from tests.servers import (
    Gsmtpd,
    MariaDB,
    forget_peak,
    free_port,
    freeze,
    merge,
    mysql_store,
    peak,
    resident,
    tls_section,
    wait_for,
)

MIB = 2**20
MAX_SIZE = 65536  # octets, as configured below
LONG = 64 * MIB  # octets of a line that never ends
PIECE = 65536
LONG_LINE_COSTS = 2 * MIB
UNREAD_COSTS = 1 * MIB
UNREAD = 1_000_000  # replies to one client


class Site(NamedTuple):
    """A server with small limits, that has a port for each way to speak TLS."""

    server: Gsmtpd
    ca: Authority
    tls_address: tuple[str, int]

    @property
    def worker(self) -> int:
        (worker,) = self.server.workers
        return worker

    def plain(self) -> Client:
        return Client(self.server.address).hello()

    def secure(self) -> Client:
        return TLSClient(self.server.address, self.ca.client()).hello()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    tls_address = ("127.0.0.1", free_port())
    settings = {
        "tls": tls_section(*ca.pair("mx.example.com")),
        "listen": {
            "mx": {"tls": "starttls"},
            "mxs": {"address": f"127.0.0.1:{tls_address[1]}", "tls": "implicit"},
        },
        "limits": {"max_size": MAX_SIZE},
    }
    with Gsmtpd(settings) as server:
        send(server.address, *[with_token() for _ in range(50)])
        yield Site(server, ca, tls_address)


def cost(site: Site, what: str, do: Callable[[int], None], small: int, large: int) -> int:
    """Octets that `do` of something large takes, at the most."""
    do(small)
    before = resident(site.worker)
    forget_peak(site.worker)
    do(large)
    more = peak(site.worker) - before
    print(f"\n{what}: {more / MIB:.2f} MiB more")
    return more


# --- a line that does not end ---------------------------------------------------------------------


def pour(client: Client, octets: int) -> None:
    """Send so many octets without a line end, or until the server has had enough."""
    piece = b"x" * PIECE
    with contextlib.suppress(Gone, ssl.SSLError, OSError):
        for _ in range(octets // PIECE):
            client.send(piece)


def as_command(client: Client, octets: int) -> None:
    pour(client, octets)
    with contextlib.suppress(Gone, OSError):
        assert client.reply().text.startswith("500 5.5.2 ")
        assert client.closed()


def as_text(client: Client, octets: int) -> None:
    assert client.begin(with_token()).code == 354
    pour(client, octets)
    client.send(b"\r\n.\r\n")
    assert client.reply().text.startswith("552 5.3.4 ")


def as_header(client: Client, octets: int) -> None:
    assert client.begin(with_token()).code == 354
    client.send(b"Subject: ")
    pour(client, octets)
    client.send(b"\r\n\r\n.\r\n")
    assert client.reply().text.startswith("552 5.3.4 ")


def as_chunk(client: Client, octets: int) -> None:
    assert client.command("MAIL FROM:<a@example.org>").code == 250
    assert client.command("RCPT TO:<b@example.com>").code == 250
    client.send(b"BDAT %d LAST\r\n" % octets)
    pour(client, octets)
    assert client.reply().text.startswith("552 5.3.4 ")


def as_chunk_out_of_turn(client: Client, octets: int) -> None:
    client.send(b"BDAT %d\r\n" % octets)
    pour(client, octets)
    assert client.reply().text.startswith("503 5.5.1 ")


LINES = [as_command, as_text, as_header, as_chunk, as_chunk_out_of_turn]


@pytest.mark.parametrize("channel", ["plain", "secure"])
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.__name__)
def test_a_line_without_end(site: Site, line: Callable[[Client, int], None], channel: str) -> None:
    def do(octets: int) -> None:
        with getattr(site, channel)() as client:
            line(client, octets)

    more = cost(site, f"64 MiB {line.__name__}, {channel}", do, MIB, LONG)
    assert more <= LONG_LINE_COSTS


HANDSHAKES = {
    "one message": b"\x01\xff\xff\xff" + b"x" * 16380,
    "many messages": b"\x01\x00\x00\x00" * 4096,
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_tls_hello_without_end(site: Site, name: str) -> None:
    record = b"\x16\x03\x01\x40\x00" + HANDSHAKES[name]

    def do(octets: int) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(site.tls_address, 60) as client,
        ):
            for _ in range(octets // len(record)):
                client.sendall(record)

    more = cost(site, f"64 MiB of TLS hello in {name}", do, MIB, LONG)
    assert more <= LONG_LINE_COSTS


def test_a_message_in_the_smallest_pieces(site: Site) -> None:
    """Who sends octets one by one gets no more memory with them than others."""
    chunks = b"BDAT 2\r\nxx" * 100

    def do(octets: int) -> None:
        with site.plain() as client:
            assert client.command("MAIL FROM:<a@example.org>").code == 250
            assert client.command("RCPT TO:<b@example.com>").code == 250
            for _ in range(octets // 200):
                client.send(chunks)
                for _ in range(100):
                    assert client.reply().code == 250
            assert client.command("BDAT 0 LAST").code == 250

    more = cost(site, "60,000 octets in chunks of 2", do, 10_000, 60_000)
    assert more <= LONG_LINE_COSTS


# --- replies that nobody reads --------------------------------------------------------------------

DEAF = 10  # clients


def recipients() -> Iterator[bytes]:
    """Recipients over the limit are answered one by one, and are no error."""
    return chain([b"MAIL FROM:<a@example.org>\r\n"], repeat(b"RCPT TO:<b@example.com>\r\n" * 500))


def chunks() -> Iterator[bytes]:
    start = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n"
    return chain([start], repeat(b"BDAT 1\r\nx" * 1500))


@pytest.mark.parametrize("channel", ["plain", "secure"])
@pytest.mark.parametrize("commands", [recipients, chunks], ids=lambda each: each.__name__)
def test_clients_that_read_no_reply(
    site: Site, commands: Callable[[], Iterator[bytes]], channel: str
) -> None:
    """Each says commands that have a million replies, or as many as the server lets it."""

    def flood(_: int) -> tuple[Client, int]:
        client: Client = getattr(site, channel)()
        client.socket.settimeout(1)
        sent = 0
        with contextlib.suppress(OSError):
            for some in islice(commands(), UNREAD // 500):
                client.send(some)
                sent += len(some)
        return client, sent

    def do(number: int) -> None:
        with ThreadPoolExecutor(number) as pool, contextlib.ExitStack() as stack:
            for client, sent in pool.map(flood, range(number)):
                stack.callback(client.close)
                assert sent > PIECE

    more = cost(site, f"{DEAF} x unread replies to {commands.__name__}, {channel}", do, 1, DEAF)
    assert more <= DEAF * UNREAD_COSTS


# --- all of them together -------------------------------------------------------------------------

MAX_MEMORY = 16 * MIB  # as configured below
SENDERS = 48  # clients that send 1 MiB each
LINE = b"x" * 1022 + b"\r\n"


def begin(server: Gsmtpd, way: str) -> Client:
    """A client that is about to send a message of 1 MiB and one octet."""
    client = Client(server.address).hello()
    if way == "data":
        assert client.begin(with_token()).code == 354
    else:
        assert client.command("MAIL FROM:<a@example.org>").code == 250
        assert client.command("RCPT TO:<b@example.com>").code == 250
        client.send(b"BDAT %d LAST\r\n" % (MIB + 1))
    return client


def until_read(server: Gsmtpd, client: Client) -> None:
    """Wait until the server has read all that `client` has sent."""
    ports = (server.port, client.socket.getsockname()[1])

    def is_read() -> bool:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            local, remote, _, queues = line.split()[1:5]  # see proc_net_tcp in the kernel's docs
            if (int(local[9:], 16), int(remote[9:], 16)) == ports:
                return int(queues[9:], 16) == 0
        raise AssertionError("the server has closed the connection")

    wait_for(is_read)


@pytest.mark.parametrize("way", ["data", "chunks"])
def test_many_big_messages_at_once(way: str) -> None:
    settings = {"limits": {"max_memory": "16M", "max_size": "4M"}}
    with Gsmtpd(settings) as server, contextlib.ExitStack() as stack:
        (worker,) = server.workers
        send(server.address, with_token(3 * MIB), with_token())
        before = resident(worker)
        forget_peak(worker)
        clients = [stack.enter_context(begin(server, way)) for _ in range(SENDERS)]
        for client in clients:
            client.send(LINE * (MIB // len(LINE)))
            until_read(server, client)
        # The largest messages make room: nobody keeps others out by holding what he has sent.
        late = stack.enter_context(Client(server.address)).hello()
        assert late.deliver(with_token()).code == 250
        assert server.status()["overload"] == ["max_memory"]
        assert "max_memory" in server.ctl("status")
        more = peak(worker) - before
        print(f"\n{SENDERS} MiB in {way}, max_memory = 16M: {more / MIB:.1f} MiB more")
        for client in clients:
            client.send(b"\r\n.\r\n" if way == "data" else b"x")
        codes = [client.reply().text[:10] for client in clients]
        assert set(codes) == {"250 2.0.0 ", "452 4.3.1 "}
        assert 12 <= codes.count("250 2.0.0 ") <= 16
        # Now there is room, in the same sessions.
        for client in (late, *clients):
            assert client.deliver(with_token()).code == 250
        assert more <= 2 * MAX_MEMORY
        assert count(table_of(server)) == 2 + codes.count("250 2.0.0 ") + len(clients) + 2
        wait_for(lambda: server.status()["overload"] == [])
        log = server.log.read_text().splitlines()
        told = [line for line in log if "max_memory" in line]
        assert len(told) == 2, told


def test_what_waits_for_the_store_counts_and_stays() -> None:
    """Where that alone fills the memory there is nothing to drop, and MAIL hears 452."""
    limits = {"max_memory": "1M", "max_size": "64K"}
    with MariaDB() as database:
        make_schema(database, "mail")
        settings = merge(mysql_store(database, "mail"), {"limits": limits})
        with Gsmtpd(settings) as server, contextlib.ExitStack() as stack:
            assert send(server.address, with_token())[0].code == 250
            clients = [stack.enter_context(Client(server.address)).hello() for _ in range(24)]
            late = stack.enter_context(Client(server.address)).hello()
            freeze(database.pid)
            try:
                for client in clients:
                    if client.begin(with_token()).code == 354:
                        client.send(LINE * 60 + b".\r\n")
                wait_for(lambda: server.status()["overload"] == ["max_memory"])
                said = late.command("MAIL FROM:<a@example.org>").text
                assert said.startswith("452 4.3.1 ")
            finally:
                os.kill(database.pid, signal.SIGCONT)
            wait_for(lambda: server.status()["overload"] == [], 30)
            wait_for(lambda: late.deliver(with_token()).code == 250, 30)


def test_what_large_messages_took_is_given_back() -> None:
    """glibc keeps what is free between two blocks that are not; that is most of it."""
    often = "import gsmtpd.heap; gsmtpd.heap.TRIM_EVERY = 0.5"
    with Gsmtpd({"limits": {"max_size": "4M"}}, before=often) as server:
        (worker,) = server.workers
        send(server.address, *[with_token() for _ in range(50)])
        before = resident(worker)
        forget_peak(worker)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(begin(server, "data")) for _ in range(SENDERS)]
            for client in clients:
                client.send(LINE * (MIB // len(LINE)))
            for client in clients:
                client.send(b".\r\n")
            for client in clients:
                assert client.reply().code == 250
        assert peak(worker) - before > SENDERS * MIB / 2
        wait_for(lambda: resident(worker) - before < 8 * MIB)
