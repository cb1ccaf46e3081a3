"""How does a Galera cluster of MariaDB servers run on one machine, and how are its nodes revived?

with Galera() as cluster, Gsmtpd(mysql_store(cluster.nodes[0], "mail", host=cluster.hosts)): ...
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pymysql

from gsmtpd.faultlab.processes import (
    PACKAGES,
    MissingProgramError,
    NotYetError,
    ServerError,
    find_program,
    free_port,
    sweep,
    wait_for,
)
from gsmtpd.faultlab.servers import MariaDB, as_root, install_database

PROVIDERS = (
    Path("/usr/lib/galera/libgalera_smm.so"),
    Path("/usr/lib64/galera-4/libgalera_smm.so"),
)
SYNCED_SECONDS = 120.0  # a state transfer included, on a busy machine
_ALONE_SECONDS = 10.0  # after which nodes of no primary component are one by themselves
NEEDED = ("rsync", "lsof")  # by the script that copies one node's data to another

PACKAGES |= {"rsync": "rsync", "lsof": "lsof"}

# Half of what the manual has, or less: a node that died is missed after some 2.5 s.
_PROVIDER_OPTIONS = (
    "gcache.size=32M;evs.keepalive_period=PT0.5S;evs.suspect_timeout=PT2S;"
    "evs.inactive_timeout=PT4S;evs.install_timeout=PT4S;pc.recovery=false"
)
_POSITION = re.compile(r"Recovered position: *([0-9a-f-]{36}:-?\d+)")
_NOWHERE = "00000000-0000-0000-0000-000000000000:-1"


def provider() -> Path:
    """The library that makes a MariaDB a node. Raises MissingProgramError."""
    for program in NEEDED:
        find_program(program)
    for path in PROVIDERS:
        if path.exists():
            return path
    raise MissingProgramError("Galera is not installed: apt install galera-4")


class GaleraNode(MariaDB):
    """One node, on 127.0.0.1 and a port of its own. It is started by its cluster.

    As with MariaDB, `kill` is a power cut, and what was committed survives it. As root it runs as
    user mysql: the copying of a node's data fails as root.
    """

    def __init__(self, name: str, options: Sequence[str] = ()) -> None:
        super().__init__(durable=True, options=options)
        self.name = name
        self.cluster: Sequence[GaleraNode] = ()
        self._is_first = False
        self._position = ""
        self._donor = ""
        self._ports = [free_port() for _ in range(3)]  # group, incremental and whole transfer

    @property
    def group_address(self) -> str:
        """Where the other nodes find it."""
        return f"127.0.0.1:{self._ports[0]}"

    def command(self) -> list[str]:
        group, increments, whole = self._ports
        listen = f"gmcast.listen_addr=tcp://127.0.0.1:{group};ist.recv_addr=127.0.0.1:{increments}"
        others = "" if self._is_first else ",".join(node.group_address for node in self.cluster)
        return [
            *self._plain_command(),
            *("--wsrep-cluster-name=gsmtpd-faultlab", f"--wsrep-node-name={self.name}"),
            f"--wsrep-node-address={self.group_address}",
            *("--wsrep-sst-method=rsync", f"--wsrep-sst-receive-address=127.0.0.1:{whole}"),
            f"--wsrep-provider-options={listen};{_PROVIDER_OPTIONS}",
            f"--wsrep-cluster-address=gcomm://{others}",
            *(["--wsrep-new-cluster"] if self._is_first else []),
            *([f"--wsrep-sst-donor={self._donor}"] if self._donor else []),
            *([f"--wsrep-start-position={self._position}"] if self._position else []),
        ]

    def answers(self) -> bool:
        return self.synced()

    def synced(self) -> bool:
        """Whether it has all that the cluster has, and takes statements."""
        return self.state() == "Synced" and self.primary()

    def primary(self) -> bool:
        """Whether it answers, and is of the primary component."""
        return self.status("wsrep_cluster_status") == "Primary"

    def state(self) -> str:
        """As Galera says it: Synced, Donor/Desynced, Joined, Initialized, ...; "" if it is away."""
        return self.status("wsrep_local_state_comment")

    def status(self, name: str) -> str:
        """A status variable; "" where the node does not answer within 2 s."""
        with contextlib.suppress(pymysql.MySQLError, OSError):
            found = self.query(
                "SHOW GLOBAL STATUS LIKE %s", (name,), connect_timeout=2, read_timeout=2
            )
            return str(found[0][1]) if found else ""
        return ""

    def start(self, seconds: float = SYNCED_SECONDS) -> None:
        """Join the cluster and wait until synced. Raises ServerError."""
        self._position = "" if self._is_first or self.running else self._last_position()
        super().start(seconds)

    def start_first(self) -> None:
        """Begin a new cluster with the data that this node has. Raises ServerError."""
        if (self.path / "data" / "grastate.dat").exists():
            self._make_safe(True)
        self._is_first = True
        try:
            self.start()
        finally:
            self._is_first = False

    def join_anew(self, donor: GaleraNode) -> None:
        """Join with all that the cluster has, copied from `donor`. Raises ServerError."""
        (self.path / "data" / "grastate.dat").unlink(missing_ok=True)
        self._donor = donor.name
        try:
            self.start()
        finally:
            self._donor = ""

    def freeze(self) -> None:
        """Stop it (SIGSTOP): its connections stay open, and it says nothing."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on. Harmless if it was not frozen, or has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)

    def promote(self) -> None:
        """Make what is left of the cluster, this node in it, the primary component."""
        self.query("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'")

    def position(self) -> str:
        """The last transaction that its data has, as uuid:number. It must not be running.

        As Debian's galera_recovery finds it out. Raises ServerError.
        """
        done = subprocess.run(
            [*self._plain_command(), "--wsrep-cluster-address=gcomm://", "--wsrep-recover"],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SYNCED_SECONDS,
        )
        found = _POSITION.search(done.stdout)
        if found is None:
            raise ServerError(f"{self.name} has no position\n{done.stdout[-2000:]}")
        return found[1]

    def fill(self, template: Path) -> None:
        """Have the data of a stopped node."""
        shutil.copytree(template, self.path / "data")
        hand_over(self.path)
        self._make_safe(False)

    def _plain_command(self) -> list[str]:
        found = ["--user=mysql" if option in as_root() else option for option in super().command()]
        return [
            *(*found, f"--wsrep-provider={provider()}", "--wsrep-on=ON"),
            *("--binlog-format=ROW", "--innodb-autoinc-lock-mode=2"),
        ]

    def _last_position(self) -> str:
        """Where a node was that was killed, "" if it knows that itself, or was nowhere.

        Told that, it is sent what it lacks, and not all there is.
        """
        state = self.path / "data" / "grastate.dat"
        if not state.exists() or "seqno:   -1" not in state.read_text():
            return ""
        position = self.position()
        return "" if position == _NOWHERE else position

    def _make_safe(self, safe: bool) -> None:
        """Say in its state whether a cluster may begin with its data."""
        state = self.path / "data" / "grastate.dat"
        text = re.sub(r"safe_to_bootstrap: \d", f"safe_to_bootstrap: {safe:d}", state.read_text())
        state.write_text(text)


