"""Does a running gsmtpd know its numbers: rates, commits, reasons, sessions and events?"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gsmtpd.control import ControlError, ask
from gsmtpd.metrics import Reason
from gsmtpd.workers import SILENT_AFTER
from tests.accounting import Client, Mail, send, with_token
from tests.servers import Gsmtpd, MariaDB, free_port, mysql_store, wait_for


def asked(server: Gsmtpd, command: str, about: str = "") -> dict[str, Any]:
    return ask(str(server.path / "control"), command, 10, about)


def reasons(server: Gsmtpd) -> dict[str, int]:
    """What was refused, and why."""
    told: dict[str, int] = asked(server, "status")["reasons"]
    return {word: count for word, count in told.items() if count}


def table(server: Gsmtpd, about: str = "") -> list[dict[str, Any]]:
    """The history, each row by its columns."""
    told = asked(server, "history", about)
    return [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]


def refused(client: Client, recipient: str) -> None:
    """Ask for a recipient that is not served."""
    assert client.command("MAIL FROM:<a@example.org>").code == 250
    assert client.command(f"RCPT TO:<{recipient}>").code == 550
    assert client.command("RSET").code == 250


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds at last."""
    found: list[Any] = []
    wait_for(lambda: bool(found.append(look()) or found[-1]))
    return found[-1]


@pytest.fixture(scope="module")
def running() -> Iterator[Gsmtpd]:
    with Gsmtpd({"server": {"processes": 2}}) as server:
        yield server


def counts_what_it_stores(server: Gsmtpd) -> None:
    send(server.address, *(with_token(recipients=["b@example.com", "c@example.com"]),) * 3)
    now = asked(server, "status")
    assert (now["accepted"], now["spooled"], now["duplicates"]) == (3, 0, 0)
    assert now["sessions_total"] >= 1
    assert (now["queue"], now["memory"]) == (0, 0)
    assert now["max_memory"] == 256 * 1024 * 1024
    assert all(worker["rss"] > 10**6 for worker in now["workers"])
    later = until(lambda: told if (told := asked(server, "status"))["commit"]["count"] else None)
    assert 1 <= later["commit"]["count"] <= 3
    assert 0 < later["commit"]["median"] <= later["commit"]["p95"] < 10
    assert later["commit"]["rows_mean"] * later["commit"]["count"] == pytest.approx(6)
    assert later["rates"]["300"]["accepted"] > 0
    assert [*later["rates"]] == ["10", "60", "300"]


def test_with_sqlite() -> None:
    with Gsmtpd() as server:
        counts_what_it_stores(server)


def test_with_mariadb_over_lanes(mariadb: MariaDB, schema: str) -> None:
    with Gsmtpd(mysql_store(mariadb, schema)) as server:
        counts_what_it_stores(server)


def test_duplicates_and_spooled_are_counted() -> None:
    with Gsmtpd({"store": {"dedupe_window": "1h"}}) as server:
        mail = with_token()
        send(server.address, mail)
        send(server.address, mail)
        now = asked(server, "status")
        assert (now["accepted"], now["duplicates"]) == (2, 1)


def test_why_mail_was_refused(running: Gsmtpd) -> None:
    before = reasons(running)

    def more() -> dict[str, int]:
        return {
            word: count - before.get(word, 0)
            for word, count in reasons(running).items()
            if count != before.get(word, 0)
        }

    with Client(running.address) as client:
        client.hello()
        refused(client, "x@example.net")
        assert more() == {"relay": 1}
        assert client.command("MAIL FROM:<a@b.example> SIZE=999999999999").code == 552
        assert client.command("RCPT TO:<b@example.com>").code == 503
        assert more() == {"relay": 1, "too_big": 1, "syntax": 1}
        looped = Mail(b"Received: x\r\n" * 101 + b"Subject: x\r\n\r\nx\r\n")
        assert client.deliver(looped).code == 554
        wait_for(lambda: more() == {"relay": 1, "too_big": 1, "syntax": 1, "loop": 1})


