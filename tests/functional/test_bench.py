"""Does scripts/bench notice what goes wrong, and is what it writes what it reads?

No time is asserted, but that what was made to wait has waited.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scripts.benchlib import command, goals, growth, naive, plot
from scripts.benchlib.far import ROUND_TRIP
from scripts.benchlib.idle import measure_idle
from scripts.benchlib.latency import Pace, Paced, pace, quantile
from scripts.benchlib.peers import PEERS, Builder, Naive, Options, Peer
from scripts.benchlib.report import print_report
from scripts.benchlib.results import Idle, Results, Start, from_files, to_json
from scripts.benchlib.rounds import Amount, Bench, rotated
from scripts.benchlib.runs import Run, Wait, measure
from scripts.benchlib.scenarios import Scenario, lines, scenario
from scripts.benchlib.start import measure_starts
from scripts.benchlib.stores import SQLiteTable
from tests.servers import (
    Gsmtpd,
    MariaDB,
    MissingProgramError,
    ServerError,
    find_program,
    wait_for,
)

ONE = Scenario(4096, many=False, sessions=4)
MANY = Scenario(4096, many=True, sessions=4)
TINY = ("--rounds", "1", "--messages", "20", "--processes", "1", "--sessions", "4")


@pytest.fixture(autouse=True)
def _smtp_source() -> None:
    find_program("smtp-source")


def bench(*arguments: object, builders: dict[str, Builder] = PEERS) -> int:
    """scripts/bench with these arguments; its exit status."""
    return command.run(command.parser().parse_args([*map(str, arguments)]), builders)


def started(name: str, stack: ExitStack) -> Peer:
    """A running peer, in one process."""
    peer = PEERS[name](Options("1"), lambda: pytest.fail("there is no database"))
    stack.enter_context(peer.server)
    return peer


class Slow:
    """A store that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.kept: list[naive.Row] = []
        self._seconds = seconds

    def insert(self, row: naive.Row) -> None:
        """Keep it, after a while."""
        time.sleep(self._seconds)
        self.kept.append(row)


