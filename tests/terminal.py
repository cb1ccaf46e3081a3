"""What does somebody see who runs a program on a terminal? By pyte, an emulator of one."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyte

from tests.servers import environment


class Terminal:
    """A terminal of so many columns and lines."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self._master, self.slave = pty.openpty()
        os.set_blocking(self._master, False)
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._set_size(columns, lines)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int, pid: int) -> None:
        """Change its size, which the process `pid` is told."""
        self._screen.resize(lines, columns)
        self._set_size(columns, lines)
        os.kill(pid, signal.SIGWINCH)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def look(self) -> str:
        """What is on the screen by now."""
        while True:
            try:
                octets = os.read(self._master, 65536)
            except OSError as error:  # EIO: nobody has it open any more
                assert error.errno in (errno.EAGAIN, errno.EIO)
                break
            if not octets:
                break
            self.raw += octets
            self._stream.feed(octets)
        return "\n".join(line.rstrip() for line in self._screen.display)

    def is_restored(self) -> bool:
        """Whether keys are echoed and lines are read, as a shell wants it."""
        flags = termios.tcgetattr(self.slave)[3]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)

    def close(self) -> None:
        for descriptor in (self._master, self.slave):
            os.close(descriptor)


@contextmanager
def on_terminal(
    terminal: Terminal,
    arguments: list[str],
    before: str = "",
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A gsmtpctl that runs on `terminal`, behind the Python `before`."""
    code = f"{before}\nimport sys, gsmtpd.ctl\nsys.exit(gsmtpd.ctl.main())"
    default = {"TERM": "linux", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
        env=environment() | default | dict(variables or {}), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
