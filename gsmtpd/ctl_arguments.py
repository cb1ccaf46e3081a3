"""What do the arguments mean that several commands of gsmtpctl take?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from gsmtpd import cli
from gsmtpd.config import ConfigError
from gsmtpd.config import control_socket as configured
from gsmtpd.control import ControlError
from gsmtpd.storage import moments, terms

Said = TypeVar("Said")


def count(text: str) -> int:
    """A number of the command line, 0 or more. Raises argparse.ArgumentTypeError."""
    if text.isascii() and text.isdigit() and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")


def number(text: str) -> int:
    """Which one of several, counted from 1. Raises argparse.ArgumentTypeError."""
    if which := count(text):
        return which
    raise argparse.ArgumentTypeError("the first has the number 1")


def at_most(text: str) -> int:
    """How many there may be, 1 or more. Raises argparse.ArgumentTypeError."""
    if most := count(text):
        return most
    raise argparse.ArgumentTypeError("it must be 1 or more")


def argument(check: Callable[[str], Said]) -> Callable[[str], Said]:
    """A `type` of argparse: what `check` returns, or why it raises ValueError."""

    def checked(said: str) -> Said:
        try:
            return check(said)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


text, mailbox, domain = map(argument, (terms.text, terms.mailbox, terms.domain))
moment = argument(moments.moment)


def control_socket(options: argparse.Namespace) -> str:
    """Where the running gsmtpd is asked; its configuration may have been broken meanwhile.

    Raises Stop, and ControlError where there is none.
    """
    try:
        path = configured(options.config)
    except ConfigError as error:
        raise cli.Stop(cli.EX_CONFIG, str(error)) from error
    if not path:
        raise ControlError("[server] control_socket is empty, so no running gsmtpd can be asked")
    return path