@contextlib.contextmanager
def serving(pool: Any, session: type[naive.Session] = naive.Session) -> Iterator[int]:
    """The naive server in a thread; its port."""
    handler = type("Handler", (session,), {"pool": pool})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = naive.ThreadingServer(listener, handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


# --- a whole run ----------------------------------------------------------------------------------


def test_a_run_from_end_to_end(
    tmp_path: Path, mariadb: MariaDB, capsys: pytest.CaptureFixture[str]
) -> None:
    file, again = tmp_path / "a.json", tmp_path / "b.json"
    builders = {name: _with(mariadb, build) for name, build in PEERS.items()}
    peers = "smtp-sink,gsmtpd-sqlite,gsmtpd-mariadb"
    asked = ("--peers", peers, "--scenarios", "4k-one-64", "--waits", 1, "--json", file)
    assert bench(*TINY, *asked, builders=builders) == 0
    shown = capsys.readouterr().out
    results = from_files([file])
    assert [run.peer for run in results.runs] != peers.split(",")  # who is first changes
    assert sorted(run.peer for run in results.runs) == sorted(peers.split(","))
    for run in results.runs:
        assert run.rows == (None if run.peer == "smtp-sink" else 20)
        assert run.server_cpu > 0 and run.rss >= run.pss > 0 and run.peak >= run.rss / 2
        assert (run.database_cpu is not None) == run.peer.endswith("mariadb")
    assert len(results.waits) == 3
    for wait in results.waits:
        reached = results.runs_of(wait.peer, "4k-one")[1].rate
        assert wait.rate == pytest.approx(reached / 2)
        assert 0 < wait.p50 <= wait.p99 <= wait.most
    assert bench("--from", file, "--json", again) == 0
    assert capsys.readouterr().out == shown  # what is read gives the same tables and goals
    assert again.read_text() == file.read_text()


def test_a_database_far_away(tmp_path: Path, mariadb: MariaDB) -> None:
    file = tmp_path / "a.json"
    builders = {name: _with(mariadb, build) for name, build in PEERS.items()}
    asked = ("--peers", "gsmtpd-mariadb-far", "--scenarios", "4k-one", "--waits", 1)
    assert bench(*TINY, *asked, "--json", file, builders=builders) == 0
    results = from_files([file])
    assert [run.rows for run in results.runs] == [20]
    (wait,) = results.waits
    assert wait.p50 > 2 * ROUND_TRIP  # for the INSERT, and for the COMMIT


def _with(database: MariaDB, build: Builder) -> Builder:
    """The builder with the database of the tests in place of a new one."""
    return lambda options, _: build(options, lambda: database)


def _liar(_options: Options, _database: Any) -> Peer:
    """Says 250 to everything, and keeps nothing."""
    server = Naive("socketserver", 1)
    path = server.path / "mail.db"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE mail (id INTEGER PRIMARY KEY)")
    return Peer("liar", server, SQLiteTable(path, "mail"))


def _forgetful(options: Options, database: Any) -> Peer:
    """A gsmtpd that loses each seventh message behind its back."""
    peer = PEERS["gsmtpd-sqlite"](options, database)
    assert isinstance(peer.server, Gsmtpd)
    peer.server.ctl("init-db", "--apply")
    with contextlib.closing(sqlite3.connect(peer.server.mail_db)) as file:
        file.execute(
            "CREATE TRIGGER lose AFTER INSERT ON new_mail WHEN NEW.mail_id % 7 = 0"
            " BEGIN DELETE FROM new_mail WHERE mail_id = NEW.mail_id; END"
        )
    return Peer("forgetful", peer.server, peer.store)


def test_a_peer_that_loses_mail_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builders = {"smtp-sink": PEERS["smtp-sink"], "liar": _liar, "forgetful": _forgetful}
    monkeypatch.setattr(command, "PEERS", builders)
    asked = ("--peers", "smtp-sink,liar,forgetful", "--scenarios", "4k-many", "--waits", 0)
    assert bench(*TINY, *asked, builders=builders) == 1
    shown = capsys.readouterr().out
    assert "FAILED liar: 4 KB" in shown and "20 messages were sent, 0 rows are there" in shown
    assert "FAILED forgetful: 4 KB" in shown and "20 messages were sent, 18 rows" in shown
    assert "smtp-sink" in shown.partition("FAILED")[0]  # the others go on


@pytest.mark.parametrize("kind", ["aiosmtpd", "socketserver"])
def test_the_naive_peers_keep_each_message(kind: str, mariadb: MariaDB) -> None:
    if kind == "aiosmtpd":
        pytest.importorskip("aiosmtpd")
    peer = PEERS[f"{kind}-mariadb"](Options("2"), lambda: mariadb)
    with peer.server:
        assert len(peer.server.pids()) == 2
        pace(peer.server.port, ONE, Pace(20))
        schema = next(part for part in peer.server.command() if "--database" in part)
        rows = mariadb.query(
            "SELECT sender, recipients, message FROM mail", database=schema.partition("=")[2]
        )
        assert {row[:2] for row in rows} == {("a@example.org", "b@example.com")}
        assert all(row[2].endswith(b"\r\n\r\n" + lines(4096, text=False)) for row in rows)
        assert len(rows) == 20
        assert peer.store is not None
        peer.store.clear()
        assert measure(peer, MANY, 20).rows == 20


# --- how long replies take ------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
def test_waits_are_counted(many: bool) -> None:
    store = Slow(0.05)
    with serving(store) as port:
        fast = pace(port, Scenario(4096, many, sessions=20), Pace(20))
        assert len(store.kept) == fast.messages == 20
        assert 0.05 <= fast.p50 <= fast.p99 <= fast.most
        assert fast.late_p99 == 0  # nothing was due at a time
        # One session takes a second and more for what is due in a tenth of one.
        paced = pace(port, Scenario(4096, many, sessions=1), Pace(20, rate=200))
        assert len(store.kept) == 40
        assert paced.seconds >= 1 and paced.late_p99 >= 0.5 and paced.p50 >= 0.05
    assert all(row[3].endswith(lines(4096, text=False)) for row in store.kept)


def test_a_steady_rate_is_kept() -> None:
    with serving(None) as port:
        paced = pace(port, ONE, Pace(21, rate=50))
    assert paced.seconds >= 20 / 50


@pytest.mark.parametrize("name", ["1m-one-2", "1m-many-2-text", "4k-one-4-fresh"])
def test_messages_arrive_whole(name: str) -> None:
    store = Slow(0)
    wanted = scenario(name)
    with serving(store) as port:
        pace(port, wanted, Pace(4))
    assert len(store.kept) == 4
    assert len({row[2] for row in store.kept}) == (4 if wanted.fresh else 1)
    for row in store.kept:
        body = row[3].partition(b"\r\n\r\n")[2]
        assert body == lines(wanted.size, text=wanted.text) and len(body) == wanted.size


def test_tls() -> None:
    secure = Scenario(4096, many=False, sessions=4, tls=True)
    with ExitStack() as stack:
        peer = started("gsmtpd-null-tls", stack)
        assert peer.secure
        run = measure(peer, secure, 20)
        assert isinstance(peer.server, Gsmtpd)
        log = peer.server.log
        wait_for(lambda: "TLSv1.3" in log.read_text())
    assert run.load_cpu > 0


class Refusing(naive.Session):
    """Takes no mail."""

    def _data(self) -> None:
        while self.rfile.readline() != b".\r\n":
            pass
        self._say("451 4.3.0 Not now")


class Hanging(naive.Session):
    """Hangs up in place of the reply."""

    def _data(self) -> None:
        while self.rfile.readline() != b".\r\n":
            pass
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("session", "why"), [(Refusing, "250 was expected, not b'451 4.3.0"), (Hanging, "hung up")]
)
def test_a_message_that_is_not_taken_is_trouble(session: type[naive.Session], why: str) -> None:
    with serving(None, session) as port, pytest.raises(ServerError, match=why):
        pace(port, ONE, Pace(3))


