"""Is a client behind a proxy served as the client that it is: its limits, its policy, its logs?"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.accounting import Client, Gone, rows, table_of, with_token
from tests.certificates import Authority
from tests.servers import Gsmtpd, free_port, tls_section, wait_for

Header = Callable[[str], bytes]
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v1(ip: str) -> bytes:
    family, here = ("TCP6", "2001:db8::25") if ":" in ip else ("TCP4", "192.0.2.25")
    return f"PROXY {family} {ip} {here} 1025 25\r\n".encode()


def v2(ip: str) -> bytes:
    ports = struct.pack("!HH", 1025, 25)
    if ":" in ip:
        addresses = socket.inet_pton(socket.AF_INET6, ip) * 2 + ports
        return SIGNATURE + b"\x21\x21" + struct.pack("!H", len(addresses)) + addresses
    addresses = socket.inet_aton(ip) * 2 + ports
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(addresses)) + addresses


V2_LOCAL = SIGNATURE + b"\x20\x00\0\0"  # the proxy's own connection, to see whether we live
HEADERS = pytest.mark.parametrize("header", [v1, v2], ids=["v1", "v2"])


class Behind(Gsmtpd):
    """A server with one more listener, where proxies speak first. behind: its port."""

    def __init__(self, listener: Mapping[str, str], **sections: Any) -> None:
        self.behind = free_port()
        address = {"address": f"127.0.0.1:{self.behind}", "proxy_from": "127.0.0.1"}
        super().__init__(sections | {"listen": {"balanced": address | dict(listener)}})

    def client(self, header: bytes) -> Client:
        """A client whose proxy says `header`; it has read nothing yet."""
        client = Client(("127.0.0.1", self.behind))
        client.send(header)
        return client


@pytest.fixture(scope="module")
def server() -> Iterator[Behind]:
    settings = {
        "limits": {"max_clients_per_ip": 3},
        "clients": {"deny": "192.0.2.66"},
    }
    with Behind({"xclient_from": "192.0.2.99"}, **settings) as server:
        yield server


def mail_of(server: Behind, header: bytes) -> str:
    """The client's address in the row of a mail that came behind `header`."""
    with server.client(header) as client:
        row_id = client.hello().deliver(with_token()).id
    query = f"SELECT ip_addr FROM new_mail WHERE hash = '{row_id}'"
    ip: str = table_of(server).query(query)[0][0]
    return ip


@HEADERS
@pytest.mark.parametrize("ip", ["192.0.2.7", "2001:db8::7"])
def test_the_client_is_the_one_in_the_header(server: Behind, header: Header, ip: str) -> None:
    assert mail_of(server, header(ip)) == ip
    assert f"{ip}])".encode() in rows(table_of(server))[-1].front
    wait_for(lambda: f"client={ip} " in server.log.read_text())


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2_LOCAL])
def test_a_proxy_may_speak_for_itself(server: Behind, header: bytes) -> None:
    assert mail_of(server, header) == "127.0.0.1"


@HEADERS
def test_a_header_in_pieces(server: Behind, header: Header) -> None:
    with server.client(b"") as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in header("192.0.2.8"):
            client.send(bytes([octet]))
            time.sleep(0.002)
        assert client.hello().deliver(with_token()).code == 250


@HEADERS
def test_who_speaks_in_the_same_segment_spoke_too_soon(server: Behind, header: Header) -> None:
    with server.client(header("192.0.2.9") + b"EHLO client.example\r\n") as client:
        assert client.reply().text.startswith("554 5.5.0 ")
        assert client.closed()


