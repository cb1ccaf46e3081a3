"""What is one run of a lab: some faults after the other under load, then the account?"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.check import Report, check
from gsmtpd.faultlab.drift import Drift, Watch
from gsmtpd.faultlab.fault import BrokenPromiseError, Fault
from gsmtpd.faultlab.faults import FAULTS
from gsmtpd.faultlab.lab import Lab, Plan, seeded
from gsmtpd.faultlab.nemesis import Injection, Nemesis
from gsmtpd.faultlab.processes import ServerError
from gsmtpd.faultlab.tally import Tally

NO_FAULT = "none"
"""The name of a trial in which nothing is injected."""
_PAUSES = (1.0, 4.0)  # seconds between the faults of a long run
_MOST_TIMES = 5  # that a fault is injected in a trial: the others may be another's meanwhile
_MOST_SECONDS = 60.0  # of a trial, about
_LONG = 7.0  # seconds
_KILLING_PART = 1 / 3  # of a long run; workers of the rest live long, and are watched


@dataclass(frozen=True)
class Job:
    """What a trial is to do.

    name: of the trial. faults: by name, in an order of the seed's. times: how often each. home: a
    directory for it alone. messages: the faults are to go round until so many mails are
    acknowledged, instead. quiet: seconds without a fault.
    """

    name: str
    seed: int
    home: Path
    plan: Plan
    faults: tuple[str, ...] = ()
    times: int = 1
    scale: float = 1.0
    messages: int = 0
    quiet: float = 0.0
    galera: bool = False


@dataclass
class Trial:
    """What came of a job. broken: what gsmtpd did wrong at its end, or how the lab failed.

    as_delivered: Unix time since which gsmtpd's failpoints were not armed.
    """

    job: Job
    injections: list[Injection] = field(default_factory=list)
    report: Report | None = None
    tally: Tally = field(default_factory=Tally)
    drifts: list[Drift] = field(default_factory=list)
    broken: str = ""
    seconds: float = 0.0
    as_delivered: float = 0.0

    @property
    def troubles(self) -> list[str]:
        """All for which the trial proves nothing, or the contrary of what it should."""
        found = [self.broken] if self.broken else []
        for done in self.injections:
            if done.did_not_happen:
                found.append(f"{done.fault} did not happen: {done.did_not_happen}")
            if done.broken:
                found.append(f"{done.fault}: {done.broken}")
        if self.report is not None and self.report.violations:
            found.append(f"{self.report.violations} violations")
        return [f"{self.job.name}, seed {self.job.seed}: {trouble}" for trouble in found]


def run(job: Job) -> Trial:
    """Carry a job out."""
    began = time.monotonic()
    trial = Trial(job)
    try:
        with lab_of(job) as lab:
            try:
                _run_in(lab, trial)
            finally:
                lab.keep_evidence()
    except (BrokenPromiseError, ServerError) as error:
        trial.broken = str(error)
    except Exception:
        # A fault of the lab: the other trials go on, and this one has failed.
        trial.broken = traceback.format_exc()
    trial.seconds = time.monotonic() - began
    return trial


def lab_of(job: Job) -> Lab:
    """The lab that a job needs."""
    if job.galera:
        from gsmtpd.faultlab.galera_lab import GaleraLab

        return GaleraLab(job.home, job.seed, job.plan)
    return Lab(job.home, job.seed, job.plan)


def _run_in(lab: Lab, trial: Trial) -> None:
    job = trial.job
    nemesis = Nemesis(lab, seeded(job.seed, job.name), job.scale, job.home / "nemesis.jsonl")
    lab.send()
    if job.messages:
        _rotate(lab, nemesis, trial)
    else:
        time.sleep(job.quiet)
        order = [FAULTS[name] for name in job.faults] * job.times
        seeded(job.seed, "order").shuffle(order)
        trial.injections += map(nemesis.inject, order)
    lab.stop()
    ledgers = ledger.files(lab.ledgers)
    trial.report = check(ledgers, lab.rows())
    trial.tally.read(ledgers, trial.injections, trial.as_delivered)


def _rotate(lab: Lab, nemesis: Nemesis, trial: Trial) -> None:
    """All faults in turn, until the mails are acknowledged; first those that kill workers."""
    job = trial.job
    chosen = [FAULTS[name] for name in job.faults]
    killing = [fault for fault in chosen if fault.kills or fault.armed]
    others = [fault for fault in chosen if fault not in killing]
    goal = job.messages
    if killing:
        part = int(goal * (_KILLING_PART if others else 1))
        _until(lab, nemesis, trial, killing, part)
        lab.restart(armed=False)
    trial.as_delivered, warm = time.time(), time.monotonic()
    with Watch(lab.gsmtpd, job.home / "processes.csv") as watch:
        time.sleep(job.quiet)
        if others:
            warm = _until(lab, nemesis, trial, others, goal)
    trial.drifts = watch.drifts(warm)


def _until(lab: Lab, nemesis: Nemesis, trial: Trial, faults: Sequence[Fault], goal: int) -> float:
    """Inject until so many mails are acknowledged, each fault once at least.

    Returns when all had happened once, in monotonic seconds.
    """
    dice = seeded(trial.job.seed, "rotation", *(fault.name for fault in faults))
    warm = time.monotonic()
    for number, fault in enumerate(_turns(faults, trial.job.seed)):
        if number == len(faults):
            warm = time.monotonic()
        if number >= len(faults) and lab.senders.acknowledged >= goal:
            break
        trial.injections.append(nemesis.inject(fault))
        time.sleep(dice.uniform(*_PAUSES))
    return warm


def _turns(faults: Sequence[Fault], seed: int) -> Iterator[Fault]:
    """The faults again and again, each time in another order."""
    dice = seeded(seed, "turns")
    while True:
        order = [*faults]
        dice.shuffle(order)
        yield from order


@dataclass(frozen=True)
class Extent:
    """How much is to be injected. each: how often each fault. together: how many share a lab."""

    seed: int = 1
    each: int = 1
    scale: float = 1.0
    together: int = 1


def jobs(faults: Sequence[Fault], extent: Extent, plan: Plan, home: Path) -> list[Job]:
    """The trials that inject each of the faults so often, the longest of them first."""
    found: list[tuple[float, Job]] = []
    for number, group in enumerate(_groups(faults, extent)):
        takes = sum(fault.takes + fault.long * extent.scale for fault in group)
        most = max(1, min(_MOST_TIMES, int(_MOST_SECONDS / takes)))
        name = group[0].name if len(group) == 1 else f"group-{number}"
        furnished = replace(plan, armed=group[0].armed, disk=group[0].disk, lossy=group[0].lossy)
        for part, begin in enumerate(range(0, extent.each, most)):
            times = min(most, extent.each - begin)
            job = Job(
                name,
                extent.seed + part,
                home / f"{name}-{part}",
                furnished,
                tuple(fault.name for fault in group),
                times,
                extent.scale,
                galera=group[0].galera,
            )
            found.append((takes * times, job))
    found.sort(key=lambda one: -one[0])
    return [job for _, job in found]


def _needs(fault: Fault) -> tuple[bool, ...]:
    return fault.armed, fault.disk, fault.lossy, fault.galera


def _groups(faults: Sequence[Fault], extent: Extent) -> Iterator[list[Fault]]:
    """Faults that can share a lab; long ones have their own, as the others would wait for them."""
    waiting: dict[tuple[bool, ...], list[Fault]] = {}
    for fault in faults:
        if fault.takes + fault.long * extent.scale > _LONG:
            yield [fault]
            continue
        group = waiting.setdefault(_needs(fault), [])
        group.append(fault)
        if len(group) == extent.together:
            yield waiting.pop(_needs(fault))
    yield from waiting.values()
