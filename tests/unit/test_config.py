"""gsmtpd.config: what a file, the environment and the command line make, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from configobj import ConfigObj  # type: ignore[import-untyped]
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gsmtpd import config
from gsmtpd.config import Address, BodyAddress, Config, ConfigError, Keep, MySQLHost
from gsmtpd.config_checks import CHECKS, ValidateError, Validator, written
from gsmtpd.config_file import MANY, Place, Report, check_name, settle
from gsmtpd.config_file import settings as spec_places
from gsmtpd.smtp.address import parse_domain

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "etc" / "gsmtpd.conf"
SPEC: Any = ConfigObj(str(config.SPEC), interpolation=False, list_values=False, _inspec=True)
SECRET = "hunter2-never-shown"

Loader = Callable[..., Config]
Refuser = Callable[..., tuple[str, ...]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gsmtpd.conf"


@pytest.fixture
def load(file: Path) -> Loader:
    def load_text(text: str | bytes, environ: Mapping[str, str] = {}, **options: Any) -> Config:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(str(file), environ=environ, **options)

    return load_text


@pytest.fixture
def refused(load: Loader, file: Path) -> Refuser:
    """The problems with a text, the name of the file cut to "FILE"."""

    def problems(text: str | bytes, environ: Mapping[str, str] = {}, **options: Any) -> Any:
        with pytest.raises(ConfigError) as caught:
            load(text, environ, **options)
        assert str(caught.value) == "\n".join(caught.value.problems)
        assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
        return tuple(p.replace(str(file), "FILE") for p in caught.value.problems)

    return problems


def setting(section: str, key: str, value: str) -> str:
    """A file with one setting; `section` is "a" or "a.b"."""
    headers = [f"{'[' * n}{s}{']' * n}\n" for n, s in enumerate(section.split("."), 1)]
    return f"{''.join(headers)}{key} = {value}\n"


def value(loaded: Config, section: str, key: str) -> Any:
    """What a setting has become."""
    if section.startswith("listen"):
        return getattr(loaded.listeners[0], "addresses" if key == "address" else key)
    found: Any = loaded
    for name in section.split("."):
        found = getattr(found, name)
    return getattr(found, "hosts" if key == "host" else key)


# Values that are taken

V4, V6 = Address("0.0.0.0", 25), Address("::", 25)

GOOD = [
    ("server", "host_name", "MX.Example.COM", "mx.example.com"),
    ("server", "host_name", "bücher.example", "xn--bcher-kva.example"),
    ("server", "host_name", "mx.example.com.", "mx.example.com"),
    ("server", "processes", "auto", None),
    ("server", "processes", "256", 256),
    ("server", "threads", "AUTO", None),
    ("server", "threads", "1", 1),
    ("server", "pid_file", "/tmp/a b.pid", "/tmp/a b.pid"),
    ("server", "pid_file", '"/tmp/a#b, c.pid"   # quoted', "/tmp/a#b, c.pid"),
    ("server", "pid_file", "/tmp/x   # a comment", "/tmp/x"),
    ("server", "pid_file", '"""/tmp/x"""', "/tmp/x"),
    ("listen.mx", "address", "127.0.0.1:2525", (Address("127.0.0.1", 2525),)),
    ("listen.mx", "address", "localhost:0", (Address("localhost", 0),)),
    ("listen.mx", "address", "[::]:25,0.0.0.0:25,", (V6, V4)),
    ("listen.mx", "address", '"[::]:25", "0.0.0.0:25"', (V6, V4)),
    ("listen.mx", "address", '"[::]:25, 0.0.0.0:25"', (V6, V4)),
    ("listen.mx", "address", '"""[::]:25,\n0.0.0.0:25"""', (V6, V4)),
    ("listen.mx", "address", "[0:0::1]:25", (Address("::1", 25),)),
    ("listen.mx", "address", "[fe80::1%eth0]:25", (Address("fe80::1%eth0", 25),)),
    ("listen.mx", "address", "127.0.0.1:0, 127.0.0.1:0", (Address("127.0.0.1", 0),) * 2),
    ("listen.mx", "protocol", "SMTP", "smtp"),
    ("listen.mx", "tls", "off", "off"),
    ("listen.mx", "proxy_from", "", ()),
    ("listen.mx", "proxy_from", "10.0.0.0/8, 2001:DB8::/32", ("10.0.0.0/8", "2001:db8::/32")),
    ("listen.mx", "xclient_from", "::ffff:192.0.2.1, 192.0.2.1,", ("192.0.2.1",)),
    ("listen.mx", "chunking", "No", False),
    ("domains", "accept", "a.example, B.example,a.Example", ("a.example", "b.example")),
    ("domains", "accept", "münchen.example", ("xn--mnchen-3ya.example",)),
    ("domains", "accept", "[127.0.0.1], [ipv6:0::1]", ("[127.0.0.1]", "[IPv6:::1]")),
    ("domains", "accept", "my_host.example", ("my_host.example",)),
    ("domains", "accept", "*, .A.example, *.b.example.", ("*", ".a.example", "*.b.example")),
    ("domains", "accept", "@/etc/domains, @/etc/more", ("@/etc/domains", "@/etc/more")),
    ("domains", "primary_domain", "Example.com", "example.com"),
    ("domains", "primary_domain", "", None),
    ("limits", "max_size", "64K", 65536),
    ("limits", "max_size", "256m", 256 << 20),
    ("limits", "max_memory", "10M", 10 << 20),
    ("limits", "max_memory", "1024G", 1 << 40),
    ("limits", "max_size", "100000", 100_000),
    ("limits", "max_clients", "1000000", 1_000_000),
    ("limits", "max_clients_per_ip", "No", None),
    ("limits", "max_clients_per_ip", "1", 1),
    ("limits", "max_clients_per_ip", "1000000", 1_000_000),
    ("limits", "max_recipients", "100", 100),
    ("limits", "min_data_rate", "0", 0),
    ("limits", "min_data_rate", "1000000", 1_000_000),
    ("limits", "timeout", "90", 90.0),
    ("limits", "timeout", "1.5s", 1.5),
    ("limits", "timeout", "250ms", 0.25),
    ("limits", "timeout", "2m", 120.0),
    ("limits", "session_timeout", "1h", 3600.0),
    ("limits", "session_timeout", "7d", 604800.0),
    ("limits", "bare_newline", "Reject", "reject"),
    ("store", "backend", "mysql", "mysql"),
    ("store", "backend", "null", "null"),
    ("store", "durability", "relaxed", "relaxed"),
    ("content", "decode", "off", "off"),
    ("content", "compress", "no", None),
    ("content", "compress", "9", 9),
    ("content", "spam_score_header", "X-Spam-Score:", "X-Spam-Score"),
    ("store", "keep", "", Keep(None)),
    ("store", "keep", "forever", Keep(None)),
    ("store", "keep", "1h", Keep(3600.0)),
    (
        "store",
        "keep",
        "90m, Example.COM 7d, bücher.example forever",
        Keep(5400.0, (("example.com", 604800.0), ("xn--bcher-kva.example", None))),
    ),
    ("store", "keep", "example.com 1d", Keep(None, (("example.com", 86400.0),))),
    ("store", "dedupe_window", "", None),
    ("store", "dedupe_window", "1h", 3600.0),
    ("store", "spool", "No", ""),
    ("store", "spool_size", "2G", 2 << 30),
    ("store.mysql", "partition", "hour", "hour"),
    ("store.body", "backend", "redis", "redis"),
    ("store.body", "address", "[::1]:11211", BodyAddress("::1", 11211)),
    ("store.body", "address", "cache1", BodyAddress("cache1")),
    ("store.body", "address", "/run/redis/s", BodyAddress("localhost", None, "/run/redis/s")),
    ("store.body", "ttl", "30d", 2592000.0),
    ("store.sqlite", "path", "/srv/mail.db", "/srv/mail.db"),
    ("store.mysql", "host", "localhost", (MySQLHost("localhost", 3306, None),)),
    (
        "store.mysql",
        "host",
        "db1, 10.0.0.2:3307, [::1]:3308, [::2], /run/mysqld/mysqld.sock",
        (
            MySQLHost("db1", 3306),
            MySQLHost("10.0.0.2", 3307),
            MySQLHost("::1", 3308),
            MySQLHost("::2", 3306),
            MySQLHost("localhost", 3306, "/run/mysqld/mysqld.sock"),
        ),
    ),
    ("store.mysql", "user", "o'neill", "o'neill"),
    ("store.mysql", "database", "my-db", "my-db"),
    ("store.mysql", "table", "new_mail2", "new_mail2"),
    ("store.mysql", "connections", "100", 100),
    ("store.mysql", "password", "ab,c", "ab,c"),
    ("store.mysql", "password", "  ab c%(x)s$y  ", "ab c%(x)s$y"),
    ("store.mysql", "password", '"ab#c"', "ab#c"),
    ("store.mysql", "password", "'ab\"#c'", 'ab"#c'),
    ("store.mysql", "password", '"""\'a"#\'"""', "'a\"#'"),
    ("store.mysql", "password", '" x "', " x "),
    ("hooks", "directory", "/etc/gsmtpd/hooks", "/etc/gsmtpd/hooks"),
    ("hooks", "rcpt", "checks.recipient", "checks.recipient"),
    ("hooks", "data", "my_package.checks._data2", "my_package.checks._data2"),
    ("hooks", "time_limit", "100ms", 0.1),
    ("hooks", "on_trouble", "Accept", "accept"),
    ("log", "file", "/var/log/gsmtpd.log", "/var/log/gsmtpd.log"),
    ("log", "level", "DEBUG", "debug"),
    ("log", "format", "json", "json"),
]


