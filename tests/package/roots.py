"""Where is the package tried? On bare Debian systems, each in namespaces of its own.

A bare system is made by debootstrap once and kept as a tarball, which may be deleted at any time,
in $GSMTPD_TEST_CACHE or ~/.cache/gsmtpd-test. Every `Root` is an overlay over it: what a test does
to it is gone afterwards. Processes in it have their own ids, mounts and loopback network, so that
port 25 is always free; only `fetch` reaches the network.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.servers import ServerError, find_program

CACHE = Path(os.environ.get("GSMTPD_TEST_CACHE", "~/.cache/gsmtpd-test")).expanduser()
LOCAL_CERTIFICATES = "/usr/local/share/ca-certificates"
KEEP_FOR = 30 * 86400  # seconds until a cached system is made anew
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
# bash waits for whatever is orphaned, as the first process of a system must.
_INIT = "trap 'exit 0' TERM; while :; do sleep 60 & wait $!; done"
# What System V init writes into utmp(5) when it has come up: type RUN_LVL; "2", from "N".
_RUNLEVEL_2 = struct.pack(
    "=h2xi32s4s32s256s52x", 1, ord("2") + 256 * ord("N"), b"~", b"~~", b"runlevel", b""
)


def mirror() -> str:
    """Where this machine gets Debian from."""
    for path in (*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")):
        with suppress(FileNotFoundError):
            for word in path.read_text().split():
                if word.startswith(("http://", "https://")) and "snapshot" not in word:
                    return word
    return "http://deb.debian.org/debian"


def bare_system(release: str, directory: Path) -> Path:
    """A bare Debian `release` in a new directory below `directory`."""
    system = directory / release
    tarball = CACHE / f"{release}.tar"
    system.mkdir()
    if tarball.exists() and time.time() - tarball.stat().st_mtime < KEEP_FOR:
        subprocess.run(["tar", "-xf", tarball, "-C", system], check=True)
        return system
    made = subprocess.run(
        [find_program("debootstrap"), "--variant=minbase", release, system, mirror()],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise ServerError(f"debootstrap failed:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
    # Nothing here must outlive a power cut.
    (system / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    # As the installer of Debian does.
    (system / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 mx.example.com mx\n")
    (system / "etc/hostname").write_text("mx\n")
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = tarball.with_suffix(f".{os.getpid()}")
    subprocess.run(["tar", "-cf", partial, "-C", system, "."], check=True)
    partial.rename(tarball)
    return system


class Root:
    """A running Debian system without an init system, made of directories, the uppermost first.

    keep: what is changed goes into this new directory, a layer for others; else it is lost.
    """

    def __init__(self, *layers: Path, keep: Path | None = None) -> None:
        self._layers = layers
        self._directory = Path(tempfile.mkdtemp(prefix="gsmtpd-root.", dir=keep and keep.parent))
        self._upper = keep or self._directory / "upper"
        self._archives = CACHE / f"{layers[-1].name}-archives"  # what apt has fetched before
        self._init: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        mount = self.mount
        fetched, fetching = self._fetched, self._directory / "fetching"
        for directory in (self._upper, self._directory / "work", mount, fetched, fetching):
            directory.mkdir()
        self._archives.mkdir(parents=True, exist_ok=True)
        layers = ":".join(str(layer) for layer in self._layers)
        script = f"""
            set -e
            mount -t overlay overlay -o lowerdir={layers},upperdir={self._upper},workdir={self._directory}/work {mount}
            mount -t proc proc {mount}/proc
            mount -t tmpfs -o mode=755 tmpfs {mount}/dev
            for device in null zero full random urandom tty; do
                touch {mount}/dev/$device
                mount --bind /dev/$device {mount}/dev/$device
            done
            mkdir -p {mount}/dev/pts {mount}/dev/shm
            mount -t devpts -o newinstance,ptmxmode=666 devpts {mount}/dev/pts
            ln -s pts/ptmx {mount}/dev/ptmx
            mount -t tmpfs tmpfs {mount}/dev/shm
            mount -t tmpfs -o mode=755 tmpfs {mount}/run
            mkdir -p {mount}/run/lock
            ln -s /proc/self/fd {mount}/dev/fd
            mount -t overlay overlay -o lowerdir={self._archives},upperdir={fetched},workdir={fetching} {mount}/var/cache/apt/archives
            ip link set lo up
            hostname mx
            touch {mount}/run/ready
            exec chroot {mount} /bin/bash -c "{_INIT}"
        """  # noqa: E501
        unshare = [find_program("unshare"), "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"]
        # It ends with this process, in whatever way that ends.
        dies = [find_program("setpriv"), "--pdeathsig=KILL"]
        self._init = subprocess.Popen(
            [*dies, *unshare, "--kill-child=KILL", "/bin/sh", "-c", script],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while not self._ready():
            if self._init.poll() is not None:
                assert self._init.stderr is not None
                raise ServerError(f"no namespaces here: {self._init.stderr.read().decode()}")
            time.sleep(0.02)
        shutil.copy("/etc/resolv.conf", self.path("/etc/resolv.conf"))
        self.path("/run/utmp").write_bytes(_RUNLEVEL_2)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._init is not None
        self._init.send_signal(signal.SIGKILL)  # and with the first process all others go
        self._init.wait()
        self._keep_fetched()
        shutil.rmtree(self._directory)

    @property
    def _fetched(self) -> Path:
        """Where apt puts what it fetches; it locks this directory, so each system has its own."""
        return self._directory / "fetched"

    def _keep_fetched(self) -> None:
        """Have the next systems find what apt has fetched; others may do so at the same time."""
        for package in self._fetched.glob("*.deb"):
            if package.is_file():
                partial = self._archives / f".{package.name}.{os.getpid()}"
                shutil.copy(package, partial)
                partial.rename(self._archives / package.name)

    def _ready(self) -> bool:
        try:
            return self.path("/run/ready").exists()
        except (OSError, IndexError):  # it has no process yet
            return False

    def path(self, inside: str) -> Path:
        """Where a file or directory of the system can be reached from outside."""
        return Path(f"/proc/{self._first()}/root{inside}")

    def _first(self) -> int:
        """The process id, out here, of the system's first process."""
        assert self._init is not None
        pid = self._init.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    @property
    def mount(self) -> Path:
        """Where the system is mounted, for what runs `inside`."""
        return self._directory / "root"

    def inside(self, network: bool = False) -> list[str]:
        """What runs a program of this machine in the system's namespaces.

        network: with the machine's network instead of the system's own.
        """
        spaces = ["--mount", "--pid", "--ipc", "--uts", *([] if network else ["--net"])]
        return [find_program("nsenter"), f"--target={self._first()}", *spaces]

    def run(self, command: str, *, network: bool = False) -> subprocess.CompletedProcess[str]:
        """Have the system's shell run `command`, as root; with its output, stderr in stdout.

        network: as for `inside`.
        """
        shell = ["--root", "/usr/bin/env", "--chdir=/root", "/bin/sh", "-c", command]
        return subprocess.run(
            [*self.inside(network), *shell],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )

    def do(self, command: str, *, network: bool = False) -> str:
        """The same for a command that must succeed; its output. Raises AssertionError."""
        done = self.run(command, network=network)
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}\n{done.stdout[-5000:]}"
        )
        return done.stdout

    def refuse(self, command: str, code: int) -> str:
        """The same for a command that must fail with `code`; its output. Raises AssertionError."""
        done = self.run(command)
        assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def fetch(self, *packages: str) -> None:
        """Install Debian packages from the mirror; what they would start stays stopped."""
        policy = self.path("/usr/sbin/policy-rc.d")
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        names = " ".join(packages)
        # Certificates of a proxy, if this machine is behind one.
        if os.path.isdir(LOCAL_CERTIFICATES):
            shutil.copytree(LOCAL_CERTIFICATES, self.path(LOCAL_CERTIFICATES), dirs_exist_ok=True)
        self.do("apt-get update -qq", network=True)
        self.do(f"apt-get install -y -qq --no-install-recommends {names}", network=True)
        policy.unlink()

    def fetch_system_v_init(self) -> None:
        """Put the programs of System V init there, by which invoke-rc.d knows what it is on.

        Its package cannot be installed where it is not running: it waits long for its answer.
        """
        self.do(
            "apt-get download -qq sysvinit-core && dpkg-deb -x sysvinit-core_*.deb x", network=True
        )
        self.do("find x -type f -name init -o -name runlevel | xargs cp -t /sbin; rm -r x *.deb")

    def put(self, source: Path, inside: str) -> None:
        """Copy a file into the system."""
        shutil.copy(source, self.path(inside))


def all_files(root: Root, but: Sequence[str] = ()) -> set[str]:
    """Every file and directory of the system, but those that a command of Debian's own rewrites."""
    found = root.do("find / -xdev -not -path '/root/*' -not -path '/tmp/*'").split("\n")
    return {path for path in found if path and not path.startswith(tuple(but))}
