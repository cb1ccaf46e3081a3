"""Is no mail lost, and none taken in vain, while nodes of a Galera cluster die and come back?"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from gsmtpd.faultlab import galera
from gsmtpd.faultlab.galera import Galera, GaleraNode
from gsmtpd.faultlab.mysql_proxy import Action, MySQLProxy, Point
from tests.accounting import RECIPIENT, Ledger, Load, rows, send, to_several, with_token
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MissingProgramError, mysql_store, wait_for
from tests.status_client import Status, with_status

pytestmark = pytest.mark.timeout(600)
SCHEMA = "mail"


class NodeTable:
    """The mail table as one node has it, with all that was committed in the cluster before."""

    def __init__(self, node: GaleraNode) -> None:
        self.node = node

    def query(self, sql: str) -> list[tuple]:
        return self.node.query(
            sql,
            database=SCHEMA,
            charset="utf8mb4",
            init_command="SET SESSION wsrep_sync_wait = 1",
        )


class Lab(NamedTuple):
    """gsmtpd, and the cluster that it keeps mail in."""

    cluster: Galera
    daemon: Gsmtpd

    def used(self) -> list[GaleraNode]:
        """The nodes that gsmtpd is connected to."""
        running = [node for node in self.cluster.nodes if node.running]
        sessions = "SELECT 1 FROM information_schema.processlist WHERE user = 'gsmtpd'"
        return [node for node in running if node.query(sessions)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Galera]:
    with Galera() as found:
        make_schema(found.nodes[0], SCHEMA)
        found.nodes[0].query("CREATE USER gsmtpd@'127.0.0.1' IDENTIFIED BY 'secret'")
        found.nodes[0].query(f"GRANT SELECT, INSERT ON {SCHEMA}.* TO gsmtpd@'127.0.0.1'")
        yield found


@pytest.fixture
def lab(cluster: Galera) -> Iterator[Lab]:
    """All nodes are well at the beginning, and nothing is stored."""
    cluster.restore()
    cluster.nodes[0].query(f"DELETE FROM {SCHEMA}.new_mail")
    settings = mysql_store(
        cluster.nodes[0], SCHEMA, host=cluster.hosts, user="gsmtpd", password="secret"
    )
    with Gsmtpd(settings) as daemon:
        yield Lab(cluster, daemon)


def settle(lab: Lab, ledger: Ledger) -> None:
    """Hold the account against each node. Raises AssertionError."""
    lab.cluster.restore()
    found = [sorted(rows(NodeTable(node))) for node in lab.cluster.nodes]
    assert found[0] == found[1] == found[2]
    ledger.check(found[0])
    assert ledger.duplicates(found[0]) <= sum(
        attempt.dot and (attempt.reply is None or attempt.reply.code != 250)
        for attempt in ledger.attempts
    )


def refused(ledger: Ledger) -> int:
    """How many attempts were answered with 451."""
    return sum(a.reply is not None and a.reply.code == 451 for a in ledger.attempts)


def acknowledged_until_refused(ledger: Ledger, attempts: int) -> int:
    """How many mails are acknowledged from now on until so many attempts more are refused."""
    before, was_refused = len(ledger.acknowledged), refused(ledger)
    wait_for(lambda: refused(ledger) >= was_refused + attempts, 60)
    return len(ledger.acknowledged) - before


def test_the_node_in_use_is_killed_and_comes_back(lab: Lab) -> None:
    """The next in use then gives it all its data: a donor is desynced, and blocked for a while."""
    ledger = Ledger()
    first, second, _ = lab.cluster.nodes
    with Load(lab.daemon.address, ledger, make=to_several) as load:
        load.wait_for(50)
        first.kill()
        load.wait_for(50, 60)
        assert second in lab.used()
        with states(second) as seen:
            lab.cluster.rejoin(first, donor=second)
        assert "Donor/Desynced" in seen
        wait_for(lambda: first in lab.used(), 60)  # it is the first choice
        load.wait_for(50)
    settle(lab, ledger)


@contextlib.contextmanager
def states(node: GaleraNode) -> Iterator[set[str]]:
    """The states that a node is in meanwhile."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            seen.add(node.state())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()


def test_a_minority_takes_nothing_until_it_is_primary_again(lab: Lab) -> None:
    """Who is left must not take mail that the others may lack, unless told that it is all there is.

    Then it dies, too, as by a power cut, and the cluster begins anew with it, who has most.
    """
    ledger = Ledger()
    first, *others = lab.cluster.nodes
    with Load(lab.daemon.address, ledger, make=to_several, pause=0.01) as load:
        load.wait_for(30)
        for node in others:
            node.kill()
        wait_for(lambda: first.status("wsrep_cluster_status") == "non-Primary", 60)
        assert acknowledged_until_refused(ledger, 20) == 0
        assert send(lab.daemon.address, with_token())[0].text.startswith("451 4.3.0 ")
        first.promote()
        load.wait_for(30, 60)
        first.kill()
        assert lab.cluster.bootstrap() is first
        load.wait_for(30, 60)
    settle(lab, ledger)


def test_a_node_whose_peers_hang_takes_nothing_until_they_are_back(lab: Lab) -> None:
    ledger = Ledger()
    first, *others = lab.cluster.nodes
    with Load(lab.daemon.address, ledger, make=to_several, pause=0.01) as load:
        load.wait_for(30)
        for node in others:
            node.freeze()
        wait_for(lambda: first.status("wsrep_cluster_status") == "non-Primary", 60)
        assert acknowledged_until_refused(ledger, 20) == 0
        for node in others:
            node.thaw()
        load.wait_for(30, 60)
    settle(lab, ledger)


