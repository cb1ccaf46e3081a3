"""Does gsmtpd work under a real systemd, within all that its units forbid?

In the units that run here a system call that is forbidden kills: so none is even tried.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import lacking
from tests.package.systemd_root import SystemdRoot
from tests.servers import ROOT, find_program, wait_for

UNITS = (
    *("debian/gsmtpd.service", "debian/gsmtpd.socket"),
    *("etc/examples/gsmtpd-inetd@.service", "etc/examples/gsmtpd-inetd.socket"),
)
VENDOR = "/usr/share/gsmtpd/vendor"
LIBRARIES = ("configobj", "validate", "daemon", "lockfile", "dbutils", "pymysql")
COMMAND = f"""#!/usr/bin/python3
import sys
sys.path.insert(0, "{VENDOR}")
from gsmtpd.%s import main
sys.exit(main())
"""
SEND = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], 25, timeout=20) as client:
    client.sendmail("a@example.org", "b@example.com", "Subject: under systemd\\r\\n\\r\\n")
"""
SEND_BY_TLS = SEND.replace("client.sendmail", "client.starttls(); client.sendmail")
CERTIFICATE, KEY = "/etc/ssl/certs/gsmtpd-test.pem", "/etc/ssl/private/gsmtpd-test.key"
SOCKET = "/run/mysqld/mysqld.sock"
PASSWORD = "/etc/gsmtpd.password"
MYSQL = {"GSMTPD_STORE_BACKEND": "mysql", "GSMTPD_STORE_MYSQL_PASSWORD_FILE": PASSWORD}
HOST = "GSMTPD_STORE_MYSQL_HOST"
LOG = "/var/log/gsmtpd/gsmtpd.log"
CAP_NET_BIND_SERVICE = 1 << 10


OWN = "/etc/gsmtpd/handlers"
HANDLER = """
import os
from gsmtpd.handlers import Handler

class Seen(Handler):
    def handle(self, mail):
        try:
            open("/etc/trial", "w")
        except OSError as error:
            print(f"uid {os.getuid()}, nice {os.nice(0)}, /etc: {error.strerror}")
"""
HANDLERS = {
    "seen": "class = seen",
    "box": "class = forward-to-maildir\n  path = /var/lib/gsmtpd/Maildir",
    "pipe": "class = command\n  command = /bin/sh -c 'cat > /var/lib/gsmtpd/piped'",
}


@pytest.fixture(scope="module")
def booted() -> Iterator[SystemdRoot]:
    """This machine with systemd and gsmtpd."""
    find_program("mariadbd")
    if os.geteuid():
        lacking("the rights of root, to boot systemd")
    system = SystemdRoot()
    for name, module in (("gsmtpd", "cli"), ("gsmtpctl", "ctl")):
        system.lay(f"/usr/bin/{name}", COMMAND % module, 0o755)
    system.lay(f"{VENDOR}/gsmtpd", ROOT / "gsmtpd")
    for name in LIBRARIES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            system.lay(f"{VENDOR}/{name}", Path(found.origin).parent)
    for unit in UNITS:
        text = (ROOT / unit).read_text()
        text = text.replace("SystemCallErrorNumber=EPERM", "SystemCallErrorNumber=kill")
        system.lay(f"/etc/systemd/system/{Path(unit).name}", text)
    conf = (ROOT / "etc/gsmtpd.conf").read_text()
    system.lay("/etc/gsmtpd.conf", conf.replace("accept =\n", "accept = example.com\n", 1))
    with system:
        system.do("id gsmtpd || useradd --system --user-group gsmtpd")
        # A container gets its /etc/hosts from outside.
        system.do("getent hosts localhost || echo 127.0.0.1 localhost >> /etc/hosts")
        yield system


@pytest.fixture
def system(booted: SystemdRoot) -> Iterator[SystemdRoot]:
    """The same, as it was at first."""
    conf = booted.path("/etc/gsmtpd.conf").read_text()
    yield booted
    booted.do("systemctl stop 'gsmtpd*' other; systemctl reset-failed")
    booted.do("rm -rf /var/lib/gsmtpd /var/log/gsmtpd /run/systemd/system/gsmtpd*.d")
    booted.do("journalctl --rotate --vacuum-time=1us && systemctl daemon-reload")
    booted.path("/etc/gsmtpd.conf").write_text(conf)