def test_quantiles() -> None:
    hundred = [float(number) for number in range(100)]
    assert (quantile(hundred, 0.5), quantile(hundred, 0.99), quantile([], 0.5)) == (50, 99, 0)
    assert quantile([7.0], 0.99) == 7


# --- idle clients, and starts ---------------------------------------------------------------------


def _impatient(_options: Options, _database: Any) -> Peer:
    limits = {"timeout": "200ms", "max_clients_per_ip": "no"}
    often = "import gsmtpd.server.pool as p; p.SWEEP = 0.05"  # seconds between looks at the time
    return Peer("impatient", Gsmtpd({"limits": limits, "store": {"backend": "null"}}, before=often))


def test_idle_clients() -> None:
    with ExitStack() as stack:
        made = Bench(Options("1"), stack, {"smtp-sink": PEERS["smtp-sink"], "bad": _impatient})
        measure_idle(made, "smtp-sink", ONE, 30, Amount(2, 20))
        assert [one.clients for one in made.results.idle] == [30, 30]
        assert not made.results.failed
        measure_idle(made, "bad", Scenario(4096, many=False, sessions=1), 3, Amount(2, 1000))
    assert "3 of 3 idle clients were hung up on" in made.results.failed["impatient"]


def test_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before = dict(os.environ)
    with ExitStack() as stack:
        made = Bench(Options("1"), stack)
        measure_starts(made, ["gsmtpd-null"], 2)
    assert dict(os.environ) == before
    assert [start.round for start in made.results.starts] == [1, 2]
    assert all(start.seconds > 0 for start in made.results.starts)
    assert not made.results.failed


# --- what is made of it ---------------------------------------------------------------------------


