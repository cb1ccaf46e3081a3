"""Do imports point down only, and are the pure rooms pure?"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gsmtpd"

# Each room, and the rooms it may import from beside itself. A new module needs a place here.
PROTOCOL = {"smtp", "message"}
DEPARTMENTS = PROTOCOL | {"policy", "storage", "handlers", "metrics", "maillog"}
VALUES = {"config_numbers", "config_hosts", "config_query"}
CONFIG = {
    "config",
    "config_types",
    "config_file",
    "config_checks",
    "config_tls",
    "config_handlers",
    "config_environment",
    "config_secrets",
    "config_status",
    *VALUES,
}
BUILDING = DEPARTMENTS | {"server", "board", "logs", "config", "config_types"}
SYSTEM = {"signals", "privileges", "systemd", "control"}
PARTS = {
    "app_policy", "app_listen", "app_mysql", "app_store", "app_handlers", "app_hooks", "app_status",
}  # fmt: skip
RUNNING = (
    BUILDING
    | SYSTEM
    | PARTS
    | {"failpoints", "recent", "history", "app", "worker", "workers", "__init__"}
)
MAY_IMPORT: dict[str, set[str]] = {
    "smtp": set(),
    "message": {"smtp"},
    "wording": set(),
    "complaints": set(),
    "policy": PROTOCOL | {"wording", "complaints"},
    "storage": PROTOCOL | {"complaints"},
    "handlers": PROTOCOL | {"policy", "storage", "complaints", "metrics", "__init__"},
    "metrics": set(),
    "maillog": PROTOCOL,
    "logs": {"maillog"},
    "recent": set(),
    "board": set(),
    "history": {"metrics"},
    "rates": {"metrics", "history"},
    "exposition": {"metrics", "storage"},
    "telling": {"metrics", "history", "rates", "board", "recent"},
    "server": DEPARTMENTS | {"board"},
    "status": PROTOCOL
    | {"storage", "metrics", "history", "rates", "exposition", "control", "server"},
    "config_numbers": {"wording"},
    "config_query": {"wording"},
    "config_hosts": {"wording", "policy"},
    "config_checks": {"wording", "policy", *VALUES},
    "config_file": {"wording", "config_checks"},
    "config_types": {"config_checks"},
    "config_tls": {"wording", "config_file", "config_checks", "config_types", "config_numbers"},
    "config_handlers": {"wording", "config_file", "config_types"},
    "config_secrets": {"wording", "config_file"},
    "config_status": {"config_secrets", "config_file", "config_hosts", "config_types"},
    "config_environment": {"wording", "config_file", "config_tls"},
    "config": {
        "wording",
        "config_file",
        "config_checks",
        "config_types",
        "config_tls",
        "config_environment",
        "config_handlers",
        "config_secrets",
        "config_status",
    },
    "signals": set(),
    "privileges": set(),
    "systemd": set(),
    "control": set(),
    "daemon": set(),
    "heap": set(),
    "app_policy": BUILDING,
    "app_listen": BUILDING,
    "app_hooks": BUILDING,
    "app_mysql": BUILDING | {"app_policy"},
    "app_handlers": BUILDING | {"app_store", "app_mysql"},
    "app_status": BUILDING
    | {"__init__", "app_handlers", "app_store", "control", "history", "status"},
    "app_store": BUILDING | {"app_policy", "app_mysql"},
    "failpoints": DEPARTMENTS | {"server"},
    "app": BUILDING | PARTS | {"failpoints", "history", "status"},
    "worker": BUILDING - {"config", "config_types"} | {"heap", "signals"},
    "workers": BUILDING | {"app", "worker", "history", "heap"},
    "next_setup": RUNNING,
    "master": RUNNING | {"next_setup", "telling"},
    "cli": RUNNING | {"master", "daemon"},
    "mailfiles": {"smtp", "message"},
    "ctl_words": set(),
    "progress": set(),
    "ctl_arguments": RUNNING | {"cli"},
    "ctl_status_text": {"ctl_words"},
    "ctl_status": RUNNING | {"cli", "ctl_arguments", "ctl_status_text"},
    "ctl_top_screen": {"ctl_words", "wording"},
    "ctl_top": RUNNING | {"cli", "ctl_arguments", "ctl_top_screen"},
    "ctl_mail": RUNNING | {"cli", "mailfiles", "ctl_arguments"},
    "ctl_search": RUNNING | {"cli", "ctl_arguments", "ctl_mail", "status"},
    "ctl_wait": RUNNING | {"cli", "ctl_arguments", "ctl_mail", "status"},
    "ctl_export": RUNNING | {"cli", "mailfiles", "ctl_arguments", "ctl_mail", "progress"},
    "ctl_import": RUNNING | {"cli", "mailfiles", "ctl_mail", "progress"},
    "ctl_outbox": RUNNING | {"cli", "ctl_arguments", "ctl_mail"},
    "ctl_feed": RUNNING | {"cli", "mailfiles", "ctl_check", "ctl_import", "ctl_mail"},
    "ctl_purge": RUNNING | {"cli", "config_checks", "progress"},
    "ctl_why": RUNNING | {"cli", "ctl_mail"},
    "ctl_tail": RUNNING | {"cli", "ctl_arguments", "ctl_mail", "ctl_why"},
    "ctl_check": RUNNING | {"cli", "config_file", "config_environment", "wording"},
    "ctl": RUNNING
    | {"cli", "ctl_arguments", "ctl_check", "ctl_export", "ctl_feed", "ctl_import", "ctl_mail"}
    | {"ctl_outbox", "ctl_purge", "ctl_search", "ctl_status", "ctl_tail", "ctl_top", "ctl_wait"}
    | {"ctl_why", "progress"},
    "testing": DEPARTMENTS | {"server", "wording"},
    "testing_plugin": {"testing"},
    "faultlab": {"__init__", *CONFIG},
    "__main__": {"cli"},
    "__init__": set(),
}
KNOW_CONFIG = {
    "cli", "ctl", "ctl_arguments", "ctl_check", "ctl_feed", "ctl_import", "ctl_outbox", "ctl_purge",
    "ctl_status", "ctl_tail", "ctl_wait", "ctl_why", "faultlab", "master", "next_setup", "workers",
    "app",
    *PARTS, *CONFIG,
}  # fmt: skip

# What a room without socket, clock, log and config has no use for.
IMPURE = {
    "asyncio", "concurrent", "configobj", "ctypes", "dbutils", "fcntl", "http", "io", "logging",
    "mmap", "multiprocessing", "pathlib", "pymysql", "queue", "random", "select", "selectors",
    "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess",
    "sys", "syslog", "tempfile", "threading", "urllib", "uuid", "validate",
}  # fmt: skip
# From modules that are half pure: what a pure room may take, and with how many arguments at least,
# because without them some read the clock.
HALF_PURE: dict[str, dict[str, int]] = {
    "time": {"gmtime": 1, "strftime": 2},
    "datetime": {"UTC": 0, "datetime": 0},
    "email.utils": {"format_datetime": 1, "formatdate": 1},
    "urllib.parse": {"unquote_to_bytes": 1},
    "os": {},
}
READS_THE_CLOCK = {"now", "utcnow", "today", "time", "monotonic", "perf_counter", "localtime"}


def modules() -> list[Path]:
    """All modules of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A module's path below the package, as the name of a test."""
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """The room a module is in: its directory, or itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def tree_of(path: Path) -> ast.Module:
    """The syntax of a module."""
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every import: the module's full name, and the name taken from it ("" for all of it)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def rooms_used(tree: ast.Module) -> set[str]:
    """The rooms of our own that a module imports from."""
    found: set[str] = set()
    for module, name in imports(tree):
        top, *below = module.split(".")
        if top == "gsmtpd":
            # "from gsmtpd import app" names a module, "from gsmtpd import __version__" does not.
            room = below[0] if below else name
            found.add(room if room in MAY_IMPORT or below else "__init__")
    return found


def impurities(tree: ast.Module) -> Iterator[str]:
    """What a module of a pure room may not import or call."""
    for module, name in imports(tree):
        top = module.split(".")[0]
        if module in HALF_PURE:
            if name not in HALF_PURE[module]:
                yield f"from {module} import {name}" if name else f"import {module}"
        elif top in IMPURE or top in HALF_PURE:
            yield f"import {module}"
    needed = {name: least for half in HALF_PURE.values() for name, least in half.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in READS_THE_CLOCK:
            yield f".{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if len(node.args) < needed.get(name, 0) or name in ("open", "input", "print"):
                yield f"{name}() with {len(node.args)} arguments"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, "a new room: say in MAY_IMPORT what it may import"
    wrong = rooms_used(tree_of(path)) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{room} must not import {wrong}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_who_knows_the_configuration(path: Path) -> None:
    if room_of(path) not in KNOW_CONFIG:
        assert not rooms_used(tree_of(path)) & CONFIG


PURE = [path for path in modules() if room_of(path) in PROTOCOL]


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_rooms_are_pure(path: Path) -> None:
    found = [*impurities(tree_of(path))]
    if name_of(path) == "message/ids.py":
        # Ids are random, so that two makers never give out the same one.
        assert found == ["import os"]
    else:
        assert found == []


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_rooms_use_the_standard_library_only(path: Path) -> None:
    tops = {module.split(".")[0] for module, _ in imports(tree_of(path))}
    if name_of(path) == "message/html.py":
        tops.discard("lxml")  # where it is installed
    assert tops <= {*sys.stdlib_module_names, "gsmtpd"}


def test_the_rooms_have_an_order() -> None:
    """No room may be imported, whatever way round, by one that it imports."""
    above: set[str] = set()
    left = dict(MAY_IMPORT)
    while left:
        ready = {room for room, may in left.items() if may <= above}
        assert ready, f"rooms in a circle: {sorted(left)}"
        above |= ready
        left = {room: may for room, may in left.items() if room not in ready}


@pytest.mark.parametrize(
    ("source", "room", "found"),
    [
        ("import gsmtpd.server.tcp", "smtp", {"server"}),
        ("from gsmtpd.config import Config", "server", {"config"}),
        ("from gsmtpd import app", "daemon", {"app"}),
        ("from gsmtpd import __version__", "smtp", {"__init__"}),
        ("def f():\n  from gsmtpd.storage import null", "policy", {"storage"}),
        ("if TYPE_CHECKING:\n  from gsmtpd.server.pool import x", "storage", {"server"}),
        ("from gsmtpd.message.row import Row", "smtp", {"message"}),
        ("from gsmtpd.smtp import reply", "message", set()),
    ],
)
def test_wrong_imports_are_found(source: str, room: str, found: set[str]) -> None:
    assert rooms_used(ast.parse(source)) - MAY_IMPORT[room] - {room} == found


@pytest.mark.parametrize(
    ("source", "pure"),
    [
        ("import socket", False),
        ("import time", False),
        ("from time import time", False),
        ("from time import gmtime\ngmtime()", False),
        ("from time import gmtime\ngmtime(0)", True),
        ("from email.utils import formatdate\nformatdate()", False),
        ("from email.utils import formatdate\nformatdate(0)", True),
        ("from datetime import datetime\ndatetime.now()", False),
        ("from datetime import datetime, UTC\ndatetime.fromtimestamp(0, UTC)", True),
        ("import logging.handlers", False),
        ("import os.path", False),
        ("open('x')", False),
        ("import re", True),
    ],
)
def test_impurities_are_found(source: str, pure: bool) -> None:
    assert (not [*impurities(ast.parse(source))]) is pure
