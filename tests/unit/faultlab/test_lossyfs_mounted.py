"""Does a mounted disk that forgets behave as a file system, and lose what was not synced?"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from gsmtpd.faultlab.lossyfs import LossyFS
from gsmtpd.faultlab.processes import MissingRightError, Server, environment, wait_for

CREATE = os.O_RDWR | os.O_CREAT
PAGE = mmap.PAGESIZE


class Writer(Server):
    """A program that appends to a file and syncs it, again and again."""

    def __init__(self, path: Path) -> None:
        super().__init__("writer")
        self.written = path

    def command(self) -> list[str]:
        code = (
            f"import os; file = os.open({str(self.written)!r}, os.O_WRONLY | os.O_CREAT)\n"
            f"os.fsync(os.open({str(self.written.parent)!r}, os.O_RDONLY))\n"
            "while os.fstat(file).st_size < 100_000_000:\n"
            "    os.write(file, b'x' * 10); os.fsync(file)"
        )
        return [sys.executable, "-c", code]

    def answers(self) -> bool:
        return self.written.exists() and self.written.stat().st_size >= 1000


@pytest.fixture
def disk() -> Iterator[LossyFS]:
    with LossyFS() as disk:
        yield disk


@contextmanager
def opened(path: Path, flags: int = CREATE) -> Iterator[int]:
    """A descriptor."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """fsync(2) of a directory."""
    with opened(path, os.O_RDONLY) as directory:
        os.fsync(directory)


def cut(disk: LossyFS) -> None:
    """The power goes and comes again."""
    disk.power_cut()
    disk.remount()


def content(disk: LossyFS) -> dict[str, bytes]:
    """What all files have."""
    files = [path for path in disk.path.rglob("*") if path.is_file()]
    return {str(path.relative_to(disk.path)): path.read_bytes() for path in files}


# --- what a power cut takes -----------------------------------------------------------------------


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_what_is_synced_is_there_and_what_is_not_is_gone(disk: LossyFS, sync: object) -> None:
    with opened(disk.path / "a") as a, opened(disk.path / "b") as b:
        sync_directory(disk.path)
        os.write(a, b"synced")
        os.write(b, b"not synced")
        assert callable(sync)
        sync(a)
        os.write(a, b", not synced")
        assert content(disk) == {"a": b"synced, not synced", "b": b"not synced"}
    cut(disk)
    assert content(disk) == {"a": b"synced", "b": b""}
    assert {path.name: path.read_bytes() for path in disk.backing.iterdir()} == content(disk)


def test_closing_a_file_syncs_nothing(disk: LossyFS) -> None:
    (disk.path / "a").write_bytes(b"closed")
    sync_directory(disk.path)
    cut(disk)
    assert content(disk) == {"a": b""}


def test_a_new_file_needs_the_sync_of_its_directory(disk: LossyFS) -> None:
    with opened(disk.path / "a") as a:
        os.write(a, b"x")
        os.fsync(a)
    cut(disk)
    assert content(disk) == {}


def test_on_ext4_the_sync_of_a_file_is_one_of_its_entry() -> None:
    with LossyFS(rule="ext4") as disk:
        with opened(disk.path / "a") as a:
            os.write(a, b"x")
            os.fsync(a)
        cut(disk)
        assert content(disk) == {"a": b"x"}


@pytest.mark.parametrize("synced", [False, True])
def test_a_rename_needs_the_sync_of_its_directory(disk: LossyFS, synced: bool) -> None:
    (disk.path / "a").write_bytes(b"old")
    disk.sync()
    with opened(disk.path / "b") as b:
        os.write(b, b"new")
        os.fsync(b)
    (disk.path / "b").rename(disk.path / "a")
    assert content(disk) == {"a": b"new"}
    if synced:
        sync_directory(disk.path)
    cut(disk)
    assert content(disk) == {"a": b"new" if synced else b"old"}


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_DSYNC | os.O_DIRECT, os.O_DIRECT])
def test_a_file_may_be_opened_so_that_each_write_is_synced(disk: LossyFS, flag: int) -> None:
    whole = mmap.mmap(-1, PAGE)  # O_DIRECT wants the memory aligned
    whole.write(b"x" * PAGE)
    with opened(disk.path / "a", CREATE | flag) as a:
        sync_directory(disk.path)
        os.write(a, whole)
    cut(disk)
    # O_DIRECT alone goes round the memory of the kernel, not round that of the disk.
    assert content(disk) == {"a": b"" if flag == os.O_DIRECT else b"x" * PAGE}


@pytest.mark.parametrize("synced", [False, True])
def test_mapped_memory_needs_msync(disk: LossyFS, synced: bool) -> None:
    (disk.path / "a").write_bytes(bytes(PAGE))
    disk.sync()
    with opened(disk.path / "a") as a, mmap.mmap(a, PAGE) as memory:
        memory[:6] = b"mapped"
        assert (disk.path / "a").read_bytes()[:6] == b"mapped"
        if synced:
            memory.flush()
    cut(disk)
    assert content(disk)["a"][:6] == (b"mapped" if synced else bytes(6))


def test_a_truncation_may_come_undone(disk: LossyFS) -> None:
    for name in ("a", "b"):
        (disk.path / name).write_bytes(b"content")
    disk.sync()
    with opened(disk.path / "a") as a, opened(disk.path / "b") as b:
        os.ftruncate(a, 3)
        os.fsync(a)
        os.ftruncate(b, 3)
    assert content(disk) == {"a": b"con", "b": b"con"}
    cut(disk)
    assert content(disk) == {"a": b"con", "b": b"content"}


def test_sync_file_range_makes_nothing_safe(disk: LossyFS) -> None:
    with opened(disk.path / "a") as a:
        sync_directory(disk.path)
        os.write(a, b"x")
        zero = ctypes.c_int64(0)
        assert ctypes.CDLL(None).sync_file_range(a, zero, zero, ctypes.c_uint(7)) == 0
    cut(disk)
    assert content(disk) == {"a": b""}


def test_some_of_the_unsynced_survives_in_torn_pieces(disk: LossyFS) -> None:
    (disk.path / "a").write_bytes(b"0" * 65536)
    disk.sync()
    torn = 0
    for seed in range(8):
        with opened(disk.path / "a") as a:
            os.write(a, b"1" * 65536)
        torn += disk.power_cut(keep="some", seed=seed).torn
        disk.remount()
        found = content(disk)["a"]
        assert {found[at : at + 512] for at in range(0, 65536, 512)} <= {b"0" * 512, b"1" * 512}
    assert torn


def test_sqlite_keeps_what_was_committed_and_synced(disk: LossyFS) -> None:
    """Its index of the journal is memory that processes share by mmap."""
    with closing(sqlite3.connect(disk.path / "t.db", isolation_level=None)) as file:
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA synchronous=FULL")
        file.execute("CREATE TABLE t (n)")
        for number in range(10):
            file.execute("INSERT INTO t VALUES (?)", (number,))
            with closing(sqlite3.connect(disk.path / "t.db")) as other:
                assert other.execute("SELECT MAX(n) FROM t").fetchone() == (number,)
        disk.power_cut()
    disk.remount()
    with closing(sqlite3.connect(disk.path / "t.db")) as file:
        assert file.execute("SELECT COUNT(*) FROM t").fetchone() == (10,)
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_disk_that_lies_loses_what_was_synced() -> None:
    with LossyFS(honest=False) as disk:
        with opened(disk.path / "a") as a:
            os.write(a, b"x")
            os.fsync(a)
        sync_directory(disk.path)
        cut(disk)
        assert content(disk) == {}


# --- a file system --------------------------------------------------------------------------------


def test_programs_copy_move_and_remove(disk: LossyFS, tmp_path: Path) -> None:
    for number in range(1500):  # more than the kernel lists at a time
        below = tmp_path / "tree" / str(number % 7)
        below.mkdir(parents=True, exist_ok=True)
        (below / f"a file with a rather long name, number {number}").write_bytes(b"x" * number * 9)
    there = disk.path / "tree"
    subprocess.run(["cp", "-a", tmp_path / "tree", there], check=True)
    subprocess.run(["diff", "-r", tmp_path / "tree", there], check=True)
    (there / "0").rename(disk.path / "moved")
    assert len([*(disk.path / "moved").iterdir()]) == 215
    disk.unmount()
    disk.mount()
    subprocess.run(["diff", "-r", tmp_path / "tree" / "0", disk.path / "moved"], check=True)
    shutil.rmtree(there)
    assert [path.name for path in disk.path.iterdir()] == ["moved"]


def test_a_removed_file_lives_as_long_as_it_is_open(disk: LossyFS) -> None:
    with opened(disk.path / "a") as a:
        os.write(a, b"content")
        (disk.path / "a").unlink()
        (disk.path / "a").write_bytes(b"another")
        assert os.pread(a, 100, 0) == b"content"
    assert content(disk) == {"a": b"another"}


def test_modes_owners_and_times_are_kept(disk: LossyFS) -> None:
    path = disk.path / "a"
    path.write_bytes(b"x")
    path.chmod(0o640)
    os.chown(path, 1234, 4321)
    os.utime(path, ns=(1_500_000_000_000_000_001, 1_600_000_000_000_000_002))
    disk.sync()
    cut(disk)
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 1234, 4321)
    assert found.st_mtime_ns == 1_600_000_000_000_000_002


def test_space_may_be_reserved_and_given_back(disk: LossyFS) -> None:
    with opened(disk.path / "a") as a:
        os.posix_fallocate(a, 0, 100_000)
        assert os.fstat(a).st_size == 100_000
        os.pwrite(a, b"x" * 100_000, 0)
        os.posix_fallocate(a, 0, 1000)
    assert content(disk) == {"a": b"x" * 100_000}
    assert os.statvfs(disk.path).f_bavail > 0


def test_what_it_has_not_is_refused(disk: LossyFS) -> None:
    for make in (lambda: os.symlink("x", disk.path / "s"), lambda: os.mkfifo(disk.path / "f")):
        with pytest.raises(OSError) as trouble:
            make()
        assert trouble.value.errno in (errno.ENOSYS, errno.EPERM)


# --- its life -------------------------------------------------------------------------------------


def test_who_has_a_file_open_at_the_cut_gets_an_error(disk: LossyFS) -> None:
    with suppress(OSError), opened(disk.path / "a") as a:  # close(2) tells of it, too
        disk.power_cut()
        with pytest.raises(OSError) as trouble:
            os.write(a, b"x")
        assert trouble.value.errno in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO)


def test_a_disk_that_hangs_syncs_when_it_goes_on(disk: LossyFS) -> None:
    with opened(disk.path / "a") as a, ThreadPoolExecutor() as executor:
        sync_directory(disk.path)
        with disk.hanging():
            os.write(a, b"x")
            syncing = executor.submit(os.fsync, a)
            assert (disk.path / "a").read_bytes() == b"x"  # all else is answered
            assert not syncing.done()
        syncing.result(30)
    cut(disk)
    assert content(disk) == {"a": b"x"}


def test_what_waits_for_a_disk_that_hangs_is_lost_with_the_power(disk: LossyFS) -> None:
    with ThreadPoolExecutor() as executor:
        with suppress(OSError), opened(disk.path / "a") as a:
            sync_directory(disk.path)
            os.write(a, b"x")
            with disk.hanging():
                syncing = executor.submit(os.fsync, a)
                disk.power_cut()
        assert syncing.exception(30)
    disk.remount()
    assert content(disk) == {"a": b""}


def test_the_power_goes_behind_a_write_of_the_machine(disk: LossyFS) -> None:
    with Writer(disk.path / "a") as writer:
        loss = disk.power_cut([writer])
        assert not writer.running
    assert loss.writes == 1  # each is synced before the next
    disk.remount()
    assert len(content(disk)["a"]) >= 1000


def test_unmounting_in_peace_loses_nothing(disk: LossyFS) -> None:
    (disk.path / "a").write_bytes(b"never synced")
    disk.unmount()
    assert [*disk.path.iterdir()] == []
    disk.mount()
    assert content(disk) == {"a": b"never synced"}


def test_it_ends_with_the_process_that_mounted_it(tmp_path: Path) -> None:
    code = (
        "from gsmtpd.faultlab.lossyfs import LossyFS; from pathlib import Path; import time\n"
        f"with LossyFS(Path({str(tmp_path)!r})) as disk:\n"
        "    (disk.path / 'a').write_bytes(b'x'); print(disk.path, flush=True); time.sleep(600)"
    )
    with (
        tempfile.TemporaryDirectory() as home,  # it cannot sweep behind itself
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=environment({"TMPDIR": home}),
        ) as owner,
    ):
        assert owner.stdout is not None
        path = owner.stdout.readline().strip()
        assert os.path.ismount(path)
        owner.send_signal(signal.SIGKILL)
        wait_for(lambda: not os.path.ismount(path))
        wait_for((tmp_path / "a").exists)


def test_who_may_not_mount_is_told() -> None:
    code = (
        "import os; from gsmtpd.faultlab.lossyfs import LossyFS\n"
        "disk = LossyFS()\n"
        "if os.geteuid() == 0: os.chown(disk.path, 65534, 65534); os.seteuid(65534)\n"
        "try: disk.mount()\n"
        "finally: os.seteuid(os.getuid())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert MissingRightError.__name__ in done.stderr
    assert "takes root and /dev/fuse: " in done.stderr