@pytest.mark.parametrize(
    ("sections", "says", "word"),
    [
        ({"clients": {"deny": "127.0.0.2"}}, b"554 ", "client_denied"),
        ({"limits": {"max_clients_per_ip": 1}}, b"421 ", "too_many_from_you"),
        ({"limits": {"max_clients": 1}}, b"421 ", "too_many_clients"),
    ],
)
def test_who_was_sent_away_is_counted_once(
    sections: dict[str, Any], says: bytes, word: str
) -> None:
    with Gsmtpd(sections) as server:
        wait_for(lambda: asked(server, "status")["clients"] == 0)
        host = "127.0.0.2" if word == "client_denied" else "127.0.0.1"
        with (
            Client(server.address) as first,
            socket.create_connection(server.address, 10, (host, 0)) as guest,
        ):
            first.hello()
            assert guest.recv(1000).startswith(says)
        assert reasons(server) == {word: 1}
        now = asked(server, "status")
        assert now["denied"] + now["crowded"] + now["turned_away"] == 1


def test_who_is_one_too_many_behind_a_proxy_is_counted_once() -> None:
    behind = "127.0.0.1", free_port()
    listener = {"address": f"127.0.0.1:{behind[1]}", "proxy_from": "127.0.0.1"}
    settings = {"listen": {"balanced": listener}, "limits": {"max_clients_per_ip": 1}}
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 25\r\n"
    with Gsmtpd(settings) as server, Client(behind) as first:
        first.send(header)
        first.hello()
        with Client(behind) as second:
            second.send(header)
            assert second.reply().code == 421
        wait_for(lambda: reasons(server) == {"too_many_from_you": 1})
        assert asked(server, "status")["crowded"] == 1


def test_a_timeout_is_a_reason() -> None:
    with Gsmtpd({"limits": {"timeout": 1}}) as server:
        with Client(server.address) as client:
            client.hello()
            assert client.reply().code == 421
        wait_for(lambda: reasons(server) == {"timeout": 1})


def test_what_a_dead_worker_counted_stays() -> None:
    with Gsmtpd() as server:
        send(server.address, with_token())
        with Client(server.address) as client:
            client.hello()
            refused(client, "x@example.net")
            wait_for(lambda: asked(server, "status")["commit"]["count"] == 1)
        [worker] = server.workers
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: asked(server, "status")["replaced"] == 1)
        now = asked(server, "status")
        assert (now["accepted"], now["sessions_total"] > 0) == (1, True)
        assert now["reasons"]["relay"] == now["commit"]["count"] == 1


# --- history --------------------------------------------------------------------------------------


def test_history_moves(running: Gsmtpd) -> None:
    until(lambda: len(table(running)) >= 2)
    send(running.address, *[with_token(1000) for _ in range(20)])
    rows = until(lambda: rows if any((rows := table(running))[-1].values()) else None)
    wait_for(lambda: sum(row["accepted"] for row in table(running)) > 10)
    wait_for(lambda: any(row["commit_p95"] for row in table(running)))
    rows = table(running)
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert sum(row["received_bytes"] for row in rows) > 10_000
    busy = next(row for row in rows if row["commits"])
    assert busy["commit_seconds"] > 0
    assert busy["batch_rows"] >= busy["commits"]
    assert {f"refused:{reason.word}" for reason in Reason} < {*rows[0]}


def test_history_in_steps(running: Gsmtpd) -> None:
    until(lambda: len(table(running)) >= 4)
    fine, coarse = table(running), table(running, "300 2")
    assert len(coarse) <= (len(fine) + 1) // 2 + 1
    # The same moments, however often it is asked.
    assert {row["time"] for row in coarse[:-1]} <= {row["time"] for row in table(running)}


def test_who_only_counts_is_not_taken_for_silent(running: Gsmtpd) -> None:
    """The store's row has no beats."""
    until(lambda: len(table(running)) > SILENT_AFTER)
    assert {one["state"] for one in asked(running, "status")["workers"]} == {"serving"}


