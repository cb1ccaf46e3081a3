"""Do 2,000 clients that waste time, each kind in its own way, cost anybody else theirs?"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.accounting import Address, Client, count, send, table_of, with_token
from tests.certificates import Authority
from tests.peers import TLSClient
from tests.servers import Gsmtpd, free_port, resident, tls_section, wait_for

pytestmark = pytest.mark.alone
CLIENTS = 2000
TIMEOUT = 20.0  # seconds, as configured below
HANDSHAKE, WINDOW, SEND_TIMEOUT = 15.0, 30.0, 30.0  # seconds, as they are fixed
SLACK = 30.0  # seconds that a busy machine may be late
DRIP = 0.9  # seconds between two octets of one client
GOOD = 5.0  # seconds in which a good client has its 250
ESTABLISHED = 1  # tcp_states.h


@dataclass
class Slow:
    """A slow client. drips: what it sends octet by octet. since: when it began to be slow."""

    kind: str
    socket: socket.socket
    drips: Iterator[bytes]
    since: float
    gone: float = math.inf

    def go_on(self) -> None:
        """Send the next bit, and see whether the server has hung up."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.socket.send(next(self.drips))
        information = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        if information[0] != ESTABLISHED:
            self.gone = time.monotonic()

    @property
    def stayed(self) -> float:
        """For how many seconds it was borne."""
        return self.gone - self.since


def octets(text: bytes) -> Iterator[bytes]:
    """`text` octet by octet, and then again and again."""
    while True:
        for octet in text:
            yield bytes([octet])


def nothing() -> Iterator[bytes]:
    while True:
        yield b""


def recipients() -> Iterator[bytes]:
    """Those over the limit are answered one by one, and are no error."""
    while True:
        yield b"RCPT TO:<b@example.com>\r\n" * 2000


def greeted(address: Address) -> Client:
    return Client(address).hello()


def in_data(address: Address) -> Client:
    client = greeted(address)
    assert client.begin(with_token()).code == 354
    return client


def in_text(address: Address) -> Client:
    client = in_data(address)
    client.send(b"Subject: slow\r\n\r\n")
    return client


def in_chunk(address: Address) -> Client:
    client = greeted(address)
    assert client.command("MAIL FROM:<a@example.org>").code == 250
    assert client.command("RCPT TO:<b@example.com>").code == 250
    client.send(b"BDAT 100000 LAST\r\n")
    return client


def deaf(address: Address) -> Client:
    """One that is greeted, and reads nothing from then on."""
    client = Client.__new__(Client)
    client.socket = socket.socket()
    # The kernels shall not take the replies in its stead, which they do for the segments of lo.
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    client.socket.connect(address)
    assert client.socket.recv(200).startswith(b"220 ")
    client.socket.sendall(b"EHLO client.example\r\n" * 90 + b"MAIL FROM:<a@example.org>\r\n")
    return client


def client_hello() -> bytes:
    """How a TLS handshake begins."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="mx.example.com")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


HELLO = client_hello()
Kind = tuple[Callable[[Address], Client], Callable[[], Iterator[bytes]], float]
KINDS: dict[str, Kind] = {
    "idle": (greeted, nothing, TIMEOUT),
    "drips a command": (greeted, lambda: octets(b"NOOP " + b"x" * 400), TIMEOUT),
    "drips a header": (in_data, lambda: octets(b"X-Slow: " + b"x" * 400), WINDOW),
    "drips its text": (in_text, lambda: octets(b"slow\r\n"), WINDOW),
    "drips a chunk": (in_chunk, lambda: octets(b"slow\r\n"), WINDOW),
    "never reads": (deaf, recipients, SEND_TIMEOUT),
    "drips a TLS hello": (Client, lambda: octets(HELLO), HANDSHAKE),
}
"""How each kind begins, what it sends then, and how long it is borne."""


def be_good(address: Address, ca: Path, until: Path) -> list[float]:
    """Deliver mail, plain and over TLS in turn, until there is a file; seconds to each 250."""
    context = ssl.create_default_context(cafile=ca)
    taken = []
    while not until.exists():
        began = time.monotonic()
        with Client(address) as client:
            assert client.hello().deliver(with_token()).code == 250
        taken.append(time.monotonic() - began)
        began = time.monotonic()
        with TLSClient(address, context) as client:
            assert client.hello().deliver(with_token()).code == 250
        taken.append(time.monotonic() - began)
        time.sleep(0.2)
    return taken


@pytest.fixture
def _descriptors() -> Iterator[None]:
    """As many open files as the system gives: the clients are ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def begin(kind: str, address: Address) -> Slow:
    enter, drips, _ = KINDS[kind]
    client = enter(address)
    client.socket.setblocking(False)
    return Slow(kind, client.socket, drips(), time.monotonic())


@pytest.mark.usefixtures("_descriptors")
def test_slow_clients_take_nobodys_time_and_go(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    pair = ca.pair("mx.example.com")
    tls_port = free_port()
    server = Gsmtpd(
        {
            "tls": tls_section(*pair),
            "listen": {
                "mx": {"tls": "starttls"},
                "mxs": {"address": f"127.0.0.1:{tls_port}", "tls": "implicit"},
            },
            "limits": {"max_clients": CLIENTS + 100, "timeout": f"{TIMEOUT:g}s"},
        }
    )
    with server, contextlib.ExitStack() as stack:
        (worker,) = server.workers
        send(server.address, *[with_token() for _ in range(20)])
        before = resident(worker)
        # In a process of its own: this one will be busy.
        good = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        delivering = good.submit(be_good, server.address, ca.file, tmp_path / "enough")
        stack.callback((tmp_path / "enough").touch)
        kinds = [list(KINDS)[number % len(KINDS)] for number in range(CLIENTS)]
        ports = {"drips a TLS hello": ("127.0.0.1", tls_port)}
        with ThreadPoolExecutor(16) as pool:
            horde = list(pool.map(lambda k: begin(k, ports.get(k, server.address)), kinds))
        most = 0
        while waiting := [client for client in horde if client.gone == math.inf]:
            round_began = time.monotonic()
            for client in waiting:
                client.go_on()
            most = max(most, resident(worker))
            stays = max(round_began - client.since for client in waiting)
            assert stays < WINDOW + SLACK, {client.kind for client in waiting}
            time.sleep(max(0.0, round_began + DRIP - time.monotonic()))
        (tmp_path / "enough").touch()
        times = delivering.result(60)
        for client in horde:
            client.socket.close()
        print(f"\n{CLIENTS} slow clients: {(most - before) / 2**20:.1f} MiB more")
        print(f"a good client: {len(times)} mails, the slowest in {max(times):.2f} s")
        for kind, (_, _, limit) in KINDS.items():
            stayed = [client.stayed for client in horde if client.kind == kind]
            print(f"{kind}: {len(stayed)} gone after {min(stayed):.1f} to {max(stayed):.1f} s")
            assert limit - 1 < min(stayed)
            assert max(stayed) < limit + SLACK
        assert len(times) > 20
        assert max(times) < GOOD
        assert most - before < 100 * 2**20
        assert count(table_of(server)) == 20 + len(times)
        wait_for(lambda: server.status()["clients"] == 0)
        log = server.log.read_text()
        assert "fault" not in log
