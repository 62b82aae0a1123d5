"""Freed memory stays with the process.

A pass over a wide vocabulary takes tens of MB for its rows and gives them back at once. The C library returns blocks
of that size to the system, which hands them out again page by page, each emptied first: seconds a gigabyte on a
virtual machine, and as long as the arithmetic on them.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

#: Free memory beyond this, at the end of the heap, still goes back; what is free between used blocks stays.
KEPT: Final = 512 << 20
# glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, `KEPT` bytes of it at the heap's end; whether it does.

    Not where the operator has settings of his own (`MALLOC_*`, `GLIBC_TUNABLES`), nor with another C library. To be
    called before there are threads, which would have heaps of their own.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: KEPT, _TOP_PAD: 16 << 20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
