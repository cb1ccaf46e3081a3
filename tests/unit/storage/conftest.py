"""What do tests of finding mail share? A table in each database, what finds there, and a clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gsmtpd.storage.finder import Finder
from tests.mailtable import Clock, MailTable
from tests.servers import MariaDB


@pytest.fixture(params=["sqlite", "mysql"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MailTable]:
    """An empty table, once of each database."""
    if request.param == "sqlite":
        made = MailTable(tmp_path / "mail.db")
    else:
        made = MailTable((request.getfixturevalue("mariadb"), request.getfixturevalue("schema")))
    yield made
    made.close()


@pytest.fixture
def mysql(mariadb: MariaDB, schema: str) -> Iterator[MailTable]:
    """An empty table of MariaDB, for what SQLite does not have."""
    made = MailTable((mariadb, schema))
    yield made
    made.close()


@pytest.fixture
def finder(table: MailTable) -> Iterator[Finder]:
    """What finds mail in `table`."""
    made = table.finder()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    """A clock that stands until it is set."""
    return Clock()
