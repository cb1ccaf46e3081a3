"""Does gsmtpd survive every trouble of its database, lose nothing, and recover by itself?

Recovery is within 5 seconds: that is the promise, so it is the deadline here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.accounting import (
    Client,
    Ledger,
    Load,
    Mail,
    MySQLTable,
    count,
    rows,
    send,
    simple,
    stuffed,
    to_several,
    with_token,
)
from tests.conftest import make_schema
from tests.faults.locks import insert_lock
from tests.servers import Gsmtpd, MariaDB, free_port, freeze, mysql_store, wait_for

pytestmark = pytest.mark.alone  # for the promise's sake
RECOVERY = 5.0  # seconds
SCHEMA = "mail"


def stored_again(daemon: Gsmtpd) -> None:
    """Mail is acknowledged within the promised time."""
    wait_for(lambda: send(daemon.address, with_token())[0].code == 250, RECOVERY)


@pytest.fixture(scope="module")
def _fragile() -> Iterator[MariaDB]:
    with MariaDB(durable=True) as server:
        yield server


@pytest.fixture
def fragile(_fragile: MariaDB) -> MariaDB:
    """A running MariaDB that a test may kill or set up, with an empty schema; set back before."""
    if _fragile.running:
        _fragile.query("SET GLOBAL wait_timeout=28800, read_only=0, max_allowed_packet=16777216")
    else:
        _fragile.start()
    make_schema(_fragile, SCHEMA)
    return _fragile


@pytest.fixture
def table(fragile: MariaDB) -> MySQLTable:
    return MySQLTable(fragile, SCHEMA)


@contextlib.contextmanager
def stopped(server: MariaDB) -> Iterator[None]:
    """The server takes connections and does nothing more."""
    freeze(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def connections(server: MariaDB, schema: str) -> list[int]:
    """The connections that are in use for `schema`."""
    found = server.query("SELECT id FROM information_schema.processlist WHERE db = %s", (schema,))
    return [row[0] for row in found]


def kill_connections(server: MariaDB, schema: str) -> int:
    """Kill all connections that are in use for `schema`; how many."""
    killed = 0
    for number in connections(server, schema):
        with contextlib.suppress(Exception):  # it may have ended by itself
            server.query(f"KILL CONNECTION {number}")
            killed += 1
    return killed


# --- the server is away -------------------------------------------------------------------------


def test_down_at_start(fragile: MariaDB, table: MySQLTable) -> None:
    fragile.kill()
    with Gsmtpd(mysql_store(fragile, SCHEMA)) as daemon:
        assert send(daemon.address, with_token())[0].text.startswith("451 4.3.0 ")
        fragile.start()
        stored_again(daemon)
        log = daemon.log.read_text()
        assert "no database server answers" in log
        assert "Traceback" not in log
    assert count(table) == 1


def test_table_missing_at_start(fragile: MariaDB, table: MySQLTable) -> None:
    fragile.create_database(SCHEMA)
    with Gsmtpd(mysql_store(fragile, SCHEMA)) as daemon:
        assert send(daemon.address, with_token())[0].text.startswith("451 4.3.0 ")
        daemon.ctl("init-db", "--apply")
        stored_again(daemon)
        assert "gsmtpctl init-db --apply" in daemon.log.read_text()
    assert count(table) == 1


def test_killed_under_load(fragile: MariaDB, table: MySQLTable) -> None:
    ledger = Ledger()
    settings = mysql_store(fragile, SCHEMA) | {"server": {"processes": 2}}
    with Gsmtpd(settings) as daemon, Load(daemon.address, ledger, make=to_several) as load:
        for _ in range(3):
            load.wait_for(200)
            fragile.kill()
            time.sleep(0.2)
            fragile.start()
            load.wait_for(1, RECOVERY)
    stored = rows(table)
    ledger.check(stored)
    assert len(ledger.acknowledged) > 600


def test_stopped_for_a_while_under_load(fragile: MariaDB, table: MySQLTable) -> None:
    ledger = Ledger()
    settings = mysql_store(fragile, SCHEMA)
    with Gsmtpd(settings) as daemon, Load(daemon.address, ledger, make=to_several) as load:
        load.wait_for(100)
        with stopped(fragile):
            time.sleep(3)
        load.wait_for(50, RECOVERY)
    stored = rows(table)
    ledger.check(stored)
    assert len(ledger.attempts) == len(ledger.acknowledged), "a client noticed"


def test_a_server_that_hangs_is_given_up(fragile: MariaDB, table: MySQLTable) -> None:
    """A stopped server takes connections and never answers: no writer may wait for it for good."""
    soon = "import gsmtpd.storage.mysql_connection as m; m.READ_TIMEOUT = m.WRITE_TIMEOUT = 1"
    ledger = Ledger()
    with Gsmtpd(mysql_store(fragile, SCHEMA, connections=1), before=soon) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        mail = to_several()
        with stopped(fragile):
            ledger.note(mail, send(daemon.address, mail)[0], True)
        stored_again(daemon)
    assert ledger.attempts[0].reply is not None
    assert ledger.attempts[0].reply.text.startswith("451 4.3.0 ")
    assert count(table) == 2


def test_the_next_host_is_tried(fragile: MariaDB, table: MySQLTable) -> None:
    hosts = f"127.0.0.1:{free_port()}, {fragile.socket}"
    with Gsmtpd(mysql_store(fragile, SCHEMA, host=hosts)) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
    assert count(table) == 1


def test_a_host_that_turned_read_only_is_left_for_the_next(
    fragile: MariaDB, table: MySQLTable, mariadb: MariaDB, schema: str
) -> None:
    """As after a failover, when the old primary takes connections and no writes."""
    for server, name in ((fragile, SCHEMA), (mariadb, schema)):
        server.query("CREATE OR REPLACE USER mail@localhost IDENTIFIED BY 'secret'")
        server.query(f"GRANT SELECT, INSERT ON {name}.* TO mail@localhost")
    make_schema(fragile, schema)
    fragile.query(f"GRANT SELECT, INSERT ON {schema}.* TO mail@localhost")
    hosts = f"{fragile.socket}, {mariadb.socket}"
    settings = mysql_store(fragile, schema, host=hosts, user="mail", password="secret")
    ledger = Ledger()
    with Gsmtpd(settings) as daemon:
        first = with_token()
        ledger.note(first, send(daemon.address, first)[0], True)
        fragile.query("SET GLOBAL read_only=1")
        for mail in (to_several() for _ in range(3)):
            ledger.note(mail, send(daemon.address, mail)[0], True)
    codes = [attempt.reply.code for attempt in ledger.attempts if attempt.reply]
    assert codes == [250] * 4
    ledger.check(rows(MySQLTable(fragile, schema)) + rows(MySQLTable(mariadb, schema)))


# --- connections are lost -----------------------------------------------------------------------


def test_connections_killed_between_mails(fragile: MariaDB, table: MySQLTable) -> None:
    ledger = Ledger()
    with Gsmtpd(mysql_store(fragile, SCHEMA)) as daemon, Client(daemon.address) as client:
        client.hello()
        for _ in range(10):
            mail = to_several()
            ledger.note(mail, client.deliver(mail), True)
            assert kill_connections(fragile, SCHEMA)
    assert len(ledger.acknowledged) == 10
    stored = rows(table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_connections_killed_under_load(fragile: MariaDB, table: MySQLTable) -> None:
    ledger = Ledger()
    killed = 0
    settings = mysql_store(fragile, SCHEMA)
    with Gsmtpd(settings) as daemon, Load(daemon.address, ledger, make=to_several) as load:
        for _ in range(20):
            load.wait_for(10)
            killed += kill_connections(fragile, SCHEMA)
    assert killed >= 20
    ledger.check(rows(table))


def test_connections_that_the_server_closes_for_being_idle(
    fragile: MariaDB, table: MySQLTable
) -> None:
    fragile.query("SET GLOBAL wait_timeout=1")
    with Gsmtpd(mysql_store(fragile, SCHEMA)) as daemon, Client(daemon.address) as client:
        client.hello()
        assert client.deliver(with_token()).code == 250
        # That of the upkeep thread, which asks once a second, stays.
        wait_for(lambda: len(connections(fragile, SCHEMA)) <= 1)
        assert client.deliver(with_token()).code == 250
    assert count(table) == 2


# --- it cannot write ----------------------------------------------------------------------------


def test_read_only(fragile: MariaDB, table: MySQLTable) -> None:
    fragile.query("CREATE OR REPLACE USER mail@localhost IDENTIFIED BY 'secret'")
    fragile.query(f"GRANT SELECT, INSERT ON {SCHEMA}.new_mail TO mail@localhost")
    settings = mysql_store(fragile, SCHEMA, user="mail", password="secret")
    with Gsmtpd(settings) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        fragile.query("SET GLOBAL read_only=1")
        assert send(daemon.address, with_token())[0].text.startswith("451 4.3.0 ")
        fragile.query("SET GLOBAL read_only=0")
        stored_again(daemon)
    assert count(table) == 2


@pytest.mark.parametrize("errno", [1021, 1114], ids=["disk full", "table full"])
def test_no_space(fragile: MariaDB, table: MySQLTable, errno: int) -> None:
    fragile.query(
        "CREATE TRIGGER full BEFORE INSERT ON new_mail FOR EACH ROW"
        f" SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {errno}",
        database=SCHEMA,
    )
    with Gsmtpd(mysql_store(fragile, SCHEMA)) as daemon:
        assert send(daemon.address, with_token())[0].text.startswith("452 4.3.1 ")
        fragile.query("DROP TRIGGER full", database=SCHEMA)
        stored_again(daemon)
    assert count(table) == 1


@pytest.mark.parametrize(
    "poison",
    [
        "CREATE TRIGGER poison BEFORE INSERT ON new_mail FOR EACH ROW IF NEW.subject = 'poison'"
        " THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF",
        "ALTER TABLE new_mail ADD CONSTRAINT poison CHECK (subject <> 'poison')",
        "CREATE UNIQUE INDEX poison ON new_mail (message_id)",
    ],
    ids=["trigger", "check", "unique"],
)
def test_a_row_that_is_refused_does_not_take_its_batch_along(
    fragile: MariaDB, table: MySQLTable, poison: str
) -> None:
    def mail(number: int) -> Mail:
        subject = "poison" if number in (7, 23) else f"good {number}"
        message_id = 0 if number in (7, 23) else number + 1
        return simple("Hello", Subject=subject, **{"Message-ID": f"<{message_id}@a>"})

    with Gsmtpd(mysql_store(fragile, SCHEMA, connections=1)) as daemon:
        first = simple("Hello", **{"Message-ID": "<0@a>"})
        assert send(daemon.address, first)[0].code == 250
        fragile.query(poison, database=SCHEMA)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(daemon.address)) for _ in range(40)]
            with insert_lock(fragile, SCHEMA):
                for number, client in enumerate(clients):
                    assert client.hello().begin(mail(number)).code == 354
                    client.send(stuffed(mail(number).content))
                time.sleep(0.2)  # they gather behind the first, which waits for the lock
            replies = [client.reply() for client in clients]
        codes = [reply.code for reply in replies]
        assert [n for n, code in enumerate(codes) if code != 250] == [7, 23], codes
        assert {replies[7].code, replies[23].code} == {451}
        assert daemon.log.read_text().count("refused: ") == 2
    assert {row.hash for row in rows(table)[1:]} == {r.id for r in replies if r.code == 250}
