"""How are the tests divided where several run at a time, by `pytest -n`?

Tests of one file stay together, as they share servers. What is marked `alone` comes last, and
while it runs all others stand still: it measures time, or needs the processors for itself.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from xdist.scheduler import LoadFileScheduling

LONGEST = (
    *("test_package.py", "test_galera.py", "test_power_loss.py", "test_policy_fuzz.py"),
    *("test_pip.py", "test_faultlab_run.py", "test_whole_sessions_fuzz.py", "test_locks.py"),
    *("test_why.py", "test_export_import.py", "test_spool_live.py", "test_check_address.py"),
    *("test_handlers_killed.py", "test_under_systemd.py", "test_trust.py", "test_upkeep.py"),
    *("test_inetd.py", "test_handlers.py", "test_dispatcher.py", "test_process.py"),
)
"""The files that take longest: they begin first, so that nobody waits for them in the end."""


def in_a_worker() -> bool:
    """Whether this is one of several processes among which the tests are divided."""
    return "PYTEST_XDIST_WORKER" in os.environ


class ByFile(LoadFileScheduling):
    """Gives each worker one file after the other, in the order of `order`."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if not file.endswith("test_package.py"):
            return file
        # The build, Debian 12 and Debian 13 have little in common, and take long.
        return f"{file} {test.partition('[')[2]}"


def order(items: list[pytest.Item]) -> None:
    """Put what takes longest to the front, and what is to be alone to the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            item.get_closest_marker("alone") is not None,
            places.get(item.path.name, len(LONGEST)),
        )
    )


@contextmanager
def turn(item: pytest.Item) -> Iterator[None]:
    """Wait until `item` may run, and let the next ones run behind it."""
    alone = item.get_closest_marker("alone")
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
