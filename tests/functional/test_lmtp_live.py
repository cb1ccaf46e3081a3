"""Does each recipient of an LMTP message get a reply of its own, and a row if that is 250?"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.accounting import Address, Client, count, rows, table_of
from tests.certificates import Authority
from tests.servers import Gsmtpd, free_port, tls_section, wait_for


class LMTPClient(Client):
    """One that has said LHLO."""

    def __init__(self, server: Gsmtpd) -> None:
        super().__init__(server.address)
        assert self.reply().text == "220 mx.example.com LMTP gsmtpd"
        assert self.command("LHLO client.example").code == 250

    def begin_for(self, *recipients: str) -> list[int]:
        """Say MAIL and a RCPT for each; their codes."""
        assert self.command("MAIL FROM:<a@example.org>").code == 250
        return [self.command(f"RCPT TO:<{each}>").code for each in recipients]

    def message(self, text: bytes) -> None:
        """Say DATA and the message."""
        assert self.command("DATA").code == 354
        self.send(text + b".\r\n")


class LMTPOverTLS(Client):
    """One over TLS, which has not said LHLO there yet."""

    def __init__(self, address: Address, context: ssl.SSLContext, *, implicit: bool) -> None:
        super().__init__(address)
        if not implicit:
            assert self.reply().code == 220
            assert self.command("LHLO client.example").code == 250
            assert self.command("STARTTLS").code == 220
        self._file.close()
        self.socket = context.wrap_socket(self.socket, server_hostname="mx.example.com")
        self._file = self.socket.makefile("rb")
        if implicit:
            assert self.reply().text == "220 mx.example.com LMTP gsmtpd"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def server() -> Iterator[Gsmtpd]:
    with Gsmtpd({"listen": {"mx": {"protocol": "lmtp"}}}) as server:
        yield server


def test_a_reply_and_a_row_for_each(server: Gsmtpd) -> None:
    with LMTPClient(server) as client:
        said = client.begin_for("b@example.com", "b@example.net", "c@example.com")
        assert said == [250, 550, 250]
        client.message(b"Subject: x\r\n\r\ntext\r\n")
        ids = {client.reply().id for _ in range(2)}
        # No third one: the next reply is that of the next command.
        assert client.command("VRFY x").code == 252
    stored = rows(table_of(server))
    assert [row.recipient for row in stored] == ["b@example.com", "c@example.com"]
    assert {row.hash for row in stored} == ids
    assert b" with LMTP id " in stored[0].front
    assert {row.content for row in stored} == {b"Subject: x\r\n\r\ntext\r\n"}


def test_whose_mail_is_thrown_away_hears_250_as_well() -> None:
    settings = {
        "listen": {"mx": {"protocol": "lmtp"}},
        "recipients": {"accept": "b@example.com", "unknown": "discard"},
    }
    with Gsmtpd(settings) as server, LMTPClient(server) as client:
        assert client.begin_for("nobody@example.com", "b@example.com") == [250, 250]
        client.message(b"text\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
        assert client.begin_for("nobody@example.com", "none@example.com") == [250, 250]
        client.message(b"text\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
        assert client.command("VRFY x").code == 252
        assert [row.recipient for row in rows(table_of(server))] == ["b@example.com"]


def test_binary_content_in_chunks(server: Gsmtpd) -> None:
    content = bytes(range(256)) * 1000
    with LMTPClient(server) as client:
        assert client.command("MAIL FROM:<a@example.org> BODY=BINARYMIME").code == 250
        assert client.command("RCPT TO:<b@example.com>").code == 250
        assert client.command("RCPT TO:<c@example.com>").code == 250
        assert client.command("DATA").text.startswith("503 5.5.1 ")
        for start in range(0, len(content), 60_000):
            chunk = content[start : start + 60_000]
            client.send(b"BDAT %d\r\n" % len(chunk) + chunk)
            assert client.reply().text == f"250 2.0.0 {len(chunk)} octets received"
        client.send(b"BDAT 0 LAST\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
    digests = {row.content_hash for row in rows(table_of(server))}
    assert digests == {hashlib.sha256(content).hexdigest()}


def test_a_store_in_trouble_is_told_for_each() -> None:
    with Gsmtpd({"listen": {"mx": {"protocol": "lmtp"}}}) as server, LMTPClient(server) as client:
        table_of(server).query("ALTER TABLE new_mail RENAME TO elsewhere")
        assert client.begin_for("b@example.com", "c@example.com") == [250, 250]
        client.message(b"text\r\n")
        assert [client.reply().text[:9] for _ in range(2)] == ["451 4.3.0"] * 2
        table_of(server).query("ALTER TABLE elsewhere RENAME TO new_mail")
        assert client.begin_for("b@example.com") == [250]
        client.message(b"text\r\n")
        assert client.reply().code == 250


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize(("mail", "protocol"), [("", "LMTPS"), (" SMTPUTF8", "UTF8LMTPS")])
def test_with_tls(ca: Authority, tls: str, mail: str, protocol: str) -> None:
    address = ("127.0.0.1", free_port())
    listener = {"address": f"127.0.0.1:{address[1]}", "protocol": "lmtp", "tls": tls}
    settings = {"tls": tls_section(*ca.pair("mx.example.com")), "listen": {"inside": listener}}
    with Gsmtpd(settings) as server:
        with LMTPOverTLS(address, ca.client(), implicit=tls == "implicit") as client:
            assert client.command("LHLO client.example").code == 250
            assert client.command(f"MAIL FROM:<a@example.org>{mail}").code == 250
            assert client.command("RCPT TO:<b@example.com>").code == 250
            client.send(b"BDAT 6 LAST\r\ntext\r\n")
            assert client.reply().code == 250
        (row,) = rows(table_of(server))
    assert f" with {protocol} (TLSv1.3:".encode() in row.front


# --- a server that stops --------------------------------------------------------------------------


def left(server: Gsmtpd) -> bool:
    """Whether its worker knows that it is to stop: nobody listens any more."""
    try:
        socket.create_connection(server.address, 10).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_the_last_chunk_is_taken_while_the_server_stops(server: Gsmtpd) -> None:
    with LMTPClient(server) as client:
        assert client.begin_for("b@example.com", "c@example.com") == [250, 250]
        client.send(b"BDAT 6 LAST\r\nte")
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: left(server))
        client.send(b"xt\r\n")
        assert [client.reply().code for _ in range(2)] == [250, 250]
        assert client.command("NOOP").text.startswith("421 4.3.2 ")
        assert client.closed()
    assert count(table_of(server)) == 2


def test_a_message_whose_chunks_are_not_all_there_is_not_stored(server: Gsmtpd) -> None:
    with LMTPClient(server) as client:
        assert client.begin_for("b@example.com") == [250]
        client.send(b"BDAT 2\r\nte")
        assert client.reply().code == 250
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: left(server))
        client.send(b"BDAT 4 LAST\r\nxt\r\n")
        assert client.reply().text.startswith("421 4.3.2 ")
        assert client.closed()
    assert count(table_of(server)) == 0