@pytest.mark.parametrize(("section", "key", "text", "wanted"), GOOD)
def test_a_value_is_taken(load: Loader, section: str, key: str, text: str, wanted: Any) -> None:
    loaded = load(setting(section, key, text))
    assert value(loaded, section, key) == wanted
    assert loaded.warnings == ()


@pytest.mark.parametrize(("section", "key", "text", "wanted"), GOOD)
def test_what_is_dumped_loads_equal(
    load: Loader, section: str, key: str, text: str, wanted: Any
) -> None:
    loaded = load(setting(section, key, text))
    again = load(config.dump(loaded))
    if key == "password":
        assert again.store.mysql.password == ""
        mysql = dataclasses.replace(again.store.mysql, password=wanted)
        again = dataclasses.replace(again, store=dataclasses.replace(again.store, mysql=mysql))
    assert again == loaded


# Values that are refused

HOST_PORT = '"{}" is not an address; write host:port or [ipv6]:port'
ONE = '"{}" is not one domain; write each domain here by its full name'
DURATION = (
    '"{}" is not a duration; write a number of seconds, or one with ms, s, m, h or d, e.g. 30m'
)
SIZE = '"{}" is not a size; write a number of bytes with an optional K, M or G, e.g. 10M'

BAD = [
    ("server", "host_name", "my_host", '"my_host" is not a host name; write letters'),
    ("server", "host_name", "a..b", '"a..b" is not a domain name; write one like mail.ex'),
    ("server", "host_name", "10.0.0.1", '"10.0.0.1" is not a domain name'),
    ("server", "host_name", "a, b", '"a, b" is not a domain name'),
    ("server", "host_name", "x" * 64, f'"{"x" * 64}" is not a domain name'),
    ("server", "host_name", "ü" * 64, f'"{"ü" * 64}" is not a domain name'),
    ("server", "processes", "0", '"0" is too small; write 1 to 256, or auto'),
    ("server", "processes", "257", '"257" is too big; write 1 to 256, or auto'),
    ("server", "threads", "two", '"two" is not a whole number; write 1 to 64, or auto'),
    ("server", "threads", "٣", '"٣" is not a whole number'),
    ("server", "pid_file", "gsmtpd.pid", '"gsmtpd.pid" is not a full path; write one that'),
    ("server", "pid_file", "", '"" is not a full path'),
    ("server", "pid_file", "'''/a\nb'''", '"/a\\nb" is not a full path'),
    ("listen.mx", "address", "", "is empty; write host:port, e.g. 0.0.0.0:25, [::]:25"),
    ("listen.mx", "address", "*:25", '"*:25" names no address; write 0.0.0.0:25, [::]:25 for'),
    ("listen.mx", "address", ":587", '":587" names no address; write 0.0.0.0:587, [::]:587 for'),
    ("listen.mx", "address", "25", '"25" names no address; write 0.0.0.0:25, [::]:25 for'),
    ("listen.mx", "address", "localhost", '"localhost" lacks its host or port; write host:port'),
    ("listen.mx", "address", "[::]", '"[::]" lacks its host or port'),
    ("listen.mx", "address", "::1:25", '"::1:25" is ambiguous; write an IPv6 address in brackets'),
    ("listen.mx", "address", "[127.0.0.1]:25", HOST_PORT.format("[127.0.0.1]:25")),
    ("listen.mx", "address", "[::1%a b]:25", HOST_PORT.format("[::1%a b]:25")),
    ("listen.mx", "address", "a.b:", '"a.b:" has no good port; write 0 to 65535 after the :'),
    ("listen.mx", "address", "a.b:65536", '"a.b:65536" has no good port'),
    ("listen.mx", "address", "300.1.1.1:25", '"300.1.1.1" is not a domain name'),
    ("listen.mx", "address", "a:25, a:25", "a:25 is also in [[mx]]; write it once"),
    ("listen.mx", "protocol", "esmtp", '"esmtp" is not possible; write smtp or lmtp'),
    ("listen.mx", "tls", "yes", '"yes" is not possible; write off, starttls, required or impl'),
    ("listen.mx", "proxy_from", "haproxy", '"haproxy" is not a network; write one like 192.0.2.0'),
    ("listen.mx", "proxy_from", "10.0.0.1/8", '"10.0.0.1/8" has bits set beyond its /8; write 10'),
    ("listen.mx", "proxy_from", "@/etc/x", '"@/etc/x" is a file, which cannot stand here; write'),
    ("listen.mx", "xclient_from", "/etc/x", '"/etc/x" is a file, which cannot stand here; write'),
    ("listen.mx", "chunking", "off", '"off" is not possible; write yes or no'),
    ("domains", "accept", "*x.example", '"*x.example" is not a pattern; write *.example'),
    ("domains", "accept", "@etc/domains", '"@etc/domains" is not a domain; write it without @'),
    ("domains", "accept", "/etc/domains", '"/etc/domains" is a file; write @/etc/domains'),
    ("domains", "accept", "127.0.0.1", '"127.0.0.1" is not a domain; write [127.0.0.1]'),
    ("domains", "accept", "::1", '"::1" is not a domain; write [IPv6:::1]'),
    ("domains", "accept", "[::1]", '"[::1]" is not an address literal; write [IPv6:::1]'),
    ("domains", "accept", "[x]", '"[x]" is not an address literal; write one like [127.0.0.1] or'),
    ("domains", "primary_domain", "a.example, b.example", '"a.example, b.example" is not a domain'),
    ("domains", "primary_domain", "*.example", ONE.format("*.example")),
    ("limits", "max_size", "10 potatoes", SIZE.format("10 potatoes")),
    ("limits", "max_size", "10MB", SIZE.format("10MB")),
    ("limits", "max_size", "-1", SIZE.format("-1")),
    ("limits", "max_size", "63K", '"63K" is too small; write 64K to 1G'),
    ("limits", "max_size", "2G", '"2G" is too big; write 64K to 1G'),
    ("limits", "max_clients", "0", '"0" is too small; write 1 to 1000000'),
    ("limits", "max_clients", "1_000", '"1_000" is not a whole number; write 1 to 1000000'),
    ("limits", "max_recipients", "99", '"99" is too small; write a whole number of 100 or more'),
    ("limits", "max_clients_per_ip", "0", '"0" is too small; write 1 to 1000000, or no'),
    ("limits", "max_memory", "512K", '"512K" is too small; write 1M to 1024G'),
    ("limits", "min_data_rate", "-1", '"-1" is not a whole number; write 0 to 1000000'),
    ("limits", "timeout", "30M", DURATION.format("30M")),
    ("limits", "timeout", "1e3", DURATION.format("1e3")),
    ("limits", "timeout", "inf", DURATION.format("inf")),
    ("limits", "timeout", "0", '"0" is too small; write 1ms to 1d'),
    ("limits", "session_timeout", "8d", '"8d" is too big; write 1ms to 7d'),
    ("limits", "bare_newline", "maybe", '"maybe" is not possible; write accept or reject'),
    ("store", "backend", "oracle", '"oracle" is not possible; write sqlite, mysql or null'),
    ("store", "durability", "", '"" is not possible; write strict or relaxed'),
    ("content", "decode", "yes", '"yes" is not possible; write body, headers or off'),
    ("content", "compress", "10", '"10" is too big; write 1 to 9, or no'),
    ("content", "spam_score_header", "a b", '"a b" is not a header field; write one like X-Spam-'),
    ("store", "keep", "1s", '"1s" is too small; write 1m to 3650d, or forever'),
    ("store", "keep", "example.com", '"example.com" is not a duration'),
    ("store", "keep", "1h, example.com", '"example.com" lacks its domain or its time; write e.g.'),
    ("store", "keep", "1h, example.com x", '"x" is not a duration'),
    ("store", "keep", "1h, a.example 1h, a.example 2h", '"a.example" is there twice; write it'),
    ("store", "keep", "1h, *.example 1h", ONE.format("*.example")),
    ("store", "dedupe_window", "8d", '"8d" is too big; write 1s to 7d'),
    ("store", "spool", "yes", '"yes" is not a full path; write one that begins with /, or no'),
    ("store", "spool", "", '"" is not a full path; write one that begins with /, or no'),
    ("store", "spool_size", "512K", '"512K" is too small; write 1M to 1024G'),
    ("store.mysql", "partition", "day", '"day" is not possible; write no or hour'),
    ("store.body", "backend", "disk", '"disk" is not possible; write none, memcached or redis'),
    ("store.body", "address", "a:b", '"a:b" has no good port; write 1 to 65535 after the :'),
    ("store.body", "ttl", "31d", '"31d" is too big; write 1s to 30d'),
    ("store.sqlite", "path", ":memory:", '":memory:" is not a full path'),
    ("store.sqlite", "path", '/a"b', '"/a"b" is not a full path'),
    ("store.mysql", "host", "", "is empty; write host, host:port, [ipv6]:port or /path/of/socket"),
    ("store.mysql", "host", "db:0", '"db:0" has no good port; write 1 to 65535 after the :'),
    ("store.mysql", "host", "::1", '"::1" is ambiguous'),
    ("store.mysql", "user", "", '"" is not a name'),
    ("store.mysql", "table", "new-mail", '"new-mail" is not a table name; write letters, dig'),
    ("store.mysql", "table", "pöst", '"pöst" is not a table name'),
    ("store.mysql", "table", "x, y", '"x, y" is not a table name'),
    ("store.mysql", "connections", "101", '"101" is too big; write 1 to 100'),
    ("store.mysql", "password", "'''a\nb'''", "has more than one line"),
    ("store.mysql", "password_file", "secret", '"secret" is not a full path'),
    ("store.mysql", "password_file", "/nonexistent/x", '"/nonexistent/x" cannot be read: No such'),
    ("hooks", "directory", "hooks", '"hooks" is not a full path; write one that'),
    ("hooks", "rcpt", "recipient", '"recipient" is not a function; write module.function'),
    ("hooks", "rcpt", "checks:recipient", '"checks:recipient" is not a function; write module'),
    ("hooks", "data", "checks.", '"checks." is not a function; write module.function'),
    ("hooks", "data", "../x.data", '"../x.data" is not a function; write module.function'),
    ("hooks", "time_limit", "50ms", '"50ms" is too small; write 100ms to 30s'),
    ("hooks", "on_trouble", "reject", '"reject" is not possible; write accept or defer'),
    ("log", "level", "loud", '"loud" is not possible; write debug, info, warning or error'),
    ("log", "format", "xml", '"xml" is not possible; write logfmt or json'),
    # A "#" that ends a value is no comment anyone meant.
    ("server", "pid_file", "/run/a#b", '"#" begins a comment and ends the value; put the value'),
    ("store.mysql", "password", "ab#c", '"#" begins a comment and ends the value; put the value'),
    ("limits", "max_size", "1M#comment", '"#" begins a comment and ends the value; put the value'),
]


