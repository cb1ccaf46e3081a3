"""Does scripts/run say what is so, when it is so, and does scripts/gsmtpctl find its files?"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import environment, free_port, wait_for

ROOT = Path(__file__).parents[2]
HOME = "127.0.0.1"
WITHIN = 60.0  # seconds

pytestmark = pytest.mark.skipif(
    not Path(sys.prefix, "bin/gsmtpd").exists(), reason="needs gsmtpd in a virtual environment"
)


class Clone:
    """A clone of ours whose .venv is that of the tests. without: a module that it lacks."""

    def __init__(self, path: Path, without: str = "") -> None:
        shutil.copytree(ROOT / "scripts", path / "scripts")
        for name in ("gsmtpd", "etc", "setup.py"):
            (path / name).symlink_to(ROOT / name)
        (path / ".venv").mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith(".made"):
                (path / ".venv" / entry.name).symlink_to(entry)
        (path / ".venv/.made[status]").touch()
        self.environment = environment() | {"PYTHONPATH": str(ROOT)}
        if without:
            (path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{without!r}] = None\n")
            self.environment["PYTHONPATH"] = f"{path}:{ROOT}"
        self.port = free_port()
        self.environment["GSMTPD_LISTEN_MX_ADDRESS"] = f"{HOME}:{self.port}"
        self.path = path
        self.said = path / "said"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Run scripts/run. variables: of the environment, besides."""
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [self.path / "scripts/run", *arguments],
                stdout=said, stderr=said, env=self.environment | variables,
            )  # fmt: skip
        return self.process

    def greets(self) -> bool:
        """Whether it has said all of its greeting."""
        return "Stop with Control-C." in self.said.read_text()

    def close(self) -> None:
        """Stop it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(WITHIN)


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    made = Clone(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("host", ["", f"{HOME}:"])
def test_it_says_where_it_is(clone: Clone, host: str) -> None:
    page, other = free_port(), free_port()
    clone.start("-p", str(other), GSMTPD_STATUS_LISTEN=f"{host}{page}")
    wait_for(clone.greets, WITHIN)
    said = clone.said.read_text()
    assert f"on {HOME}:{other}. In another shell:\n" in said
    assert f"In a browser: http://{HOME}:{page}/\n" in said
    assert f"Mail is kept in {clone.path}/var/mail.db." in said
    assert clone.said.read_text().index("listening on") < said.index("gsmtpd takes mail")


def test_it_says_nothing_of_what_does_not_start(clone: Clone) -> None:
    with socket.create_server((HOME, 0)) as taken:
        where = f"{HOME}:{taken.getsockname()[1]}"
        process = clone.start(GSMTPD_STATUS_LISTEN=where)
        assert process.wait(WITHIN) == 69
    said = clone.said.read_text()
    assert f"cannot listen on {where}: " in said
    assert said.endswith("; stop it, or change GSMTPD_STATUS_LISTEN\n")
    assert "takes mail" not in said


def test_it_says_what_the_page_lacks(tmp_path: Path) -> None:
    clone = Clone(tmp_path, without="aiohttp")
    clone.start()
    try:
        wait_for(clone.greets, WITHIN)
        assert ".venv lacks aiohttp; run: .venv/bin/pip install" in clone.said.read_text()
        assert "http://" not in clone.said.read_text()
    finally:
        clone.close()


def test_a_wish_that_cannot_be_met_is_named(tmp_path: Path) -> None:
    clone = Clone(tmp_path, without="aiohttp")
    assert clone.start(GSMTPD_STATUS_LISTEN=str(free_port())).wait(WITHIN) == 78
    said = clone.said.read_text()
    assert "gsmtpd: GSMTPD_STATUS_LISTEN: [status] listen: needs aiohttp; install" in said
    assert os.fspath(clone.path / "etc") not in said


def test_gsmtpctl_takes_names_from_where_its_user_is(clone: Clone, tmp_path: Path) -> None:
    def ctl(*arguments: str) -> str:
        done = subprocess.run(
            [clone.path / "scripts/gsmtpctl", *arguments], cwd=elsewhere, env=clone.environment,
            check=True, capture_output=True,
        )  # fmt: skip
        return done.stdout.decode()

    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "mail").write_bytes(
        b"Content-Type: image/png\nContent-Disposition: attachment; filename=a.png\n\nx\n"
    )
    ctl("init-db", "--apply")
    ctl("import", "--to", "bob@example.com", "mail")
    assert ctl("show", "1", "--attachment", "1") == f"saved 3 bytes as {elsewhere}/a.png\n"
    ctl("export", "all.mbox")
    assert sorted(os.listdir(elsewhere)) == ["a.png", "all.mbox", "mail"]
