"""Does mail from swaks, a client that is none of ours, arrive?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.accounting import rows
from tests.conftest import Kept
from tests.servers import find_program

REFUSED_RECIPIENT = 24  # what swaks exits with where no recipient was accepted


def swaks(kept: Kept, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run swaks against the daemon."""
    server = ["--server", f"127.0.0.1:{kept.daemon.port}", "--helo", "swaks.example"]
    return subprocess.run(
        [find_program("swaks"), *server, "--from", "sender@example.org", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_mail_from_end_to_end(kept: Kept, pipelined: bool) -> None:
    done = swaks(
        kept,
        *["--pipeline"] * pipelined,
        *("--to", "b@example.com,c@example.com", "--header", "Subject: Hello from swaks"),
        *("--body", "First line\n.second\n..\nlast line"),
    )
    assert done.returncode == 0, done.stdout
    stored = rows(kept.table)
    assert [row.recipient for row in stored] == ["b@example.com", "c@example.com"]
    assert f"queued as {stored[0].hash}" in done.stdout
    assert b"\r\n\r\nFirst line\r\n.second\r\n..\r\nlast line\r\n" in stored[0].content
    assert stored[0].front.startswith(
        b"Delivered-To: b@example.com\r\nReturn-Path: <sender@example.org>\r\n"
        b"Received: from swaks.example (unknown [127.0.0.1])\r\n"
    )
    assert kept.table.query("SELECT DISTINCT subject, `from`, helo, ip_addr FROM new_mail") == [
        ("Hello from swaks", "sender@example.org", "swaks.example", "127.0.0.1")
    ]


def test_an_attachment(kept: Kept, tmp_path: Path) -> None:
    file = tmp_path / "bytes.bin"
    file.write_bytes(bytes(range(256)) * 1000)
    done = swaks(kept, "--to", "b@example.com", "--attach", f"@{file}")
    assert done.returncode == 0, done.stdout
    (row,) = rows(kept.table)
    assert row.problem() is None
    assert row.size > 256_000


def test_a_recipient_of_another_domain(kept: Kept) -> None:
    done = swaks(kept, "--to", "b@example.net")
    assert done.returncode == REFUSED_RECIPIENT
    assert "550 5.7.1" in done.stdout
    assert rows(kept.table) == []
