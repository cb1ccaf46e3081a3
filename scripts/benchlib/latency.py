"""How long does a client wait for the reply to its final dot?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchlib.scenarios import Scenario
from tests.servers import ServerError

SENDER = Path(__file__).with_name("sender.py")
MOST_SECONDS = 120.0


@dataclass(frozen=True)
class Pace:
    """How many messages, and how many are begun in a second; 0: as fast as they are taken."""

    messages: int
    rate: float = 0.0


@dataclass(frozen=True)
class Paced:
    """What came of it. All in seconds; p50 and p99: from the final dot to its reply.

    late_p99: from when a message was due to when it was begun, which a free session may have been
    waited for; own_p99: so much of a wait may be the load generator's own.
    """

    messages: int
    seconds: float
    p50: float
    p99: float
    most: float
    late_p99: float
    own_p99: float
    load_cpu: float


def quantile(values: Sequence[float], part: float) -> float:
    """The least value that no less than this part of `values` does not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def pace(port: int, scenario: Scenario, how: Pace, *, secure: bool = False) -> Paced:
    """Send messages by a process of its own. secure: by STARTTLS.

    Raises ServerError at the first reply that is not the wanted one.
    """
    command = [sys.executable, str(SENDER), f"--port={port}", f"--scenario={scenario.name}"]
    command += [f"--messages={how.messages}", f"--rate={how.rate}", *["--secure"] * secure]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ServerError(f"the sender was not done after {MOST_SECONDS:g} s") from None
    if done.returncode:
        raise ServerError(f"the sender failed: {done.stderr.strip()[-500:]}")
    return _paced(json.loads(done.stdout))


def _paced(said: dict[str, Any]) -> Paced:
    waits = said["waits"]
    return Paced(
        messages=len(waits),
        seconds=said["seconds"],
        p50=quantile(waits, 0.5),
        p99=quantile(waits, 0.99),
        most=max(waits),
        late_p99=quantile(said["late"], 0.99),
        own_p99=quantile(said["own"], 0.99),
        load_cpu=said["cpu"],
    )
