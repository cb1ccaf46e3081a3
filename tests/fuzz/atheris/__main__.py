"""How is a target given octets that nobody has thought of? By atheris; scripts/fuzz runs this.

python -m tests.fuzz.atheris TARGET SECONDS DIRECTORY [libFuzzer options]

DIRECTORY gets the inputs that reach new code, and those that fail; it is begun with the corpus.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gsmtpd"]):
    from tests.fuzz.atheris.targets import TARGETS

HERE = Path(__file__).resolve().parent
MESSAGES = HERE.parents[1] / "messages"
# Octets of the largest input, and the directories that it begins with beside its corpus.
LARGEST = {"address": 300, "command": 600, "header": 4000, "body": 4000, "proxy": 5000}
MORE = {"header": [MESSAGES], "body": [MESSAGES]}


def main() -> None:
    """Fuzz until the time is over or something fails, which ends with another exit code than 0."""
    name, seconds, directory, *options = sys.argv[1:]
    if name not in TARGETS:
        sys.exit(f"there is no target {name}, but {', '.join(TARGETS)}")
    found = Path(directory, name)
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"fuzz {name}",
        f"-max_total_time={seconds}",
        f"-max_len={LARGEST.get(name, 3000)}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        f"-artifact_prefix={directory}/{name}-",
        f"-dict={HERE / 'words.dict'}",
        *options,
        *map(str, [found, HERE / "corpus" / name, *MORE.get(name, [])]),
    ]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
