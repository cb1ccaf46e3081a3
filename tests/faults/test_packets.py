"""Does a message that SMTP let in always fit into a packet of the database?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.accounting import Client, Mail, MySQLTable, rows, send, stuffed, with_token
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for

MEGABYTE = 1024 * 1024
SCHEMA = "mail"


@pytest.fixture(scope="module")
def _server() -> Iterator[MariaDB]:
    with MariaDB(options=["--innodb-log-file-size=96M"]) as server:
        yield server


@pytest.fixture
def server(_server: MariaDB) -> MariaDB:
    """A MariaDB with an empty schema, whose packets a test may make smaller or larger."""
    make_schema(_server, SCHEMA)
    return _server


def packet(server: MariaDB, octets: int) -> None:
    """Let packets have `octets`, and end all connections that began with another limit."""
    server.query(f"SET GLOBAL max_allowed_packet={octets}")
    others = "SELECT id FROM information_schema.processlist WHERE db = %s"
    for (number,) in server.query(others, (SCHEMA,)):
        with contextlib.suppress(Exception):  # it may have ended by itself
            server.query(f"KILL CONNECTION {number}")


def announced(daemon: Gsmtpd) -> int:
    """The SIZE in the reply to EHLO."""
    with Client(daemon.address) as client:
        client.reply()
        lines = client.command("EHLO client.example").text.split("\n")
    return int(next(line for line in lines if "SIZE" in line).split()[1])


def wait_for_size(daemon: Gsmtpd, octets: int) -> None:
    """Wait until `octets` are announced."""
    wait_for(lambda: announced(daemon) == octets)


def filled(octet: bytes, size: int) -> Mail:
    """A mail of `size` octets, nearly all of them `octet`."""
    return Mail(b"Subject: x\r\n\r\n" + octet * (size - 16) + b"\r\n")


@pytest.mark.parametrize("octet", [b"'", b"\\", b"\0", b"\xff", b"x"])
def test_the_largest_message_announced_fits_whatever_is_in_it(
    server: MariaDB, octet: bytes
) -> None:
    packet(server, MEGABYTE)
    with Gsmtpd(mysql_store(server, SCHEMA)) as daemon:
        wait_for_size(daemon, MEGABYTE - 65536)
        mail = filled(octet, announced(daemon))
        assert send(daemon.address, mail)[0].code == 250
        assert [row.content for row in rows(MySQLTable(server, SCHEMA))] == [mail.content]
        assert "max_allowed_packet" in daemon.log.read_text()


def test_a_larger_message_is_refused_for_good(server: MariaDB) -> None:
    packet(server, MEGABYTE)
    with Gsmtpd(mysql_store(server, SCHEMA)) as daemon:
        wait_for_size(daemon, MEGABYTE - 65536)
        size = announced(daemon)
        with Client(daemon.address) as client:
            said = client.hello().command(f"MAIL FROM:<a@example.org> SIZE={size + 1}")
            assert said.text.startswith("552 5.3.4 ")
            assert client.deliver(filled(b"x", size + 1)).text.startswith("552 5.3.4 ")
            assert client.deliver(filled(b"x", size)).code == 250


def test_a_message_of_more_octets_than_one_packet_can_have(server: MariaDB) -> None:
    """The protocol's packets end at 16 MiB; a longer statement goes on in a second one."""
    packet(server, 64 * MEGABYTE)
    with Gsmtpd(mysql_store(server, SCHEMA) | {"limits": {"max_size": "20M"}}) as daemon:
        mail = filled(b"'", 20 * MEGABYTE)
        assert send(daemon.address, mail)[0].code == 250
        assert [row.content for row in rows(MySQLTable(server, SCHEMA))] == [mail.content]


def test_packets_become_smaller_while_mail_comes_in(server: MariaDB) -> None:
    """Mails that fit one by one do not fail because their batch does not."""
    packet(server, 16 * MEGABYTE)
    mails = [with_token(size=300_000) for _ in range(10)]
    with Gsmtpd(mysql_store(server, SCHEMA, connections=1)) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        packet(server, MEGABYTE)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(daemon.address)) for _ in mails]
            with server.connect(database=SCHEMA) as locker, locker.cursor() as cursor:
                cursor.execute("LOCK TABLES new_mail READ")
                for client, mail in zip(clients, mails, strict=True):
                    assert client.hello().begin(mail).code == 354
                    client.send(stuffed(mail.content))
                time.sleep(0.2)  # they gather behind the first, which waits for the lock
                cursor.execute("UNLOCK TABLES")
            assert [client.reply().code for client in clients] == [250] * len(mails)
        wait_for_size(daemon, MEGABYTE - 65536)
