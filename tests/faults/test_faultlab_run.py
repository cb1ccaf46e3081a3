"""Does each fault of the lab happen, and is nothing violated by it? Every one of them, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gsmtpd.failpoints import STEPS
from gsmtpd.faultlab import faults, faults_process
from gsmtpd.faultlab.lab import Plan
from gsmtpd.faultlab.trial import Job, run
from tests.servers import MissingRightError, environment

pytestmark = pytest.mark.timeout(1000)
SECONDS = 900  # that all of it may take; it takes about 75 on two idle cores
# Not real times: other tests run beside it, and a machine of CI may be slow.
PROMISE = "60"


class Done(NamedTuple):
    """A run that has ended. figures: its JSON."""

    status: int
    output: str
    figures: dict[str, Any]


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `gsmtpd-faultlab`."""
    return subprocess.run(
        [sys.executable, "-m", "gsmtpd.faultlab.cli", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        timeout=SECONDS,
    )


def run_all(home: Path) -> Done:
    """Every fault once, short ones of some labs side by side."""
    file = home / "figures.json"
    done = lab(
        *("run", "--seed", "8", "--scale", "0.05", "--together", "8", "--jobs", "4"),
        *("--quiet", "3", "--promise", PROMISE, "--home", str(home / "labs"), "--json", str(file)),
    )
    return Done(done.returncode, done.stdout, json.loads(file.read_text()))


def test_every_fault_happens_and_violates_nothing(tmp_path: Path) -> None:
    done = run_all(tmp_path)
    print(done.output)
    lacking = [t for t in done.figures["troubles"] if "MissingRightError" in t]
    if lacking:
        raise MissingRightError(lacking[0])
    assert done.figures["troubles"] == [], done.output
    assert done.status == 0
    happened = {line["fault"] for line in done.figures["faults"] if line["times"] == 1}
    assert happened == {name for name, fault in faults.FAULTS.items() if not fault.galera}
    totals = done.figures["totals"]
    assert totals["violations"] == 0
    assert totals["acknowledged"] > 100 * len(happened)
    assert {*done.figures["replies"]} == {"without faults", "with faults"}


ACKNOWLEDGES_TOO_EARLY = """
import threading, time
from gsmtpd.storage.base import Outcome
from gsmtpd.storage.mysql import MySQLStore
def write(self, letters, really=MySQLStore.write):
    def work():
        time.sleep(0.3)
        really(self, letters)
    threading.Thread(target=work, daemon=True).start()
    return [Outcome.STORED] * len(letters)
MySQLStore.write = write
"""


def test_a_gsmtpd_that_acknowledges_too_early_is_found_out(tmp_path: Path) -> None:
    plan = Plan(before=ACKNOWLEDGES_TOO_EARLY)
    done = run(Job("too early", 1, tmp_path / "lab", plan, ("sigkill_loop",)))
    assert done.report is not None
    assert done.report.lost > 0
    assert "violations" in "".join(done.troubles)


def test_a_fault_that_does_not_happen_is_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failpoints that are not armed kill nobody."""
    monkeypatch.setattr("gsmtpd.faultlab.fault.HAPPENS_WITHIN", 3.0)
    job = Job("harmless", 1, tmp_path / "lab", Plan(armed=False), ("worker_killed_at_mail",))
    done = run(job)
    assert "worker_killed_at_mail did not happen" in "".join(done.troubles)
    assert done.report is not None
    assert done.report.violations == 0


def test_each_step_of_a_mail_has_its_fault() -> None:
    named = (*faults_process.STEPS, *faults_process.SPOOL_STEPS, *faults_process.DRAIN_STEPS)
    assert {*named} == {*STEPS}
    assert {f"worker_killed_at_{step}" for step in STEPS} <= {*faults.FAULTS}


def test_faults_are_listed() -> None:
    listed = lab("faults").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [*faults.FAULTS]
    assert all(len(line.split()) > 3 for line in listed)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--faults", "earthquake"], "there is no fault 'earthquake'"),
        (["--faults", "node_killed"], "the fault node_killed is for --galera"),
        (["--faults", "term", "--galera"], "the fault term is not for --galera"),
        (["--faults", ","], "no fault is named"),
        (["--home", "/usr"], "/usr is not empty"),
    ],
)
def test_what_cannot_be_run(arguments: list[str], why: str) -> None:
    done = lab("run", *arguments)
    assert done.returncode == 2
    assert why in done.stdout
