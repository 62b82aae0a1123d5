"""What a call adds to this process's memory at its highest."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


def extra_mb(run: Callable[[], Any]) -> float:
    """Peak of the resident set during `run`, less what was resident before it, in MB (Linux)."""
    before = _begin()
    run()
    return _status("VmHWM") - before


async def extra_mb_async(run: Callable[[], Awaitable[Any]]) -> float:
    """As `extra_mb`, of something awaited."""
    before = _begin()
    await run()
    return _status("VmHWM") - before


def _begin() -> float:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return _status("VmRSS")


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"the kernel gives no {key}")
