"""Which paths are valid, and what is their canonical form? The tables are the specification."""

from __future__ import annotations

import re
from string import ascii_letters, digits, hexdigits

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsmtpd.smtp import address
from gsmtpd.smtp.address import (
    POSTMASTER,
    Mailbox,
    canonical_local_part,
    parse_domain,
    parse_literal,
    parse_mailbox,
    parse_path,
)


def name_of(octets: int) -> str:
    """A domain name of that many octets, which may be no multiple of 50."""
    return ".".join(["d" * 49] * 6)[:octets]


L64 = "l" * 64
VALID = [
    ("<u@example.com>", "u", "example.com"),
    ("<U.v+w=x_y-z@example.com>", "U.v+w=x_y-z", "example.com"),
    ("<u@EXAMPLE.Com>", "u", "example.com"),
    ("<!#$%&'*+/=?^_`{|}~-@example.com>", "!#$%&'*+/=?^_`{|}~-", "example.com"),
    ("<u%v@example.com>", "u%v", "example.com"),
    ("<u@localhost>", "u", "localhost"),
    ("<u@a>", "u", "a"),
    ("<u@1.2.3.4>", "u", "1.2.3.4"),
    ("<u@a_b.example.com>", "u", "a_b.example.com"),
    ("<u@a--b.example.com>", "u", "a--b.example.com"),
    # Quoted strings; the quotes go where they say nothing.
    ('<"u"@example.com>', "u", "example.com"),
    ('<"u.v"@example.com>', "u.v", "example.com"),
    (r'<"\u\v"@example.com>', "uv", "example.com"),
    ('<"a b"@example.com>', '"a b"', "example.com"),
    (r'<"a\ b"@example.com>', '"a b"', "example.com"),
    (r'<"a\"b"@example.com>', r'"a\"b"', "example.com"),
    (r'<"a\\b"@example.com>', r'"a\\b"', "example.com"),
    ('<"a..b"@example.com>', '"a..b"', "example.com"),
    ('<".a"@example.com>', '".a"', "example.com"),
    ('<"a@b"@example.com>', '"a@b"', "example.com"),
    ('<"a>b"@example.com>', '"a>b"', "example.com"),
    ('<""@example.com>', '""', "example.com"),
    # Beyond ASCII (RFC 6531 section 3.3)
    ("<jörg@bücher.example>", "jörg", "bücher.example"),
    ("<用户@例子.例え>", "用户", "例子.例え"),
    ('<"ü ü"@example.com>', '"ü ü"', "example.com"),
    ('<"ü"@example.com>', "ü", "example.com"),
    ("<u@BÜCHER.example>", "u", "bücher.example"),
    # Address literals
    ("<u@[127.0.0.1]>", "u", "[127.0.0.1]"),
    ("<u@[IPv6:::1]>", "u", "[IPv6:::1]"),
    ("<u@[ipv6:2001:DB8:0:0::1]>", "u", "[IPv6:2001:db8::1]"),
    ("<u@[IPv6:0:0:0:0:0:0:0:1]>", "u", "[IPv6:::1]"),
    # Source routes are dropped (RFC 5321 appendix C).
    ("<@a:u@example.com>", "u", "example.com"),
    ("<@a,@b.example:u@example.com>", "u", "example.com"),
    ('<@a:"a b"@example.com>', '"a b"', "example.com"),
    # The postmaster without a domain (section 4.5.1)
    ("<postmaster>", "postmaster", ""),
    ("<PostMaster>", "postmaster", ""),
    ("<Postmaster@example.com>", "Postmaster", "example.com"),
    # Limits in octets (section 4.5.3.1)
    (f"<{L64}@example.com>", L64, "example.com"),
    (f'<"{L64[:62]}"@example.com>', L64[:62], "example.com"),
    (f"<{'ü' * 32}@example.com>", "ü" * 32, "example.com"),
    (f"<u@{'d' * 63}.com>", "u", f"{'d' * 63}.com"),
    (f"<u@{name_of(252)}>", "u", name_of(252)),
    (f"<{L64}@{name_of(189)}>", L64, name_of(189)),
    (f"<@{name_of(239)}:u@example.com>", "u", "example.com"),
]
INVALID = [
    "",
    "<",
    ">",
    "<>",
    "u@example.com",
    "<u@example.com",
    "u@example.com>",
    "<<u@example.com>>",
    "<u@example.com> ",
    "<u@example.com>x",
    "<u>",
    "<@>",
    "<u@>",
    "<@example.com>",
    "<u@example.com@example.com>",
    "<u @example.com>",
    "<u@ example.com>",
    "<u@exam ple.com>",
    "<u..v@example.com>",
    "<.u@example.com>",
    "<u.@example.com>",
    "<u(comment)@example.com>",
    "<u,v@example.com>",
    "<u:v@example.com>",
    "<u\\v@example.com>",
    "<u[v@example.com>",
    '<"u@example.com>',
    '<u"@example.com>',
    '<"u"v@example.com>',
    '<u"v"@example.com>',
    '<"u"."v"@example.com>',
    '<"u"v"@example.com>',
    '<"u\\"@example.com>',
    '<"">',
    "<u@example..com>",
    "<u@.example.com>",
    "<u@example.com.>",
    "<u@-example.com>",
    "<u@example-.com>",
    "<u@exam!ple.com>",
    "<u@example.com\n>",
    "<u\n@example.com>",
    "<u@example.com>\n",
    "<u\x00@example.com>",
    '<"u\x00"@example.com>',
    '<"u\r"@example.com>',
    '<"u\\\n"@example.com>',
    '<"u\t"@example.com>',
    "<u\x7f@example.com>",
    "<u\x85@example.com>",
    '<"u\x85"@example.com>',
    "<u@\x9f.example>",
    "<u\ud800@example.com>",
    "<u@\udfff.example>",
    "<u@[127.0.0.1>",
    "<u@127.0.0.1]>",
    "<u@[]>",
    "<u@[>",
    "<u@[127.0.0]>",
    "<u@[127.0.0.256]>",
    "<u@[127.0.0.01]>",
    "<u@[ 127.0.0.1]>",
    "<u@[127.0.0.1].com>",
    "<u@[::1]>",
    "<u@[IPv6:]>",
    "<u@[IPv6:::g]>",
    "<u@[IPv6:127.0.0.1]>",
    "<u@[IPv6:fe80::1%eth0]>",
    "<u@[x:y]>",
    "<@a,b:u@example.com>",
    "<@a,@b u@example.com>",
    "<@a,:u@example.com>",
    "<a:u@example.com>",
    "<@a:postmaster>",
    "<@a:>",
    "<@:u@example.com>",
    f"<l{L64}@example.com>",
    f'<"{L64[:63]}"@example.com>',
    f"<l{'ü' * 32}@example.com>",
    f"<u@{'d' * 64}.com>",
    f"<u@com.{'d' * 64}>",
    f"<u@{name_of(253)}>",
    f"<{L64}@{name_of(190)}>",
    f"<@{name_of(240)}:u@example.com>",
    f"<@{'ü' * 60}.{'ü' * 60}.e:u@example.com>",
]


