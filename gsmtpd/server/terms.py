"""On what terms is a client served? What it may cost, and how its listener speaks."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsmtpd.policy.networks import NetworkSet
from gsmtpd.server.certificates import Certificates

HANDSHAKE_WITHIN = 15.0  # seconds for the whole TLS handshake
PROXY_WITHIN = 5.0  # seconds for the header of the PROXY protocol
READ_WITHIN = 30.0  # seconds in which a client must have read its replies, all of them
RATE_WINDOW = 30.0  # seconds over which the rate of a message's octets is looked at


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may cost. Times in seconds, sizes in octets.

    max_clients, max_clients_per_ip (None: no such limit): over all processes together. max_memory:
    buffered by all sessions of one SMTP thread. min_data_rate: octets a second, while a message
    comes in.
    """

    max_clients: int = 1000
    timeout: float = 100.0
    session_timeout: float = 1800.0
    max_clients_per_ip: int | None = None
    max_memory: int = 256 * 1024 * 1024
    min_data_rate: int = 500


def _none() -> NetworkSet:
    return NetworkSet(())


@dataclass(frozen=True, slots=True)
class Manner:
    """How a listener speaks.

    certificates: for STARTTLS, or, where it is implicit, for a handshake before all else.
    proxies: who begins with a header of the PROXY protocol. xclients: who may say XCLIENT.
    listener: its name.
    """

    certificates: Certificates | None = None
    implicit_tls: bool = False
    proxies: NetworkSet = field(default_factory=_none)
    xclients: NetworkSet = field(default_factory=_none)
    listener: str = ""
