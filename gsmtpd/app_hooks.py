"""How are hooks built from a Config, and can they be had? Imported only where there are any."""

from __future__ import annotations

from typing import NamedTuple

from gsmtpd.config import Config, ConfigError
from gsmtpd.handlers.hook_loading import HookError, check, load_hook
from gsmtpd.handlers.hook_threads import MessageHook, RecipientHook
from gsmtpd.smtp import reply


class Hooks(NamedTuple):
    """Those of the servers of a process; None where there is none."""

    rcpt: RecipientHook | None
    data: MessageHook | None


def make_hooks(config: Config) -> Hooks:
    """Load what [hooks] names. Call it in a worker: it runs code that is not ours.

    Raises ConfigError.
    """
    chosen = config.hooks
    trouble = None if chosen.on_trouble == "accept" else reply.HOOK_TROUBLE
    rcpt = data = None
    try:
        key = "rcpt"
        if chosen.rcpt:
            found = load_hook(chosen.rcpt, chosen.directory)
            rcpt = RecipientHook("hook rcpt", found, chosen.time_limit, trouble)
        key = "data"
        if chosen.data:
            found = load_hook(chosen.data, chosen.directory)
            data = MessageHook("hook data", found, chosen.time_limit, trouble)
    except HookError as error:
        raise ConfigError(f"{config.path}: [hooks] {key}: {error}") from error
    return Hooks(rcpt, data)


def check_hooks(config: Config) -> None:
    """Whether they can be had by who we are, found out in a process of its own.

    Raises ConfigError.
    """
    chosen = config.hooks
    for key, name in (("rcpt", chosen.rcpt), ("data", chosen.data)):
        if name:
            try:
                check(lambda name=name: load_hook(name, chosen.directory))  # type: ignore[misc]
            except HookError as error:
                raise ConfigError(f"{config.path}: [hooks] {key}: {error}") from error
