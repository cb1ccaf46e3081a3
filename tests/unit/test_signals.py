"""Does no signal get lost between two queues, as in a worker that has just been forked?"""

from __future__ import annotations

import subprocess
import sys

ONE_AFTER_THE_OTHER = """
import os, signal
from gsmtpd.signals import SignalQueue
first = SignalQueue([signal.SIGTERM, signal.SIGHUP])
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.kill(os.getpid(), signal.SIGTERM)
first.close()
second = SignalQueue([signal.SIGTERM])
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.kill(os.getpid(), signal.SIGHUP)
print([number.name for number in second.take()])
"""


def test_a_signal_that_came_before_the_queue() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], check=True, capture_output=True, text=True
    )
    assert done.stdout == "['SIGTERM']\n"
