"""How does mail get into a maildir, where IMAP servers and mail readers find it? Each once.

See https://cr.yp.to/proto/maildir.html. The name of a file is that of the delivery: so a second try
finds what the first has written. Nothing of a mail is in a path.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress

from gsmtpd.handlers.handler import GiveUpError, Handler, RetryError
from gsmtpd.handlers.mail import Mail

_FOLDERS = ("tmp", "new", "cur")
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


class ForwardToMaildir(Handler):
    """Writes each mail into the maildir `path`, which is made where it is missing."""

    defaults = {"path": ""}

    def prepare(self) -> None:
        """Check the path. Raises ValueError."""
        path = self.settings["path"]
        if not path:
            raise ValueError("path is missing: write the full path of a maildir")
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError(f"path = {path}: write its full path, like /var/mail/joe/Maildir")
        if os.path.exists(path) and not os.path.isdir(path):
            raise ValueError(f"path = {path}: that is a file; write the path of a maildir")
        self._path = os.path.normpath(path)
        if not os.path.isdir(os.path.dirname(self._path)):
            raise ValueError(f"path = {path}: make {os.path.dirname(self._path)} first")

    def handle(self, mail: Mail) -> None:
        """Write it. Raises RetryError."""
        if not (mail.delivery.isascii() and mail.delivery.isalnum()):
            raise GiveUpError(f"{ascii(mail.delivery)} is no id of a delivery")
        name = f"{mail.facts.received_at:.0f}.{mail.delivery}.gsmtpd"
        try:
            for folder in ("", *_FOLDERS):
                with suppress(FileExistsError):
                    os.mkdir(os.path.join(self._path, folder), 0o700)
            if not self._has(name):
                # As is usual there, and as `gsmtpctl export` does: each line ends with LF alone.
                self._write(name, mail.raw.replace(b"\r\n", b"\n"))
        except OSError as error:
            raise RetryError(f"{self._path}: {error.strerror}") from error

    def _has(self, name: str) -> bool:
        """Whether an earlier try has written it, and perhaps a mail reader has taken it over."""
        # In this order: a reader moves from new to cur, and never back.
        if os.path.lexists(os.path.join(self._path, "new", name)):
            return True
        with os.scandir(os.path.join(self._path, "cur")) as entries:
            return any(entry.name.partition(":")[0] == name for entry in entries)

    def _write(self, name: str, octets: bytes) -> None:
        # Of its own: an earlier try, which is over its time, may still write.
        path = os.path.join(self._path, "tmp", f"{name}.{secrets.token_hex(8)}")
        new = os.path.join(self._path, "new", name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                file.write(octets)
                file.flush()
                os.fsync(file.fileno())
            _link(path, new)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
        _sync(os.path.dirname(new))


def _link(path: str, new: str) -> None:
    """Give the file `path` the name `new`, unless there is one, which is the same mail."""
    try:
        os.link(path, new)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(path, new)


def _sync(directory: str) -> None:
    """Have the names in `directory` on the disk, too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