@pytest.mark.parametrize(("path", "local", "domain"), VALID)
def test_valid(path: str, local: str, domain: str) -> None:
    assert len(path.encode()) <= 256
    assert parse_path(path) == Mailbox(local, domain)


@pytest.mark.parametrize("path", INVALID)
def test_invalid(path: str) -> None:
    assert parse_path(path) is None


def test_the_longest_paths_of_the_tables_are_at_the_limit() -> None:
    assert max(len(path.encode()) for path, _, _ in VALID) == 256
    over = [path for path in INVALID if len(path.encode("utf-8", "surrogatepass")) > 256]
    assert [len(path.encode()) for path in over] == [257, 257, 257, 260]


def test_the_longest_domain() -> None:
    # No path of 256 octets has room for it.
    assert len(name_of(255)) == 255
    assert parse_domain(name_of(255)) == name_of(255)
    assert parse_domain(name_of(256)) is None
    assert parse_mailbox(f"u@{name_of(255)}") == Mailbox("u", name_of(255))
    assert parse_mailbox(f"u@{name_of(256)}") is None
    wide = ".".join(["ü" * 63, "ü" * 63])
    assert len(wide.encode()) == 253
    assert parse_domain(f"{wide}.e") == f"{wide}.e"
    assert parse_domain(f"{wide}.ee") is None


def test_a_mailbox_prints_as_an_address() -> None:
    assert str(Mailbox("u", "example.com")) == "u@example.com"
    assert str(Mailbox('"a b"', "[IPv6:::1]")) == '"a b"@[IPv6:::1]'
    assert str(POSTMASTER) == "postmaster"


@pytest.mark.parametrize(
    ("said", "canonical"),
    [("u", "u"), ('"u"', "u"), (r'"\u"', "u"), ('""', '""'), (r'"\""', r'"\""'), (r'"\ "', '" "')],
)
def test_canonical_local_part(said: str, canonical: str) -> None:
    assert canonical_local_part(said) == canonical


