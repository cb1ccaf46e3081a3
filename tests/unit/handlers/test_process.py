"""Is a runner kept in check, whatever its handler does? Real processes, with handlers in files."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.handlers.mail import Facts
from gsmtpd.handlers.process import RefusedError, Runner, RunnerError, Task
from tests.servers import wait_for

RAW = b"Subject: hello\r\n\r\nx\r\n"
FACTS = Facts(
    id="f" * 32, row=7, delivery="d" * 32, attempt=1, sender="a@example.org",
    recipient="b@example.com", mailbox="b@example.com", client_ip="192.0.2.1",
    helo="client.example", is_tls=True, received_at=1_700_000_000.0,
)  # fmt: skip
DONE: dict[str, Any] = {"done": True, "notes": [], "discard": False, "reply": ""}
HEAD = """
import ctypes, json, os, resource, signal, subprocess, sys, threading, time
from gsmtpd.handlers import DISCARD, GiveUpError, Handler, Later, RetryError

class Tested(Handler):
    defaults = {"a": "1", "b": ""}
"""

Make = Callable[..., Runner]


def nobody_asks(frame: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError(frame)


def act(runner: Runner, **facts: Any) -> dict[str, Any]:
    """What becomes of a mail."""
    return runner.run(FACTS._replace(**facts)._asdict(), RAW, nobody_asks)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a runner whose handler's class has that body, behind `defaults`; it is started."""
    made: list[Runner] = []

    def runner(body: str, *, started: bool = True, **changes: Any) -> Runner:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / "tested.py").write_text(f"{HEAD}\n{lines}\n")
        task = Task("shown", "tested", str(tmp_path), {}, 20.0, 512 << 20, "", "mx.example.com")
        made.append(Runner(task._replace(**changes)))
        if started:
            made[-1].start()
        return made[-1]

    yield runner
    for each in made:
        each.end()


def handles(*statements: str) -> str:
    """A body whose `handle` has those statements."""
    return "def handle(self, mail):\n" + "\n".join(f"    {each}" for each in statements)


def note(value: str) -> str:
    """A statement: the value of an expression is noted."""
    return f"mail.annotate('it', json.dumps({value}))"


def noted(frame: dict[str, Any]) -> Any:
    """That value."""
    ((_, value),) = frame["notes"]
    return json.loads(value)


