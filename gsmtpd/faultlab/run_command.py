"""What do `gsmtpd-faultlab run` and `gsmtpd-faultlab faults` do?"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType
from typing import Any

from gsmtpd.faultlab import arguments
from gsmtpd.faultlab.fault import Fault
from gsmtpd.faultlab.faults import FAULTS, select
from gsmtpd.faultlab.galera import provider
from gsmtpd.faultlab.lab import Plan
from gsmtpd.faultlab.processes import find_program
from gsmtpd.faultlab.report import Figures
from gsmtpd.faultlab.trial import NO_FAULT, Extent, Job, Trial, jobs, run

EX_USAGE = 2  # as argparse has it
PROMISE = 5.0  # seconds until service is back, as docs/durability.md says
_PR_SET_PDEATHSIG = 1  # prctl(2)
_TERMINATED = 143  # as of a process that SIGTERM ended
_RATE, _SESSIONS = 100.0, 16  # of a lab in which faults are injected one by one
_SENDERS, _MANY_SESSIONS = 2, 64  # of a long run
_MEMORY = "1G"  # of the database in a long run, whose indexes grow large


def add_commands(verbs: Any) -> None:
    """Add `run` and `faults` to the subparsers of a command line."""
    listing = verbs.add_parser("faults", help="list the faults by name, one a line")
    listing.set_defaults(run=list_faults)
    command = verbs.add_parser(
        "run",
        help="inject faults into a MariaDB and a gsmtpd of its own, and hold them to account",
        description="Start a MariaDB, a gsmtpd and senders, inject faults, and hold the mail that"
        " was acknowledged against what is stored. Exit status 1: something was violated, or a"
        " fault did not happen.",
    )
    _add_options(command)
    command.set_defaults(run=run_faults)


def _add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--faults", default="all", metavar="A,B,..", help="these faults only (default: all)")
    add("--seed", type=arguments.seed, default=1, help="of the order, the pauses and the mails (1)")
    add(
        "--each", type=arguments.count, default=1, metavar="N", help="inject each fault N times (1)"
    )
    add("--messages", type=arguments.count, default=0, metavar="N",
        help="have all faults rotate in one lab until N mails are acknowledged")  # fmt: skip
    add("--galera", action="store_true", help="three Galera nodes, and the faults of a cluster")
    add("--scale", type=arguments.positive, default=1.0, metavar="X",
        help="multiply the times of long faults (120 s stopped) by X (1)")  # fmt: skip
    add("--together", type=arguments.count, default=1, metavar="N",
        help="have N faults share a lab, which is faster (1)")  # fmt: skip
    add("--jobs", type=arguments.count, default=2, metavar="K", help="labs side by side (2)")
    add("--rate", type=arguments.positive, default=None, metavar="N",
        help="mails a second of each lab (100; with --messages as many as are taken)")  # fmt: skip
    add("--sessions", type=arguments.count, default=0, metavar="N",
        help="SMTP sessions of each lab (16; with --messages 64)")  # fmt: skip
    add("--quiet", type=arguments.seconds, default=10.0, metavar="S",
        help="seconds without any fault, for comparison (10)")  # fmt: skip
    add("--promise", type=arguments.positive, default=PROMISE, metavar="S",
        help=f"seconds until service must be back after a fault ({PROMISE:g})")  # fmt: skip
    add("--home", type=Path, metavar="DIR", help="keep ledgers and logs here (default: nowhere)")
    add("--json", type=Path, metavar="FILE", help="write all figures here, too")
    add("--markdown", type=Path, metavar="FILE", help="write the tables here, too")


def list_faults(_: argparse.Namespace) -> int:
    """Print the faults, one a line."""
    width = max(map(len, FAULTS))
    for fault in FAULTS.values():
        print(f"{fault.name:{width}}  {fault.description}{' (--galera)' * fault.galera}")
    return 0


def run_faults(options: argparse.Namespace) -> int:
    """Carry the run out and print its figures; the exit status. Raises MissingProgramError."""
    try:
        chosen = select(options.faults, options.galera)
        _see_what_is_installed(options.galera)
        _settle_files(options)
    except ValueError as error:
        print(f"gsmtpd-faultlab: {error}", file=sys.stderr)
        return EX_USAGE
    # The processes of the labs would have to enter where we are, which we may not be allowed to.
    os.chdir("/")
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix="gsmtpd-faultlab-") as passing:
        home = options.home or Path(passing)
        planned = plan(options, chosen, home)
        trials = []
        for trial in carry_out(planned, options.jobs):
            trials.append(trial)
            print(_progress(trial, len(trials), len(planned)), flush=True)
    order = {job.home: number for number, job in enumerate(planned)}
    trials.sort(key=lambda trial: (trial.job.name, order[trial.job.home]))
    return _tell(Figures(trials, options.promise), options)


def _settle_files(options: argparse.Namespace) -> None:
    """Make names of files absolute, and the home. Raises ValueError where one cannot be written to.

    Now, not once all is done and would be lost.
    """
    try:
        for name in ("home", "json", "markdown"):
            path: Path | None = getattr(options, name)
            if path is not None:
                setattr(options, name, path.absolute())
        if options.home:
            options.home.mkdir(parents=True, exist_ok=True)
            if any(options.home.iterdir()):
                raise ValueError(f"{options.home} is not empty")
            if not os.access(options.home, os.W_OK):
                raise ValueError(f"{options.home} cannot be written to")
        for file in filter(None, (options.json, options.markdown)):
            if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
                raise ValueError(f"{file} cannot be written to")
    except OSError as error:
        raise ValueError(f"{error.filename or 'this directory'}: {error.strerror}") from error


def _see_what_is_installed(galera: bool) -> None:
    """Raises MissingProgramError for what every lab needs."""
    for program in ("mariadbd", "mariadb-install-db"):
        find_program(program)
    if galera:
        provider()


def plan(options: argparse.Namespace, chosen: Sequence[Fault], home: Path) -> list[Job]:
    """The jobs of a run."""
    if options.messages:
        chosen = [fault for fault in chosen if not fault.lossy]  # a disk too slow for so many
        armed = any(fault.armed for fault in chosen)
        sessions = options.sessions or _MANY_SESSIONS
        furnished = Plan(options.rate, sessions, _SENDERS, armed, memory=_MEMORY)
        return [
            Job(
                "rotation",
                options.seed,
                home / "rotation",
                furnished,
                scale=options.scale,
                messages=options.messages,
                faults=tuple(fault.name for fault in chosen),
                quiet=options.quiet,
                galera=options.galera,
            )
        ]
    furnished = Plan(options.rate or _RATE, options.sessions or _SESSIONS)
    extent = Extent(options.seed, options.each, options.scale, options.together)
    found = jobs(chosen, extent, furnished, home)
    if options.quiet:
        quiet = replace(furnished, armed=False)
        job = Job(NO_FAULT, options.seed, home / NO_FAULT, quiet, quiet=options.quiet)
        found.insert(0, replace(job, galera=options.galera))
    return found


def carry_out(planned: Sequence[Job], at_once: int) -> Iterator[Trial]:
    """The trials as they end; those without a fault come first, alone."""
    # Not forked: a lab has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context, initializer=_begin_process) as pool:
        try:
            alone = [job for job in planned if job.name == NO_FAULT]
            for job in alone:
                yield pool.submit(_run, job).result()
            futures = [pool.submit(_run, job) for job in planned if job not in alone]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # ^C, or TERM: the labs are to go as well
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _run(job: Job) -> Trial:
    """Carry a job out; the process ends where it was told to."""
    try:
        return run(job)
    except (SystemExit, KeyboardInterrupt):
        atexit._run_exitfuncs()
        os._exit(_TERMINATED)


def _begin_process() -> None:
    """Of a process that runs labs: end with the parent, and take down what was started."""
    signal.signal(signal.SIGTERM, _leave)
    # Processes of multiprocessing end without what atexit was told.
    Finalize(None, atexit._run_exitfuncs, exitpriority=0)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)


def _progress(trial: Trial, done: int, of: int) -> str:
    troubles = "".join(f"\n    {trouble}" for trouble in trial.troubles)
    acknowledged = trial.report.acknowledged if trial.report is not None else 0
    times = len(trial.injections)
    return (
        f"[{done}/{of}] {trial.job.name} × {times}: {acknowledged:,} acknowledged,"
        f" {trial.seconds:.0f} s{troubles}"
    )


def _tell(figures: Figures, options: argparse.Namespace) -> int:
    """Print and write the figures; the exit status."""
    print()
    print(figures.text())
    if options.json:
        options.json.write_text(json.dumps(figures.as_dict(), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(figures.text(markdown=True) + "\n")
    troubles = figures.troubles
    print()
    print("\n".join(f"TROUBLE: {trouble}" for trouble in troubles) or "nothing was violated")
    return 1 if troubles else 0
