"""Do clients that only ever say hello hold up those that have mail?"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.accounting import Address, Client, Reply, count, table_of, with_token
from tests.certificates import Authority
from tests.hellos import FFDHE8192, X25519, hello, records
from tests.peers import TLSClient
from tests.servers import Gsmtpd, free_port, tls_section

pytestmark = pytest.mark.alone
NAME = "mx.example.com"
EACH = 300  # connections of each kind
WITHIN = 5.0  # seconds, which a good client's 250 may take
FOR = 12.0  # seconds in which good clients come, one after the other


def captured(ca: Authority) -> bytes:
    """The hello of a program, which an attacker sends again and again."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, ThreadPoolExecutor(1) as executor:

        def shake_hands() -> None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(listener.getsockname(), 60) as link,
            ):
                ca.client().wrap_socket(link, server_hostname=NAME)

        client = executor.submit(shake_hands)
        connection, _ = listener.accept()
        with connection:
            octets = connection.recv(65536)
        client.result(60)
    return octets


class Flood:
    """Connections that each have sent their hello, and hear nothing; new ones for those closed."""

    def __init__(self, address: Address, hellos: Sequence[bytes]) -> None:
        self._address = address
        self._hellos = hellos
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self.sent = 0
        self._links = [self._connect() for _ in range(2 * EACH)]

    def _connect(self) -> socket.socket:
        link = socket.create_connection(self._address, 60)
        link.setblocking(False)
        return link

    def __enter__(self) -> Flood:
        # All are there before the first of them says something.
        for number in range(len(self._links)):
            self._say(number)
        self._thread.start()
        return self

    def _say(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._links[number].send(self._hellos[number % len(self._hellos)])
            self.sent += 1

    def _go_on(self) -> None:
        number = 0
        while not self._over.wait(0.005):
            number = (number + 1) % len(self._links)
            try:
                gone = self._links[number].recv(65536) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                self._links[number].close()
                with contextlib.suppress(OSError):
                    self._links[number] = self._connect()
                    self._say(number)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for link in self._links:
            link.close()


def deliver(server: Gsmtpd, ca: Authority, secure: bool) -> Reply:
    client = TLSClient(server.address, ca.client()) if secure else Client(server.address)
    with client:
        return client.hello().deliver(with_token())


@pytest.mark.parametrize("processes", [1, 2])
def test_hellos_that_cost_their_sender_nothing(
    tmp_path_factory: pytest.TempPathFactory, processes: int
) -> None:
    """600 at once, and then more and more: half of them with a share over a field of 8,192 bits."""
    ca = Authority(tmp_path_factory.mktemp("ca"))
    implicit = ("127.0.0.1", free_port())
    settings = {
        "server": {"processes": processes},
        "tls": tls_section(*ca.pair(NAME)),
        "listen": {
            "mx": {"tls": "starttls"},
            "mxs": {"address": f"127.0.0.1:{implicit[1]}", "tls": "implicit"},
        },
    }
    dear = records(hello([FFDHE8192, X25519], [FFDHE8192]))
    dearest = records(hello([FFDHE8192], [FFDHE8192]))
    good = captured(ca)
    with Gsmtpd(settings) as server:
        workers = server.workers
        took = []
        with Flood(implicit, [dear, good, dearest, good]) as flood:
            end = time.monotonic() + FOR
            while time.monotonic() < end:
                began = time.monotonic()
                assert deliver(server, ca, secure=len(took) % 2 == 1).code == 250
                took.append(time.monotonic() - began)
                time.sleep(0.2)
        print(f"\n{flood.sent} hellos; {len(took)} mails, the slowest took {max(took):.2f} s")
        assert count(table_of(server)) == len(took)
        assert len(took) >= 2
        assert max(took) < WITHIN
        assert server.workers == workers
        assert "no sign of life" not in server.log.read_text()
