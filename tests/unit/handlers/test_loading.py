"""Is the class of a handler found where it is, and is it said clearly where it is not?"""

from __future__ import annotations

import calendar  # noqa: F401  # one that is loaded
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from gsmtpd.handlers import Handler, HandlerError, loading
from gsmtpd.handlers.loading import SHIPPED, load

IMPORT = "from gsmtpd.handlers import Handler\n"
ONE = f"{IMPORT}class One(Handler):\n    pass\n"
TWO = f"{ONE}class Two(Handler):\n    pass\n"
_numbers = count(1)

Write = Callable[[str], str]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """No module, and no directory to look for some, outlives its test."""
    path, modules = [*sys.path], {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file with that text into `tmp_path`; the name of its module."""

    def written(text: str) -> str:
        name = f"written_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        return name

    return written


def refusal(name: str, directory: object) -> str:
    """What is said where there is no such handler: one line, which names it."""
    with pytest.raises(HandlerError) as caught:
        load(name, str(directory))
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    return text


@pytest.mark.parametrize("name", SHIPPED)
def test_those_of_gsmtpd(name: str) -> None:
    found = load(name, "")
    assert issubclass(found, Handler)
    assert found.__module__.startswith("gsmtpd.handlers.")
    assert found.handle is not Handler.handle


def test_a_file_with_one_handler(write: Write, tmp_path: Path) -> None:
    name = write(ONE)
    assert load(name, str(tmp_path)).__name__ == "One"
    assert load(f"{name}.One", str(tmp_path)) is load(name, str(tmp_path))
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "whose"), [("calendar", "module of Python"), ("webhook", "handler of gsmtpd")]
)
def test_a_file_with_the_name_of_another(name: str, whose: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(ONE)
    assert f"{tmp_path}/{name}.py has the name of a {whose}'s" in refusal(name, tmp_path)


def test_one_of_two_has_to_be_named(write: Write, tmp_path: Path) -> None:
    name = write(TWO)
    assert load(f"{name}.Two", str(tmp_path)).__name__ == "Two"
    wanted = f"{name}: has not one handler but One, Two; write {name}.Class"
    assert refusal(name, tmp_path) == wanted


def test_what_a_file_imports_is_not_its_own(write: Write, tmp_path: Path) -> None:
    base = write(ONE)
    name = write(f"from {base} import One\nclass Mine(One):\n    pass\n")
    assert load(name, str(tmp_path)).__name__ == "Mine"
    only = write(f"from gsmtpd.handlers.magic8ball import Magic8Ball\nfrom {base} import One\n")
    assert "has no handler: write class" in refusal(only, tmp_path)
    # Whoever names it means it.
    assert load(f"{only}.Magic8Ball", str(tmp_path)).__name__ == "Magic8Ball"


def test_a_file_without_a_handler(write: Write, tmp_path: Path) -> None:
    name = write("class One:\n    def handle(self, mail): ...\n")
    wanted = f"{name}: has no handler: write class Name(gsmtpd.handlers.Handler)"
    assert refusal(name, tmp_path) == wanted
    wanted = f"{name}.One: {name} has no handler One; it must be a Handler"
    assert refusal(f"{name}.One", tmp_path) == wanted
    assert "has no handler Two" in refusal(f"{name}.Two", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def handle(:\n", "SyntaxError: "),
        ("x = 1\n  y = 2\n", "IndentationError: unexpected indent"),
        ("raise OSError(2, 'no such thing')\n", "FileNotFoundError: [Errno 2] no such thing"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import module_that_is_missing\n", "ModuleNotFoundError: No module named 'module_that_is"),
        ("from gsmtpd.handlers import Handlr\n", "ImportError: cannot import name 'Handlr'"),
    ],
)
def test_a_file_that_cannot_be_loaded(write: Write, tmp_path: Path, text: str, said: str) -> None:
    name = write(text)
    assert refusal(name, tmp_path).startswith(f"{name}: {name} cannot be loaded: {said}")


@pytest.mark.parametrize("text", ["import sys\nsys.exit(3)\n", "exit()\n"])
def test_a_file_that_ends_the_process(write: Write, tmp_path: Path, text: str) -> None:
    name = write(text)
    assert refusal(name, tmp_path).startswith(f"{name}: {name} cannot be loaded: SystemExit")


def test_what_is_nowhere(tmp_path: Path) -> None:
    shipped = "autoreply, command, forward-to-maildir, magic8ball, webhook"
    ours = f"those of gsmtpd are {shipped}"
    assert refusal("nowhere", "") == (
        f"nowhere: there is no module nowhere and no handler of that name; {ours}"
    )
    assert refusal("nowhere", tmp_path) == (
        f"nowhere: there is no {tmp_path}/nowhere.py, no module nowhere and no handler of that"
        f" name; {ours}"
    )
    assert "no module magic9ball and no handler" in refusal("magic9ball", "")


@pytest.mark.parametrize("name", ["nowhere.at.all.Class", "nowhere.Class", "json.nowhere.Class"])
def test_a_module_in_a_package_that_is_nowhere(tmp_path: Path, name: str) -> None:
    path = name.removesuffix(".Class").replace(".", "/")
    assert f"there is no {tmp_path}/{path}.py, no module " in refusal(name, tmp_path)


def test_a_name_with_a_hyphen_can_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "to-the-printer.py").write_text(ONE)
    assert load("to-the-printer", str(tmp_path)).__name__ == "One"


def test_a_package(tmp_path: Path) -> None:
    (tmp_path / "our_package").mkdir()
    (tmp_path / "our_package" / "__init__.py").write_text("")
    (tmp_path / "our_package" / "inner.py").write_text(TWO)
    assert load("our_package.inner.Two", str(tmp_path)).__name__ == "Two"
    assert "has no handler inner" in refusal("our_package.inner", tmp_path)


def test_the_directory_comes_before_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tabnanny.py").write_text(ONE)
    sys.modules.pop("tabnanny", None)
    assert load("tabnanny", str(tmp_path)).__module__ == "tabnanny"


# --- entry points ---------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as pip leaves it for a package with handlers."""
    info = tmp_path / "eightball-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eightball\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{loading.GROUP}]\n"
        "prophet = installed_handlers:Second [extra]\n"
        "in-a-class = installed_handlers:Outer.Inner\n"
        "lonely = installed_single\n"
        "broken = installed_handlers:Missing\n"
        "gone = installed_nowhere:Class\n"
        "webhook = installed_handlers:Second\n"
        "[console_scripts]\nnot-a-handler = installed_handlers:Second\n"
    )
    inner = "class Outer:\n    class Inner(Handler):\n        pass\n"
    (tmp_path / "installed_handlers.py").write_text(TWO.replace("Two", "Second") + inner)
    (tmp_path / "installed_single.py").write_text(ONE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_entry_point(installed: Path) -> None:
    assert load("prophet", "").__name__ == "Second"
    assert load("lonely", "").__name__ == "One"


def test_an_entry_point_of_a_class_in_a_class(installed: Path) -> None:
    """The value of an entry point may have dots behind its colon."""
    assert load("in-a-class", "").__qualname__ == "Outer.Inner"


def test_a_file_of_the_directory_comes_before_an_entry_point(
    installed: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "prophet.py").write_text(ONE)
    assert load("prophet", str(own)).__module__ == "prophet"
    assert load("lonely", str(own)).__module__ == "installed_single"


def test_an_entry_point_that_leads_nowhere(installed: Path) -> None:
    assert "installed_handlers has no handler Missing" in refusal("broken", "")
    assert "no module installed_nowhere" in refusal("gone", "")
    assert "no handler of that name" in refusal("not-a-handler", "")


def test_nobody_takes_the_name_of_one_of_ours(installed: Path) -> None:
    assert load("webhook", "").__module__ == "gsmtpd.handlers.webhook"
