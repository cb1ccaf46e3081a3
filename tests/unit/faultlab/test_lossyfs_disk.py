"""Does the model of a disk keep what was synced, and lose the rest as real disks do?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.faultlab import lossyfs_disk
from gsmtpd.faultlab.lossyfs_backing import load, save
from gsmtpd.faultlab.lossyfs_disk import Directory, Disk, File, Loss, sectors

SEEDS = range(40)


def make(disk: Disk, name: bytes, parent: Directory | None = None) -> File:
    """A new file with an entry in the root, or in `parent`."""
    file = disk.file(0o644, 0, 0, 0)
    disk.add(parent or disk.root, name, file)
    return file


def make_safe(disk: Disk, name: bytes, content: bytes) -> File:
    """A new file that survives with its content."""
    file = make(disk, name)
    file.write(0, content)
    disk.sync_all()
    return file


def names(disk: Disk) -> list[bytes]:
    """The paths of all that is there."""
    return [path for path, _ in disk.walk()]


# --- octets ---------------------------------------------------------------------------------------


def test_octets_are_safe_from_their_sync_on() -> None:
    disk = Disk()
    file = make_safe(disk, b"a", b"")
    file.write(0, b"synced")
    disk.sync_file(file)
    file.write(6, b", and more")
    file.write(0, b"S")
    assert disk.power_cut() == Loss(writes=2, octets=11)
    assert file.data == b"synced"


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 60), st.binary(max_size=40)),
    st.tuples(st.just("truncate"), st.integers(0, 60), st.just(b"")),
    st.tuples(st.just("sync"), st.just(0), st.just(b"")),
)


@given(st.lists(steps, max_size=30))
def test_a_file_is_what_it_was_at_its_last_sync(done: list[tuple[str, int, bytes]]) -> None:
    disk = Disk()
    file = make_safe(disk, b"a", b"")
    now = synced = b""
    for step, at, octets in done:
        if step == "write":
            file.write(at, octets)
            now = now.ljust(at, b"\0")[:at] + octets + now[at + len(octets) :]
        elif step == "truncate":
            file.truncate(at)
            now = now[:at].ljust(at, b"\0")
        else:
            disk.sync_file(file)
            synced = now
        assert file.data == now
    disk.power_cut()
    assert file.data == synced


@given(st.lists(steps, max_size=30), st.integers())
def test_what_some_leaves_is_nothing_that_was_never_written(
    done: list[tuple[str, int, bytes]], seed: int
) -> None:
    disk = Disk()
    file = make_safe(disk, b"a", b"")
    ever: list[set[int]] = [{0} for _ in range(100)]
    for step, at, octets in done:
        if step == "write":
            file.write(at, octets)
            for position, octet in enumerate(octets, at):
                ever[position].add(octet)
        elif step == "truncate":
            file.truncate(at)
        else:
            disk.sync_file(file)
    disk.power_cut("some", seed, sector=16)
    assert all(octet in ever[position] for position, octet in enumerate(file.data))


@pytest.mark.parametrize("sector", [512, 4096])
def test_writes_are_torn_between_sectors_only(sector: int) -> None:
    found = []
    for seed in SEEDS:
        disk = Disk()
        file = make_safe(disk, b"a", bytes(16 * 4096))
        file.write(0, b"\1" * 16 * 4096)
        disk.power_cut("some", seed, sector)
        pieces = [bytes(piece) for _, piece in sectors(0, bytes(file.data), sector)]
        assert all(piece in (bytes(sector), b"\1" * sector) for piece in pieces)
        found.append(len({*pieces}))
    assert {1, 2} == {*found}  # some seeds take or leave all of it, and some tear it


def test_sectors_begin_where_those_of_the_disk_do() -> None:
    assert [*sectors(510, b"abcdef", 512)] == [(510, b"ab"), (512, b"cdef")]


def test_synced_octets_stay_whatever_survives() -> None:
    for seed in SEEDS:
        disk = Disk()
        file = make_safe(disk, b"a", b"x" * 8192)
        file.write(4096, b"y" * 8192)
        disk.power_cut("some", seed)
        assert file.data[:4096] == b"x" * 4096


def test_a_seed_says_what_survives() -> None:
    left = []
    for seed in [1, 1, *SEEDS]:
        disk = Disk()
        files = [make_safe(disk, name, b"") for name in (b"a", b"b")]
        for file in files:
            for number in range(20):
                file.write(number * 300, bytes([number]) * 300)
        disk.power_cut("some", seed)
        left.append(tuple(bytes(file.data) for file in files))
    assert left[0] == left[1]
    assert len({*left}) > len(SEEDS) // 2


def test_what_waits_for_long_is_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossyfs_disk, "WRITTEN_BACK_FROM", 1000)
    disk = Disk()
    file = make_safe(disk, b"a", b"")
    for number in range(100):
        file.write(number * 100, bytes([number]) * 100)
    disk.power_cut()
    assert file.data == b"".join(bytes([number]) * 100 for number in range(90))


def test_a_disk_that_lies_loses_what_it_said_was_synced() -> None:
    disk = Disk(honest=False)
    file = make_safe(disk, b"a", b"before")
    file.write(0, b"behind")
    disk.sync_file(file)
    make(disk, b"b")
    disk.sync_directory(disk.root)
    disk.power_cut()
    assert file.data == b"before"
    assert names(disk) == [b"a"]


# --- entries --------------------------------------------------------------------------------------


def test_a_new_file_needs_the_sync_of_its_directory() -> None:
    disk = Disk("posix")
    for name in (b"a", b"b"):
        disk.sync_file(make(disk, name))
        if name == b"a":
            disk.sync_directory(disk.root)
    assert disk.power_cut() == Loss(entries=1)
    assert names(disk) == [b"a"]


def test_on_ext4_any_sync_makes_all_entries_safe() -> None:
    disk = Disk("ext4")
    make(disk, b"a").write(0, b"octets are not")
    below = disk.directory(0o755, 0, 0, 0)
    disk.add(disk.root, b"d", below)
    disk.sync_file(make(disk, b"b", below))
    make(disk, b"c")
    disk.power_cut()
    assert names(disk) == [b"a", b"d", b"d/b"]
    assert isinstance(file := disk.root.entries[b"a"], File)
    assert file.data == b""


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_replaced_by_rename_is_the_old_or_the_new(synced: bool) -> None:
    disk = Disk("posix")
    make_safe(disk, b"a", b"old")
    new = make(disk, b"new")
    new.write(0, b"new")
    disk.sync_file(new)
    disk.rename(disk.root, b"new", disk.root, b"a")
    if synced:
        disk.sync_directory(disk.root)
    disk.power_cut()
    assert names(disk) == [b"a"]
    assert isinstance(file := disk.root.entries[b"a"], File)
    assert file.data == (b"new" if synced else b"old")


def test_a_removal_may_come_undone() -> None:
    disk = Disk("posix")
    make_safe(disk, b"a", b"content")
    disk.remove(disk.root, b"a")
    assert names(disk) == []
    disk.power_cut()
    assert isinstance(file := disk.root.entries[b"a"], File)
    assert file.data == b"content"


@pytest.mark.parametrize("rule", lossyfs_disk.RULES)
def test_changes_survive_in_their_order(rule: str) -> None:
    seen = set()
    for seed in SEEDS:
        disk = Disk(rule)
        for name in (b"a", b"b", b"c"):
            make(disk, name)
        disk.rename(disk.root, b"a", disk.root, b"z")
        disk.power_cut("some", seed)
        seen.add(b"".join(names(disk)))
    assert seen == {b"", b"a", b"ab", b"abc", b"bcz"}


def test_a_directory_moved_without_syncs_is_in_one_place_at_most() -> None:
    disk = Disk("posix")
    one, two = (disk.directory(0o755, 0, 0, 0) for _ in "12")
    disk.add(disk.root, b"one", one)
    disk.add(disk.root, b"two", two)
    disk.sync_all()
    disk.rename(disk.root, b"one", two, b"one")
    disk.sync_directory(two)
    disk.rename(two, b"one", disk.root, b"one")
    disk.rename(disk.root, b"two", one, b"two")
    disk.sync_directory(one)
    disk.power_cut()
    assert names(disk) == [b"one", b"two"]


def test_a_directory_that_is_not_empty_stays() -> None:
    disk = Disk()
    full, other = (disk.directory(0o755, 0, 0, 0) for _ in "12")
    disk.add(disk.root, b"full", full)
    disk.add(disk.root, b"other", other)
    make(disk, b"file", full)
    with pytest.raises(OSError, match="not empty"):
        disk.remove(disk.root, b"full")
    with pytest.raises(OSError, match="not empty"):
        disk.rename(disk.root, b"other", disk.root, b"full")
    with pytest.raises(OSError, match="exists"):
        make(disk, b"full")
    with pytest.raises(OSError, match="not there"):
        disk.remove(disk.root, b"nobody")


# --- the backing directory ------------------------------------------------------------------------


def test_what_survives_is_in_the_backing_directory(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "file").write_bytes(b"x")
    (tmp_path / "moved").write_bytes(b"moved")
    (tmp_path / "kept").write_bytes(b"kept")
    disk = Disk()
    load(disk, tmp_path)
    gone = disk.root.entries[b"gone"]
    assert isinstance(gone, Directory)
    disk.remove(gone, b"file")
    disk.remove(disk.root, b"gone")
    disk.rename(disk.root, b"moved", disk.root, b"gone")  # a file where a directory was
    make(disk, b"new").write(0, b"new")
    disk.sync_all()
    make(disk, b"lost")
    disk.power_cut()
    save(disk, tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"gone": b"moved", "kept": b"kept", "new": b"new"}


def test_a_mistake_is_told() -> None:
    with pytest.raises(ValueError, match="posix, ext4"):
        Disk("fat")
    with pytest.raises(ValueError, match="nothing, some"):
        Disk().power_cut("much")
