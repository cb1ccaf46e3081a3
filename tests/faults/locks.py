"""How may somebody else lock the table that mail goes into, and for how long?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.accounting import Client, Ledger, MySQLTable, Row, rows, send, stuffed, with_token
from tests.servers import Gsmtpd, MariaDB, mysql_store

Lock = Callable[[MariaDB, str], contextlib.AbstractContextManager[None]]
RECIPIENTS = [f"r{i}@example.com" for i in range(5)]


@contextlib.contextmanager
def insert_lock(server: MariaDB, schema: str) -> Iterator[None]:
    """The end of the table is locked: no row can be inserted, error 1205 after a while."""
    with server.connect(database=schema) as connection, connection.cursor() as cursor:
        connection.begin()
        cursor.execute("SELECT mail_id FROM new_mail WHERE mail_id > 0 FOR UPDATE")
        yield
        connection.rollback()


@contextlib.contextmanager
def table_lock(server: MariaDB, schema: str) -> Iterator[None]:
    """The table may be read only, as while it is dumped."""
    with server.connect(database=schema) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES new_mail READ")
        yield
        cursor.execute("UNLOCK TABLES")


@contextlib.contextmanager
def half_lock(server: MariaDB, schema: str) -> Iterator[None]:
    """The last of the recipients is locked: the other rows of a message go in, this one waits."""
    with server.connect(database=schema) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE gate (name varchar(255) PRIMARY KEY) ENGINE=InnoDB")
        cursor.execute("INSERT INTO gate VALUES (%s)", (RECIPIENTS[-1],))
        cursor.execute(
            "CREATE TRIGGER gate BEFORE INSERT ON new_mail FOR EACH ROW"
            " UPDATE gate SET name = NEW.recipient WHERE name = NEW.recipient"
        )
        connection.begin()
        cursor.execute("SELECT * FROM gate FOR UPDATE")
        yield
        connection.rollback()


class Case(NamedTuple):
    """seconds: until the lock is released; None: when the client has its reply."""

    lock: Lock
    seconds: float | None
    code: int


CASES = {
    "rows locked for a while": Case(insert_lock, 7.0, 250),
    "rows locked for long": Case(insert_lock, None, 451),
    "half a message locked for a while": Case(half_lock, 7.0, 250),
    "half a message locked for long": Case(half_lock, None, 451),
    "table locked for a while": Case(table_lock, 7.0, 250),
}


class Waited(NamedTuple):
    ledger: Ledger
    during: list[Row]
    after: list[Row]


def wait(server: MariaDB, schema: str, case: Case) -> Waited:
    """Send a mail while the lock is held, and one when it is gone."""
    ledger = Ledger()
    table = MySQLTable(server, schema)
    mail = with_token(recipients=RECIPIENTS)
    with Gsmtpd(mysql_store(server, schema)) as daemon, Client(daemon.address) as client:
        assert send(daemon.address, with_token())[0].code == 250
        with case.lock(server, schema):
            client.hello().begin(mail)
            client.send(stuffed(mail.content))
            if case.seconds is None:
                ledger.note(mail, client.reply(), True)
            else:
                time.sleep(case.seconds)
            during = rows(table)[1:]
        if case.seconds is not None:
            ledger.note(mail, client.reply(), True)
        following = with_token(recipients=RECIPIENTS)
        ledger.note(following, client.deliver(following), True)
        return Waited(ledger, during, rows(table)[1:])
