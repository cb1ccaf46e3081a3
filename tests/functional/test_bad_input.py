"""Does every mistake of an administrator get one clear line on stderr and the right exit code?"""

from __future__ import annotations

import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import ROOT, Gsmtpd, MariaDB, environment, free_port, mysql_store

USAGE, UNAVAILABLE, CANTCREAT, NOPERM, CONFIG = 2, 69, 73, 77, 78
NOBODY = 65534
DAEMON, CTL = "gsmtpd.cli", "gsmtpd.ctl"


# Root may read and write everything. The interpreter may stand where nobody else may enter, so
# rights are given up only in it, and the package is copied to where nobody may read it.
AS_NOBODY = f"""
import encodings.idna, encodings.utf_8_sig, importlib, os, sys
program = importlib.import_module(sys.argv.pop(1))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
sys.exit(program.main())
"""


def run(module: str, *arguments: object, nobody: Path | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of gsmtpd.cli or gsmtpd.ctl. It is given some seconds to end.

    nobody: the fixture of that name, to run without any rights.
    """
    program = ["-m", module] if nobody is None else ["-c", AS_NOBODY, module]
    paths = {} if nobody is None else {"PYTHONPATH": str(nobody)}
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment() | paths,
        cwd="/",
    )
    return done.returncode, done.stdout, done.stderr


def refused(code: int, *words: object, module: str = DAEMON) -> Callable[..., None]:
    """Run the program; it must end with `code` and one line on stderr that has all `words`."""

    def check(*arguments: object, nobody: Path | None = None) -> None:
        found, output, error = run(module, *arguments, nobody=nobody)
        assert found == code, error
        assert output == ""
        program = "gsmtpctl" if module == CTL else "gsmtpd"
        lines = error.splitlines()
        assert len(lines) == 1, error
        assert lines[0].startswith(f"{program}: ")
        for word in words:
            assert str(word) in lines[0]

    return check


@pytest.fixture
def server() -> Iterator[Gsmtpd]:
    """A daemon that is not started; only its configuration file is there."""
    made = Gsmtpd()
    yield made
    made.close()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A directory that everyone may read and nobody may write, with the package in it."""
    with tempfile.TemporaryDirectory(prefix="gsmtpd-nobody-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "gsmtpd", folder / "gsmtpd")
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def configure(server: Gsmtpd, folder: Path, name: str = "gsmtpd.conf") -> Path:
    """The configuration of `server`, where the user nobody can read it."""
    folder.chmod(0o755)
    file = folder / name
    shutil.copy(server.conf, file)
    file.chmod(0o444)
    folder.chmod(0o555)
    return file


# --- the configuration --------------------------------------------------------------------------


def test_no_configuration(tmp_path: Path) -> None:
    refused(CONFIG, tmp_path / "none", "no such file")("-n", "-c", tmp_path / "none")


def test_a_directory_as_configuration(tmp_path: Path) -> None:
    refused(CONFIG, tmp_path, "directory")("-n", "-c", tmp_path)


def test_a_configuration_that_may_not_be_read(server: Gsmtpd, nobody: Path) -> None:
    file = configure(server, nobody)
    file.chmod(0)
    refused(CONFIG, file, "ermission denied")("-n", "-c", file, nobody=nobody)


def test_an_unknown_key(server: Gsmtpd) -> None:
    server.configure({"limits": {"max_client": 5}})
    line = server.conf.read_text().splitlines().index("max_client = 5") + 1
    refused(CONFIG, f"{server.conf}:{line}:", "max_client", "max_clients")("-n", "-c", server.conf)


def test_a_bad_value(server: Gsmtpd) -> None:
    server.configure({"limits": {"timeout": "soon"}})
    line = server.conf.read_text().splitlines().index("timeout = soon") + 1
    refused(CONFIG, f"{server.conf}:{line}:", "timeout", "soon")("-n", "-c", server.conf)


def test_every_problem_has_its_line(server: Gsmtpd) -> None:
    server.configure({"limits": {"timeout": "soon", "max_size": "huge"}, "cloth": {"colour": 1}})
    code, _, error = run(DAEMON, "-n", "-c", server.conf)
    assert code == CONFIG
    lines = error.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"gsmtpd: {server.conf}:") for line in lines)


# --- addresses ----------------------------------------------------------------------------------


