"""Where do log lines go? To a file, to stderr or to syslog; one whole line at a time."""

from __future__ import annotations

import logging
import logging.handlers
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from gsmtpd.maillog import LineFormatter, MailLog, json_line, logfmt

SYSLOG = "/dev/log"
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class LogError(Exception):
    """The log cannot be written; the text is one clear line."""


class FileLog(logging.Handler):
    """Appends to the file `path`, or to stderr where it is "-".

    A file that was renamed is left for a new one within a second, so rotation needs no signal. A
    full disk, or a reader of stderr that does not read, loses lines, never mail. Raises LogError if
    the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._looked = time.monotonic()
        try:
            self.descriptor = sys.stderr.fileno() if path == "-" else os.open(path, _FLAGS, 0o640)
            self._may_block = not stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        except OSError as error:
            raise LogError(
                f"cannot write the log {path}: {error.strerror};"
                " set [log] file or -l to a file in a directory that gsmtpd may write"
            ) from error

    def write(self, text: str) -> None:
        """Append `text` (whole lines) in one system call, so that processes may share the file."""
        octets = text.encode("utf-8", "backslashreplace")
        with suppress(OSError):
            if self._may_block:
                self._write_pieces(octets)
                return
            if time.monotonic() - self._looked > 1:
                self._follow()
            os.write(self.descriptor, octets)

    def _write_pieces(self, octets: bytes) -> None:
        # A pipe that is writable takes PIPE_BUF octets without blocking, see pipe(7).
        for start in range(0, len(octets), select.PIPE_BUF):
            if not select.select([], [self.descriptor], [], 0)[1]:
                return
            os.write(self.descriptor, octets[start : start + select.PIPE_BUF])

    def _follow(self) -> None:
        """Open the file again if its name leads to another file by now, or to none."""
        self._looked = time.monotonic()
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self.descriptor))
        except FileNotFoundError:
            same = False
        if not same:
            fresh = os.open(self._path, _FLAGS, 0o640)
            os.dup2(fresh, self.descriptor, inheritable=False)
            os.close(fresh)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record of the program's own log."""
        self.write(self.format(record) + "\n")


class SysLog(logging.handlers.SysLogHandler):
    """Sends to the local syslog, facility mail, as soon as there is one."""

    def __init__(self) -> None:
        super().__init__(SYSLOG, logging.handlers.SysLogHandler.LOG_MAIL)
        self.ident = "gsmtpd: "  # shared by all processes, so without a process id

    def write(self, text: str) -> None:
        """Send the lines of `text`, a datagram each."""
        for line in text.splitlines():
            self.emit(logging.LogRecord("mail", logging.INFO, "", 0, "%s", (line,), None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging
        """A lost line is no reason to stop."""


class Logs:
    """The open logs of a process: the program's own, and the mail log."""

    def __init__(self, path: str, level: str, style: str) -> None:
        """path: a file, "-" for stderr, "" for syslog. level, style: as in the config [log]."""
        self._line = json_line if style == "json" else logfmt
        self._sink: FileLog | SysLog = FileLog(path) if path else SysLog()
        if path or style == "json":
            self._sink.setFormatter(LineFormatter(self._line))
        self._mail = level in ("debug", "info")
        root = logging.getLogger("gsmtpd")
        root.propagate = False
        root.setLevel(level.upper())
        root.handlers[:] = [self._sink]

    @property
    def descriptors(self) -> list[int]:
        """What must stay open when the process detaches."""
        if isinstance(self._sink, FileLog):
            return [self._sink.descriptor]
        descriptor: int = self._sink.socket.fileno()  # type: ignore[attr-defined]
        return [descriptor] if descriptor >= 0 else []

    def mail_log(self) -> MailLog:
        """A mail log that writes here; make one per thread."""
        write: Callable[[str], None] = self._sink.write
        return MailLog(write, self._line, self._mail)
