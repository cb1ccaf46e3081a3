"""Does every octet of every message come into the store, at ten thousand messages?"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import pytest

from tests.accounting import FRONT, Client, Mail, rows, send
from tests.conftest import Kept
from tests.servers import find_program

MESSAGES = 10_000
SESSIONS = 8
SEED = 5321


def test_smtp_source_sends_ten_thousand(kept: Kept) -> None:
    command = [find_program("smtp-source"), "-s", "64", "-m", str(MESSAGES), "-l", "1000"]
    command += ["-f", "a@example.org", "-t", "b@example.com", f"127.0.0.1:{kept.daemon.port}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stored = rows(kept.table)
    assert len(stored) == MESSAGES
    assert [problem for row in stored if (problem := row.problem())] == []
    assert len({row.hash for row in stored}) == MESSAGES
    assert {row.recipient for row in stored} == {"b@example.com"}
    # Each of them is another message, and it is there to its end.
    assert len({re.search(rb"Message-Id: <.*>", row.content)[0] for row in stored}) == MESSAGES
    assert {row.content[-22:] for row in stored} == {stored[0].content[-22:]}
    assert len({len(re.sub(rb"Message-Id: <.*>", b"", row.content)) for row in stored}) == 1


class Octets:
    """Random message bodies with all that is difficult in SMTP and in SQL."""

    PIECES = (
        *(b".", b"\r\n", b"\r\n.", b"\r\n..", b".\r\n", b"\r\n.\r", b"\n.\n", b"\r.\r", b"\r\n.\n"),
        *(b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r", b"\n", b"\r\r\n", b"\n\r", b"\0", b"'", b'"'),
        *(b"\\", b"\\'", b"''", b"\\\\", b"%s", b"?", b";--", b"\x1a", b"\x00\r\n", b"a\r\n"),
        *(b"\xff", b"\xc3\x28", "\u2028".encode(), "\U0001f4ec".encode(), b"DATA\r\n", b"QUIT\r\n"),
    )

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def content(self) -> bytes:
        """One message: none of its lines is what SMTP calls the end."""
        chance = self._random
        kind = chance.random()
        if kind < 0.5:
            body = b"".join(chance.choices(self.PIECES, k=chance.randrange(200)))
        elif kind < 0.9:
            body = chance.randbytes(chance.randrange(2000))
        elif kind < 0.99:
            body = chance.randbytes(1) * chance.randrange(20_000)
        else:
            body = chance.randbytes(chance.randrange(200_000))
        return body + b"\r\n"


def test_ten_thousand_random_messages_come_back_byte_for_byte(kept: Kept) -> None:
    def session(number: int) -> dict[str, tuple[str, int]]:
        octets = Octets(SEED + number)
        contents = [octets.content() for _ in range(MESSAGES // SESSIONS)]
        with Client(kept.daemon.address) as client:
            replies = [*client.hello().stream(map(Mail, contents))]
        return {
            reply.id: (hashlib.sha256(content).hexdigest(), len(content))
            for reply, content in zip(replies, contents, strict=True)
        }

    sent: dict[str, tuple[str, int]] = {}
    with ThreadPoolExecutor(SESSIONS) as executor:
        for of_session in executor.map(session, range(SESSIONS)):
            sent |= of_session
    assert len(sent) == MESSAGES
    stored = rows(kept.table)
    assert [problem for row in stored if (problem := row.problem())] == []
    assert {row.hash: (row.content_hash, row.size) for row in stored} == sent
    assert len(stored) == MESSAGES


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b".\r\n"),
        (b"\r\n", b"\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
        (b"\n.\r\n", b"\n.\r\n.\r\n"),
        (b"a\r\n\r\n", b"a\r\n\r\n.\r\n"),
    ],
)
def test_the_smallest_messages(kept: Kept, content: bytes, wire: bytes) -> None:
    with Client(kept.daemon.address) as client:
        client.hello().begin(Mail(content))
        client.send(wire)
        assert client.reply().code == 250
    (row,) = rows(kept.table)
    assert row.content == content
    assert row.size == len(content)


def test_what_stands_in_front(kept: Kept) -> None:
    mail = Mail(b"Subject: x\r\n\r\nx\r\n", ("b@example.com",))
    (reply,) = send(kept.daemon.address, mail)
    (row,) = rows(kept.table)
    front = FRONT.fullmatch(row.front)
    assert front is not None
    said = {name: value.decode() for name, value in front.groupdict().items()}
    date = parsedate_to_datetime(said.pop("date"))
    assert said == {
        "recipient": "b@example.com",
        "sender": "a@example.org",
        "helo": "client.example",
        "ip": "127.0.0.1",
        "host": "mx.example.com",
        "protocol": "ESMTP",
        "id": reply.id,
        "for": "b@example.com",
    }
    ((stored,),) = kept.table.query("SELECT date FROM new_mail")
    assert str(stored) == date.strftime("%Y-%m-%d %H:%M:%S")


def test_each_of_many_recipients_has_a_row(kept: Kept) -> None:
    names = tuple(f"r{n}@example.com" for n in range(1000))
    mail = Mail(b"Subject: x\r\n\r\nx\r\n", names)
    (reply,) = send(kept.daemon.address, mail)
    stored = rows(kept.table)
    assert [row.recipient for row in stored] == [*names]
    assert {row.hash for row in stored} == {reply.id}
    assert {row.content for row in stored} == {mail.content}
    assert not any(b"\tfor <" in row.front for row in stored), "a recipient sees another"
