"""Do OpenSSL, curl and HAProxy find what they expect, and does a certificate change unnoticed?"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.accounting import Address, Client, Gone, rows, table_of, with_token
from tests.certificates import Authority
from tests.peers import HAProxy, SClient, TLSClient, curl, handshake
from tests.servers import Gsmtpd, free_port, tls_section, wait_for

NAME, OTHER, WILD = "mx.example.com", "mail.example.org", "*.example.net"
MAIL = b"Subject: from a peer\r\n\r\nHello\r\n.dots\r\n"


class Site(NamedTuple):
    """A server with three certificates and a listener of each kind."""

    server: Gsmtpd
    ca: Authority
    tls: Address
    lmtp: Address
    proxied: Address
    proxied_tls: Address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    tls, lmtp, proxied, both = (("127.0.0.1", free_port()) for _ in range(4))

    def listener(address: Address, **keys: str) -> dict[str, str]:
        return {"address": f"{address[0]}:{address[1]}"} | keys

    settings = {
        "server": {"processes": 2},
        "tls": tls_section(*ca.pair(NAME, "127.0.0.1", kind="rsa"))
        | {OTHER: tls_section(*ca.pair(OTHER)), WILD: tls_section(*ca.pair(WILD))},
        "listen": {
            "mx": {"tls": "starttls"},
            "mxs": listener(tls, tls="implicit"),
            "inside": listener(lmtp, protocol="lmtp", tls="starttls"),
            "balanced": listener(proxied, proxy_from="127.0.0.1"),
            "both": listener(both, proxy_from="127.0.0.1", tls="implicit"),
        },
    }
    with Gsmtpd(settings) as server:
        yield Site(server, ca, tls, lmtp, proxied, both)


# --- OpenSSL --------------------------------------------------------------------------------------


def trusting(site: Site, *more: object) -> list[object]:
    return ["-CAfile", site.ca.file, "-verify_return_error", *more]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_mail_by_s_client(site: Site, version: str) -> None:
    where = ["-starttls", "smtp", "-servername", NAME, version]
    with SClient(site.server.address, *trusting(site, *where)) as client:
        assert client.command("MAIL FROM:<a@example.org>").startswith("503 5.5.1 ")
        assert client.command("EHLO client.example").startswith("250 ")
        assert client.command("MAIL FROM:<a@example.org>").startswith("250 ")
        assert client.command("RCPT TO:<b@example.com>").startswith("250 ")
        assert client.command("DATA").startswith("354 ")
        client.send(MAIL.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert client.reply().startswith("250 2.0.0 OK: queued as ")
        assert client.command("QUIT").startswith("221 ")
        assert client.reply() == ""
    assert rows(table_of(site.server))[-1].content == MAIL


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_starttls(site: Site, protocol: str) -> None:
    address = site.server.address if protocol == "smtp" else site.lmtp
    done = handshake(address, *trusting(site, "-starttls", protocol, "-servername", NAME))
    assert done.check().said.count("Verify return code: 0 (ok)") >= 1
    assert "Secure Renegotiation IS NOT supported" in done.said or "TLSv1.3" in done.said
    assert "Compression: NONE" in done.said


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_are_refused(site: Site, version: str) -> None:
    """Also by a client that would still take them."""
    done = handshake(site.tls, version, "-cipher", "ALL:@SECLEVEL=0")
    assert done.code != 0
    assert "Cipher is (NONE)" in done.said
    assert "alert protocol version" in done.said


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (NAME, NAME),
        (OTHER, OTHER),
        (OTHER.upper(), OTHER),
        ("a.example.net", WILD),
        ("a.b.example.net", NAME),
        ("example.net", NAME),
        ("unknown.example", NAME),
        (None, NAME),
    ],
)
def test_the_certificate_of_the_name_that_is_asked_for(
    site: Site, asked: str | None, shown: str
) -> None:
    name = ["-noservername"] if asked is None else ["-servername", asked]
    done = handshake(site.tls, *trusting(site, *name)).check()
    assert re.search(rf"subject=CN = {re.escape(shown)}\n", done.said), done.said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed(site: Site, version: str, tmp_path: Path) -> None:
    """In whichever of the two processes."""
    session = tmp_path / "session"
    where = trusting(site, "-starttls", "smtp", "-servername", OTHER, version)
    with SClient(site.server.address, *where, "-sess_out", session) as client:
        # With TLS 1.3 tickets come behind the handshake, with the first reply at the latest.
        assert client.command("NOOP").startswith("250 ")
        wait_for(lambda: session.exists() and session.stat().st_size > 0)
    for _ in range(6):
        done = handshake(site.server.address, *where, "-sess_in", session).check()
        assert "\nReused, TLS" in done.said


def test_renegotiation_is_refused(site: Site) -> None:
    """s_client renegotiates at a line with R, unless it is quiet."""
    done = handshake(site.tls, "-tls1_2", *trusting(site), stdin=b"R\nQUIT\r\n")
    assert "no renegotiation" in done.said


def test_s_client_says_goodbye_first(site: Site) -> None:
    with SClient(site.tls, *trusting(site, "-servername", NAME)) as client:
        assert client.reply().startswith("220 ")
    assert Client(site.server.address).hello().deliver(with_token()).code == 250


# --- curl -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_curl(site: Site, scheme: str) -> None:
    host, port = site.tls if scheme == "smtps" else site.server.address
    done = curl(
        f"{scheme}://{NAME}:{port}/client.example",
        MAIL,
        *("--resolve", f"{NAME}:{port}:{host}", "--ssl-reqd", "--cacert", site.ca.file),
        *("--mail-rcpt", "b@example.com", "--mail-rcpt", "c@example.com"),
    )
    done.check()
    assert "SSL certificate verify ok" in done.said
    stored = rows(table_of(site.server))[-2:]
    assert [row.recipient for row in stored] == ["b@example.com", "c@example.com"]
    assert {row.content for row in stored} == {MAIL}
    assert b" with ESMTPS (TLSv1.3:" in stored[0].front


def test_curl_does_not_take_a_certificate_of_another_name(site: Site) -> None:
    port = site.tls[1]
    done = curl(
        f"smtps://elsewhere.example:{port}/client.example",
        MAIL,
        *("--resolve", f"elsewhere.example:{port}:127.0.0.1", "--cacert", site.ca.file),
        *("--mail-rcpt", "b@example.com"),
    )
    assert done.code == 60  # CURLE_PEER_FAILED_VERIFICATION


# --- HAProxy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"])
def test_the_client_behind_haproxy(site: Site, how: str) -> None:
    with HAProxy(site.proxied, how) as balancer:
        there = socket.create_connection(balancer.address, 60, source_address=("127.0.0.5", 0))
        with there, there.makefile("rb") as lines:
            assert lines.readline().startswith(b"220 ")
            for line in (b"HELO client.example", b"MAIL FROM:<a@example.org>"):
                there.sendall(line + b"\r\n")
                assert lines.readline().startswith(b"250 ")
            there.sendall(b"RCPT TO:<b@example.com>\r\n")
            assert lines.readline().startswith(b"250 ")
            there.sendall(b"DATA\r\n")
            assert lines.readline().startswith(b"354 ")
            there.sendall(MAIL.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            assert lines.readline().startswith(b"250 ")
    query = "SELECT ip_addr FROM new_mail ORDER BY mail_id DESC LIMIT 1"
    assert table_of(site.server).query(query) == [("127.0.0.5",)]
    assert b"(unknown [127.0.0.5])" in rows(table_of(site.server))[-1].front


def test_tls_behind_haproxy(site: Site) -> None:
    """The header travels in the clear, in front of what TLS makes of the rest."""
    with HAProxy(site.proxied_tls, "send-proxy-v2") as balancer:
        port = balancer.port
        done = curl(
            f"smtps://{NAME}:{port}/client.example",
            MAIL,
            *("--resolve", f"{NAME}:{port}:127.0.0.1", "--cacert", site.ca.file),
            *("--interface", "127.0.0.6", "--mail-rcpt", "b@example.com"),
        )
        done.check()
    query = "SELECT ip_addr, is_tls FROM new_mail ORDER BY mail_id DESC LIMIT 1"
    assert table_of(site.server).query(query) == [("127.0.0.6", 1)]


def test_the_checks_of_haproxy(site: Site) -> None:
    """Its health checks say PROXY LOCAL or nothing, and hang up: that is no fault of a client."""
    before = len(site.server.log.read_text())
    how = "send-proxy-v2 check check-send-proxy inter 100ms"
    with HAProxy(site.proxied, how) as balancer:
        time.sleep(1)
        assert Client(balancer.address).hello().command("NOOP").code == 250
    assert "level=warning" not in site.server.log.read_text()[before:]
    assert "level=error" not in site.server.log.read_text()[before:]


# --- a new certificate ----------------------------------------------------------------------------


class Renewing(NamedTuple):
    """A server whose certificate is to be replaced, and who signs for it."""

    server: Gsmtpd
    ca: Authority

    def shown(self) -> int:
        """The serial number of the certificate that a new client is shown."""
        with TLSClient(self.server.address, self.ca.client()) as client:
            return serial(client)


def serial(client: TLSClient) -> int:
    shown = client.socket.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


@pytest.fixture
def renewing(tmp_path: Path) -> Iterator[Renewing]:
    ca = Authority(tmp_path)
    settings = {
        "server": {"processes": 2},
        "tls": tls_section(*ca.pair(NAME)),
        "listen": {"mx": {"tls": "starttls"}},
    }
    with Gsmtpd(settings) as server:
        yield Renewing(server, ca)


def test_a_new_certificate_is_shown_and_sessions_go_on(renewing: Renewing) -> None:
    server, ca = renewing
    with TLSClient(server.address, ca.client()) as client:
        client.hello()
        before = serial(client)
        assert renewing.shown() == before
        tls_section(*ca.pair(NAME))
        # For a moment old processes and new ones accept side by side.
        wait_for(lambda: before not in {renewing.shown() for _ in range(8)})
        assert client.deliver(with_token()).code == 250


def test_a_broken_certificate_is_complained_of_and_the_old_one_stays(renewing: Renewing) -> None:
    server, ca = renewing
    before = renewing.shown()
    file = ca.directory / f"{NAME}.pem"
    good = file.read_bytes()
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\nno such thing\n")
    wait_for(lambda: str(file) in server.log.read_text())
    time.sleep(2)
    complaints = [line for line in server.log.read_text().splitlines() if str(file) in line]
    assert all("level=error" in line or "level=warning" in line for line in complaints)
    assert 1 <= len(complaints) <= 2, "each process says it once"
    assert renewing.shown() == before
    file.write_bytes(good)
    tls_section(*ca.pair(NAME))
    wait_for(lambda: renewing.shown() != before)


def test_a_key_that_does_not_fit_is_no_certificate(renewing: Renewing) -> None:
    server, ca = renewing
    before = renewing.shown()
    tls_section(*(other := ca.pair(OTHER)))
    shutil.copy(other.key, ca.directory / f"{NAME}.key")
    wait_for(lambda: "not the key" in server.log.read_text())
    assert renewing.shown() == before


def test_hup_takes_a_new_certificate(renewing: Renewing) -> None:
    server, ca = renewing
    with TLSClient(server.address, ca.client()) as client:
        client.hello()
        before = serial(client)
        tls_section(*ca.pair(NAME))
        os.kill(server.pid, signal.SIGHUP)
        wait_for(lambda: renewing.shown() != before)
        # The old process bears with its client.
        assert client.command("NOOP").code == 250


def test_hup_with_a_broken_certificate(renewing: Renewing) -> None:
    server, ca = renewing
    before, workers = renewing.shown(), server.workers
    (ca.directory / f"{NAME}.pem").write_bytes(b"")
    os.kill(server.pid, signal.SIGHUP)
    wait_for(lambda: "no certificate in PEM" in server.log.read_text())
    time.sleep(1)
    assert renewing.shown() == before
    assert server.workers == workers


# --- what never was TLS ---------------------------------------------------------------------------


def test_plain_smtp_on_a_port_that_speaks_tls(site: Site) -> None:
    with Client(site.tls) as client:
        client.send(b"EHLO client.example\r\n")
        assert client.reply().text.startswith("554 5.5.1 ")
        assert client.closed()


def test_garbage_behind_starttls(site: Site) -> None:
    with Client(site.server.address) as client:
        assert client.hello().command("STARTTLS").code == 220
        client.send(b"EHLO client.example\r\nMAIL FROM:<a@example.org>\r\n")
        with pytest.raises(Gone):
            while True:
                said = client.reply()
                assert said.code >= 500
    wait_for(lambda: 'reason="TLS: ' in site.server.log.read_text())


def test_a_client_that_trusts_somebody_else_leaves(site: Site) -> None:
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        TLSClient(site.server.address, context)
    wait_for(lambda: "unknown ca" in site.server.log.read_text())
