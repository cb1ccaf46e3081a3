"""Where do log lines go? To a file, to stderr or to syslog; one whole line at a time."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from gsmtpd.maillog import LineFormatter, MailLog, json_line, logfmt

SYSLOG = "/dev/log"
STDERR = "-"
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOBODY_READS = (errno.EPIPE, errno.ECONNRESET, errno.EAGAIN)
_FACILITY = 2 << 3  # mail, RFC 5424 section 6.2.1
_SEVERITIES = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}

_log = logging.getLogger(__name__)


class LogError(Exception):
    """The log cannot be written; the text is one clear line."""


def _severity(level: int) -> int:
    return _SEVERITIES.get(level, 6)


def _writable(descriptor: int) -> bool:
    """Whether a write would be taken, or fail, at once."""
    poll = select.poll()  # select() knows no descriptor above 1023
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _is_journal(descriptor: int) -> bool:
    """Whether what is written here goes to systemd's journal, see systemd.exec(5)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _with_severity(text: str, level: int) -> str:
    """The lines of `text` as the journal wants them, see sd-daemon(3)."""
    front = f"<{_severity(level)}>"
    return "".join([f"{front}{line}\n" for line in text.split("\n")[:-1]])


class _Losses:
    """How many lines were lost, and was it said? One account for all processes forked later.

    The kernel adds and takes in one step; no lock is held by a process that may die or be stopped.
    """

    _CUT = 1 << 40  # added to the number of lost lines for a line that was written in part

    def __init__(self) -> None:
        self._any = mmap.mmap(-1, 1)  # spares a system call for each write that goes well
        self._account = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._unsaid = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def descriptors(self) -> list[int]:
        """What must stay open when the process detaches."""
        return [self._account, self._unsaid]

    def __bool__(self) -> bool:
        return self._any[0] != 0

    def add(self, lines: int, cut: bool) -> None:
        """Count lost `lines`. cut: whether the log ends in the middle of a line by now."""
        os.eventfd_write(self._account, lines + self._CUT * cut)
        self._any[0] = 1

    def take(self) -> tuple[int, bool]:
        """What `add` was told since the last call."""
        self._any[0] = 0  # first: what is added from now on sets it again
        try:
            account = os.eventfd_read(self._account)
        except BlockingIOError:
            return 0, False  # another process was faster
        return account % self._CUT, account >= self._CUT

    def say(self) -> bool:
        """Whether the caller is the one to say that lines are lost."""
        try:
            os.eventfd_read(self._unsaid)
        except BlockingIOError:
            return False
        return True

    def say_again(self) -> None:
        """Have the next loss said, too."""
        os.eventfd_write(self._unsaid, 1)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class FileLog(logging.Handler):
    """Appends to the file `path`, or to stderr where it is "-".

    A file that was renamed is left for a new one within a second, so rotation needs no signal. A
    full disk, or a reader of stderr that does not read, loses lines, never mail. Raises LogError if
    the file cannot be opened. setting: what to change in the configuration then.
    """

    def __init__(self, path: str, setting: str = "[log] file or -l") -> None:
        super().__init__()
        self._path = path
        self._looked = time.monotonic()
        self._kept_old = False  # a new file could not be opened
        try:
            self.descriptor = sys.stderr.fileno() if path == STDERR else self._open()
            self._may_block = not stat.S_ISREG(os.fstat(self.descriptor).st_mode)
            self._journal = path == STDERR and _is_journal(self.descriptor)
        except OSError as error:
            raise LogError(
                f"cannot write the log {path}: {error.strerror};"
                f" set {setting} to a file in a directory that gsmtpd may write"
            ) from error
        self._losses = _Losses()
        if path != STDERR and not self._may_block and not _ends_with_a_line(path):
            self._losses.add(0, cut=True)

    def inherit(self, old: FileLog) -> None:
        """Take over the account of what `old`, which led to the same file, has lost."""
        lost, cut = old._losses.take() if old._path == self._path else (0, False)
        if lost or cut:
            self._losses.add(lost, cut)

    def _open(self) -> int:
        return os.open(self._path, _FLAGS, 0o640)

    @property
    def descriptors(self) -> list[int]:
        """What must stay open when the process detaches."""
        return [self.descriptor, *self._losses.descriptors]

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record of the program's own log."""
        self.write(self.format(record) + "\n", record.levelno)

    def write(self, text: str, level: int = logging.INFO) -> None:
        """Append `text` (whole lines) in one system call, so that processes may share the file."""
        if self.descriptor < 0:
            return  # closed
        if not self._may_block and time.monotonic() - self._looked > 1:
            self._follow()
        if self._losses:
            self._write_after_loss(text, level)
            return
        octets = self._encode(text, level)
        written, error = self._append(octets)
        if written < len(octets):
            self._losses.add(octets.count(b"\n", written), _within_a_line(octets, written))
            self._complain(error)

    def _write_after_loss(self, text: str, level: int) -> None:
        lost, cut = self._losses.take()
        head = self._report(lost) if lost else b""
        if cut and (self._may_block or os.fstat(self.descriptor).st_size):
            head = b"\n" + head
        octets = head + self._encode(text, level)
        written, error = self._append(octets)
        if written == len(octets):
            if lost:
                self._losses.say_again()
            return
        # Lines lost before stay so until it was said that they are.
        missing = octets.count(b"\n", max(written, len(head)))
        said = written >= len(head)
        still_cut = _within_a_line(octets, written) if written else cut
        self._losses.add(missing + (0 if said else lost), still_cut)
        self._complain(error)

    def _report(self, lost: int) -> bytes:
        text = f"lines lost here because they could not be written: {lost}"
        record = logging.LogRecord(_log.name, logging.WARNING, "", 0, text, None, None)
        return self._encode(self.format(record) + "\n", logging.WARNING)

    def _encode(self, text: str, level: int) -> bytes:
        if self._journal:
            text = _with_severity(text, level)
        return text.encode("utf-8", "backslashreplace")

    def _append(self, octets: bytes) -> tuple[int, OSError | None]:
        """How many of `octets` were written, and what was in the way of the rest."""
        # A pipe that is writable takes PIPE_BUF octets without blocking, see pipe(7).
        piece = select.PIPE_BUF if self._may_block else len(octets)
        written = 0
        try:
            while written < len(octets):
                if self._may_block and not _writable(self.descriptor):
                    break
                written += os.write(self.descriptor, octets[written : written + piece])
        except OSError as error:
            return written, error
        return written, None

    def _complain(self, error: OSError | None) -> None:
        """Say elsewhere, once for all processes, that lines are lost."""
        if error is None or error.errno in _NOBODY_READS or not self._losses.say():
            return
        until = "there is room" if error.errno in _NO_ROOM else "it can be written again"
        text = (
            f"cannot write the log {self._path}: {error.strerror};"
            f" log lines are lost until {until}, mail is not"
        )
        if not _say_on_stderr(text, self.descriptor) and not _say_to_syslog(text):
            self._losses.say_again()

    def _follow(self) -> None:
        """Open the file again if its name leads to another file by now, or to none."""
        self._looked = time.monotonic()
        if self._path == STDERR:
            return
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self.descriptor))
        except FileNotFoundError:
            same = False
        except OSError:
            return
        if not same:
            self._replace(say=not self._kept_old)

    def reopen(self) -> None:
        """Open the file anew now. If that fails the old one is kept, and a line there says so."""
        if self._path != STDERR:
            self._replace(say=True)

    def _replace(self, say: bool) -> None:
        try:
            fresh = self._open()
        except OSError as error:
            self._kept_old = True
            if say:
                _log.error(
                    "cannot open the log %s anew: %s; the old file is written on",
                    self._path,
                    error.strerror,
                )
            return
        self._kept_old = False
        os.dup2(fresh, self.descriptor, inheritable=False)
        os.close(fresh)

    def close(self) -> None:
        """Close the file, but never stderr. Whoever still writes here writes nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            self._losses.close()
            if self._path != STDERR:
                os.close(descriptor)
        super().close()


def _ends_with_a_line(path: str) -> bool:
    """Whether what is appended to `path` begins a line."""
    try:
        with open(path, "rb") as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:
        return True  # it cannot be known


def _within_a_line(octets: bytes, written: int) -> bool:
    return written > 0 and octets[written - 1 : written] != b"\n"


def _say_on_stderr(text: str, log: int) -> bool:
    """Say `text` on stderr; False if nobody would see it there, or if it is `log` itself."""
    with suppress(OSError, AttributeError):  # sys.stderr is None where there was none
        descriptor = sys.stderr.fileno()
        if os.path.samestat(os.fstat(descriptor), os.fstat(log)):
            return False
        if os.path.samestat(os.fstat(descriptor), os.stat(os.devnull)):
            return False
        line = f"gsmtpd: {text}\n"
        if _is_journal(descriptor):
            line = _with_severity(line, logging.ERROR)
        octets = line.encode("utf-8", "backslashreplace")
        return _writable(descriptor) and os.write(descriptor, octets) == len(octets)
    return False


def _say_to_syslog(text: str) -> bool:
    syslog = SysLog()
    try:
        return syslog.send(text, logging.ERROR)
    finally:
        syslog.close()


class SysLog(logging.Handler):
    """Sends to the local syslog, facility mail, as soon as there is one. It never waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._socket: socket.socket | None = None
        self._mutex = threading.Lock()  # a descriptor closed under a send may be a client's by then

    @property
    def descriptors(self) -> list[int]:
        """What must stay open when the process detaches."""
        return [self._socket.fileno()] if self._socket is not None else []

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record of the program's own log."""
        self.write(self.format(record), record.levelno)

    def write(self, text: str, level: int = logging.INFO) -> None:
        """Send the lines of `text`, a datagram each."""
        for line in text.splitlines():
            self.send(line, level)

    def send(self, line: str, level: int) -> bool:
        """Send one line; False if it is lost."""
        front = f"<{_FACILITY | _severity(level)}>gsmtpd[{os.getpid()}]: "
        datagram = (front + line).encode("utf-8", "backslashreplace")
        with self._mutex:
            if self._socket is not None:
                try:
                    self._socket.send(datagram, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return False
                except OSError:
                    self._disconnect()  # syslogd was restarted
                else:
                    return True
            return self._send_anew(datagram)

    def _send_anew(self, datagram: bytes) -> bool:
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.connect(SYSLOG)
            self._socket.send(datagram, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._disconnect()
            return False
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reopen(self) -> None:
        """Connect anew at the next line."""
        with self._mutex:
            self._disconnect()

    def close(self) -> None:
        """Close the connection; a later line opens it again."""
        self.reopen()
        super().close()


class Logs:
    """The open logs of a process: the program's own, and the mail log. Make it before the fork."""

    def __init__(self, path: str, level: str, style: str, mail_path: str = "") -> None:
        """path: a file, "-" for stderr, "" for syslog. mail_path: the mail log's own file, or "".

        level, style: as in the config [log]. Raises LogError, with nothing left open.
        """
        self._line = json_line if style == "json" else logfmt
        self._level = level.upper()
        self._log: FileLog | SysLog = FileLog(path) if path else SysLog()
        if path or style == "json":
            self._log.setFormatter(LineFormatter(self._line))
        self._mail = self._log
        if mail_path:
            try:
                self._mail = FileLog(mail_path, "[log] mail_file")
            except LogError:
                self._log.close()
                raise
            self._mail.setFormatter(LineFormatter(self._line))
        self._recent: Callable[[bytes], None] | None = None

    def remember(self, recent: Callable[[bytes], None]) -> None:
        """Have the mail logs that are made from now on tell `recent`, too; see MailLog."""
        self._recent = recent

    def inherit(self, old: Logs) -> None:
        """Say in these logs what the `old` ones, in whose place they come, have lost."""
        for sink in self._sinks:
            for before in old._sinks:
                if isinstance(sink, FileLog) and isinstance(before, FileLog):
                    sink.inherit(before)

    def install(self) -> None:
        """Send the program's own log here from now on."""
        root = logging.getLogger("gsmtpd")
        root.propagate = False
        root.setLevel(self._level)
        root.handlers[:] = [self._log]

    def mail_log(self) -> MailLog:
        """A mail log that writes here; make one per thread."""
        enabled = self._level in ("DEBUG", "INFO")
        return MailLog(self._mail.write, self._line, enabled, self._recent)

    @property
    def descriptors(self) -> list[int]:
        """What must stay open when the process detaches."""
        return [fd for sink in self._sinks for fd in sink.descriptors]

    @property
    def fault_descriptor(self) -> int | None:
        """Where stacks go when the process crashes: the log or stderr; None for syslog."""
        return self._log.descriptor if isinstance(self._log, FileLog) else None

    def reopen(self) -> None:
        """Open the files anew now; one that cannot be opened is written on, and a line says so."""
        for sink in self._sinks:
            sink.reopen()

    def close(self) -> None:
        """Close what was opened here, once nobody writes here any more."""
        for sink in self._sinks:
            sink.close()

    @property
    def _sinks(self) -> list[FileLog | SysLog]:
        return [self._log] if self._mail is self._log else [self._log, self._mail]