@pytest.mark.parametrize("about", ["x", "1 2 3", "0", "10 0"])
def test_history_of_nothing(running: Gsmtpd, about: str) -> None:
    with pytest.raises(ControlError, match="SECONDS and STEP"):
        asked(running, "history", about)


def test_an_hour_of_history_is_not_too_much(running: Gsmtpd) -> None:
    until(lambda: table(running))
    [row] = asked(running, "history", "3600 1")["rows"][:1]
    assert len(json.dumps(row)) * 3600 < 2**20


# --- sessions -------------------------------------------------------------------------------------


def test_sessions_and_the_slowest(running: Gsmtpd) -> None:
    with Client(running.address) as client:
        client.hello()
        mail = with_token(5000)
        queued = client.deliver(mail).id
        found = until(
            lambda: [
                each for each in asked(running, "sessions")["sessions"] if each["messages"] == 1
            ]
        )
        [session] = found
        assert session["client"] == "127.0.0.1"
        assert (session["listener"], session["tls"], session["doing"]) == ("mx", "", "READY")
        assert session["octets"] > 5000
        assert 0 <= session["seconds"] < 60
        slowest = asked(running, "sessions")["slowest"]
        assert [each["delay"] for each in slowest] == sorted(
            (each["delay"] for each in slowest), reverse=True
        )
        mine = [each for each in slowest if each["id"] == queued]
        assert mine == [] or (mine[0]["size"], mine[0]["client"]) == (5000, "127.0.0.1")
    wait_for(lambda: session not in asked(running, "sessions")["sessions"])
    wait_for(
        lambda: not any(each["messages"] == 1 for each in asked(running, "sessions")["sessions"])
    )


def test_a_message_that_took_long_is_the_slowest(mariadb: MariaDB, schema: str) -> None:
    with Gsmtpd(mysql_store(mariadb, schema)) as server, Client(server.address) as client:
        client.hello()
        client.deliver(with_token())
        assert client.begin(mail := with_token(700)).code == 354
        with locked(mariadb, schema):
            client.send(mail.content + b".\r\n")
            wait_for(lambda: storing(server))
        queued = client.reply().id
        slowest = until(
            lambda: ([e for e in asked(server, "sessions")["slowest"] if e["id"] == queued])
        )
        assert slowest[0]["size"] == 700
        assert slowest[0]["reply"].startswith("250 ")
        assert asked(server, "sessions")["slowest"][0]["id"] == queued


def storing(server: Gsmtpd) -> bool:
    told = asked(server, "sessions")["sessions"]
    return any(each["doing"].startswith("storing") for each in told)


@contextlib.contextmanager
def locked(mariadb: MariaDB, schema: str) -> Iterator[None]:
    """Nothing is stored meanwhile."""
    with mariadb.connect(database=schema) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES new_mail READ")
        yield
        cursor.execute("UNLOCK TABLES")


# --- events ---------------------------------------------------------------------------------------


def test_events_as_they_come(running: Gsmtpd) -> None:
    begun = asked(running, "events")
    assert begun["events"] == []
    with Client(running.address) as client:
        client.hello()
        for name in ("one", "two"):
            refused(client, f"{name}@example.net")
        position, found = begun["position"], []
        while len(found) < 2:
            told = asked(running, "events", position)
            found += told["events"]
            assert told["lost"] == 0
            position = told["position"]
    assert [(each["result"], each["to"]) for each in found] == [
        ("refused", "one@example.net"),
        ("refused", "two@example.net"),
    ]
    assert "keys" not in found[0]
    assert asked(running, "events", position)["events"] == []


def test_no_position(running: Gsmtpd) -> None:
    with pytest.raises(ControlError, match="position"):
        asked(running, "events", "yesterday")


def test_what_can_be_asked_is_said(running: Gsmtpd) -> None:
    with pytest.raises(ControlError, match="status, why, sessions, events, history, reload and"):
        asked(running, "beer")
