"""Which store does a Config ask for, where are its tables, and can it be used?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from gsmtpd.config import Config
from gsmtpd.message.row import FASTEST, Decode, RowMaker
from gsmtpd.storage import spool_file, sqlite
from gsmtpd.storage.base import OnStored, Store, StoreError, StoreSetupError
from gsmtpd.storage.body_store import BodyStore, open_body_store
from gsmtpd.storage.dedupe import DedupingStore
from gsmtpd.storage.elsewhere import ElsewhereStore
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.reader import Bodies, MailReader
from gsmtpd.storage.schema import statements
from gsmtpd.storage.sqlite_retention import erase_sqlite

if TYPE_CHECKING:
    from gsmtpd.handlers.matching import Matcher
    from gsmtpd.storage.facts import Facts
    from gsmtpd.storage.mysql import MySQLStore, OnCapacity
    from gsmtpd.storage.mysql_hosts import OnAway


def database_status(config: Config, away: int) -> list[dict[str, object]]:
    """The configured hosts of the database. away: those that some worker leaves alone, as bits."""
    if config.store.backend != "mysql":
        return []
    from gsmtpd import app_mysql

    return app_mysql.status(config, away)


def database_facts(config: Config, seconds: float = 2.0) -> list[Facts]:
    """What the configured database says of itself, each of its hosts, within `seconds`.

    Of durability = relaxed nothing is a risk that is meant.
    """
    strict = config.store.durability == "strict"
    if config.store.backend == "sqlite":
        from gsmtpd.storage.sqlite_facts import ask_file  # only people ask

        return ask_file(config.store.sqlite.path, strict, seconds)
    if config.store.backend == "mysql":
        from gsmtpd import app_mysql

        return app_mysql.facts(config, strict, seconds)
    return []


def make_reader(config: Config) -> MailReader:
    """A reader of the configured store. Raises StoreError."""
    if config.store.backend == "sqlite":
        return sqlite.open_reader(config.store.sqlite.path, make_bodies(config))
    if config.store.backend == "mysql":
        from gsmtpd import app_mysql

        return app_mysql.open_reader(config, make_bodies(config))
    raise StoreError("[store] backend = null keeps no mail; there is nothing to read")


def make_finder(config: Config) -> Finder:
    """What finds mail in the configured store, for one thread. Raises StoreError."""
    if config.store.backend == "mysql":
        from gsmtpd import app_mysql

        return app_mysql.open_finder(config, make_bodies(config))
    if config.store.backend != "sqlite":
        raise StoreSetupError("[store] backend = null keeps no mail; there is nothing to find")
    path = config.store.sqlite.path
    reader = sqlite.open_reader(path, make_bodies(config))
    return Finder(reader, lambda row: erase_sqlite(path, row))


def make_bodies(config: Config) -> Bodies | None:
    try:
        return make_body_store(config)
    except StoreError as error:
        return _NoBodies(error)  # most mail may be read without


class _NoBodies:
    """In place of a body store whose library is missing."""

    def __init__(self, error: StoreError) -> None:
        self._error = error

    def get(self, key: str) -> bytes | None:
        raise self._error


def schema(config: Config) -> list[str]:
    """The SQL statements that make the configured store's tables."""
    backend = config.store.backend
    if backend == "null":
        raise StoreError("[store] backend = null has no tables")
    if backend == "sqlite":
        return statements(backend)
    from gsmtpd import app_mysql

    return app_mysql.schema(config)


def make_tables(
    config: Config, progress: Callable[[int, int], None] = lambda done, of: None
) -> str:
    """Make the configured store's tables where they are missing; says where. Raises StoreError.

    progress: called behind each statement with how many are done, and how many there are.
    """
    if config.store.backend == "sqlite":
        sqlite.make(config.store.sqlite.path, progress)
        return f"the tables are in {config.store.sqlite.path}"
    from gsmtpd import app_mysql

    return app_mysql.make_tables(config, progress)


def check_store(config: Config) -> None:
    """Whether the configured store can be used now; makes nothing. Raises StoreError."""
    if config.store.backend == "sqlite":
        sqlite.check(config.store.sqlite.path)
    elif config.store.backend == "mysql":
        if config.store.spool:
            spool_file.check(config.store.spool)
        store = make_store(config)
        try:
            store.prepare()
        finally:
            store.close()


