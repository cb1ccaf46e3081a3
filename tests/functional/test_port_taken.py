"""Does gsmtpd say who has its port?"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.functional.test_control_live import AS_NOBODY
from tests.functional.test_daemon import gsmtpd
from tests.functional.test_privileges_live import Nobodys
from tests.servers import Gsmtpd, ServerError, SmtpSink, environment


@pytest.fixture(scope="module")
def other() -> Iterator[SmtpSink]:
    """Another mail server."""
    with SmtpSink() as server:
        yield server


def named(other: SmtpSink) -> str:
    """The start of what is said of it."""
    program = os.readlink(f"/proc/{other.pid}/exe")
    assert program.endswith("/smtp-sink")
    return f"{program} (process {other.pid}"


@pytest.mark.parametrize("how", [[], ["-n"]])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_start(other: SmtpSink, how: list[str], host: str) -> None:
    server = Gsmtpd({"listen": {"mx": {"address": f"{host}:{other.port}"}}})
    done = gsmtpd("-c", server.conf, *how)
    assert done.returncode == 69
    assert done.stderr.startswith(f"gsmtpd: cannot listen on {host}:{other.port}: {named(other)}")
    assert done.stderr.endswith(") listens there; stop it, or use -p PORT\n")
    assert done.stderr.count("\n") == 1
    assert other.answers()
    server.close()


def test_a_reload(other: SmtpSink) -> None:
    with Gsmtpd() as server:
        server.configure({"listen": {"more": {"address": f"127.0.0.1:{other.port}"}}})
        with pytest.raises(ServerError, match=re.escape(named(other))):
            server.ctl("reload")
        assert server.answers()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_start_by_a_user_who_may_not_see_it(other: SmtpSink) -> None:
    """It says what is known, and how to see more."""
    server = Nobodys(before=AS_NOBODY)
    server.conf.chmod(0o644)
    server.port = other.port
    server.configure({})
    done = subprocess.run(
        server.command(), check=False, capture_output=True, text=True, env=environment(), timeout=30
    )
    server.close()
    assert done.returncode == 69
    see = re.fullmatch(
        rf"gsmtpd: cannot listen on 127\.0\.0\.1:{other.port}: a program of the user root listens"
        r" there \(see which, as root: (ss .+)\); stop it, or use -p PORT\n",
        done.stderr,
    )
    assert see is not None, done.stderr
    seen = subprocess.run(see[1], shell=True, check=True, capture_output=True, text=True)
    assert f"pid={other.pid}," in seen.stdout
