"""What happens to the files of a server when the power is cut?

A directory that forgets, at a power cut, what was not synced: `lossyfs_disk` says what that is. It
is a FUSE file system in a process of its own, so it needs root and /dev/fuse::

    with LossyFS() as disk:
        with MariaDB(...) as database:      # with its data directory below disk.path
            ...
            loss = disk.power_cut([database], "some", seed=7)
            disk.remount()
            database.start()

What survived is in a plain directory beside it, `backing`, which may be looked at after a cut.
By hand: `python3 -m gsmtpd.faultlab.lossyfs MOUNTPOINT BACKING --control SOCKET`; it ends when its
mount point is unmounted, and has saved all then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from gsmtpd.faultlab.lossyfs_backing import load, save
from gsmtpd.faultlab.lossyfs_disk import RULES, Disk, Loss
from gsmtpd.faultlab.lossyfs_kernel import DEVICE, Service, mount, unmount
from gsmtpd.faultlab.processes import START_SECONDS, MissingRightError, Server

SECTOR = 512  # octets; what a disk writes whole
MOST_WRITES = 40  # that the power stays for, once it is to go
PATIENCE = 5.0  # seconds that it waits for them
_POLL = 0.5  # seconds between two looks at the parent and at SIGTERM


class _Process(Server):
    """The process that serves the file system."""

    def __init__(self, arguments: Sequence[str], mountpoint: Path) -> None:
        super().__init__("lossyfs")
        self.arguments = [*arguments]
        self.mountpoint = mountpoint
        self.socket = self.path / "control"

    def command(self) -> list[str]:
        module = ["-m", "gsmtpd.faultlab.lossyfs"]
        control = ["--control", str(self.socket), "--parent", str(os.getpid())]
        return [sys.executable, *module, *self.arguments, *control]

    def answers(self) -> bool:
        return self.socket.exists() and os.path.ismount(self.mountpoint)

    def ask(self, **command: object) -> dict[str, int]:
        """Have a command carried out; what it answers. Raises ServerError."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(START_SECONDS)
                client.connect(str(self.socket))
                client.sendall(json.dumps(command).encode() + b"\n")
                found: dict[str, int] = json.loads(client.makefile("rb").readline())
                return found
        except (OSError, ValueError) as error:
            raise self.error(f"did not answer: {error}") from error