def _results() -> Results:
    """Three rounds, in which gsmtpd takes half of what smtp-sink does, and MariaDB a fifth."""
    costs = {"smtp-sink": 100, "gsmtpd-null": 50, "gsmtpd-mariadb": 150, "aiosmtpd-mariadb": 1000}
    results = Results(facts={"date": "today"}, tables=["4k-one"], skipped={"x": "is not there"})
    grown = [Scenario(4096, False, sessions) for sessions in (1, 64)]
    results.grown = {"sessions": [one.name for one in grown], "octets": ["4k-one", "75k-one"]}
    for name in ("4k-one", "4k-one-1", "75k-one"):
        for round_ in (1, 2, 3):
            for peer, cost in costs.items():
                cpu = cost * round_ / 1e6 * 100  # a machine that gets slower
                database = cpu / 3 if "mariadb" in peer else None
                results.runs.append(Run(round_, peer, name, 100, cpu, cpu, database, cpu, 100))
    for round_ in (1, 2, 3):
        wait = Wait(
            **vars(Paced(9, 1, 0.01, 0.06, 0.07, 0, 0, 0.1)),
            round=round_,
            peer="gsmtpd-null",
            scenario="4k-one",
            rate=10,
            server_cpu=0.1,
        )
        results.waits.append(wait)
        results.idle.append(
            Idle(round_, "gsmtpd-null", "4k-one", 10_000, 9, 10, 1, 1, 10**8, 10**7, 1, 1)
        )
        results.starts.append(Start(round_, "gsmtpd-null", 0.2))
    return results


def test_json_is_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, file = _results(), tmp_path / "a.json"
    file.write_text(to_json(results, {"goals": []}))
    assert from_files([file]) == results
    twice = from_files([file, file])
    assert [*twice.runs_of("smtp-sink", "4k-one")] == [1, 2, 3, 4, 5, 6]
    assert twice.tables == results.tables and twice.grown == results.grown
    print_report(results)
    shown = capsys.readouterr().out
    for text in ("smtp-sink", "0.50 (0.50–0.50)", "10000 idle clients", "skipped x: is not there"):
        assert text in shown


def test_goals() -> None:
    judged = {goal.title: goal for goal in goals.judged(_results())}
    met = {title: goal.met for title, goal in judged.items()}
    assert met["null: CPU × smtp-sink's, 4k-one"] is True  # 0.5 in each round
    assert judged["null: CPU × smtp-sink's, 4k-one"].values == [0.5, 0.5, 0.5]
    assert met["null: messages/s × smtp-sink's, 4k-one"] is True
    assert met["MariaDB: CPU of gsmtpd × smtp-sink's, 4k-one"] is False  # 1.5
    assert met["MariaDB: CPU of MariaDB × smtp-sink's, 4k-one"] is True  # 0.5
    assert met["MariaDB: messages/s × smtp-sink's, 4k-one-500"] is None  # was not measured
    assert met["MariaDB: CPU of gsmtpd × smtp-sink's, 75k-one"] is True  # just
    per_cpu = judged["MariaDB: messages per CPU second × aiosmtpd's, 4k-one"]
    assert per_cpu.values == pytest.approx([1000 / 150] * 3) and per_cpu.met
    assert met["gsmtpd-null, 10000 idle clients: RSS"] is True
    assert met["gsmtpd-null: start to the first greeting"] is True
    assert met["gsmtpd-null: p99 of the reply, half the rate, 4k-one"] is False  # 60 ms
    rows = goals.table([*judged.values()])
    assert len(rows) - 1 == sum(goal.met is not None for goal in judged.values())
    assert [row[3] for row in rows if "p99" in row[0]] == ["MISSED"]


