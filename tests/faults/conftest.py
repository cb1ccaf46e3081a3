"""What must begin before the first of these tests, because it takes long by waiting?"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.conftest import make_schema
from tests.faults.locks import CASES, Waited, wait
from tests.servers import MariaDB
from tests.side_by_side import in_a_worker


@pytest.fixture(scope="session")
def waits(mariadb: MariaDB) -> Iterator[dict[str, Future[Waited]]]:
    """All cases of a locked table, under way, each in a database of its own."""
    with ThreadPoolExecutor(len(CASES)) as executor:
        found = {}
        for number, (name, case) in enumerate(CASES.items()):
            make_schema(mariadb, f"locks{number}")
            found[name] = executor.submit(wait, mariadb, f"locks{number}", case)
        yield found


@pytest.fixture(scope="session", autouse=True)
def _begin(request: pytest.FixtureRequest) -> None:
    """Begin the waits early where they will be asked for, and it is known by whom."""
    if in_a_worker():
        return
    if any("waits" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("waits")
