"""Is the client that XCLIENT names treated as if it had come itself?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.accounting import Client, rows, table_of, with_token
from tests.certificates import Authority
from tests.peers import TLSClient
from tests.servers import Gsmtpd, tls_section, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[Gsmtpd]:
    settings = {
        "listen": {"mx": {"xclient_from": "127.0.0.1"}},
        "limits": {"max_clients_per_ip": 2},
        "clients": {"deny": "192.0.2.66", "allow": "127.0.0.1"},
    }
    with Gsmtpd(settings) as server:
        yield server


def speak_for(server: Gsmtpd, attributes: str) -> Client:
    """A proxy that has said EHLO and XCLIENT, and heard a greeting."""
    client = Client(server.address).hello()
    assert client.command(f"XCLIENT {attributes}").text == "220 mx.example.com ESMTP gsmtpd"
    return client


def deliver(client: Client) -> None:
    """Say EHLO, for which the greeting was heard already, and send a mail."""
    assert client.command("EHLO proxy.example").code == 250
    assert client.deliver(with_token()).code == 250


@pytest.mark.parametrize(
    ("attributes", "ip", "front"),
    [
        ("ADDR=192.0.2.7", "192.0.2.7", "from proxy.example (unknown [192.0.2.7])\r\n"),
        ("ADDR=IPV6:2001:db8::7", "2001:db8::7", "from proxy.example (unknown [IPv6:2001:db8::7])"),
        (
            "NAME=client.example.org ADDR=192.0.2.7 HELO=told PROTO=SMTP",
            "192.0.2.7",
            "from told (client.example.org [192.0.2.7])\r\n\tby mx.example.com with SMTP id ",
        ),
        ("ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]", "127.0.0.1", "from proxy.example (unknown ["),
    ],
)
def test_the_client_is_the_one_that_was_named(
    server: Gsmtpd, attributes: str, ip: str, front: str
) -> None:
    with speak_for(server, attributes) as client:
        deliver(client)
    row = rows(table_of(server))[-1]
    assert f"\r\nReceived: {front}".encode() in row.front
    assert table_of(server).query("SELECT ip_addr FROM new_mail ORDER BY mail_id DESC LIMIT 1") == [
        (ip,)
    ]


def test_one_client_after_the_other(server: Gsmtpd) -> None:
    before = len(rows(table_of(server)))
    with speak_for(server, "ADDR=192.0.2.20 HELO=first") as client:
        deliver(client)
        assert client.command("XCLIENT ADDR=192.0.2.21 HELO=second").code == 220
        deliver(client)
    fronts = [row.front for row in rows(table_of(server))[before:]]
    assert b"from first (unknown [192.0.2.20])" in fronts[0]
    assert b"from second (unknown [192.0.2.21])" in fronts[1]

    def clients() -> list[str]:
        log = [shlex.split(line) for line in server.log.read_text().splitlines()]
        return [field for line in log for field in line if field.startswith("client=192.0.2.2")]

    wait_for(lambda: clients() == ["client=192.0.2.20", "client=192.0.2.21"])


def test_a_client_that_is_denied(server: Gsmtpd) -> None:
    with Client(server.address).hello() as client:
        assert client.command("XCLIENT ADDR=192.0.2.66").text.startswith("554 5.7.1 ")
        assert client.closed()
    with speak_for(server, "ADDR=192.0.2.67") as client:
        deliver(client)
    wait_for(lambda: "client=192.0.2.67 " in server.log.read_text())
    denied = [line for line in server.log.read_text().splitlines() if "client=192.0.2.66 " in line]
    assert len(denied) == 1


def test_connections_are_counted_as_the_clients(server: Gsmtpd) -> None:
    with ExitStack() as stack:
        one, other = (stack.enter_context(speak_for(server, "ADDR=192.0.2.30")) for _ in range(2))
        with Client(server.address).hello() as late:
            assert late.command("XCLIENT ADDR=192.0.2.30").text.startswith("421 4.7.0 ")
            assert late.closed()
        # Who speaks for somebody else now has left room.
        assert one.command("XCLIENT ADDR=192.0.2.31").code == 220
        stack.enter_context(speak_for(server, "ADDR=192.0.2.30"))
        deliver(other)
    wait_for(lambda: server.status()["clients"] == 0)
    with speak_for(server, "ADDR=192.0.2.30"), speak_for(server, "ADDR=192.0.2.30"):
        pass


def test_who_may_not_is_not_told_of_it() -> None:
    with Gsmtpd({"listen": {"mx": {"xclient_from": "192.0.2.1"}}}) as server:
        with Client(server.address) as client:
            assert client.reply().code == 220
            assert "XCLIENT" not in client.command("EHLO x").text
            assert client.command("XCLIENT ADDR=192.0.2.7").text.startswith("550 5.7.1 ")
            assert client.closed()
        wait_for(lambda: 'reply="550 5.7.1 ' in server.log.read_text())


def test_it_outlives_starttls(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    settings = {
        "tls": tls_section(*ca.pair("mx.example.com")),
        "listen": {"mx": {"tls": "starttls", "xclient_from": "127.0.0.1"}},
    }
    with Gsmtpd(settings) as server:
        with TLSClient(server.address, ca.client()) as client:
            client.hello()
            assert client.command("XCLIENT ADDR=192.0.2.7 HELO=told").code == 220
            deliver(client)
        (row,) = rows(table_of(server))
        assert b"from told (unknown [192.0.2.7])" in row.front
        assert b" with ESMTPS (TLSv1.3:" in row.front
