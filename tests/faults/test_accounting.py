"""Would the account notice? A checker that nothing can fail proves nothing."""

from __future__ import annotations

import os
import signal
from hashlib import sha256

import pytest

from tests.accounting import (
    Client,
    Gone,
    Ledger,
    Load,
    Mail,
    Reply,
    Row,
    rows,
    stuffed,
    table_of,
    with_token,
)
from tests.servers import Gsmtpd, wait_for

TWO = ("b@example.com", "c@example.com")


def said(number: int) -> Reply:
    return Reply(250, f"250 2.0.0 OK: queued as {number:032x}")


def stored(number: int, mail: Mail, *recipients: str) -> list[Row]:
    """The rows of `mail` as they should be, or for only some of its recipients."""
    found = []
    for recipient in recipients or mail.recipients:
        front = (
            f"Delivered-To: {recipient}\r\nReturn-Path: <{mail.sender}>\r\n"
            f"Received: from x (unknown [127.0.0.1])\r\n\tby y with ESMTP id {number:032x};\r\n"
            "\tFri, 1 Jan 2021 00:00:00 -0000\r\n"
        ).encode()
        digest = sha256(mail.content).hexdigest()
        size = len(mail.content)
        found.append(Row(1, f"{number:032x}", recipient, front + mail.content, size, digest))
    return found


MAIL, OTHER = with_token(recipients=TWO), with_token()
LOST_REPLY = None
TRY_LATER = Reply(451, "451 4.3.0 Cannot store mail now: try again later")
REFUSED = Reply(554, "554 5.0.0 no")


@pytest.mark.parametrize(
    ("attempts", "found", "problem"),
    [
        ([(MAIL, said(1))], stored(1, MAIL), None),
        ([(MAIL, LOST_REPLY)], [], None),
        ([(MAIL, LOST_REPLY)], stored(1, MAIL), None),
        ([(MAIL, LOST_REPLY), (MAIL, said(2))], stored(1, MAIL) + stored(2, MAIL), None),
        ([(MAIL, TRY_LATER), (MAIL, said(2))], stored(2, MAIL), None),
        ([(MAIL, said(1))], [], "LOST"),
        ([(MAIL, said(1))], stored(2, MAIL), "LOST"),
        ([(MAIL, said(1)), (OTHER, said(2))], stored(1, MAIL), "LOST"),
        ([(MAIL, said(1))], stored(1, MAIL, TWO[0]), "PARTIAL"),
        ([(MAIL, LOST_REPLY)], stored(1, MAIL, TWO[0]), "PARTIAL"),
        ([(MAIL, said(1))], stored(1, MAIL) + stored(1, MAIL, TWO[0]), "PARTIAL"),
        ([(MAIL, said(1))], stored(1, MAIL) + stored(2, MAIL), "2 copies of 1"),
        ([(MAIL, said(1))], stored(1, OTHER), "other bytes"),
        ([(MAIL, said(1))], stored(1, MAIL) + stored(2, OTHER), "nobody sent"),
        ([(MAIL, said(1)), (OTHER, said(1))], stored(1, MAIL), "said 2 times"),
        ([(MAIL, REFUSED)], [], "fault of ours"),
        ([(MAIL, REFUSED)], stored(1, MAIL), "1 copies of 0"),
        ([(MAIL, said(1))], [r._replace(content_hash="0") for r in stored(1, MAIL)], "sha256"),
        ([(MAIL, said(1))], [r._replace(recipient="x") for r in stored(1, MAIL)], "front"),
        ([(MAIL, said(1))], [r._replace(size=r.size - 1) for r in stored(1, MAIL)], "front"),
    ],
)
def test_the_account(
    attempts: list[tuple[Mail, Reply | None]], found: list[Row], problem: str | None
) -> None:
    ledger = Ledger()
    for mail, reply in attempts:
        ledger.note(mail, reply, True)
    problems = "\n".join(ledger.problems(found))
    if problem is None:
        assert problems == ""
        ledger.check(found)
    else:
        assert problem in problems
        with pytest.raises(AssertionError, match="problems"):
            ledger.check(found)


def test_stuffing() -> None:
    assert stuffed(b"") == b".\r\n"
    assert stuffed(b".\r\n") == b"..\r\n.\r\n"
    assert stuffed(b"a\r\n.\r\n..\r\n\r\n") == b"a\r\n..\r\n...\r\n\r\n.\r\n"
    assert stuffed(b"\n.\r\n") == b"\n.\r\n.\r\n"


ANSWERS_BEFORE_COMMIT = """
import threading, time
from gsmtpd.storage.base import Outcome
from gsmtpd.storage.sqlite import SQLiteStore
later = []
def write(self, letters, really=SQLiteStore.write):
    later.append(letters)
    def work():
        time.sleep(0.3)
        really(self, later.pop(0))
    threading.Thread(target=work, daemon=True).start()
    return [Outcome.STORED] * len(letters)
SQLiteStore.write = write
"""


def test_a_build_that_answers_before_its_commit_is_found_out() -> None:
    ledger = Ledger()
    with Gsmtpd(before=ANSWERS_BEFORE_COMMIT) as daemon:
        (worker,) = daemon.workers
        with Load(daemon.address, ledger) as load:
            load.wait_for(200)
            os.kill(worker, signal.SIGKILL)
            load.wait_for(20)
        wait_for(lambda: rows(table_of(daemon)))
        assert "LOST" in "\n".join(ledger.problems(rows(table_of(daemon))))


def test_a_client_whose_server_is_gone() -> None:
    with Gsmtpd() as daemon, Client(daemon.address) as client:
        client.hello()
        daemon.kill()
        with pytest.raises(Gone):
            client.deliver(with_token())
