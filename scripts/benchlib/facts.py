"""Where and with what is measured: the circumstances without which the numbers mean nothing?"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers import ROOT, ServerError, find_program


def output_of(*command: str) -> str:
    """What a program says; `missing` if it cannot."""
    try:
        program = find_program(command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (ServerError, OSError, subprocess.CalledProcessError):
        return "missing"


def cpu_model() -> str:
    """The processor's name as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, str]:
    """What is measured and where: the circumstances that all benches share."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    load = os.getloadavg()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cpu_model()}, {platform.machine()}, Linux {platform.release()}",
        "cpus": f"{len(os.sched_getaffinity(0))}, load average {load:.2f} at the start",
        "python": f"{platform.python_version()}{'' if gil else ', without GIL'}",
        "postfix": output_of("postconf", "-dh", "mail_version"),
        "commit": output_of("git", "describe", "--always", "--dirty"),
    }


def package_version(name: str) -> str:
    """The version of an installed Python package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def facts() -> dict[str, str]:
    """Those of scripts/bench: also the packages, the database, and the disk it is on."""
    temporary = tempfile.gettempdir()
    file_system = output_of("findmnt", "-no", "FSTYPE", "-T", temporary)
    return machine() | {
        "packages": ", ".join(f"{n} {package_version(n)}" for n in ("PyMySQL", "aiosmtpd")),
        "mariadb": output_of("mariadbd", "--version").partition("Ver ")[2] or "missing",
        "store": f"{temporary} on {file_system}",
    }
