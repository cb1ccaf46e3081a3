"""How does gsmtpd become a daemon? The pid file, and python-daemon's DaemonContext."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress

from daemon import DaemonContext  # type: ignore[import-untyped]

MAX_DESCRIPTORS = 65536  # python-daemon closes each up to the limit; a limit of 2^30 takes minutes


class PidFileError(Exception):
    """The pid file cannot be had. running: whether another gsmtpd holds it."""

    def __init__(self, text: str, running: bool) -> None:
        super().__init__(text)
        self.running = running


class PidFile:
    """The file `path` with this daemon's process id, locked as long as the daemon lives.

    The lock, not the file, says that a daemon runs; so a stale file is simply taken over.
    stale: the process id that such a file named, or "". Raises PidFileError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        while True:
            self.descriptor = _locked(path)
            # Who held the lock before may have removed the file while we waited to open it.
            if _names(path, self.descriptor):
                break
            os.close(self.descriptor)
        self.stale = _content(self.descriptor)

    def write(self) -> None:
        """Write this process's id."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        try:
            if _names(self._path, self.descriptor):
                os.unlink(self._path)
        except OSError:
            os.ftruncate(self.descriptor, 0)  # the directory is not ours: leave an empty one
        self.close()

    def close(self) -> None:
        """Close it in a worker: the lock stays with the master."""
        os.close(self.descriptor)


def runs_as(path: str) -> str | None:
    """The process id of the daemon that holds the pid file `path`, None if no daemon does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _content(descriptor) or "?"
    finally:
        os.close(descriptor)
    return None


def _locked(path: str) -> int:
    """The file `path`, open and locked. Raises PidFileError."""
    # Never through a symbolic link: in a directory that others may write it could lead anywhere.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        pid = _content(descriptor) or "?"
        os.close(descriptor)
        raise already_running(pid, path) from None
    except OSError as error:
        os.close(descriptor)
        raise _refused(path, error) from error


def already_running(pid: str, path: str) -> PidFileError:
    """What to say of the gsmtpd that holds the pid file `path`."""
    return PidFileError(f"gsmtpd runs already as process {pid} ({path})", True)


def _refused(path: str, error: OSError) -> PidFileError:
    reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
    if error.errno == errno.EACCES and os.path.exists(path):
        reason = "the file that is there is another user's; remove it"
    return PidFileError(
        f"cannot write the pid file {path}: {reason};"
        " set [server] pid_file to a file in a directory that gsmtpd's user may write",
        False,
    )


def _names(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _content(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()


class Caller:
    """The process that has started the daemon, and waits until that is ready."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say_ready(self) -> None:
        """Let it end, with exit code 0."""
        with suppress(OSError):  # it does not wait any more
            os.write(self._descriptor, b"1")
        self.close()

    def close(self) -> None:
        """Forget it; in a worker, so that only the master is waited for."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def detach(keep: Sequence[int]) -> Caller:
    """Go into the background; of the open descriptors only `keep` stay.

    Returns in the daemon. The process that called waits for it, and exits with 0 once it is
    ready, or with 70 if it ended before.
    """
    ended, ready = os.pipe()
    if os.fork():
        os.close(ready)
        if os.read(ended, 1):
            os._exit(0)
        sys.stderr.write("gsmtpd: the daemon ended before it was ready; its log says why\n")
        sys.stderr.flush()
        os._exit(70)
    os.close(ended)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard > MAX_DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    DaemonContext(
        files_preserve=[*keep, ready],
        umask=0o027,  # its default of 0 would let anyone write what we make
        working_directory="/",
        detach_process=True,
        signal_map={},
    ).open()
    return Caller(ready)