@pytest.mark.parametrize("text", ["", "[", "]", "[]", "127.0.0.1", "[127.0.0.1", "[IPv6:::1"])
def test_no_literal(text: str) -> None:
    assert parse_literal(text) is None


ordinary = st.one_of(
    st.from_regex(address._ORDINARY, fullmatch=True),
    st.builds(
        "<{}@{}>".format,
        st.integers(1, 70).map(lambda n: "l" * n),
        st.integers(1, 260).map(lambda n: ".".join(["d" * 63] * 5)[:n].rstrip(".")),
    ),
)
changed = st.builds(
    lambda path, at, new: path[:at] + new + path[at + 1 :],
    ordinary,
    st.integers(0, 260),
    st.sampled_from(["", *'<>@.,:"\\[] -_%A\n\x85üİſ', "..", "@@"]),
)
pieces = st.lists(
    st.sampled_from(["<", ">", "@", ".", ",", ":", '"', "\\", "[", "]", " ", "-", "a", "B", "1",
                     "ü", "İ", "\n", "IPv6:", "::1", "127.0.0.1", "postmaster", "example.com"]),
    max_size=12,
).map("".join)  # fmt: skip
paths = st.one_of(ordinary, changed, pieces, pieces.map("<{}@example.com>".format), st.text())


@settings(max_examples=400, deadline=None)
@given(paths)
@example(f"<{L64}l@example.com>")
@example(f"<u@{'d' * 64}>")
def test_the_fast_path_is_the_grammar(path: str) -> None:
    """Whatever the one match for ordinary addresses says, the grammar below it says as well."""
    fast = parse_path(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(address, "_ORDINARY", re.compile("(?!)"))
        assert parse_path(path) == fast


@settings(max_examples=300, deadline=None)
@given(paths)
@example(f"<u@{'d' * 62}İ>")
@example(f"<u@{'Ⱥ.' * 84}d>")
def test_the_canonical_form_stands(path: str) -> None:
    """It names the same mailbox, holds no control character, and is no longer than its columns."""
    mailbox = parse_path(path)
    if mailbox is None:
        return
    text = str(mailbox)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert len(text) <= 255
    assert mailbox.domain == mailbox.domain.lower().replace("[ipv6:", "[IPv6:")
    # Lower case may be longer: İ becomes two characters, Ⱥ three octets of two.
    if len(text.encode()) <= 254 and "İ" not in path:
        assert parse_path(f"<{text}>") == mailbox


# Where the sets of characters begin and end, and all below them.
CHARACTERS = [chr(n) for n in (*range(0x300), 0xD7FF, 0xD800, 0xDC80, 0xDFFF, 0xE000, 0x10FFFF)]


def is_wide(character: str) -> bool:
    """Whether RFC 6531 adds it: beyond the C1 controls, and no half of a pair."""
    return character >= "\xa0" and not "\ud800" <= character <= "\udfff"


@pytest.mark.parametrize(
    ("path", "ascii_set"),
    [
        ("<a{}b@example.com>", "!#$%&'*+/=?^_`{|}~-." + ascii_letters + digits),
        ('<"{}"@example.com>', "".join(map(chr, {*range(0x20, 0x7F)} - {*b'"\\'}))),
        ('<"\\{}"@example.com>', "".join(map(chr, range(0x20, 0x7F)))),
        ("<u@a{}b>", "-._" + ascii_letters + digits),
        ("<@a{}b:u@example.com>", "-._" + ascii_letters + digits),
        ("<u@[IPv6:::{}]>", hexdigits),
    ],
)
def test_the_characters_of(path: str, ascii_set: str) -> None:
    wide = "\\" not in path and "[" not in path
    for character in CHARACTERS:
        if character == "@" or (character == ":" and path[1] == "@"):
            continue  # has a meaning of its own there
        valid = character in ascii_set or (wide and is_wide(character))
        assert (parse_path(path.format(character)) is not None) == valid, ascii(character)


@pytest.mark.parametrize("text", ["\ud800@b.c", '"\udc80"@b.c', "a@\udfff.c", "a@b.c\ud800"])
def test_a_surrogate_is_in_no_mailbox(text: str) -> None:
    assert parse_mailbox(text) is None
    assert parse_path(f"<{text}>") is None
    assert parse_domain(text.partition("@")[2] + "\udc80") is None
