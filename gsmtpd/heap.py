"""How does a worker give memory back, and how much has it? By how it uses the C library's heap."""

from __future__ import annotations

import ctypes
import mmap

_M_ARENA_MAX = -8  # malloc.h of glibc
TRIM_EVERY = 5.0  # seconds

_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", None)  # glibc's alone
_malloc_trim = getattr(_libc, "malloc_trim", None)


def share() -> None:
    """One heap for all threads, see mallopt(3). Call it before there are any.

    They take turns at Python's lock anyway, while each heap keeps what its busiest moment took.
    """
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give the system what is free, see malloc_trim(3); glibc does so at the heap's end only.

    Call it every TRIM_EVERY seconds. Other threads wait meanwhile, a millisecond for each 5 MB
    that is free.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def resident(pid: int) -> int | None:
    """The octets of memory that a process has now; None where that cannot be read, see proc(5)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return None