@pytest.mark.parametrize(("section", "key", "text", "wrong"), BAD)
def test_a_value_is_refused(
    refused: Refuser, section: str, key: str, text: str, wrong: str
) -> None:
    names = section.split(".")
    place = " ".join(f"{'[' * n}{s}{']' * n}" for n, s in enumerate(names, 1))
    (problem,) = refused(setting(section, key, text))
    assert problem.startswith(f"FILE:{len(names) + 1}: {place} {key}: {wrong}")


@pytest.mark.parametrize(
    ("section", "key", "text", "wrong"), [bad for bad in BAD if not re.search("#|'''", bad[2])]
)
def test_the_same_value_is_refused_in_the_environment(
    refused: Refuser, section: str, key: str, text: str, wrong: str
) -> None:
    variable = f"GSMTPD_{section.replace('.', '_')}_{key}".upper()
    (problem,) = refused("", {variable: text})
    assert problem.startswith(f"{variable}: [")
    assert wrong in problem


def test_a_list_reports_each_bad_item(refused: Refuser) -> None:
    problems = refused("[domains]\naccept = *x.y, ok.example, a..b\n")
    assert [p.partition(" accept: ")[2][:6] for p in problems] == ['"*x.y"', '"a..b"']


@pytest.mark.parametrize("text", ["a.example", "[127.0.0.1]", "[ipv6:0::1]", "X_y.Example"])
def test_domains_are_written_as_the_protocol_writes_them(load: Loader, text: str) -> None:
    assert load(f"[domains]\naccept = {text}\n").domains.accept == (parse_domain(text),)


