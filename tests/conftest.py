"""What do all tests share? Where modules are found, what may be missing, and one MariaDB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gsmtpd.storage.schema import statements  # noqa: E402
from tests.accounting import MySQLTable, Table, table_of  # noqa: E402
from tests.servers import Gsmtpd, MariaDB, MissingProgramError, MissingRightError, mysql_store  # noqa: E402
from tests.side_by_side import ByFile, in_a_worker, order, turn  # noqa: E402

LACKING = "lacking: "
UMASK = 0o022
_numbers = count(1)

# How long an example takes is the machine's affair. In CI hypothesis does so by itself.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


def pytest_configure() -> None:
    """SIGTERM ends the tests as ^C does: the servers they started end, too."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """With `-n`: files are divided, not tests."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several tests run at a time their order is not that of the files."""
    if in_a_worker():
        order(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """A test begins when it may; until then its time does not run. It leaves no umask behind."""
    os.umask(UMASK)  # gsmtpd's commands set theirs, here as well
    if not in_a_worker():
        return (yield)
    with turn(item):
        return (yield)


def lacking(what: str) -> None:
    """This machine lacks something that a test needs: a failure in CI, elsewhere a loud skip."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{LACKING}{what}", pytrace=False)
    pytest.skip(f"{LACKING}{what}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """A fixture's missing program is the test's."""
    try:
        yield
    except MissingProgramError as error:
        lacking(str(error))
    except MissingRightError as error:
        pytest.skip(f"{LACKING}{error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A missing program fails the test in CI and skips it elsewhere."""
    try:
        yield
    except MissingProgramError as error:
        lacking(str(error))
    except MissingRightError as error:
        pytest.skip(f"{LACKING}{error}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, with or without -r, what could not be tested here and why."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", "", "")
        if LACKING in reason:
            text = reason.partition(LACKING)[2]
            reasons[text] = reasons.get(text, 0) + 1
    if reasons:
        terminalreporter.section("NOT TESTED HERE", red=True, bold=True)
        for text, number in reasons.items():
            terminalreporter.line(f"{number} tests: {text}")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB for tests that neither stop it nor change its settings. It is not durable."""
    with MariaDB() as server:
        yield server


@pytest.fixture
def schema(mariadb: MariaDB) -> Iterator[str]:
    """A new database in `mariadb` with gsmtpd's tables; its name."""
    name = f"mail{next(_numbers)}"
    make_schema(mariadb, name)
    yield name
    mariadb.query(f"DROP DATABASE `{name}`")


def make_schema(server: MariaDB, name: str) -> None:
    """An empty database `name` with gsmtpd's tables."""
    server.create_database(name)
    with server.connect(database=name) as connection, connection.cursor() as cursor:
        for statement in statements("mysql"):
            cursor.execute(statement)


class Kept(NamedTuple):
    """A running daemon and what it stores."""

    daemon: Gsmtpd
    table: Table


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def _kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    auto = {"server": {"processes": "auto"}}
    if request.param == "sqlite":
        with Gsmtpd(auto) as daemon:
            yield Kept(daemon, table_of(daemon))
    else:
        mariadb, name = request.getfixturevalue("mariadb"), f"mail{next(_numbers)}"
        make_schema(mariadb, name)
        with Gsmtpd(mysql_store(mariadb, name) | auto) as daemon:
            yield Kept(daemon, MySQLTable(mariadb, name))
        mariadb.query(f"DROP DATABASE `{name}`")


@pytest.fixture
def kept(_kept: Kept) -> Kept:
    """A daemon for tests that neither stop nor configure it, with either store, and empty."""
    _kept.table.query("DELETE FROM new_mail")
    return _kept


@pytest.fixture(scope="module")
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for what takes long because it waits, so that waits overlap."""
    with ThreadPoolExecutor(32) as executor:
        yield executor


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of 16 KiB; skipped, loudly, where none can be mounted."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"{LACKING}the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
