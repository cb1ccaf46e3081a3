"""Does gsmtpd, started as root, become its user for good, and keep its secrets to itself?"""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.storage.schema import statements
from tests.accounting import Client, count, send, table_of, with_token
from tests.functional.test_control_live import AS_NOBODY
from tests.functional.test_daemon import STOP, Daemon, alive
from tests.servers import START_SECONDS, Gsmtpd, Settings, environment, merge, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PATHS = f"import sys\nsys.path += {[path for path in sys.path if 'site-packages' in path]}"
"""Where to find the modules of these tests with another Python."""

SECRET = {"store": {"mysql": {"password": "secret"}}}
"""A password that stands in the file; the mail goes to SQLite all the same."""


def nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def privileged_port() -> int:
    """A port below 1024 that is free now."""
    for port in (25, 26, *range(700, 1000)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.skip("no free port below 1024")


@functools.cache
def python() -> str:
    """A Python that nobody can run, with all that it imports later."""
    for path in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [path, "-c", f"{PATHS}\nimport gsmtpd.cli, gsmtpd.ctl"],
                user="nobody",
                group=nobody().pw_gid,
                extra_groups=[],
                check=False,
                capture_output=True,
                env=environment(),
            )
            if done.returncode == 0:
                return path
    pytest.skip("nobody can run no Python here that has all modules")


def command(server: Gsmtpd, before: str = "") -> list[str]:
    code = f"{PATHS}\n{before}\nimport gsmtpd.cli\nsys.exit(gsmtpd.cli.main())"
    return [python(), "-c", code, "-c", str(server.conf)]


def gsmtpd(server: Gsmtpd, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, to its end or until it has gone into the background."""
    return subprocess.run(
        [*command(server, server.before), *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )


class Nobodys(Gsmtpd):
    """gsmtpd started as root with user = nobody, in a directory that nobody may write."""

    def __init__(self, settings: Settings | None = None, before: str = "") -> None:
        super().__init__(settings, before=before)
        os.chown(self.path, nobody().pw_uid, nobody().pw_gid)

    def _defaults(self) -> dict[str, Any]:
        return merge(super()._defaults(), {"server": {"user": "nobody"}})

    def command(self) -> list[str]:
        return [*command(self, self.before), "-n"]


class NobodysDaemon(Nobodys, Daemon):
    """The same in the background."""

    def start(self, seconds: float = START_SECONDS) -> None:
        self.pid_file = self.path / "gsmtpd.pid"
        done = gsmtpd(self)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        wait_for(self.answers, seconds)


def kernel(pid: int) -> dict[str, list[str]]:
    """What /proc/PID/status says, word by word."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, value in (line.split(":", 1) for line in lines)}


def assert_is(pid: int, uid: int, gid: int, groups: Sequence[int]) -> None:
    said = kernel(pid)
    assert said["Uid"] == [str(uid)] * 4
    assert said["Gid"] == [str(gid)] * 4
    assert sorted(said["Groups"]) == sorted(map(str, groups))
    if uid:
        for which in ("Prm", "Eff", "Inh", "Amb"):
            assert int(said[f"Cap{which}"][0], 16) == 0
    assert_confined(pid)


def assert_confined(pid: int) -> None:
    """It can gain no rights by what it executes, and leaves no core dump."""
    assert kernel(pid)["NoNewPrivs"] == ["1"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.M)


def lines(server: Gsmtpd, part: str) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if part in line]


def hup(server: Gsmtpd, said: str) -> str:
    """Send HUP, and wait for a line of the log with `said`."""
    before = len(lines(server, said))
    os.kill(server.pid, signal.SIGHUP)
    wait_for(lambda: len(lines(server, said)) > before)
    return lines(server, said)[-1]


@pytest.fixture(scope="module")
def low_port() -> int:
    return privileged_port()


@pytest.fixture(scope="module")
def dropped(low_port: int) -> Iterator[NobodysDaemon]:
    """A daemon on a port below 1024 that was started as root and is nobody."""
    server = NobodysDaemon()
    server.port = low_port
    server.configure({"server": {"processes": 2}})
    with server:
        yield server


# --- who it is ------------------------------------------------------------------------------------


def test_all_processes_are_nobody(dropped: NobodysDaemon) -> None:
    pids = dropped.pids()
    assert len(pids) == 3
    for pid in pids:
        assert_is(pid, nobody().pw_uid, nobody().pw_gid, [nobody().pw_gid])


def test_it_serves_and_its_files_are_nobodys(dropped: NobodysDaemon) -> None:
    assert send(dropped.address, with_token())[0].code == 250
    for name in ("mail.db", "gsmtpd.log", "gsmtpd.pid", "control"):
        status = (dropped.path / name).stat()
        assert (status.st_uid, status.st_gid) == (nobody().pw_uid, nobody().pw_gid), name
        assert status.st_mode & 0o007 in (0, 0o004 if name == "gsmtpd.pid" else 0), name