def is_there(pid: int) -> bool:
    """Whether a process runs still; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


# --- what it answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "frame"),
    [
        ("pass", DONE),
        ("return None", DONE),
        ("return DISCARD", DONE | {"discard": True}),
        ("mail.annotate('n', 'v'); mail.annotate('n', 'ü\\0')",
         DONE | {"notes": [["n", "v"], ["n", "ü\0"]]}),
        ("mail.annotate('n', 'v'); mail.reply('x'); return Later(90)", {"later": 90.0}),
        ("return Later(0)", {"later": 0.0}),
        ("raise RetryError('busy', after=7)", {"failed": "busy", "again": True, "after": 7.0}),
        ("raise RetryError('busy')", {"failed": "busy", "again": True, "after": None}),
        ("raise RetryError('busy', after=-1)", {"failed": "busy", "again": True, "after": None}),
        ("raise RetryError('busy', after='x')", {"failed": "busy", "again": True, "after": None}),
        ("raise GiveUpError('no\\r\\n\\tgood\\0')", {"failed": "no good", "again": False}),
        ("raise KeyError('x')", {"failed": "KeyError: 'x'", "again": True}),
        ("raise KeyboardInterrupt", {"failed": "KeyboardInterrupt:", "again": True}),
        ("sys.exit(3)", {"failed": "SystemExit: 3", "again": True}),
        ("mail.reply('a'); mail.reply('b')",
         {"failed": "ValueError: a mail is replied to once", "again": True}),
        ("return 'done'", {"failed": "it returned str, which is no result", "again": False}),
        ("return True", {"failed": "it returned bool, which is no result", "again": False}),
        ("return Later('soon')", {
            "failed": "it returned Later('soon'), which is no number of seconds", "again": False}),
        ("return Later(float('nan'))", {
            "failed": "it returned Later(nan), which is no number of seconds", "again": False}),
    ],
)  # fmt: skip
def test_what_it_answers(make: Make, statement: str, frame: dict[str, Any]) -> None:
    runner = make(handles(statement))
    assert act(runner) == frame
    assert act(runner) == frame  # and lives


def test_it_gets_the_mail_and_its_settings(make: Make) -> None:
    facts = note("[mail.facts, mail.raw.decode(), mail.subject, dict(self.settings), os.getpid()]")
    runner = make(handles(facts), settings={"b": "two"})
    *found, pid = noted(act(runner, attempt=3))
    assert found == [[*FACTS._replace(attempt=3)], RAW.decode(), "hello", {"a": "1", "b": "two"}]
    assert noted(act(runner))[-1] == pid != os.getpid()


def test_a_long_reason_is_cut(make: Make) -> None:
    runner = make(handles("raise ValueError('x' * 1_000_000)"))
    assert len(act(runner)["failed"]) == 500


def test_what_it_asks_is_answered(make: Make) -> None:
    """Here by no: then no smarthost is needed."""
    runner = make(handles("mail.reply('x')"), smarthost="127.0.0.1:1")
    asked = []

    def answer(frame: dict[str, Any]) -> dict[str, Any]:
        asked.append(frame)
        return {"may": False}

    frame = runner.run(FACTS._asdict(), RAW, answer)
    assert asked == [{"ask": "may_reply", "address": "a@example.org"}]
    assert frame == DONE | {"reply": "no reply: a@example.org has had one lately"}


def test_who_is_asked_may_fail(make: Make) -> None:
    """What the outbox raises comes through, and nothing is sent by a runner that goes on."""
    runner = make(handles("mail.reply('x')"), smarthost="127.0.0.1:1")

    def answer(frame: dict[str, Any]) -> dict[str, Any]:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        runner.run(FACTS._asdict(), RAW, answer)
    with pytest.raises(RunnerError, match="was ended"):
        act(runner)
    runner.start()
    assert runner.run(FACTS._asdict(), RAW, lambda _: {"may": False})["done"]


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("os._exit(3)", "ended its process, with exit code 3"),
        ("os._exit(0)", "ended its process, with exit code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)",
         "was killed by SIGKILL: by somebody, or as memory ran out"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "was ended by SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "was ended by signal 37"),
        ("ctypes.string_at(0)", "was ended by SIGSEGV"),
        ("os.abort()", "was ended by SIGABRT"),
        ("os.write(int(sys.argv[1]), b'hello\\n')",
         "wrote a line that is no frame to gsmtpd, and was killed"),
        ("os.closerange(3, 100)", "ended its process, with exit code 0"),
    ],
)  # fmt: skip
def test_its_process_ends(make: Make, statement: str, said: str) -> None:
    runner = make(handles(f"if mail.attempt == 1: {statement}"))
    with pytest.raises(RunnerError) as caught:
        act(runner)
    assert str(caught.value) == said
    with pytest.raises(RunnerError, match="was ended"):
        act(runner)
    runner.start()  # a new one
    assert act(runner, attempt=2) == DONE


@pytest.mark.parametrize(
    "statement",
    [
        "time.sleep(1e6)",
        "while True: pass",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1e6)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; signal.pause()",
    ],
)
def test_it_hangs(make: Make, statement: str) -> None:
    runner = make(handles(statement), time_limit=0.3)
    with pytest.raises(RunnerError, match=r"^took longer than 0\.3 s, and was killed$"):
        act(runner)
    runner.start()


def test_asking_gives_it_no_more_time(make: Make) -> None:
    """Each answer would begin the time anew otherwise."""
    body = handles(
        "while True:",
        "    os.write(int(sys.argv[1]), b'{\"ask\": 1}\\n')",
        "    os.read(int(sys.argv[1]), 9999)",
        "    time.sleep(0.02)",
    )
    runner = make(body, time_limit=0.5)
    with pytest.raises(RunnerError, match=r"took longer than 0\.5 s"):
        runner.run(FACTS._asdict(), RAW, lambda _: {"may": False})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("settings = {}", "has no method handle; write def handle(self, mail):"),
        ("async def handle(self, mail):\n    pass", "handle is async; write it without async"),
    ],
)
def test_what_cannot_be_called(make: Make, body: str, said: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        make(body)


def test_an_error_without_a_text(make: Make) -> None:
    body = handles(
        "class Mute(ValueError):",
        "    def __str__(self):",
        "        return 1 // 0",
        "if mail.attempt == 1:",
        "    raise GiveUpError('')",
        "raise Mute",
    )
    runner = make(body)
    assert act(runner) == {"failed": "GiveUpError", "again": False}
    assert act(runner, attempt=2) == {"failed": "Mute: it has no text", "again": True}


def test_what_it_prints_is_logged_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And not when its buffer is full, or it ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with caplog.at_level(logging.INFO):
        assert act(make(handles("print('here it is')"))) == DONE
        wait_for(lambda: "here it is" in caplog.text)


def test_without_descriptors(make: Make) -> None:
    runner = make(handles("pass"), started=False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(RunnerError, match="cannot be started: Too many open files"):
            runner.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    runner.start()
    assert act(runner) == DONE


def test_memory_is_limited(make: Make) -> None:
    body = handles("held = []", "while mail.attempt == 1: held.append(bytearray(1 << 20))")
    runner = make(body, memory_limit=256 << 20)
    said = "MemoryError: it wants more than memory_limit"
    assert act(runner) == {"failed": said, "again": True, "spent": True}
    with pytest.raises(RunnerError):
        act(runner, attempt=2)
    runner.start()
    assert act(runner, attempt=2) == DONE


def test_it_is_killed_from_another_thread(make: Make) -> None:
    runner = make(handles("print('begun', flush=True); time.sleep(1e6)"))
    heard: list[str] = []

    def run() -> None:
        try:
            act(runner)
        except RunnerError as error:
            heard.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: runner._lines == 1)
    runner.kill()
    thread.join(20)
    assert heard == ["was killed by SIGKILL: by somebody, or as memory ran out"]
    runner.kill()  # none is there


# --- what it leaves -------------------------------------------------------------------------------


def test_its_threads_do_not_hold_it(make: Make) -> None:
    body = handles("threading.Thread(target=time.sleep, args=(1e6,)).start()", note("os.getpid()"))
    runner = make(body)
    pid = noted(act(runner))
    assert runner.end() == 0
    assert not is_there(pid)
    assert runner.end() == 0


def test_what_it_has_started_ends_with_it(make: Make) -> None:
    """A grandchild that ignores what it can, and holds the output."""
    child = "'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1e6)'"
    body = handles(
        f"child = subprocess.Popen([sys.executable, '-c', {child}])",
        note("[os.getpid(), child.pid]"),
    )
    runner = make(body)
    pids = noted(act(runner))
    assert all(map(is_there, pids))
    runner.end()
    wait_for(lambda: not any(map(is_there, pids)))


def test_it_dies_with_its_parent(make: Make, tmp_path: Path) -> None:
    """And what it was at with it, however its parent ends."""
    make(handles("print(os.getpid(), flush=True); time.sleep(1e6)"), started=False)
    program = (
        "import sys\n"
        "from tests.unit.handlers.test_process import FACTS, RAW, nobody_asks\n"
        "from gsmtpd.handlers.process import Runner, Task\n"
        f"task = Task('x', 'tested', {str(tmp_path)!r}, {{}}, 99.0, 512 << 20, '', 'mx')\n"
        "runner = Runner(task)\n"
        "runner.start()\n"
        "print(runner._process.pid, flush=True)\n"
        "runner.run(FACTS._asdict(), RAW, nobody_asks)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_there(pid)
        parent.kill()
    wait_for(lambda: not is_there(pid))


def test_what_it_prints_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    body = handles(
        "print('to stdout', flush=True); os.write(2, b'\\xff to stderr\\n')",
        "os.write(1, b'x' * 10_000 + b'\\n')",
        "for n in range(10_000): print('many', n, flush=True)",
        "raise KeyError('a traceback')",
    )
    with closing_log(make(body)) as runner:
        act(runner)
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.startswith("handler shown: ") for line in lines)
    said = [line.removeprefix("handler shown: ") for line in lines]
    assert said[:2] == ["to stdout", "\ufffd to stderr"]
    assert max(map(len, said)) <= 500
    assert len(said) == 100


def test_a_traceback_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with closing_log(make(handles("raise KeyError('which')"))) as runner:
        act(runner)
    assert "Traceback (most recent call last):" in caplog.text
    assert "KeyError: 'which'" in caplog.text
    assert "tested.py" in caplog.text


def closing_log(runner: Runner) -> closing[Any]:
    """`runner`, which is ended and all that it said is in the log behind."""

    class Heard:
        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

        def close(self) -> None:
            runner.end()
            for thread in threading.enumerate():
                if thread.name == "output-shown":
                    thread.join(20)

    return closing(Heard())


# --- what it may see ------------------------------------------------------------------------------


def test_it_has_no_descriptor_but_its_wire(make: Make) -> None:
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        body = handles(
            "names = {n: os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
            " if os.path.exists(f'/proc/self/fd/{n}') or n in sys.argv}",
            note("[sys.argv[1], names]"),
        )
        wire, found = noted(act(make(body)))
    kinds = {int(number): where.partition(":")[0] for number, where in found.items()}
    assert kinds == {0: "/dev/null", 1: "pipe", 2: "pipe", int(wire): "socket"}


def test_its_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSMTPD_STORE_MYSQL_PASSWORD", "hunter2")
    monkeypatch.setenv("OTHER", "kept")
    found = noted(act(make(handles(note("dict(os.environ)")))))
    assert [name for name in found if name.startswith("GSMTPD_")] == []
    assert found["OTHER"] == "kept"
    assert "hunter2" not in str(found)


def test_its_process_shows_no_setting(make: Make) -> None:
    """Others can read its command line and its environment's beginning."""
    body = handles(note("[open('/proc/self/cmdline').read(), open('/proc/self/environ').read()]"))
    found = noted(act(make(body, settings={"a": "hunter2"})))
    assert "hunter2" not in str(found)