# Files that cannot be taken

FILES = [
    ("max_sise = 1", "FILE:1: max_sise: unknown key; a [section] comes first"),
    ("max_size = 1", "FILE:1: max_size: is not a key of this section; it belongs in [limits]"),
    ("listen = 1", "FILE:1: listen: is a section, not a key; write its name in brackets"),
    ("[limits]\nmax_sise = 1", "FILE:2: [limits] max_sise: unknown key; did you mean max_size?"),
    ("[limits]\nMax_Size = 1M", "FILE:2: [limits] Max_Size: unknown key; did you mean max_size?"),
    (
        "[log]\nzzz = 1",
        "FILE:2: [log] zzz: unknown key; the keys here are file, mail_file, level, format",
    ),
    ("[log]\nlevel = info\n[[x]]", "FILE:3: [log] [[x]]: unknown section; none fits here"),
    ("[log]\n[[level]]\nx = 1", 'FILE:2: [log] [[level]]: is a key, not a section; write "level'),
    ("[limit]", "FILE:1: [limit]: unknown section; did you mean limits?"),
    ("[x]", "FILE:1: [x]: unknown section; the sections here are server, listen, tls, domains"),
    ("[DEFAULT]\nx = 1", "FILE:1: [DEFAULT]: unknown section; the sections here are"),
    ("[__many__]", "FILE:1: [__many__]: unknown section"),
    ("[store]\n[[postgres]]", "FILE:2: [store] [[postgres]]: unknown section; the sections here"),
    ("[store]\nsqlite = 1", "FILE:2: [store] sqlite: is a section, not a key"),
    ("[store]\nkept = 1h", "FILE:2: [store] kept: unknown key; did you mean keep?"),
    ("[listen]", "FILE:1: [listen]: has no listener; write [[mx]] and below it an address"),
    ("[listen]\n[[mx]]\n[[[x]]]", "FILE:3: [listen] [[mx]] [[[x]]]: unknown section"),
    ("[listen]\n[[m x]]", "FILE:2: [listen] [[m x]]: is not a name for a listener; write letters"),
    ("[listen]\n[[__many__]]", "FILE:2: [listen] [[__many__]]: is not a name for a listener"),
    ("[listen]\n[[a]]\n[[b]]\naddress = 0.0.0.0:25", "FILE:4: [listen] [[b]] address: 0.0.0.0:25"),
    # Syntax. The rest of the file is still read, and the line is never shown.
    ("[log]\nlevel", 'FILE:2: neither "[section]" nor "key = value"; write one of them'),
    ("[log]\n\n= x", "FILE:3: neither"),
    (" = x", "FILE:1: unknown key; a [section] comes first"),
    ("[log]\nlevel: info", "FILE:2: neither"),
    ("[listen]\n[[mx]]\naddress = 0.0.0.0:25,\n  [::]:25", "FILE:4: neither"),
    ("[limits", "FILE:1: the header of a section is not closed; write [section] or [[name]]"),
    ("[listen]\n[[mx]\naddress = x", "FILE:2: a section where none can be; write [section]"),
    ("[[mx]]\naddress = x", "FILE:1: a section where none can be"),
    ('[log]\nlevel = "info', "FILE:2: [log] level: a quote is not closed; put the whole value"),
    ('[log]\nlevel = "in" "fo', "FILE:2: [log] level: a quote is not closed"),
    ("[log]\nlevel = '''info", "FILE:2: [log] level: a quote is not closed"),
    ("[log]\nlevel = info\n\nlevel = info", "FILE:4: [log] level: appears twice (first on line 2)"),
    ("[log]\n[store]\n[log]\nx = 1", "FILE:3: [log]: appears twice (first on line 1); keep one"),
    ("[log] level = info", "FILE:1: [log] ...: unknown key; the header of a section stands on a"),
    ("[log]\nlevel = \x00", "FILE:2: control character 0x00; take it out"),
    ("[log]\rlevel = info", "FILE:1: control character 0x0d; take it out"),
    (b"[log]\nlevel = inf\xff", "FILE:2: byte 0xff is not UTF-8; save the file as UTF-8"),
    ("[log]\n".encode("utf-16"), "FILE:1: byte 0xff is not UTF-8"),
    (b"#" * (1 << 20) + b"#", "FILE: is larger than 1048576 bytes"),
]


@pytest.mark.parametrize(("text", "wrong"), FILES)
def test_a_file_is_refused(refused: Refuser, text: str | bytes, wrong: str) -> None:
    problems = refused(text)
    assert problems[0].startswith(wrong)
    if not wrong.startswith("FILE:4: neither"):
        assert len(problems) == 1 or "unknown" in problems[1]


