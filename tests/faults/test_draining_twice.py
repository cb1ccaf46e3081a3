"""Is mail of the spool stored once where a worker dies whose COMMIT goes on in the database?"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.accounting import MySQLTable, rows, send, with_token
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, merge, mysql_store, wait_for

SCHEMA = "mail"
# A COMMIT waits for a replica that never comes, and nobody sees its rows meanwhile.
SLOW_COMMIT = [
    *("--log-bin=bin", "--server-id=1", "--sync-binlog=1"),
    *("--rpl-semi-sync-master-wait-point=AFTER_SYNC", "--rpl-semi-sync-master-timeout=8000"),
]
COMMITTING = "SELECT id FROM information_schema.processlist WHERE info = 'COMMIT'"


def test_a_commit_that_outlives_its_worker(tmp_path: Path) -> None:
    with MariaDB(durable=True, options=SLOW_COMMIT) as database:
        make_schema(database, SCHEMA)
        settings = merge(mysql_store(database, SCHEMA), {"store": {"spool": tmp_path / "spool"}})
        armed = {"GSMTPD_FAILPOINTS": str(tmp_path)}
        with Gsmtpd(settings, variables=armed) as daemon:
            assert send(daemon.address, with_token())[0].code == 250
            database.kill()
            replies = [send(daemon.address, with_token())[0] for _ in range(3)]
            assert {reply.code for reply in replies} == {250}
            stalled = tmp_path / "before_commit"
            stalled.write_text("stall 2")
            database.start()
            wait_for(lambda: not stalled.exists())  # the spool is being emptied
            database.query("SET GLOBAL rpl_semi_sync_master_enabled=1")
            time.sleep(3)  # upkeep commits, too: it is the drainer's COMMIT that is wanted
            wait_for(lambda: database.query(COMMITTING))
            for worker in daemon.workers:
                os.kill(worker, signal.SIGKILL)
            wait_for(lambda: daemon.status()["spool"]["messages"] == 0)
        stored = [row.hash for row in rows(MySQLTable(database, SCHEMA))]
        assert len(stored) == len(set(stored)) == 4
        assert {reply.id for reply in replies} <= set(stored)
