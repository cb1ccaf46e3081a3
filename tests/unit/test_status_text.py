"""Does gsmtpctl status say what its manual page shows?"""

from __future__ import annotations

import time
from typing import Any

import pytest

from gsmtpd.ctl_status_text import said
from gsmtpd.ctl_words import rate
from tests.unit.test_manpages import blocks

MIB = 1 << 20


def _worker(pid: int, role: str, mib: int, **more: int) -> dict[str, Any]:
    one = {"pid": pid, "role": role, "state": "serving", "seconds": 9.0, "rss": mib * MIB}
    return one | {"clients": 0, "accepted": 0} | more


def _rates(*values: float) -> dict[str, float]:
    names = ("accepted", "refused", "received_bytes", "sessions", "commits")
    return dict(zip(names, values, strict=True))


STATUS: dict[str, Any] = {
    "version": "0.1.0", "pid": 262, "state": "running", "config": "/etc/gsmtpd.conf",
    "listeners": [
        {"name": "mx", "address": "0.0.0.0:25"}, {"name": "mx", "address": "[::]:25"},
    ],
    "workers": [
        _worker(263, "smtp", 31, clients=3, accepted=7),
        _worker(264, "handlers", 30),
        _worker(265, "status", 43),
    ],
    "replaced": 0, "clients": 3, "max_clients": 1000, "sessions_total": 812,
    "turned_away": 0, "crowded": 12, "denied": 3,
    "rates": {
        "10": _rates(1.2, 0, 5120, 1.1, 1.2),
        "60": _rates(0.8, 0, 3072, 0.9, 0.8),
        "300": _rates(0.2, 0.013, 1024, 0.3, 0.2),
    },
    "commit": {"count": 9, "median": 0.0021, "p95": 0.0052, "rows_median": 1, "rows_mean": 1.3},
    "queue": 0, "memory": 12288, "max_memory": 256 * MIB,
    "database": [
        {"host": "db1:3306", "away": True, "problem": "cannot connect to db1:3306"},
        {
            "host": "db2:3306", "away": False, "answers": True, "seconds": 0.0023,
            "version": "10.11.6-MariaDB", "problem": None,
            "settings": {"innodb_flush_log_at_trx_commit": 1, "log_bin": "OFF"},
        },
    ],
    "overload": [], "accepted": 7, "received_bytes": 28120, "refused": 2, "discarded": 0,
    "reasons": {"relay": 31, "no_such_user": 12, "storage": 2, "syntax": 0},
    "handled": 12, "handler_failed": 3, "handler_dead": 1,
    "spool": {"messages": 0},
    "outbox": {"counts": [{"handler": "shout", "state": "dead", "number": 1}]},
    "reload": None,
}  # fmt: skip


def test_the_page_shows_what_is_said() -> None:
    [shown] = [b.text for b in blocks("gsmtpctl.8") if b.text.startswith("gsmtpd 0.1.0, process")]
    expected = shown.splitlines()
    lines = [*said(STATUS | {"began": time.time() - 9})]
    assert lines.pop(1).startswith("Since: ") and expected.pop(1).startswith("Since: ")
    assert lines == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.003, "0.003"), (0.0167, "0.017"), (0.1, "0.1"), (1.26, "1.3"), (2, "2"),
     (1234.5, "1,234")],
)  # fmt: skip
def test_a_rate_that_is_not_0_is_not_said_so(value: float, text: str) -> None:
    assert rate(value) == text
