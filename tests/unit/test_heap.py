"""Do the threads of a worker share one heap?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gsmtpd import heap

# Each of some threads has a block at the same time; glibc lists its heaps, see malloc_info(3).
HEAPS = """
import ctypes, sys, threading
from gsmtpd import heap
if sys.argv[1] == "shared":
    heap.share()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(4)
def allocate():
    together.wait()
    libc.malloc(ctypes.c_size_t(4096))
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.parametrize(("how", "one"), [("shared", True), ("as it is", False)])
def test_threads_share_a_heap(how: str, one: bool) -> None:
    said = subprocess.run(
        [sys.executable, "-c", HEAPS, how], check=True, capture_output=True, text=True
    ).stdout
    assert (said.count("<heap nr=") == 1) is one


def test_how_much_a_process_has() -> None:
    assert (heap.resident(os.getpid()) or 0) > 10**6
    assert heap.resident(2**22 + 1) is None  # no process ever has that number, see proc(5)