@pytest.mark.parametrize(
    "said",
    [
        b"EHLO client.example\r\n",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP5 192.0.2.7 192.0.2.25 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.25 1 2" + b" " * 100 + b"\r\n",
        SIGNATURE + b"\x31\x11\0\0",
        SIGNATURE + b"\x21\x11\xff\xff",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_what_is_no_header_is_dropped_without_a_word(server: Behind, said: bytes) -> None:
    before = server.log.read_text().count('reason="PROXY protocol: ')
    with server.client(said) as client:
        assert client.closed()
    wait_for(lambda: server.log.read_text().count('reason="PROXY protocol: ') > before)


def test_silence_is_dropped_within_seconds(server: Behind) -> None:
    with server.client(b"PROXY TCP4 ") as slow, server.client(b"") as silent:
        assert slow.closed()
        assert silent.closed()
    said = 'reason="PROXY protocol: no header within 5 s"'
    wait_for(lambda: server.log.read_text().count(said) == 2)


def test_a_second_header_is_a_command(server: Behind) -> None:
    with server.client(v1("192.0.2.10")) as client:
        assert client.reply().code == 220
        assert client.command(v1("192.0.2.11").decode().strip()).text.startswith("550 5.7.1 ")
        assert client.closed()


@HEADERS
def test_a_client_that_is_denied(server: Behind, header: Header) -> None:
    before = refusals(server)
    with server.client(header("192.0.2.66")) as client:
        assert client.reply().text.startswith("554 5.7.1 ")
        assert client.closed()
    # One line of it, as for a client of our own.
    assert mail_of(server, header("192.0.2.67")) == "192.0.2.67"
    wait_for(lambda: "client=192.0.2.67 " in server.log.read_text())
    assert refusals(server) == before + 1


def refusals(server: Behind) -> int:
    """How many lines the mail log has of the client that is denied."""
    return server.log.read_text().count('result=closed client=192.0.2.66 reply="554 5.7.1 ')


def test_connections_are_counted_as_the_clients(server: Behind) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(server.client(v1("192.0.2.12"))).hello()
        with server.client(v1("192.0.2.12")) as late:
            assert late.reply().text == "421 4.7.0 Too many connections from your address"
            assert late.closed()
        # IPv6 by /64, and no other client, and not the proxy, is hindered.
        for host in ("1", "2", "3"):
            stack.enter_context(server.client(v2(f"2001:db8:0:1::{host}"))).hello()
        with server.client(v2("2001:db8:0:1:ffff::4")) as late:
            assert late.reply().text.startswith("421 4.7.0 ")
        stack.enter_context(server.client(v2("2001:db8:0:2::1"))).hello()
        stack.enter_context(server.client(v1("192.0.2.13"))).hello()
        assert server.status()["overload"] == ["max_clients_per_ip"]
        assert server.status()["crowded"] == 2
    # Those that have gone are counted no more.
    wait_for(lambda: server.status()["clients"] == 0)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(server.client(v1("192.0.2.12"))).hello()
    wait_for(lambda: server.status()["overload"] == [])


def test_whether_it_may_say_xclient_goes_by_the_client(server: Behind) -> None:
    for ip, may in (("192.0.2.99", True), ("192.0.2.98", False)):
        with server.client(v1(ip)) as client:
            assert client.reply().code == 220
            assert ("XCLIENT" in client.command("EHLO x").text) is may


def test_who_may_not_is_told() -> None:
    with Gsmtpd({"listen": {"mx": {"proxy_from": "192.0.2.1"}}}) as other:
        for header in (v1("192.0.2.7"), v2("192.0.2.7")):
            with Client(other.address) as client:
                client.send(header + b"\r\nQUIT\r\n")  # it comes before the greeting, or behind
                texts = []
                with suppress(Gone):
                    while True:
                        texts.append(client.reply().text)
                told = [text for text in texts if not text.startswith("221 ")]
                assert told[-1][:9] in ("554 5.5.0", "550 5.7.1", "500 5.5.2")


def test_a_header_before_tls(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    tls = tls_section(*ca.pair("mx.example.com"))
    with Behind({"tls": "implicit"}, tls=tls) as server:
        for header in (v1("192.0.2.7"), v2("192.0.2.7")):
            plain = socket.create_connection(("127.0.0.1", server.behind), 60)
            plain.sendall(header)
            with ca.client().wrap_socket(plain, server_hostname="mx.example.com") as client:
                assert client.recv(100).startswith(b"220 ")
                client.sendall(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\n")
                client.sendall(b"BDAT 0 LAST\r\nQUIT\r\n")
                said = b""
                while data := client.recv(65536):
                    said += data
            assert b"250 2.0.0 OK: queued as " in said
        stored = table_of(server).query("SELECT ip_addr, is_tls FROM new_mail")
        assert stored == [("192.0.2.7", 1)] * 2
