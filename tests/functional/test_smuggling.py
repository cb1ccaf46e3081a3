"""Does a running server end a message at its true end alone, and store what was sent?

All exchanges run at once, so that the pauses cost one second together.
"""

from __future__ import annotations

import hashlib
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import NamedTuple

import pytest

from tests.dialogs.false_ends import END, FALSE_ENDS, smuggled, unstuffed
from tests.servers import Gsmtpd

SECONDS = 20.0  # for any one reply
PAUSE = 1.0  # seconds behind a false end; a server that over-reads looks safe without
GAP = 0.01  # seconds between segments that the server shall receive one by one
VICTIM = "victim@example.com"  # of the smuggled message
BEFORE = b"Subject: one\r\n\r\nbefore"
FINAL = re.compile(rb"250 2\.0\.0 OK: queued as ([0-9a-f]{32})\r\n")


class Exchange(NamedTuple):
    """A false end, and how it is delivered: in which pieces, with a pause before which of them."""

    name: str
    delivery: str
    recipient: str
    pieces: tuple[bytes, ...]
    pauses: tuple[float, ...]

    @property
    def content(self) -> bytes:
        """The message that was sent."""
        return unstuffed(b"".join(self.pieces).removesuffix(END)) + b"\r\n"


class Stored(NamedTuple):
    """A row of the store."""

    recipient: str
    mail: bytes
    hash: str
    content_hash: str
    size: int


Delivery = tuple[str, tuple[bytes, ...], tuple[float, ...]]


def deliveries(false: bytes, after: bytes) -> Iterator[Delivery]:
    """The ways to send a message with the false end `false`: their names, pieces and pauses."""
    whole = BEFORE + false + after
    yield "one segment", (whole,), (0.0,)
    # Slowly where it matters; further off the server's recv may join the octets.
    near = range(len(BEFORE), len(BEFORE + false) + 2)
    gaps = tuple(GAP if at in near else 0.0 for at in range(len(whole)))
    yield "byte by byte", tuple(bytes([octet]) for octet in whole), gaps
    for at in range(1, len(false)):
        yield f"cut at {at}", (BEFORE + false[:at], false[at:] + after), (0.0, GAP)
    yield "pause", (BEFORE + false, after), (0.0, PAUSE)


def exchanges() -> Iterator[Exchange]:
    """Each false end in each delivery, each to a recipient of its own."""
    numbers = count()
    for name, false in FALSE_ENDS.items():
        for delivery, pieces, pauses in deliveries(false, smuggled(VICTIM) + END):
            yield Exchange(name, delivery, f"u{next(numbers)}@example.com", pieces, pauses)


EXCHANGES = list(exchanges())


def deliver(address: tuple[str, int], exchange: Exchange) -> bytes:
    """All that the server says behind 354, up to its reply to QUIT."""
    with closing(socket.create_connection(address, SECONDS)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = client.makefile("rb")
        assert replies.readline().startswith(b"220 ")
        client.sendall(
            b"HELO client.example.org\r\nMAIL FROM:<a@example.org>\r\n"
            b"RCPT TO:<%s>\r\nDATA\r\n" % exchange.recipient.encode()
        )
        assert [replies.readline()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"354"]
        for piece, pause in zip(exchange.pieces, exchange.pauses, strict=True):
            if pause:
                time.sleep(pause)
            client.sendall(piece)
        final = replies.readline()
        client.sendall(b"QUIT\r\n")
        return final + replies.read()


class Result(NamedTuple):
    """What was said in each exchange, and all that was stored."""

    said: dict[Exchange, bytes]
    stored: list[Stored]


@pytest.fixture(scope="module")
def result() -> Iterator[Result]:
    with Gsmtpd() as server:
        with ThreadPoolExecutor(48) as pool:
            # The long ones first.
            queue = sorted(EXCHANGES, key=lambda exchange: -sum(exchange.pauses))
            said = dict(
                zip(queue, pool.map(lambda each: deliver(server.address, each), queue), strict=True)
            )
        with closing(sqlite3.connect(server.mail_db)) as store:
            rows = store.execute(
                "SELECT recipient, mail, hash, content_hash, size FROM new_mail"
            ).fetchall()
        yield Result(said, [Stored(*row) for row in rows])


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda each: f"{each.name} {each.delivery}")
def test_false_end(result: Result, exchange: Exchange) -> None:
    match = re.fullmatch(FINAL.pattern + rb"221 2\.0\.0 Bye\r\n", result.said[exchange])
    assert match, result.said[exchange]
    (row,) = [row for row in result.stored if row.recipient == exchange.recipient]
    assert row.hash == match.group(1).decode()
    assert row.content_hash == hashlib.sha256(exchange.content).hexdigest()
    assert row.size == len(exchange.content)
    # Our own fields stand in front, and nothing behind or between.
    front, subject, content = row.mail.partition(b"Subject: one\r\n")
    assert front.startswith(b"Delivered-To: ")
    assert subject + content == exchange.content


def test_nothing_else_was_stored(result: Result) -> None:
    assert len(EXCHANGES) == 18 * 3 + sum(len(false) - 1 for false in FALSE_ENDS.values())
    assert sorted(row.recipient for row in result.stored) == sorted(
        exchange.recipient for exchange in EXCHANGES
    )
