"""How does a disk come out of a plain directory, and go back into one?"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gsmtpd.faultlab.lossyfs_disk import Directory, Disk, File, Node


def load(disk: Disk, backing: Path) -> None:
    """Have what is in a directory on an empty disk: files and directories. All of it is safe."""
    directories = {backing: disk.root}
    _like(disk.root, backing.stat())
    for path in sorted(backing.rglob("*")):  # a directory comes before what is in it
        found = path.lstat()
        node: Node
        if stat.S_ISDIR(found.st_mode):
            node = directories[path] = disk.directory(0, 0, 0, 0)
        elif stat.S_ISREG(found.st_mode):
            node = file = disk.file(0, 0, 0, 0)
            file.data[:] = path.read_bytes()
            file.saved_as = path
        else:
            continue
        _like(node, found)
        directories[path.parent].entries[os.fsencode(path.name)] = node
    for directory in directories.values():
        directory.safe = dict(directory.entries)


def _like(node: Node, found: os.stat_result) -> None:
    node.mode, node.uid, node.gid = found.st_mode, found.st_uid, found.st_gid
    node.accessed, node.modified = found.st_atime_ns, found.st_mtime_ns
    node.changed = found.st_ctime_ns


def save(disk: Disk, backing: Path) -> None:
    """Make a directory what the disk is by now. Files that it has already are not written again."""
    wanted = {backing / os.fsdecode(path): node for path, node in disk.walk()}
    for path in sorted(backing.rglob("*"), reverse=True):  # what is in a directory before it
        there = wanted.get(path)
        if path.is_dir() and not isinstance(there, Directory):
            path.rmdir()
        elif not path.is_dir() and not isinstance(there, File):
            path.unlink()
    for path, node in {backing: disk.root, **wanted}.items():
        if isinstance(node, Directory):
            path.mkdir(exist_ok=True)
        elif isinstance(node, File) and node.saved_as != path:
            path.write_bytes(node.data)
            node.saved_as = path
        os.chown(path, node.uid, node.gid)
        path.chmod(stat.S_IMODE(node.mode))
        os.utime(path, ns=(node.accessed, node.modified))
