"""What do systemd's and AppArmor's own tools say of our units and our profile?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gsmtpd.server.engine import STOP_WITHIN
from tests.servers import ROOT, find_program

DEBIAN = ROOT / "debian"
EXAMPLES = ROOT / "etc/examples"
UNITS = sorted(
    path
    for place in (DEBIAN, EXAMPLES)
    for path in place.iterdir()
    if path.suffix in (".service", ".socket")
)
PROFILE = DEBIAN / "apparmor-profile"


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Its exit code, and what it says, stderr in stdout."""
    return subprocess.run(
        [find_program(program), *map(str, arguments)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def setting(unit: str, name: str) -> str:
    """The value of a setting that stands once in a unit."""
    path = next(path for path in UNITS if path.name == unit)
    [value] = re.findall(rf"^{name}=(.*)$", path.read_text(), re.M)
    assert isinstance(value, str)
    return value


# --- systemd --------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a directory of their own, for programs that are there."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS:
        text = re.sub(r"/usr/bin/gsmtp(d|ctl)\b", str(program), unit.read_text())
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def verified(*units: Path) -> str:
    """What systemd says against them."""
    return run("systemd-analyze", "verify", "--man=no", *units).stdout


def test_systemd_has_nothing_against_the_units(units: Path) -> None:
    found = [units / unit.name for unit in UNITS]
    assert len(found) == 4
    assert verified(*found) == ""


def test_systemd_would_say_what_is_wrong(units: Path) -> None:
    wrong = units / "gsmtpd.service"
    wrong.write_text(wrong.read_text().replace("Restart=on-failure", "Restart=sometimes"))
    assert "sometimes" in verified(wrong)


@pytest.mark.parametrize(
    ("unit", "tenths"), [("gsmtpd.service", 15), ("gsmtpd-inetd@.service", 12)]
)
def test_little_is_exposed(units: Path, unit: str, tenths: int) -> None:
    """The threshold is an exposure between 0 and 10, times 10."""
    how = ("--offline=true", "--no-pager", f"--threshold={tenths}")
    done = run("systemd-analyze", "security", *how, units / unit)
    assert done.returncode == 0, done.stdout


def test_the_socket_is_for_the_listener_of_the_shipped_configuration() -> None:
    name = setting("gsmtpd.socket", "FileDescriptorName")
    assert f"[[{name}]]" in (ROOT / "etc/gsmtpd.conf").read_text()


def test_systemd_waits_longer_than_a_stop_takes() -> None:
    # The master looks a second later, and then it kills.
    assert int(setting("gsmtpd.service", "TimeoutStopSec")) >= STOP_WITHIN + 1 + 3


def test_a_sign_of_life_comes_in_time() -> None:
    """The master looks once a second, and a period of less than two is too short for it."""
    assert int(setting("gsmtpd.service", "WatchdogSec")) >= 10


def test_a_start_is_tried_again_and_again() -> None:
    """systemd gives up after 5 starts in 10 s."""
    assert 5 * int(setting("gsmtpd.service", "RestartSec")) > 10


# --- AppArmor -------------------------------------------------------------------------------------


def parsed(profile: Path) -> subprocess.CompletedProcess[str]:
    """Whether AppArmor takes it; the kernel is not asked."""
    return run("apparmor_parser", "--skip-kernel-load", "--skip-cache", profile)


def test_apparmor_takes_the_profile() -> None:
    done = parsed(PROFILE)
    assert done.returncode == 0, done.stdout


def test_apparmor_would_say_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "profile"
    wrong.write_text(PROFILE.read_text().replace("capability chown", "capability everything"))
    assert parsed(wrong).returncode != 0


def test_the_profile_only_complains_and_has_a_place_for_additions() -> None:
    text = PROFILE.read_text()
    assert "profile gsmtpd /usr/bin/gsmtpd flags=(attach_disconnected, complain) {" in text
    assert "include if exists <local/gsmtpd>" in text


SHOWN = (ROOT / "etc/gsmtpd.conf").read_text() + (ROOT / "docs/status.md").read_text()
FILES = re.findall(r" = (/\S+)$", SHOWN, re.M)
LOOK = """
import sys
seen = set()
sys.addaudithook(lambda event, args: event == "open" and seen.add(str(args[0])))
import aiohttp.web, gsmtpd.status.application
print(*sorted(path for path in seen if path.startswith("/proc/self/")))
"""


@pytest.mark.parametrize("path", FILES)
def test_the_profile_has_the_files_of_the_shipped_configuration(path: str) -> None:
    rules = PROFILE.read_text().replace("@{run}", "/run")
    assert f"  {path} r,\n" in rules or f"  {Path(path).parent}/{{,**}} rw" in rules


def test_the_profile_has_what_the_libraries_of_the_status_page_look_at() -> None:
    rules = re.findall(r"^  @\{PROC\}/@\{pids?\}/(\S+) r,$", PROFILE.read_text(), re.M)
    allowed = {name for rule in rules for name in re.findall(r"\w+", rule)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    seen = {Path(path).name for path in done.stdout.split()}
    assert seen, "prometheus_client looks at its own process"
    assert seen <= allowed
