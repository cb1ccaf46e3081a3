"""Does gsmtpd.deb hold what an administrator expects of a Debian package, on bare systems?"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from gsmtpd import __version__
from tests.conftest import lacking
from tests.package.roots import Root, all_files, bare_system
from tests.package.sources import copy_tree
from tests.package.systemd_root import SystemdRoot
from tests.servers import ROOT, find_program, wait_for
from tests.side_by_side import in_a_worker

RELEASES = ("bookworm", "trixie")
BESIDE = (  # gsmtpd's dependencies, and what the tests talk to
    "adduser", "python3-configobj", "python3-cryptography", "python3-daemon", "python3-pymysql",
    "mariadb-server", "swaks", "sqlite3", "man-db", "logrotate", "postfix", "procps",
    "bash-completion", "dpkg-dev", "apt-utils", "systemd", "curl",
    "python3-aiohttp", "python3-prometheus-client",
)  # fmt: skip
TOOLS = ("dpkg-buildpackage", "lintian", "debootstrap", "autopkgtest", "unshare", "nsenter")
MAIL_DB = "/var/lib/gsmtpd/mail.db"
KEEP = "/var/lib/gsmtpd/keep"
SEND = """
import smtplib
from email.message import EmailMessage
mail = EmailMessage()
mail["Subject"] = "a first one"
mail.set_content("Grüße, see the file.", cte="base64")
mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="invoice.pdf")
with smtplib.SMTP("127.0.0.1") as client:
    client.send_message(mail, "a@example.org", "you@localhost")
"""
GROW_OLD = """
import sqlite3
with sqlite3.connect("/var/lib/gsmtpd/mail.db") as mails:
    mails.execute("UPDATE new_mail SET date = ?", ("2026-01-02 03:04:05",))
"""
SEND_HTML = """
import smtplib
with smtplib.SMTP("127.0.0.1") as client:
    html = "Content-Type: text/html\\r\\n\\r\\n<p>See <b>this</b>&excl;<script>not this</script>"
    client.sendmail("a@example.org", "you@localhost", html)