def test_everything_wrong_is_reported_in_the_order_of_the_file(refused: Refuser) -> None:
    text = """
[limits]
timeout = never
max_size 10M
max_clients = 0
[limits]
max_recipients = bad, but not looked at
[store
backend = neither is this
[log]
level = loud
file = "x
[log]
level = info
[colours]
[domains]
accept = a.*
"""
    environ = {"GSMTPD_LOG_FORMAT": "xml", "GSMTPD_LOG_FROMAT": "json"}
    places = [p.split(" ")[0] for p in refused(text, environ)]
    lines = [3, 4, 5, 6, 8, 11, 12, 13, 15, 17]
    assert places == [f"FILE:{n}:" for n in lines] + ["GSMTPD_LOG_FROMAT:", "GSMTPD_LOG_FORMAT:"]


def test_many_broken_headers_are_all_reported(refused: Refuser) -> None:
    assert len(refused("[limits\n" * 60)) == 60


def test_a_file_of_something_else_is_not_reported_line_by_line(refused: Refuser) -> None:
    problems = refused("Dear diary,\n" * 1000)
    assert len(problems) == 101
    assert problems[-1] == "FILE: and 900 more problems"


def test_a_long_list_with_an_open_quote_is_refused_at_once(refused: Refuser) -> None:
    names = ", ".join(f"d{n}.example" for n in range(500))
    assert "a quote is not closed" in refused(f'[domains]\naccept = "{names}\n')[0]
    assert "is not a domain name" in refused(f'[domains]\naccept = {names}, "x\n')[0]


def test_line_ends_and_byte_order_mark_of_other_systems_are_taken(load: Loader) -> None:
    assert load(b"\xef\xbb\xbf[log]\r\nlevel = error\r\n").log.level == "error"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("missing", "there is no such file; name another with -c"),
        ("", "is a directory; name a file in it"),
        ("a\0b", "cannot be read: "),
        ("a\nb", "there is no such file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(os.path.join(tmp_path, name), environ={})
    (problem,) = caught.value.problems
    assert f": {wrong}" in problem
    assert len(problem.splitlines()) == 1


def test_a_file_without_the_right_to_read_it(
    file: Path, refused: Refuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gsmtpd.config_file.open", deny, raising=False)
    wrong = "permission denied; run as root, or give this user the right to read it"
    assert refused("") == (f"FILE: {wrong}",)


# Defaults


def test_an_empty_file_is_all_defaults(load: Loader) -> None:
    loaded = load("")
    assert loaded.limits == config.LimitsConfig(
        10 << 20, 1000, 256 << 20, 1000, 50, 100.0, 1800.0, 500, "accept"
    )
    assert loaded.listeners == (config.ListenerConfig("mx", (V4, V6), "smtp", "off", (), (), True),)
    assert loaded.tls == config.TLSConfig("", "", ())
    assert loaded.store.backend == "sqlite"
    assert loaded.log == config.LogConfig("", "", "info", "logfmt")
    assert (loaded.server.processes, loaded.server.threads) == (None, None)


def test_listeners_keep_their_order_and_replace_the_default(load: Loader) -> None:
    loaded = load("[listen]\n[[b]]\naddress = a:1\n[[a]]\naddress = a:2\n")
    assert [listener.name for listener in loaded.listeners] == ["b", "a"]


def test_accept_defaults_to_this_host(load: Loader) -> None:
    accept = load("[server]\nhost_name = mx.example.com\n").domains.accept
    assert accept == ("mx.example.com", "localhost")
    assert load("[server]\nhost_name = localhost\n").domains.accept == ("localhost",)


@pytest.mark.parametrize(
    ("fqdn", "hostname", "wanted"),
    [
        ("MX.example.com", "mx", "mx.example.com"),
        ("my_box.example.com", "box", "box"),
        ("1.0.0.127.in-addr.arpa", "box", "box"),
        ("", "", "localhost"),
        ("my_box", "my_box", "localhost"),
    ],
)
def test_host_name_defaults_to_that_of_the_machine(
    load: Loader, monkeypatch: pytest.MonkeyPatch, fqdn: str, hostname: str, wanted: str
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: fqdn)
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    loaded = load("[server]\nhost_name =\n")
    assert loaded.server.host_name == wanted
    assert bool(loaded.warnings) == (wanted == "localhost")


# The password


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"s3cret\n", "s3cret"),
        (b"s3\r\n2nd line", "s3"),
        (b" a#b, \n", " a#b, "),
        (b"\xc3\xa9", "é"),
    ],
)
def test_password_file(load: Loader, tmp_path: Path, content: bytes, wanted: str) -> None:
    (tmp_path / "password").write_bytes(content)
    loaded = load(setting("store.mysql", "password_file", f"{tmp_path}/password"))
    assert loaded.store.mysql.password == wanted
    assert load(config.dump(loaded)) == loaded


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"", "the first line of"), (b"\nx", "the first line of"), (b"\xff", "it is not UTF-8")],
)
def test_password_file_is_refused(
    refused: Refuser, tmp_path: Path, content: bytes, wrong: str
) -> None:
    (tmp_path / "password").write_bytes(content)
    (problem,) = refused(setting("store.mysql", "password_file", f"{tmp_path}/password"))
    assert problem.startswith("FILE:3: [store] [[mysql]] password_file: ")
    assert wrong in problem


def test_two_passwords_are_refused(refused: Refuser) -> None:
    text = f"[store]\n[[mysql]]\npassword_file = /x\npassword = {SECRET}\n"
    wrong = "stands beside password; write one of them"
    assert refused(text) == (f"FILE:3: [store] [[mysql]] password_file: {wrong}",)


def test_a_password_is_shown_nowhere(load: Loader) -> None:
    loaded = load(setting("store.mysql", "password", SECRET))
    assert loaded.store.mysql.password == SECRET
    for text in (repr(loaded), str(loaded), config.dump(loaded), repr(loaded.store.mysql)):
        assert SECRET not in text
    assert "# password is never shown" in config.dump(loaded)


@pytest.mark.parametrize(
    "line",
    [
        f"password {SECRET}",
        f"password {SECRET}==",
        f"pasword = {SECRET}",
        f"password = '{SECRET}",
        f"password = {SECRET}#{SECRET}",
        f"password: {SECRET}",
        f"password = '''{SECRET}\n{SECRET}'''",
        f"password = {SECRET}\npassword = {SECRET}",
        f"[password = {SECRET}",
        f"[password {SECRET}",
    ],
)
def test_a_mistake_does_not_show_the_password(refused: Refuser, line: str) -> None:
    assert SECRET not in "\n".join(refused(f"[store]\n[[mysql]]\n{line}\n"))


