"""What is scripts/bench asked to measure, and in which order does it do that?"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from scripts.benchlib import goals, growth, plot
from scripts.benchlib.facts import facts
from scripts.benchlib.idle import measure_idle
from scripts.benchlib.options import choices, positive, processes
from scripts.benchlib.peers import BASELINE, PEERS, SIZED, SIZED_FAR, USUAL, Builder, Options
from scripts.benchlib.report import print_report
from scripts.benchlib.results import Results, WrongFileError, from_files, to_json
from scripts.benchlib.rounds import Amount, Bench
from scripts.benchlib.scenarios import SESSIONS, WORDS, Scenario, scenario, scenarios
from scripts.benchlib.start import measure_starts
from scripts.benchlib.tables import print_table, progress
from tests.servers import MissingProgramError, find_program

EXIT_UNAVAILABLE = 69
TABLES = "4k-one,4k-many,75k-one,75k-many,1m-one,4k-one-500"
QUICK_TABLES = "4k-one,4k-many,75k-one"
QUICK_WAITS = 1
WAITED = ("4k-one", "75k-one")
QUICK_PEERS = ["smtp-sink", "gsmtpd-null", "gsmtpd-mariadb", "aiosmtpd-mariadb"]
_QUIET = ["gsmtpd-null", "gsmtpd-null-quiet", "gsmtpd-mariadb", "gsmtpd-mariadb-quiet"]
_CONTENT = [f"gsmtpd-mariadb{how}" for how in ("", "-headers", "-off", "-compress")]
_TLS = ["gsmtpd-null", "gsmtpd-null-tls", "gsmtpd-mariadb", "gsmtpd-mariadb-tls"]
VARIANTS = {
    "4k-one": _QUIET,
    "4k-one-text": _CONTENT,
    "75k-one-text": _CONTENT,
    "4k-one-fresh": ["gsmtpd-mariadb", "gsmtpd-mariadb-query"],
    "4k-one-tls": _TLS,
    "4k-many-tls": _TLS,
}
LEVELS = ("debug", "info", "warning", "error")
# What --from reads is there: these would measure it.
MEASURING = ("quick", "table", "variants", "sizes", "grow", "idle", "starts", "rounds", "messages",
             "peers", "scenarios", "waits", "wait_seconds")  # fmt: skip
STARTS = 10
GROW_ROUNDS = 3


@dataclass(frozen=True)
class Part:
    """Peers that are compared in a scenario, and how much of it."""

    scenario: Scenario
    peers: Sequence[str]
    amount: Amount


@dataclass(frozen=True)
class Plan:
    """What to measure. idle: clients, 0 for none; starts: of each peer; grown: peers of --grow.

    growth: how much of that.
    """

    parts: Sequence[Part]
    amount: Amount
    idle: int
    idle_peers: Sequence[str]
    starts: int
    grown: Sequence[str]
    growth: Amount
    options: Options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="bench",
        description="How fast is gsmtpd, beside other servers, on this machine and now? Without"
        " --variants, --sizes, --grow, --goals, --idle, --starts: a table of servers, scenarios.",
        epilog=f"{WORDS}.",
    )
    add = made.add_argument
    add("--quick", action="store_true", help="3 rounds of 600 messages, 4 peers: within a minute")
    add("--table", action="store_true", help="the table, beside what else is asked for")
    add("--variants", action="store_true", help="what log, decode, compress, query and TLS cost")
    add(
        "--sizes",
        action="store_true",
        help="what processes, threads, connections, a far database do",
    )
    add("--grow", action="store_true", help="cost over 1 to 1,000 sessions and 1 KB to 10 MB")
    add("--goals", action="store_true", help="all that the goals need; 1 if one is missed")
    add("--idle", type=positive, metavar="N", help="the cost of N idle clients")
    add("--starts", type=positive, metavar="N", help="N starts, to the first greeting")
    add("--all", action="store_true", help="all of these")
    add("--rounds", type=positive, help="default 5; of --grow 3")
    add("--messages", type=positive, help="in a run of 4 KB, fewer of larger ones; default 3000")
    add("--sessions", type=positive, default=SESSIONS, help="where none are said; default 64")
    add("--peers", type=choices([*PEERS]), help=f"of {', '.join(PEERS)}; default: the first 7")
    add("--scenarios", type=_known, help=f"default {TABLES}")
    add("--waits", type=_number, metavar="N", help="rounds at half the rate; 0: none")
    add("--wait-seconds", type=positive, metavar="N", help="how long each of them is")
    add("--processes", type=processes, default="auto", help="of gsmtpd, and of those in Python")
    add("--log-level", default="info", choices=LEVELS, help="default info, as shipped")
    add("--json", type=Path, metavar="FILE", help="write everything there, too")
    add("--plot", type=Path, metavar="FILE", help="draw it, as PNG; needs matplotlib")
    add("--from", type=Path, nargs="+", dest="files", metavar="FILE", help="read, don't measure")
    return made


def _known(text: str) -> str:
    """An argparse type: scenarios, looked at again when --sessions is known."""
    scenarios(text)
    return text


def _number(text: str) -> int:
    return 0 if text == "0" else positive(text)


def plan_from(chosen: argparse.Namespace) -> Plan:
    """The plan the command line asks for."""
    every, quick = chosen.all, chosen.quick
    amount = Amount(
        rounds=chosen.rounds or (3 if quick else 5),
        messages=chosen.messages or (600 if quick else 3000),
        seconds=chosen.wait_seconds or 1,
    )
    peers = chosen.peers or (QUICK_PEERS if quick else USUAL)
    others = (chosen.variants, chosen.sizes, chosen.grow, chosen.goals, chosen.idle, chosen.starts)
    parts: list[Part] = []
    if every or chosen.table or not any(others):
        parts += _table_parts(chosen, peers, amount)
    if every or chosen.goals:
        parts += _goal_parts(chosen, amount)
    if every or chosen.variants:
        parts += [
            Part(scenario(name), [BASELINE, *some], amount) for name, some in VARIANTS.items()
        ]
    if every or chosen.sizes:
        parts.append(Part(scenario("4k-one"), [BASELINE, *SIZED, *SIZED_FAR], amount))
    goal = every or chosen.goals
    return Plan(
        parts=_merged(parts),
        amount=amount,
        idle=chosen.idle or goals.IDLE_CLIENTS * goal,
        idle_peers=goals.IDLE_PEERS if goal else ["gsmtpd-null"],
        starts=chosen.starts or STARTS * goal,
        grown=(chosen.peers or growth.PEERS) if every or chosen.grow else [],
        growth=replace(amount, rounds=chosen.rounds or GROW_ROUNDS),
        options=Options(chosen.processes, chosen.log_level),
    )


def _table_parts(chosen: argparse.Namespace, peers: Sequence[str], amount: Amount) -> list[Part]:
    named = chosen.scenarios or (QUICK_TABLES if chosen.quick else TABLES)
    parts = []
    for word in named.split(","):
        one = scenario(word, chosen.sessions)
        usual = QUICK_WAITS if chosen.quick else 3 * (word in WAITED or bool(chosen.scenarios))
        waits = usual if chosen.waits is None else chosen.waits
        parts.append(Part(one, peers, replace(amount, waits=waits)))
    return parts


def _goal_parts(chosen: argparse.Namespace, amount: Amount) -> list[Part]:
    seconds = chosen.wait_seconds or 3
    waits = amount.rounds if chosen.waits is None else chosen.waits
    return [
        Part(
            scenario(name),
            goals.PEERS,
            replace(amount, waits=waits * (name in goals.PACED_SCENARIOS), seconds=seconds),
        )
        for name in goals.SCENARIOS
    ]


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Each scenario once, with all peers that it is wanted for and the most of each amount."""
    merged: dict[str, Part] = {}
    for part in parts:
        here = merged.setdefault(part.scenario.name, part)
        peers = [name for name in PEERS if name in {*here.peers, *part.peers}]
        amount = replace(
            here.amount,
            waits=max(here.amount.waits, part.amount.waits),
            seconds=max(here.amount.seconds, part.amount.seconds),
        )
        merged[part.scenario.name] = Part(part.scenario, peers, amount)
    return [*merged.values()]