@pytest.fixture(scope="module")
def database(booted: SystemdRoot) -> str:
    """A MariaDB; what asks it for the recipients of all mail."""
    data = "/var/lib/gsmtpd-test-mysql"
    own = "--no-defaults --user=root"
    booted.do(
        f"mkdir {data} && mariadb-install-db {own} --datadir={data} --force --skip-test-db"
        " --auth-root-authentication-method=normal"
    )
    booted.do(
        "systemd-run --unit=database --service-type=notify --property=RuntimeDirectory=mysqld"
        f" mariadbd {own} --datadir={data} --socket={SOCKET} --bind-address=127.0.0.1"
    )
    client = f"mariadb {own} --socket={SOCKET} --batch --skip-column-names"
    booted.do(
        f"""{client} -e "CREATE DATABASE gsmtpd CHARACTER SET utf8mb4;
        CREATE USER gsmtpd@localhost IDENTIFIED BY 'a password';
        GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, CREATE VIEW, DROP, ALTER,
         LOCK TABLES ON gsmtpd.* TO gsmtpd@localhost" """
    )
    booted.do(f"echo 'a password' > {PASSWORD} && chown root:gsmtpd {PASSWORD}")
    booted.do(f"chmod 640 {PASSWORD}")
    variables = " ".join(f"{key}={value}" for key, value in (MYSQL | {HOST: SOCKET}).items())
    booted.do(f"env {variables} gsmtpctl init-db --apply")
    return f"{client} gsmtpd -e 'SELECT recipient FROM new_mail; DELETE FROM new_mail'"


def override(system: SystemdRoot, settings: str, unit: str = "gsmtpd.service") -> None:
    """What an administrator does with: systemctl edit."""
    directory = system.path(f"/run/systemd/system/{unit}.d")
    directory.mkdir(exist_ok=True)
    (directory / "override.conf").write_text(f"[Service]\n{settings}\n")
    system.do("systemctl daemon-reload")


def environment(variables: Mapping[str, str]) -> str:
    return "\n".join(f"Environment={key}={value}" for key, value in variables.items())


def send(system: SystemdRoot, host: str = "127.0.0.1") -> None:
    """A mail from another machine, so to speak."""
    system.do(f"python3 -c {shlex.quote(SEND)} {host}")


def mails(system: SystemdRoot) -> int:
    """How many are in the mail file."""
    return system.do("gsmtpctl list").count(" under systemd\n")


def main_pid(system: SystemdRoot) -> int:
    return int(system.show("gsmtpd", "MainPID"))


# --- the daemon -----------------------------------------------------------------------------------


def test_start_mail_reload_stop(system: SystemdRoot) -> None:
    system.do("systemctl start gsmtpd")
    send(system)
    send(system, "::1")
    assert mails(system) == 2
    wait_for(lambda: "accepted: 2" in system.show("gsmtpd", "StatusText"))
    system.do("systemctl reload gsmtpd")
    send(system)
    system.do("systemctl kill --kill-who=main --signal=USR2 gsmtpd")
    wait_for(lambda: "thread MainThread" in system.journal("gsmtpd"))
    system.do("systemctl stop gsmtpd")
    assert system.show("gsmtpd", "Result") == "success"
    said = system.journal("gsmtpd")
    assert "reloaded /etc/gsmtpd.conf" in said
    assert said.count("result=accepted") == 3
    assert "level=error" not in said
    assert "Traceback" not in said
    assert system.do("ls /var/lib/gsmtpd") == "mail.db\n"
    system.do("! test -e /run/gsmtpd")


def test_it_is_confined(system: SystemdRoot) -> None:
    """A directive that this systemd cannot obey is left out without an error."""
    system.do("systemctl start gsmtpd")
    for pid in system.do("cat /sys/fs/cgroup/system.slice/gsmtpd.service/cgroup.procs").split():
        said = dict(line.split(":\t") for line in system.do(f"cat /proc/{pid}/status").splitlines())
        assert said["Seccomp"] == "2"
        assert said["NoNewPrivs"] == "1"
        assert re.search(r"^Max core file size +0 +0 ", system.do(f"cat /proc/{pid}/limits"), re.M)
        for which in ("Prm", "Eff", "Bnd", "Amb"):
            assert int(said[f"Cap{which}"], 16) == CAP_NET_BIND_SERVICE
        inside = f"nsenter --target={pid} --mount --setuid=$(id -u gsmtpd) --setgid=$(id -g gsmtpd)"
        for path in ("/var/lib/gsmtpd", "/run/gsmtpd", "/tmp"):
            system.do(f"{inside} touch {path}/trial")
        for path in ("/etc", "/var/lib", "/usr", "/home"):
            system.do(f"! nsenter --target={pid} --mount touch {path}/trial")
        seen = system.do(f"{inside} ls /proc /dev").split()
        assert not {"1", "sys", "kmsg", "mem"} & {*seen}
    assert system.do("stat -c '%a %U' /var/lib/gsmtpd /run/gsmtpd") == "750 gsmtpd\n750 gsmtpd\n"


