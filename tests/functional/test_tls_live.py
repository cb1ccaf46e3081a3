"""Is nothing believed behind TLS that was said in the clear, and do bad handshakes end well?"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.accounting import Address, Client, count, table_of, with_token
from tests.certificates import Authority
from tests.peers import TLSClient
from tests.servers import Gsmtpd, environment, free_port, tls_section, wait_for

NAME = "mx.example.com"
RESET = struct.pack("ii", 1, 0)  # linger for no time, see socket(7)


class Site(NamedTuple):
    """A server with a listener of each kind, and who signed its certificate."""

    server: Gsmtpd
    ca: Authority
    implicit: Address
    required: Address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    implicit, required = (("127.0.0.1", free_port()) for _ in range(2))
    settings = {
        "tls": tls_section(*ca.pair(NAME)),
        "listen": {
            "mx": {"tls": "starttls"},
            "mxs": {"address": f"127.0.0.1:{implicit[1]}", "tls": "implicit"},
            "strict": {"address": f"127.0.0.1:{required[1]}", "tls": "required"},
        },
    }
    with Gsmtpd(settings) as server:
        yield Site(server, ca, implicit, required)


def starttls(address: Address) -> socket.socket:
    """A client's socket, in the clear, behind the 220 to STARTTLS."""
    client = Client(address).hello()
    assert client.command("STARTTLS").text == "220 2.0.0 Ready to start TLS"
    return client.socket


def said_until_closed(link: socket.socket) -> bytes:
    """All that comes; a reset is an end as well."""
    said = b""
    try:
        while data := link.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said


# --- what was said before -------------------------------------------------------------------------


def test_what_was_said_before_is_forgotten(site: Site) -> None:
    with TLSClient(site.server.address, site.ca.client()) as client:
        assert client.command("MAIL FROM:<a@example.org>").text.startswith("503 5.5.1 ")
        client.hello()
        assert client.command("STARTTLS").text.startswith("503 5.5.1 ")
        assert client.deliver(with_token()).code == 250


def test_what_stands_behind_starttls_is_never_executed(site: Site) -> None:
    stored = count(table_of(site.server))
    for behind in (
        b"EHLO x\r\nMAIL FROM:<forged@example.net>\r\nRCPT TO:<b@example.com>\r\n",
        b"BDAT 0 LAST\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\n",
    ):
        with Client(site.server.address).hello() as client:
            client.send(b"STARTTLS\r\n" + behind)
            assert client.reply().text.startswith("554 5.5.0 ")
            assert client.closed()
    assert count(table_of(site.server)) == stored


def test_what_comes_in_the_clear_behind_220_is_never_executed(site: Site) -> None:
    stored = count(table_of(site.server))
    with starttls(site.server.address) as link:
        link.sendall(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nBDAT 0 LAST\r\n")
        assert not re.search(rb"^2", said_until_closed(link), re.MULTILINE)
    assert count(table_of(site.server)) == stored


def test_where_tls_is_required_no_mail_comes_without(site: Site) -> None:
    with Client(site.required).hello() as client:
        for command in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "RSET"):
            assert client.command(command).text.startswith("530 5.7.0 ")
        client.send(b"BDAT 6 LAST\r\nQUIT\r\n")
        assert client.reply().text.startswith("503 5.5.1 ")
        assert client.command("NOOP").code == 250
    with TLSClient(site.required, site.ca.client()) as secure:
        assert secure.hello().deliver(with_token()).code == 250


def test_who_leaves_behind_a_pipelined_starttls_leaves_no_fault(site: Site) -> None:
    """The 220 cannot be sent then: whatever comes next is of a connection that is closed."""
    for _ in range(8):
        clients = [Client(site.server.address) for _ in range(60)]
        for number, client in enumerate(clients):
            assert client.reply().code == 220
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            # More commands than are carried out at a time, and STARTTLS behind the pause.
            client.send(b"EHLO x\r\n" + b"NOOP\r\n" * (12 + number) + b"STARTTLS\r\n")
        for client in clients:
            client.close()
    wait_for(lambda: site.server.status()["clients"] == 0)
    assert "fault" not in site.server.log.read_text()


# --- the handshake --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_handshake_octet_by_octet(site: Site, implicit: bool, version: ssl.TLSVersion) -> None:
    link = socket.create_connection(site.implicit, 60) if implicit else starttls(site.required)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = site.ca.client(version, version).wrap_bio(incoming, outgoing, server_hostname=NAME)
    with link:
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            for octet in outgoing.read():
                link.sendall(bytes([octet]))
            if not done:
                incoming.write(link.recv(65536))
        if not implicit:
            tls.write(b"NOOP\r\n")
            for octet in outgoing.read():
                link.sendall(bytes([octet]))
        said = b""
        while not said:
            try:
                said = tls.read()
            except ssl.SSLWantReadError:
                incoming.write(link.recv(65536))
        assert said.startswith(b"220 " if implicit else b"250 ")


