"""Which tables show what was measured?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from scripts.benchlib.growth import Line, lines
from scripts.benchlib.peers import BASELINE, PEERS
from scripts.benchlib.results import Idle, Results, median, ratios
from scripts.benchlib.runs import Run
from scripts.benchlib.scenarios import scenario, short_size
from scripts.benchlib.tables import NO_VALUE, print_table, spread

Rows = list[list[str]]


@dataclass(frozen=True)
class Column:
    """A value of a run; None where it does not apply."""

    title: str
    value: Callable[[Run], float | None]
    compared: bool = False


COLUMNS = (
    Column("messages/s", lambda run: run.rate, compared=True),
    Column("CPU µs", lambda run: run.server_us, compared=True),
    Column("MariaDB µs", lambda run: run.database_us),
    Column("load µs", lambda run: run.each(run.load_cpu)),
)


def shown(values: Sequence[float], form: str = ".0f") -> str:
    """The median in a cell."""
    return f"{median(values):{form}}" if values else NO_VALUE


def table(results: Results, name: str) -> Rows:
    """Heading, and one line for each peer measured in this scenario."""
    titles = [[c.title, f"× {BASELINE}"] if c.compared else [c.title] for c in COLUMNS]
    rows = [["", *chain(*titles), "p50 ms", "p99 ms", "RSS MB", "peak", "PSS", "rows"]]
    base = results.runs_of(BASELINE, name)
    for peer in results.peers(name):
        runs = results.runs_of(peer, name)
        kept = [run.rows for run in runs.values() if run.rows is not None]
        row = [peer]
        for column in COLUMNS:
            values = [v for run in runs.values() if (v := column.value(run)) is not None]
            row.append(shown(values))
            if column.compared:
                compared = ratios(column.value, runs, base)
                row.append(spread(compared) if compared else NO_VALUE)
        paced = results.waits_of(peer, name)
        row += [shown([w.p50 * 1e3 for w in paced], ".2f")]
        row += [shown([w.p99 * 1e3 for w in paced], ".1f")]
        last = runs[max(runs)]
        row += [f"{octets / 1e6:.1f}" for octets in (last.rss, last.peak, last.pss)]
        rows.append([*row, f"{sum(kept)} ok" if kept else NO_VALUE])
    return rows


def variants(results: Results, name: str) -> Rows:
    """Each variant of a peer beside that peer of the same round; no rows if there are none."""
    rows = [["", "beside", "× messages/s", "× CPU", "× MariaDB CPU"]]
    for peer in results.peers(name):
        parent = peer.rpartition("-")[0]
        if parent not in PEERS or not (base := results.runs_of(parent, name)):
            continue
        runs = results.runs_of(peer, name)
        each = [ratios(column.value, runs, base) for column in COLUMNS[:3]]
        rows.append([peer, parent, *(spread(some) if some else NO_VALUE for some in each)])
    return rows


def replies(results: Results, name: str) -> Rows:
    """How long replies took at half the rate, and how good the load generator was."""
    rows = [["", "begun/s", "p50 ms", "p99 ms", "most", "late p99", "own p99", "load µs", "CPU µs"]]
    for peer in results.peers(name):
        if not (some := results.waits_of(peer, name)):
            continue
        each = ("p50", "p99", "most", "late_p99", "own_p99")
        cells = [spread([getattr(w, which) * 1e3 for w in some]) for which in each]
        cpu = [f"{median([w.load_cpu / w.messages * 1e6 for w in some]):.0f}"]
        cpu += [f"{median([w.server_cpu / w.messages * 1e6 for w in some]):.0f}"]
        rows.append([peer, f"{median([w.rate for w in some]):.0f}", *cells, *cpu])
    return rows


def idle(results: Results, peer: str) -> Rows:
    """What idle clients cost a peer; ×: with them to without, of the same round."""
    some = [one for one in results.idle if one.peer == peer]
    before, after = some[0], some[-1]
    each = (after.pss - before.pss_before) / after.clients
    return [
        ["", "with", "without", "×"],
        _idle_row("messages/s", some, "rate"),
        _idle_row("CPU µs", some, "cpu"),
        ["RSS MB", *(f"{octets / 1e6:.1f}" for octets in (after.rss, before.rss_before)), NO_VALUE],
        ["PSS MB", *(f"{octets / 1e6:.1f}" for octets in (after.pss, before.pss_before)), NO_VALUE],
        ["octets of PSS each", f"{each:.0f}", NO_VALUE, NO_VALUE],
    ]


def _idle_row(title: str, some: Sequence[Idle], what: str) -> list[str]:
    busy = [getattr(one, f"{what}_with") for one in some]
    alone = [getattr(one, f"{what}_without") for one in some]
    each = [b / a for a, b in zip(alone, busy, strict=True)]
    return [title, shown(busy), shown(alone), spread(each)]


def starts(results: Results) -> Rows:
    """Seconds to the first greeting."""
    rows = [["", "seconds", "starts"]]
    for peer in dict.fromkeys(start.peer for start in results.starts):
        each = [start.seconds for start in results.starts if start.peer == peer]
        rows.append([peer, spread(each, ".3f"), str(len(each))])
    return rows


def growth(line: Line) -> Rows:
    """A quantity of each peer over what grows."""
    amounts = sorted({amount for points in line.points.values() for amount, _ in points})
    rows = [["", *(short_size(a) if line.by == "octets" else str(a) for a in amounts)]]
    for peer, points in line.points.items():
        at = dict(points)
        form = ".0f" if max(at.values()) >= 100 else ".1f"
        rows.append([peer, *(f"{at[a]:{form}}" if a in at else NO_VALUE for a in amounts)])
    return rows


def print_report(results: Results) -> None:
    """All tables but that of the goals, and who is not in them."""
    for name in results.tables:
        rounds = max((run.round for run in results.runs if run.scenario == name), default=0)
        _show(
            f"{scenario(name).title}: per message, medians of {rounds} rounds", table(results, name)
        )
        _show("the same beside what it is a variant of", variants(results, name))
    for name in dict.fromkeys(one.scenario for one in results.waits):
        title = f"{scenario(name).title}: ms to the reply to the final dot, at half the rate"
        _show(title, replies(results, name))
    for line in lines(results):
        _show(f"{line.title}, over {line.by}; medians", growth(line))
    for peer in dict.fromkeys(one.peer for one in results.idle):
        clients = next(one.clients for one in results.idle if one.peer == peer)
        _show(f"{clients} idle clients of {peer}, all its processes", idle(results, peer))
    _show("from exec to the first greeting", starts(results))
    for name, why in results.skipped.items():
        print(f"\nskipped {name}: {why}")
    for name, why in results.failed.items():
        print(f"\nFAILED {name}: {why}")


def _show(title: str, rows: Rows) -> None:
    """A table under its title, if it has more than a heading."""
    if len(rows) > 1:
        print(f"\n{title}")
        print_table(rows)
