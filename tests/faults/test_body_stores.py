"""Does mail survive whatever becomes of memcached or Redis, and is what a row says of it true?

Real servers are killed, stopped and filled under load. Every message is answered 250; a row says
where the octets of its mail are.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from gsmtpd.storage.body_store import BodyStore, open_body_store
from tests.accounting import FRONT, Ledger, Load, Mail, Row, send, table_of, to_several, with_token
from tests.servers import Gsmtpd, Memcached, Redis, Settings, freeze, wait_for

Server = Memcached | Redis
KINDS: dict[str, Callable[[], Server]] = {"memcached": Memcached, "redis": Redis}


class Kept(NamedTuple):
    """A daemon, where it keeps bodies, and the same for a reader."""

    daemon: Gsmtpd
    server: Server
    bodies: BodyStore
    ledger: Ledger

    def rows(self) -> list[tuple[Row, str]]:
        """All rows, each with its mail_encoding."""
        names = ", ".join(f"`{name}`" for name in (*Row._fields, "mail_encoding"))
        found = table_of(self.daemon).query(f"SELECT {names} FROM new_mail ORDER BY mail_id")
        return [(Row(*values), encoding) for *values, encoding in found]

    def newest(self) -> str:
        """The mail_encoding of the row that was stored last."""
        sql = "SELECT mail_encoding FROM new_mail ORDER BY mail_id DESC LIMIT 1"
        return table_of(self.daemon).query(sql)[0][0]

    def whole(self, row: Row, encoding: str) -> Row | None:
        """`row` with the mail as it was sent; None where the body store does not have it."""
        if encoding == "":
            return row
        if encoding == "zlib":
            return row._replace(mail=zlib.decompress(row.mail))
        assert row.mail == b"", "what is elsewhere is not in the table as well"
        held = self.bodies.get(row.hash)
        if held is None:
            return None
        front = f"Delivered-To: {row.recipient}\r\n".encode()
        return row._replace(mail=front + zlib.decompress(held))

    def check(self, gone: bool = False) -> list[str]:
        """Hold the ledger against all rows; the encodings of the rows, in order.

        gone: whether the body store may have lost what it had.
        """
        found = self.rows()
        restored = [self.whole(row, encoding) for row, encoding in found]
        lost = [row for (row, _), back in zip(found, restored, strict=True) if back is None]
        assert gone or not lost, f"{len(lost)} bodies are gone"
        refused = [a.reply for a in self.ledger.attempts if a.reply and a.reply.code != 250]
        assert refused == [], "all mail is taken, whatever becomes of the body store"
        stored = [back for back in restored if back is not None]
        if not gone:
            self.ledger.check(stored)
        assert [row.problem() for row in stored] == [None] * len(stored)
        ids = {row.hash for row, _ in found}
        assert {a.reply.id for a in self.ledger.acknowledged if a.reply} <= ids
        return [encoding for _, encoding in found]


@pytest.fixture(params=["memcached", "redis"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Kept]]:
    """Starts a body store and a daemon that uses it."""
    with ExitStack() as stack:

        def started(server: Server | None = None, before: str = "", **settings: Settings) -> Kept:
            server = server or KINDS[request.param]()
            kind = server.name
            stack.enter_context(server)
            where = {"backend": kind, "address": f"127.0.0.1:{server.port}"}
            store = {"backend": "sqlite", "body": where}
            daemon = Gsmtpd({"store": store, "server": {"processes": 2}, **settings}, before=before)
            stack.enter_context(daemon)
            bodies = open_body_store(kind, "127.0.0.1", server.port, None, 3600)
            stack.callback(bodies.close)
            return Kept(daemon, server, bodies, Ledger())

        yield started


# What is tried again after five seconds is tried again sooner.
SOON = "import gsmtpd.storage.body_store as b\nb.PAUSE = 0.3\n"


def test_what_is_there_is_what_was_sent(start: Callable[..., Kept]) -> None:
    kept = start()
    with Load(kept.daemon.address, kept.ledger, make=to_several) as load:
        load.wait_for(300)
    assert set(kept.check()) == {kept.server.name}


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Lets the server neither answer nor end."""
    freeze(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_killed_under_load_and_started_again(start: Callable[..., Kept]) -> None:
    kept = start(before=SOON)
    with Load(kept.daemon.address, kept.ledger, make=to_several) as load:
        load.wait_for(200)
        before = {row.hash for row, encoding in kept.rows() if encoding == kept.server.name}
        kept.server.kill()
        load.wait_for(200)
    # All is answered: what was put before the kill is in a row by now.
    without = kept.rows()
    with Load(kept.daemon.address, kept.ledger, make=to_several) as load:
        load.wait_for(100)
        kept.server.start()
        wait_for(lambda: kept.newest() == kept.server.name)
        load.wait_for(100)
    encodings = kept.check(gone=True)
    assert before
    assert {*encodings} == {"zlib", kept.server.name}
    assert any(encoding == "zlib" for _, encoding in without)
    # Nothing that was put later is gone. What was put before the kill may be anywhere in `without`:
    # of two processes one may wait long for its turn to write.
    found = kept.rows()
    for row, encoding in found[len(without) :]:
        assert kept.whole(row, encoding) is not None
    log = kept.daemon.log.read_text()
    assert f"{kept.server.name} at 127.0.0.1:{kept.server.port}" in log
    assert "mail is kept there again" in log


def test_stopped_under_load_and_continued(start: Callable[..., Kept]) -> None:
    kept = start(before=SOON)
    with Load(kept.daemon.address, kept.ledger, make=to_several) as load:
        load.wait_for(200)
        with stopped(kept.server):
            load.wait_for(200)
            wait_for(lambda: kept.newest() == "zlib")
        wait_for(lambda: kept.newest() == kept.server.name)
        load.wait_for(100)
    assert {*kept.check()} == {"zlib", kept.server.name}


def test_away_from_the_start_and_started_later(start: Callable[..., Kept]) -> None:
    kept = start(before=SOON)
    kept.server.kill()
    with Load(kept.daemon.address, kept.ledger) as load:
        load.wait_for(100)
        kept.server.start()
        wait_for(lambda: kept.newest() == kept.server.name)
    kept.check()


def test_the_daemon_and_the_store_killed_together(start: Callable[..., Kept]) -> None:
    kept = start(before=SOON)
    with Load(kept.daemon.address, kept.ledger, make=to_several) as load:
        for _ in range(2):
            load.wait_for(150)
            kept.daemon.kill()
            kept.server.kill()
            kept.daemon.start()
            load.wait_for(50)
            kept.server.start()
    kept.check(gone=True)


@pytest.mark.parametrize("start", ["redis"], indirect=True)
def test_a_redis_that_syncs_loses_nothing(start: Callable[..., Kept]) -> None:
    kept = start(Redis(durable=True), before=SOON)
    with Load(kept.daemon.address, kept.ledger, make=to_several) as load:
        for _ in range(3):
            load.wait_for(150)
            kept.server.kill()
            load.wait_for(20)
            kept.server.start()
            wait_for(lambda: kept.newest() == "redis")
    kept.server.kill()
    kept.server.start()
    assert {*kept.check()} == {"zlib", "redis"}


@pytest.mark.parametrize(
    ("start", "server"),
    [
        ("memcached", lambda: Memcached(memory=1, evict=False, item_size="512k")),
        ("redis", lambda: Redis(maxmemory="3mb")),
    ],
    indirect=["start"],
    ids=["memcached", "redis"],
)
def test_a_full_store(start: Callable[..., Kept], server: Callable[[], Server]) -> None:
    """What does not fit is in the table."""
    kept = start(server(), before=SOON)

    def big() -> Mail:
        mail = with_token()
        noise = os.urandom(32_000).translate(None, b"\r\n")
        return mail._replace(content=mail.content + noise + b"\r\n")

    with Load(kept.daemon.address, kept.ledger, make=big) as load:
        wait_for(lambda: any(encoding == "zlib" for _, encoding in kept.rows()))
        load.wait_for(100)
    assert {*kept.check()} == {"zlib", kept.server.name}
    assert re.search(r"refused \d+ messages", kept.daemon.log.read_text())


@pytest.mark.parametrize("start", ["memcached"], indirect=True)
def test_one_that_is_larger_than_an_item_may_be(start: Callable[..., Kept]) -> None:
    kept = start()
    mails = [with_token() for _ in range(3)]
    large = os.urandom(1_500_000).translate(None, b"\r\n")
    mails[1] = mails[1]._replace(content=mails[1].content + large + b"\r\n")
    for mail, reply in zip(mails, send(kept.daemon.address, *mails), strict=True):
        kept.ledger.note(mail, reply, True)
    assert kept.check() == ["memcached", "zlib", "memcached"]


def test_the_front_is_the_one_of_each_recipient(start: Callable[..., Kept]) -> None:
    """The octets are shared by the recipients, and none sees another."""
    kept = start()
    mail = with_token(recipients=["b@example.com", "c@example.com"])
    kept.ledger.note(mail, send(kept.daemon.address, mail)[0], True)
    assert kept.check() == [kept.server.name] * 2
    for row, encoding in kept.rows():
        whole = kept.whole(row, encoding)
        assert whole is not None
        front = FRONT.fullmatch(whole.front)
        assert front is not None
        assert front["recipient"].decode() == row.recipient
        assert front["for"] is None
