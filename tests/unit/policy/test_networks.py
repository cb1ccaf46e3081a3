"""Is a client in one of the networks, and in which?"""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsmtpd.policy.names import network
from gsmtpd.policy.networks import NetworkSet

NETWORKS = ["192.0.2.0/24", "192.0.2.128/25", "192.0.2.200", "10.0.0.0/8", "2001:db8::/32",
            "2001:db8:1::/48", "2001:db8:1::7", "fe80::/10"]  # fmt: skip


@pytest.mark.parametrize(
    ("ip", "wanted"),
    [
        ("192.0.2.1", "192.0.2.0/24"),
        ("192.0.2.129", "192.0.2.128/25"),
        ("192.0.2.200", "192.0.2.200"),
        ("192.0.3.0", ""),
        ("192.0.1.255", ""),
        ("10.255.255.255", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.0.0.0/8"),
        ("2001:db8::1", "2001:db8::/32"),
        ("2001:db8:1::1", "2001:db8:1::/48"),
        ("2001:db8:1::7", "2001:db8:1::7"),
        ("2001:db9::", ""),
        ("fe80::1%eth0", "fe80::/10"),
        ("::1", ""),
        ("", ""),
        ("unknown", ""),
        ("/run/socket", ""),
    ],
)
def test_the_smallest_network_is_named(ip: str, wanted: str) -> None:
    assert NetworkSet(NETWORKS).match(ip) == wanted


def test_one_family_says_nothing_of_the_other() -> None:
    assert NetworkSet(["::/0"]).match("192.0.2.1") == ""
    assert NetworkSet(["0.0.0.0/0"]).match("2001:db8::1") == ""
    assert NetworkSet(["::/0"]).match("2001:db8::1") == "::/0"
    assert NetworkSet(["0.0.0.0/0"]).match("192.0.2.1") == "0.0.0.0/0"


def test_its_length_is_the_number_of_networks() -> None:
    assert not NetworkSet(())
    assert NetworkSet(()).match("192.0.2.1") == ""
    assert len(NetworkSet([*NETWORKS, NETWORKS[0]])) == len(NETWORKS)


@st.composite
def nearby_networks(draw: st.DrawFn) -> str:
    """Networks that lie within each other, of both families."""
    if draw(st.booleans()):
        address, most = f"192.0.2.{draw(st.integers(0, 255))}", 32
    else:
        address, most = f"2001:db8::{draw(st.integers(0, 255)):x}", 128
    length = draw(st.integers(most - 8, most) | st.integers(0, most))
    return network(str(ipaddress.ip_network(f"{address}/{length}", strict=False)))


@given(st.lists(nearby_networks(), max_size=12), st.integers(0, 255), st.booleans())
@example(["192.0.2.0/24", "192.0.2.0"], 0, True)
def test_it_finds_what_a_scan_finds(networks: list[str], last: int, is_ipv4: bool) -> None:
    ip = ipaddress.ip_address(f"192.0.2.{last}" if is_ipv4 else f"2001:db8::{last:x}")
    fits = [each for each in map(ipaddress.ip_network, networks) if ip in each]
    wanted = max(fits, key=lambda each: each.prefixlen, default=None)
    assert NetworkSet(networks).match(str(ip)) == (network(str(wanted)) if wanted else "")
