"""Which key exchanges does the running server take part in? Asked with hellos of real clients."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.accounting import Address, Client, with_token
from tests.certificates import Authority
from tests.hellos import FFDHE8192, P256, X25519, hello, records
from tests.peers import TLSClient, handshake
from tests.servers import Gsmtpd, free_port, tls_section, wait_for

NAME = "mx.example.com"


class Site(NamedTuple):
    """A server with STARTTLS, and with a listener where TLS comes first."""

    server: Gsmtpd
    ca: Authority
    implicit: Address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    implicit = ("127.0.0.1", free_port())
    settings = {
        "tls": tls_section(*ca.pair(NAME)),
        "listen": {
            "mx": {"tls": "starttls"},
            "mxs": {"address": f"127.0.0.1:{implicit[1]}", "tls": "implicit"},
        },
    }
    with Gsmtpd(settings) as server:
        yield Site(server, ca, implicit)


def how(site: Site, way: str) -> tuple[Address, list[str]]:
    """Where openssl s_client goes, and with which options."""
    return (
        (site.implicit, []) if way == "implicit" else (site.server.address, ["-starttls", "smtp"])
    )


WAYS = pytest.mark.parametrize("way", ["starttls", "implicit"])


@WAYS
@pytest.mark.parametrize(
    "groups", ["X25519", "P-256", "P-384", "P-521", "X448", "X25519:ffdhe2048", "P-521:ffdhe8192"]
)
def test_elliptic_curves(site: Site, way: str, groups: str) -> None:
    address, options = how(site, way)
    done = handshake(address, *options, "-groups", groups)
    assert "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384" in done.said


@WAYS
@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ("ffdhe2048", "no elliptic curve among its groups"),
        ("ffdhe8192", "no elliptic curve among its groups"),
        ("ffdhe3072:X25519", "a key share over a finite field"),
    ],
)
def test_finite_fields_are_refused_with_an_alert(
    site: Site, way: str, groups: str, reason: str
) -> None:
    address, options = how(site, way)
    before = lines(site, reason)
    done = handshake(address, *options, "-groups", groups)
    assert done.code
    assert "handshake failure" in done.said
    wait_for(lambda: lines(site, reason) > before)


def lines(site: Site, reason: str) -> int:
    """How often the mail log has it."""
    pattern = rf'result=closed client=127\.0\.0\.1 .*reason="TLS: {reason}" tls=no'
    return len(re.findall(pattern, site.server.log.read_text()))


@WAYS
@pytest.mark.parametrize("groups", ["P-256", "X25519:P-256", "ffdhe8192:P-256"])
def test_tls_1_2(site: Site, way: str, groups: str) -> None:
    """No share is sent there, and no key exchange over a finite field is on offer."""
    address, options = how(site, way)
    done = handshake(address, *options, "-tls1_2", "-groups", groups)
    assert "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384" in done.said


def test_python(site: Site) -> None:
    for address, implicit in ((site.server.address, False), (site.implicit, True)):
        with TLSClient(address, site.ca.client(), implicit=implicit) as client:
            assert client.hello().deliver(with_token()).code == 250


@pytest.mark.parametrize("size", [1, 100, 16384])
def test_hidden_behind_others_and_in_many_records(site: Site, size: int) -> None:
    octets = records(hello([X25519, P256, FFDHE8192], [X25519, P256, FFDHE8192]), size)
    with socket.create_connection(site.implicit, 60) as link:
        link.sendall(octets)
        assert link.recv(7) == b"\x15\x03\x03\x00\x02\x02\x28"  # handshake_failure
        assert link.recv(1) == b""
    with Client(site.server.address).hello() as client:
        assert client.command("NOOP").code == 250
