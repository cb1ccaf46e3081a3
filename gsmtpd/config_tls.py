"""Which certificates are there, and can each listener do with them, and with its peers?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gsmtpd.config_checks import ValidateError, host_name
from gsmtpd.config_file import Place, Report
from gsmtpd.config_numbers import written_size
from gsmtpd.config_types import CertificateConfig, ListenerConfig, TLSConfig
from gsmtpd.wording import shown

_WILDCARD = "*."
_EVERYBODY = ("0.0.0.0/0", "::/0")
_SMTP_PORT = 25
_WRITE = "write certificate = /path/of/fullchain.pem"


def server_name(text: str) -> str:
    """A name that clients ask for by SNI (RFC 6066 section 3): a host name, or "*." and one.

    It comes back in lower case and A-labels. Raises ValidateError.
    """
    wildcard = _WILDCARD if text.startswith(_WILDCARD) else ""
    try:
        name = str(host_name(text.removeprefix(wildcard)))
    except ValidateError:
        name = ""
    if not name:
        right = "write a host name such as mail.example.org, or *.example.org"
        raise ValidateError(f"{shown(text)} is not a name for a certificate; {right}")
    return wildcard + name


def to_variable(name: str) -> str:
    """A server name as it stands in the name of a variable, which has no "." and no "-"."""
    with suppress(ValidateError):
        name = server_name(name)
    return name.removeprefix("*").replace("-", "__").replace(".", "_").upper()


def from_variable(text: str) -> str:
    """The server name that to_variable() has written so."""
    name = text.lower().replace("__", "-").replace("_", ".")
    return f"*{name}" if name.startswith(".") else name


def certificates(section: Any, report: Report) -> TLSConfig:
    """What stands in [tls]; `report` hears what is wrong."""
    if section["key"] and not section["certificate"]:
        report.problem(Place(("tls",), "key"), f"stands without a certificate; {_WRITE}, too")
    pairs: dict[str, CertificateConfig] = {}
    written: dict[str, str] = {}
    for text in section.sections:
        try:
            name = server_name(text)
        except ValidateError as error:
            report.problem(report.named("tls", text), str(error))
            continue
        if name in written:
            wrong = f"is the same name as [[{written[name]}]]; write it once"
            report.problem(report.named("tls", text), wrong)
            continue
        written[name] = text
        certificate, key = section[text]["certificate"], section[text]["key"]
        if not certificate:
            report.problem(report.named("tls", text), f"has no certificate; {_WRITE}")
        pairs[name] = CertificateConfig(name, certificate, key)
    return TLSConfig(section["certificate"], section["key"], tuple(pairs.values()))


def key_files(listeners: Sequence[ListenerConfig], tls: TLSConfig) -> tuple[str, ...]:
    """The files with the private keys that the listeners need."""
    if all(listener.tls == "off" for listener in listeners):
        return ()
    pairs = ((tls.certificate, tls.key), *((one.certificate, one.key) for one in tls.names))
    return tuple(dict.fromkeys(key or certificate for certificate, key in pairs))


def check(listeners: Sequence[ListenerConfig], tls: TLSConfig, report: Report) -> None:
    """Whether the listeners can be what they are said to be; `report` hears what is wrong."""
    certificate = Place(("tls",), "certificate")
    for listener in listeners:
        place = Place(("listen", listener.name), "tls")
        lacks = not tls.certificate and not report.failed(certificate) and not report.incomplete
        if listener.tls != "off" and lacks and not report.failed(place):
            wrong = f"{listener.tls} needs a certificate; write [tls] and below it"
            report.problem(place, f"{wrong} certificate = /path/of/fullchain.pem")
        _check_peers(listener, report)
    if (tls.certificate or tls.names) and all(one.tls == "off" for one in listeners):
        where = certificate if tls.certificate else Place(("tls",))
        report.warn(where, "no listener has TLS; write tls = starttls in its [[name]] of [listen]")


def _check_peers(listener: ListenerConfig, report: Report) -> None:
    sections = ("listen", listener.name)
    if listener.protocol == "lmtp" and any(a.port == _SMTP_PORT for a in listener.addresses):
        wrong = "lmtp must not be on port 25 (RFC 2033 section 5); write another in address"
        report.warn(Place(sections, "protocol"), wrong)
    for key in ("proxy_from", "xclient_from"):
        for network in getattr(listener, key):
            if network in _EVERYBODY:
                wrong = f"{network} lets anybody claim any address; write the proxies' own"
                report.warn(Place(sections, key), wrong)


def check_memory(tree: Any, report: Report) -> None:
    """Whether a message of max_size has room in max_memory; `report` hears where it has not."""
    place = Place(("limits",), "max_memory")
    others = (Place(("limits",), "max_size"), Place(("server",), "threads"))
    if any(map(report.failed, (place, *others))):
        return
    largest, threads = tree["limits"]["max_size"], tree["server"]["threads"] or 1
    if tree["limits"]["max_memory"] // threads < largest:
        each = f" for each of {threads} threads" if threads > 1 else ""
        wrong = f"has no room for a message of max_size{each}: such a one is never taken"
        report.warn(place, f"{wrong}; write {written_size(largest * threads)} or more")
