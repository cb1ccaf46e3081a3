"""How is a status said to people? On one screen, also that of a server that knows less."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from gsmtpd.ctl_words import lasting, milliseconds, rate, size, when

_WIDTH = 79  # characters
_INDENT = " " * 12
_MOST_WORKERS = 6  # lines
_MOST_REASONS = 5
_SPANS = (("10", "10 s"), ("60", "1 min"), ("300", "5 min"))
_RATES = ("accepted", "refused", "received_bytes", "sessions", "commits")

Found = dict[str, Any]


def said(status: Found) -> Iterator[str]:
    """The status for people, as lines."""
    yield f"gsmtpd {status['version']}, process {status['pid']}, {status['state']}"
    yield f"Since:      {when(status['began'])}, {lasting(time.time() - status['began'])}"
    yield f"Config:     {status['config']}"
    listening = (f"{each['address']} ({each['name']})" for each in status["listeners"])
    yield from _wrapped("Listening:  ", ", ".join(listening) or "no more")
    yield from _workers(status["workers"])
    yield f"Replaced:   {status['replaced']} workers that had died"
    yield from _clients(status)
    yield from _rates(status)
    yield from _databases(status)
    yield f"Overload:   {', '.join(status['overload']) or 'none'}"
    yield from _messages(status)
    yield from _waiting(status)
    yield from _reload(status["reload"])


def _wrapped(label: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent=label, subsequent_indent=_INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


# ---- the server --------------------------------------------------------------------------------


def _workers(workers: list[Found]) -> Iterator[str]:
    for role, group in groupby(workers, lambda one: str(one.get("role", "smtp"))):
        ones = [*group]
        shown = ones if len(ones) <= _MOST_WORKERS else ones[: _MOST_WORKERS - 1]
        label = "Worker:" if role == "smtp" else f"{role.capitalize()}:"
        for one in shown:
            yield f"{label:12}{_worker(one, role)}"
        if left := ones[len(shown) :]:
            clients, accepted = (sum(one[name] for one in left) for name in _COUNTED)
            yield f"{_INDENT}and {len(left)} more, clients: {clients}, accepted: {accepted}"


_COUNTED = ("clients", "accepted")


def _worker(one: Found, role: str) -> str:
    parts = [f"{one['pid']}", one["state"], lasting(one["seconds"])]
    if role == "smtp":
        parts += [f"{name}: {one[name]}" for name in _COUNTED]
    if one.get("rss"):
        parts.append(size(one["rss"]))
    return ", ".join(parts)


def _clients(status: Found) -> Iterator[str]:
    so_far = f", {status['sessions_total']} sessions so far" if "sessions_total" in status else ""
    yield f"Clients:    {status['clients']} of {status['max_clients']}{so_far}"
    yield (
        f"Sent away:  {status['turned_away']} (max_clients),"
        f" {status['crowded']} (max_clients_per_ip), {status['denied']} (deny)"
    )


def _rates(status: Found) -> Iterator[str]:
    """How it went lately, where the server says so."""
    if rates := status.get("rates"):
        names = [name.removesuffix("_bytes") for name in _RATES]
        yield f"{'A second:':12}" + "".join(f"{name:>10}" for name in names)
        for key, span in _SPANS:
            if key in rates:
                yield f"  {span:10}" + "".join(f"{_rate(rates[key], n):>10}" for n in _RATES)
    if commit := status.get("commit"):
        yield f"Commits:    {_commit(commit)}"
    if "queue" in status:
        most = status.get("max_memory")
        of = f" of {size(most)} a process" if most else ""
        yield f"Under way:  {status['queue']} messages wait, {size(status['memory'])}{of}"


def _rate(rates: Found, name: str) -> str:
    value = rates.get(name, 0)
    return size(value) if name == "received_bytes" else rate(value)


def _commit(commit: Found) -> str:
    if not commit["count"]:
        return "none in the last 5 min"
    mean = commit.get("rows_mean") or 0
    return (
        f"median {milliseconds(commit['median'])}, 95 % within"
        f" {milliseconds(commit['p95'])}, {rate(mean)} rows each"
    )


def _messages(status: Found) -> Iterator[str]:
    yield (
        f"Messages:   {status['accepted']} accepted ({status['received_bytes']} bytes),"
        f" {status['refused']} refused, {status['discarded']} discarded"
    )
    if reasons := status.get("reasons"):
        often = sorted((-number, word) for word, number in reasons.items() if number)
        text = ", ".join(f"{word} {-number}" for number, word in often[:_MOST_REASONS])
        more = f" and {len(often) - _MOST_REASONS} more" if len(often) > _MOST_REASONS else ""
        yield from _wrapped("Refusals:   ", f"{text or 'none'}{more}")
    if any(one.get("role") == "handlers" for one in status["workers"]):
        yield (
            f"Handled:    {status['handled']} mails; {status['handler_failed']} tries failed,"
            f" {status['handler_dead']} given up"
        )


# ---- beside it ---------------------------------------------------------------------------------


def _databases(status: Found) -> Iterator[str]:
    for host in status["database"]:
        parts = [host["host"]]
        if host["away"]:
            parts.append("away: it is left alone")
        if host.get("answers"):
            parts += [f"answers in {milliseconds(host['seconds'])}", host["version"]]
        yield from _wrapped("Database:   ", ", ".join(parts))
        if host.get("problem"):
            yield from _wrapped(_INDENT, f"does not answer: {host['problem']}")
        settings = (f"{name} = {value}" for name, value in (host.get("settings") or {}).items())
        yield from _wrapped(_INDENT, ", ".join(settings))
        for risk in host.get("risks") or ():
            yield from _wrapped(_INDENT, f"RISK: {risk}")
    if problem := status.get("config_problem"):
        yield from _wrapped("Database:   ", f"not asked: {problem}")


def _waiting(status: Found) -> Iterator[str]:
    yield from _wrapped("Spool:      ", _spool(status.get("spool")))
    if (outbox := status.get("outbox")) is not None:
        yield from _wrapped("Outbox:     ", _outbox(outbox))


def _spool(found: Found | None) -> str:
    if found is None:
        return "off"
    if "error" in found:
        return f"unknown: {found['error']}"
    if not found["messages"]:
        return "empty"
    parts = [f"{found['messages']} messages", f"{size(found['octets'])} of {size(found['most'])}"]
    if found["oldest"] is not None:
        parts.append(f"oldest {lasting(max(0.0, time.time() - found['oldest']))}")
    if found["aside"]:
        parts.append(f"{found['aside']} set aside")
    return ", ".join(parts)


def _outbox(found: Found) -> str:
    if "error" in found:
        return f"unknown: {found['error']}"
    said = (f"{one['handler']}: {one['number']} {one['state']}" for one in found["counts"])
    return ", ".join(said) or "empty"


def _reload(reload: Found | None) -> Iterator[str]:
    if reload is None:
        yield "Reload:     none yet"
        return
    yield f"Reload:     {when(reload['time'])}, {'done' if reload['ok'] else 'refused:'}"
    for problem in reload["problems"]:
        yield f"{_INDENT}{problem}"
