"""Is a message ended by its true end alone, however its octets are cut? (CVE-2023-51764)"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from gsmtpd.smtp import reply
from gsmtpd.smtp.rules import Rules
from tests.dialogs import HOST_NAME
from tests.dialogs.false_ends import END, FALSE_ENDS, smuggled, unstuffed
from tests.dialogs.pure import PureClient

OPENING = b"HELO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<u@example.com>\r\n"
BEFORE = b"Subject: one\r\n\r\nbefore"
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def deliver(client: PureClient, *pieces: bytes) -> bytes:
    """All that is said to the `pieces` behind 354."""
    client.send(OPENING)
    assert client.send(b"DATA\r\n").startswith(b"354 ")
    return client.send(*pieces)


def check(client: PureClient, said: bytes, wire: bytes) -> None:
    """One reply, one message, and its octets those that were sent."""
    assert re.fullmatch(rb"250 2\.0\.0 OK: queued as [0-9]+\r\n", said)
    assert client.messages == [unstuffed(wire) + b"\r\n"]
    assert len(client.events) == 2  # the recipient and the message
    assert not client.session.closing


Cut = Callable[[bytes, bytes, bytes], list[list[bytes]]]
DELIVERIES: dict[str, Cut] = {
    "one segment": lambda before, false, after: [[before + false + after]],
    "byte by byte": lambda before, false, after: [
        [bytes([octet]) for octet in before + false + after]
    ],
    "inner cuts": lambda before, false, after: [
        [before + false[:i], false[i:] + after] for i in range(1, len(false))
    ],
    "cut behind": lambda before, false, after: [[before + false, after]],
    "cut around": lambda before, false, after: [[before, false, after]],
}


def test_there_are_eighteen() -> None:
    assert len(set(FALSE_ENDS.values())) == 18
    assert not any(END in b"x" + false + b"x" for false in FALSE_ENDS.values())


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("name", FALSE_ENDS)
def test_false_end(name: str, delivery: str) -> None:
    after = smuggled("v@example.com")
    for pieces in DELIVERIES[delivery](BEFORE, FALSE_ENDS[name], after + END):
        client = PureClient()
        said = deliver(client, *pieces)
        check(client, said, BEFORE + FALSE_ENDS[name] + after)


@pytest.mark.parametrize("name", FALSE_ENDS)
def test_nothing_is_said_at_a_false_end(name: str) -> None:
    client = PureClient()
    assert deliver(client, BEFORE + FALSE_ENDS[name]) == b""
    assert client.messages == []


@pytest.mark.parametrize("name", FALSE_ENDS)
def test_rejecting_bare_newlines(name: str) -> None:
    client = PureClient(Rules(HOST_NAME, reject_bare_newline=True))
    wire = BEFORE + FALSE_ENDS[name] + smuggled("v@example.com")
    said = deliver(client, wire + END)
    if BARE.search(FALSE_ENDS[name]):
        assert said == reply.BARE_NEWLINE.wire
        assert client.messages == []
        assert client.session.closing
    else:
        check(client, said, wire)


@pytest.mark.parametrize("name", FALSE_ENDS)
def test_a_message_over_the_limit_has_no_other_end(name: str) -> None:
    client = PureClient(Rules(HOST_NAME, max_size=10))
    said = deliver(client, BEFORE + FALSE_ENDS[name], smuggled("v@example.com") + END)
    assert said == reply.TOO_BIG.wire
    assert client.messages == []
