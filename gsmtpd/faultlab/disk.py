"""Where is a disk that can be filled up without harm? A small file system in a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from gsmtpd.faultlab.processes import MissingRightError, find_program

SIZE = 512 * 1024 * 1024  # octets, none of which are used before they are written


class SmallDisk:
    """An ext4 of `size` octets, mounted at the new directory `path` from entry to exit.

    Raises MissingRightError where none can be mounted, MissingProgramError.
    """

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self._path = path
        self._size = size
        self._ballast = path / "ballast"

    def __enter__(self) -> Self:
        make, mount = find_program("mkfs.ext4"), find_program("mount")
        image = self._path.with_suffix(".ext4")
        image.touch()
        os.truncate(image, self._size)
        _run(make, "-q", "-F", "-m", "0", str(image))
        self._path.mkdir()
        _run(mount, "-o", "loop", str(image), str(self._path))
        with contextlib.suppress(OSError):
            (self._path / "lost+found").rmdir()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([find_program("umount"), "-l", str(self._path)], check=False)

    def adopt(self, directory: Path) -> None:
        """Have a directory, which nobody uses now, lie on this disk from now on."""
        lies = self._path / directory.name
        shutil.move(directory, lies)
        directory.symlink_to(lies)

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """No octet is free meanwhile."""
        try:
            with self._ballast.open("wb") as ballast:
                self._fill(ballast.fileno())
            yield
        finally:
            self._ballast.unlink(missing_ok=True)

    def _fill(self, file: int) -> None:
        """Take all there is, in ever smaller pieces."""
        piece, end = shutil.disk_usage(self._path).free, 0
        while piece >= 4096:
            try:
                os.posix_fallocate(file, end, piece)
                end += piece
            except OSError:
                piece //= 2


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise MissingRightError(f"the right to mount a file system: {done.stderr.strip()}")
