"""Does a running server end a message at its true end alone, and store what was sent?

In the clear, after STARTTLS and where TLS comes first; by DATA, where the true dot ends it, and by
BDAT, where a count of octets does. All exchanges run at once, so that the pauses cost one second
together.
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from ssl import SSLContext
from typing import NamedTuple

import pytest

from tests.accounting import Address, Client, Row, rows, table_of
from tests.certificates import Authority
from tests.dialogs.false_ends import END, FALSE_ENDS, smuggled, unstuffed
from tests.peers import TLSClient
from tests.servers import Gsmtpd, free_port, tls_section

SECONDS = 20.0  # for any one reply
PAUSE = 1.0  # seconds behind a false end; a server that over-reads looks safe without
GAP = 0.01  # seconds between segments that the server shall receive one by one
VICTIM = "victim@example.com"  # of the smuggled message
BEFORE = b"Subject: one\r\n\r\nbefore"
FINAL = re.compile(r"250 2\.0\.0 OK: queued as ([0-9a-f]{32})")
CHANNELS = ("plain", "starttls", "implicit")
# To BDAT even the true end of DATA means nothing.
NO_ENDS = FALSE_ENDS | {"CRLF.CRLF": END}


class Exchange(NamedTuple):
    """A false end, and how it is delivered: in which pieces, with a pause before which of them.

    verb: DATA, or BDAT, whose pieces are chunks, or one chunk where `one_chunk`.
    """

    name: str
    channel: str
    verb: str
    delivery: str
    recipient: str
    pieces: tuple[bytes, ...]
    pauses: tuple[float, ...]
    one_chunk: bool = False

    def __str__(self) -> str:
        return f"{self.channel} {self.verb} {self.name} {self.delivery}"

    @property
    def content(self) -> bytes:
        """The message that was sent."""
        whole = b"".join(self.pieces)
        return whole if self.verb == "BDAT" else unstuffed(whole.removesuffix(END)) + b"\r\n"

    @property
    def chunks(self) -> tuple[bytes, ...]:
        """What stands behind one BDAT each; nothing with DATA."""
        if self.verb == "DATA":
            return ()
        return (self.content,) if self.one_chunk else self.pieces

    @property
    def replies(self) -> int:
        """How many there are to the message."""
        return max(1, len(self.chunks))

    def on_the_wire(self) -> list[bytes]:
        """The pieces, with the BDAT commands."""
        wire = list(self.pieces)
        if self.one_chunk:
            wire[0] = b"BDAT %d LAST\r\n" % len(self.content) + wire[0]
        elif self.verb == "BDAT":
            commands = [b"BDAT %d" % len(piece) for piece in wire]
            commands[-1] += b" LAST"
            wire = [b"%s\r\n%s" % each for each in zip(commands, wire, strict=True)]
        return wire


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
    """Each false end in each delivery on each channel, each to a recipient of its own."""
    recipients = (f"u{number}@example.com" for number in count())
    after = smuggled(VICTIM) + END
    for channel in CHANNELS:
        for name, false in FALSE_ENDS.items():
            for delivery in deliveries(false, after):
                yield Exchange(name, channel, "DATA", delivery[0], next(recipients), *delivery[1:])
    for name, false in NO_ENDS.items():
        for delivery in deliveries(false, after):
            yield Exchange(name, "plain", "BDAT", delivery[0], next(recipients), *delivery[1:])
            in_one = f"one chunk, {delivery[0]}"
            yield Exchange(
                *(name, "starttls", "BDAT", in_one, next(recipients), *delivery[1:]), one_chunk=True
            )


EXCHANGES = list(exchanges())


class Site(NamedTuple):
    """A server that speaks TLS in both ways, and what its clients trust."""

    server: Gsmtpd
    tls_address: Address
    context: SSLContext

    def connect(self, channel: str) -> Client:
        """A client that has had its greeting, and the reply to EHLO."""
        if channel == "plain":
            client = Client(self.server.address, SECONDS)
        elif channel == "starttls":
            client = TLSClient(self.server.address, self.context)
        else:
            client = TLSClient(self.tls_address, self.context, implicit=True)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client.hello()


def deliver(site: Site, exchange: Exchange) -> list[str]:
    """All that the server says to the message, and to QUIT, until it closes the connection."""
    with site.connect(exchange.channel) as client:
        assert client.command("MAIL FROM:<a@example.org>").code == 250
        assert client.command(f"RCPT TO:<{exchange.recipient}>").code == 250
        if exchange.verb == "DATA":
            assert client.command("DATA").code == 354
        for piece, pause in zip(exchange.on_the_wire(), exchange.pauses, strict=True):
            if pause:
                time.sleep(pause)
            client.send(piece)
        said = [client.reply().text for _ in range(exchange.replies)]
        client.send(b"QUIT\r\n")
        said.append(client.reply().text)
        while not client.closed():
            said.append(client.reply().text)
        return said


class Result(NamedTuple):
    """What was said in each exchange, and all that was stored, by its recipient."""

    said: dict[Exchange, list[str]]
    stored: dict[str, list[Row]]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    ca = Authority(tmp_path_factory.mktemp("ca"))
    tls_address = ("127.0.0.1", free_port())
    settings = {
        "tls": tls_section(*ca.pair("mx.example.com")),
        "listen": {
            "mx": {"tls": "starttls"},
            "mxs": {"address": f"127.0.0.1:{tls_address[1]}", "tls": "implicit"},
        },
    }
    with Gsmtpd(settings) as server:
        site = Site(server, tls_address, ca.client())
        with ThreadPoolExecutor(48) as pool:
            # The long ones first.
            queue = sorted(EXCHANGES, key=lambda exchange: -sum(exchange.pauses))
            said = pool.map(lambda each: deliver(site, each), queue)
            said_in = dict(zip(queue, said, strict=True))
        stored: dict[str, list[Row]] = {}
        for row in rows(table_of(server)):
            stored.setdefault(row.recipient, []).append(row)
        yield Result(said_in, stored)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_false_end(result: Result, exchange: Exchange) -> None:
    *chunks, final, bye = result.said[exchange]
    assert bye == "221 2.0.0 Bye"
    match = FINAL.fullmatch(final)
    assert match, final
    assert chunks == [f"250 2.0.0 {len(piece)} octets received" for piece in exchange.chunks[:-1]]
    (row,) = result.stored[exchange.recipient]
    assert row.hash == match[1]
    assert row.content_hash == hashlib.sha256(exchange.content).hexdigest()
    assert row.size == len(exchange.content)
    # Our own fields stand in front, and nothing behind or between.
    front, subject, content = row.mail.partition(b"Subject: one\r\n")
    assert front.startswith(b"Delivered-To: ")
    assert subject + content == exchange.content


def test_nothing_else_was_stored(result: Result) -> None:
    cuts = sum(len(false) - 1 for false in FALSE_ENDS.values())
    by_data = [each for each in EXCHANGES if each.verb == "DATA"]
    assert len(by_data) == 3 * (18 * 3 + cuts)
    assert len(set(EXCHANGES)) == len(EXCHANGES)
    assert sorted(result.stored) == sorted(exchange.recipient for exchange in EXCHANGES)
