"""Rows on several processors: the compiled loops hold no lock of the interpreter's."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Final, TypeVar

T = TypeVar("T")

#: Entries of rows that are judged in half a millisecond: fewer are not worth a second thread.
WORTH: Final = 1 << 17


def processors() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(work: Callable[[int, int], T], count: int, threads: int) -> list[T]:
    """`work(begin, end)` over parts of 0..`count` side by side, as many as `threads`; what they return, in order.

    The first part runs in the calling thread. `work` must not call this again, or it might wait for itself.
    """
    threads = max(1, min(threads, count))
    first, *rest = pairwise(count * i // threads for i in range(threads + 1))
    others = [_pool().submit(work, *cut) for cut in rest]
    try:
        done = [work(*first)]
    finally:
        for other in others:
            other.exception()  # all have ended before anything is raised
    return done + [other.result() for other in others]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, processors() - 1), thread_name_prefix="rows")
