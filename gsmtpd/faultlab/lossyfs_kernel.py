"""How does the kernel ask for files, and how is a disk of ours mounted?

The kernel's own interface, <linux/fuse.h> 7.31 (Linux 5.4) and later, read from and written to
/dev/fuse: no library. The bindings for Python lack what is needed here. fusepy and mfusepy know
paths and no inodes, so that a file removed while it is open, as MariaDB's temporary ones, is one
renamed; pyfuse3 must be compiled for each Python. Either one needs libfuse as well.

All requests are answered one after the other by one thread, from memory. Symbolic links, hard
links, extended attributes and what is no file (a socket) are not there: ENOSYS or EPERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gsmtpd.faultlab.lossyfs_disk import Directory, Disk, File, Node

DEVICE = Path("/dev/fuse")
MAX_WRITE = 256 << 10  # octets of one request; a larger write comes in several
_BUFFER = MAX_WRITE + 4096
_FOREVER = 86400  # seconds the kernel may believe what it was told: nobody else changes anything
_ROOT = 1

_MNT_FORCE, _MNT_DETACH = 1, 2
_MS_NOSUID, _MS_NODEV = 2, 4

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4QII")
_VALID = struct.Struct("<QII")
_OPEN = struct.Struct("<QII")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_IO = struct.Struct("<QQIIQII")
_DIRENT = struct.Struct("<QQII")
_FALLOCATE = struct.Struct("<QQQII")

_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_ATIME, _SET_MTIME = 1, 2, 4, 8, 16, 32
_SET_ATIME_NOW, _SET_MTIME_NOW = 128, 256
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class Request:
    """One request of the kernel. body: what follows its header; valid until the next one."""

    __slots__ = ("body", "gid", "node", "number", "opcode", "uid")

    def __init__(self, message: memoryview) -> None:
        _, self.opcode, self.number, self.node, self.uid, self.gid, *_ = _IN.unpack_from(message)
        self.body = message[_IN.size :]

    def names(self, start: int) -> list[bytes]:
        """The names that begin at `start` of the body, each with a NUL behind it."""
        return bytes(self.body[start:]).split(b"\0")[:-1]


def _libc_call(name: str, *arguments: object) -> None:
    """Raises OSError."""
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)


def mount(path: Path) -> int:
    """Mount a file system of ours at the directory `path`; the descriptor to serve it by.

    Everybody may use it as its modes say. Raises OSError: EPERM where the right is missing, ENOENT
    or ENODEV where the kernel has no FUSE.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions"
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    try:
        _libc_call("mount", b"lossyfs", os.fsencode(path), b"fuse.lossyfs", flags, options.encode())
    except OSError:
        os.close(device)
        raise
    return device