def test_handlers(system: SystemdRoot) -> None:
    """They may do what they are for, within the same bounds."""
    system.do("mkdir -p /etc/gsmtpd/handlers")
    system.path("/etc/gsmtpd/handlers/seen.py").write_text(HANDLER)
    conf = system.path("/etc/gsmtpd.conf")
    before = conf.read_text()
    bound = "".join(f"  [[{name}]]\n  match = *\n  {text}\n" for name, text in HANDLERS.items())
    with_some = before.replace("directory =\nsmarthost =\n", f"directory = {OWN}\nsmarthost =\n")
    conf.write_text(with_some.replace("\n[status]\n", f"\n{bound}\n[status]\n"))
    try:
        system.do("systemctl start gsmtpd")
        assert "the configuration is good" in system.do("gsmtpd -t")
        send(system)
        wait_for(lambda: "Handled:    3 mails; 0 tries failed" in system.do("gsmtpctl status"))
        user = system.do("id -u gsmtpd").strip()
        seen = f"handler seen: uid {user}, nice 15, /etc: Read-only file system"
        wait_for(lambda: seen in system.journal("gsmtpd"))
        said = system.journal("gsmtpd")
        assert "level=error" not in said
        assert "Traceback" not in said
        assert " under systemd\n" in system.do("cat /var/lib/gsmtpd/Maildir/new/*")
        assert " under systemd\n" in system.do("cat /var/lib/gsmtpd/piped")
        system.do("systemctl stop gsmtpd")
        assert system.show("gsmtpd", "Result") == "success"
    finally:
        conf.write_text(before)
        system.do("systemctl stop gsmtpd; rm -rf /etc/gsmtpd/handlers /var/lib/gsmtpd/[Mp]*")


def test_a_reload_that_is_refused(system: SystemdRoot) -> None:
    system.do("systemctl start gsmtpd")
    system.do("sed -i 's/^max_size = .*/max_size = many/' /etc/gsmtpd.conf")
    assert "failed" in system.refuse("systemctl reload gsmtpd", 1)
    assert "gsmtpctl: reload refused, nothing has changed: /etc/gsmtpd.conf:" in system.journal(
        "gsmtpd"
    )
    assert system.show("gsmtpd", "ActiveState") == "active"
    send(system)


def test_an_address_that_is_taken_away(system: SystemdRoot) -> None:
    """The one place where ctypes passes memory to the kernel."""
    system.do("systemctl start gsmtpd")
    system.do("sed -i 's/^  address = .*/  address = 127.0.0.1:25/' /etc/gsmtpd.conf")
    system.do("systemctl reload gsmtpd")
    send(system)
    assert "level=error" not in system.journal("gsmtpd")


def test_tls(system: SystemdRoot) -> None:
    """As README.Debian has it, with a key of the group ssl-cert; then both are replaced."""
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=mx.example"
        f" -out {CERTIFICATE} -keyout {KEY} -addext subjectAltName=DNS:%s 2>&1"
        f" && chmod 640 {KEY} && chgrp ssl-cert {KEY}"
    )
    system.do(
        "getent group ssl-cert || groupadd --system ssl-cert; install -d -m 710 /etc/ssl/private"
    )
    system.do("chgrp ssl-cert /etc/ssl/private && gpasswd --add gsmtpd ssl-cert")
    system.do(make % "one.example")
    system.do("sed -i 's/^  tls = .*/  tls = starttls/' /etc/gsmtpd.conf")
    for name, path in (("certificate", CERTIFICATE), ("key", KEY)):
        system.do(f"sed -i 's|^{name} =.*|{name} = {path}|' /etc/gsmtpd.conf")
    system.do("systemctl start gsmtpd")
    system.do(f"python3 -c {shlex.quote(SEND_BY_TLS)} 127.0.0.1")
    system.do(make % "two.example")
    shown = "openssl s_client -starttls smtp -connect 127.0.0.1:25 </dev/null 2>/dev/null"
    text = f"{shown} | openssl x509 -noout -ext subjectAltName"
    wait_for(lambda: "two.example" in system.run(text).stdout, 30)
    system.do("systemctl reload gsmtpd")
    system.do(f"python3 -c {shlex.quote(SEND_BY_TLS)} 127.0.0.1")
    system.do(f"chmod 644 {KEY}")
    system.refuse("systemctl reload gsmtpd", 1)
    said = system.journal("gsmtpd")
    assert said.count(" tls=TLSv1.3:TLS_") == 2
    assert f"{KEY}: holds a private key, and everybody can read it" in said
    assert mails(system) == 2