@pytest.mark.parametrize(
    ("text", "password", "warned"),
    [("ab #c", "ab", True), ("#abc", "", True), ("ab # c", "ab", False), ("# c", "", False)],
)
def test_a_password_that_ends_at_a_hash_is_warned_of(
    load: Loader, file: Path, text: str, password: str, warned: bool
) -> None:
    loaded = load(setting("store.mysql", "password", text))
    assert loaded.store.mysql.password == password
    place = f'{file}:3: [store] [[mysql]] password: ends before "#"'
    assert [w.startswith(place) for w in loaded.warnings] == [True] * warned


# The environment


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "wanted"),
    [
        ("GSMTPD_STORE_SQLITE_PATH", "/x/y#z", "store.sqlite", "path", "/x/y#z"),
        ("GSMTPD_DOMAINS_ACCEPT", "a.test,b.test", "domains", "accept", ("a.test", "b.test")),
        ("GSMTPD_LISTEN_MX_ADDRESS", "a:1, b:2", "listen", "address",
         (Address("a", 1), Address("b", 2))),
        ("GSMTPD_LISTEN_MX_PROXY_FROM", "192.0.2.1", "listen", "proxy_from", ("192.0.2.1",)),
        ("GSMTPD_LISTEN_MX_XCLIENT_FROM", "::1", "listen", "xclient_from", ("::1",)),
        ("GSMTPD_LIMITS_MAX_SIZE", "20M", "limits", "max_size", 20 << 20),
        ("GSMTPD_STORE_MYSQL_PASSWORD", "'a#b,\"", "store.mysql", "password", "'a#b,\""),
        ("GSMTPD_STORE_MYSQL_PASSWORD", '"q"', "store.mysql", "password", '"q"'),
        ("GSMTPD_LOG_FILE", "", "log", "file", ""),
    ],
)  # fmt: skip
def test_the_environment_lies_over_the_file(
    load: Loader, variable: str, text: str, section: str, key: str, wanted: Any
) -> None:
    for under in ("", SHIPPED.read_text(), "[log]\nfile = /x\n"):
        assert value(load(under, {variable: text}), section, key) == wanted


def test_the_environment_mends_a_bad_value(load: Loader) -> None:
    assert load("[log]\nlevel = loud\n", {"GSMTPD_LOG_LEVEL": "error"}).log.level == "error"


def test_the_environment_names_listeners(load: Loader) -> None:
    text = "[listen]\n[[In-ner]]\naddress = a:1\n"
    environ = {"GSMTPD_LISTEN_IN_NER_ADDRESS": "a:2", "GSMTPD_LISTEN_NEW_ONE_ADDRESS": "a:3"}
    listeners = load(text, environ).listeners
    assert [str(a) for x in listeners for a in (x.name, *x.addresses)] == [
        "In-ner", "a:2", "new_one", "a:3",
    ]  # fmt: skip
    assert load("", {"GSMTPD_LISTEN_LMTP_ADDRESS": "a:3"}).listeners[0].name == "lmtp"


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("GSMTPD_LIMTS_MAX_SIZE", "GSMTPD_LIMITS_MAX_SIZE"),
        ("GSMTPD_LISTEN_ADDRESS", "GSMTPD_LISTEN_MX_ADDRESS"),
        ("GSMTPD_SQLITE_PATH", "GSMTPD_STORE_SQLITE_PATH"),
        ("GSMTPD_", "GSMTPD_"),
        ("GSMTPD_LISTEN___MANY___ADDRESS", "GSMTPD_LISTEN_MX_ADDRESS"),
    ],
)
def test_unknown_variables_are_refused(refused: Refuser, variable: str, nearest: str) -> None:
    (problem,) = refused("", {variable: "1"})
    assert problem.startswith(f"{variable}: unknown variable; did you mean {nearest}")


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a\udcffb", "a\x1bb"])
def test_variables_hold_no_control_characters(refused: Refuser, text: str) -> None:
    (problem,) = refused("", {"GSMTPD_STORE_MYSQL_PASSWORD": text})
    assert problem == (
        "GSMTPD_STORE_MYSQL_PASSWORD: [store] [[mysql]] password: "
        "has a control character, or is not UTF-8; take it out"
    )


def test_other_variables_are_let_be(load: Loader) -> None:
    others = {"GSMTPD_TEST_X": "1", "GSMTPD_RUN_PORT": "1", "gsmtpd_x": "1", "PATH": "/"}
    assert load("", others) == load("")


def test_no_two_settings_share_a_variable() -> None:
    names = ["_".join((*place.sections, place.key)).upper() for place in spec_places(SPEC)]
    assert len(names) == len(set(names))


# The command line


def test_port_is_put_in_every_address(load: Loader) -> None:
    loaded = load("[listen]\n[[mx]]\naddress = a:25, a:26, [::1]:25\n[[in]]\naddress = b:1", port=0)
    found = [[str(a) for a in listener.addresses] for listener in loaded.listeners]
    assert found == [["a:0", "[::1]:0"], ["b:0"]]


def test_port_is_refused(refused: Refuser) -> None:
    assert refused("", port=65536) == ("-p 65536: is not a port; write 0 to 65535",)
    text = "[listen]\n[[mx]]\naddress = a:25\n[[in]]\naddress = a:26\n"
    assert "a:2525 is also in [[mx]]" in refused(text, port=2525)[0]


def test_log_file_and_verbose(load: Loader, refused: Refuser) -> None:
    text = "[log]\nfile = /var/log/x\nlevel = error\n"
    assert load(text, log_file="/y").log == config.LogConfig("/y", "", "error", "logfmt")
    assert load(text, log_file="y").log.file == os.path.join(os.getcwd(), "y")
    assert load(text, log_file="").log.file == ""
    assert load(text, verbose=True).log == config.LogConfig("/var/log/x", "", "debug", "logfmt")
    assert refused(text, log_file="a\nb")[0].startswith("-l: ")


def test_the_path_is_kept_in_full(file: Path, load: Loader, monkeypatch: Any) -> None:
    load("")
    monkeypatch.chdir(file.parent)
    assert config.load(file.name, environ={}).path == str(file)


def test_equal_means_the_same_settings(load: Loader, tmp_path: Path) -> None:
    other = tmp_path / "other.conf"
    other.write_text("[store]\n[[mysql]]\npassword = ab #c\n")
    loaded = config.load(str(other), environ={})
    assert loaded == load("[store]\n[[mysql]]\npassword = ab\n")
    assert loaded != load("[store]\n[[mysql]]\npassword = abc\n")


# The spec and the file that is shipped


def shipped() -> Any:
    return ConfigObj(str(SHIPPED), interpolation=False, list_values=False, raise_errors=True)