def prepare_store(config: Config) -> None:
    """Make the mail file before any fork: unlike a database server it will not come by itself.

    Likewise the spool. Raises StoreError.
    """
    if config.store.backend == "sqlite":
        sqlite.make(config.store.sqlite.path)
    elif config.store.backend == "mysql":
        from gsmtpd import app_mysql  # noqa: F401  # here, so that all workers share it

        if spool := spool_of(config):
            spool_file.prepare(spool)


def spool_of(config: Config) -> str:
    """The directory of the spool that is used, "" if none is."""
    return config.store.spool if config.store.backend == "mysql" else ""


def settle_store(config: Config) -> None:
    """Leave all mail in the mail file itself, once no process writes there any more."""
    if config.store.backend == "sqlite":
        with suppress(StoreError):
            sqlite.settle(config.store.sqlite.path)


def make_store(
    config: Config,
    on_capacity: OnCapacity = lambda size: None,
    warn: bool = False,
    dedupe: bool = True,
    handled: bool = True,
) -> Store:
    """The configured store, not connected yet. Raises StoreError for one that keeps nothing.

    on_capacity, warn: see MySQLStore. dedupe: whether dedupe_window counts. handled: whether
    handlers act on what is stored.
    """
    database = make_database_store(config, on_capacity, warn, handled=handled)
    if database is None:
        raise StoreError("[store] backend = null keeps no mail")
    return with_more(config, database, dedupe)


def make_database_store(
    config: Config,
    on_capacity: OnCapacity = lambda size: None,
    warn: bool = False,
    on_away: OnAway = lambda bits: None,
    on_stored: OnStored = lambda owed: None,
    handled: bool = True,
) -> sqlite.SQLiteStore | MySQLStore | None:
    """The configured database alone, not connected yet; None for null.

    handled: whether handlers act on what is stored.
    """
    chosen = config.store
    rows = _row_maker(config, handled)
    durable = chosen.durability == "strict"
    if chosen.backend == "sqlite":
        return sqlite.SQLiteStore(chosen.sqlite.path, rows, durable, on_stored)
    if chosen.backend == "mysql":
        from gsmtpd import app_mysql

        return app_mysql.make_store(config, rows, on_capacity, warn, on_away, on_stored)
    return None


def make_draining_store(config: Config, on_stored: OnStored) -> MySQLStore:
    """The database for what empties the spool."""
    from gsmtpd import app_mysql

    return app_mysql.make_draining_store(config, _row_maker(config), on_stored)


def with_more(
    config: Config, database: sqlite.SQLiteStore | MySQLStore, dedupe: bool = True
) -> Store:
    """The store of `database` and of what else is configured."""
    rows = _row_maker(config)
    bodies = make_body_store(config)
    store: Store = database if bodies is None else ElsewhereStore(database, bodies, rows)
    if dedupe and config.store.dedupe_window is not None:
        store = DedupingStore(store, database, config.store.dedupe_window, rows.recipients)
    return store


def make_body_store(config: Config) -> BodyStore | None:
    """The configured body store, not connected yet. Raises StoreError if its library is missing."""
    chosen = config.store.body
    if chosen.backend == "none":
        return None
    where = chosen.address
    return open_body_store(chosen.backend, where.host, where.port, where.unix_socket, chosen.ttl)


def _row_maker(config: Config, handled: bool = True) -> RowMaker:
    """handled: whether rows are matched with handlers."""
    return RowMaker(
        config.server.host_name,
        config.domains.primary_domain,
        Decode(config.content.decode),
        _level(config),
        config.content.spam_score_header,
        make_matcher(config) if handled and config.handlers.each else None,
    )


def make_matcher(config: Config) -> Matcher:
    """Which handlers act on the mail for an address."""
    from gsmtpd.handlers.matching import Matcher  # only where there are any

    return Matcher({each.name: each.match for each in config.handlers.each})


def _level(config: Config) -> int | None:
    """zlib's level; what goes into a body store is always compressed."""
    fallback = None if config.store.body.backend == "none" else FASTEST
    return config.content.compress or fallback