def test_a_burst_right_behind_the_handshake(site: Site) -> None:
    """In the segment that ends it, as TLS 1.3 lets a client do (RFC 8446 section 2)."""
    for link, greeted in (
        (starttls(site.server.address), True),
        (socket.create_connection(site.implicit, 60), False),
    ):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = site.ca.client().wrap_bio(incoming, outgoing, server_hostname=NAME)
        with link:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    link.sendall(outgoing.read())
                    incoming.write(link.recv(65536))
            tls.write(b"EHLO x\r\nMAIL FROM:<>\r\nQUIT\r\n")
            link.sendall(outgoing.read())
            incoming.write(said_until_closed(link))
            incoming.write_eof()
            said = b""
            while data := tls.read():
                said += data
        if greeted:
            assert said.startswith(b"250-mx.example.com\r\n")
            assert said.endswith(b"250 2.1.0 Sender ok\r\n221 2.0.0 Bye\r\n")
        else:
            assert said.startswith(b"554 5.5.0 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"EHLO client.example\r\n",
        b"\x16\x03\x01\x00\x04junk",
        b"\x16\x03\x01\xff\xff",
        b"\x80\x2e\x01\x03\x01",
        b"GET / HTTP/1.1\r\nHost: mx.example.com\r\n\r\n",
        os.urandom(300),
    ],
)
def test_what_is_no_handshake_is_dropped_and_logged(site: Site, sent: bytes) -> None:
    before = site.server.log.read_text().count('reason="TLS: ')
    with starttls(site.server.address) as link:
        link.sendall(sent)
        link.shutdown(socket.SHUT_WR)
        # An alert at most, and no reply.
        assert not re.match(rb"[2-5][0-9][0-9]", said_until_closed(link))
    if sent[:1] != b"\x16" or sent.endswith(b"junk"):
        wait_for(lambda: site.server.log.read_text().count('reason="TLS: ') > before)
    assert "fault" not in site.server.log.read_text()


@pytest.mark.parametrize("sent", [b"EHLO x\r\n", b"QUIT\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_plain_words_on_a_tls_port(site: Site, sent: bytes) -> None:
    with Client(site.implicit) as client:
        client.send(sent)
        assert client.reply().text.startswith("554 5.5.1 On this port TLS comes first")
        assert client.closed()


# --- the end --------------------------------------------------------------------------------------


def test_the_last_words_are_not_cut_off(site: Site) -> None:
    """close_notify stands behind them, or read() would raise SSLEOFError."""
    context = site.ca.client()
    for address, implicit in ((site.server.address, False), (site.implicit, True)):
        with TLSClient(address, context, implicit=implicit) as client:
            client.hello()
            client.socket.suppress_ragged_eofs = False
            client.send(b"QUIT\r\n")
            assert client.reply().text == "221 2.0.0 Bye"
            assert client.socket.recv(1) == b""


def test_the_log_says_how_it_came(site: Site) -> None:
    with TLSClient(site.implicit, site.ca.client(), implicit=True) as client:
        message_id = client.hello().deliver(with_token()).id
    with Client(site.server.address) as client:
        plain_id = client.hello().deliver(with_token()).id
    wait_for(lambda: plain_id in site.server.log.read_text())
    log = site.server.log.read_text().splitlines()
    (secure,) = (line for line in log if message_id in line)
    (plain,) = (line for line in log if plain_id in line)
    assert " tls=TLSv1.3:TLS_AES_256_GCM_SHA384" in secure
    assert " tls=no" in plain


def test_a_reload_switches_tls_on(site: Site) -> None:
    with Gsmtpd() as server:
        with Client(server.address).hello() as before:
            server.configure(
                {
                    "tls": tls_section(*site.ca.pair(NAME, file="other")),
                    "listen": {"mx": {"tls": "required"}},
                }
            )
            server.ctl("reload")
            wait_for(lambda: offers_tls(server))
            assert before.deliver(with_token()).code == 250
        with TLSClient(server.address, site.ca.client()) as client:
            assert client.hello().deliver(with_token()).code == 250


def offers_tls(server: Gsmtpd) -> bool:
    with Client(server.address) as client:
        assert client.reply().code == 220
        return "STARTTLS" in client.command("EHLO x").text


def test_a_stop_over_tls(tmp_path_factory: pytest.TempPathFactory) -> None:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    settings = {"tls": tls_section(*ca.pair(NAME)), "listen": {"mx": {"tls": "starttls"}}}
    with (
        Gsmtpd(settings) as server,
        starttls(server.address) as shaking_hands,
        TLSClient(server.address, ca.client()) as client,
    ):
        client.hello()
        os.kill(server.pid, signal.SIGTERM)
        assert client.reply().text.startswith("421 4.3.2 ")
        assert client.closed()
        # What could be said to this one would not be understood.
        assert said_until_closed(shaking_hands) == b""
        wait_for(lambda: not server.running)


# --- one process for each client ------------------------------------------------------------------


def test_under_inetd_the_first_listener_says_how_it_is_spoken(site: Site) -> None:
    """It is not bound, and the second one means nothing."""
    settings = {
        "tls": tls_section(*site.ca.pair(NAME, file="inetd")),
        "listen": {
            "mx": {"protocol": "lmtp", "tls": "starttls", "chunking": "no"},
            "other": {"address": f"127.0.0.1:{free_port()}", "xclient_from": "127.0.0.1"},
        },
    }
    never_started = Gsmtpd(settings)
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(never_started):
        program = [sys.executable, "-m", "gsmtpd", "--inetd", "-c", str(never_started.conf)]
        process = subprocess.Popen(program, stdin=theirs, stdout=theirs, env=environment())
        theirs.close()
        ours.settimeout(60)
        plain = ours.makefile("rb")
        assert plain.readline() == b"220 mx.example.com LMTP gsmtpd\r\n"
        ours.sendall(b"LHLO x\r\nSTARTTLS\r\n")
        said = b""
        while not said.startswith(b"220 "):
            said = plain.readline()
            assert b"CHUNKING" not in said
            assert b"XCLIENT" not in said
        with site.ca.client().wrap_socket(ours, server_hostname=NAME) as client:
            client.sendall(b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
            said = b""
            while not said.endswith(b"<CR><LF>.<CR><LF>\r\n"):
                said += client.recv(65536)
            client.sendall(b"text\r\n.\r\nQUIT\r\n")
            said = said_until_closed(client)
        assert said.startswith(b"250 2.0.0 OK: queued as ")
        assert process.wait(60) == 0
        assert table_of(never_started).query("SELECT is_tls FROM new_mail") == [(1,)]
