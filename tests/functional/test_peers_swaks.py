"""Does swaks get its mail in over TLS, LMTP, a proxy's header and XCLIENT?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.accounting import Address, rows, table_of
from tests.certificates import Authority
from tests.peers import Done, swaks
from tests.servers import Gsmtpd, free_port, tls_section

NO_TLS = 29  # what swaks exits with where TLS could not be started
NO_MAIL = 23  # ... where MAIL was refused
PROXY_REFUSED = 21  # ... where the greeting was none


class Site(NamedTuple):
    """A server with a listener of each kind. The other ports are those of its listeners."""

    server: Gsmtpd
    ca: Authority
    tls: Address
    required: Address
    lmtp: Address
    proxied: Address

    def last(self, columns: str) -> tuple:
        """Columns of the mail stored last."""
        query = f"SELECT {columns} FROM new_mail ORDER BY mail_id DESC LIMIT 1"
        return table_of(self.server).query(query)[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    tls, required, lmtp, proxied = (("127.0.0.1", free_port()) for _ in range(4))

    def listener(address: Address, **keys: str) -> dict[str, str]:
        return {"address": f"{address[0]}:{address[1]}"} | keys

    settings = {
        "tls": tls_section(*ca.pair("mx.example.com", "127.0.0.1")),
        "listen": {
            "mx": {"tls": "starttls", "xclient_from": "127.0.0.0/8"},
            "mxs": listener(tls, tls="implicit"),
            "strict": listener(required, tls="required"),
            "inside": listener(lmtp, protocol="lmtp", tls="starttls"),
            "balanced": listener(proxied, tls="starttls", proxy_from="127.0.0.1"),
        },
    }
    with Gsmtpd(settings) as server:
        yield Site(server, ca, tls, required, lmtp, proxied)


def delivered(done: Done, site: Site) -> None:
    """swaks is content, and what it was told is true."""
    done.check()
    row = rows(table_of(site.server))[-1]
    assert f"250 2.0.0 OK: queued as {row.hash}" in done.said
    assert b"This is a test mailing\r\n" in row.content


def trusting(site: Site) -> list[object]:
    return ["--tls-verify", "--tls-ca-path", site.ca.file, "--tls-sni", "mx.example.com"]


@pytest.mark.parametrize("version", ["tlsv1_2", "tlsv1_3"])
@pytest.mark.parametrize("pipelined", [False, True])
def test_starttls(site: Site, version: str, pipelined: bool) -> None:
    pipeline = ["--pipeline"] * pipelined
    done = swaks(
        *(site.server.address, "--to", "b@example.com", "--tls", "--tls-protocol", version),
        *(*trusting(site), *pipeline),
    )
    delivered(done, site)
    # Neither is offered what it has already.
    assert done.said.count("250-STARTTLS") == 1
    assert site.last("is_tls, ip_addr, helo") == (1, "127.0.0.1", "swaks.example")
    front = rows(table_of(site.server))[-1].front.decode()
    assert f"with ESMTPS ({version.upper().replace('_', '.').replace('TLSV', 'TLSv')}:" in front


def test_tls_on_connect(site: Site) -> None:
    done = swaks(site.tls, "--to", "b@example.com", "--tls-on-connect", *trusting(site))
    delivered(done, site)
    assert "STARTTLS" not in done.said
    assert site.last("is_tls") == (1,)


def test_a_port_that_wants_tls(site: Site) -> None:
    refused = swaks(site.required, "--to", "b@example.com")
    assert refused.code == NO_MAIL
    assert "530 5.7.0 " in refused.said
    delivered(swaks(site.required, "--to", "b@example.com", "--tls"), site)


def test_old_tls_is_refused(site: Site) -> None:
    done = swaks(
        *(site.server.address, "--to", "b@example.com", "--tls", "--tls-protocol", "tlsv1_1")
    )
    assert done.code == NO_TLS


def test_no_starttls_where_there_is_no_certificate(site: Site) -> None:
    with Gsmtpd() as server:
        done = swaks(server.address, "--to", "b@example.com", "--tls")
    assert done.code == NO_TLS
    assert "Host did not advertise STARTTLS" in done.said


# --- LMTP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_lmtp(site: Site, tls: bool) -> None:
    done = swaks(
        *(site.lmtp, "--to", "b@example.com", "--protocol", "LMTP", *["--tls"] * tls),
    )
    delivered(done, site)
    assert " -> LHLO swaks.example" in done.said or " ~> LHLO swaks.example" in done.said
    front = rows(table_of(site.server))[-1].front.decode()
    assert f" with {'LMTPS' if tls else 'LMTP'} " in front


def test_smtp_on_an_lmtp_port(site: Site) -> None:
    done = swaks(site.lmtp, "--to", "b@example.com")
    assert done.code != 0
    assert "500 5.5.1 " in done.said


# --- on behalf of others --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "family", "client", "here"),
    [
        (1, "TCP4", "203.0.113.5", "192.0.2.25"),
        (1, "TCP6", "2001:db8::5", "2001:db8::25"),
        (2, "AF_INET", "203.0.113.5", "192.0.2.25"),
    ],
)
def test_proxy(site: Site, version: int, family: str, client: str, here: str) -> None:
    done = swaks(
        *(site.proxied, "--to", "b@example.com", "--proxy-version", version),
        *("--proxy-family", family, "--proxy-source", client, "--proxy-source-port", "50000"),
        *("--proxy-dest", here, "--proxy-dest-port", "25"),
    )
    delivered(done, site)
    assert site.last("ip_addr") == (client,)


def test_proxy_with_starttls(site: Site) -> None:
    done = swaks(
        *(site.proxied, "--to", "b@example.com", "--tls", *trusting(site)),
        *("--proxy", "TCP4 203.0.113.6 192.0.2.25 50000 25"),
    )
    delivered(done, site)
    assert site.last("ip_addr, is_tls") == ("203.0.113.6", 1)


def test_proxy_from_one_who_may_not(site: Site) -> None:
    done = swaks(
        *(site.server.address, "--to", "b@example.com"),
        *("--proxy", "TCP4 203.0.113.7 192.0.2.25 50000 25"),
    )
    assert done.code != 0
    assert "554 5.5.0 " in done.said or "550 5.7.1 " in done.said


def test_xclient(site: Site) -> None:
    done = swaks(
        *(site.server.address, "--to", "b@example.com", "--xclient-addr", "203.0.113.8"),
        *("--xclient-name", "client.example.net", "--xclient-helo", "told by xclient"),
    )
    delivered(done, site)
    assert "XCLIENT " in done.said
    assert site.last("ip_addr, helo") == ("203.0.113.8", "told by xclient")
    front = rows(table_of(site.server))[-1].front
    assert b"Received: from told?by?xclient (client.example.net [203.0.113.8])\r\n" in front


@pytest.mark.parametrize("order", ["--tls", "--xclient-before-starttls"])
def test_xclient_with_starttls(site: Site, order: str) -> None:
    done = swaks(
        *(site.server.address, "--to", "b@example.com", "--tls", order),
        *("--xclient-addr", "IPV6:2001:db8::8"),
    )
    delivered(done, site)
    assert site.last("ip_addr, is_tls") == ("2001:db8::8", 1)


def test_xclient_from_one_who_may_not(site: Site) -> None:
    done = swaks(
        *(site.required, "--to", "b@example.com", "--tls", "--xclient-addr", "203.0.113.9"),
    )
    assert done.code != 0
    assert "Host did not advertise XCLIENT" in done.said