def unmount(path: Path, *, cut: bool = False) -> None:
    """Take the file system away, which ends its server once nobody uses it any more.

    cut: at once: nothing more gets through, and whoever has a file open gets ECONNABORTED. Harmless
    where nothing is mounted. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        try:
            _libc_call("umount2", os.fsencode(path), _MNT_DETACH | (_MNT_FORCE if cut else 0))
        except OSError as error:
            if error.errno != errno.EINVAL:  # not mounted
                raise


class Service:
    """Answers the kernel from a Disk, until the file system is unmounted.

    lock: held for each request, and to be held by whoever else touches the disk. off: set while
    there is no power: nothing is carried out or answered any more. off_after: so many writes more
    and it is set. hangs: whether syncs wait for `go_on`.
    """

    def __init__(self, disk: Disk, device: int) -> None:
        self.disk = disk
        self.lock = threading.Lock()
        self.off = threading.Event()
        self.off_after: int | None = None
        self.hangs = False
        self._held: list[Request] = []
        self._device = device
        self._nodes: dict[int, Node] = {_ROOT: disk.root}
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._listing = 0
        # The numbers are those of enum fuse_opcode.
        self._answers: dict[int, Callable[[Request], bytes | memoryview | None]] = {
            1: self._look_up,
            2: self._forget,
            3: self._get_attributes,
            4: self._set_attributes,
            8: self._make_node,
            9: self._make_directory,
            10: self._remove,
            11: self._remove,
            12: self._rename,
            15: self._read,
            16: self._write,
            17: self._sizes,
            18: self._nothing,
            20: self._sync,
            26: self._init,
            27: self._open_directory,
            28: self._read_directory,
            29: self._close_directory,
            30: self._sync,
            35: self._create,
            36: self._unanswered,
            38: self._nothing,
            42: self._forget_many,
            43: self._allocate,
        }

    def serve(self) -> None:
        """Answer until the file system is gone. Raises OSError."""
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while True:
            try:
                size = os.readv(self._device, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EAGAIN):  # the request was withdrawn
                    continue
                raise
            with self.lock:
                if not self.off.is_set():
                    self._answer(Request(view[:size]))

    def go_on(self) -> None:
        """Have no sync wait any longer, nor those that do."""
        self.hangs = False
        held, self._held = self._held, []
        for request in held:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        # Without OPEN (14) and FLUSH (25) the kernel opens by itself and asks for neither again.
        answer = self._answers.get(request.opcode, _not_here)
        number, body = 0, None
        try:
            body = answer(request)
            if body is None:
                return
        except OSError as error:
            number = error.errno or errno.EIO
        parts: Sequence[bytes | memoryview] = [body] if body else []
        head = _OUT.pack(_OUT.size + sum(map(len, parts)), -number, request.number)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.writev(self._device, [head, *parts])

    # --- who is meant -----------------------------------------------------------------------------

    def _file(self, number: int) -> File:
        node = self._nodes.get(number)
        if not isinstance(node, File):
            raise OSError(errno.EISDIR if node else errno.ESTALE, "no file")
        return node

    def _directory(self, number: int) -> Directory:
        node = self._nodes.get(number)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR if node else errno.ESTALE, "no directory")
        return node

    def _entry(self, node: Node) -> bytes:
        """What LOOKUP is answered with; the kernel has one reference more."""
        node.lookups += 1
        self._nodes[node.number] = node
        head = _ENTRY.pack(node.number, 0, _FOREVER, _FOREVER, 0, 0)
        return head + _attributes(node)

    def _look_up(self, request: Request) -> bytes:
        node = self._directory(request.node).entries.get(request.names(0)[0])
        if node is None:
            raise OSError(errno.ENOENT, "not there")
        return self._entry(node)

    def _drop(self, number: int, lookups: int) -> None:
        node = self._nodes.get(number)
        if node is not None and number != _ROOT:
            node.lookups -= lookups
            if node.lookups <= 0:
                del self._nodes[number]

    def _forget(self, request: Request) -> None:
        self._drop(request.node, *struct.unpack_from("<Q", request.body))

    def _forget_many(self, request: Request) -> None:
        (count,) = struct.unpack_from("<I", request.body)
        for number, lookups in struct.iter_unpack("<QQ", request.body[8 : 8 + 16 * count]):
            self._drop(number, lookups)

    def _get_attributes(self, request: Request) -> bytes:
        node = self._nodes.get(request.node)
        if node is None:
            raise OSError(errno.ESTALE, "forgotten")
        return _VALID.pack(_FOREVER, 0, 0) + _attributes(node)

    def _set_attributes(self, request: Request) -> bytes:
        valid, _, _, size, _, *rest = _SETATTR.unpack_from(request.body)
        accessed, modified, _, accessed_ns, modified_ns, _, mode, _, uid, gid, _ = rest
        node = self._nodes[request.node]
        now = time.time_ns()
        if valid & _SET_SIZE:
            self._file(request.node).truncate(size)
            node.modified = now
        if valid & _SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.uid = uid if valid & _SET_UID else node.uid
        node.gid = gid if valid & _SET_GID else node.gid
        if valid & _SET_ATIME:
            at = accessed * 10**9 + accessed_ns
            node.accessed = now if valid & _SET_ATIME_NOW else at
        if valid & _SET_MTIME:
            at = modified * 10**9 + modified_ns
            node.modified = now if valid & _SET_MTIME_NOW else at
        node.changed = now
        return self._get_attributes(request)

    # --- entries ----------------------------------------------------------------------------------

    def _make_node(self, request: Request) -> bytes:
        mode, _, umask, _ = struct.unpack_from("<4I", request.body)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "only files and directories")
        return self._new_file(request, mode & ~umask, 16)

    def _new_file(self, request: Request, mode: int, names: int) -> bytes:
        node = self.disk.file(mode, request.uid, request.gid, time.time_ns())
        self.disk.add(self._directory(request.node), request.names(names)[0], node)
        return self._entry(node)

    def _create(self, request: Request) -> bytes:
        _, mode, umask, _ = struct.unpack_from("<4I", request.body)
        return self._new_file(request, mode & ~umask, 16) + _OPEN.pack(0, 0, 0)

    def _make_directory(self, request: Request) -> bytes:
        mode, umask = struct.unpack_from("<2I", request.body)
        node = self.disk.directory(mode & ~umask, request.uid, request.gid, time.time_ns())
        self.disk.add(self._directory(request.node), request.names(8)[0], node)
        return self._entry(node)

    def _remove(self, request: Request) -> bytes:
        self.disk.remove(self._directory(request.node), request.names(0)[0])
        return b""

    def _rename(self, request: Request) -> bytes:
        (target,) = struct.unpack_from("<Q", request.body)
        name, new = request.names(8)
        self.disk.rename(self._directory(request.node), name, self._directory(target), new)
        return b""

    def _open_directory(self, request: Request) -> bytes:
        directory = self._directory(request.node)
        self._listing += 1
        own = [(b".", request.node, directory.mode), (b"..", request.node, directory.mode)]
        found = [(name, node.number, node.mode) for name, node in directory.entries.items()]
        self._listings[self._listing] = own + found  # what is removed meanwhile shifts nothing
        return _OPEN.pack(self._listing, 0, 0)

    def _read_directory(self, request: Request) -> bytes:
        handle, start, size, *_ = _IO.unpack_from(request.body)
        listed = b""
        for position, (name, number, mode) in enumerate(self._listings[handle][start:], start + 1):
            entry = _DIRENT.pack(number, position, len(name), stat.S_IFMT(mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return listed

    def _close_directory(self, request: Request) -> bytes:
        (handle,) = struct.unpack_from("<Q", request.body)
        self._listings.pop(handle, None)
        return b""

    # --- octets -----------------------------------------------------------------------------------

    def _read(self, request: Request) -> memoryview:
        _, start, size, *_ = _IO.unpack_from(request.body)
        return memoryview(bytes(self._file(request.node).data[start : start + size]))

    def _write(self, request: Request) -> bytes | None:
        _, start, size, *_ = _IO.unpack_from(request.body)
        file = self._file(request.node)
        file.write(start, bytes(request.body[_IO.size : _IO.size + size]))
        file.modified = file.changed = time.time_ns()
        if self.off_after is not None:
            self.off_after -= 1
            if self.off_after <= 0:
                self.off.set()
                return None
        return struct.pack("<II", size, 0)

    def _sync(self, request: Request) -> bytes | None:
        if self.hangs:
            request.body = request.body[:0]  # the buffer is the next request's by then
            self._held.append(request)
            return None
        node = self._nodes[request.node]
        if isinstance(node, Directory):
            self.disk.sync_directory(node)
        elif isinstance(node, File):
            self.disk.sync_file(node)
        return b""

    def _allocate(self, request: Request) -> bytes:
        _, start, size, mode, _ = _FALLOCATE.unpack_from(request.body)
        file = self._file(request.node)
        if mode == 0 and start + size > len(file.data):
            file.truncate(start + size)
        elif mode == _KEEP_SIZE | _PUNCH_HOLE:
            file.write(start, bytes(max(0, min(size, len(file.data) - start))))
        elif mode not in (0, _KEEP_SIZE):
            raise OSError(errno.EOPNOTSUPP, "not this way")
        return b""

    # --- the rest ---------------------------------------------------------------------------------

    def _init(self, request: Request) -> bytes:
        major, minor, readahead, offered = struct.unpack_from("<4I", request.body)
        if (major, minor) < (7, 31):
            raise OSError(errno.EPROTO, "a kernel from before 5.4")
        flags = offered & (_BIG_WRITES | _MAX_PAGES)
        pages = MAX_WRITE // 4096
        head = struct.pack("<4I2H2I2HI", 7, 31, readahead, flags, 64, 48, MAX_WRITE, 1, pages, 0, 0)
        return head + bytes(28)

    def _sizes(self, _: Request) -> bytes:
        blocks = (64 << 30) // 4096  # says statfs(2); the memory is what bounds it
        return struct.pack(
            "<5Q4I", blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096, 0
        ) + (bytes(24))

    def _nothing(self, _: Request) -> bytes:
        return b""

    def _unanswered(self, _: Request) -> None:
        return None


def _not_here(_: Request) -> bytes:
    raise OSError(errno.ENOSYS, "not here")


def _attributes(node: Node) -> bytes:
    size = len(node.data) if isinstance(node, File) else 4096
    times = [divmod(t, 10**9) for t in (node.accessed, node.modified, node.changed)]
    seconds, rest = [t[0] for t in times], [t[1] for t in times]
    number = node.number
    owner = (node.mode, 1, node.uid, node.gid, 0, 4096, 0)
    return _ATTRIBUTES.pack(number, size, -(-size // 512), *seconds, *rest, *owner)
