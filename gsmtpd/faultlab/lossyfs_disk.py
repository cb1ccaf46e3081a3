"""What does a disk still have after the power was cut, and what only the memory had?

A tree of files and directories, each with what was done to it since it was last synced. Nothing
here knows of FUSE. What counts as synced:

* The octets of a file, and its size, from `sync_file` on (fsync, fdatasync, and what O_SYNC and
  O_DSYNC make the kernel ask for after each write). sync_file_range(2) counts for nothing: it
  promises neither the size nor that the disk's own cache is flushed, and a file system is not told.
* The entries of a directory by `RULES`. A file whose octets were synced and whose entry was not is
  gone. Entries never point nowhere: a change of one directory is kept or lost as a whole, and never
  without those before it, because all file systems with a journal keep that order.
* Mode, owner and times at once: nothing depends on them.

Between two syncs the disk may have taken any of the writes, or none: a kernel writes back when and
in which order it likes, and a disk does not cut at the end of a write but between two sectors.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

RULES = ("posix", "ext4")
"""When an entry (of a file made, renamed or unlinked) is safe.

posix: by fsync of its directory and by nothing else, which is all that POSIX lets a program hope
for. A rename over two directories is an entry in each. ext4: by any fsync of any file or directory,
because ext4 commits its one journal up to then: what was done to entries is kept in order.
"""
KEEPS = ("nothing", "some")
"""What of the unsynced survives: nothing, or a part drawn from the seed, in torn pieces too."""
WRITTEN_BACK_FROM = 64 << 20  # octets of one file; a kernel would have written the oldest long ago


class Write(NamedTuple):
    """A write or, where `new` is None, a truncation to `start`. old, old_size: to undo it."""

    start: int
    old: bytes
    old_size: int
    new: bytes | None


class Change(NamedTuple):
    """What became of an entry. node: None where it was removed."""

    directory: Directory
    name: bytes
    node: Node | None


@dataclass(frozen=True)
class Loss:
    """What a power cut took: writes and entries that were not synced, and the octets of the writes.

    torn: writes of which some sectors came through. kept: writes that came through whole, by luck.
    """

    writes: int = 0
    octets: int = 0
    torn: int = 0
    kept: int = 0
    entries: int = 0

    def as_dict(self) -> dict[str, int]:
        """The figures by name."""
        return asdict(self)

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            self.writes + other.writes,
            self.octets + other.octets,
            self.torn + other.torn,
            self.kept + other.kept,
            self.entries + other.entries,
        )


class Node:
    """What file and directory share. Times are in nanoseconds since the epoch."""

    def __init__(self, number: int, mode: int, uid: int, gid: int, now: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.accessed = self.modified = self.changed = now
        self.lookups = 0  # how many references the kernel holds


class File(Node):
    """A file: its octets by now, and how to undo what was not synced."""

    def __init__(self, number: int, mode: int, uid: int, gid: int, now: int) -> None:
        super().__init__(number, mode, uid, gid, now)
        self.data = bytearray()
        self.unsynced: deque[Write] = deque()
        self._octets = 0  # in `unsynced`
        self.saved_as: Path | None = None  # where the backing directory has it as it is

    def write(self, start: int, new: bytes) -> None:
        """Write `new` at `start`; a gap before it is filled with zeros."""
        data, end = self.data, start + len(new)
        self._note(Write(start, bytes(data[start:end]), len(data), new))
        if start > len(data):
            data.extend(bytes(start - len(data)))
        data[start:end] = new

    def truncate(self, size: int) -> None:
        """Cut or fill up with zeros to `size`."""
        data = self.data
        self._note(Write(size, bytes(data[size:]), len(data), None))
        del data[size:]
        data.extend(bytes(size - len(data)))

    def _note(self, write: Write) -> None:
        self.saved_as = None
        self.unsynced.append(write)
        self._octets += len(write.old) + len(write.new or b"")
        while self._octets > WRITTEN_BACK_FROM:
            oldest = self.unsynced.popleft()
            self._octets -= len(oldest.old) + len(oldest.new or b"")

    def sync(self) -> None:
        """From here on a power cut takes nothing of what it has now."""
        self.unsynced.clear()
        self._octets = 0

    def power_cut(self, chance: random.Random | None, sector: int) -> Loss:
        """Have what was synced and, with `chance`, some of the rest."""
        writes = [*self.unsynced]
        for write in reversed(writes):
            self._undo(write)
        self.sync()
        if chance is None:
            return Loss(writes=len(writes), octets=sum(len(w.new or b"") for w in writes))
        likely = chance.random()  # from nearly none to nearly all
        loss = Loss()
        for write in writes:
            loss += self._survive(write, chance, likely, sector)
        return loss

    def _undo(self, write: Write) -> None:
        data, start = self.data, write.start
        del data[write.old_size :]
        data.extend(bytes(write.old_size - len(data)))
        data[start : start + len(write.old)] = write.old

    def _survive(self, write: Write, chance: random.Random, likely: float, sector: int) -> Loss:
        start, new = write.start, write.new
        whole = chance.random() < likely
        if new is None:
            if whole:
                del self.data[start:]
                self.data.extend(bytes(start - len(self.data)))
            return Loss(kept=1) if whole else Loss(writes=1)
        torn = chance.random() < 0.5
        taken = 0
        for piece_start, piece in sectors(start, new, sector):
            if chance.random() < likely if torn else whole:
                self._put(piece_start, piece)
                taken += len(piece)
        if taken == len(new):
            return Loss(kept=1)
        return Loss(writes=1, octets=len(new) - taken, torn=1 if taken else 0)

    def _put(self, start: int, new: bytes) -> None:
        if start > len(self.data):
            self.data.extend(bytes(start - len(self.data)))
        self.data[start : start + len(new)] = new


class Directory(Node):
    """A directory: its entries by now, and those that are safe."""

    def __init__(self, number: int, mode: int, uid: int, gid: int, now: int) -> None:
        super().__init__(number, mode, uid, gid, now)
        self.entries: dict[bytes, Node] = {}
        self.safe: dict[bytes, Node] = {}


def sectors(start: int, octets: bytes, sector: int) -> Iterator[tuple[int, bytes]]:
    """`octets`, which begin at `start`, cut where a sector ends."""
    done = 0
    while done < len(octets):
        size = sector - (start + done) % sector
        yield start + done, octets[done : done + size]
        done += size


class Disk:
    """All of a file system. Methods raise OSError as the system call of that name does.

    rule: one of RULES. honest: False for a disk that says it has synced and has not.
    """

    def __init__(self, rule: str = "posix", honest: bool = True) -> None:
        if rule not in RULES:
            raise ValueError(f"{rule}: the rules are {', '.join(RULES)}")
        self.rule = rule
        self.honest = honest
        self._number = 0
        self.root = self.directory(0o755, os.geteuid(), os.getegid(), 0)
        # Changes in the order they were made: of each directory, or of all in one journal.
        self._logs: dict[Directory | None, list[list[Change]]] = {}

    # --- entries ----------------------------------------------------------------------------------

    def _next(self) -> int:
        self._number += 1
        return self._number

    def file(self, mode: int, uid: int, gid: int, now: int) -> File:
        """A new file without an entry."""
        return File(self._next(), stat.S_IFREG | stat.S_IMODE(mode), uid, gid, now)

    def directory(self, mode: int, uid: int, gid: int, now: int) -> Directory:
        """A new directory without an entry."""
        return Directory(self._next(), stat.S_IFDIR | stat.S_IMODE(mode), uid, gid, now)

    def add(self, parent: Directory, name: bytes, node: Node) -> None:
        """Give `node` an entry. Raises FileExistsError."""
        if name in parent.entries:
            raise OSError(errno.EEXIST, "exists")
        self._change([Change(parent, name, node)])

    def remove(self, parent: Directory, name: bytes) -> None:
        """unlink(2) and rmdir(2). Raises OSError: ENOENT, ENOTEMPTY."""
        node = self._entry(parent, name)
        if isinstance(node, Directory) and node.entries:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._change([Change(parent, name, None)])

    def rename(self, parent: Directory, name: bytes, target: Directory, new: bytes) -> None:
        """rename(2): what had the new name loses it. Raises OSError: ENOENT, ENOTEMPTY."""
        node = self._entry(parent, name)
        there = target.entries.get(new)
        if there is node:
            return
        if isinstance(there, Directory) and there.entries:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._change([Change(parent, name, None), Change(target, new, node)])

    @staticmethod
    def _entry(parent: Directory, name: bytes) -> Node:
        if name not in parent.entries:
            raise OSError(errno.ENOENT, "not there")
        return parent.entries[name]

    def _change(self, changes: list[Change]) -> None:
        """Carry out changes that are one step of the journal."""
        for change in changes:
            _apply(change, change.directory.entries)
        if self.rule == "ext4":
            self._logs.setdefault(None, []).append(changes)
            return
        for directory in dict.fromkeys(change.directory for change in changes):
            mine = [change for change in changes if change.directory is directory]
            self._logs.setdefault(directory, []).append(mine)

    # --- what is safe -----------------------------------------------------------------------------

    def sync_file(self, file: File) -> None:
        """fsync(2) or fdatasync(2) of a file."""
        if self.honest:
            file.sync()
            self._commit(None)

    def sync_directory(self, directory: Directory) -> None:
        """fsync(2) of a directory."""
        if self.honest:
            self._commit(None if self.rule == "ext4" else directory)

    def _commit(self, log: Directory | None) -> None:
        for step in self._logs.pop(log, ()):
            for change in step:
                _apply(change, change.directory.safe)

    def sync_all(self) -> None:
        """All that was done is safe, as if much time had gone by in peace."""
        for log in [*self._logs]:
            self._commit(log)
        for _, node in self.walk():
            if isinstance(node, File):
                node.sync()

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All that has a name, with its path below the root; a directory before what is in it."""
        waiting = [(b"", self.root)]
        while waiting:
            path, directory = waiting.pop()
            for name, node in sorted(directory.entries.items(), key=lambda entry: entry[0]):
                below = os.path.join(path, name)
                yield below, node
                if isinstance(node, Directory):
                    waiting.append((below, node))

    def power_cut(self, keep: str = "nothing", seed: int = 0, sector: int = 512) -> Loss:
        """Forget what was not synced; the tree is then what a restart finds. Returns what is lost.

        keep: one of KEEPS. sector: octets that are written whole or not at all, 512 or 4096.
        The same seed after the same writes leaves the same.
        """
        if keep not in KEEPS:
            raise ValueError(f"{keep}: kept is one of {', '.join(KEEPS)}")
        chance = random.Random(seed) if keep == "some" else None
        loss = Loss()
        for log in self._logs.values():
            survive = chance.randint(0, len(log)) if chance else 0
            for change in [change for step in log[:survive] for change in step]:
                _apply(change, change.directory.safe)
            loss += Loss(entries=sum(map(len, log[survive:])))
        self._logs.clear()
        self._restore()
        for _, node in self.walk():
            if isinstance(node, File):
                loss += node.power_cut(chance, sector)
        return loss

    def _restore(self) -> None:
        """Have the safe entries alone. A directory that was moved is in the first place found."""
        waiting: deque[Directory] = deque([self.root])
        reached = {self.root}
        while waiting:
            directory = waiting.popleft()
            directory.entries = {}
            for name, node in sorted(directory.safe.items(), key=lambda entry: entry[0]):
                if isinstance(node, Directory):
                    if node in reached:
                        continue
                    reached.add(node)
                    waiting.append(node)
                directory.entries[name] = node
            directory.safe = dict(directory.entries)


def _apply(change: Change, entries: dict[bytes, Node]) -> None:
    if change.node is None:
        entries.pop(change.name, None)
    else:
        entries[change.name] = change.node
