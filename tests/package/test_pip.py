"""Does `pip install` of this tree give the same commands and manual pages, from any directory?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsmtpd import __version__
from tests.accounting import send, with_token
from tests.package.sources import copy_tree
from tests.servers import ROOT, environment, find_program, free_port


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with gsmtpd, and nothing of this tree in sight."""
    tree = tmp_path_factory.mktemp("tree")
    copy_tree(tree)
    made = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", made / "venv"], check=True)
    pip = [made / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", tree]
    subprocess.run(pip, check=True, cwd=made, env=clean())
    shutil.rmtree(tree)
    yield made / "venv"


def clean(prefix: Path | None = None) -> dict[str, str]:
    """The environment, without a path to this tree; with the commands of `prefix` first."""
    kept = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    return kept | ({"PATH": f"{prefix}/bin:{kept['PATH']}"} if prefix else {})


def run(prefix: Path, *command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        command,
        env=clean(prefix) | variables,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands(prefix: Path) -> None:
    assert run(prefix, "gsmtpd", "--version") == f"gsmtpd {__version__}\n"
    assert run(prefix, "gsmtpctl", "--version") == f"gsmtpctl {__version__}\n"
    assert run(prefix, "gsmtpd-faultlab", "--version") == f"gsmtpd-faultlab {__version__}\n"
    assert "sigkill_loop" in run(prefix, "gsmtpd-faultlab", "faults")


def test_manual_pages_are_where_man_looks(prefix: Path) -> None:
    find_program("man")
    for page in sorted((ROOT / "man").iterdir()):
        name, section = page.stem, page.suffix[1:]
        found = run(prefix, "man", "--where", section, name, MANPATH="").strip()
        assert found == f"{prefix}/share/man/man{section}/{page.name}"
        assert Path(found).read_bytes() == page.read_bytes()


def test_first_mail(prefix: Path, tmp_path: Path) -> None:
    """With the configuration that came along."""
    conf = tmp_path / "gsmtpd.conf"
    shutil.copy(prefix / "share/doc/gsmtpd/examples/gsmtpd.conf", conf)
    port = free_port()
    settings = {
        "GSMTPD_LISTEN_MX_ADDRESS": f"127.0.0.1:{port}",
        "GSMTPD_DOMAINS_ACCEPT": "example.com",
        "GSMTPD_SERVER_USER": run(prefix, "id", "-un").strip(),
        "GSMTPD_SERVER_PID_FILE": str(tmp_path / "pid"),
        "GSMTPD_SERVER_CONTROL_SOCKET": str(tmp_path / "control"),
        "GSMTPD_STORE_SQLITE_PATH": str(tmp_path / "mail.db"),
        "GSMTPD_LOG_FILE": str(tmp_path / "log"),
    }
    run(prefix, "gsmtpd", "-c", conf, **settings)
    try:
        assert send(("127.0.0.1", port), with_token())[0].code == 250
        assert "example.com" in run(prefix, "gsmtpctl", "-c", conf, "list", **settings)
    finally:
        run(prefix, "gsmtpctl", "-c", conf, "stop", **settings)
