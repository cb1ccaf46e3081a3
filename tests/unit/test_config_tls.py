"""gsmtpd.config_tls: certificates and their names, what listeners need, whom they trust."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd import config, config_tls
from gsmtpd.config import CertificateConfig, Config, ConfigError, TLSConfig
from gsmtpd.config_checks import ValidateError
from tests.unit.test_config import SHIPPED
from tests.unit.test_manpages import block, source

Loader = Callable[..., Config]
Refuser = Callable[..., tuple[str, ...]]

LISTEN = "[listen]\n[[mx]]\naddress = localhost:25\n"
A_NAME = "[tls]\n[[a.org]]\ncertificate = /c\n"
TLS = "[tls]\ncertificate = /etc/a.pem\nkey = /etc/a.key\n"


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    def load_text(text: str, environ: Mapping[str, str] = {}, **options: Any) -> Config:
        (tmp_path / "gsmtpd.conf").write_text(text, "utf-8")
        return config.load(str(tmp_path / "gsmtpd.conf"), environ=environ, **options)

    return load_text


@pytest.fixture
def refused(load: Loader, tmp_path: Path) -> Refuser:
    """The problems with a text, the name of the file cut to "FILE"."""

    def problems(text: str, environ: Mapping[str, str] = {}) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            load(text, environ)
        return tuple(p.replace(f"{tmp_path}/gsmtpd.conf", "FILE") for p in caught.value.problems)

    return problems


def warnings(loaded: Config) -> list[str]:
    """Its warnings, the name of the file cut to "FILE"."""
    return [warning.replace(loaded.path, "FILE") for warning in loaded.warnings]


# Certificates

NAMES = """[[mail.example.org]]
certificate = /etc/b.pem
[[*.Example.ORG]]
certificate = "/etc/c#1.pem"
key = /etc/c.key
[[bücher.example]]
certificate = /etc/a.pem
key = /etc/a.key
"""


def test_certificates(load: Loader) -> None:
    loaded = load(f"{LISTEN}tls = starttls\n{TLS}{NAMES}")
    assert loaded.tls == TLSConfig(
        "/etc/a.pem",
        "/etc/a.key",
        (
            CertificateConfig("mail.example.org", "/etc/b.pem", ""),
            CertificateConfig("*.example.org", "/etc/c#1.pem", "/etc/c.key"),
            CertificateConfig("xn--bcher-kva.example", "/etc/a.pem", "/etc/a.key"),
        ),
    )
    assert loaded.key_files == ("/etc/a.key", "/etc/b.pem", "/etc/c.key")
    assert loaded.warnings == ()


def test_a_key_may_stand_in_the_file_of_the_certificate(load: Loader) -> None:
    loaded = load(f"{LISTEN}tls = implicit\n[tls]\ncertificate = /etc/a.pem\n")
    assert loaded.tls == TLSConfig("/etc/a.pem", "", ())
    assert loaded.key_files == ("/etc/a.pem",)


def test_what_is_dumped_loads_equal(load: Loader) -> None:
    text = (
        f"{LISTEN}tls = required\nchunking = no\nproxy_from = 10.0.0.0/8, ::1\n"
        "[[lmtp]]\naddress = localhost:24\nprotocol = lmtp\nxclient_from = 192.0.2.1\n"
        f"{TLS}{NAMES}[limits]\nmax_clients_per_ip = no\nmin_data_rate = 0\n"
    )
    loaded = load(text)
    again = load(config.dump(loaded))
    assert again == loaded
    assert again.key_files == loaded.key_files
    assert again.tls.names[1].certificate == "/etc/c#1.pem"
    assert loaded != load(text.replace("/etc/c#1", "/etc/c#2"))


MISTAKES = [
    ("[tls]\nkey = /k", "FILE:2: [tls] key: stands without a certificate; write certificate = /p"),
    ("[tls]\ncertificate = a", 'FILE:2: [tls] certificate: "a" is not a full path; write one'),
    ("[tls]\n[[a.org]]", "FILE:2: [tls] [[a.org]]: has no certificate; write certificate = /path"),
    ("[tls]\n[[a.org]]\nkey = /k", "FILE:2: [tls] [[a.org]]: has no certificate; write certific"),
    (f"{A_NAME}key = k", 'FILE:4: [tls] [[a.org]] key: "k" is not a full path; write one'),
    (f"{A_NAME}kye = /k", "FILE:4: [tls] [[a.org]] kye: unknown key; did you mean key?"),
    (f"{A_NAME}[[[b]]]", "FILE:4: [tls] [[a.org]] [[[b]]]: unknown section; none fits"),
    ("[tls]\ncert = /c", "FILE:2: [tls] cert: unknown key; "),
    ("[tls]\n[[key]]", 'FILE:2: [tls] [[key]]: is a key, not a section; write "key = ..."'),
    ("[limits]\nkey = /k", "FILE:2: [limits] key: is not a key of this section; it belongs in [tl"),
    ("tls = starttls", "FILE:1: tls: is a section, not a key; write its name in brackets"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wrong"), MISTAKES)
def test_a_mistake_has_its_line(refused: Refuser, text: str, wrong: str) -> None:
    assert refused(text)[0].startswith(wrong)


@pytest.mark.parametrize(
    "name",
    ["*", "*.", ".example.org", "mail.*.org", "*mail.example.org", "*.*.example.org", "my_host",
     "192.0.2.1", "2001:db8::1", "a b", "*.192.0.2.1", "a@b.org", "x" * 64, "__many__"],
)  # fmt: skip
def test_what_no_client_asks_for_is_no_name(refused: Refuser, name: str) -> None:
    (problem,) = refused(f"[tls]\n[[{name}]]\ncertificate = /c\n")
    wrong = f'"{name}" is not a name for a certificate; write a host name such as mail.example.org'
    assert problem == f"FILE:2: [tls] [[{name}]]: {wrong}, or *.example.org"


def test_a_name_stands_once(refused: Refuser) -> None:
    text = "[tls]\n[[a.example]]\ncertificate = /c\n[[A.example.]]\ncertificate = /d\n"
    wrong = "FILE:4: [tls] [[A.example.]]: is the same name as [[a.example]]; write it once"
    assert refused(text) == (wrong,)


# Listeners


@pytest.mark.parametrize("tls", ["starttls", "required", "implicit"])
def test_a_listener_with_tls_needs_a_certificate(refused: Refuser, tls: str) -> None:
    wrong = "needs a certificate; write [tls] and below it certificate = /path/of/fullchain.pem"
    needs = f"FILE:4: [listen] [[mx]] tls: {tls} {wrong}"
    assert refused(f"{LISTEN}tls = {tls}\n") == (needs,)
    assert refused(f"{LISTEN}tls = {tls}\n{A_NAME}") == (needs,)
    (problem,) = refused("", {"GSMTPD_LISTEN_MX_TLS": tls})
    assert problem == f"GSMTPD_LISTEN_MX_TLS: [listen] [[mx]] tls: {tls} {wrong}"


@pytest.mark.parametrize(
    ("tls", "wrong"),
    [("[tls]\ncertificate = a.pem\n", "FILE:6: [tls] certificate: "), ("[tls\n", "FILE:5: the he")],
)
def test_a_certificate_with_a_mistake_is_not_called_missing(
    refused: Refuser, tls: str, wrong: str
) -> None:
    (problem,) = refused(f"{LISTEN}tls = starttls\n{tls}")
    assert problem.startswith(wrong)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (TLS, "FILE:2: [tls] certificate: no listener has TLS; write tls = starttls in its [[name"),
        (A_NAME, "FILE:1: [tls]: no listener has TLS; write tls = st"),
        (f"{LISTEN}protocol = lmtp", "FILE:4: [listen] [[mx]] protocol: lmtp must not be on port "),
        (f"{LISTEN}proxy_from = ::1, ::/0", "FILE:4: [listen] [[mx]] proxy_from: ::/0 lets anybod"),
        (f"{LISTEN}proxy_from = 0.0.0.0/0", "FILE:4: [listen] [[mx]] proxy_from: 0.0.0.0/0 lets a"),
        (f"{LISTEN}xclient_from = ::ffff:0:0/96", "FILE:4: [listen] [[mx]] xclient_from: 0.0.0.0/"),
        ("[limits]\nmax_size = 1G", "FILE: [limits] max_memory: has no room for a message of max_"),
        ("[limits]\nmax_memory = 1M", "FILE:2: [limits] max_memory: has no room for a message of "),
        ("[server]\nthreads = 26", "FILE: [limits] max_memory: has no room for a message of max_"),
    ],
)  # fmt: skip
def test_what_may_be_meant_so_is_warned_of(load: Loader, text: str, warning: str) -> None:
    (said,) = warnings(load(text))
    assert said.startswith(warning)


def test_how_much_memory_it_takes(load: Loader) -> None:
    (said,) = warnings(load("[limits]\nmax_size = 200M\n[server]\nthreads = 2\n"))
    assert said.endswith(
        "has no room for a message of max_size for each of 2 threads: such a one is never taken;"
        " write 400M or more"
    )
    enough = "[limits]\nmax_size = 200M\nmax_memory = 400M\n[server]\nthreads = 2\n"
    assert load(enough).warnings == ()


def test_lmtp_elsewhere_is_not_warned_of(load: Loader) -> None:
    text = f"{LISTEN}protocol = lmtp\n"
    assert load(text.replace(":25", ":24")).warnings == ()
    assert load(text, port=2424).warnings == ()


def test_without_tls_no_key_is_read(load: Loader) -> None:
    assert load(TLS).key_files == ()
    assert load("").key_files == ()


# The environment


def test_a_name_in_the_file_has_a_variable(load: Loader) -> None:
    environ = {
        "GSMTPD_TLS_CERTIFICATE": "/x/a",
        "GSMTPD_TLS_MAIL_EXAMPLE_ORG_KEY": "/x/b",
        "GSMTPD_TLS__EXAMPLE_ORG_CERTIFICATE": "/x/c",
        "GSMTPD_TLS_XN____BCHER__KVA_EXAMPLE_KEY": "/x/d",
        "GSMTPD_LISTEN_MX_TLS": "required",
    }
    loaded = load(f"{LISTEN}tls = starttls\n{TLS}{NAMES}", environ)
    assert loaded.listeners[0].tls == "required"
    assert loaded.tls.certificate == "/x/a"
    assert [(each.certificate, each.key) for each in loaded.tls.names] == [
        ("/etc/b.pem", "/x/b"), ("/x/c", "/etc/c.key"), ("/etc/a.pem", "/x/d"),
    ]  # fmt: skip


def test_all_of_tls_by_variables(load: Loader) -> None:
    environ = {
        "GSMTPD_LISTEN_MX_TLS": "starttls",
        "GSMTPD_LISTEN_SMTPS_ADDRESS": "[::]:465",
        "GSMTPD_LISTEN_SMTPS_TLS": "implicit",
        "GSMTPD_TLS_CERTIFICATE": "/c",
        "GSMTPD_TLS_A__B_EXAMPLE_CERTIFICATE": "/d",
        "GSMTPD_TLS__EXAMPLE_ORG_CERTIFICATE": "/e",
    }
    loaded = load("", environ)
    assert [(each.name, each.tls) for each in loaded.listeners] == [
        ("mx", "starttls"), ("smtps", "implicit"),
    ]  # fmt: skip
    assert loaded.tls == TLSConfig(
        "/c",
        "",
        (CertificateConfig("a-b.example", "/d", ""), CertificateConfig("*.example.org", "/e", "")),
    )
    assert load(config.dump(loaded)) == loaded


@pytest.mark.parametrize(
    ("variable", "text", "wrong"),
    [
        ("GSMTPD_TLS_A_ORG_KEY", "/k", "[tls] [[a.org]] key: has no certificate; write certific"),
        ("GSMTPD_TLS_A___B_CERTIFICATE", "/c", '[tls] [[a-.b]] certificate: "a-.b" is not a name'),
        ("GSMTPD_TLS_KEY", "/k", "[tls] key: stands without a certificate; write certificate"),
        ("GSMTPD_TLS_CERTIFCATE", "/c", "unknown variable; did you mean GSMTPD_TLS_CERTIFICATE?"),
        ("GSMTPD_TLS__CERTIFICATE", "/c", "unknown variable; did you mean GSMTPD_TLS_CERTIFICATE?"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_variable(refused: Refuser, variable: str, text: str, wrong: str) -> None:
    (problem,) = refused("", {variable: text})
    assert problem.startswith(f"{variable}: {wrong}")


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@given(labels=st.lists(LABEL, min_size=1, max_size=4), wildcard=st.sampled_from(["", "*."]))
def test_no_two_names_share_a_variable(labels: list[str], wildcard: str) -> None:
    name = wildcard + ".".join(labels)
    try:
        assert config_tls.server_name(name) == name
    except ValidateError:
        return  # such as what ends with digits
    assert config_tls.from_variable(config_tls.to_variable(name).lower()) == name


def test_the_variables_of_the_manual() -> None:
    said = re.findall(r"^\.Ev GSMTPD_TLS_(\w+)_KEY$", source("gsmtpd.conf.5"), re.MULTILINE)
    wanted = ["mail.example.org", "*.example.org"]
    assert [config_tls.from_variable(name.lower()) for name in said] == wanted


# What is shipped, and the manual


def test_the_name_in_the_comments_of_the_shipped_file(load: Loader) -> None:
    text = SHIPPED.read_text()
    for old, new in (
        ("  #[[mail.example.org]]", "  [[mail.example.org]]"),
        ("  #certificate = /etc", "  certificate = /etc"),
        ("\ncertificate =\n", "\ncertificate = /etc/gsmtpd/a.pem\n"),
        ("\n  tls = off\n", "\n  tls = starttls\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    loaded = load(text)
    assert loaded.warnings == ()
    assert loaded.tls.certificate == "/etc/gsmtpd/a.pem"
    (name,) = loaded.tls.names
    assert name == CertificateConfig("mail.example.org", "/etc/gsmtpd/mail.example.org.pem", "")


def test_the_examples_of_the_manual(load: Loader) -> None:
    page = "gsmtpd.conf.5"
    loaded = load(block(page, "TLS", "[server]"))
    assert [(each.addresses[0].port, each.tls) for each in loaded.listeners] == [
        (25, "starttls"), (465, "implicit"),
    ]  # fmt: skip
    assert {os.path.dirname(path) for path in (loaded.tls.certificate, *loaded.key_files)} == {
        "/etc/gsmtpd/mx.example.com"
    }
    behind, lmtp = load(block(page, "A balancer and a mail server in front", "[listen]")).listeners
    assert behind.proxy_from == ("192.0.2.10",)
    assert (lmtp.protocol, *map(str, lmtp.addresses)) == ("lmtp", "127.0.0.1:24")
