"""What becomes of mail while no database host can be written to? It is kept in the spool."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from gsmtpd.storage.base import Health, Letter, Outcome, Result, Store, StoreError
from gsmtpd.storage.spool import Spool
from gsmtpd.storage.spool_drain import Database, Drainer

_log = logging.getLogger(__name__)

_EPISODE = 60.0  # seconds without it, after which the same is worth another line of the log


class SpoolingStore:
    """Stores in `store`, and keeps in `spool` what no host of that takes now.

    It goes in front of all other stores. What is SPOOLED is synced, and is stored later, by
    `drainer`, which uses `store` as well.
    """

    def __init__(self, store: Store, spool: Spool, drainer: Drainer) -> None:
        self._store = store
        self._spool = spool
        self._drainer = drainer
        self._health = Health("spool")
        self._spooled_at = self._full_at = -_EPISODE  # monotonic seconds, of the last time
        self.prepare = store.prepare
        self.read = store.read
        self.encode = store.encode

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Store `letters` in one transaction, or keep them."""
        results = self._store.write(letters)
        if Outcome.AWAY not in results:
            return results
        return self._keep(letters, results)

    def _keep(self, letters: Sequence[Letter], results: list[Result]) -> list[Result]:
        """`results`, with those of `letters` kept that are AWAY and fit."""
        away = [
            letter.message
            for letter, result in zip(letters, results, strict=True)
            if result is Outcome.AWAY
        ]
        short: list[str] = []
        try:
            kept = self._spool.add(away, short.append)
        except StoreError as error:
            self._health.trouble(str(error))
            return results
        self._say(bool(kept), short)
        return [
            Outcome.SPOOLED if letter.message.id in kept else result
            for letter, result in zip(letters, results, strict=True)
        ]

    def _say(self, kept: bool, short: Sequence[str]) -> None:
        """Log what begins: mail is kept, or there is no room for all of it; see Spool.add."""
        now = time.monotonic()
        for why in set(short):
            self._full_at = now
            self._health.trouble(f"{self._spool.folder} {why}")
        # Small mail may fit where large mail does not.
        if not short and now - self._full_at > _EPISODE:
            self._health.well()
        if kept:
            if now - self._spooled_at > _EPISODE:
                _log.warning(
                    "spool: no database host can be written to; mail is kept in %s until one can",
                    self._spool.folder,
                )
            self._spooled_at = now

    def close(self) -> None:
        """Close all, once nothing more is being drained."""
        self._drainer.retire()
        self._store.close()
        self._spool.close()


def with_spool(
    store: Store, later: Store, database: Database, folder: str, most: int
) -> tuple[SpoolingStore, Drainer]:
    """`store`, with the spool in `folder`, and what empties that into `later`.

    later: a store of the drainer's own, whose rows are in `database`. most: octets that the spool
    may take. Nothing is opened yet.
    """
    drainer = Drainer(Spool(folder), later, database)
    return SpoolingStore(store, Spool(folder, most), drainer), drainer