class Galera:
    """A cluster of so many `nodes`, the first of which began it. As a context manager it runs.

    options: MariaDB's, for all nodes.
    """

    def __init__(self, nodes: int = 3, options: Sequence[str] = ()) -> None:
        provider()
        self.nodes = [GaleraNode(f"node{number + 1}", options) for number in range(nodes)]
        for node in self.nodes:
            node.cluster = self.nodes

    @property
    def hosts(self) -> str:
        """All nodes in order, as gsmtpd's setting `host` has it."""
        return ", ".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def bootstrap(self, node: GaleraNode | None = None) -> GaleraNode:
        """Begin the cluster anew after all nodes have died; the others are to `rejoin`.

        node: with whose data; None for the node that has most. Raises ServerError.
        """
        if node is None:
            node = max(self.nodes, key=lambda each: int(each.position().rpartition(":")[2]))
        node.start_first()
        return node

    def rejoin(self, node: GaleraNode, donor: GaleraNode | None = None) -> None:
        """Start a node that has died, and wait until it is synced. Raises ServerError.

        It is sent what it lacks. donor: who is to send it all there is instead; who does that is
        Donor/Desynced meanwhile, and takes no statements for a part of that time.
        """
        node.join_anew(donor) if donor else node.start()

    def wait_synced(self, seconds: float = SYNCED_SECONDS) -> None:
        """Wait until all nodes are synced, and of one component. Raises NotYetError."""
        size = str(len(self.nodes))
        wait_for(
            lambda: all(n.synced() and n.status("wsrep_cluster_size") == size for n in self.nodes),
            seconds,
        )

    def restore(self) -> None:
        """Bring all nodes back, whatever has become of them. Raises ServerError."""
        left = [node for node in self.nodes if node.running]
        for node in left:
            node.thaw()
        if not left:
            self.bootstrap()
        elif len(left) < len(self.nodes):
            try:  # two that were frozen may find each other
                wait_for(lambda: any(node.primary() for node in left), _ALONE_SECONDS)
            except NotYetError:
                left[0].promote()
        self._start_all(node for node in self.nodes if not node.running)
        self.wait_synced()

    def __enter__(self) -> Self:
        try:
            template = _template()
            for node in self.nodes:
                node.fill(template)
            first, *others = self.nodes
            first.start_first()
            self._start_all(others)
            self.wait_synced()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start_all(self, nodes: Iterable[GaleraNode]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as executor:
            for started in [executor.submit(node.start) for node in nodes]:
                started.result()

    def close(self) -> None:
        """Kill all nodes and remove their directories."""
        for node in self.nodes:
            node.close()


def hand_over(path: Path) -> None:
    """Give a directory and all in it to the user that nodes run as."""
    path.chmod(0o755)
    if not as_root():
        return
    try:
        owner = pwd.getpwnam("mysql")
    except KeyError:
        raise MissingProgramError("there is no user mysql: apt install mariadb-server") from None
    for found in [path, *path.rglob("*")]:
        os.chown(found, owner.pw_uid, owner.pw_gid)


@functools.cache
def _template() -> Path:
    """The data of a node that was alone and ended in order, made once per process (3 s).

    Nodes that begin with it know that they have the same, so that nothing has to be copied.
    """
    home = Path(tempfile.mkdtemp(prefix="gsmtpd-galera-template-"))
    sweep(home)
    with contextlib.closing(GaleraNode("template")) as node:
        install_database(node.path / "data")
        hand_over(node.path)
        node.start_first()
        node.stop()
        for name in ("gvwstate.dat", "galera.cache"):
            (node.path / "data" / name).unlink(missing_ok=True)
        shutil.copytree(node.path / "data", home / "data")
    return home / "data"