def at(tree: Any, place: Place) -> Any:
    for name in place.sections:
        tree = tree["mx" if name == MANY and name not in tree else name]
    return tree[place.key]


def test_the_shipped_file_is_the_defaults(load: Loader) -> None:
    loaded = config.load(str(SHIPPED), environ={})
    assert loaded == load("")
    assert loaded.warnings == ()


# The shipped file has some in its comments; test_config_tls.py and test_config_handlers.py look.
COMMENTED = (("tls", MANY), ("handlers", MANY))
IN_COMMENTS = [place for place in spec_places(SPEC) if place.sections in COMMENTED]
IN_FILE = [place for place in spec_places(SPEC) if place not in IN_COMMENTS]


@pytest.mark.parametrize("place", IN_FILE, ids=str)
def test_the_shipped_file_has_every_key_with_its_default(place: Place) -> None:
    validator = Validator(CHECKS)
    check = at(SPEC, place)
    default = validator.check(check, None, missing=True)
    assert validator.check(check, at(shipped(), place)) == default


def test_the_shipped_file_has_no_other_key() -> None:
    names = {Place(tuple(MANY if s == "mx" else s for s in p.sections), p.key)
             for p in spec_places(shipped())}  # fmt: skip
    assert names == set(IN_FILE)


def test_the_shipped_file_can_be_read() -> None:
    lines = SHIPPED.read_text().splitlines()
    assert len(lines) <= 220
    assert max(map(len, lines)) <= 100


def test_mysql_is_five_lines_away(load: Loader, tmp_path: Path) -> None:
    """The example in the comments, pasted, works."""
    text = SHIPPED.read_text().replace("backend = sqlite\n", "backend = mysql\n")
    example = re.findall(r"^  #   (\w+) = (.*)$", text, re.MULTILINE)
    assert len(example) == 4
    (tmp_path / "gsmtpd.password").write_text("s3cret\n")
    for key, new in example:
        new = new.replace("/etc/", f"{tmp_path}/")
        text, count = re.subn(rf"^  {key} =.*$", f"  {key} = {new}", text, flags=re.MULTILINE)
        assert count == 1
    mysql = load(text).store.mysql
    assert (str(mysql.hosts[0]), mysql.database) == ("db1.example.com:3306", "mail")
    assert mysql.password == "s3cret"


def test_every_key_of_the_spec_has_a_comment_and_a_check() -> None:
    for place in spec_places(SPEC):
        section: Any = SPEC
        for name in place.sections:
            section = section[name]
        assert len(section.comments[place.key]) == 1
        assert check_name(section[place.key]) in CHECKS


FAST = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Who may receive, and from whom

CHECKED = [
    ("query", "", ""),
    ("query", "select 1 from t where a = %s ;", "select 1 from t where a = %s"),
    ("query", "SELECT 1\n  FROM t\nWHERE a = %s", "SELECT 1 FROM t WHERE a = %s"),
    ("query", "SELECT * FROM (SELECT 1) x WHERE %s LIKE '%%.x'", None),
    ("query", "SELECT 1 FROM \"t\" WHERE `a#b` = %s AND c = '#;--/*'", None),
    ("query", "SELECT 1 FROM t WHERE a = %s AND b = 'it''s # '''", None),
    ("yes_no", "Yes", True),
    ("yes_no", "no", False),
    ("resolver", "", ""),
    ("resolver", "192.0.2.53", ("192.0.2.53", 53)),
    ("resolver", "[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    ("resolver", "DNS.example.com:54", ("dns.example.com", 54)),
    ("dnsbl_list", "ZEN.example.org., b.example=127.0.0.2",
     ("zen.example.org", "b.example=127.0.0.2")),
    ("network_list", "10.0.0.0/8, ::ffff:192.0.2.1, @/a b", ("10.0.0.0/8", "192.0.2.1", "@/a b")),
    ("network_list", "", ()),
    ("address_pattern_list", "U@Example.com, Bob, @Example.com, @/a#b",
     ("u@example.com", "bob", "@example.com", "@/a#b")),
    ("address_pattern_list", "o'brien@example.com, a#b", ("o'brien@example.com", "a#b")),
    ("local_part_list", "Postmaster, abuse, POSTMASTER", ("postmaster", "abuse")),
]  # fmt: skip


@pytest.mark.parametrize(("check", "text", "wanted"), CHECKED)
def test_a_check_brings_a_value_into_one_form(check: str, text: str, wanted: object) -> None:
    found = Validator(CHECKS).check(check, text)
    assert (found or text) == (wanted or text)
    assert type(found) is not str or found == found.strip()


PERCENT = "; write %% for a percent sign"
UNFIT = [
    ("query", "DELETE FROM t", '"DELETE FROM t" is not a query; write one that begins with SELECT'),
    ("query", "SELECTED", "is not a query"),
    ("query", "SELECT 1", "has %s nowhere; write it once, where the value belongs"),
    ("query", "SELECT %s, %s", "has %s 2 times; write it once"),
    ("query", "SELECT '%s'", "has %s within quotes; write %s without quotes"),
    ("query", 'SELECT "%s"', "has %s within quotes; write %s without quotes"),
    ("query", "SELECT `x%s`", "has %s within quotes; write %s without quotes"),
    ("query", "SELECT %d", f'has "%d"{PERCENT}'),
    ("query", "SELECT %s LIKE '%x'", f'has "%x"{PERCENT}'),
    ("query", "SELECT %s %", f'has "%"{PERCENT}'),
    ("query", "SELECT %%s", "has %s nowhere"),
    ("query", "SELECT %s; DROP TABLE t;", "has more than one statement; write one, without ;"),
    ("query", "SELECT %s -- x", "has a comment (--); write it without"),
    ("query", "SELECT %s /* x */", "has a comment (/*); write it without"),
    ("query", "SELECT %s # x", "has a comment (#); write it without"),
    ("query", "SELECT %s = 'x", "has a quote that is not closed; close it"),
    ("query", "SELECT \"a\" = %s = '#'''", "has #, \" and '''; write it without one of them"),
    ("yes_no", "true", '"true" is not possible; write yes or no'),
    ("resolver", "::1", '"::1" is ambiguous; write an IPv6 address in brackets'),
    ("resolver", "x:0", '"x:0" has no good port; write 1 to 65535 after the :'),
    ("dnsbl_list", "a b", '"a b" is no DNS zone; write a name such as zen.example.org'),
    ("dnsbl_list", "a.b=192.0.2.1", '"192.0.2.1" is no answer of a blocklist; write an address'),
    ("network_list", "10.0.0.1/8", '"10.0.0.1/8" has bits set beyond its /8; write 10.0.0.0/8'),
    ("network_list", "@a", '"@a" is not a network; write one like 192.0.2.0/24'),
    ("address_pattern_list", '"a b"@x, y', "has quotes; write it in a file, and @/path/of/file"),
    ("address_pattern_list", "*@x", '"*@x" is not an address; write @x for all of a domain'),
    ("local_part_list", "a@b", '"a@b" is not a local part; write user'),
    ("local_part_list", "@/etc/x", '"@/etc/x" is not a local part; write user'),
]


@pytest.mark.parametrize(("check", "text", "wrong"), UNFIT)
def test_a_check_says_what_would_be_right(check: str, text: str, wrong: str) -> None:
    with pytest.raises(ValidateError) as caught:
        Validator(CHECKS).check(check, text)
    assert wrong in caught.value.args[0]


WRITTEN = ["query", "yes_no", "resolver", "dnsbl_list", "network_list", "address_pattern_list",
           "local_part_list", "domain_pattern_list", "peer_list"]  # fmt: skip
VALUES = st.lists(
    st.sampled_from(
        ["SELECT %s ", "'", '"', "`", "#", "'''", "%%", ";", ",", ", ", "\n", "a", "o'b@x", "a#b"]
        + ["@/a", "@/a'b", "*.x", "yes", "127.0.0.1", "x=127.0.0.1", "[::1]:5", "'a", "b'", " = "]
    ),
    max_size=8,
).map("".join)
QUERIES = st.lists(st.sampled_from(["'a'", "'#'", "''", '"b"', '"#"', "'\"'", " "])).map(
    lambda parts: f"SELECT %s {''.join(parts)}"
)


@FAST
@given(check=st.sampled_from(WRITTEN), text=VALUES | QUERIES)
def test_what_is_written_is_read_again(check: str, text: str) -> None:
    validator = Validator(CHECKS)
    try:
        value = validator.check(check, text)
    except ValidateError as error:
        assert all(isinstance(problem, str) for problem in error.args)
        return
    lines = ["[x]", f"key = {written(check, value)}"]
    spec = ConfigObj(["[x]", f"key = {check}"], list_values=False, _inspec=True)
    tree, report = ConfigObj(lines, interpolation=False, list_values=False), Report("x", lines)
    settle(tree, spec, report)
    report.raise_problems()
    assert validator.check(check, tree["x"]["key"]) == value


# Whatever the bytes

FRAGMENTS = st.sampled_from(
    ["[", "]", "[[", "]]", "[listen]\n", "[[mx]]\n", "[store]\n", "[[mysql]]\n", "[limits]\n"]
    + ["address", "max_size", "password", "host", "sqlite", "accept", "=", " = ", "\n", "\n", "#"]
    + [
        "[tls]\n",
        "[[a.b]]\n",
        "[[*.A.b]]\n",
        "certificate = /a\n",
        "key = /b\n",
        "tls = starttls\n",
    ]
    + ['"', "'", '"""', "'''", ",", ":", " ", "\t", "*", "::1", "[::]:25", "10M", "\r\n", "é", "a"]
    + ["\u2028", "\x85", "\xa0", "$x", "%(x)s", "[DEFAULT]\n", "[__many__]\n", "__many__", "\\"]
)
FILES_AT_RANDOM = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
    st.lists(FRAGMENTS, max_size=60).map(lambda parts: "".join(parts).encode()),
)


