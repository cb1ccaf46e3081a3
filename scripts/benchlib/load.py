"""How is a server loaded with all it can take? By Postfix's smtp-source, which is in C.

It says nothing of how long a reply takes; `latency` does. It speaks no TLS; there `sender` is used.
"""

from __future__ import annotations

import atexit
import functools
import os
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.benchlib.latency import Pace, pace
from scripts.benchlib.scenarios import Scenario, lines
from tests.servers import ServerError, find_program

LOAD_SECONDS = 120.0
HEAD = "From: a@example.org\nTo: b@example.com\nSubject: bench\n\n"


@dataclass(frozen=True)
class Sent:
    """What it took to send the messages. seconds: on the wall; cpu: those of the load itself."""

    seconds: float
    cpu: float


def send(port: int, scenario: Scenario, messages: int, *, secure: bool = False) -> Sent:
    """Send messages as fast as they are taken. secure: by STARTTLS.

    Raises ServerError at the first reply that is not the wanted one.
    """
    if scenario.tls:
        paced = pace(port, scenario, Pace(messages), secure=secure)
        return Sent(paced.seconds, paced.load_cpu)
    before = _children_cpu()
    began = time.perf_counter()
    try:
        done = subprocess.run(
            _smtp_source(port, scenario, messages),
            check=False,
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ServerError(f"smtp-source was not done after {LOAD_SECONDS:g} s") from None
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ServerError(f"smtp-source failed ({done.returncode}): {done.stderr.strip()}")
    return Sent(seconds, _children_cpu() - before)


def _smtp_source(port: int, scenario: Scenario, messages: int) -> list[str]:
    sessions = min(scenario.sessions, messages)
    command = [find_program("smtp-source"), "-s", str(sessions), "-m", str(messages)]
    command += ["-F", _file(scenario.size)] if scenario.text else ["-l", str(scenario.size)]
    command += ["-N"] * scenario.fresh + ["-d"] * scenario.many
    return [*command, "-f", "a@example.org", "-t", "b@example.com", f"127.0.0.1:{port}"]


@functools.cache
def _file(size: int) -> str:
    """A message of words, with its header, as smtp-source reads it: lines end with LF."""
    handle, name = tempfile.mkstemp(prefix="gsmtpd-bench-message-")
    path = Path(name)
    with os.fdopen(handle, "wb") as file:
        file.write(HEAD.encode() + lines(size, text=True).replace(b"\r\n", b"\n"))
    atexit.register(path.unlink, missing_ok=True)
    return str(path)


def _children_cpu() -> float:
    """CPU seconds of the children that have ended: smtp-source, for the servers run on."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
