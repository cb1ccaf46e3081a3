"""Does /metrics tell what is so, and do the alerts and the dashboard name nothing else?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from gsmtpd.exposition import CONTENT_TYPE, Facts, render
from gsmtpd.metrics import BATCH_ROWS, BITS, CELLS, COMMIT, Counter, Counters, Reason, StoreMeter
from gsmtpd.storage.spool import Figures

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"
ALERTS, DASHBOARD = CONTRIB / "prometheus/alerts.yml", CONTRIB / "grafana/gsmtpd.json"
OF_PROMETHEUS = {"instance", "job", "le"}

STATUS: dict[str, Any] = {
    "began": 1000.0,
    "workers": [
        {"role": "smtp", "state": "serving", "rss": 1000},
        {"role": "smtp", "state": "silent", "rss": 200},
        {"role": "handlers", "state": "serving", "rss": None},
    ],
    "replaced": 4,
    "database": [{"host": "db1:3306", "away": False}, {"host": "db2:3306", "away": True}],
    "reload": {"time": 2000.0, "ok": False},
}
FULL = Facts(
    "1.2", [*range(CELLS)], 1000, STATUS, Figures(5, 600, 7000, 800.0, 1), [("x", "dead", 3)]
)

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def exported(facts: Facts) -> Found:
    """Each sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parsed(render(facts).decode())
        for sample in family.samples
    }


