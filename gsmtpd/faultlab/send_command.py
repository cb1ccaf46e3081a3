"""What does `gsmtpd-faultlab send` do? It sends accounted mail to any server."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from gsmtpd.faultlab.mails import MIN_SIZE
from gsmtpd.faultlab.senders import MAX_SIZE, SESSIONS_PER_PROCESS, TIMEOUT, Senders, SendersError

_EVERY = 5.0  # seconds between lines that say how far it is
_ADDRESS = re.compile(r"[!-;=?-~]+@[!-;=?-~]+")


def add_commands(verbs: Any) -> None:
    """Its place on the command line."""
    send = verbs.add_parser("send", help="send accounted mail to a server, and keep ledgers of it")
    send.add_argument("--server", metavar="HOST:PORT", type=_server, required=True,
                      help="where to send it")  # fmt: skip
    send.add_argument("--to", metavar="ADDRESS", nargs="+", type=_address, required=True,
                      help="whom to: up to four of them at a time")  # fmt: skip
    send.add_argument("--from", metavar="ADDRESS", dest="sender", type=_address,
                      default="faultlab@example.org",
                      help="the return path (default: %(default)s)")  # fmt: skip
    send.add_argument("--ledgers", metavar="DIRECTORY", type=Path, required=True,
                      help="where to write the ledgers")  # fmt: skip
    send.add_argument("--seed", metavar="N", type=int,
                      help="makes sizes, recipients, contents; without it, any")  # fmt: skip
    end = send.add_mutually_exclusive_group()
    end.add_argument("--messages", metavar="N", type=_positive, help="end after so many mails")
    end.add_argument("--seconds", metavar="S", type=_seconds,
                     help="end after so long; without either, when interrupted")  # fmt: skip
    send.add_argument("--sessions", metavar="N", type=_positive, default=8,
                      help="at the same time (default: %(default)s)")  # fmt: skip
    send.add_argument("--rate", metavar="N", type=_seconds,
                      help="mails a second; without it, as many as are taken")  # fmt: skip
    send.add_argument("--break-off", metavar="SHARE", type=_share, default=0.0,
                      help="of the attempts, 0 to 1, whose connection is reset in the middle"
                      " of the data or behind it (default: %(default)s)")  # fmt: skip
    send.add_argument("--max-size", metavar="OCTETS", type=_size, default=MAX_SIZE,
                      help="of a mail (default: %(default)s)")  # fmt: skip
    send.add_argument("--timeout", metavar="S", type=_seconds, default=TIMEOUT,
                      help="silence after which a connection counts as lost"
                      " (default: %(default)g)")  # fmt: skip
    send.add_argument("--finish", metavar="S", type=_seconds, default=60.0,
                      help="how long to go on at the end, until all is acknowledged"
                      " (default: %(default)g)")  # fmt: skip
    send.set_defaults(run=send_)


def send_(options: argparse.Namespace) -> int:
    """Send; 0 once that has ended. Raises SendersError."""
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    senders = Senders(
        options.server,
        options.ledgers,
        seed,
        processes=-(-options.sessions // SESSIONS_PER_PROCESS),
        sessions=options.sessions,
        rate=options.rate,
        messages=options.messages,
        recipients=options.to,
        sender=options.sender,
        break_off=options.break_off,
        max_size=options.max_size,
        timeout=options.timeout,
    )
    print(f"seed {seed}, run {senders.run}, ledgers in {options.ledgers}", flush=True)
    try:
        with senders:
            _watch(senders, options.seconds, options.finish)
    except OSError as error:
        raise SendersError(f"{options.ledgers}: {error.strerror}") from error
    print(_figures(senders))
    return 0


def _watch(senders: Senders, seconds: float | None, finish: float) -> None:
    """Say how far they are, until they have ended."""
    until = None if seconds is None else time.monotonic() + seconds
    try:
        while until is None or time.monotonic() < until:
            left = _EVERY if until is None else min(_EVERY, until - time.monotonic())
            if senders.wait(max(0.0, left)):
                return
            print(_figures(senders), flush=True)
    except KeyboardInterrupt:
        print("bringing the mails under way home", file=sys.stderr)
    senders.stop(finish)


def _figures(senders: Senders) -> str:
    return (
        f"acknowledged: {senders.acknowledged}, refused: {senders.refused},"
        f" connections lost: {senders.lost}, broken off: {senders.abandoned}"
    )


def _server(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return host, int(port)
    raise argparse.ArgumentTypeError(f"{text!r} is not like 127.0.0.1:25")


def _address(text: str) -> str:
    if _ADDRESS.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no address")


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def _size(text: str) -> int:
    if _positive(text) >= MIN_SIZE:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is too small; the least is {MIN_SIZE}")


def _seconds(text: str) -> float:
    try:
        if 0 < float(text) < 1e9:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def _share(text: str) -> float:
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
