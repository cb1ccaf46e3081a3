"""Which item of a list of addresses names an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.policy.addresses import AddressSet

LOCALS = ["ann", "bob", '"a b"', '"a@x.example"', '"@x.example"', "ann@", "x.example"]
DOMAINS = ["x.example", "y.example", "a.x.example", "[192.0.2.1]", "[IPv6:2001:db8::1]"]
ITEMS = [
    *LOCALS[:5],
    *(f"@{domain}" for domain in DOMAINS),
    *(f"{local}@{domain}" for local in LOCALS[:5] for domain in DOMAINS),
]


@pytest.mark.parametrize(
    ("local", "domain", "item"),
    [
        ("ann", "x.example", "ann@x.example"),
        ("bob", "x.example", "@x.example"),
        ("bob", "y.example", "bob"),
        ("carl", "y.example", ""),
        ("carl", "a.x.example", ""),
        ("ann", "y.example", ""),
        ('"a b"', "z.example", '"a b"'),
        ("dora", "[IPv6:2001:db8::1]", "dora@[IPv6:2001:db8::1]"),
        ("bob", "", "bob"),
        ("ann", "", ""),
    ],
)
def test_the_most_specific_item_names_the_address(local: str, domain: str, item: str) -> None:
    addresses = AddressSet(
        ["bob", "@x.example", "ann@x.example", "bob@x.test", '"a b"', "dora@[IPv6:2001:db8::1]"]
    )
    assert addresses.match(local, domain) == item


@given(st.sets(st.sampled_from(ITEMS)), st.sampled_from(LOCALS[:5]), st.sampled_from(DOMAINS))
def test_no_item_is_taken_for_one_of_another_kind(items: set[str], local: str, domain: str) -> None:
    full = {item for item in items if item.endswith(("example", "]")) and item[0] != "@"}
    whole = {item for item in items if item[0] == "@"}
    expected = ""
    if local in items - full - whole:
        expected = local
    if f"@{domain}" in whole:
        expected = f"@{domain}"
    if f"{local}@{domain}" in full:
        expected = f"{local}@{domain}"
    assert AddressSet(items).match(local, domain) == expected


def test_an_empty_set_names_nobody() -> None:
    nobody = AddressSet(iter(()))
    assert not nobody
    assert nobody.match("ann", "x.example") == ""
    assert len(AddressSet(["ann", "ann", "bob"])) == 2
