"""Are the lab's figures what its ledgers, its journal and its samples say?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsmtpd.faultlab.check import Report, check
from gsmtpd.faultlab.drift import Sample, Watch, drift, look
from gsmtpd.faultlab.fault import Fault
from gsmtpd.faultlab.lab import Lab, Plan, seeded
from gsmtpd.faultlab.nemesis import Injection
from gsmtpd.faultlab.report import Figures
from gsmtpd.faultlab.tally import QUIET, Tally, percentiles
from gsmtpd.faultlab.trial import Extent, Job, Trial, jobs

MIB = 2**20


def injection(fault: str, at: float, seconds: float = 2.0, back: float | None = 1.0) -> Injection:
    return Injection(fault, at, seconds, back, 7, 9, 2, 1)


def reply(at: float, code: int, seconds: float = 0.5, phase: str = "dot") -> dict[str, object]:
    return {"step": "reply", "at": at, "code": code, "seconds": seconds, "phase": phase}


def tally_of(tmp_path: Path, *steps: dict[str, object], since: float = 0.0) -> Tally:
    ledger = tmp_path / "sender-0.jsonl"
    ledger.write_text("".join(json.dumps(step) + "\n" for step in steps))
    tally = Tally()
    tally.read([ledger], [injection("one", 100.0), injection("other", 200.0)], since)
    return tally


def test_replies_belong_to_the_fault_that_they_came_in(tmp_path: Path) -> None:
    tally = tally_of(
        tmp_path,
        {"step": "mail", "id": "a", "at": 99.0},
        reply(99.9, 250),
        reply(100.0, 451),
        reply(103.0, 250, 2.5),  # service is back
        reply(104.0, 250, 1.5),  # and this one was sent before
        reply(104.0, 250),
        reply(201.0, 452, 0.0, "mail"),
        {"step": "lost", "at": 202.0, "phase": "dot"},
        {"step": "lost", "at": 202.0, "phase": "mail"},
        {"step": "turned_away", "at": 202.0, "code": 421},
    )
    assert tally.codes == {QUIET: {250: 2}, "one": {451: 1, 250: 2}, "other": {452: 1, 421: 1}}
    assert [*tally.seconds["one"]] == [0.5, 2.5, 1.5]
    assert [*tally.with_faults()] == [0.5, 2.5, 1.5]
    assert tally.doubt == {QUIET: 0, "one": 0, "other": 1}


def test_a_time_without_faults_may_begin_later(tmp_path: Path) -> None:
    tally = tally_of(tmp_path, reply(50.0, 250), reply(101.0, 250), reply(150.0, 250), since=120.0)
    assert {name: [*seconds] for name, seconds in tally.seconds.items()} == {
        "one": [0.5],
        QUIET: [0.5],
    }


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles([3.0]) == {"p50": 3.0, "p99": 3.0, "max": 3.0}
    assert percentiles([float(n) for n in range(101)]) == {"p50": 50.0, "p99": 99.0, "max": 100.0}


def samples(*sizes: int) -> list[Sample]:
    return [Sample(float(n), 1, size // 2, size, 10 + n) for n, size in enumerate(sizes)]


def test_drift_is_from_the_first_to_the_last_fifth() -> None:
    found = drift("worker", samples(*[100 * MIB] * 2, *[500 * MIB] * 6, *[110 * MIB] * 2))
    assert found.percent == pytest.approx(10.0)
    assert found.share == (50 * MIB, 55 * MIB)
    assert found.descriptors == (10.5, 18.5)
    assert found.lived == 9.0


def test_only_what_lived_long_drifts(tmp_path: Path) -> None:
    watch = Watch.__new__(Watch)
    watch._masters = {1}
    long = [Sample(float(n), 1, MIB, MIB, 5) for n in range(100)]
    short = [Sample(90.0 + n, 2, MIB, (1 + n) * MIB, 5) for n in range(10)]
    watch._samples = {1: long, 2: short}
    assert [(d.role, d.pid, d.lived) for d in watch.drifts(40.0)] == [("master", 1, 59.0)]
    # A warm-up that takes too long ends in the middle.
    assert [d.lived for d in watch.drifts(99.0)] == [49.0]
    watch._samples = {}
    assert watch.drifts(0.0) == []


def test_a_look_at_a_process() -> None:
    file = Path("/proc/self").resolve()
    sample = look(int(file.name))
    assert 0 < sample.pss <= sample.rss
    assert sample.descriptors > 2


def report_of(tmp_path: Path) -> Report:
    """That of senders that have sent nothing."""
    ledger = tmp_path / "sender-0.jsonl"
    ledger.write_text("")
    return check([ledger], iter([]))


def test_figures(tmp_path: Path) -> None:
    alone = Trial(Job("one", 1, tmp_path, Plan(), ("one",)), [injection("one", 1.0)])
    alone.report = report_of(tmp_path)
    alone.tally.codes["one"][451] = 3
    shared = Trial(
        Job("group", 1, tmp_path, Plan(), ("one", "two")),
        [injection("one", 1.0, back=6.0), Injection("two", 9.0, 1, None, 0, 0, 0, 0, "", "never")],
    )
    figures = Figures([alone, shared], promise=5.0)
    one, two = figures.lines()
    assert (one.fault, one.times, one.acknowledged, one.lost, one.back) == ("one", 2, 14, 2, 6.0)
    assert (one.codes, one.violations) == ({451: 3}, 0)
    assert (two.times, two.violations, two.back) == (0, None, None)
    assert figures.troubles == [
        "group, seed 1: two did not happen: never",
        "one: back in service only after 6.0 s",
    ]
    markdown = figures.text(markdown=True)
    assert "| one | 2 | 14 | 3 | 0 | 0 | 2 | 0 | 0 | 0 | 6.00 |" in markdown
    assert "| two | 0 | 0 | 0 | 0 | 0 | 0 | 0 | – | – | – |" in markdown
    assert "violations: 0" in figures.text()
    assert json.loads(json.dumps(figures.as_dict()))["totals"]["lost"] == 0


def fault(name: str, **marks: object) -> Fault:
    return Fault(name, name, never, **marks)  # type: ignore[arg-type]


def never(lab: Lab, dose: object) -> str:
    raise AssertionError(lab, dose)


def test_jobs() -> None:
    chosen = [fault("a"), fault("b"), fault("c", armed=True), fault("d", long=120.0)]
    planned = jobs(chosen, Extent(seed=5, each=3, together=2), Plan(rate=7.0), Path("/x"))
    assert [(job.faults, job.times, job.seed) for job in planned] == [
        *[(("d",), 1, seed) for seed in (5, 6, 7)],
        (("a", "b"), 3, 5),
        (("c",), 3, 5),
    ]
    assert [job.plan.armed for job in planned] == [False, False, False, False, True]
    assert len({job.home for job in planned}) == 5
    assert {job.plan.rate for job in planned} == {7.0}
    # Times that are shortened make room for others in the same lab.
    planned = jobs(chosen, Extent(scale=0.01, together=3), Plan(), Path("/x"))
    assert {job.faults for job in planned} == {("a", "b", "d"), ("c",)}


def test_dice_fall_as_the_seed_says() -> None:
    assert seeded(1, "x").random() == seeded(1, "x").random()
    assert seeded(1, "x").random() != seeded(2, "x").random() != seeded(2, "y").random()
