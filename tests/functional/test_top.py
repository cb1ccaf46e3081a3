"""Does gsmtpctl top show on a terminal what a real server does?"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.accounting import Client, send, with_token
from tests.servers import Gsmtpd, environment, wait_for
from tests.terminal import Terminal, on_terminal


@pytest.fixture(scope="module")
def server() -> Iterator[Gsmtpd]:
    with Gsmtpd() as started:
        yield started


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def top(server: Gsmtpd, *options: str) -> list[str]:
    return ["-c", str(server.conf), "top", *options]


def run(server: Gsmtpd, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """It, without a terminal."""
    code = f"{before}\nimport sys, gsmtpd.ctl\nsys.exit(gsmtpd.ctl.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *top(server, *options)],
        check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        env=environment() | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip


def test_it_shows_what_happens_by_itself(server: Gsmtpd, terminal: Terminal) -> None:
    with on_terminal(terminal, top(server, "-d", "0.2")) as process:
        wait_for(lambda: "workers 1/1" in terminal.look())
        before = re.search(r"accepted (\d+)", terminal.look())
        assert before
        with Client(server.address) as client:
            assert client.hello().deliver(with_token()).code == 250
            assert client.deliver(with_token(recipients=["x@example.net"])).code == 550
            wait_for(lambda: f"accepted {int(before[1]) + 1}" in terminal.look())
            wait_for(lambda: re.search(r"\naccepted/s .*[▂-█]", terminal.look()))
            wait_for(lambda: re.search(r"\nrefusals .*relay 0\.\d+/s", terminal.look()))
            wait_for(lambda: re.search(r"\n127\.0\.0\.1 .* mx ", terminal.look()))
            wait_for(lambda: re.search(r" 250 ~[0-9a-f]{20}", terminal.look()))
        wait_for(lambda: "clients 0/1000" in terminal.look())
        terminal.press("q")
        assert process.wait(30) == 0
    assert terminal.is_restored()
    assert b"Traceback" not in terminal.raw


def test_its_keys(server: Gsmtpd, terminal: Terminal) -> None:
    with Client(server.address), on_terminal(terminal, top(server)) as process:
        wait_for(lambda: "SESSIONS  by age" in terminal.look())
        terminal.press("s")
        wait_for(lambda: "SESSIONS  by octets" in terminal.look())
        terminal.press("h")
        wait_for(lambda: "q  quit" in terminal.look())
        terminal.press("h")
        wait_for(lambda: "q  quit" not in terminal.look())
        terminal.press("p")
        wait_for(lambda: "PAUSED" in terminal.look())
        terminal.press("p")
        wait_for(lambda: "PAUSED" not in terminal.look())
        terminal.press("xyz\x1b[A")  # of no meaning
        terminal.press("q")
        assert process.wait(30) == 0


BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})"


@pytest.mark.parametrize("before", ["", BLOCKED])
@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "80", "LINES": "24"}])
def test_a_terminal_that_becomes_tiny(
    server: Gsmtpd, terminal: Terminal, before: str, variables: dict[str, str]
) -> None:
    with on_terminal(terminal, top(server, "-d", "0.1"), before, variables) as process:
        wait_for(lambda: "workers 1/1" in terminal.look())
        for columns, lines in ((40, 12), (1, 1), (5, 2), (200, 60)):
            terminal.resize(columns, lines, process.pid)
            head = "" if columns == 1 else " UTC"  # the last cell stays free
            wait_for(lambda end=head: terminal.look().partition("\n")[0].endswith(end))
        wait_for(lambda: len(terminal.look().partition("\n")[0]) == 199)
        terminal.press("q")
        assert process.wait(30) == 0


def test_a_server_that_is_restarted(terminal: Terminal) -> None:
    server = Gsmtpd()
    with server, on_terminal(terminal, top(server, "-d", "0.2")) as process:
        wait_for(lambda: "running" in terminal.look())
        server.stop()
        wait_for(lambda: "no gsmtpd answers at" in terminal.look())
        server.start()
        wait_for(lambda: "no gsmtpd answers at" not in terminal.look())
        assert "running" in terminal.look()
        terminal.press("q")
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_terminal_as_it_was(
    server: Gsmtpd, terminal: Terminal, number: signal.Signals
) -> None:
    with on_terminal(terminal, top(server)) as process:
        wait_for(lambda: "running" in terminal.look())
        assert not terminal.is_restored()
        process.send_signal(number)
        assert process.wait(30) == 130
    assert terminal.is_restored()


def test_a_terminal_of_ascii(server: Gsmtpd, terminal: Terminal) -> None:
    # Python takes UTF-8 where the locale is C, unless it is told not to.
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    with on_terminal(terminal, top(server, "-d", "0.2"), variables=ascii_only) as process:
        wait_for(lambda: re.search(r"\naccepted/s +\S+  [_#]", terminal.look()))
        assert terminal.raw.isascii()
        terminal.press("q")
        assert process.wait(30) == 0


def test_a_terminal_that_is_none(server: Gsmtpd, terminal: Terminal) -> None:
    done = run(server)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gsmtpctl: top needs a terminal; for one screen as text: gsmtpctl top --once\n"
    )
    with on_terminal(terminal, top(server), variables={"TERM": "nonsense"}) as process:
        assert process.wait(30) == 2
    assert "gsmtpctl: this terminal cannot be used: " in terminal.look()


def test_a_python_without_curses(server: Gsmtpd, terminal: Terminal) -> None:
    without = "import sys\nsys.modules['curses'] = None"
    with on_terminal(terminal, top(server), before=without) as process:
        assert process.wait(30) == 69
    assert "has no module curses" in terminal.look()
    assert run(server, "--once", before=without).returncode == 0


def test_one_screen_as_text(server: Gsmtpd) -> None:
    with Client(server.address) as client:
        client.hello()
        send(server.address, with_token())
        done = run(server, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gsmtpd ")
    assert "SESSIONS  by age" in lines
    assert any(line.startswith("127.0.0.1 ") for line in lines)


def test_nobody_there(terminal: Terminal) -> None:
    server = Gsmtpd()
    assert run(server, "--once").returncode == 69
    with on_terminal(terminal, top(server)) as process:
        assert process.wait(30) == 69
    assert "no gsmtpd answers at" in terminal.look().replace("\n", "")
