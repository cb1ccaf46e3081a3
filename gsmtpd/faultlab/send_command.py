"""What does `gsmtpd-faultlab send` do? It sends accounted mail to any server."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gsmtpd.faultlab import arguments
from gsmtpd.faultlab.mails import MIN_SIZE
from gsmtpd.faultlab.senders import MAX_SIZE, SESSIONS_PER_PROCESS, TIMEOUT, Senders, SendersError
from gsmtpd.faultlab.session import QUIT

_EVERY = 5.0  # seconds between lines that say how far it is
_AT_ONCE = 1.0  # seconds until the first of them: a wrong address is seen soon
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
    send.add_argument("--seed", metavar="N", type=arguments.seed,
                      help="makes sizes, recipients, contents; without it, any")  # fmt: skip
    send.add_argument("--messages", metavar="N", type=arguments.count,
                      help="end after so many mails")  # fmt: skip
    send.add_argument("--seconds", metavar="S", type=arguments.positive,
                      help="end after so long, or after --messages if that is sooner;"
                      " without either, when interrupted")  # fmt: skip
    send.add_argument("--sessions", metavar="N", type=arguments.count, default=8,
                      help="at the same time (default: %(default)s)")  # fmt: skip
    send.add_argument("--rate", metavar="N", type=arguments.positive,
                      help="mails a second; without it, as many as are taken")  # fmt: skip
    send.add_argument("--break-off", metavar="SHARE", type=arguments.share, default=0.0,
                      help="of the attempts, 0 to 1, whose connection is reset in the middle"
                      " of the data or behind it (default: %(default)s)")  # fmt: skip
    send.add_argument("--max-size", metavar="OCTETS", type=_size, default=MAX_SIZE,
                      help="of a mail (default: %(default)s)")  # fmt: skip
    send.add_argument("--timeout", metavar="S", type=arguments.positive, default=TIMEOUT,
                      help="silence after which a connection counts as lost"
                      " (default: %(default)g)")  # fmt: skip
    send.add_argument("--finish", metavar="S", type=arguments.positive, default=60.0,
                      help="how long to go on at the end, until all is acknowledged"
                      " (default: %(default)g)")  # fmt: skip
    send.set_defaults(run=send_)


def send_(options: argparse.Namespace) -> int:
    """Send; 0 once that has ended, 1 if nothing was acknowledged. Raises SendersError."""
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
            _watch(senders, options.seconds, options.finish, Reach(options.server))
        return _account(senders)
    except OSError as error:
        raise SendersError(f"{options.ledgers}: {error.strerror}") from error


def _watch(senders: Senders, seconds: float | None, finish: float, reach: Reach) -> None:
    """Say how far they are, until they have ended, and why they get no further."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    pause, answers = _AT_ONCE, 0
    try:
        while (left := until - time.monotonic()) > 0:
            if senders.wait(min(pause, left)):
                return
            print(_figures(senders), flush=True)
            before, answers = answers, senders.attempts + senders.refused
            reach.note("" if answers > before else reach.trouble(min(_EVERY, left)))
            pause = _EVERY
    except KeyboardInterrupt:
        print("bringing the mails under way home", file=sys.stderr)
    senders.stop(finish)


def _account(senders: Senders) -> int:
    """Say what came of it, and what the server had against it; the exit status."""
    print(_figures(senders), flush=True)
    refusal = last_refusal(senders.files, 5)
    if not refusal and not senders.acknowledged:
        refusal = last_refusal(senders.files, 4)
    if refusal:
        _complain(f"the last refusal: {refusal}")
    if senders.acknowledged:
        return 0
    _complain("nothing was acknowledged")
    return 1


def last_refusal(ledgers: Iterable[Path], severity: int) -> str:
    """The last reply of 4xx or 5xx (`severity` 4 or 5) that ledgers have, on one line, or ""."""
    last: dict[str, Any] = {}
    for path in ledgers:
        found = b""
        with path.open("rb") as lines:
            for line in lines:  # perhaps millions: few of them are worth decoding
                if b'"code":%d' % severity in line:
                    found = line
        if found:
            last = max(last, json.loads(found), key=lambda step: step.get("at", 0.0))
    return _printable(last.get("text", ""))


class Reach:
    """Says on standard error since when no session begins at `address`, and that one does again."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._since = 0.0  # Unix time; 0 while all is well

    def trouble(self, seconds: float) -> str:
        """What one meets who connects now, and waits so long for a greeting; "" for a greeting."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        with socket.socket(family) as probe:
            probe.settimeout(seconds)
            try:
                probe.connect(self._address)
                greeting = probe.recv(512)
                if greeting.startswith(b"2"):
                    probe.sendall(QUIT)
                    return ""
            except TimeoutError:
                return f"no answer within {seconds:.3g} s"
            except OSError as error:
                return error.strerror or str(error)
        return _printable(greeting.decode("latin-1")) or "connections are closed at once"

    def note(self, trouble: str) -> None:
        """Tell of trouble, and of its end."""
        host, port = self._address
        if trouble:
            self._since = self._since or time.time()
            since = time.strftime("%H:%M:%S", time.localtime(self._since))
            _complain(f"{host}:{port}: {trouble} (since {since})")
        elif self._since:
            self._since = 0.0
            _complain(f"{host}:{port} answers again")


def _complain(text: str) -> None:
    print(f"gsmtpd-faultlab: {text}", file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    """What a server has said, on one line and harmless to a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text).strip()


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


def _size(text: str) -> int:
    if arguments.count(text) >= MIN_SIZE:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is too small; the least is {MIN_SIZE}")
