"""What is said of a certificate that is new, that is broken, or whose time is over?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.certificates import Authority
from tests.peers import TLSClient
from tests.servers import Gsmtpd, environment, tls_section, wait_for

NAME = "mx.example.com"
OVER, SOON = (-10, -1), (-1, 2)  # days
EXPIRED = "the certificate has expired; clients that look will not go on"
SHOWN = "new certificates are shown to clients"


class Site(NamedTuple):
    """A server with a certificate, and who signs the next one."""

    server: Gsmtpd
    ca: Authority

    @property
    def file(self) -> Path:
        return self.ca.directory / f"{NAME}.pem"

    def lines(self, text: str) -> list[str]:
        """The lines of the log with it."""
        return [line for line in self.server.log.read_text().splitlines() if text in line]

    def serial(self) -> str:
        """The serial number of the certificate that a client is shown."""
        with TLSClient(self.server.address, self.ca.client()) as client:
            return str((client.socket.getpeercert() or {})["serialNumber"])

    def last_reload(self) -> object:
        return self.server.status()["reload"]


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def site(ca: Authority) -> Iterator[Site]:
    with Gsmtpd(starttls(ca)) as server:
        yield Site(server, ca)


def starttls(ca: Authority, days: tuple[float, float] = (-1, 10)) -> dict[str, Any]:
    """Settings with a certificate that is made anew, in the same files."""
    return {"tls": tls_section(*ca.pair(NAME, days=days)), "listen": {"mx": {"tls": "starttls"}}}


def run(module: str, server: Gsmtpd, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "-c", str(server.conf), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


# --- renewed --------------------------------------------------------------------------------------


def test_a_new_one_is_no_reload(site: Site) -> None:
    """Who has edited the configuration must not read that it is in force."""
    before = site.serial()
    site.server.configure(starttls(site.ca) | {"limits": {"max_clients": 7}})
    wait_for(lambda: site.lines(SHOWN))
    wait_for(lambda: site.serial() != before)
    assert len(site.lines(SHOWN)) == 1
    assert "level=info" in site.lines(SHOWN)[0]
    assert not site.lines("reloaded")
    assert site.last_reload() is None
    assert site.server.status()["max_clients"] != 7


def test_it_leaves_the_outcome_of_the_last_reload_alone(site: Site) -> None:
    site.server.ctl("reload")
    reloaded = site.last_reload()
    assert reloaded is not None
    starttls(site.ca)
    wait_for(lambda: site.lines(SHOWN))
    assert site.last_reload() == reloaded
    assert len(site.lines("reloaded")) == 1


def test_a_broken_one(site: Site) -> None:
    site.server.ctl("reload")
    reloaded, before = site.last_reload(), site.serial()
    site.file.write_bytes(b"-----BEGIN CERTIFICATE-----\nno such thing\n")
    wait_for(lambda: site.lines("certificates refused"))
    (line,) = site.lines("certificates refused")
    assert "level=error" in line
    assert f"certificates refused, the old ones stay: [tls] {site.file}: " in line
    assert not site.lines("reload refused")
    assert site.last_reload() == reloaded
    assert site.serial() == before
    # To who asks for a reload it is one that is refused.
    assert run("gsmtpd.ctl", site.server, "reload").returncode == 78
    (line,) = site.lines("reload refused")
    assert f"reload refused, the old configuration stays: [tls] {site.file}: " in line
    assert site.last_reload() != reloaded


# --- over, or nearly so ---------------------------------------------------------------------------


def test_a_renewal_with_an_expired_one(site: Site) -> None:
    starttls(site.ca, OVER)
    wait_for(lambda: site.lines(SHOWN))
    (line,) = site.lines(EXPIRED)
    assert "level=warning" in line
    assert str(site.file) in line


def test_a_reload_says_so(ca: Authority) -> None:
    with Gsmtpd() as server:
        site = Site(server, ca)
        server.configure(starttls(ca, OVER))
        done = run("gsmtpd.ctl", server, "reload")
        assert done.returncode == 0
        assert done.stdout == "reloaded\n"
        assert f"{site.file}: {EXPIRED}" in done.stderr
        assert len(site.lines(EXPIRED)) == 1


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ((-1, 10), ""),
        (OVER, EXPIRED),
        ((1, 10), "the certificate is not valid yet; is the clock right?"),
        (SOON, "the certificate expires on "),
    ],
)
def test_the_check_and_the_start_say_so(
    ca: Authority, days: tuple[float, float], said: str
) -> None:
    with Gsmtpd(starttls(ca, days)) as server:
        site = Site(server, ca)
        complaints = site.lines(str(site.file))
        assert len(complaints) == bool(said)
        assert all("level=warning" in line and said in line for line in complaints)
        done = run("gsmtpd", server, "-t")
        assert done.returncode == 0
        assert done.stdout == f"{server.conf}: the configuration is good\n"
        assert done.stderr.count(f"gsmtpd: warning: {site.file}: {said}") == bool(said)
        assert bool(done.stderr) == bool(said)


def test_without_tls_nobody_is_told(ca: Authority) -> None:
    with Gsmtpd(starttls(ca, OVER) | {"listen": {}}) as server:
        assert not Site(server, ca).lines(EXPIRED)
        assert "expired" not in run("gsmtpd", server, "-t").stderr


def test_it_is_said_again(ca: Authority) -> None:
    """Each day. Here it is each second."""
    often = "import gsmtpd.master; gsmtpd.master._COMPLAINTS = 1.0"
    with Gsmtpd(starttls(ca, SOON), before=often) as server:
        site = Site(server, ca)
        wait_for(lambda: len(site.lines("the certificate expires on ")) > 2)
        starttls(ca)
        wait_for(lambda: site.lines(SHOWN))
        told = len(site.lines("the certificate expires on "))
        before = len(site.lines("level="))
        server.ctl("reload")  # time in which it could be said
        wait_for(lambda: len(site.lines("level=")) > before)
        assert len(site.lines("the certificate expires on ")) == told


# --- in the wrong place ---------------------------------------------------------------------------


def test_a_certificate_in_the_place_of_the_key(site: Site) -> None:
    """It may be everybody's to read, and no cure is told for that."""
    site.file.chmod(0o644)
    for tls in (
        {"certificate": site.file, "key": None},
        {"certificate": site.file.with_suffix(".key"), "key": site.file},
    ):
        site.server.configure({"tls": tls, "listen": {"mx": {"tls": "starttls"}}})
        done = run("gsmtpd", site.server, "-t")
        assert done.returncode == 78
        assert "are certificate and key swapped, or is key = missing?" in done.stderr
        assert "chmod" not in done.stderr
