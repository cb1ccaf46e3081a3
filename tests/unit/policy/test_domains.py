"""Which domains are ours? Never more than the patterns say, whatever a domain looks like."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsmtpd.policy.domains import DomainSet
from gsmtpd.smtp.address import parse_path

ACCEPT = ["example.com", "mail.example.com", "xn--bcher-kva.example", "[127.0.0.1]", "[IPv6:::1]"]
OURS = [
    "<u@example.com>",
    "<u@EXAMPLE.COM>",
    "<u@mail.example.com>",
    "<postmaster@example.com>",
    "<u%other.example@example.com>",
    "<other.example!u@example.com>",
    '<"u@other.example"@example.com>',
    "<@other.example:u@example.com>",
    "<u@[127.0.0.1]>",
    "<u@[IPv6:::1]>",
    "<u@[IPv6:0:0:0:0:0:0:0:1]>",
    "<ü@example.com>",
    # Both forms of an internationalized name
    "<u@xn--bcher-kva.example>",
    "<u@XN--BCHER-KVA.example>",
    "<u@bücher.example>",
    "<u@BÜCHER.Example>",
    "<u@bu\u0308cher.example>",
]
NOT_OURS = [
    "<Postmaster>",
    "<u@example.org>",
    "<u@example.co>",
    "<u@example.com.org>",
    "<u@xexample.com>",
    "<u@sub.example.com>",
    "<u@com>",
    "<postmaster@example.org>",
    "<u%example.com@example.org>",
    "<example.com!u@example.org>",
    '<"u@example.com"@example.org>',
    "<@example.com:u@example.org>",
    "<u@[127.0.0.2]>",
    "<u@127.0.0.1>",
    "<u@[IPv6:::2]>",
    "<u@[IPv6:::ffff:127.0.0.1]>",
    "<u@bucher.example>",
    "<u@böcher.example>",
    "<u@bücher.example.org>",
    "<u@exаmple.com>",  # the third letter is Cyrillic
    "<u@example\u0301.com>",
    # No name at all for the codec
    "<u@\u00ad>",
    "<u@\u200b.\u200b>",
    "<u@\uff0e>",
    f"<u@{'ü' * 63}.example>",
]


def domain_of(path: str) -> str:
    """The domain that a client names."""
    mailbox = parse_path(path)
    assert mailbox is not None
    return mailbox.domain


@pytest.mark.parametrize("path", OURS)
def test_ours(path: str) -> None:
    assert DomainSet(ACCEPT).match(domain_of(path)) in ACCEPT


@pytest.mark.parametrize("path", NOT_OURS)
def test_not_ours(path: str) -> None:
    assert DomainSet(ACCEPT).match(domain_of(path)) == ""


@given(st.text(st.characters(min_codepoint=0xA0, exclude_categories=["Cs"]), min_size=1))
def test_no_name_beyond_ascii_is_taken_by_chance(name: str) -> None:
    mailbox = parse_path(f"<u@{name}.example>")
    if mailbox is not None:
        assert DomainSet(ACCEPT).match(mailbox.domain) == ""


PATTERNS = ["a.b.example", "*.a.b.example", "*.b.example", ".c.example", ".example", "[127.0.0.1]"]


@pytest.mark.parametrize(
    ("domain", "pattern"),
    [
        ("a.b.example", "a.b.example"),
        ("x.a.b.example", "*.a.b.example"),
        ("y.x.a.b.example", "*.a.b.example"),
        ("xa.b.example", "*.b.example"),
        ("b.example", ".example"),
        ("c.example", ".c.example"),
        ("x.c.example", ".c.example"),
        ("xc.example", ".example"),
        ("example", ".example"),
        ("bücher.c.example", ".c.example"),
        ("x\u3002c\uff0eexample", ".c.example"),
        ("example.org", ""),
        ("xexample", ""),
        ("com", ""),
        ("", ""),
        ("[127.0.0.1]", "[127.0.0.1]"),
        ("[127.0.0.2]", ""),
        # No names, so below no name
        ("\u00ad.c.example", ""),
        ("x\uff20c.example", ""),
        (f"{'ü' * 63}.c.example", ""),
    ],
)
def test_the_longest_pattern_names_a_domain(domain: str, pattern: str) -> None:
    assert DomainSet(PATTERNS).match(domain) == pattern
    everything = DomainSet([*PATTERNS, "*"])
    assert everything.match(domain) == (pattern or ("*" if domain else ""))


def test_its_length_is_the_number_of_patterns() -> None:
    assert len(DomainSet(())) == 0
    assert not DomainSet(())
    assert len(DomainSet(["*", ".x", "*.x", "x", "x"])) == 4


NAMES = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4).map(".".join)
ANY_PATTERN = st.builds("".join, st.tuples(st.sampled_from(["", "", ".", "*."]), NAMES))


def by_scan(patterns: set[str], domain: str) -> str:
    """The same by looking at each pattern."""
    fits = [
        (2 if name == domain else 1, len(name), pattern)
        for pattern in patterns
        for name in [pattern.lstrip("*.")]
        if (not pattern.startswith("*") and name == domain)
        or (pattern[0] in "*." and domain.endswith(f".{name}"))
    ]
    if domain in patterns:
        return domain
    longest = {pattern for _, length, pattern in fits if length == max(fits)[1]}
    # Of ".x" and "*.x" either may be named.
    return min(longest, default="")


@given(st.sets(ANY_PATTERN | st.just("*"), max_size=8), NAMES)
@example({".a", "*.a"}, "b.a")
def test_it_finds_what_a_scan_finds(patterns: set[str], domain: str) -> None:
    found = DomainSet(patterns).match(domain)
    wanted = by_scan(patterns - {"*"}, domain) or ("*" if "*" in patterns else "")
    assert found.lstrip("*.") == wanted.lstrip("*.")
    assert bool(found) == bool(wanted)
    assert not found or found in patterns