def test_a_port_in_use(server: Gsmtpd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(UNAVAILABLE, f"127.0.0.1:{port}")("-n", "-c", server.conf, "-p", port)


def test_an_address_of_another_machine(server: Gsmtpd) -> None:
    server.configure({"listen": {"mx": {"address": "192.0.2.1:2525"}}})
    refused(UNAVAILABLE, "192.0.2.1:2525")("-n", "-c", server.conf)


def low_ports_need_root() -> bool:
    """Whether this kernel keeps ports below 1024 for root; containers often do not."""
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 25


def test_a_low_port_without_root(server: Gsmtpd, nobody: Path) -> None:
    if not low_ports_need_root():
        pytest.skip("this kernel gives low ports to everyone")
    server.configure({"store": {"backend": "null"}, "log": {"file": ""}})
    check = refused(NOPERM, "127.0.0.1:25", "root", "-p")
    check("-n", "-c", configure(server, nobody), "-p", 25, nobody=nobody)


# --- files --------------------------------------------------------------------------------------


def test_a_pid_file_in_a_missing_directory(server: Gsmtpd) -> None:
    path = server.path / "none" / "gsmtpd.pid"
    server.configure({"server": {"pid_file": path}})
    refused(CANTCREAT, path, "pid_file")("-c", server.conf)


def test_a_log_in_a_missing_directory(server: Gsmtpd) -> None:
    path = server.path / "none" / "log"
    refused(CANTCREAT, path, "log")("-n", "-c", server.conf, "-l", path)


def test_a_mail_file_in_a_missing_directory(server: Gsmtpd) -> None:
    folder = server.path / "none"
    server.configure({"store": {"sqlite": {"path": folder / "mail.db"}}})
    refused(CANTCREAT, folder / "mail.db", "directory")("-n", "-c", server.conf)


def test_a_mail_file_that_is_something_else(server: Gsmtpd) -> None:
    server.mail_db.write_bytes(b"Dear diary,\n" * 1000)
    refused(CANTCREAT, server.mail_db, "not a database")("-n", "-c", server.conf)
    assert server.mail_db.read_bytes() == b"Dear diary,\n" * 1000


@pytest.mark.parametrize("there", [False, True])
def test_a_mail_file_that_may_not_be_written(server: Gsmtpd, nobody: Path, there: bool) -> None:
    path = nobody / "mail.db"
    server.configure({"store": {"sqlite": {"path": path}}, "log": {"file": ""}})
    if there:
        nobody.chmod(0o755)
        assert run(CTL, "-c", server.conf, "init-db", "--apply")[0] == 0
        path.chmod(0o444)
    file = configure(server, nobody)
    refused(NOPERM, path, "permission denied")("-n", "-c", file, nobody=nobody)


def test_the_files_of_a_daemon_are_not_for_everyone() -> None:
    with Gsmtpd() as server:
        mode = stat.S_IMODE(server.mail_db.stat().st_mode)
        assert not mode & stat.S_IWOTH
        assert not stat.S_IMODE(server.log.stat().st_mode) & (stat.S_IWOTH | stat.S_IROTH)


# --- gsmtpctl and the store ---------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["list"], ["tail"]])
def test_ctl_without_a_mail_file(server: Gsmtpd, verb: list[str]) -> None:
    check = refused(UNAVAILABLE, server.mail_db, module=CTL)
    check("-c", server.conf, *verb)
    assert not server.mail_db.exists()


@pytest.mark.parametrize("verb", [["list"], ["init-db", "--apply"]])
def test_ctl_without_a_database_server(server: Gsmtpd, verb: list[str]) -> None:
    host = f"127.0.0.1:{free_port()}"
    server.configure({"store": {"backend": "mysql", "mysql": {"host": host}}})
    check = refused(UNAVAILABLE, host, "no database server answers", module=CTL)
    check("-c", server.conf, *verb)


def test_ctl_without_the_database(server: Gsmtpd, mariadb: MariaDB) -> None:
    server.configure(mysql_store(mariadb, "nowhere"))
    check = refused(UNAVAILABLE, "'nowhere'", "CREATE DATABASE", module=CTL)
    check("-c", server.conf, "list")


@pytest.mark.parametrize("verb", [["list"], ["show", "1"]])
def test_ctl_without_the_table(
    server: Gsmtpd, mariadb: MariaDB, schema: str, verb: list[str]
) -> None:
    server.configure(mysql_store(mariadb, schema, table="other"))
    check = refused(UNAVAILABLE, "'other'", "gsmtpctl init-db --apply", module=CTL)
    check("-c", server.conf, *verb)


def test_ctl_with_a_wrong_password(server: Gsmtpd, mariadb: MariaDB, schema: str) -> None:
    mariadb.query("CREATE OR REPLACE USER reader@localhost IDENTIFIED BY 'right'")
    server.configure(mysql_store(mariadb, schema, user="reader", password="wrong"))
    check = refused(NOPERM, "'reader'", "password", module=CTL)
    check("-c", server.conf, "list")


@pytest.mark.parametrize("verb", [["list"], ["init-db", "--apply"]])
def test_ctl_without_rights_on_the_table(
    server: Gsmtpd, mariadb: MariaDB, schema: str, verb: list[str]
) -> None:
    mariadb.query("CREATE OR REPLACE USER reader@localhost IDENTIFIED BY 'right'")
    mariadb.query("CREATE TABLE other (a int)", database=schema)
    mariadb.query(f"GRANT SELECT ON {schema}.other TO reader@localhost")
    server.configure(mysql_store(mariadb, schema, user="reader", password="right"))
    check = refused(NOPERM, "'reader'", f"{schema}.new_mail", "GRANT", module=CTL)
    check("-c", server.conf, *verb)


def test_ctl_with_a_mail_file_that_may_not_be_read(server: Gsmtpd, nobody: Path) -> None:
    path = nobody / "mail.db"
    server.configure({"store": {"sqlite": {"path": path}}})
    nobody.chmod(0o755)
    assert run(CTL, "-c", server.conf, "init-db", "--apply")[0] == 0
    path.chmod(0)
    file = configure(server, nobody)
    refused(NOPERM, path, "permission denied", module=CTL)("-c", file, "list", nobody=nobody)


@pytest.mark.parametrize("arguments", [[], ["dance"], ["show", "x"], ["list", "-n", "-1"]])
def test_wrong_usage_of_ctl(arguments: list[str]) -> None:
    code, output, error = run(CTL, *arguments)
    assert (code, output) == (USAGE, "")
    assert "usage: gsmtpctl" in error
    assert "Traceback" not in error


def test_ctl_shows_no_mail_that_is_not_there(server: Gsmtpd) -> None:
    assert run(CTL, "-c", server.conf, "init-db", "--apply")[0] == 0
    refused(UNAVAILABLE, "no mail 77", module=CTL)("-c", server.conf, "show", "77")
