"""How does gsmtpd become a daemon? The pid file, and python-daemon's DaemonContext."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable, Sequence

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
    Raises PidFileError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        folder = os.path.dirname(path)
        try:
            if folder.startswith("/run/") and not os.path.exists(folder):
                os.mkdir(folder, 0o755)  # /run is empty after each boot
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> PidFileError:
        if error.errno in (errno.EAGAIN, errno.EACCES) and hasattr(self, "descriptor"):
            pid = os.pread(self.descriptor, 20, 0).decode("ascii", "replace").strip() or "?"
            os.close(self.descriptor)
            return PidFileError(f"gsmtpd runs already as process {pid} ({self._path})", True)
        return PidFileError(
            f"cannot write the pid file {self._path}: {error.strerror};"
            " set [server] pid_file to a file in a directory that gsmtpd may write",
            False,
        )

    def write(self) -> None:
        """Write this process's id."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        os.unlink(self._path)
        os.close(self.descriptor)

    def close(self) -> None:
        """Close it in a worker: the lock stays with the master."""
        os.close(self.descriptor)


def detach(keep: Sequence[int]) -> Callable[[], None]:
    """Go into the background; of the open descriptors only `keep` stay.

    Returns in the daemon, with what it must call once it is ready: until then the process that
    called waits, and it exits with 0, or with 70 if the daemon ended before.
    """
    ended, ready = os.pipe()
    if os.fork():
        os.close(ready)
        os._exit(0 if os.read(ended, 1) else 70)
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

    def say_ready() -> None:
        os.write(ready, b"1")
        os.close(ready)

    return say_ready