def test_bars_and_lines() -> None:
    results = _results()
    made = {bar.peer: bar for bar in plot.bars(results, "4k-one")}
    assert [*made] == ["smtp-sink", "gsmtpd-null", "gsmtpd-mariadb", "aiosmtpd-mariadb"]
    assert made["gsmtpd-mariadb"].server == pytest.approx(300)  # of the round in the middle
    assert made["gsmtpd-mariadb"].database == pytest.approx(100)
    assert made["smtp-sink"].most == pytest.approx(3 * made["smtp-sink"].least)
    drawn = {(line.title, line.by): line.points for line in growth.lines(results)}
    cpu = drawn[growth.CPU, "sessions"]["gsmtpd-null"]
    assert cpu == [(1, pytest.approx(100)), (64, pytest.approx(100))]
    assert [size for size, _ in drawn[growth.OCTETS, "octets"]["smtp-sink"]] == [4096, 76800]
    assert (growth.OCTETS, "sessions") not in drawn


def test_labels_are_moved_apart() -> None:
    assert plot.apart([], 10) == []
    assert plot.apart([50, 0, 100], 10) == [50, 0, 100]
    assert plot.apart([50, 50], 10) == [45, 55]
    assert plot.apart([3, 100, 1, 2], 10) == [12, 100, -8, 2]


def test_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "plot.png"
    assert plot.draw(_results(), image)
    head = image.read_bytes()[:24]
    assert head[:4] == b"\x89PNG" and int.from_bytes(head[16:20]) == 1000
    assert not plot.draw(Results(), image)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--rounds", "0"], "'0' is not a number above zero"),
        (["--waits", "-1"], "'-1' is not a number"),
        (["--peers", "gsmtpd-oracle"], "'gsmtpd-oracle' is none of smtp-sink, "),
        (["--scenarios", "4k"], "'4k' is no scenario, such as"),
        (["--scenarios", "4k-one,4k-few"], "'4k-few' is no scenario"),
        (["--scenarios", "0k-one"], "is no scenario"),
        (["--scenarios", "4k-one-tls-text"], "is no scenario"),
        (["--processes", "two"], "'two' is not a number"),
        (["--idle", "100000000"], "100000000 idle clients, but a process may open"),
        (["--from", "/nonexistent.json"], "/nonexistent.json: No such file"),
        (["--from", __file__], "was not written by scripts/bench --json"),
        (["--from", "x.json", "--quick"], "--quick measures, and --from does not"),
        (["--json", "/nonexistent/x.json"], "/nonexistent/x.json cannot be written"),
        (["--json", "/"], "/ cannot be written"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench(*arguments)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_without_matplotlib_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "possible", lambda: False)
    assert bench("--plot", "x.png") == command.EXIT_UNAVAILABLE
    assert "needs matplotlib" in capsys.readouterr().err


def test_a_peer_whose_program_is_missing_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(_options: Options, _database: Any) -> Peer:
        raise MissingProgramError("smtp-sink is not installed: apt install postfix")

    builders = {"smtp-sink": missing, "gsmtpd-null": PEERS["gsmtpd-null"]}
    asked = ("--peers", "smtp-sink,gsmtpd-null", "--scenarios", "4k-one", "--waits", 0)
    assert bench(*TINY, *asked, builders=builders) == 0
    assert "skipped smtp-sink: smtp-sink is not installed" in capsys.readouterr().out


def test_names_of_scenarios() -> None:
    for name in ("4k-one", "75k-many", "1m-one-500", "512-one", "4k-many-1-text-fresh-tls"):
        assert scenario(name).name == name
    assert scenario("4k-one", 8) == Scenario(4096, many=False, sessions=8)
    assert scenario("4k-one-64", 8).name == "4k-one"
    assert Scenario(4096, False).count(3000) == 3000 and Scenario(10 << 20, False).count(3000) == 19


def test_each_is_first_in_turn() -> None:
    peers: list[Any] = ["a", "b", "c"]
    assert [rotated(peers, round_)[0] for round_ in (1, 2, 3, 4)] == ["b", "c", "a", "b"]
    assert all(sorted(rotated(peers, round_)) == peers for round_ in range(6))
