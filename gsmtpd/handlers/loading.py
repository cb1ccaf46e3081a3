"""Where is the class of a handler? Shipped with gsmtpd, installed beside it, or in a plain file.

Loading runs code that is not gsmtpd's, so only a runner does it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from contextlib import suppress
from operator import attrgetter
from types import ModuleType

from gsmtpd.handlers.handler import Handler, HandlerError

GROUP = "gsmtpd.handlers"
SHIPPED = {
    "autoreply": "gsmtpd.handlers.autoreply:AutoReply",
    "command": "gsmtpd.handlers.command:Command",
    "forward-to-maildir": "gsmtpd.handlers.maildir:ForwardToMaildir",
    "magic8ball": "gsmtpd.handlers.magic8ball:Magic8Ball",
    "webhook": "gsmtpd.handlers.webhook:Webhook",
}


def load(name: str, directory: str) -> type[Handler]:
    """The class called `name`: one of gsmtpd's, an entry point of the group "gsmtpd.handlers",
    "module.Class", or "module", where that has one handler.

    directory: where modules are looked for first, before entry points, too; "" for nowhere.
    Raises HandlerError.
    """
    if directory and directory not in sys.path:
        sys.path.insert(0, directory)
    if name in SHIPPED and (file := _file(name, directory)):
        raise HandlerError(f"{name}: {file} has the name of a handler of gsmtpd's; give it another")
    own = _file(name.partition(".")[0], directory)
    where = SHIPPED.get(name) or (not own and _installed(name)) or name
    module, _, attribute = where.partition(":")
    if not attribute and "." in module:
        module, _, attribute = module.rpartition(".")
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise HandlerError(_unknown(name, module, directory)) from error
        raise HandlerError(f"{name}: {module} cannot be loaded: {_said(error)}") from error
    if wrong := _hidden(module, loaded, directory):
        raise HandlerError(f"{name}: {wrong}")
    found = _named(loaded, attribute) if attribute else _only(loaded, name)
    if not (inspect.isclass(found) and issubclass(found, Handler)):
        raise HandlerError(f"{name}: {module} has no handler {attribute}; it must be a Handler")
    return found


def _installed(name: str) -> str:
    from importlib.metadata import entry_points  # takes long: a plain file needs none

    for entry in entry_points(group=GROUP, name=name):
        return f"{entry.module}:{entry.attr or ''}"
    return ""


def _hidden(module: str, loaded: ModuleType, directory: str) -> str:
    """What is wrong where a file of `directory` has the name of a module that was there before."""
    file = _file(module, directory)
    if not file or os.path.realpath(loaded.__file__ or "") == os.path.realpath(file):
        return ""
    return f"{file} has the name of a module of Python's; give it another"


def _file(module: str, directory: str) -> str:
    """The file of `directory` that is called so, "" if there is none."""
    file = os.path.join(directory, f"{module}.py")
    return file if directory and os.path.exists(file) else ""


def _named(module: object, attribute: str) -> object:
    with suppress(AttributeError):
        return attrgetter(attribute)(module)
    return None


def _only(module: object, name: str) -> type[Handler]:
    own = [
        each
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, Handler)
        and each.__module__ == getattr(module, "__name__", "")
    ]
    if not own:
        raise HandlerError(f"{name}: has no handler: write class Name(gsmtpd.handlers.Handler)")
    if len(own) > 1:
        names = ", ".join(each.__name__ for each in own)
        raise HandlerError(f"{name}: has not one handler but {names}; write {name}.Class")
    return own[0]


def _unknown(name: str, module: str, directory: str) -> str:
    where = f"{directory}/{module.replace('.', '/')}.py, no " if directory else ""
    return (
        f"{name}: there is no {where}module {module} and no handler of that name; those of"
        f" gsmtpd are {', '.join(SHIPPED)}"
    )


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