def test_a_reload_works_behind_the_drop(dropped: NobodysDaemon) -> None:
    dropped.configure({"server": {"processes": 1, "host_name": "new.example"}})
    before = dropped.workers
    hup(dropped, "reloaded ")
    wait_for(lambda: not set(before) & set(dropped.workers))
    with Client(dropped.address) as client:
        assert client.reply().text.startswith("220 new.example ")
    for pid in dropped.pids():
        assert_is(pid, nobody().pw_uid, nobody().pw_gid, [nobody().pw_gid])


def test_a_new_port_below_1024_needs_a_restart(dropped: NobodysDaemon) -> None:
    port = next(p for p in range(700, 1000) if p != dropped.port)
    dropped.configure({"listen": {"more": {"address": f"127.0.0.1:{port}"}}})
    line = hup(dropped, "reload refused")
    assert f"cannot listen on 127.0.0.1:{port}: permission denied; a port below 1024" in line
    assert dropped.answers()
    dropped.configure({})
    hup(dropped, "reloaded ")


def test_an_address_may_change_behind_the_drop() -> None:
    """The kernel lets two sockets share a port only if one user owns both."""
    with Nobodys() as server:
        for host in ("0.0.0.0", "127.0.0.1"):
            server.configure({"listen": {"mx": {"address": f"{host}:{server.port}"}}})
            hup(server, "reload")
            assert lines(server, "reload refused") == []
            wait_for(lambda host=host: f"listening on {host}:" in lines(server, "listening on")[-1])


def test_a_worker_that_is_replaced_is_nobody_too(dropped: NobodysDaemon) -> None:
    worker = dropped.workers[0]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: dropped.workers and worker not in dropped.workers)
    wait_for(dropped.answers)
    assert_is(dropped.workers[0], nobody().pw_uid, nobody().pw_gid, [nobody().pw_gid])


def test_a_second_start_says_that_it_runs(dropped: NobodysDaemon) -> None:
    done = gsmtpd(dropped)
    assert done.returncode == 69
    assert re.fullmatch(rf"gsmtpd: .*process {dropped.pid} .*\n", done.stderr)
    assert dropped.answers()


def test_the_end_leaves_no_file_behind(low_port: int) -> None:
    """Although root began it, and nobody ends it."""
    with NobodysDaemon() as server:
        pid = server.pid
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), STOP)
        assert not server.pid_file.exists()
        assert not (server.path / "control").exists()


def test_a_group_of_its_own() -> None:
    gid = grp.getgrnam("mail").gr_gid
    with Nobodys({"server": {"group": "mail"}}) as server:
        for pid in server.pids():
            assert_is(pid, nobody().pw_uid, gid, [gid])
        assert server.mail_db.stat().st_gid == gid


def test_root_may_stay_root() -> None:
    with Gsmtpd({"server": {"user": "root"}}) as server:
        for pid in server.pids():
            assert kernel(pid)["Uid"] == ["0"] * 4
            assert_confined(pid)
        assert send(server.address, with_token())[0].code == 250


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"user": "no-such-user"}, 'there is no user "no-such-user"; make it'),
        ({"group": "no-such-group"}, 'there is no group "no-such-group"; make it'),
    ],
)
def test_unknown_names(names: dict[str, str], said: str) -> None:
    for arguments in ([], ["-n"], ["-t"]):
        server = Nobodys({"server": names})
        done = gsmtpd(server, *arguments)
        assert done.returncode == 78
        assert re.fullmatch(rf"gsmtpd: .*{said}.*\n", done.stderr)


@pytest.mark.parametrize("user", ["no-such-user", "root", "nobody"])
def test_who_is_not_root_just_runs(user: str) -> None:
    server = Nobodys({"server": {"user": user, "group": "no-such-group"}}, before=AS_NOBODY)
    server.conf.chmod(0o644)
    with server:
        for pid in server.pids():
            assert kernel(pid)["Uid"] == [str(nobody().pw_uid)] * 4
            assert_confined(pid)
        assert send(server.address, with_token())[0].code == 250
        hup(server, "reloaded ")
        assert server.stop() == 0


def test_who_is_not_root_gets_no_low_port(low_port: int) -> None:
    server = Nobodys(before=AS_NOBODY)
    server.conf.chmod(0o644)
    server.port = next(p for p in range(700, 1000) if p != low_port)
    server.configure({})
    done = subprocess.run(
        server.command(), check=False, capture_output=True, text=True, env=environment(), timeout=30
    )
    assert done.returncode == 77
    assert re.fullmatch(r"gsmtpd: cannot listen on .*: permission denied; .*\n", done.stderr)