def test_it_is_the_first_of_a_session_and_leaves_no_core(make: Make) -> None:
    frame = act(make(handles(note("[os.getsid(0), os.getpid(), resource.getrlimit(4)]"))))
    session, pid, core = noted(frame)
    assert session == pid
    assert core == [0, 0]


def test_modules_where_it_was_started_are_not_found(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the directory gsmtpd was started in is not to be run."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('not mine')\n")
    monkeypatch.chdir(elsewhere)
    assert act(make(handles("pass"))) == DONE


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "changes", "said"),
    [
        ("pass", {"settings": {"a": "1", "c": ""}}, "c: unknown key; tested has a, b"),
        ("defaults = {}", {"settings": {"c": ""}}, "c: unknown key; tested has none"),
        ("replies = True", {}, "tested replies; write smarthost = host:port in [handlers]"),
        ("def prepare(self): raise ValueError('a = 1: write\\n2')", {}, "a = 1: write 2"),
        ("def prepare(self): {}['x']", {}, "KeyError: 'x'"),
        ("def prepare(self): raise ValueError", {}, "ValueError:"),
        ("def prepare(self): sys.exit('no')", {}, "SystemExit: no"),
        ("def __init__(self, needed): pass", {}, "TypeError: Tested.__init__() missing 1 required"
         " positional argument: 'needed'"),
        ("def handle(self, mail:\n", {}, "tested: tested cannot be loaded: SyntaxError: '(' was"
         " never closed (tested.py, line 8)"),
        ("pass", {"handler": "nowhere"}, "nowhere: there is no "),
        ("pass", {"handler": "tested.Other"}, "tested.Other: tested has no handler Other; it must"
         " be a Handler"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Make, body: str, changes: dict[str, Any], said: str) -> None:
    runner = make(body, started=False, **changes)
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            runner.start()
        assert str(caught.value).startswith(said)
        assert said.endswith("no ") or str(caught.value) == said
        assert runner._process is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os._exit(4)", "ended its process, with exit code 4"),
        ("def prepare(self): os._exit(4)", "ended its process, with exit code 4"),
        ("def prepare(self): os.kill(os.getpid(), 9)",
         "was killed by SIGKILL: by somebody, or as memory ran out"),
    ],
)  # fmt: skip
def test_it_ends_as_it_is_started(make: Make, body: str, said: str) -> None:
    runner = make(body, started=False)
    with pytest.raises(RunnerError) as caught:
        runner.start()
    assert str(caught.value) == said


