"""Who may see the status page, and what is it told where that is dangerous?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gsmtpd import config
from gsmtpd.config import Address, Config, ConfigError

Loader = Callable[..., Config]
HUNTER = "hunter2-never-shown"


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    def load_text(text: str, environ: Mapping[str, str] = {}) -> Config:
        (tmp_path / "gsmtpd.conf").write_text(f"[status]\n{text}", "utf-8")
        return config.load(str(tmp_path / "gsmtpd.conf"), environ=environ)

    return load_text


def problem(load: Loader, text: str) -> str:
    """The one problem with a text."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    (found,) = caught.value.problems
    return found


def test_nothing_as_shipped(load: Loader) -> None:
    assert load("").status == config.StatusConfig()


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("8025", [("127.0.0.1", 8025)]),
        ("localhost:8025", [("localhost", 8025)]),
        ("127.0.0.1:0", [("127.0.0.1", 0)]),
        ("[::1]:8025, 8026", [("::1", 8025), ("127.0.0.1", 8026)]),
        ("8025, 127.0.0.1:8025", [("127.0.0.1", 8025)]),
    ],
)
def test_this_machines_own_addresses(
    load: Loader, text: str, listen: list[tuple[str, int]]
) -> None:
    loaded = load(f"listen = {text}\n")
    assert loaded.status.listen == tuple(Address(*each) for each in listen)
    assert load(config.dump(loaded).partition("[status]")[2]).status == loaded.status


@pytest.mark.parametrize(
    "address", ["0.0.0.0:8025", "[::]:8025", "192.0.2.1:8025", "mx.example.com:8025"]
)
def test_others_need_a_password(load: Loader, tmp_path: Path, address: str) -> None:
    said = problem(load, f"listen = {address}\n")
    assert f"gsmtpd.conf:2: [status] listen: {address} can be reached from elsewhere" in said
    assert said.endswith("or listen = 8025 for this machine alone")
    (tmp_path / "secret").write_text(f"{HUNTER}\nmore\n")
    file = f"password_file = {tmp_path}/secret\n"
    for password in (f"password = {HUNTER}\n", file):
        loaded = load(f"listen = {address}\n{password}")
        assert loaded.status.password == HUNTER
        assert HUNTER not in config.dump(loaded) + repr(loaded)
    assert loaded.secret_files == (f"{tmp_path}/secret",)


def test_a_password_in_the_file_makes_that_a_secret(load: Loader, tmp_path: Path) -> None:
    loaded = load(f"password = {HUNTER}\n")
    assert loaded.secret_files == (f"{tmp_path}/gsmtpd.conf",)
    assert load("", {"GSMTPD_STATUS_PASSWORD": HUNTER}).secret_files == ()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("listen = 65536", "has no good port; write 0 to 65535"),
        ("listen = localhost", "lacks its port; write a port, e.g. 8025, or host:port"),
        ("listen = :8025", "is not"),
        ("listen = ::1", "is ambiguous"),
        ("password_file = secret", "is not a full path"),
        ("password_file = /nonexistent/x", "cannot be read: No such file"),
        ("password_file = /x\npassword = y", "stands beside password"),
    ],
)
def test_what_is_wrong(load: Loader, text: str, wrong: str) -> None:
    assert wrong in problem(load, f"{text}\n")
