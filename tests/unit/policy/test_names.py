"""Is what an administrator writes brought into one form, or refused with what would be right?"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsmtpd.policy import names
from gsmtpd.smtp.address import parse_domain, parse_mailbox

Parse = Callable[[str], str]
PARSERS: list[Parse] = [
    names.domain_name, names.address_literal, names.domain, names.domain_pattern,
    names.address_item, names.local_part, names.network,
]  # fmt: skip

GOOD = [
    (names.domain_name, "Example.COM.", "example.com"),
    (names.domain_name, "BÜCHER.example", "xn--bcher-kva.example"),
    (names.domain_name, "bu\u0308cher.example", "xn--bcher-kva.example"),
    (names.domain_name, "my_host", "my_host"),
    (names.domain_name, f"{'a' * 63}.example", f"{'a' * 63}.example"),
    (names.address_literal, "[127.0.0.1]", "[127.0.0.1]"),
    (names.address_literal, "[ipv6:0::1]", "[IPv6:::1]"),
    (names.domain, "Example.com", "example.com"),
    (names.domain, "[127.0.0.1]", "[127.0.0.1]"),
    (names.domain_pattern, "example.com", "example.com"),
    (names.domain_pattern, "EXAMPLE.com", "example.com"),
    (names.domain_pattern, "*.Example.com", "*.example.com"),
    (names.domain_pattern, ".Example.com.", ".example.com"),
    (names.domain_pattern, "*.bücher.example", "*.xn--bcher-kva.example"),
    (names.domain_pattern, ".com", ".com"),
    (names.domain_pattern, "*", "*"),
    (names.domain_pattern, "[IPv6:0:0::1]", "[IPv6:::1]"),
    (names.address_item, "user@example.com", "user@example.com"),
    (names.address_item, "User.Name@Example.com.", "user.name@example.com"),
    (names.address_item, "USER", "user"),
    (names.address_item, "@Bücher.example", "@xn--bcher-kva.example"),
    (names.address_item, "@[127.0.0.1]", "@[127.0.0.1]"),
    (names.address_item, "u@[ipv6:0::1]", "u@[IPv6:::1]"),
    (names.address_item, '"User"@example.com', "user@example.com"),
    (names.address_item, '"A b@c"@example.com', '"a b@c"@example.com'),
    (names.address_item, '"A b@c"', '"a b@c"'),
    (names.address_item, "Ü@example.com", "ü@example.com"),
    (names.address_item, f"{'u' * 64}@example.com", f"{'u' * 64}@example.com"),
    (names.network, "192.0.2.0/24", "192.0.2.0/24"),
    (names.network, "192.0.2.1", "192.0.2.1"),
    (names.network, "192.0.2.1/32", "192.0.2.1"),
    (names.network, "192.0.2.128/25", "192.0.2.128/25"),
    (names.network, "0.0.0.0/0", "0.0.0.0/0"),
    (names.network, "2001:DB8:0::/32", "2001:db8::/32"),
    (names.network, "2001:db8::1/128", "2001:db8::1"),
    (names.network, "::/0", "::/0"),
    (names.network, "::ffff:192.0.2.1", "192.0.2.1"),
    (names.network, "::ffff:192.0.2.0/120", "192.0.2.0/24"),
    (names.network, "::ffff:0:0/96", "0.0.0.0/0"),
]

NAME = '"{}" is not a domain name; write one like mail.example.com'
FILE = '"{0}" is a file; write @{1}, and in gsmtpd.conf itself'
BAD = [
    (names.domain_name, "", NAME.format("")),
    (names.domain_name, ".", NAME.format(".")),
    (names.domain_name, "a..b", NAME.format("a..b")),
    (names.domain_name, "a b", NAME.format("a b")),
    (names.domain_name, "-a.example", NAME.format("-a.example")),
    (names.domain_name, "a-.example", NAME.format("a-.example")),
    (names.domain_name, "10.0.0.1", NAME.format("10.0.0.1")),
    (names.domain_name, f"{'a' * 64}.example", NAME.format(f"{'a' * 64}.example")),
    (names.domain_name, "a." * 127 + "a", "is not a domain name"),
    (names.domain_name, "\u00ad", '"\\xad" is not a domain name; write it in its xn-- form'),
    (names.domain_name, "x\n", NAME.format("x\\n")),
    (names.domain, "127.0.0.1", '"127.0.0.1" is not a domain; write [127.0.0.1]'),
    (names.domain, "::1", '"::1" is not a domain; write [IPv6:::1]'),
    (names.domain, "fe80::1%eth0", "write [IPv6:fe80::1]"),
    (names.domain, "[::1]", '"[::1]" is not an address literal; write [IPv6:::1]'),
    (names.domain, "[x]", "write one like [127.0.0.1] or [IPv6:::1]"),
    (names.domain, "[fe80::1%eth0]", "write one like [127.0.0.1] or [IPv6:::1]"),
    (names.domain, "*.x", '"*.x" is not one domain; write each domain here by its full name'),
    (names.domain, ".x", "write each domain here by its full name"),
    (names.domain, "@/etc/x", "write each domain here by its full name"),
    (names.domain_pattern, "", NAME.format("")),
    (names.domain_pattern, ".", NAME.format("")),
    (names.domain_pattern, "*.", NAME.format("")),
    (names.domain_pattern, "a..b", NAME.format("a..b")),
    (names.domain_pattern, "*.*.x.example", '"*.*.x.example" is not a pattern; write *.x.example'),
    (names.domain_pattern, "a.*.x.example", "write *.x.example"),
    (names.domain_pattern, "*x.example", "write *.example"),
    (names.domain_pattern, "*x", "write *.x"),
    (names.domain_pattern, "..x", "write .x"),
    (names.domain_pattern, ".*.x", "write *.x"),
    (names.domain_pattern, "example.*", "write one like *.example.com, .example.com or *"),
    (names.domain_pattern, "**", "write one like *.example.com, .example.com or *"),
    (names.domain_pattern, "*.[127.0.0.1]", "nothing is below an address; write it without *."),
    (names.domain_pattern, ".[IPv6:::1]", "nothing is below an address; write it without ."),
    (names.domain_pattern, "192.0.2.1", "write [192.0.2.1]"),
    (names.domain_pattern, "@example.com", '"@example.com" is not a domain; write it without @'),
    (names.domain_pattern, "/etc/x", FILE.format("/etc/x", "/etc/x")),
    (names.domain_pattern, "@/etc/x", FILE.format("@/etc/x", "/etc/x")),
    (names.domain_pattern, "u@example.com", NAME.format("u@example.com")),
    (names.address_item, "", '"" is not a local part; write user'),
    (names.address_item, "a b", '"a b" is not a local part; write user'),
    (names.address_item, "a b@example.com", "is not an address; write one like user@example.com"),
    (names.address_item, "user@", NAME.format("")),
    (names.address_item, "user@127.0.0.1", "write [127.0.0.1]"),
    (names.address_item, "user@*.example", "write each domain here by its full name"),
    (names.address_item, "@.example", "write each domain here by its full name"),
    (names.address_item, "*@example.com", "write @example.com for all of a domain"),
    (names.address_item, "*", "write @example.com for all of a domain"),
    (names.address_item, "a@b@example.com", "is not an address"),
    (names.address_item, "<u@example.com>", "is not"),
    (names.address_item, f"{'u' * 65}@example.com", "is not an address"),
    (names.address_item, "@/etc/x", FILE.format("@/etc/x", "/etc/x")),
    (names.address_item, "/etc/x", FILE.format("/etc/x", "/etc/x")),
    (names.network, "", '"" is not a network; write one like 192.0.2.0/24 or 2001:db8::/32'),
    (names.network, "192.0.2", "write one like 192.0.2.0/24"),
    (names.network, "192.0.2.0/33", "write one like 192.0.2.0/24"),
    (names.network, "192.0.2.0/", "write one like 192.0.2.0/24"),
    (names.network, "192.0.2.256", "write one like 192.0.2.0/24"),
    (names.network, "fe80::1%eth0", "write one like 192.0.2.0/24"),
    (names.network, "example.com", "write one like 192.0.2.0/24"),
    (names.network, "192.0.2.1-192.0.2.9", "write one like 192.0.2.0/24"),
    (names.network, "192.0.2.0/255.255.255.0", "write 192.0.2.0/24"),
    (names.network, "[2001:db8::1]", "write 2001:db8::1"),
    (names.network, "[IPv6:2001:db8::1]", "write 2001:db8::1"),
    (
        names.network,
        "192.0.2.1/24",
        '"192.0.2.1/24" has bits set beyond its /24;'
        " write 192.0.2.0/24, or 192.0.2.1 for that address alone",
    ),
    (names.network, "10.1.2.0/8", "write 10.0.0.0/8, or 10.1.2.0 for that"),
    (names.network, "2001:db8::1/64", "write 2001:db8::/64, or 2001:db8::1"),
    (names.network, "::ffff:192.0.2.1/120", "write 192.0.2.0/24"),
    (names.network, "@/etc/x", FILE.format("@/etc/x", "/etc/x")),
]


@pytest.mark.parametrize(("parse", "text", "wanted"), GOOD)
def test_it_is_brought_into_one_form(parse: Parse, text: str, wanted: str) -> None:
    assert parse(text) == wanted
    assert parse(wanted) == wanted


@pytest.mark.parametrize(("parse", "text", "wrong"), BAD)
def test_it_is_refused_with_what_would_be_right(parse: Parse, text: str, wrong: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    problem = str(caught.value)
    assert wrong in problem
    assert problem.isprintable()
    assert "; write " in problem or ": nothing is below an address; write " in problem


def test_only_what_is_ipv4_in_ipv6_altogether_becomes_ipv4() -> None:
    assert names.network("::fffe:0:0/95") == "::fffe:0:0/95"


PIECES = st.lists(
    st.sampled_from([*"ab.@*[]/:%-_\"' \\#ü\u00ad\uff0e\uff20\u2488\u0660", "IPv6:", "127.0.0.1"])
    | st.sampled_from(["::1", "example", "xn--", "/24", "a" * 63, "\ud800", "\n", "\x00"]),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("parse", PARSERS)
@given(text=PIECES | st.text(max_size=80))
def test_whatever_it_is_the_answer_is_canonical_or_a_value_error(parse: Parse, text: str) -> None:
    try:
        found = parse(text)
    except ValueError as error:
        assert len(error.args) == 1
        assert len(str(error)) < 400
    else:
        assert parse(found) == found
        assert found == found.strip(" \t\r\n")  # others are letters of RFC 6531


LABEL = st.from_regex(r"[a-z0-9_-]{1,9}", fullmatch=True) | st.sampled_from(["a" * 63, "a" * 64])
NAMES = st.lists(LABEL, min_size=1, max_size=5).map(".".join)


@given(NAMES | st.lists(LABEL, min_size=20, max_size=40).map(".".join))
@example("a.1")
@example("a--b.c")
@example("a" * 60 + ".aa")
def test_short_cuts_lead_to_the_same(name: str) -> None:
    """The long way is that of a name in upper case."""
    for parse, text in [(names.domain_pattern, name), (names.address_item, f"u@{name}")]:
        results = []
        for form in (text, text.upper()):
            try:
                results.append(parse(form))
            except ValueError:
                results.append("")
        assert results[0] == results[1]


@given(NAMES)
def test_a_name_is_one_for_smtp_too(name: str) -> None:
    try:
        found = names.domain_name(name)
    except ValueError:
        return
    assert parse_domain(found) == found
    assert parse_mailbox(f"u@{found}") is not None


@given(st.ip_addresses(), st.integers(0, 128))
def test_networks_mean_what_ipaddress_says(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    wanted = ipaddress.ip_network(f"{address}/{min(length, address.max_prefixlen)}", strict=False)
    found = names.network(str(wanted))
    again = ipaddress.ip_network(found)
    if again.version == wanted.version:
        assert again == wanted
    version, start, beyond = names.prefix(found)
    assert (version, start << beyond) == (again.version, int(again.network_address))
    assert beyond == again.max_prefixlen - again.prefixlen


@pytest.mark.parametrize(
    ("domain", "wanted"),
    [
        ("", ""),
        ("Example.COM", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER\u3002example", "xn--bcher-kva.example"),
        ("[IPv6:::1]", "[IPv6:::1]"),
        ("\u00ad", "\u00ad"),
        (f"{'ü' * 63}.example", f"{'ü' * 63}.example"),
        # Compatible with "@", "/", and with two dots in a row
        ("x\uff20a.example", "x\uff20a.example"),
        ("x\uff0fa.example", "x\uff0fa.example"),
        ("x\u2025a.example", "x\u2025a.example"),
        ("\uff11\uff12\uff17.0.0.1", "\uff11\uff12\uff17.0.0.1"),
    ],
)
def test_a_labels_of_what_a_client_names(domain: str, wanted: str) -> None:
    assert names.a_labels(domain) == wanted
