"""Is Python's garbage collector as it should be once gsmtpd is imported?"""

from __future__ import annotations

import subprocess
import sys

# Says whether it collects when it reads cli, and when it calls it.
PROGRAM = """
import gc, sys
from gsmtpd import __main__

class Finder:
    def find_spec(self, name, *_):
        if name == "gsmtpd.cli":
            print(gc.isenabled())

def told():
    print(gc.isenabled(), gc.get_freeze_count() > 10_000)
    return 7

sys.meta_path.insert(0, Finder())
gc.freeze = lambda frozen=gc.freeze: (frozen(), setattr(sys.modules["gsmtpd.cli"], "main", told))
sys.exit(__main__.main())
"""


def test_no_garbage_is_looked_for_while_modules_are_read() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("False\nTrue True\n", "", 7)
