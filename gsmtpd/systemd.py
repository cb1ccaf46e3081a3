"""What do gsmtpd and systemd say to each other? sd_notify(3) and sd_listen_fds(3).

Both are a few lines by design, and stable since 2010: a library would be the larger dependency.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class ActivationError(Exception):
    """The descriptors that systemd passed cannot be used; the text is one clear line."""


class Notifier:
    """Tells the service manager how the service does; without one it tells nobody.

    environ: its variables are taken out, so that no child tells the manager anything.
    watchdog: seconds between two signs of life that the manager asks for, or None.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        period, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        # Half of what the manager waits, see sd_watchdog_enabled(3).
        self.watchdog = int(period) / 2e6 if period.isdigit() and int(period) and ours else None
        self._status = ""

    def ready(self) -> None:
        """Started, or done with a reload."""
        self._send("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload has begun; `ready` says that it is over, whatever came of it."""
        # Type=notify-reload wants the time of this, see systemd.service(5).
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The stop has begun."""
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """The sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]  # the abstract namespace, see unix(7)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto("\n".join(assignments).encode(), address)


def passed_sockets(
    environ: MutableMapping[str, str] = os.environ, first: int = FIRST_DESCRIPTOR
) -> list[tuple[str, socket.socket]]:
    """The listening sockets that socket activation has opened for this process, with their names.

    Raises ActivationError for what is no listening TCP socket. `environ` loses its LISTEN_
    variables: they are meant for this process only.
    """
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    names += [""] * (int(count) - len(names))
    return [
        (name, _listening(first + number, name))
        for number, name in zip(range(int(count)), names, strict=False)
    ]


def _listening(descriptor: int, name: str) -> socket.socket:
    what = f"the descriptor {descriptor} ({name or 'without a name'}) passed by systemd"
    try:
        passed = socket.socket(fileno=descriptor)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ActivationError(f"{what} is no socket: {error.strerror}") from error
    if (
        not listens
        or passed.type != socket.SOCK_STREAM
        or passed.family not in (socket.AF_INET, socket.AF_INET6)
    ):
        passed.close()  # not whenever the collector comes: the number may be another file's then
        raise ActivationError(
            f"{what} is no listening TCP socket; write ListenStream=PORT and Accept=no in the"
            " socket unit, or use gsmtpd --inetd for Accept=yes"
        )
    passed.set_inheritable(False)
    passed.setblocking(False)
    passed.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as those that we bind
    return passed