def test_a_log_that_nobody_may_write_is_no_reason_to_end() -> None:
    with Nobodys() as server:
        closed = server.path / "closed"
        closed.mkdir(0o755)
        server.configure({"log": {"file": closed / "gsmtpd.log"}})
        line = hup(server, "reload refused")
        assert f"cannot write the log {closed}/gsmtpd.log: Permission denied" in line
        server.configure({"store": {"sqlite": {"path": closed / "mail.db"}}})
        line = hup(server, "reload refused")
        assert "permission denied; the user gsmtpd runs as" in line
        assert server.answers()


# --- the pid file ---------------------------------------------------------------------------------


def refused(server: Gsmtpd, code: int, said: str, *arguments: str) -> str:
    """It does not start, and says why in one line."""
    done = gsmtpd(server, *arguments)
    assert done.returncode == code, done.stderr
    assert re.fullmatch(rf"gsmtpd: .*{said}.*\n", done.stderr), done.stderr
    return done.stderr


def test_a_pid_file_where_nobody_may_not_write(tmp_path: Path) -> None:
    """Root could: but it is made, and is to be removed, by nobody."""
    tmp_path.chmod(0o755)
    server = Nobodys({"server": {"pid_file": tmp_path / "gsmtpd.pid"}})
    refused(server, 73, r"cannot write the pid file .*Permission denied; set \[server\] pid_file")
    assert [*tmp_path.iterdir()] == []


def test_a_symbolic_link_that_nobody_has_laid(tmp_path: Path) -> None:
    server = Nobodys()
    target = tmp_path / "target"
    target.write_text("precious")
    (server.path / "gsmtpd.pid").symlink_to(target)
    refused(server, 73, "it is a symbolic link")
    assert target.read_text() == "precious"


@pytest.fixture
def below_run() -> Iterator[Path]:
    path = Path(f"/run/gsmtpd-test-{os.getpid()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_directory_below_run_is_made(below_run: Path) -> None:
    server = NobodysDaemon({"server": {"pid_file": below_run / "gsmtpd.pid"}})
    try:
        done = gsmtpd(server)
        server.pid_file = below_run / "gsmtpd.pid"
        assert (done.returncode, done.stderr) == (0, "")
        assert below_run.stat().st_uid == nobody().pw_uid
        pid = server.pid
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), STOP)
        assert [*below_run.iterdir()] == []
    finally:
        server.close()


def test_a_check_makes_no_directory(below_run: Path) -> None:
    server = Nobodys({"server": {"pid_file": below_run / "gsmtpd.pid"}})
    assert "is good" in gsmtpd(server, "-t").stdout
    assert not below_run.exists()


def test_a_directory_further_below_run(below_run: Path) -> None:
    path = below_run / "further" / "gsmtpd.pid"
    refused(Nobodys({"server": {"pid_file": path}}), 73, str(path.parent))


# --- secrets --------------------------------------------------------------------------------------


def own_group() -> str:
    """The group of who serves."""
    return grp.getgrgid(nobody().pw_gid).gr_name


def cured(server: Gsmtpd, path: Path, group: str = "") -> None:
    """It does not start; but it does after it has been done as it says."""
    said = refused(server, 78, f"{path}: holds a password, and everybody can read it", "-n")
    refused(server, 78, f"{path}: holds a password", "-t")
    command = said.strip().rpartition("cure it with: ")[2]
    assert command == (f"chgrp {group} {path} && " if group else "") + f"chmod 640 {path}"
    subprocess.run(command, shell=True, check=True)
    with server:
        assert send(server.address, with_token())[0].code == 250


def test_a_password_that_everybody_can_read() -> None:
    server = Nobodys(SECRET)
    server.conf.chmod(0o644)
    cured(server, server.conf, own_group())


def test_a_password_that_everybody_can_read_beside_a_group_that_must() -> None:
    server = Nobodys(SECRET)
    os.chown(server.conf, 0, nobody().pw_gid)
    server.conf.chmod(0o644)
    cured(server, server.conf)


def test_a_password_in_a_file_of_its_own() -> None:
    server = Nobodys()
    password = server.path / "password"
    password.write_text("secret\n")
    password.chmod(0o644)
    server.conf.chmod(0o644)
    server.configure({"store": {"mysql": {"password_file": password}}})
    cured(server, password, own_group())