@pytest.mark.parametrize("host", [SOCKET, "localhost"])
def test_mariadb(system: SystemdRoot, database: str, host: str) -> None:
    settings = MYSQL | {HOST: host, "GSMTPD_SERVER_PROCESSES": "2"}
    override(system, environment(settings))
    system.do("systemctl start gsmtpd")
    send(system)
    system.do("systemctl reload gsmtpd")
    send(system)
    assert system.do(database) == "b@example.com\n" * 2


def test_log_files_stay_readable_for_administrators(system: SystemdRoot) -> None:
    """As the package makes their directory, and as logrotate then does."""
    system.do("install -d -o gsmtpd -g adm -m 2750 /var/log/gsmtpd")
    override(system, environment({"GSMTPD_LOG_FILE": LOG}))
    system.do("systemctl start gsmtpd")
    system.do(f"mv {LOG} {LOG}.1 && systemctl kill --kill-who=main --signal=USR1 gsmtpd")
    send(system)
    assert "result=accepted" in system.do(f"cat {LOG}")
    said = system.do(f"stat -c '%a %U:%G' /var/log/gsmtpd {LOG}")
    assert said == "2750 gsmtpd:adm\n640 gsmtpd:adm\n"


def test_the_port_is_taken(system: SystemdRoot) -> None:
    """By whom cannot be seen from within; systemd tries again until it has gone."""
    system.do("systemd-run --unit=other --property=Type=exec python3 -m http.server 25")
    wait_for(lambda: system.run("ss -Hltn sport = :25").stdout)
    system.refuse("systemctl start gsmtpd", 1)
    assert system.show("gsmtpd", "ExecMainStatus") == "69"
    said = system.journal("gsmtpd")
    assert "0.0.0.0:25: a program of the user root listens there (see which, as root: ss " in said
    pid = system.show("other", "MainPID")
    assert f"(process {pid}, other.service) listens there" in system.refuse("gsmtpd -n", 69)
    system.do("systemctl stop other")
    wait_for(lambda: system.show("gsmtpd", "ActiveState") == "active")
    send(system)


def test_the_port_is_systemds(system: SystemdRoot) -> None:
    system.do("systemd-run --unit=other --socket-property=ListenStream=25 sleep 60")
    said = system.refuse("gsmtpd -n", 69)
    assert "systemd listens there for a socket unit, see: systemctl list-sockets; stop it" in said
    system.do("systemctl stop other.socket")


def test_no_second_try_with_a_broken_configuration(system: SystemdRoot) -> None:
    system.do("sed -i 's/^max_size = .*/max_size = many/' /etc/gsmtpd.conf")
    system.refuse("systemctl start gsmtpd", 1)
    assert system.show("gsmtpd", "ActiveState") == "failed"
    assert '[limits] max_size: "many" is not a size' in system.journal("gsmtpd")


@pytest.mark.parametrize(("how", "result"), [("STOP", "watchdog"), ("KILL", "signal")])
def test_a_master_that_hangs_or_dies(system: SystemdRoot, how: str, result: str) -> None:
    override(system, "WatchdogSec=2\nRestartSec=100ms")
    system.do("systemctl start gsmtpd")
    before = main_pid(system)
    system.do(f"kill -{how} {before}")
    wait_for(lambda: main_pid(system) not in (0, before))
    wait_for(lambda: system.show("gsmtpd", "ActiveState") == "active")
    send(system)
    assert f"Failed with result '{result}'" in system.journal("gsmtpd")
    assert system.show("gsmtpd", "NRestarts") == "1"


# --- sockets of systemd ---------------------------------------------------------------------------


def test_the_first_client_starts_it(system: SystemdRoot) -> None:
    system.do("systemctl start gsmtpd.socket")
    assert system.show("gsmtpd", "ActiveState") == "inactive"
    send(system)
    send(system, "::1")
    assert "Listening:  [::]:25 (mx)\n" in system.do("gsmtpctl status")
    system.do("systemctl reload gsmtpd && systemctl restart gsmtpd")
    send(system)
    system.do("gsmtpctl stop")
    send(system)
    assert mails(system) == 4


@pytest.mark.parametrize("host", [None, SOCKET, "localhost"])
def test_a_process_for_each_client(system: SystemdRoot, database: str, host: str | None) -> None:
    if host:
        override(system, environment(MYSQL | {HOST: host}), "gsmtpd-inetd@.service")
    system.do("systemctl start gsmtpd-inetd.socket")
    send(system)
    send(system, "::1")
    stored = system.do(database).count("\n") if host else mails(system)
    assert stored == 2
    said = system.journal("'gsmtpd-inetd@*'")
    assert re.findall(r"result=accepted .* client=(\S+)", said) == ["127.0.0.1", "::1"]
    assert "level=error" not in said