def test_a_desynced_node_takes_mail(lab: Lab) -> None:
    ledger = Ledger()
    first = lab.cluster.nodes[0]
    with Load(lab.daemon.address, ledger, make=to_several) as load:
        first.query("SET GLOBAL wsrep_desync = ON")
        try:
            wait_for(lambda: first.state() == "Donor/Desynced")
            load.wait_for(50)
            assert first in lab.used()
        finally:
            first.query("SET GLOBAL wsrep_desync = OFF")
    settle(lab, ledger)
    assert refused(ledger) == 0


def test_a_commit_of_a_dead_node_is_found_on_one_that_lags(cluster: Galera) -> None:
    """It was replicated, but not applied yet, when it is looked up: "not there" would be wrong."""
    cluster.restore()
    first, second, _ = cluster.nodes
    first.query(f"DELETE FROM {SCHEMA}.new_mail")
    ledger, mail = Ledger(), to_several()

    def die() -> Action:
        first.kill()
        return Action.KILL

    with MySQLProxy(first.address) as proxy, second.connect() as locked:
        hosts = f"127.0.0.1:{proxy.port}, 127.0.0.1:{second.port}"
        settings = mysql_store(first, SCHEMA, host=hosts, user="gsmtpd", password="secret")
        with Gsmtpd(settings) as daemon, ThreadPoolExecutor(1) as executor:
            send(daemon.address, with_token())  # so that it is connected
            locked.query("FLUSH TABLES WITH READ LOCK")  # nothing is applied there meanwhile
            proxy.arm(Point.COMMIT_REPLY, Action.CALL, function=die)
            replies = executor.submit(send, daemon.address, mail)
            wait_for(lambda: proxy.happened)
            wait_for(lambda: "looking its mail up" in daemon.log.read_text())
            time.sleep(1)
            assert not replies.done()
            locked.query("UNLOCK TABLES")
            ledger.note(mail, replies.result()[0], True)
    assert len(ledger.acknowledged) == 1
    cluster.restore()
    stored = [row for row in rows(NodeTable(second)) if row.content == mail.content]
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


class Heard:
    """The mails that were given to somebody who listens all the time, in a thread of its own."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.over = threading.Event()

    def wait(self, status: Status, address: str) -> None:
        """By /api/wait, one after the other."""
        after: dict[str, str] = {}
        while not self.over.is_set():
            said = status.ask("/api/wait", to=address, timeout=1, **after)
            if said.status != 200:  # as a node dies
                self.over.wait(0.2)
                continue
            after = {"after": said.json["cursor"]}
            if said.json["mail"]:
                self.ids.append(said.json["mail"]["id"])

    def read(self, status: Status) -> None:
        """By /api/stream."""
        with status.events("/api/stream") as events:
            while not self.over.is_set():
                self.ids.append(events.next().data["id"])

    def tail(self, daemon: Gsmtpd) -> None:
        """By gsmtpctl tail."""
        command = [sys.executable, "-m", "gsmtpd.ctl", "-c", str(daemon.conf), "tail", "--json"]
        command += ["--result", "accepted"]  # some is refused as a node dies
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tailing:
            threading.Thread(target=lambda: self.over.wait() and tailing.terminate()).start()
            assert tailing.stdout is not None
            self.ids += (json.loads(line)["mail_id"] for line in tailing.stdout)


@contextlib.contextmanager
def all_heard(daemon: Gsmtpd, status: Status) -> Iterator[tuple[Heard, ...]]:
    """Who listens to that gsmtpd in the meantime, in each way there is."""
    heard = waited, streamed, tailed = Heard(), Heard(), Heard()
    with ThreadPoolExecutor(3) as executor:
        listening = [
            executor.submit(waited.wait, status, RECIPIENT),
            executor.submit(streamed.read, status),
            executor.submit(tailed.tail, daemon),
        ]
        try:
            while not all(each.ids for each in heard):  # a mail may come before who listens
                send(daemon.address, with_token())
                time.sleep(0.2)
            yield heard
        finally:
            for each in heard:
                each.over.set()
            send(daemon.address, with_token())  # which wakes who reads the stream
            for each_one in listening:
                each_one.result(60)


def test_who_listens_hears_of_each_mail_once(cluster: Galera) -> None:
    """It is stored by two machines on two nodes, whose ids interleave; then one of them dies."""
    cluster.restore()
    first, second, _ = cluster.nodes
    first.query(f"DELETE FROM {SCHEMA}.new_mail")
    hosts = cluster.hosts, ", ".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[1:])
    stores = [
        mysql_store(first, SCHEMA, host=host, user="gsmtpd", password="secret") for host in hosts
    ]
    near, port = with_status(stores[0])
    ledger = Ledger()
    with (
        Gsmtpd(near) as here,
        Gsmtpd(stores[1]) as there,
        all_heard(here, Status(port)) as heard,
    ):
        before = {row.mail_id for row in rows(NodeTable(first))}
        with (
            Load(here.address, ledger, pause=0.01) as one,
            Load(there.address, ledger, pause=0.01) as other,
        ):
            one.wait_for(100)
            first.kill()
            one.wait_for(100, 60)
            other.wait_for(100, 60)
        ids = sorted({row.mail_id for row in rows(NodeTable(second))} - before)
        for each in heard:
            wait_for(lambda each=each: {*each.ids} >= {*ids})
            assert sorted(number for number in each.ids if number not in before) == ids


def test_a_machine_without_galera_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(galera, "PROVIDERS", ())
    with pytest.raises(MissingProgramError, match="apt install galera-4"):
        Galera()
