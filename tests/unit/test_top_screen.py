"""Does gsmtpctl top fit on each screen, and does it obey nobody but its user?"""

from __future__ import annotations

from typing import Any

import pytest

from gsmtpd.ctl_top_screen import BLOCKS, PLAIN, SORTS, Style, View, screen, sparkline

NOW = 1_800_000_000.0
STATUS: dict[str, Any] = {
    "version": "1.2",
    "state": "running",
    "began": NOW - 3700,
    "workers": [{"state": "serving", "role": "smtp"}, {"state": "starting", "role": "handlers"}],
    "clients": 3,
    "max_clients": 1000,
    "queue": 7,
    "memory": 2**21,
    "accepted": 12,
    "overload": [],
    "database": [{"host": "db1:3306", "away": False}],
}
COLUMNS = [
    "time", "accepted", "received_bytes", "sessions", "commits", "commit_p95", "batch_rows",
    "handled", "refused:relay", "refused:loop",
]  # fmt: skip
ROWS = [
    [NOW - 1, 10, 2048, 1, 4, 0.005, 10, 0, 0.5, 0],
    [NOW, 20.5, 4096, 2, 2, None, 11, 1, 1, 0.25],
]
HISTORY = {"step": 1, "columns": COLUMNS, "rows": ROWS}


def session(client: str, seconds: float, octets: int = 0, messages: int = 0) -> dict[str, Any]:
    return {
        "client": client, "seconds": seconds, "doing": "DATA", "tls": True, "messages": messages,
        "octets": octets, "listener": "mx",
    }  # fmt: skip


SESSIONS = {
    "sessions": [session("192.0.2.1", 5, 9, 2), session("192.0.2.2", 9, 5, 1)],
    "slowest": [
        {"time": NOW, "delay": 0.25, "id": "a", "client": "192.0.2.3", "size": 5, "reply": "250 OK"}
    ],
}
FULL = View(STATUS, HISTORY, SESSIONS, NOW)


def text(view: View, width: int = 80, height: int = 24) -> list[str]:
    return [line.text.rstrip() for line in screen(view, width, height)]


def test_the_numbers() -> None:
    lines = text(FULL)
    assert lines[0].startswith("gsmtpd 1.2, running, 1 h 1 min  ")
    assert lines[0].endswith("  08:00:00 UTC")
    assert len(lines[0]) == 80
    assert lines[1] == "clients 3/1000  workers 1/1  queue 7  memory 2 MiB  accepted 12"
    assert lines[2:9] == [
        "accepted/s        20.5  ▅█",
        "refused/s          1.2  ▄█",
        "received/s       4 KiB  ▅█",
        "sessions/s           2  ▅█",
        "commit p95           -  █",
        "rows/commit        5.5  ▅█",
        "handled/s            1  ▁█",
    ]
    assert lines[9] == "refusals    relay 0.75/s, loop 0.12/s"


def test_the_tables() -> None:
    lines = text(FULL)
    assert "SESSIONS  by age" in lines
    assert [line[:9] for line in lines if " DATA" in line] == ["192.0.2.2", "192.0.2.1"]
    assert lines[-1].split() == ["08:00:00", "250", "ms", "5", "B", "192.0.2.3", "250", "OK"]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, "250 2.0.0 OK: queued as 1a20aacf5272d66b046d9fc000000001"),
        (90, "250 1a20aacf5272d66b046d9fc000000001"),
        (80, "250 ~272d66b046d9fc000000001"),
    ],
)
def test_the_end_of_an_id_is_shown(width: int, shown: str) -> None:
    message_id = "1a20aacf5272d66b046d9fc000000001"
    slow = SESSIONS["slowest"][0] | {
        "id": message_id,
        "reply": f"250 2.0.0 OK: queued as {message_id}",
    }
    line = text(FULL._replace(sessions=SESSIONS | {"slowest": [slow]}), width)[-1]
    assert line[52:] == shown
    assert len(line) <= width


@pytest.mark.parametrize(("sort", "first"), [*zip(SORTS, "2112", strict=True)])
def test_sessions_are_sorted(sort: str, first: str) -> None:
    lines = text(FULL._replace(sort=sort))
    clients = [line.split()[0] for line in lines if " DATA" in line]
    expected = ["192.0.2.2", "192.0.2.1"] if first == "2" else ["192.0.2.1", "192.0.2.2"]
    assert clients == (sorted(clients) if sort == "client" else expected)


@pytest.mark.parametrize("height", range(30))
@pytest.mark.parametrize("width", [0, 1, 2, 13, 22, 40, 79, 200])
def test_it_fits(width: int, height: int) -> None:
    for view in (FULL, FULL._replace(helps=True), View({}, {}, {}, NOW, trouble="x" * 300)):
        lines = screen(view, width, height)
        assert len(lines) <= height
        assert all(len(line.text) <= width for line in lines)


def test_there_is_no_head_without_a_row() -> None:
    for height in range(30):
        lines = text(FULL, height=height)
        assert not lines or not lines[-1].startswith(("SESSIONS", "CLIENT", "SLOWEST", "TIME"))
        assert not lines or lines[-1]


def test_many_sessions_leave_room_for_the_slowest() -> None:
    many = SESSIONS | {"sessions": [session("192.0.2.9", n) for n in range(100)]}
    lines = text(FULL._replace(sessions=many))
    assert len(lines) == 24
    assert lines[-1].startswith("08:00:00")


def test_trouble_is_said() -> None:
    status = STATUS | {"overload": ["max_memory"], "database": [{"host": "db1", "away": True}]}
    alarms = [
        line.text
        for line in screen(FULL._replace(status=status, trouble="nobody answers"), 80, 24)
        if line.style is Style.ALARM
    ]
    assert alarms == ["nobody answers", "TROUBLE: max_memory, database db1 is away"]


def test_a_client_commands_no_terminal() -> None:
    evil = {"sessions": [session("\x1b[2J\x07", 1)], "slowest": []}
    shown = "\n".join(text(FULL._replace(sessions=evil)))
    assert "\\x1b[2J\\x07" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_an_older_server_tells_less() -> None:
    status = {name: STATUS[name] for name in STATUS if name not in ("queue", "memory")}
    lines = text(View(status, {}, {}, NOW))
    assert lines[1:] == ["clients 3/1000  workers 1/1  accepted 12"]
    bare = {"step": 1, "columns": ["time", "accepted"], "rows": [[NOW, 1]]}
    assert "accepted/s           1  █" in text(View(status, bare, {}, NOW))


def test_sparklines() -> None:
    assert sparkline([0, 1, 7, None, 3], 10, BLOCKS) == "▁▂█ ▄"
    assert sparkline([0, 0], 10, BLOCKS) == "▁▁"
    assert sparkline([1, 8, 4], 2, PLAIN) == "#="
    assert sparkline([0.001, 1000], 9, PLAIN) == ".#"
    assert sparkline([1], 0, BLOCKS) == sparkline([], 5, BLOCKS) == ""
