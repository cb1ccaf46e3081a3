"""Does the API keep to its description, whatever is asked of it?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounting import Client, with_token
from tests.conftest import make_schema
from tests.servers import MariaDB, environment, mysql_store
from tests.status_client import Status, served

PASSWORD = "a password"
# A wait lasts a thousandth of what is asked for.
BEFORE = """
from gsmtpd.status import parameters
seconds = parameters.seconds
def quick(most):
    check = seconds(most)
    return lambda text: check(text) / 1000
parameters.seconds = quick
from gsmtpd.status import waiting
waiting.TIMEOUT /= 1000
"""
ENDLESS = ("/api/live", "/api/stream")


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def status(request: pytest.FixtureRequest) -> Iterator[Status]:
    settings = {}
    if request.param == "mariadb":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        make_schema(mariadb, "described")
        settings = mysql_store(mariadb, "described")
    with served(settings, BEFORE, password=PASSWORD) as (daemon, status):
        with Client(daemon.address) as client:
            client.hello()
            for _ in range(3):
                assert client.deliver(with_token(500)).code == 250
        yield status


def test_schemathesis_finds_nothing(status: Status, tmp_path: Path) -> None:
    """All of its checks: no 5xx, answers as described, wrong ones refused, methods, passwords."""
    document = status.get("/api/openapi.json")
    for path in ENDLESS:
        del document["paths"][path]
    # What is good there depends on the answer before.
    for path, name in (("/api/mails", "before"), ("/api/wait", "after")):
        takes = document["paths"][path]["get"]["parameters"]
        takes[:] = [each for each in takes if each["name"] != name]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(file)),
            *("--url", f"http://127.0.0.1:{status.port}", "--no-color"),
            *("-H", f"Authorization: Bearer {PASSWORD}", "--request-timeout", "20"),
            *("--checks", "all", "--max-examples", "25", "--seed", "11"),
            *("--suppress-health-check", "all", "--generation-database", "none"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout[:20000] + done.stderr


@pytest.mark.parametrize(
    "before", ["", "!", "MA", "x" * 2001, "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "MQ%00"]
)
@pytest.mark.parametrize("more", ["", "&since=2026-01-01", "&to=b@example.com"])
def test_a_wrong_place_in_a_search(status: Status, before: str, more: str) -> None:
    said = status.ask(f"/api/mails?before={before}{more}")
    assert said.status in (200, 400)
    assert "mails" in said.json or said.json["error"]
    if before != "MA":
        assert said.status == 400


@pytest.mark.parametrize("path", ENDLESS)
@pytest.mark.parametrize("query", ["x=1", "after=MA", "to=", "limit=1", "after=T0.0.", "to=%00"])
def test_a_wrong_stream(status: Status, path: str, query: str) -> None:
    said = status.ask(f"{path}?{query}")
    assert (said.status, [*said.json]) == (400, ["error"])