# --- doing it -------------------------------------------------------------------------------------


def measured(plan: Plan, builders: dict[str, Builder]) -> tuple[Results, bool]:
    """What came of the plan, and whether all of it was done: False after ^C."""
    with contextlib.ExitStack() as stack:
        bench = Bench(plan.options, stack, builders)
        try:
            for part in plan.parts:
                bench.results.tables.append(part.scenario.name)
                bench.compare(part.peers, part.scenario, part.amount)
            if plan.grown:
                growth.grow(bench, plan.grown, many=False, amount=plan.growth)
            if plan.idle:
                for name in plan.idle_peers:
                    measure_idle(bench, name, scenario("4k-one"), plan.idle, plan.amount)
            if plan.starts:
                measure_starts(bench, goals.START_PEERS, plan.starts)
        except KeyboardInterrupt:
            progress("")
            return bench.results, False
        return bench.results, True


def allow() -> None:
    """Let SIGTERM do what ^C does, which shows what there is by then, and many files be open."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """What the command line asks for; its exit status is that of `run`."""
    allow()
    try:
        return run(parser().parse_args(), PEERS)
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _check(chosen: argparse.Namespace) -> None:
    """End with 2 for what would be found out when all is measured."""
    if chosen.files and (some := [name for name in MEASURING if getattr(chosen, name)]):
        _refuse(f"--{some[0].replace('_', '-')} measures, and --from does not")
    for path in filter(None, (chosen.json, chosen.plot)):
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            _refuse(f"{path} cannot be written")


def _refuse(why: str) -> NoReturn:
    parser().error(why)


def run(chosen: argparse.Namespace, builders: dict[str, Builder]) -> int:
    """0 if all went well; 1 if a peer failed, or a goal was missed and --goals or --all asked.

    130 after ^C or SIGTERM, 69 without smtp-source or matplotlib. Ends with 2 for what cannot be.
    """
    if chosen.plot and not plot.possible():
        print(f"bench: {plot.MISSING}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    _check(chosen)
    if chosen.files:
        try:
            return _finish(chosen, from_files(chosen.files))
        except WrongFileError as error:
            _refuse(str(error))
    try:
        find_program("smtp-source")
    except MissingProgramError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    plan = plan_from(chosen)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if plan.idle > most - 200:
        _refuse(f"{plan.idle} idle clients, but a process may open {most} files only")
    where = facts()
    results, done = measured(plan, builders)
    results.facts = where
    status = _finish(chosen, results)
    return status if done else 130


def _finish(chosen: argparse.Namespace, results: Results) -> int:
    """Show it, write it, draw it."""
    for name, text in results.facts.items():
        print(f"{name:9} {text}")
    print_report(results)
    judged = goals.judged(results)
    rows = goals.table(judged)
    if len(rows) > 1:
        print("\nthe goals: medians, least and greatest")
        print_table(rows)
    if chosen.json and results.last_round():
        more = {"goals": [goal.as_json() for goal in judged]}
        chosen.json.write_text(to_json(results, more) + "\n")
    if chosen.plot and not plot.draw(results, chosen.plot):
        print("bench: nothing was measured that is drawn", file=sys.stderr)
    missed = (chosen.goals or chosen.all) and any(goal.met is False for goal in judged)
    return int(bool(results.failed) or missed)
