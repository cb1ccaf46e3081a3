"""What may a hook answer, and where is its function found?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsmtpd.handlers.hook_loading import HookError, check, load_hook
from gsmtpd.handlers.hooks import MAX_TEXT, Incoming, Reply, defer, fault_of, refuse
from tests.servers import descendants

# --- answers --------------------------------------------------------------------------------------


def test_a_refusal_and_a_deferral() -> None:
    assert refuse("Not here").wire == b"550 5.7.1 Not here\r\n"
    assert defer("Not now").wire == b"451 4.7.1 Not now\r\n"
    assert len(refuse("x" * MAX_TEXT).wire) <= 512  # RFC 5321 section 4.5.3.1.5


@pytest.mark.parametrize("text", ["", "two\r\nlines", "tab\t", "nul\0", "déjà vu", "x" * 491, None])
@pytest.mark.parametrize("make", [refuse, defer])
def test_a_text_that_is_not_one_line_of_ascii(make: Callable[[str], Reply], text: str) -> None:
    with pytest.raises(ValueError, match="; write ") as caught:
        make(text)
    assert len(str(caught.value).splitlines()) == 1


GOOD = [
    None,
    refuse("no"),
    defer("later"),
    Reply(452, "4.3.1", "full"),
    Reply(554, "", "one", "two"),
]
BAD = [
    (True, "it returned bool; a hook returns None or a Reply"),
    ("550 no", "it returned str;"),
    (Reply(250, "2.0.0", "ok"), "it returned 250;"),
    (Reply(354, "", "go on"), "it returned 354;"),
    (Reply(421, "4.3.2", "bye"), "it returned 421;"),
    (Reply(600, "", "what"), "it returned 600;"),
    (Reply(550, "4.7.1", "no"), "it returned 550 with '4.7.1'; write e.g. 5.7.1"),
    (Reply(550, "5.7.1 x\r\n250", "no"), "it returned 550 with '5.7.1 x"),
    (Reply(550, "5.7.1"), "it returned a Reply of 0 lines;"),
    (Reply(550, "5.7.1", *["x"] * 11), "it returned a Reply of 11 lines;"),
    (Reply(550, "5.7.1", "nul \0"), "it returned a Reply with a text that cannot be sent"),
    (Reply(550, "5.7.1", "é"), "it returned a Reply with a text that cannot be sent"),
]


@pytest.mark.parametrize("said", GOOD, ids=str)
def test_what_may_be_answered(said: Reply | None) -> None:
    assert fault_of(said) == ""


@pytest.mark.parametrize(("said", "fault"), BAD, ids=[fault for _, fault in BAD])
def test_what_may_not(said: object, fault: str) -> None:
    assert fault_of(said).startswith(fault)


def test_a_message_is_parsed_when_it_is_asked_for() -> None:
    content = b"Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\ntext\r\n"
    mail = Incoming("1a", "192.0.2.1", "h", "", False, ("b@example.com",), content)
    assert mail.message["Subject"] == mail.header("subject") == "café"
    assert mail.header("List-Id") == ""
    assert mail.message is mail.message
    with pytest.raises(AttributeError):
        mail.content = b""  # type: ignore[misc]


# --- where it is ----------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """One that modules are loaded from, and forgotten behind the test."""
    path, modules = [*sys.path], {*sys.modules}
    yield tmp_path
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        del sys.modules[name]


def test_a_function_in_a_file(directory: Path) -> None:
    (directory / "own_checks.py").write_text("def f(mail):\n    return mail\n")
    assert load_hook("own_checks.f", str(directory))(3) == 3
    assert [*directory.iterdir()] == [directory / "own_checks.py"], "nothing is written there"


def test_a_function_in_a_package_and_one_that_is_installed(directory: Path) -> None:
    (directory / "own_pack").mkdir()
    (directory / "own_pack" / "__init__.py").touch()
    (directory / "own_pack" / "inner.py").write_text(
        "class C:\n  def __call__(s, m): return 1\nf = C()"
    )
    assert load_hook("own_pack.inner.f", str(directory))(None) == 1
    assert load_hook("json.dumps", "")(None) == "null"


WRONG = {
    "": ("there is no {}/own.py that can be read, and no module own", ""),
    "def g(m): pass": ("the module own has no f; write a function of it", ""),
    "f = 3": ("is no function but int; write a function", ""),
    "async def f(m): pass": ("is an async function; write it without async", ""),
    "def f(a, b): pass": ("cannot be called with one value; write def f(mail)", ""),
    "def f(:": ("own cannot be loaded: SyntaxError: ", "own.py, line 1"),
    "x = 1\n1 / 0": (
        "own cannot be loaded: ZeroDivisionError: division by zero (own.py, line 2)",
        "",
    ),
    "import no_such_thing": ("own cannot be loaded: ModuleNotFoundError: No module named 'no_", ""),
    "import sys\nsys.exit('bye\\nbye')": ("own cannot be loaded: SystemExit: bye bye (own.py", ""),
}


@pytest.mark.parametrize("text", WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_a_function_that_cannot_be_had(directory: Path, text: str) -> None:
    """The same is said by the process that checks it."""
    if text:
        (directory / "own.py").write_text(text)
    with pytest.raises(HookError) as caught:
        check(lambda: load_hook("own.f", str(directory)))
    assert "own" not in sys.modules, "it was loaded here"
    for part in WRONG[text]:
        assert part.format(directory) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(HookError) as again:
        load_hook("own.f", str(directory))
    assert str(again.value) == str(caught.value)


def test_a_directory_that_is_not_there_or_everybodys(directory: Path) -> None:
    with pytest.raises(HookError, match="^directory .*/none cannot be read: No such file"):
        load_hook("own.f", f"{directory}/none")
    (directory / "own.py").write_text("def f(m): pass")
    directory.chmod(0o777)
    with pytest.raises(HookError, match="everybody can write there .*: chmod o-w /"):
        load_hook("own.f", str(directory))
    directory.chmod(0o755)
    assert load_hook("own.f", str(directory))(None) is None


def test_a_check_that_goes_well_loads_nothing_here(directory: Path) -> None:
    (directory / "own.py").write_text("def f(m): pass")
    before = {*descendants(os.getpid())}  # other tests may have left some
    check(lambda: load_hook("own.f", str(directory)))
    assert "own" not in sys.modules
    assert {*descendants(os.getpid())} <= before, "it is waited for"


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda: time.sleep(1000), "not loaded within 0.2 s; write what takes long into"),
        (lambda: os._exit(3), "the process that loaded it ended; a module must not do that"),
    ],
)
def test_a_module_that_hangs_or_ends_the_process(load: Callable[[], object], said: str) -> None:
    before = {*descendants(os.getpid())}  # other tests may have left some
    with pytest.raises(HookError) as caught:
        check(load, 0.2)
    assert str(caught.value).startswith(said)
    assert {*descendants(os.getpid())} <= before, "it is waited for"
