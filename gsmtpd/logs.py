"""Where do log lines go? To a file, to stderr or to syslog; one whole line at a time."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from gsmtpd.maillog import LineFormatter, MailLog, json_line, logfmt

SYSLOG = "/dev/log"


class LogError(Exception):
    """The log cannot be written; the text is one clear line."""


class FileLog(logging.Handler):
    """Appends to the file `path`, or to stderr where it is "-".

    A full disk loses lines, never mail: errors of the write are ignored. Raises LogError if the
    file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self.descriptor = sys.stderr.fileno() if path == "-" else os.open(path, flags, 0o640)
        except OSError as error:
            raise LogError(
                f"cannot write the log {path}: {error.strerror};"
                " set [log] file or -l to a file in a directory that gsmtpd may write"
            ) from error

    def write(self, text: str) -> None:
        """Append `text` (whole lines) in one system call, so that processes may share the file."""
        with suppress(OSError):
            os.write(self.descriptor, text.encode("utf-8", "backslashreplace"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record of the program's own log."""
        self.write(self.format(record) + "\n")


class SysLog(logging.handlers.SysLogHandler):
    """Sends to the local syslog, facility mail. Raises LogError where there is none."""

    def __init__(self) -> None:
        try:
            super().__init__(SYSLOG, logging.handlers.SysLogHandler.LOG_MAIL)
        except OSError as error:
            raise LogError(
                f"no syslog at {SYSLOG} ({error.strerror}); set [log] file or -l to a file"
            ) from error
        self.ident = f"gsmtpd[{os.getpid()}]: "

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
        return [self._sink.socket.fileno()]  # type: ignore[attr-defined]

    def mail_log(self) -> MailLog:
        """A mail log that writes here; make one per thread."""
        write: Callable[[str], None] = self._sink.write
        return MailLog(write, self._line, self._mail)