def value(found: Found, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_what_was_counted() -> None:
    found = exported(FULL)
    for result in ("accepted", "refused", "discarded"):
        expected = Counter[result.upper()]
        assert value(found, "gsmtpd_messages_total", result=result) == expected
    assert value(found, "gsmtpd_messages_total", result="duplicate") == Counter.DUPLICATES
    for reason in Reason:
        assert value(found, "gsmtpd_refusals_total", reason=reason.word) == reason
    for name, counter in (
        ("gsmtpd_received_bytes_total", Counter.RECEIVED_BYTES),
        ("gsmtpd_sessions_total", Counter.SESSIONS),
        ("gsmtpd_connections", Counter.CLIENTS),
        ("gsmtpd_queue_messages", Counter.QUEUE),
        ("gsmtpd_memory_bytes", Counter.MEMORY),
        ("gsmtpd_handled_total", Counter.HANDLED),
        ("gsmtpd_handler_failures_total", Counter.HANDLER_FAILED),
        ("gsmtpd_handler_dead_total", Counter.HANDLER_DEAD),
    ):
        assert value(found, name) == counter
    assert value(found, "gsmtpd_connections_max") == 1000
    assert value(found, "gsmtpd_build_info", version="1.2") == 1
    # OVERLOAD is 9: CLIENTS and DESCRIPTORS.
    kinds = {"clients": 1, "clients_per_ip": 0, "memory": 0, "descriptors": 1}
    assert kinds == {kind: value(found, "gsmtpd_overload", kind=kind) for kind in kinds}


def test_histograms() -> None:
    row = Counters(2).row(1)
    meter = StoreMeter(row)
    for rows, seconds in ((1, 0.0009), (7, 0.003), (5000, 20.0)):
        meter.stored(rows, seconds)
    found = exported(FULL._replace(cells=row))
    buckets = [
        value(found, "gsmtpd_commit_seconds_bucket", le=le)
        for le in ("0.001", "0.0025", "0.005", "10.0", "+Inf")
    ]
    assert buckets == [1, 1, 2, 2, 3]
    assert value(found, "gsmtpd_commit_seconds_sum") == pytest.approx(20.0039)
    assert value(found, "gsmtpd_commit_seconds_count") == 3
    assert value(found, "gsmtpd_batch_rows_sum") == 5008
    assert value(found, "gsmtpd_batch_rows_bucket", le="10.0") == 2
    for name, histogram in (("commit_seconds", COMMIT), ("batch_rows", BATCH_ROWS)):
        named = [key for key in found if key[0] == f"gsmtpd_{name}_bucket"]
        assert len(named) == len(histogram.bounds) + 1


def test_what_the_master_says() -> None:
    found = exported(FULL)
    assert value(found, "gsmtpd_start_time_seconds") == 1000
    assert value(found, "gsmtpd_workers", role="smtp", state="serving") == 1
    assert value(found, "gsmtpd_workers", role="smtp", state="silent") == 1
    assert value(found, "gsmtpd_workers", role="handlers", state="leaving") == 0
    assert value(found, "gsmtpd_worker_resident_bytes", role="smtp") == 1200
    assert value(found, "gsmtpd_worker_resident_bytes", role="handlers") == 0
    assert value(found, "gsmtpd_workers_replaced_total") == 4
    assert value(found, "gsmtpd_database_up", host="db1:3306") == 1
    assert value(found, "gsmtpd_database_up", host="db2:3306") == 0
    assert value(found, "gsmtpd_last_reload_ok") == 0
    assert value(found, "gsmtpd_last_reload_time_seconds") == 2000
    before = exported(FULL._replace(status=STATUS | {"reload": None, "workers": []}))
    assert value(before, "gsmtpd_last_reload_ok") == 1
    assert value(before, "gsmtpd_last_reload_time_seconds") == 1000
    assert value(before, "gsmtpd_workers", role="smtp", state="serving") == 0


def test_spool_and_outbox() -> None:
    found = exported(FULL)
    assert value(found, "gsmtpd_spool_messages") == 5
    assert value(found, "gsmtpd_spool_bytes") == 600
    assert value(found, "gsmtpd_spool_max_bytes") == 7000
    assert value(found, "gsmtpd_spool_oldest_time_seconds") == 800
    assert value(found, "gsmtpd_spool_set_aside_messages") == 1
    assert value(found, "gsmtpd_outbox_entries", handler="x", state="dead") == 3


def test_what_is_not_known_is_left_out() -> None:
    names = {name for name, _ in exported(Facts("1", [0] * CELLS, 5))}
    assert "gsmtpd_messages_total" in names
    assert not [name for name in names if re.search("spool_b|outbox|workers|start|reload", name)]
    empty = FULL._replace(status={}, spool=Figures(0, 0, 1, None, 0), outbox=[])
    assert ("gsmtpd_spool_oldest_time_seconds", frozenset()) not in exported(empty)


def test_the_format() -> None:
    text = render(FULL).decode()
    assert CONTENT_TYPE.startswith("text/plain; version=")
    for family in parsed(text):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert family.name.startswith("gsmtpd_")
    assert "_created" not in text


def test_every_counter_is_told() -> None:
    """But for what is no number for people, or is a refusal told by its reason."""
    shown = {*exported(FULL).values()}
    untold = {
        Counter.BEATS,
        Counter.TURNED_AWAY,
        Counter.DENIED,
        Counter.CROWDED,
        *BITS,
    }
    assert {*Counter} - untold <= shown


# --- contrib --------------------------------------------------------------------------------------


def expressions() -> Iterator[tuple[str, str]]:
    """What the dashboard and the alerts ask for, each with the labels that it is shown by."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]
    for rule in ALERTS.read_text().split("- alert:")[1:]:
        asked, _, shown = rule.partition("annotations:")
        yield asked.partition("expr:")[2].partition("labels:")[0], shown


CASES = [*expressions()]


@pytest.mark.parametrize(("asked", "shown"), CASES, ids=[asked.strip()[:60] for asked, _ in CASES])
def test_contrib_names_what_is_exported(asked: str, shown: str) -> None:
    found = exported(FULL)
    names = {name for name, _ in found}
    used = re.findall(r"\b(gsmtpd_\w+)(?:\{([^}]*)\})?", asked)
    assert used or asked.strip().startswith("up{")
    known = {*OF_PROMETHEUS}
    for name, matchers in used:
        assert name in names
        series = [dict(labels) for each, labels in found if each == name]
        known |= {label for labels in series for label in labels}
        for label, operator, wanted in re.findall(r'(\w+)(=~?)"([^"]*)"', matchers):
            assert label in known
            for one in wanted.split("|") if operator == "=~" else [wanted]:
                values = {labels.get(label) for labels in series}
                assert one in values or label in OF_PROMETHEUS
    grouped = re.findall(r"by \(([^)]*)\)", asked)
    named = re.findall(r"\$labels\.(\w+)|\{\{(\w+)\}\}", shown)
    labels = {each.strip() for group in grouped for each in group.split(",")}
    assert labels | {one or other for one, other in named} <= known


def test_the_dashboard_is_one() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    places = [panel["gridPos"] for panel in panels]
    taken = {
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    }
    assert len(taken) == sum(at["w"] * at["h"] for at in places)  # none covers another
    assert max(x for x, _ in taken) < 24
