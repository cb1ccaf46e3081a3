"""What is configured? The sections of gsmtpd.conf as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsmtpd.config_checks import Address, BodyAddress, Keep, MySQLHost, NameServer


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """[server]; processes and threads are None for auto."""

    host_name: str
    processes: int | None
    threads: int | None
    user: str
    group: str
    pid_file: str
    control_socket: str


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """A [[name]] in [listen]; the networks are in canonical form."""

    name: str
    addresses: tuple[Address, ...]
    protocol: str
    tls: str
    proxy_from: tuple[str, ...]
    xclient_from: tuple[str, ...]
    chunking: bool


@dataclass(frozen=True, slots=True)
class CertificateConfig:
    """A [[name]] in [tls]: a host name in lower case and A-labels, or "*." and one.

    key: "" where it stands in the certificate's file.
    """

    name: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """[tls]; certificate is "" only where no listener has TLS, key as in CertificateConfig."""

    certificate: str
    key: str
    names: tuple[CertificateConfig, ...]


@dataclass(frozen=True, slots=True)
class DomainsConfig:
    """[domains]: names in lower case and A-labels, address literals in canonical form.

    accept: also patterns, and "@/path" of a file of them.
    """

    accept: tuple[str, ...]
    query: str
    primary_domain: str | None


@dataclass(frozen=True, slots=True)
class RecipientsConfig:
    """[recipients]; query_ttl in seconds. accept may have "@/path" of a file."""

    accept: tuple[str, ...]
    query: str
    query_ttl: float
    unknown: str
    plus_tags: bool
    aliases: str
    always_accept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientsConfig:
    """[clients]; dnsbl_timeout in seconds. allow and deny may have "@/path" of a file."""

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    dnsbl: tuple[str, ...]
    dnsbl_timeout: float
    dnsbl_resolver: NameServer | None


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]: bytes and seconds; max_clients_per_ip is None for no."""

    max_size: int
    max_recipients: int
    max_memory: int
    max_clients: int
    max_clients_per_ip: int | None
    timeout: float
    session_timeout: float
    min_data_rate: int
    bare_newline: str


@dataclass(frozen=True, slots=True)
class ContentConfig:
    """[content]; compress is zlib's level, None for no."""

    decode: str
    compress: int | None
    spam_score_header: str


@dataclass(frozen=True, slots=True)
class SQLiteConfig:
    """[store] [[sqlite]]"""

    path: str


@dataclass(frozen=True, slots=True)
class MySQLConfig:
    """[store] [[mysql]]; the password is read from password_file where that is set."""

    hosts: tuple[MySQLHost, ...]
    user: str
    password: str = field(repr=False)
    database: str
    table: str
    connections: int
    partition: str = "no"
    password_file: str = ""


@dataclass(frozen=True, slots=True)
class BodyConfig:
    """[store] [[body]]; ttl in seconds."""

    backend: str
    address: BodyAddress
    ttl: float


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]; dedupe_window in seconds, None for none. spool: "" for no; its size in bytes."""

    backend: str
    keep: Keep
    dedupe_window: float | None
    durability: str
    sqlite: SQLiteConfig
    mysql: MySQLConfig
    body: BodyConfig
    spool: str = ""
    spool_size: int = 1 << 30


@dataclass(frozen=True, slots=True)
class HooksConfig:
    """[hooks]: "module.function" or "" for none; time_limit in seconds."""

    directory: str
    rcpt: str
    data: str
    time_limit: float
    on_trouble: str


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """A [[name]] in [handlers]. None, and an empty smarthost: as [handlers] says.

    match: in lower case. settings: of the handler's own, as they are written.
    """

    name: str
    match: tuple[str, ...]
    class_name: str
    smarthost: str
    time_limit: float | None
    memory_limit: int | None
    processes: int | None
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HandlersConfig:
    """[handlers]: seconds and bytes. each: in the order of the file."""

    directory: str
    smarthost: str
    time_limit: float
    memory_limit: int
    processes: int
    tries: int
    pause: float
    each: tuple[HandlerConfig, ...]


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """[status]; listen is empty for no. The password is read from password_file where that is set.

    password: "" only where nothing but this machine's own addresses is listened on. variable: that
    of the environment which says `listen`; "" where the file does.
    """

    listen: tuple[Address, ...] = ()
    password: str = field(default="", repr=False)
    password_file: str = ""
    variable: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[log]; an empty file leaves the choice to the caller, an empty mail_file means file."""

    file: str
    mail_file: str
    level: str
    format: str


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. Two are equal where they mean the same, wherever they were read.

    secret_files: the files in which a password stands; only the daemon may be able to read them.
    key_files: those in which a private key of a listener's TLS stands; not everybody may read them.
    """

    path: str = field(compare=False)
    server: ServerConfig
    listeners: tuple[ListenerConfig, ...]
    tls: TLSConfig
    domains: DomainsConfig
    recipients: RecipientsConfig
    clients: ClientsConfig
    limits: LimitsConfig
    content: ContentConfig
    store: StoreConfig
    hooks: HooksConfig
    handlers: HandlersConfig
    log: LogConfig
    status: StatusConfig
    warnings: tuple[str, ...] = field(compare=False)
    secret_files: tuple[str, ...] = field(compare=False, default=())
    key_files: tuple[str, ...] = field(compare=False, default=())