def test_it_does_not_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsmtpd.handlers.process.START_WITHIN", 1.0)
    runner = make("def prepare(self): time.sleep(1e6)", started=False)
    with pytest.raises(RunnerError, match="took longer than 1 s, and was killed"):
        runner.start()


def test_memory_that_its_code_takes(make: Make) -> None:
    runner = make("held = bytearray(1 << 30)", started=False, memory_limit=256 << 20)
    with pytest.raises(RefusedError, match="tested cannot be loaded: MemoryError"):
        runner.start()


def test_one_that_is_mended_is_started(make: Make) -> None:
    runner = make("def prepare(self): raise ValueError('no')", started=False)
    with pytest.raises(RefusedError):
        runner.start()
    make(handles("pass"), started=False)  # in the same file
    runner.start()
    assert act(runner) == DONE


def test_signals_are_not_blocked(make: Make) -> None:
    """All are in the threads of gsmtpd; what a handler starts would not even hear SIGALRM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        runner = make(handles(note("[*map(int, signal.pthread_sigmask(0, []))]")))
        assert noted(act(runner)) == []
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_it_starts_without_what_few_handlers_use(make: Make) -> None:
    """One that ends its process each time costs as little of the machine as can be."""
    slow = ["lxml.etree", "ssl", "email.policy", "importlib.metadata", "gsmtpd.handlers.replying"]
    runner = make(handles(note(f"[name for name in {slow} if name in sys.modules]")))
    assert noted(act(runner)) == []
    runner = make(handles("mail.text, mail.message", note("'lxml.etree' in sys.modules")))
    assert noted(act(runner)) is True
