"""How is what decides on clients and recipients built from a Config?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gsmtpd.config import Config, ConfigError
from gsmtpd.policy.decision import Unknown
from gsmtpd.policy.files import Lists, PolicyFiles
from gsmtpd.policy.lookups import AskedByThreads, Lookups, Source
from gsmtpd.policy.questions import Kind


class Asked(Protocol):
    """A store that can be asked by the administrator's own SQL."""

    def query(self, sql: str) -> Callable[[str], bool]:
        """Whether the statement finds a row for its parameter. What is called raises StoreError."""


def make_policy(config: Config) -> PolicyFiles:
    """Who may receive, from whom, by what is written. Raises ListError for the files of lists."""
    domains, recipients, clients = config.domains, config.recipients, config.clients
    return PolicyFiles(
        Lists(
            domains=domains.accept,
            own_domain=config.server.host_name,
            asks_domains=bool(domains.query),
            recipients=recipients.accept,
            asks_recipients=bool(recipients.query),
            unknown=Unknown(recipients.unknown),
            plus_tags=recipients.plus_tags,
            aliases=recipients.aliases,
            most_copies=config.limits.max_recipients,
            always=recipients.always_accept,
            allow=clients.allow,
            deny=clients.deny,
            asks_clients=bool(clients.dnsbl),
        )
    )


def make_blocklists(config: Config) -> Source | None:
    """The configured DNS blocklists. Raises ConfigError if the library is missing."""
    clients = config.clients
    if not clients.dnsbl:
        return None
    # Not for those who have none: it is loaded for longer than all else here.
    from gsmtpd.policy.dnsbl import BlocklistError, Blocklists, parse_blocklist

    lists = [parse_blocklist(text) for text in clients.dnsbl]
    try:
        return Blocklists(lists, clients.dnsbl_timeout, clients.dnsbl_resolver)
    except BlocklistError as error:
        raise ConfigError(f"{config.path}: [clients] dnsbl: {error}") from error


def make_lookups(config: Config, store: Asked | None) -> Lookups:
    """Whom to ask what no list says. store: None where there is none to ask."""
    sources: dict[Kind, Source] = {}
    for kind, (sql, threads) in _queries(config).items():
        assert store is not None, "a configuration with queries has a store"
        name, seconds = f"{kind.value} query", config.recipients.query_ttl
        sources[kind] = AskedByThreads(name, store.query(sql), seconds, threads)
    if blocklists := make_blocklists(config):
        sources[Kind.CLIENT] = blocklists
    return Lookups(sources)


def query_threads(config: Config) -> int:
    """How many threads ask the database."""
    return sum(threads for _, threads in _queries(config).values())


def _queries(config: Config) -> dict[Kind, tuple[str, int]]:
    """The statement for each kind of question, and how many threads ask it."""
    found = {
        Kind.DOMAIN: (config.domains.query, 1),
        Kind.RECIPIENT: (config.recipients.query, 2),
    }
    return {kind: (sql, threads) for kind, (sql, threads) in found.items() if sql}
