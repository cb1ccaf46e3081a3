"""How does it look? One PNG, by matplotlib, which only drawing needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchlib import growth
from scripts.benchlib.results import Results, median
from scripts.benchlib.scenarios import long_size, scenario

MISSING = "drawing needs matplotlib, which is not installed: pip install -e '.[bench]'"
WIDTH, HEIGHT = 10.0, 4.3  # inches of 100 pixels; the height is that of two panels
INK, PALE = "#222222", "#999999"
LIGHTER = 0.45  # of the database's part of a bar
# Okabe and Ito's colours, which the colour-blind can tell apart; lines also differ by their marks.
STYLES = {
    "smtp-sink": ("#555555", "o"),
    "gsmtpd-null": ("#009E73", "s"),
    "gsmtpd-sqlite": ("#56B4E9", "^"),
    "gsmtpd-mariadb": ("#0072B2", "D"),
    "aiosmtpd-null": ("#C58700", "v"),
    "aiosmtpd-mariadb": ("#D55E00", "P"),
    "socketserver-mariadb": ("#CC79A7", "X"),
}
OTHER = ("#000000", "*")


@dataclass(frozen=True)
class Bar:
    """Medians of a peer. server, database: µs of CPU per message; least, most: of the rate."""

    peer: str
    server: float
    database: float
    rate: float
    least: float
    most: float


def bars(results: Results, name: str) -> list[Bar]:
    """A bar for each peer that was measured in this scenario, but the variants."""
    made = []
    peers = results.peers(name)
    for peer in [one for one in peers if one in STYLES] or peers:
        runs = [*results.runs_of(peer, name).values()]
        rates = [run.rate for run in runs]
        database = median([run.database_us or 0.0 for run in runs])
        server = median([run.server_us for run in runs])
        made.append(Bar(peer, server, database, median(rates), min(rates), max(rates)))
    return made


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places no closer than `gap` to each other, near those wanted, in their order."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    groups: list[tuple[float, list[int]]] = []  # the middle of places that touch, and whose
    for number in order:
        middle, members = wanted[number], [number]
        while groups and middle - groups[-1][0] < gap * (len(members) + len(groups[-1][1])) / 2:
            members = groups.pop()[1] + members
            middle = sum(wanted[one] for one in members) / len(members)
        groups.append((middle, members))
    places = [0.0] * len(wanted)
    for middle, members in groups:
        for row, number in enumerate(members):
            places[number] = middle + gap * (row - (len(members) - 1) / 2)
    return places


def possible() -> bool:
    """Whether there is matplotlib."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, path: Path) -> bool:
    """Write the PNG; False if nothing was measured that is drawn."""
    made = bars(results, results.tables[0]) if results.tables else []
    lines = [line for line in growth.lines(results) if line.title == growth.CPU]
    if not made and not lines:
        return False
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    pyplot.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
    pyplot.rcParams.update({"text.color": INK, "axes.edgecolor": PALE, "xtick.color": INK})
    rows = bool(made) + bool(lines)
    figure, axes = pyplot.subplots(
        rows, 2, figsize=(WIDTH, HEIGHT * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    if made:
        _draw_bars(axes[0], made, scenario(results.tables[0]).title)
    for axis, line in zip(axes[-1], lines, strict=False):
        _draw_line(axis, line)
    if len(lines) == 1:
        axes[-1][1].set_visible(False)
    figure.savefig(path, dpi=100, facecolor="white", format="png")
    pyplot.close(figure)
    return True


def _draw_bars(axes: Sequence[Any], made: Sequence[Bar], title: str) -> None:
    """The CPU that a message takes, and how many there are in a second."""
    names = [bar.peer for bar in made]
    cpu, rate = axes
    for bar in made:
        color, _ = STYLES.get(bar.peer, OTHER)
        cpu.barh(bar.peer, bar.server, color=color, height=0.7)
        cpu.barh(bar.peer, bar.database, left=bar.server, color=color, alpha=LIGHTER, height=0.7)
        parts = f"{bar.server:.0f}" + f" + {bar.database:.0f}" * bool(bar.database)
        cpu.annotate(parts, (bar.server + bar.database, bar.peer), (4, 0), va="center", **_OFFSET)
        rate.barh(bar.peer, bar.rate, color=color, height=0.7)
        rate.plot([bar.least, bar.most], [bar.peer, bar.peer], color=INK, linewidth=1)
        rate.annotate(f"{bar.rate:.0f}", (bar.most, bar.peer), (4, 0), va="center", **_OFFSET)
    cpu.set_title(f"CPU µs per message: server + MariaDB (pale)\n{title}")
    rate.set_title("messages/s: median, least to greatest\n")
    for axis, most in zip(
        axes,
        (max(b.server + b.database for b in made), max(b.most for b in made)),
        strict=True,
    ):
        axis.invert_yaxis()
        axis.set_xlim(0, most * 1.2)
        axis.tick_params(axis="y", length=0)
    rate.set_yticks(range(len(names)), [""] * len(names))


_OFFSET = {"textcoords": "offset points", "fontsize": 9}


def _draw_line(axis: Any, line: growth.Line) -> None:
    """A quantity over what grows, with the name of each peer at its end."""
    amounts = sorted({amount for points in line.points.values() for amount, _ in points})
    axis.set_xscale("log")
    axis.set_yscale("log")
    for peer, points in line.points.items():
        color, mark = STYLES.get(peer, OTHER)
        axis.plot(*zip(*points, strict=True), color=color, marker=mark, markersize=5)
    is_size = line.by == "octets"
    what = "size of a message" if is_size else "connections at a time"
    axis.set_title(f"{line.title.replace(', server and database', '')} over {what}")
    shown = amounts[::2] if len(amounts) > 6 else amounts
    axis.set_xticks(shown, [long_size(a) if is_size else str(a) for a in shown])
    axis.set_xticks([], minor=True)
    axis.set_xlim(amounts[0] * 0.8, amounts[-1] * 1.25)
    low, high = axis.get_ylim()
    if high / low < 100:
        axis.set_yticks([n * 10**e for e in range(7) for n in (1, 2, 5)])
        axis.set_ylim(low / 1.2, high * 1.2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter("")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    _label(axis, line)


def _label(axis: Any, line: growth.Line) -> None:
    """The names behind the ends of the lines, moved apart where those are close together."""
    peers = [*line.points]
    ends = [points[-1] for points in line.points.values()]
    pixels = [axis.transData.transform(end)[1] for end in ends]
    for peer, end, here, place in zip(peers, ends, pixels, apart(pixels, 15), strict=True):
        color, _ = STYLES.get(peer, OTHER)
        axis.annotate(peer, end, (8, (place - here) * 0.72), va="center", color=color, **_OFFSET)
