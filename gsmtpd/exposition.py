"""How does Prometheus read it? The numbers in its text format, under names that do not change.

Made by prometheus_client, which only the status process imports. docs/status.md says what each
means; no name of a mailbox and no address of a client is ever in it.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gsmtpd.metrics import BATCH_ROWS, COMMIT, Counter, Histogram, Overload, Reason

if TYPE_CHECKING:
    from gsmtpd.storage.spool import Figures

CONTENT_TYPE: str = CONTENT_TYPE_LATEST

_RESULTS = {
    "accepted": Counter.ACCEPTED,
    "refused": Counter.REFUSED,
    "discarded": Counter.DISCARDED,
    "duplicate": Counter.DUPLICATES,
}
_COUNTED = {
    "gsmtpd_received_bytes": ("Octets of accepted messages", Counter.RECEIVED_BYTES),
    "gsmtpd_sessions": ("Connections that were taken", Counter.SESSIONS),
    "gsmtpd_spooled": ("Messages that were kept in the spool at first", Counter.SPOOLED),
    "gsmtpd_handled": ("Mails that a handler is done with", Counter.HANDLED),
    "gsmtpd_handler_failures": ("Calls of handlers that failed", Counter.HANDLER_FAILED),
    "gsmtpd_handler_dead": ("Mails that a handler was given up for", Counter.HANDLER_DEAD),
}
_NOW = {
    "gsmtpd_connections": ("Connections that are open", Counter.CLIENTS),
    "gsmtpd_queue_messages": ("Messages that wait for a writer", Counter.QUEUE),
    "gsmtpd_memory_bytes": ("Octets of mail under way, as max_memory counts", Counter.MEMORY),
}
_STATES = ("starting", "serving", "silent", "leaving")


class Facts(NamedTuple):
    """What is told.

    version: of gsmtpd. cells: the totals of the counters, as in a Sample. max_clients: as
    configured. status: the master's answer to `status`, None while it gives none. spool: what
    is in it, None if there is none or it cannot be read. outbox: entries by handler and state, None
    likewise.
    """

    version: str
    cells: Sequence[int]
    max_clients: int
    status: Mapping[str, Any] | None = None
    spool: Figures | None = None
    outbox: Sequence[tuple[str, str, int]] | None = None


def render(facts: Facts) -> bytes:
    """`facts` as CONTENT_TYPE."""
    registry = CollectorRegistry()
    registry.register(_Collector(facts))
    return generate_latest(registry)


class _Collector:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def describe(self) -> list[Metric]:
        """Nothing: it is asked once only."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All there is."""
        facts = self._facts
        yield _labelled("gsmtpd_build_info", "Which version runs", "version", {facts.version: 1})
        yield from _of_cells(facts.cells)
        yield _gauge("gsmtpd_connections_max", "max_clients", facts.max_clients)
        if facts.status is not None:
            yield from _of_status(facts.status)
        if facts.spool is not None:
            yield from _of_spool(facts.spool)
        if facts.outbox is not None:
            yield _of_outbox(facts.outbox)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _labelled(name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _of_cells(cells: Sequence[int]) -> Iterator[Metric]:
    """What all processes have counted."""
    messages = CounterMetricFamily(
        "gsmtpd_messages", "Messages that were answered, by what became of them", labels=["result"]
    )
    for result, counter in _RESULTS.items():
        messages.add_metric([result], cells[counter])
    yield messages
    refusals = CounterMetricFamily(
        "gsmtpd_refusals", "Connections, commands and messages refused", labels=["reason"]
    )
    for reason in Reason:
        refusals.add_metric([reason.word], cells[reason])
    yield refusals
    for name, (about, counter) in _COUNTED.items():
        yield CounterMetricFamily(name, about, value=cells[counter])
    for name, (about, counter) in _NOW.items():
        yield _gauge(name, about, cells[counter])
    yield _histogram("gsmtpd_commit_seconds", "From a batch to its COMMIT", COMMIT, cells)
    yield _histogram("gsmtpd_batch_rows", "Rows that a COMMIT stored", BATCH_ROWS, cells)
    overload = Overload(cells[Counter.OVERLOAD])
    kinds = {kind.name.lower(): float(kind in overload) for kind in Overload if kind.name}
    yield _labelled("gsmtpd_overload", "Whether there is not enough of it", "kind", kinds)


def _histogram(name: str, about: str, histogram: Histogram, cells: Sequence[int]) -> Metric:
    bounds = [*(str(round(float(bound * histogram.unit), 6)) for bound in histogram.bounds), "+Inf"]
    counts = accumulate(histogram.counts(cells))
    family = HistogramMetricFamily(name, about)
    family.add_metric(
        [], [*zip(bounds, counts, strict=True)], sum_value=cells[histogram.sum] * histogram.unit
    )
    return family


def _of_status(status: Mapping[str, Any]) -> Iterator[Metric]:
    """What the master knows. It may be of another version: what it does not say is left out."""
    began, reload = status.get("began", 0.0), status.get("reload")
    yield _gauge("gsmtpd_start_time_seconds", "When the master process began, Unix time", began)
    yield from _of_workers(status.get("workers", []))
    yield CounterMetricFamily(
        "gsmtpd_workers_replaced", "Workers that had died", value=status.get("replaced", 0)
    )
    up = {str(host["host"]): float(not host["away"]) for host in status.get("database", [])}
    yield _labelled(
        "gsmtpd_database_up", "0 for a host that some worker leaves alone now", "host", up
    )
    yield _gauge(
        "gsmtpd_last_reload_ok",
        "Whether the last reload went well; 1 before the first",
        float(reload is None or bool(reload["ok"])),
    )
    yield _gauge(
        "gsmtpd_last_reload_time_seconds",
        "When that was, or when the master began, Unix time",
        began if reload is None else reload["time"],
    )


def _of_workers(workers: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    roles = sorted({"smtp", *(str(one.get("role", "smtp")) for one in workers)})
    states = Tally((str(one.get("role", "smtp")), str(one["state"])) for one in workers)
    family = GaugeMetricFamily("gsmtpd_workers", "Worker processes", labels=["role", "state"])
    for role in roles:
        for state in _STATES:
            family.add_metric([role, state], states[role, state])
    yield family
    resident = dict.fromkeys(roles, 0.0)
    for one in workers:
        resident[str(one.get("role", "smtp"))] += one.get("rss") or 0
    yield _labelled(
        "gsmtpd_worker_resident_bytes", "Memory of all workers of a role", "role", resident
    )


def _of_spool(spool: Figures) -> Iterator[Metric]:
    yield _gauge("gsmtpd_spool_messages", "Messages that wait in the spool", spool.messages)
    yield _gauge("gsmtpd_spool_bytes", "Octets of the spool", spool.octets)
    yield _gauge("gsmtpd_spool_max_bytes", "spool_size", spool.most)
    yield _gauge(
        "gsmtpd_spool_set_aside_messages", "Of them, those the store does not take", spool.aside
    )
    if spool.oldest is not None:
        yield _gauge(
            "gsmtpd_spool_oldest_time_seconds", "When the oldest came, Unix time", spool.oldest
        )


def _of_outbox(outbox: Sequence[tuple[str, str, int]]) -> Metric:
    family = GaugeMetricFamily(
        "gsmtpd_outbox_entries", "What handlers have still to do", labels=["handler", "state"]
    )
    for handler, state, count in outbox:
        family.add_metric([handler, state], count)
    return family