def test_a_password_that_a_group_can_read() -> None:
    """Root's own group, or the own group of the user, is no reason; root:GROUP of the user is."""
    server = Nobodys(SECRET)
    server.conf.chmod(0o640)
    for owner, group in ((0, 0), (nobody().pw_uid, nobody().pw_gid), (0, 8)):
        os.chown(server.conf, owner, group)
        refused(server, 78, r"holds a password, and its group can read it \(mode 0640\)", "-n")
    os.chown(server.conf, 0, nobody().pw_gid)
    with server:
        assert send(server.address, with_token())[0].code == 250
        assert not lines(server, "cannot be read")
        server.configure(merge(SECRET, {"server": {"host_name": "new.example"}}))
        hup(server, "reloaded ")


def test_a_reload_with_a_password_that_everybody_can_read_by_now() -> None:
    server = Nobodys(SECRET)
    os.chown(server.conf, 0, nobody().pw_gid)
    server.conf.chmod(0o640)
    with server:
        server.conf.chmod(0o644)
        line = hup(server, "reload refused")
        assert f"{server.conf}: holds a password, and everybody can read it" in line
        assert f"chmod 640 {server.conf}" in line
        assert send(server.address, with_token())[0].code == 250
        server.conf.chmod(0o640)
        hup(server, "reloaded ")


def test_a_configuration_that_only_root_can_read() -> None:
    """It starts, says at once that a reload will fail, and how to cure that; and so it does."""
    server = Nobodys(SECRET)
    server.conf.chmod(0o600)
    with server:
        wait_for(lambda: lines(server, "so a reload will be refused"))
        warning = lines(server, "so a reload will be refused")[0]
        assert f"{server.conf}: permission denied; " in hup(server, "reload refused")
        assert send(server.address, with_token())[0].code == 250
        cure = warning.rstrip('"').rpartition("cure it with: ")[2]
        subprocess.run(cure, shell=True, check=True)
        hup(server, "reloaded ")


def test_it_is_said_once() -> None:
    server = Nobodys(SECRET)
    server.conf.chmod(0o600)
    with server:
        assert len(lines(server, "so a reload will be refused")) == 1


def test_who_needs_no_password_may_show_its_configuration() -> None:
    server = Nobodys()
    server.conf.chmod(0o666)
    with server:
        assert send(server.address, with_token())[0].code == 250
        assert count(table_of(server)) == 1


def test_a_password_of_the_environment_is_in_no_file() -> None:
    server = Nobodys()
    server.conf.chmod(0o644)
    server.before = "import os; os.environ['GSMTPD_STORE_MYSQL_PASSWORD'] = 'secret'"
    with server:
        assert send(server.address, with_token())[0].code == 250


def test_no_password_is_ever_in_the_log_or_the_output() -> None:
    word = "hunter2-" + next(tempfile._get_candidate_names())  # like no other
    server = Nobodys({"store": {"mysql": {"password": word}}, "log": {"level": "debug"}})
    os.chown(server.conf, 0, nobody().pw_gid)
    server.conf.chmod(0o644)
    assert word not in refused(server, 78, "holds a password")
    server.conf.chmod(0o640)
    with server:
        hup(server, "reloaded ")
        os.kill(server.pid, signal.SIGUSR2)
        wait_for(lambda: lines(server, "thread MainThread"))
        server.configure({"store": {"mysql": {"password": word, "connections": "many"}}})
        hup(server, "reload refused")
        assert word not in server.log.read_text()
        assert word not in server.output.read_text()
        for pid in server.pids():
            assert word.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


# --- the mail file is the daemon's, whoever looks at it before ------------------------------------


def test_a_check_makes_no_file() -> None:
    server = Nobodys()
    done = gsmtpd(server, "-t")
    assert (done.returncode, done.stderr) == (0, "")
    assert not server.mail_db.exists()
    server.close()


def test_a_check_warns_of_what_the_user_cannot_do() -> None:
    server = Nobodys()
    server.mail_db.touch(0o644)  # root's
    done = gsmtpd(server, "-t")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "store: " in done.stderr
    assert "the file, which is another user's" in done.stderr
    server.close()


def test_a_mail_file_that_it_can_only_read_stops_the_start() -> None:
    server = Nobodys()
    with sqlite3.connect(server.mail_db) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        for statement in statements("sqlite"):
            connection.execute(statement)
    connection.close()
    server.mail_db.chmod(0o644)
    refused(server, 77, str(server.mail_db))


def test_the_tables_that_root_makes_are_the_daemons() -> None:
    server = Nobodys()
    code = f"{PATHS}\nimport gsmtpd.ctl\nsys.exit(gsmtpd.ctl.main())"
    done = subprocess.run(
        [python(), "-c", code, "-c", str(server.conf), "init-db", "--apply"],
        check=False,
        capture_output=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert server.mail_db.stat().st_uid == nobody().pw_uid
    with server:
        assert send(server.address, with_token())[0].code == 250
