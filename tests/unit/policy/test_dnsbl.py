"""How are blocklists written, what do their answers mean, and which name servers are asked?"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.policy import dnsbl, nameservers
from gsmtpd.policy.dnsbl import Blocklist, BlocklistError, Blocklists, parse_blocklist
from gsmtpd.policy.nameservers import NameServers

LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
ZONES = st.tuples(st.lists(LABELS, max_size=4), st.from_regex(r"[a-z]{2,9}", fullmatch=True)).map(
    lambda parts: ".".join([*parts[0], parts[1]])
)
LOOPBACK = st.integers(int(IPv4Address("127.0.0.0")), int(IPv4Address("127.255.254.255")))


# --- Writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zen.example.org", Blocklist("zen.example.org")),
        ("Zen.Example.ORG.", Blocklist("zen.example.org")),
        ("zen.example.org=127.0.0.2", Blocklist("zen.example.org", "127.0.0.2")),
        ("zen.example.org = 127.0.0.2/32", Blocklist("zen.example.org", "127.0.0.2")),
        ("zen.example.org=127.0.0.0/30", Blocklist("zen.example.org", "127.0.0.0/30")),
        ("zen.example.org=127.0.0.0/8", Blocklist("zen.example.org", "127.0.0.0/8")),
        ("_x.bl-1.example", Blocklist("_x.bl-1.example")),
    ],
)
def test_what_can_be_written(text: str, expected: Blocklist) -> None:
    assert parse_blocklist(text) == expected


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("", '"" is no DNS zone; write a name such as'),
        (".", "is no DNS zone"),
        ("zen..org", '"zen..org" is no DNS zone'),
        ("-zen.example.org", "is no DNS zone"),
        ("zen example.org", "is no DNS zone"),
        ("zén.example.org", "is no DNS zone"),
        ("https://example.org/", "is no DNS zone"),
        ("192.0.2.1", '"192.0.2.1" is no DNS zone'),
        (f"{'a' * 64}.example", "is no DNS zone"),
        (".".join(["a" * 60] * 4), "is too long; write at most 189 characters"),
        ("=127.0.0.2", '"" is no DNS zone'),
        ("zen.example.org=", '"" is no answer of a blocklist; write an address such as 127.0.0.2'),
        ("zen.example.org=2", '"2" is no answer'),
        ("zen.example.org=127.0.0.1/30", "is no answer"),
        ("zen.example.org=127.0.0.2=127.0.0.3", '"127.0.0.2=127.0.0.3" is no answer'),
        ("zen.example.org=192.0.2.1", "is no answer"),
        ("zen.example.org=0.0.0.0/0", "is no answer"),
        ("zen.example.org=::1", "is no answer"),
        ("zen.example.org=127.255.255.254", "asked wrongly; write answers that are not in"),
        ("zen.example.org\0", r'"zen.example.org\\x00" is no DNS zone'),
    ],
)
def test_what_cannot_be_written(text: str, trouble: str) -> None:
    with pytest.raises(ValueError, match=trouble.replace("?", r"\?")):
        parse_blocklist(text)


@given(ZONES, LOOPBACK, st.integers(8, 32))
def test_what_was_written_is_read_again(zone: str, address: int, length: int) -> None:
    network = IPv4Network((address, length), strict=False)
    blocklist = parse_blocklist(f"{zone}={network}")
    assert blocklist.zone == zone
    assert IPv4Network(blocklist.answers) == network
    assert parse_blocklist(f"{blocklist.zone}={blocklist.answers}") == blocklist


@given(st.text() | st.text("az09.-_=/ :127"))
def test_any_text_is_a_blocklist_or_a_mistake(text: str) -> None:
    try:
        zone, answers = parse_blocklist(text)
    except ValueError as error:
        assert "; write " in str(error)
        assert str(error).isprintable()
    else:
        assert zone.isascii() and zone == zone.lower() and " " not in zone
        assert not answers or IPv4Network(answers).subnet_of(IPv4Network("127.0.0.0/8"))


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        ("zen.example.org", "zen.example.org"),
        ("abcdefghij0123456789klmnop.zen.dq.example.org", "zen.dq.example.org"),
        ("a-long-name-that-is-no-key.example.org", "a-long-name-that-is-no-key.example.org"),
        ("abcdefghij0123456789klmnop", "abcdefghij0123456789klmnop"),
    ],
)
def test_the_key_of_a_customer_is_not_shown(zone: str, name: str) -> None:
    assert Blocklist(zone).name == name


# --- Meaning --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "question"),
    [
        ("192.0.2.99", "99.2.0.192.bad.example.com."),  # RFC 5782 section 2.1
        (
            "2001:db8:1:2:3:4:567:89ab",  # RFC 5782 section 2.4
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bad.example.com.",
        ),
    ],
)
def test_what_is_asked(ip: str, question: str) -> None:
    zone = dnsbl._Zone(Blocklist("bad.example.com"))
    assert zone.question(dnsbl.ip_address(ip)) == question


@pytest.mark.parametrize(
    ("ip", "asked_for"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2606:4700::1", "2606:4700::1"),
        *((ip, "None") for ip in ("10.1.2.3", "127.0.0.1", "169.254.1.1", "100.64.0.1")),
        *((ip, "None") for ip in ("::1", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1")),
        *((ip, "None") for ip in ("", "unix", "1.2.3", "1.2.3.4.5")),
    ],
)
def test_only_public_addresses_are_asked_for(ip: str, asked_for: str) -> None:
    assert str(dnsbl._public(ip)) == asked_for


@pytest.mark.parametrize(
    ("counts", "answers", "listed", "trouble"),
    [
        ("", [], False, ""),
        ("", ["127.0.0.2"], True, ""),
        ("", ["127.0.0.1"], True, ""),
        ("", ["127.255.254.255"], True, ""),
        ("", ["127.255.255.254"], False, "127.255.255.254"),
        ("", ["192.0.2.1"], False, "192.0.2.1"),
        ("", ["127.255.255.254", "127.0.0.4"], True, ""),
        ("127.0.0.0/30", ["127.0.0.4"], False, ""),
        ("127.0.0.0/30", ["127.0.0.4", "127.0.0.3"], True, ""),
        ("127.0.0.2", ["127.255.255.255"], False, "127.255.255.255"),
        ("127.0.0.0/8", ["127.255.255.255"], False, "127.255.255.255"),
    ],
)
def test_what_answers_mean(
    counts: str,
    answers: list[str],
    listed: bool,
    trouble: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    zone = dnsbl._Zone(Blocklist("zen.example.org", counts))
    assert zone.means([IPv4Address(answer) for answer in answers]) is listed
    assert [trouble in line for line in caplog.messages] == ([True] if trouble else [])


@given(st.text())
def test_the_reason_can_be_said_to_a_client(text: str) -> None:
    reason = dnsbl._reason("zen.example.org", text)
    assert reason.startswith("zen.example.org")
    assert reason.isascii() and reason.isprintable() and len(reason) <= 200


def test_the_reason_without_words_is_the_list() -> None:
    assert dnsbl._reason("zen.example.org", " \r\n") == "zen.example.org"
    assert dnsbl._reason("zen.example.org", "a\r\nb\xe4") == "zen.example.org: a b?"


def test_trouble_is_said_once_in_a_while_with_how_often(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 1000.0
    monkeypatch.setattr(dnsbl.time, "monotonic", lambda: now)
    trouble = dnsbl._Trouble("dnsbl x")
    trouble.well()
    for _ in range(5):
        trouble.happened("gone")
    trouble.happened("refused", 3600)
    now += 60
    trouble.happened("gone")
    trouble.happened("refused", 3600)
    trouble.well()
    trouble.well()
    trouble.happened("gone")
    now += 3600
    trouble.happened("refused", 3600)
    end = "; clients are served as if not listed"
    assert caplog.messages == [
        f"dnsbl x: gone{end}",
        f"dnsbl x: refused (5 times){end}",
        f"dnsbl x: gone{end}",
        "dnsbl x: answers again",
        f"dnsbl x: refused (2 times){end}",
    ]


# --- Name servers ---------------------------------------------------------------------------------


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(BlocklistError, match=r"python3-dnspython.*gsmtpd\[dnsbl\]"):
        Blocklists([Blocklist("zen.example.org")], 2, None)


def asked(servers: NameServers) -> list[str]:
    """The addresses of the servers that would be asked now."""

    async def current() -> list[str]:
        return [str(server) for server in (await servers._current()).nameservers]

    return asyncio.run(current())


def rewrite(path: Path, text: str) -> None:
    """Replace a file, as resolvconf does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_resolv_conf_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(nameservers, "RESOLV_CONF", str(conf))
    servers = NameServers(None, 2)
    with pytest.raises(OSError, match=r"resolv\.conf"):
        asked(servers)
    rewrite(conf, "search example.org\n")
    with pytest.raises(Exception, match="nameserver"):
        asked(servers)
    rewrite(conf, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n")
    assert asked(servers) == ["192.0.2.1", "2001:db8::1"]
    rewrite(conf, "nameserver 192.0.2.2\n")
    assert asked(servers) == ["192.0.2.2"]


@pytest.mark.parametrize("broken", ["search example.org\n", "nameserver here\n", None])
def test_a_resolv_conf_that_is_of_no_use_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(nameservers, "RESOLV_CONF", str(conf))
    rewrite(conf, "nameserver 192.0.2.1\n")
    servers = NameServers(None, 2)
    assert asked(servers) == ["192.0.2.1"]
    conf.unlink()
    if broken is not None:
        rewrite(conf, broken)
    assert asked(servers) == asked(servers) == ["192.0.2.1"]
    rewrite(conf, "nameserver 192.0.2.123\n")
    assert asked(servers) == ["192.0.2.123"]


def test_a_server_may_be_an_address_or_a_name() -> None:
    assert asked(NameServers(("192.0.2.1", 5353), 2)) == ["192.0.2.1"]
    assert set(asked(NameServers(("localhost", 53), 2))) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"a\.invalid"):
        asked(NameServers(("a..a.invalid", 53), 2))