"""

pytestmark = pytest.mark.timeout(900)


class System(NamedTuple):
    """A Debian release in layers: bare; with what stands beside gsmtpd; with gsmtpd as well."""

    release: str
    bare: Path
    beside: Path
    installed: Path

    def with_gsmtpd(self) -> Root:
        return Root(self.installed, self.beside, self.bare)

    def without_gsmtpd(self) -> Root:
        return Root(self.beside, self.bare)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what scripts/build-deb makes, and the package as gsmtpd.deb."""
    for tool in TOOLS:
        find_program(tool)
    if os.geteuid():
        lacking("the rights of root, to make bare Debian systems")
    directory = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [ROOT / "scripts/build-deb", directory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    shutil.copy(next(directory.glob("*.deb")), directory / "gsmtpd.deb")
    return directory


@pytest.fixture(scope="module")
def deb(built: Path) -> Path:
    """The package."""
    return built / "gsmtpd.deb"


@pytest.fixture(scope="module")
def older_deb(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as version 0.0.9, whose gsmtpd.conf differs from today's."""
    tree = tmp_path_factory.mktemp("older") / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    replace(tree / "DEBIAN/control", r"(?m)^Version: .*$", "Version: 0.0.9")
    replace(tree / "etc/gsmtpd.conf", r"\A", "# The configuration of version 0.0.9\n")
    replace(tree / "usr/lib/python3/dist-packages/gsmtpd/__init__.py", __version__, "0.0.9")
    made = tree.parent / "older.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, made], check=True)
    return made


class Systems(dict[str, Future[System]]):
    """Debian releases by their names, each made when it is first asked for."""

    def __init__(self, executor: ThreadPoolExecutor, make: Callable[[str], System]) -> None:
        super().__init__()
        self._executor = executor
        self._make = make

    def __missing__(self, release: str) -> Future[System]:
        self[release] = self._executor.submit(self._make, release)
        return self[release]


@pytest.fixture(scope="module")
def systems(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systems]:
    """Both Debian releases, made side by side; of a worker of xdist's only what it is given."""

    def make(release: str) -> System:
        return make_system(release, deb, tmp_path_factory.mktemp(release))

    with ThreadPoolExecutor() as executor:
        made = Systems(executor, make)
        if not in_a_worker():
            for release in RELEASES:
                made[release].running()
        yield made


@pytest.fixture(params=RELEASES)
def system(request: pytest.FixtureRequest, systems: Systems) -> System:
    """A Debian release."""
    return systems[request.param].result()


@pytest.fixture
def root(system: System) -> Iterator[Root]:
    """A system with gsmtpd as just installed, and MariaDB and others beside it, not running."""
    with system.with_gsmtpd() as running:
        yield running


def make_system(release: str, deb: Path, directory: Path) -> System:
    system = System(
        release, bare_system(release, directory), directory / "beside", directory / "gsmtpd"
    )
    with Root(system.bare, keep=system.beside) as root:
        root.fetch(*BESIDE)
        root.fetch_system_v_init()
    with Root(system.beside, system.bare, keep=system.installed) as root:
        install(root, deb)
    return system


def replace(path: Path, pattern: str, text: str) -> None:
    """Replace one place in a file."""
    changed, number = re.subn(pattern, text, path.read_text(), count=1)
    assert number == 1
    path.write_text(changed)


def install(root: Root, deb: Path) -> None:
    root.put(deb, "/root/gsmtpd.deb")
    root.do("apt install -y ./gsmtpd.deb", network=True)


def start_mariadb(root: Root) -> None:
    root.do("/etc/init.d/mariadb start")
    root.do("until mariadb-admin ping; do sleep 0.1; done")


def configure(root: Root, **values: str) -> None:
    """Set keys of gsmtpd.conf, each of which stands there once, as an administrator does."""
    path = root.path("/etc/gsmtpd.conf")
    for key, value in values.items():
        replace(path, rf"(?m)^( *{key} =).*$", rf"\1 {value}")


def send(root: Root, to: str = "you@example.com", subject: str = "a test") -> None:
    root.do(
        f"swaks --server 127.0.0.1 --from a@example.org --to {to} --header 'Subject: {subject}'"
    )


# --- the build ----------------------------------------------------------------------------------


def test_build_on_a_bare_debian_12_makes_the_same_package(deb: Path, tmp_path: Path) -> None:
    """From a clone, with other modes of files, in another time zone and language."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True, umask=0o077)
    copy_tree(clone)
    with Root(bare_system("bookworm", tmp_path)) as root:
        root.fetch("git")
        shutil.copytree(clone, root.path("/root/elsewhere"))
        # pip is to trust whom this machine trusts.
        settings = "TZ=Pacific/Auckland LC_ALL=C PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
        status = "git -C elsewhere status --short --ignored"
        uncommitted = root.do(status)
        said = root.do(f"{settings} elsewhere/scripts/build-deb", network=True)
        assert "apt install /root/elsewhere/gsmtpd.deb" in said
        assert root.path("/root/elsewhere/gsmtpd.deb").read_bytes() == deb.read_bytes()
        assert root.do(status) == uncommitted + "!! gsmtpd.deb\n"


def test_lintian_finds_nothing(built: Path) -> None:
    changes = next(built.glob("*.changes"))
    said = subprocess.run(
        ["lintian", "--allow-root", "--no-cfg", "--fail-on=error,warning", "--show-overrides",
         changes],
        env=os.environ | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (0, ""), said.stderr


def test_version_is_that_of_the_program(deb: Path) -> None:
    said = subprocess.run(
        ["dpkg-deb", "-f", deb, "Version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == __version__


# --- installed ----------------------------------------------------------------------------------


def test_bare_system(system: System, deb: Path) -> None:
    """Nothing is there but what a minimal Debian has; the package brings the rest."""
    with Root(system.bare) as root:
        root.do("apt-get update -qq", network=True)
        install(root, deb)
        assert "the configuration is good" in root.do("gsmtpd -t")
        assert root.do("dpkg -V") == ""
        assert root.do("stat -c '%A %U:%G' /etc/gsmtpd.conf /var/lib/gsmtpd /var/log/gsmtpd").split(
            "\n"
        ) == [
            "-rw-r----- root:gsmtpd",
            "drwxr-x--- gsmtpd:gsmtpd",
            "drwxr-s--- gsmtpd:adm",
            "",
        ]
        # Neither enabled nor started.
        assert "not running" in root.refuse("/etc/init.d/gsmtpd status", 3)
        assert root.do("ls /etc/rc?.d | grep gsmtpd | sort -u") == "K01gsmtpd\n"
        # And it works.
        root.do("/etc/init.d/gsmtpd start")
        assert "is running" in root.do("/etc/init.d/gsmtpd status")
        root.do(f"python3 -c '{SEND}'")
        assert "a first one" in root.do("gsmtpctl list")
        shown = root.do("gsmtpctl show 1")
        assert "Grüße, see the file." in shown
        assert "application/pdf" in shown
        assert root.do("gsmtpctl show 1 --attachment 1 -o -") == "%PDF"
        exported = root.do("gsmtpctl export -")
        assert "Subject: a first one\n" in exported
        assert exported.endswith("exported 1 mails\n")
        assert root.do("gsmtpctl purge --older-than 30d") == "deleted 0 mails\n"
        root.do(f"python3 -c '{GROW_OLD}'")
        assert root.do("gsmtpctl purge --older-than 30d") == "deleted 1 mails\n"
        assert "no mail yet" in root.do("gsmtpctl list")
        prove_it(root)
        root.do("/etc/init.d/gsmtpd stop")
        assert "not running" in root.refuse("/etc/init.d/gsmtpd status", 3)


def prove_it(root: Root) -> None:
    """Have the fault lab send mail to the gsmtpd that runs, and check what that has stored."""
    check = "gsmtpd-faultlab check --ledgers ledgers"
    to = "--to you@localhost me@localhost"
    root.do(f"gsmtpd-faultlab send --server 127.0.0.1:25 {to} --ledgers ledgers --messages 50")
    assert "violations: 0" in root.do(check)
    root.do(f"python3 -c '{GROW_OLD}' && gsmtpctl purge --older-than 30d")
    assert re.search(r"LOST.* 50\n", root.refuse(check, 1))
    lacking = root.run("gsmtpd-faultlab run --faults term --quiet 1")
    assert lacking.returncode
    assert "apt install mariadb-server" in lacking.stdout


def test_the_fault_lab(root: Root) -> None:
    """It starts a MariaDB and a gsmtpd of its own, as they are installed, and leaves nothing."""
    before = all_files(root, ("/proc", "/dev", "/run"))
    said = root.do("gsmtpd-faultlab run --faults kill_connection,term --quiet 1")
    assert said.endswith("nothing was violated\n")
    assert root.run("pgrep -a 'mariadb|gsmtpd'").stdout == ""
    assert all_files(root, ("/proc", "/dev", "/run")) == before


def test_dbutils_of_debian_comes_first(system: System) -> None:
    """The one in the package is for systems without."""
    where = "python3 -c 'import gsmtpd.storage.mysql, dbutils; print(dbutils.__file__)'"
    with system.with_gsmtpd() as root:
        assert root.do(where) == "/usr/share/gsmtpd/vendor/dbutils/__init__.py\n"
        if root.run("apt-cache show python3-dbutils").returncode == 0:
            root.fetch("python3-dbutils")
            assert root.do(where) == "/usr/lib/python3/dist-packages/dbutils/__init__.py\n"
            assert "configuration is good" in root.do("gsmtpd -t")
        else:
            assert system.release == "bookworm"


def test_suggested_packages(root: Root) -> None:
    """With Debian's versions of what debian/control suggests, and of the servers behind them."""
    root.fetch("python3-lxml", "python3-pymemcache", "python3-redis", "memcached", "redis-server")
    root.do("redis-server --daemonize yes && memcached -d -u nobody")
    for number, backend in ((1, "redis"), (2, "memcached")):
        env = f"GSMTPD_STORE_BODY_BACKEND={backend}"
        assert "the configuration is good" in root.do(f"{env} gsmtpd -t")
        root.do(f"{env} gsmtpd && python3 -c '{SEND_HTML}'")
        row = f"SELECT body, mail_encoding, LENGTH(mail) FROM new_mail WHERE mail_id = {number}"
        assert root.do(f"sqlite3 {MAIL_DB} '{row}'") == f"See this!\n|{backend}|0\n"
        raw = root.do(f"{env} gsmtpctl show --raw {number}")
        assert raw.startswith("Delivered-To: you@localhost\n")
        assert "See <b>this</b>" in raw
        root.do("gsmtpctl stop")


def test_mail_becomes_a_row_in_mariadb(root: Root) -> None:
    """The five lines of gsmtpd.conf(5), the init script, and mail from inside."""
    start_mariadb(root)
    root.do(
        """mariadb <<-EOF
        CREATE DATABASE gsmtpd CHARACTER SET utf8mb4;
        CREATE USER gsmtpd@localhost IDENTIFIED BY 'a password';
        GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, CREATE VIEW, DROP, ALTER,
         LOCK TABLES ON gsmtpd.* TO gsmtpd@localhost;
        """
    )
    root.do(
        "(umask 077; echo 'a password' >/etc/gsmtpd.password) && chown gsmtpd /etc/gsmtpd.password"
    )
    configure(
        root,
        accept="example.com",
        backend="mysql",
        host="/run/mysqld/mysqld.sock",
        password_file="/etc/gsmtpd.password",
    )
    root.do("gsmtpctl init-db --apply")
    assert "warning" not in root.do("gsmtpd -t")
    root.do("/etc/init.d/gsmtpd start")
    root.do("/etc/init.d/gsmtpd start")  # once more does nothing
    send(root)
    rows = root.do(
        "mariadb --skip-column-names -e 'SELECT recipient, subject FROM gsmtpd.mail_inbox'"
    )
    assert rows == "you@example.com\ta test\n"
    assert "a test" in root.do("gsmtpctl list")
    assert root.do("gsmtpctl purge --older-than 1h") == "deleted 0 mails\n"
    # A reload takes over the domains; a mistake is refused, and the old ones stay.
    configure(root, accept="example.net")
    root.do("/etc/init.d/gsmtpd reload")
    send(root, "you@example.net")
    configure(root, accept="not a domain")
    assert "refused" in root.refuse("/etc/init.d/gsmtpd reload", 78)
    assert "not a domain" in root.refuse("/etc/init.d/gsmtpd restart", 78)
    send(root, "you@example.net")
    # Even so it can be stopped.
    root.do("/etc/init.d/gsmtpd stop")
    assert root.run("pgrep gsmtpd").returncode == 1
    assert root.do("mariadb --skip-column-names -e 'SELECT COUNT(*) FROM gsmtpd.new_mail'") == "3\n"


def test_manual_pages_render(root: Root) -> None:
    pages = sorted(path.name for path in (ROOT / "man").iterdir())
    assert len(pages) == 5
    for page in pages:
        name, section = page.rsplit(".", 1)
        shown = root.do(f"man {section} {name}")
        assert shown.lower().startswith(f"{name}({section})")
        assert len(shown.splitlines()) > 50
        assert [line for line in shown.splitlines() if len(line) > 80] == []
        assert root.do(f"man --warnings {section} {name} 2>&1 >/dev/null") == ""
    assert root.do("man gsmtpd").startswith("GSMTPD(8)")
    for command in ("gsmtpd", "gsmtpctl", "gsmtpd-faultlab"):
        assert command in root.do(f"whatis {command}")


def test_log_rotation(root: Root) -> None:
    configure(
        root,
        accept="example.com",
        file="/var/log/gsmtpd/gsmtpd.log",
        mail_file="/var/log/gsmtpd/mail.log",
    )
    root.do("/etc/init.d/gsmtpd start")
    send(root, subject="before")
    root.do("logrotate --force /etc/logrotate.d/gsmtpd")
    send(root, subject="after")
    root.do("logrotate --force /etc/logrotate.d/gsmtpd")
    send(root, subject="last")
    count = "grep -c result=accepted"
    assert root.do(f"{count} /var/log/gsmtpd/mail.log") == "1\n"
    assert root.do(f"{count} /var/log/gsmtpd/mail.log.1") == "1\n"
    assert root.do(f"zcat /var/log/gsmtpd/mail.log.2.gz | {count}") == "1\n"
    assert "listening" in root.path("/var/log/gsmtpd/gsmtpd.log.1").read_text()
    assert root.do("stat -c '%A %U:%G' /var/log/gsmtpd/mail.log") == "-rw-r----- gsmtpd:adm\n"


def test_upgrade(system: System, deb: Path, older_deb: Path) -> None:
    """The administrator's configuration stays, what runs is restarted, and no mail is lost."""
    with system.without_gsmtpd() as root:
        install(root, older_deb)
        assert root.do("gsmtpd --version") == "gsmtpd 0.0.9\n"
        configure(root, accept="edited.example.com")
        root.do("chmod 600 /etc/gsmtpd.conf && chown gsmtpd: /etc/gsmtpd.conf")
        root.do("update-rc.d gsmtpd enable && /etc/init.d/gsmtpd start")
        send(root, "you@edited.example.com", "before")
        # In the network of the machine the restarted daemon could not have port 25.
        root.put(deb, "/root/gsmtpd.deb")
        root.do("dpkg --force-confold -i gsmtpd.deb")
        assert root.do("gsmtpctl --version") == f"gsmtpctl {__version__}\n"
        assert f"gsmtpd {__version__}, " in root.do("gsmtpctl status")
        assert root.do("stat -c '%A %U' /etc/gsmtpd.conf") == "-rw------- gsmtpd\n"
        assert "edited.example.com" in root.path("/etc/gsmtpd.conf").read_text()
        assert root.do("ls /etc/gsmtpd.conf*") == "/etc/gsmtpd.conf\n/etc/gsmtpd.conf.dpkg-dist\n"
        assert "S" in root.do("basename /etc/rc2.d/*gsmtpd")
        send(root, "you@edited.example.com", "after")
        assert [word in root.do("gsmtpctl list") for word in ("before", "after")] == [True, True]


def test_upgrade_leaves_stopped_what_is_stopped(system: System, deb: Path, older_deb: Path) -> None:
    with system.without_gsmtpd() as root:
        install(root, older_deb)
        root.put(deb, "/root/gsmtpd.deb")
        root.do("dpkg -i gsmtpd.deb")  # an unedited configuration is replaced without a question
        assert "0.0.9" not in root.path("/etc/gsmtpd.conf").read_text()
        assert root.do("stat -c '%A %U:%G' /etc/gsmtpd.conf") == "-rw-r----- root:gsmtpd\n"
        assert root.do("dpkg -V gsmtpd") == ""
        root.refuse("/etc/init.d/gsmtpd status", 3)


def test_remove_purge_and_install_again(system: System, deb: Path) -> None:
    with system.without_gsmtpd() as root:
        before = state(root)
        install(root, deb)
        configure(root, accept="example.com", file="/var/log/gsmtpd/gsmtpd.log")
        root.do("/etc/init.d/gsmtpd start")
        send(root)
        said = root.do("apt-get remove -y gsmtpd")
        assert f"the mail in {Path(MAIL_DB).parent} stays" in said
        assert root.run("pgrep gsmtpd").returncode == 1
        assert "example.com" in root.path("/etc/gsmtpd.conf").read_text()
        # Configuration and mail are still there for the next.
        install(root, deb)
        root.do("/etc/init.d/gsmtpd start")
        assert "a test" in root.do("gsmtpctl list")
        # Logs that were rotated, a mail file with its journal, an old configuration: all is ours.
        root.do("logrotate --force /etc/logrotate.d/gsmtpd && touch /etc/gsmtpd.conf.dpkg-dist")
        root.do("apt-get purge -y gsmtpd")
        assert root.run("pgrep gsmtpd").returncode == 1
        root.do("apt-get autoremove --purge -y")
        after = state(root)
        assert {path for path in after - before if "gsmtpd" in path} == set()
        assert after - before == set()
        assert before - after == set()
        install(root, deb)
        root.do("/etc/init.d/gsmtpd start")
        assert "no mail yet" in root.do("gsmtpctl list")


def state(root: Root) -> set[str]:
    """All files, users and groups, but what apt, dpkg and caches keep of any package."""
    others = (
        "/var/lib/apt/", "/var/cache/", "/var/log/apt", "/var/log/dpkg.log", "/var/lib/dpkg/",
        "/var/log/alternatives.log", "/var/lib/logrotate", "/etc/resolv.conf", "/var/lib/postfix",
        "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid",
        "/etc/subgid",
    )  # fmt: skip
    accounts = root.do("cut -d: -f1 /etc/passwd /etc/group /etc/shadow /etc/gshadow").split()
    return all_files(root, others) | {f"account {name}" for name in accounts}


def test_mail_that_is_to_be_kept(root: Root, deb: Path) -> None:
    configure(root, accept="example.com")
    root.do("/etc/init.d/gsmtpd start")
    send(root)
    # It ends badly, and leaves files beside the mail file.
    root.do(f"pkill -9 gsmtpd; touch {KEEP}; ls {MAIL_DB}-wal")
    assert "is kept" in root.do("apt-get purge -y gsmtpd")
    assert root.do(
        "find / -xdev -name '*gsmtpd*' -not -path '/root/*' -not -path '/var/cache/*'"
    ) == ("/var/lib/gsmtpd\n")
    assert root.run("getent passwd gsmtpd").returncode == 2
    assert root.do("stat -c '%A %U:%G' /var/lib/gsmtpd") == "drwx------ root:root\n"
    # The number that the user had is somebody else's now.
    root.do("adduser --quiet --system --group another")
    install(root, deb)
    configure(root, accept="example.com")
    root.do("/etc/init.d/gsmtpd start")
    send(root, subject="again")
    mails = root.do("gsmtpctl list")
    assert "a test" in mails
    assert "again" in mails


def test_three_steps_with_systemd(system: System, deb: Path, older_deb: Path) -> None:
    """Those of README.Debian; then an upgrade, a removal and a purge."""
    with SystemdRoot(system.beside, system.bare) as root:
        root.put(older_deb, "/root/older.deb")
        root.put(deb, "/root/gsmtpd.deb")
        root.do("dpkg -i older.deb")
        assert root.show("gsmtpd", "ActiveState") == "inactive"
        assert root.run("systemctl is-enabled gsmtpd gsmtpd.socket").stdout.split() == (
            ["disabled"] * 2
        )
        configure(root, accept="example.com")
        root.do("gsmtpd -t")
        root.do("systemctl enable --now gsmtpd")
        send(root)
        assert "a test" in root.do("gsmtpctl list")
        assert "result=accepted" in root.journal("gsmtpd")
        old = root.show("gsmtpd", "MainPID")

        root.do("dpkg --force-confold -i gsmtpd.deb")
        assert root.show("gsmtpd", "ActiveState") == "active"
        assert root.show("gsmtpd", "MainPID") != old
        assert f"gsmtpd {__version__}, " in root.do("gsmtpctl status")
        send(root, subject="after")

        root.do("dpkg --remove gsmtpd")
        assert root.run("pgrep gsmtpd").returncode == 1
        root.do("dpkg --purge gsmtpd")
        left = root.do("find /etc /usr /var /run -xdev -name '*gsmtpd*'")
        assert left == ""


def test_the_status_page_with_systemd(system: System) -> None:
    """With Debian's own libraries, within all that the unit forbids; what it forbids kills here."""
    with SystemdRoot(system.installed, system.beside, system.bare) as root:
        configure(root, listen="8025", accept="example.com")
        unit = "/usr/lib/systemd/system/gsmtpd.service"
        root.do(f"sed -i s/SystemCallErrorNumber=EPERM/SystemCallErrorNumber=kill/ {unit}")
        root.do("systemctl daemon-reload && systemctl start gsmtpd")
        ask = "curl -sS --fail --max-time 20 http://127.0.0.1:8025"
        stream = f"{ask}/api/stream --no-buffer --output /tmp/events"
        root.do(f"systemd-run --unit=listens {stream}")
        wait_for(lambda: "id:" in root.run("cat /tmp/events").stdout)
        wait = "/api/wait?to=you@example.com\\&timeout=20 --output /tmp/mail"
        root.do(f"systemd-run --unit=waits {ask}{wait}")
        send(root)
        for path in ("/tmp/mail", "/tmp/events"):
            wait_for(lambda path=path: "a test" in root.run(f"cat {path}").stdout)
        assert "static/main.js" in root.do(f"{ask}/")
        assert "import" in root.do(f"{ask}/static/main.js")
        counted = 'gsmtpd_messages_total{result="accepted"} 1.0\n'
        wait_for(lambda: counted in root.do(f"{ask}/metrics"))
        assert root.do(f"{ask}/readyz") == "ok\n"
        assert "Status:     " in root.do("gsmtpctl status")
        assert "a test" in root.do("gsmtpctl search --to you@example.com")
        assert "accepted/s" in root.do("gsmtpctl top --once")

        root.do("echo secret > /etc/gsmtpd.status && chgrp gsmtpd /etc/gsmtpd.status")
        root.do("chmod 640 /etc/gsmtpd.status")
        before, status = root.path("/etc/gsmtpd.conf").read_text().split("\n[status]\n")
        status = status.replace("password_file =", "password_file = /etc/gsmtpd.status", 1)
        root.path("/etc/gsmtpd.conf").write_text(f"{before}\n[status]\n{status}")
        root.do("systemctl reload gsmtpd")  # which ends the stream
        wait_for(lambda: root.show("listens", "ActiveState") != "active")
        assert "401" in root.refuse(f"{ask}/api/status", 22)
        assert root.do(f"{ask}/api/mails --user any:secret").count('"id":') == 1
        root.do("systemctl restart gsmtpd")
        assert root.do(f"{ask}/readyz") == "ok\n"
        root.do("systemctl stop gsmtpd")
        assert root.show("gsmtpd", "Result") == "success"
        said = root.journal("gsmtpd")
        assert "level=error" not in said
        assert "Traceback" not in said


def test_upgrade_with_a_broken_configuration(system: System, deb: Path, older_deb: Path) -> None:
    """What works is left alone, and that is said."""
    for kind in (Root, SystemdRoot):
        with kind(system.beside, system.bare) as root:
            root.put(older_deb, "/root/older.deb")
            root.put(deb, "/root/gsmtpd.deb")
            root.do("dpkg -i older.deb")
            configure(root, accept="example.com")
            root.do("service gsmtpd start")
            configure(root, max_size="large")
            said = root.do("dpkg --force-confold -i gsmtpd.deb")
            assert "/etc/gsmtpd.conf has mistakes, see: gsmtpd -t" in said
            assert "version 0.0.9 still runs" in said
            send(root)


def test_init_script_finds_a_daemon_whose_pid_file_is_elsewhere(root: Root) -> None:
    configure(root, accept="example.com", pid_file="/run/gsmtpd/my.pid")
    root.do("/etc/init.d/gsmtpd start")
    configure(root, pid_file="/run/gsmtpd/another.pid")
    root.do("/etc/init.d/gsmtpd restart")
    assert root.do("ls /run/gsmtpd").split() == ["another.pid", "control"]
    configure(root, max_size="large")
    assert "is running" in root.do("/etc/init.d/gsmtpd status")
    root.do("/etc/init.d/gsmtpd stop")
    assert root.run("pgrep gsmtpd").returncode == 1
    # A process that has got the number of one that died is no gsmtpd.
    root.do("sleep 100 >/dev/null 2>&1 & echo $! >/run/gsmtpd/gsmtpd.pid")
    assert "not running" in root.refuse("/etc/init.d/gsmtpd status", 1)
    root.do("/etc/init.d/gsmtpd stop && pgrep sleep")


def test_purge_leaves_what_others_made(system: System, deb: Path) -> None:
    with system.without_gsmtpd() as root:
        root.do("groupadd gsmtpd && useradd -G gsmtpd joe")
        install(root, deb)
        root.do("dpkg --purge gsmtpd")
        assert root.do("id -nG joe").split() == ["joe", "gsmtpd"]
        assert root.run("getent passwd gsmtpd").returncode == 2
        # A user without a group of its own, for whom there is none left.
        root.do("gpasswd -d joe gsmtpd; groupdel gsmtpd; adduser --quiet --system gsmtpd")
        install(root, deb)
        assert root.do("gsmtpd -t 2>&1 | grep warning; id -nG gsmtpd").split() == [
            "nogroup",
            "gsmtpd",
        ]
        root.do("dpkg --purge gsmtpd")
        root.do("id gsmtpd")
    with system.with_gsmtpd() as root:
        root.do("dpkg-statoverride --update --add gsmtpd adm 0700 /var/log/gsmtpd")
        root.do("dpkg --purge gsmtpd")
        # An override with an unknown user would stop all of dpkg.
        install(root, deb)
        assert root.do("stat -c %a /var/log/gsmtpd") == "700\n"


def test_mail_on_a_disk_of_its_own(system: System, deb: Path) -> None:
    with system.without_gsmtpd() as root:
        root.do("mkdir /var/lib/gsmtpd && mount -t tmpfs tmpfs /var/lib/gsmtpd")
        install(root, deb)
        configure(root, accept="example.com")
        root.do("service gsmtpd start")
        send(root)
        root.do("dpkg --purge gsmtpd")
        assert root.do("find /var/lib/gsmtpd; dpkg -l | grep gsmtpd || true") == (
            "/var/lib/gsmtpd\n"
        )


def test_mail_behind_a_link(system: System, deb: Path) -> None:
    with system.without_gsmtpd() as root:
        root.do("mkdir /srv/mail && ln -s /srv/mail /var/lib/gsmtpd")
        for subject in ("before", "after"):
            install(root, deb)
            configure(root, accept="example.com")
            root.do("service gsmtpd start")
            send(root, subject=subject)
            mails = root.do("gsmtpctl list")
            assert "is kept" in root.do("dpkg --purge gsmtpd")
            assert root.do("stat -c '%U %a' /srv/mail") == "root 700\n"
        assert "before" in mails
        # It leads nowhere any more.
        install(root, deb)
        root.do("rm -r /srv/mail && dpkg --purge gsmtpd")


def test_beside_postfix(system: System, deb: Path) -> None:
    """Postfix is as before; with its port taken, gsmtpd says who has it."""
    with system.without_gsmtpd() as root:
        root.do("postconf -e maillog_file=/var/log/postfix.log && postfix start")
        postfix = "find /etc/postfix -type f | sort | xargs md5sum; pgrep -o -x master"
        before = root.do(postfix)
        install(root, deb)
        said = root.refuse("/etc/init.d/gsmtpd start", 69)
        assert "/master" in said
        assert f"process {root.do('pgrep -o -x master').strip()}" in said
        assert root.do(postfix) == before
        assert "Postfix" in root.do("swaks --server 127.0.0.1 --quit-after HELO")
        # On an address of its own it runs beside it.
        configure(root, address="127.0.0.1:2525", accept="example.com")
        root.do("/etc/init.d/gsmtpd start")
        root.do("swaks --server 127.0.0.1:2525 --to you@example.com")
        root.do("apt-get purge -y gsmtpd")
        assert root.do(postfix) == before


def test_bug_report_holds_no_secret(root: Root) -> None:
    """What reportbug runs, as it does: the report goes to descriptor 3."""
    root.do("chmod 644 /etc/gsmtpd.conf && chown root:root /etc/gsmtpd.conf")
    configure(root, password='"hunter, two"', host_name="mx.example.com")
    root.do("chown gsmtpd: /etc/gsmtpd.conf && chmod 600 /etc/gsmtpd.conf")
    report = root.do("/usr/share/bug/gsmtpd 3>&1")
    assert "host_name = mx.example.com" in report
    assert "pymysql" in report
    assert "dbutils" in report
    assert "hunter" not in report
    # A slip that gsmtpd -t quotes.
    configure(root, password='hunter, "two', max_clients="many")
    assert "many" in root.refuse("gsmtpd -t", 78)
    assert "hunter" not in root.do("/usr/share/bug/gsmtpd 3>&1")
    # Somebody else may not read the configuration.
    report = root.do("runuser -u nobody -- /usr/share/bug/gsmtpd 3>&1")
    assert "cannot be read by nobody" in report


def test_bash_completes(root: Root) -> None:
    root.put(ROOT / "tests/package/complete.bash", "/root/complete.bash")
    assert root.do("bash complete.bash gsmtpctl -c /etc/gsmtpd.conf st").split() == [
        "status",
        "stop",
    ]
    assert root.do("bash complete.bash gsmtpctl purge --").split() == [
        "--domain",
        "--dry-run",
        "--help",
        "--older-than",
    ]
    assert root.do("bash complete.bash gsmtpd -c /etc/gsm").split() == ["/etc/gsmtpd.conf"]
    assert "--inetd" in root.do("bash complete.bash gsmtpd --").split()
    faults = root.do("bash complete.bash gsmtpd-faultlab run --faults kill_").split()
    assert faults == ["kill_connection"]


def test_autopkgtest(system: System, built: Path, tmp_path: Path) -> None:
    """debian/tests, by Debian's own tool. It wants a directory, and gets one that is mounted."""
    source = tmp_path / "source"
    subprocess.run(["dpkg-source", "--extract", next(built.glob("*.dsc")), source], check=True)
    with system.with_gsmtpd() as root:
        root.path("/etc/apt/sources.list").write_text("")  # all is there: nothing to look for
        done = subprocess.run(
            [*root.inside(), "autopkgtest", "--no-built-binaries", built / "gsmtpd.deb", source,
             "--", "chroot", root.mount],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    passed = [line.split()[0] for line in done.stdout.splitlines() if " PASS" in line]
    assert sorted(passed) == ["first-mail", "manual", "mariadb"]
