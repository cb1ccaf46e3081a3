"""Where is the function of a hook? In a plain file of a directory, or in an installed module.

Loading runs code that is not gsmtpd's, so the master never does it: a worker does, and before that
a process of its own that finds out whether it can be done.
"""

from __future__ import annotations

import importlib
import inspect
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

CHECK_WITHIN = 10.0  # seconds that modules have to be loaded; the master waits as long
_MAX_SAID = 4096  # octets of what is wrong
_GOOD = b"\n"


class HookError(Exception):
    """A hook cannot be had; the text is one clear line."""


def load_hook(name: str, directory: str) -> Callable[[Any], object]:
    """The function called `name`, "module.function".

    directory: where modules are looked for first, "" for nowhere. Nothing is written there.
    Raises HookError.
    """
    _check_directory(directory)
    if directory and directory not in sys.path:
        sys.path.insert(0, directory)
    module, _, attribute = name.rpartition(".")
    found = getattr(_imported(name, module, directory), attribute, None)
    if found is None:
        raise HookError(f"{name}: the module {module} has no {attribute}; write a function of it")
    if not callable(found):
        raise HookError(f"{name} is no function but {type(found).__name__}; write a function")
    if inspect.iscoroutinefunction(found):
        raise HookError(f"{name} is an async function; write it without async")
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise HookError(f"{name} cannot be called with one value; write def f(mail)") from None
    except ValueError:
        pass  # one of C, which does not tell
    return found  # type: ignore[no-any-return]


def _check_directory(directory: str) -> None:
    """Whether not everybody can put there what is executed as the daemon's user."""
    try:
        mode = stat.S_IMODE(os.stat(directory).st_mode) if directory else 0
    except OSError as error:
        raise HookError(f"directory {directory} cannot be read: {error.strerror}") from error
    if mode & stat.S_IWOTH:
        raise HookError(
            f"directory {directory}: everybody can write there (mode {mode:04o}); cure it with:"
            f" chmod o-w {directory}"
        )


def _imported(name: str, module: str, directory: str) -> ModuleType:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return importlib.import_module(module)
    except BaseException as error:  # SystemExit as well
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            file = os.path.join(directory, *module.split(".")) + ".py"
            if os.path.exists(file):
                raise HookError(f"{name}: {file} cannot be read; check its rights") from error
            where = f"no {file} that can be read, and " if directory else ""
            raise HookError(f"{name}: there is {where}no module {module}") from error
        raise HookError(f"{name}: {module} cannot be loaded: {_said(error)}") from error
    finally:
        sys.dont_write_bytecode = before


def _said(error: BaseException) -> str:
    """What and where, in one line."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if isinstance(error, SyntaxError) or last is None:
        return what  # that says where itself
    return f"{what} ({os.path.basename(last.tb_frame.f_code.co_filename)}, line {last.tb_lineno})"


def check(load: Callable[[], object], within: float = CHECK_WITHIN) -> None:
    """Whether `load` raises no HookError, found out in a process of its own.

    Call it where there is one thread only. Raises HookError.
    """
    reading, writing = os.pipe()
    # No signal of ours is handled by our handlers in there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _load_and_say(load, writing)
    except OSError as error:
        os.close(reading)
        raise HookError(f"no process to load it in: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
    try:
        said = _heard(reading, within)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so it is still ours
        os.waitpid(pid, 0)
    if said is None:
        raise HookError(f"not loaded within {within:g} s; write what takes long into the function")
    if said != _GOOD:
        text = said.decode("utf-8", "replace").rstrip("\n")
        raise HookError(text or "the process that loaded it ended; a module must not do that")


def _load_and_say(load: Callable[[], object], writing: int) -> NoReturn:
    said = b""
    try:
        load()
    except BaseException as error:
        text = str(error) if isinstance(error, HookError) else _said(error)
        said = text.encode("utf-8", "replace")[:_MAX_SAID]
    try:
        os.write(writing, said + b"\n")
    finally:
        os._exit(0)


def _heard(reading: int, within: float) -> bytes | None:
    """A line, less of it where the other end is closed before; None if it takes too long."""
    deadline = time.monotonic() + within
    heard = b""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while not heard.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        octets = os.read(reading, _MAX_SAID)
        if not octets:
            break
        heard += octets
    return heard
