"""Is a ClientHello read as OpenSSL reads it, and refused before OpenSSL works hard for it?"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.server.certificates import Certificates
from gsmtpd.server.hello import Hello, HelloError
from gsmtpd.server.tls import TLSError, TLSStream
from tests.certificates import Authority
from tests.hellos import (
    BRAINPOOL,
    FFDHE2048,
    FFDHE8192,
    KEY_SHARE,
    P256,
    P384,
    P521,
    X448,
    X25519,
    counted,
    hello,
    number,
    records,
)

NAME = "mail.example.org"
FINITE = range(FFDHE2048, FFDHE8192 + 1)


def read(octets: bytes) -> Hello:
    """A hello that is there at once."""
    found = Hello()
    assert found.whole(octets)
    return found


# --- when it is whole -----------------------------------------------------------------------------


def test_a_hello_in_one_piece() -> None:
    assert read(records(hello(name=NAME))).server_name() == NAME


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100, 16384])
def test_octet_by_octet(size: int) -> None:
    octets, found = records(hello(name=NAME), size), Hello()
    for octet in octets[:-1]:
        assert not found.whole(bytes([octet]))
    assert found.whole(octets[-1:])
    assert found.octets == octets
    assert found.server_name() == NAME


def test_what_comes_behind_it_is_kept() -> None:
    octets = records(hello()) + b"\x14\x03\x03\x00\x01\x01" + b"\x17what comes next"
    assert read(octets).octets == octets


def test_a_hello_larger_than_a_record() -> None:
    large = records(hello(name=NAME, more={0xFAFA: bytes(20_000)}))
    assert not Hello().whole(large[:-1])
    assert read(large).server_name() == NAME


@pytest.mark.parametrize(
    "octets",
    [
        records(hello(more={0xFAFA: bytes(33_000)})),
        records(b"\x01\x00\x80\x01" + b"x"),  # it says so in its fourth octet
        records(b"\x01\xff\xff\xff"),
        records(b"\x01\x00\x7f\xff" + bytes(8_000), 1),  # it says less, but its records are many
    ],
)
def test_a_hello_that_is_too_long(octets: bytes) -> None:
    with pytest.raises(HelloError, match="^excessive message size$"):
        in_pieces(octets)


def in_pieces(octets: bytes) -> bool:
    """Whether it is whole, given as it comes from a socket."""
    found = Hello()
    for start in range(0, len(octets), 4096):
        whole = found.whole(octets[start : start + 4096])
    return whole


def test_the_longest_hello() -> None:
    spare = 32_768 + 4 - len(hello(more={0xFAFA: b""}))
    assert in_pieces(records(hello(more={0xFAFA: bytes(spare)}), 8_000))
    with pytest.raises(HelloError):
        in_pieces(records(hello(more={0xFAFA: bytes(spare + 1)}), 8_000))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (b"\x16\x03\x01\x00\x00", "wrong packet length"),  # an empty record
        (b"\x16\x03\x01\x40\x01", "wrong packet length"),
        (b"\x14\x03\x01\x00\x01\x01", "unexpected message"),
        (b"\x15\x03\x01\x00\x02\x01\x00", "unexpected message"),
        (b"\x17\x03\x03\x00\x01x", "unexpected message"),
        (b"\x00\x03\x01\x00\x01x", "unexpected message"),
        (b"\x16\x02\x01\x00\x01x", "wrong version number"),
        (b"EHLO a\r\n", "wrong version number"),
    ],
)
def test_what_no_hello_goes_on_with(second: bytes, reason: str) -> None:
    first = records(hello()[:100])
    found = Hello()
    assert not found.whole(first)
    with pytest.raises(HelloError, match=f"^{reason}$"):
        found.whole(second)
    with pytest.raises(HelloError, match=f"^{reason}$"):
        Hello().whole(first + second)


# --- its name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read_as"),
    [
        (NAME, NAME),
        ("Mail.Example.ORG.", NAME),
        ("", None),
        ("mäil.example.org", None),
        ("x" * 255, "x" * 255),
    ],
)
def test_the_name(name: str, read_as: str | None) -> None:
    assert read(records(hello(name=name))).server_name() == read_as


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_octets(octets: bytes, cut: int) -> None:
    """Also where all of it is there, but nothing of what should be."""
    for message in (octets, hello()[:cut] + octets):
        whole = b"\x01" + len(message).to_bytes(3, "big") + message
        found = read(records(whole))
        name = found.server_name()
        assert name is None or name == name.lower()
        try:
            found.check_groups()
        except HelloError as error:
            assert str(error)


# --- its key exchange -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "groups",
    [[X25519], [P256], [P384], [P521], [X448], [FFDHE8192, X25519], [0x11EC, P256], [0x9A9A, X448]],
)
def test_who_knows_an_elliptic_curve_is_good(groups: list[int]) -> None:
    """With a share, and also without, which has it asked to send one (HelloRetryRequest)."""
    share = [group for group in groups if group in (P256, P384, P521, X25519, X448)]
    read(records(hello(groups, share))).check_groups()
    read(records(hello(groups, []))).check_groups()


@pytest.mark.parametrize("group", FINITE)
@pytest.mark.parametrize("before", [[], [X25519], [X25519, P256, P521]])
@pytest.mark.parametrize("behind", [[], [P256]])
def test_a_share_over_a_finite_field(group: int, before: list[int], behind: list[int]) -> None:
    """OpenSSL takes the first one that suits it, and what that is is not known here."""
    shares = [*before, group, *behind]
    found = read(records(hello([X25519, P256, group], shares)))
    with pytest.raises(HelloError, match="^a key share over a finite field$"):
        found.check_groups()


@pytest.mark.parametrize("groups", [[], [FFDHE8192], [*FINITE], [0x16, 0x1F, 0x9A9A]])
@pytest.mark.parametrize("shares", [[], [FFDHE8192], [X25519]])
def test_no_elliptic_curve(groups: list[int], shares: list[int]) -> None:
    found = read(records(hello(groups, shares)))
    with pytest.raises(HelloError, match="^no elliptic curve among its groups$"):
        found.check_groups()


@pytest.mark.parametrize("group", [BRAINPOOL, 0x1B, 0x1C])
def test_curves_that_tls_1_3_does_not_have(context: ssl.SSLContext, group: int) -> None:
    """Else OpenSSL would ask for a share over a finite field itself (HelloRetryRequest)."""
    with pytest.raises(TLSError, match="^no elliptic curve among its groups$"):
        TLSStream(context).receive(records(hello([group, FFDHE8192], [])))


@pytest.mark.parametrize("groups", [[X25519], [FFDHE8192], []])
def test_tls_1_2_has_no_key_share(groups: list[int]) -> None:
    read(records(hello(groups, None))).check_groups()


def test_a_share_that_stands_behind_much() -> None:
    extensions = {0xFAFA: bytes(20_000), KEY_SHARE: counted(number(FFDHE8192) + counted(b"x"))}
    found = read(records(hello(shares=None, more=extensions)))
    with pytest.raises(HelloError, match="finite field"):
        found.check_groups()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    return Certificates(authority.pair(NAME), {}).context


def asked_for(context: ssl.SSLContext, groups: list[int]) -> int:
    """The group that a client without any share is asked for (RFC 8446 section 4.2.8)."""
    server = TLSStream(context)
    server.receive(records(hello(groups, [])))
    said = server.take_output()
    share = said.find(number(KEY_SHARE) + b"\0\2")
    assert share > 0, said
    return int.from_bytes(said[share + 4 : share + 6], "big")


def test_who_knows_both_is_led_to_a_curve(context: ssl.SSLContext) -> None:
    assert asked_for(context, [FFDHE8192, FFDHE2048, P521]) == P521
    assert asked_for(context, [FFDHE8192, X25519]) == X25519


def test_and_cannot_go_on_without_it(context: ssl.SSLContext) -> None:
    """The second hello is read by OpenSSL alone, which has a right to what it asked for."""
    server = TLSStream(context)
    server.receive(records(hello([FFDHE8192, X25519], [])))
    with pytest.raises(TLSError, match="bad key share"):
        server.receive(records(hello([FFDHE8192, X25519], [FFDHE8192])))


def test_hellos_of_python(tmp_path: Path) -> None:
    """Of each version that it speaks, with and without a name."""
    authority = Authority(tmp_path)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for name in (NAME, None):
            client = authority.client(version, version)
            client.check_hostname = False
            outgoing = ssl.MemoryBIO()
            tls = client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            found = read(outgoing.read())
            found.check_groups()
            assert found.server_name() == name