class LossyFS:
    """A directory, `path`, that loses at a power cut what was not synced. Mounted on entry.

    backing: the directory that has what is safe; a new one where it is None. rule: when an entry
    of a directory is safe, one of RULES. honest: False for a disk that says it has synced and has
    not, which is what a control needs: whoever relies on that disk must be seen to lose.
    Raises MissingRightError where no such file system can be mounted.
    """

    def __init__(
        self, backing: Path | None = None, *, rule: str = "posix", honest: bool = True
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="gsmtpd-disk-")
        home = Path(self._directory.name)
        self.path = home / "disk"
        self.path.mkdir()
        self.backing = backing or home / "backing"
        self.backing.mkdir(exist_ok=True)
        arguments = [str(self.path), str(self.backing), "--rule", rule]
        self._process = _Process(arguments if honest else [*arguments, "--lie"], self.path)
        self._hangs = False
        self._sweeper = weakref.finalize(self, unmount, self.path, cut=True)  # before its directory

    def mount(self) -> None:
        """Mount what is in `backing`. Raises MissingRightError, ServerError."""
        _probe(self.path)
        self._process.socket.unlink(missing_ok=True)
        self._process.start()

    remount = mount

    def unmount(self) -> None:
        """A shutdown in peace: all is saved. Raises ServerError where it is still in use."""
        unmount(self.path)
        self._process.stop()

    def power_cut(
        self,
        machine: Iterable[Server] = (),
        keep: str = "nothing",
        *,
        seed: int = 0,
        sector: int = SECTOR,
    ) -> Loss:
        """Take away what was not synced and unmount; `remount` is the restart. What was lost.

        machine: the servers that end with the power. The disk stops right behind one of their next
        writes, drawn from `seed`, where there is the most to lose: what they ask from then on is
        neither done nor answered, and they are killed. If they do not write it stops after
        PATIENCE, and where it hangs at once. Anybody else gets errors from then on. keep: one of
        `lossyfs_disk.KEEPS`, what of the unsynced survives: nothing, or a part drawn from `seed`,
        torn between two sectors of `sector` octets. Raises ServerError.
        """
        killed = [server for server in machine if server.running]
        waits = killed and not self._hangs
        writes = random.Random(seed).randrange(1, MOST_WRITES) if waits else 0
        self._process.ask(do="power off", writes=writes)
        for server in killed:  # it waits for the disk, and does not end before that is gone
            os.killpg(server.pid, signal.SIGKILL)
        loss = self._process.ask(do="cut", keep=keep, seed=seed, sector=sector)
        for server in killed:
            server.kill()
        self._process.stop()
        return Loss(**loss)

    def sync(self) -> None:
        """All that was written is safe from here on, as after a long quiet time."""
        self._process.ask(do="sync")

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Meanwhile the disk syncs nothing, and who asks it to waits. A power cut may follow."""
        self._process.ask(do="hang")
        self._hangs = True
        try:
            yield
        finally:
            self._hangs = False
            if self._process.running:
                self._process.ask(do="go on")

    def adopt(self, directory: Path) -> Path:
        """Move a directory that nobody uses now onto this disk; a symbolic link is left for it.

        The same server, started again, has its files here then. Returns the directory's new path.
        """
        moved = self.path / directory.name
        shutil.copytree(directory, moved)
        self.sync()
        shutil.rmtree(directory)
        directory.symlink_to(moved)
        return moved

    def close(self) -> None:
        """Unmount, whoever uses it, and remove all but a `backing` that was given."""
        self._sweeper()
        self._process.close()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        try:
            self.mount()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _probe(path: Path) -> None:
    """Raises MissingRightError where nothing of ours can be mounted at `path`."""
    try:
        os.close(mount(path))
        unmount(path, cut=True)
    except OSError as error:
        text = f"a FUSE file system cannot be mounted, which takes root and {DEVICE}: {error}"
        raise MissingRightError(text) from error


# --- the process ----------------------------------------------------------------------------------


class _Control(threading.Thread):
    """Carries out what comes by the control socket, until the file system is gone.

    parent: its process, without which the file system is unmounted, or 0. terminated: set by
    SIGTERM.
    """

    def __init__(self, listener: socket.socket, service: Service, options: argparse.Namespace):
        super().__init__()
        self._listener = listener
        self._service = service
        self._options = options
        self.terminated = threading.Event()
        self.gone = threading.Event()

    def run(self) -> None:
        self._listener.settimeout(_POLL)
        while not self.gone.is_set():
            orphan = self._options.parent and os.getppid() != self._options.parent
            if orphan or self.terminated.is_set():
                unmount(self._options.mountpoint)
                self.gone.wait()  # the requests that this brings about are answered meanwhile
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                with client, contextlib.suppress(ConnectionError):
                    client.settimeout(_POLL)
                    command = json.loads(client.makefile("rb").readline())
                    client.sendall(json.dumps(self._carry_out(**command)).encode() + b"\n")

    def _carry_out(self, do: str, **how: Any) -> dict[str, int]:
        disk = self._service.disk
        if do == "power off":
            self._power_off(**how)
            return {}
        with self._service.lock:
            if do == "sync":
                disk.sync_all()
                return {}
            if do in ("hang", "go on"):
                self._service.hangs = do == "hang"
                if not self._service.hangs:
                    self._service.go_on()
                return {}
            self._service.off.set()
            unmount(self._options.mountpoint, cut=True)
            loss = disk.power_cut(**how)
            save(disk, self._options.backing)
            return loss.as_dict()

    def _power_off(self, writes: int) -> None:
        """Stop the disk behind so many writes."""
        if writes:
            with self._service.lock:
                self._service.off_after = writes
            self._service.off.wait(PATIENCE)
        with self._service.lock:
            self._service.off.set()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lossyfs", description="A disk that forgets.")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("backing", type=Path, help="what is safe, a directory")
    parser.add_argument("--control", type=Path, required=True, help="a socket for JSON commands")
    parser.add_argument("--rule", choices=RULES, default="posix")
    parser.add_argument("--lie", action="store_true", help="fsync does nothing")
    parser.add_argument("--parent", type=int, default=0, help="end without this process")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the file system until it is unmounted, or its power was cut."""
    options = _parse(arguments)
    disk = Disk(options.rule, honest=not options.lie)
    load(disk, options.backing)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(options.control))
        listener.listen()
        service = Service(disk, mount(options.mountpoint))
        control = _Control(listener, service, options)
        signal.signal(signal.SIGTERM, lambda *_: control.terminated.set())
        control.start()
        try:
            service.serve()
        finally:
            control.gone.set()
            control.join()
        if not service.off.is_set():
            save(disk, options.backing)


if __name__ == "__main__":
    main()