@FAST
@given(data=FILES_AT_RANDOM)
def test_no_file_raises_anything_but_config_error(load: Loader, data: bytes) -> None:
    try:
        loaded = load(data)
    except ConfigError as error:
        assert error.problems
        assert all(len(p.splitlines()) == 1 and ": " in p for p in error.problems)
    else:
        bare = dataclasses.replace(loaded.store.mysql, password="")
        wanted = dataclasses.replace(loaded, store=dataclasses.replace(loaded.store, mysql=bare))
        assert load(config.dump(loaded)) == wanted


# --- the spool ------------------------------------------------------------------------------------


def test_a_spool_is_for_mysql(load: Loader) -> None:
    loaded = load("[store]\nbackend = mysql\nspool = /s\nspool_size = 2M\n")
    assert (loaded.store.spool, loaded.store.spool_size) == ("/s", 2 << 20)
    assert loaded.warnings == ()
    (warning,) = load("[store]\nspool = /s\n").warnings
    assert warning.endswith(
        ":2: [store] spool: is for backend = mysql; mail for sqlite never waits there"
    )


@pytest.mark.parametrize(
    ("text", "environ", "wanted"),
    [
        ("", {}, ("", 1 << 30)),
        ("[store]\nspool = /s\n", {}, ("", 1 << 30)),
        ("[store]\nbackend = mysql\nspool = /s\nspool_size = 2M\n", {}, ("/s", 2 << 20)),
        ("[limits]\nmax_size = x\n[store]\nbackend = mysql\nspool = /s\n", {}, ("/s", 1 << 30)),
        ("[store]\nbackend = mysql\n", {"GSMTPD_STORE_SPOOL": "/e"}, ("/e", 1 << 30)),
    ],
)
def test_the_spool_is_found_whatever_else_is_wrong(
    tmp_path: Path, text: str, environ: dict[str, str], wanted: tuple[str, int]
) -> None:
    file = tmp_path / "gsmtpd.conf"
    file.write_text(text)
    assert config.spool(str(file), environ) == wanted


def test_a_spool_that_is_wrong_is_said(tmp_path: Path) -> None:
    file = tmp_path / "gsmtpd.conf"
    file.write_text("[store]\nbackend = mysql\nspool = here\n")
    with pytest.raises(ConfigError, match="spool: .here. is not a full path"):
        config.spool(str(file), {})


@FAST
@given(text=st.text(max_size=40), place=st.sampled_from([*spec_places(SPEC)]))
def test_no_value_raises_anything_but_config_error(load: Loader, text: str, place: Place) -> None:
    sections = tuple("mx" if name == MANY else name for name in place.sections)
    variable = "_".join(("GSMTPD", *sections, place.key)).upper()
    if place.key == "password_file":
        return
    try:
        loaded = load("", {variable: text})
    except ConfigError as error:
        assert all(p.startswith(f"{variable}: [") for p in error.problems)
    else:
        if place.key != "password":
            assert load(config.dump(loaded)) == loaded


@FAST
@given(parts=st.lists(FRAGMENTS, max_size=60))
@example(parts=["[[", '"', "[DEFAULT]\n", "certificate = /a\n"])
def test_lines_are_found_where_configobj_finds_keys(parts: list[str]) -> None:
    lines = [line.removesuffix("\r") for line in "".join(parts).split("\n")]
    try:
        tree = ConfigObj(list(lines), interpolation=False, list_values=False)
    except SyntaxError:
        return
    report = Report("x", lines)
    assert set(spec_places(tree)) <= set(report.lines)
