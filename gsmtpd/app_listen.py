"""How is what a listener says, asks for and allows built from a Config?"""

from __future__ import annotations

from gsmtpd.config import Config, ListenerConfig
from gsmtpd.policy.networks import NetworkSet
from gsmtpd.server.certificates import Certificates, Pair
from gsmtpd.server.terms import Limits, Manner
from gsmtpd.smtp.rules import Rules


def make_certificates(config: Config) -> Certificates | None:
    """The configured certificates; None if no listener needs any. Raises CertificateError."""
    if all(listener.tls == "off" for listener in config.listeners):
        return None
    chosen = config.tls
    by_name = {each.name: Pair(each.certificate, each.key) for each in chosen.names}
    return Certificates(Pair(chosen.certificate, chosen.key), by_name)


def make_rules(config: Config, listener: ListenerConfig) -> Rules:
    """What the sessions of `listener` go by."""
    limits = config.limits
    return Rules(
        host_name=config.server.host_name,
        max_size=limits.max_size,
        max_recipients=limits.max_recipients,
        reject_bare_newline=limits.bare_newline == "reject",
        lmtp=listener.protocol == "lmtp",
        starttls=listener.tls in ("starttls", "required"),
        require_tls=listener.tls == "required",
        chunking=listener.chunking,
    )


def make_manner(listener: ListenerConfig, certificates: Certificates | None) -> Manner:
    """How `listener` speaks. certificates: see make_certificates."""
    return Manner(
        certificates=None if listener.tls == "off" else certificates,
        implicit_tls=listener.tls == "implicit",
        proxies=NetworkSet(listener.proxy_from),
        xclients=NetworkSet(listener.xclient_from),
        listener=listener.name,
    )


def make_limits(config: Config, threads: int) -> Limits:
    """What connections may cost. threads: those of a process, which share its memory."""
    limits = config.limits
    return Limits(
        max_clients=limits.max_clients,
        timeout=limits.timeout,
        session_timeout=limits.session_timeout,
        max_clients_per_ip=limits.max_clients_per_ip,
        max_memory=limits.max_memory // threads,
        min_data_rate=limits.min_data_rate,
    )
