"""How much memory can a client, or all of them together, have the server take?

What is asserted is the most that was resident at any moment, against what was before; the same was
done once in small first, so that what is kept for good is there already.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import NamedTuple

import pytest

from tests.accounting import Client, Gone, count, send, table_of, with_token
from tests.certificates import Authority
from tests.peers import TLSClient
from tests.servers import Gsmtpd, forget_peak, free_port, peak, resident, wait_for

MIB = 2**20
MAX_SIZE = 65536  # octets, as configured below
LONG = 64 * MIB  # octets of a line that never ends
PIECE = 65536
LONG_LINE_COSTS = 2 * MIB
UNREAD_COSTS = 1 * MIB
UNREAD = 1_000_000  # replies


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
        "tls": ca.pair("mx.example.com")._asdict(),
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


def recipients() -> Iterator[bytes]:
    """Recipients over the limit are answered one by one, and are no error."""
    return chain([b"MAIL FROM:<a@example.org>\r\n"], repeat(b"RCPT TO:<b@example.com>\r\n" * 1000))


def chunks() -> Iterator[bytes]:
    start = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n"
    return chain([start], repeat(b"BDAT 1\r\nx" * 1000))


@pytest.mark.parametrize("channel", ["plain", "secure"])
@pytest.mark.parametrize("commands", [recipients, chunks], ids=lambda each: each.__name__)
def test_a_client_that_reads_no_reply(
    site: Site, commands: Callable[[], Iterator[bytes]], channel: str
) -> None:
    def do(octets: int) -> None:
        with getattr(site, channel)() as client:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.socket.settimeout(2)
            sent = 0
            with contextlib.suppress(TimeoutError, Gone, OSError):
                for number, some in enumerate(commands()):
                    if number > octets:
                        break
                    client.send(some)
                    sent += len(some)
            assert sent > 0

    more = cost(site, f"unread replies to {commands.__name__}, {channel}", do, 50, UNREAD // 1000)
    assert more <= UNREAD_COSTS


# --- all of them together -------------------------------------------------------------------------

MAX_MEMORY = 16 * MIB  # as configured below
BIG = 4 * MIB
TRANSIENT = 6 * MIB  # what an allocator, a commit and what is sent at the moment may take beyond


def half_sent(server: Gsmtpd, way: str) -> Client:
    """A client that has sent 3 MiB of a message, or less where no more was wanted."""
    client = Client(server.address).hello()
    if way == "data":
        assert client.begin(with_token()).code == 354
    else:
        assert client.command("MAIL FROM:<a@example.org>").code == 250
        assert client.command("RCPT TO:<b@example.com>").code == 250
        client.send(b"BDAT %d LAST\r\n" % (3 * MIB + 2))
    line = b"x" * 1022 + b"\r\n"
    client.send(line * (3 * MIB // len(line)))
    return client


@pytest.mark.parametrize("way", ["data", "chunks"])
def test_many_big_messages_at_once(way: str) -> None:
    settings = {"limits": {"max_memory": "16M", "max_size": "4M"}}
    with Gsmtpd(settings) as server:
        (worker,) = server.workers
        send(server.address, with_token(3 * MIB), with_token())
        before = resident(worker)
        forget_peak(worker)
        clients: list[Client] = []
        for _ in range(12):
            late = Client(server.address).hello()
            full = late.command("MAIL FROM:<a@example.org>").code == 452
            late.close()
            if full:
                break
            clients.append(half_sent(server, way))
        more = peak(worker) - before
        print(f"\n{len(clients)} x 3 MiB, max_memory = 16M, {way}: {more / MIB:.1f} MiB more")
        with Client(server.address) as late:
            assert late.hello().command("MAIL FROM:<a@example.org>").text.startswith("452 4.3.1 ")
            assert late.command("NOOP").code == 250
        assert server.status()["overload"] == ["max_memory"]
        assert "max_memory" in server.ctl("status")
        codes = []
        for client in clients:
            client.send(b"x\r\n.\r\n" if way == "data" else b"\r\n")
            codes.append(client.reply().text[:9])
        assert set(codes) <= {"250 2.0.0", "452 4.3.1"}
        assert codes.count("452 4.3.1") >= 1
        # They may try again, in the same sessions: now there is room.
        for client in clients:
            assert client.deliver(with_token()).code == 250
            client.close()
        assert more <= MAX_MEMORY + TRANSIENT
        assert count(table_of(server)) == 2 + codes.count("250 2.0.0") + len(clients)
        wait_for(lambda: server.status()["overload"] == [], 10)
        log = server.log.read_text().splitlines()
        told = [line for line in log if "max_memory" in line]
        assert len(told) == 2, told
