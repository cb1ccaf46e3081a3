"""Which files are the project's, as they are now?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.servers import ROOT


def copy_tree(into: Path) -> None:
    """Copy what git would, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.strip("\0").split("\0"):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)
        else:
            (into / name).unlink(missing_ok=True)
