"""Does all that is said reach the server, and is prepared again what it knows no more?"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage.base import Outcome
from gsmtpd.storage.mysql import MySQLStore
from gsmtpd.storage.mysql_connection import Database, Host
from gsmtpd.storage.mysql_wire import Connection, TimedSocket
from tests.servers import MariaDB

# --- the socket -----------------------------------------------------------------------------------


class Halting(TimedSocket):
    """A socket that a signal interrupts."""

    def sendmsg(self, parts: Sequence[bytes], *_: object) -> int:  # type: ignore[override]
        return self.send(b"".join(parts)[:5])


@pytest.mark.parametrize("kind", [TimedSocket, Halting])
def test_all_parts_are_sent(kind: type[TimedSocket]) -> None:
    ours, theirs = socket.socketpair()
    parts = [b"ab", b"", b"cdef" * 100, b"g"]
    with kind(fileno=ours.detach()) as sender, theirs:
        sender.send_all(parts)
        sender.shutdown(socket.SHUT_WR)
        assert theirs.makefile("rb").read() == b"".join(parts)


def test_who_reads_nothing_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    told = []
    with TimedSocket(fileno=ours.detach()) as sender, theirs:
        sender.on_timeout = lambda: told.append(1)
        sender.bound(1, 1)
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                sender.send_all([b"x" * 65536] * 16)
    assert told == [1]


# --- prepared statements --------------------------------------------------------------------------


def message(name: int) -> Message:
    envelope = Envelope("x", True, Mailbox("a", "example.org"), (Mailbox("b", "example.com"),))
    return Message(str(name).rjust(32, "0"), envelope, b"x\r\n", "192.0.2.1", 1_700_000_000.0)


@pytest.fixture
def write(mariadb: MariaDB, schema: str) -> Iterator[Callable[..., list[Outcome]]]:
    host = Host("localhost", unix_socket=str(mariadb.socket))
    store = MySQLStore(
        Database((host,), "root", "", schema), RowMaker("mx.example.com"), 1, warn=True
    )

    def written(*numbers: int) -> list[Outcome]:
        return [*store.write([store.encode(message(number)) for number in numbers])]  # type: ignore[list-item]

    yield written
    store.close()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connections that were prepared on."""
    found = []
    really = Connection.prepare

    def prepare(self: Connection, sql: bytes) -> bytes:
        found.append(self)
        return really(self, sql)

    monkeypatch.setattr(Connection, "prepare", prepare)
    return found


def test_each_is_prepared_once(write, used: list[Connection]) -> None:
    for number in range(10):
        assert write(number) == [Outcome.STORED]
    assert len(used) == 1
    assert write(10, 11) == [Outcome.STORED] * 2
    assert len(used) == 2


def test_one_that_the_server_knows_no_more(write, used: list[Connection], mariadb, schema) -> None:
    """As behind a balancer that has gone on to another server."""
    assert write(1) == [Outcome.STORED]
    ((sql, statement),) = used[0].statements.items()
    used[0].statements[sql] = b"\xfe\xff\xff\x7f" + statement[4:]
    assert write(2) == [Outcome.STORED]
    assert len(used) == 2
    assert mariadb.query("SELECT COUNT(*) FROM new_mail", database=schema) == [(2,)]


def test_a_server_that_keeps_none(write, mariadb, caplog: pytest.LogCaptureFixture) -> None:
    ((before,),) = mariadb.query("SELECT @@max_prepared_stmt_count")
    mariadb.query("SET GLOBAL max_prepared_stmt_count = 0")
    try:
        assert write(1) == [Outcome.TROUBLE]
    finally:
        mariadb.query(f"SET GLOBAL max_prepared_stmt_count = {before}")
    assert "keeps no more prepared statements; raise its max_prepared_stmt_count" in caplog.text
    assert write(1) == [Outcome.STORED]
