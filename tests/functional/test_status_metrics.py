"""Does Prometheus hear what is so, whatever processes die and are replaced?"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from tests.accounting import Mail, send
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for
from tests.status_client import Status, served


def samples(status: Status) -> dict[str, float]:
    """All that /metrics says: NAME{LABEL=VALUE,…} → value."""
    answer = status.ask("/metrics")
    assert answer.status == 200
    families = text_string_to_metric_families(answer.body.decode())
    return dict(_named(families))


def _named(families: object) -> Iterator[tuple[str, float]]:
    for family in families:  # type: ignore[attr-defined]
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            yield sample.name + (f"{{{labels}}}" if labels else ""), sample.value


def accepted(status: Status) -> float:
    return samples(status)["gsmtpd_messages_total{result=accepted}"]


def send_some(daemon: Gsmtpd, count: int) -> None:
    for _ in range(count):
        assert [r.code for r in send(daemon.address, Mail(b"x\r\n", ("a@example.com",)))] == [250]


def kill(daemon: Gsmtpd, role: str) -> None:
    """Kill a process that does that, and wait until another has taken its place."""
    pid = next(each["pid"] for each in daemon.status()["workers"] if each["role"] == role)
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        workers = [each for each in daemon.status()["workers"] if each["role"] == role]
        return all(each["pid"] != pid and each["state"] == "serving" for each in workers)

    wait_for(replaced)


def test_what_workers_have_counted_outlives_them() -> None:
    with MariaDB() as database:
        make_schema(database, "counted")
        store = mysql_store(database, "counted")
        with served(store | {"server": {"processes": 2}}) as (daemon, status):
            send_some(daemon, 5)
            wait_for(lambda: accepted(status) == 5)
            kill(daemon, "smtp")
            kill(daemon, "smtp")
            kill(daemon, "status")
            wait_for(lambda: status.ask("/healthz").status == 200)
            send_some(daemon, 4)
            wait_for(lambda: accepted(status) == 9)
            daemon.ctl("reload")
            send_some(daemon, 2)
            wait_for(lambda: accepted(status) == 11)
            said = samples(status)
            assert said["gsmtpd_workers_replaced_total"] == 3
            assert said["gsmtpd_batch_rows_sum"] == 11
            assert said["gsmtpd_commit_seconds_count"] == said["gsmtpd_batch_rows_count"] <= 11
            assert said["gsmtpd_commit_seconds_bucket{le=+Inf}"] == said["gsmtpd_batch_rows_count"]
            assert said["gsmtpd_workers{role=smtp,state=serving}"] == 2
            assert [v for k, v in said.items() if k.startswith("gsmtpd_database_up")] == [1]


def test_no_counter_falls_while_workers_die() -> None:
    """A fall is a restart to Prometheus, which then counts all that was before once more."""
    with served({"server": {"processes": 3}}) as (daemon, status):
        send_some(daemon, 20)
        wait_for(lambda: accepted(status) == 20)
        for _ in range(4):
            kill(daemon, "smtp")
            assert accepted(status) == 20


def test_refusals_have_their_reasons() -> None:
    with served({"domains": {"accept": "example.com"}}) as (daemon, status):
        mail = Mail(b"x\r\n", ("a@elsewhere.example",))
        assert [reply.code for reply in send(daemon.address, mail)] == [550]
        wait_for(lambda: samples(status)["gsmtpd_refusals_total{reason=relay}"] == 1)
        assert "elsewhere" not in status.ask("/metrics").body.decode()
