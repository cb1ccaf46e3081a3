"""What stands on the screen of gsmtpctl top, in so many columns and lines?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

from gsmtpd.ctl_words import lasting, milliseconds, rate, size
from gsmtpd.wording import printable

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.:-=+*#"  # where the terminal has no more than ASCII
SORTS = ("seconds", "octets", "messages", "client")
_LABEL, _VALUE = 12, 10  # columns
_REFUSED = "refused:"
_MINUTE = 60.0
_HEADS = 3  # lines above a table

Found = dict[str, Any]


class Style(Enum):
    """How a line looks."""

    USUAL = 0
    HEAD = 1
    TITLE = 2
    ALARM = 3
    DIM = 4


class Line(NamedTuple):
    """A line of the screen."""

    text: str
    style: Style = Style.USUAL


class View(NamedTuple):
    """What is to be seen. status, history, sessions: the answers of the server, {} for none.

    trouble: why they are not there or are old. sort: one of SORTS. blocks: from low to high. now:
    Unix time.
    """

    status: Found
    history: Found
    sessions: Found
    now: float
    trouble: str = ""
    sort: str = SORTS[0]
    blocks: str = BLOCKS
    is_paused: bool = False
    helps: bool = False


_HELP = (
    "q  quit",
    "p  pause, and go on",
    "s  sort the sessions by age, octets, messages, client",
    "h  this help, and back",
    "",
    "Rates are of the last second or step; refused counts all refusals,",
    "those of recipients and clients, too. A bar is as high as the highest.",
)


def screen(view: View, width: int, height: int) -> list[Line]:
    """The lines, at most `height` of at most `width` columns."""
    lines = [_head(view, width)]
    if view.trouble:
        lines.append(Line(view.trouble, Style.ALARM))
    if view.helps:
        lines += [Line(text) for text in ("", *_HELP)]
    elif view.status:
        lines += _above(view, width)
        lines += _tables(view, max(0, height - len(lines)), width)
    return [line._replace(text=_cut(line.text, width)) for line in lines[:height]]


def _cut(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: max(0, width - 1)] + "~"[: max(0, width)]


def _head(view: View, width: int) -> Line:
    left = "gsmtpd"
    if status := view.status:
        up = lasting(max(0.0, view.now - status["began"]))
        left = f"gsmtpd {status['version']}, {status['state']}, {up}"
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(view.now))
    right = f"PAUSED  {clock}" if view.is_paused else clock
    room = width - len(right) - 2
    return Line(f"{left[: max(0, room)]:{max(0, room)}}  {right}"[-width:], Style.HEAD)


# ---- numbers -----------------------------------------------------------------------------------


def _above(view: View, width: int) -> Iterator[Line]:
    status = view.status
    workers = [one for one in status["workers"] if one.get("role", "smtp") == "smtp"]
    serving = sum(one["state"] == "serving" for one in workers)
    parts = [
        f"clients {status['clients']}/{status['max_clients']}",
        f"workers {serving}/{len(workers)}",
    ]
    if "queue" in status:
        parts += [f"queue {status['queue']}", f"memory {size(status['memory'])}"]
    parts.append(f"accepted {status['accepted']}")
    yield Line("  ".join(parts))
    alarms = [*status["overload"]]
    alarms += [f"database {each['host']} is away" for each in status["database"] if each["away"]]
    if alarms:
        yield Line(f"TROUBLE: {', '.join(alarms)}", Style.ALARM)
    if view.history.get("rows"):
        yield from _curves(view, width)
        yield from _reasons(view.history)


def _curves(view: View, width: int) -> Iterator[Line]:
    history = view.history
    wanted = [
        ("accepted/s", _column(history, "accepted"), rate),
        ("refused/s", _refused(history), rate),
        ("received/s", _column(history, "received_bytes"), size),
        ("sessions/s", _column(history, "sessions"), rate),
        ("commit p95", _column(history, "commit_p95"), milliseconds),
        ("rows/commit", _rows_each(history), rate),
    ]
    if any(one.get("role") == "handlers" for one in view.status["workers"]):
        wanted.append(("handled/s", _column(history, "handled"), rate))
    for label, values, say in wanted:
        last = values[-1] if values else None
        shown = "-" if last is None else say(last)
        room = max(0, width - _LABEL - _VALUE - 2)
        yield Line(f"{label:{_LABEL}}{shown:>{_VALUE}}  {sparkline(values, room, view.blocks)}")


def _column(history: Found, name: str) -> list[float | None]:
    """The values of that column, none where the server has no such."""
    if name not in history["columns"]:
        return []
    place = history["columns"].index(name)
    return [row[place] for row in history["rows"]]


def _of_reasons(history: Found) -> dict[str, list[float]]:
    """The columns of refusals, by their words."""
    places = {n: name for n, name in enumerate(history["columns"]) if name.startswith(_REFUSED)}
    return {
        name.removeprefix(_REFUSED): [row[n] for row in history["rows"]]
        for n, name in places.items()
    }


def _refused(history: Found) -> list[float | None]:
    columns = [*_of_reasons(history).values()]
    return [sum(values) for values in zip(*columns, strict=True)]


def _rows_each(history: Found) -> list[float | None]:
    pairs = zip(_column(history, "batch_rows"), _column(history, "commits"), strict=True)
    return [rows / commits if rows and commits else None for rows, commits in pairs]


def _reasons(history: Found) -> Iterator[Line]:
    """Why mail was refused in the last minute, the most frequent first."""
    most = max(1, round(_MINUTE / max(1, history.get("step", 1))))
    means = {
        word: sum(values[-most:]) / len(values[-most:])
        for word, values in _of_reasons(history).items()
    }
    often = sorted(((-mean, word) for word, mean in means.items() if mean), key=lambda one: one)
    said = ", ".join(f"{word} {max(-mean, 0.01):.2f}/s" for mean, word in often)
    yield Line(f"{'refusals':{_LABEL}}{said or 'none in the last minute'}")


def sparkline(values: Sequence[float | None], width: int, blocks: str) -> str:
    """The last `width` of `values` as a character each; " " for None.

    blocks: the first is for 0, the last for the greatest of them.
    """
    shown = values[-width:] if width > 0 else []
    highest = max((value for value in shown if value is not None), default=0) or 1
    steps = len(blocks) - 1
    text = ""
    for value in shown:
        if value is None:
            text += " "
        else:
            text += blocks[min(steps, -int(-value / highest * steps // 1))]
    return text


# ---- tables ------------------------------------------------------------------------------------


def _tables(view: View, room: int, width: int) -> list[Line]:
    """Sessions and the slowest messages, in `room` lines; no head without a row."""
    if "sessions" not in view.sessions:
        return []
    sessions = [*_sessions(view)]
    slowest = [*_slowest(view.sessions.get("slowest", []), width)]
    share = max(room // 3, room - len(sessions))
    slowest = slowest[:share] if min(len(slowest), share) > _HEADS else []
    sessions = sessions[: room - len(slowest)]
    return [*(sessions if len(sessions) > _HEADS else []), *slowest]


def _sessions(view: View) -> Iterator[Line]:
    rows = sorted(view.sessions["sessions"], key=lambda one: _key(one, view.sort))
    yield Line("")
    yield Line(f"SESSIONS  by {'age' if view.sort == 'seconds' else view.sort}", Style.TITLE)
    yield Line(
        f"{'CLIENT':22} {'AGE':>10} {'MAILS':>6} {'OCTETS':>9} TLS LISTENER DOING", Style.DIM
    )
    for one in rows:
        yield Line(
            f"{one['client']:22} {lasting(one['seconds']):>10} {one['messages']:>6}"
            f" {size(one['octets']):>9} {'yes' if one['tls'] else 'no':3} {one['listener']:8}"
            f" {one['doing']}"
        )


def _key(one: Found, sort: str) -> Any:
    return one["client"] if sort == "client" else -one[sort]


def _slowest(rows: Sequence[Found], width: int) -> Iterator[Line]:
    yield Line("")
    yield Line("SLOWEST of the last minute, from the final dot to the reply", Style.TITLE)
    yield Line(f"{'TIME':8} {'DELAY':>9} {'SIZE':>9} {'CLIENT':22} REPLY", Style.DIM)
    for one in rows:
        front = (
            f"{_clock(one['time']):8} {milliseconds(one['delay']):>9} {size(one['size']):>9}"
            f" {one['client']:22} "
        )
        yield Line(front + _reply(one, width - len(front)))


def _reply(one: Found, room: int) -> str:
    """What it heard, in `room` columns. An id is what tells one from another, and its end most."""
    reply, message_id = str(one["reply"]), str(one.get("id", ""))
    if len(reply) <= room or not message_id or not reply.endswith(message_id):
        return reply
    short = f"{reply[:4]}{message_id}"
    cut = len(short) - room
    return short if cut <= 0 else f"{reply[:4]}~{message_id[cut + 1 :]}"


def _clock(moment: float | str) -> str:
    if isinstance(moment, str):
        return moment.removesuffix("Z")[-8:]
    return time.strftime("%H:%M:%S", time.gmtime(moment))
