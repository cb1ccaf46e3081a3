"""How is a real systemd booted for a test, in a second and without a container manager?

As process 1 of namespaces of its own, on an overlay of a Debian system: by default of this machine
itself. Nothing of the machine is changed, and it ends with the test. It needs root and a cgroup2.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.package.roots import ENVIRONMENT, Root
from tests.servers import MissingRightError, find_program, wait_for

# They would change the machine (its kernel settings are no namespace's), wait for what it has, or
# start what is installed on it.
MASKED = (
    *("paths.target", "sockets.target", "timers.target"),
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-timesyncd.service"),
    *("proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount"),
)

# $1: a cgroup, as systemd takes all of the hierarchy that it sees. The rest is for BOOT.
ENTER = """
echo $$ > "$1/cgroup.procs"
shift
exec setpriv --pdeathsig=KILL unshare --mount --pid --net --ipc --uts --cgroup --fork \\
    --kill-child=KILL sh -c "$@"
"""

# $1: a directory to mount in. $2: what is laid over the system. $3: its layers. $4: MASKED.
# The bounding set lacks what no namespace keeps from the machine itself.
BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/root" "$1/work"
cp -a "$2" "$1/upper"
mount -t overlay overlay -o "lowerdir=$3,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Without it this were the first boot, which enables all units there are.
test -s etc/machine-id || tr -d - < proc/sys/kernel/random/uuid > etc/machine-id
for unit in $4; do ln -sf /dev/null etc/systemd/system/$unit; done
ip link set lo up
mkdir .old
pivot_root . .old
umount -l /.old
rmdir /.old
exec setpriv --bounding-set -sys_module,-sys_time,-sys_boot,-sys_rawio,-syslog \\
    env -i container=test PATH="$PATH" /lib/systemd/systemd --unit=basic.target
"""


class SystemdRoot(Root):
    """A running Debian system with systemd, and none of its services but systemd's own.

    It is made of `layers`, the uppermost first, as a `Root` is. Raises MissingRightError where
    this machine does not let it be, as in most containers.
    """

    def __init__(self, *layers: Path) -> None:
        for program in ("setpriv", "unshare", "nsenter", "ip", "systemctl"):
            find_program(program)
        super().__init__(*layers or [Path("/")])
        self._output = self._directory / "output"
        self._laid = self._directory / "laid"
        self._laid.mkdir(mode=0o755)
        self._cgroup = _cgroup2() / self._directory.name

    def lay(self, inside: str, content: str | Path, mode: int = 0o644) -> None:
        """Lay a text as a file, or a copy of a directory, over the system, before it runs."""
        target = self._laid / inside.lstrip("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copytree(content, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.write_text(content)
            target.chmod(mode)

    def __enter__(self) -> Self:
        try:
            self._boot()
            wait_for(self._is_up, 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _boot(self) -> None:
        mount = self._directory / "mount"
        mount.mkdir()
        try:
            self._cgroup.mkdir()
        except OSError as error:
            raise MissingRightError(f"a cgroup for a systemd: {error}") from error
        boot = [BOOT, "boot", mount, self._laid, ":".join(map(str, self._layers)), " ".join(MASKED)]
        with self._output.open("wb") as output:
            self._init = subprocess.Popen(
                ["sh", "-c", ENTER, "enter", self._cgroup, *boot],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _is_up(self) -> bool:
        assert self._init is not None
        if self._init.poll() is not None:
            raise MissingRightError(f"systemd cannot be booted: {self._output.read_text()}")
        with suppress(IndexError):  # it has no process yet
            return self.run("systemctl is-system-running").stdout.strip() in ("running", "degraded")
        return False

    def __exit__(self, *_: object) -> None:
        if self._init is not None:
            self._init.kill()  # and with process 1 all others go
            self._init.wait()
        for path in sorted(self._cgroup.glob("**/"), reverse=True):
            _remove_cgroup(path)
        shutil.rmtree(self._directory)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.do(f"systemctl show --value --property={name} {unit}").strip()

    def journal(self, unit: str) -> str:
        """What the journal has of a unit, without times."""
        return self.do(f"journalctl --sync && journalctl --no-pager --output=cat --unit={unit}")


def _cgroup2() -> Path:
    """Where the machine has its cgroup2."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(path)
    raise MissingRightError("no cgroup2 that can be written")


def _remove_cgroup(path: Path) -> None:
    """Processes that were killed take a moment to leave it."""
    for _ in range(100):
        with suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.05)
