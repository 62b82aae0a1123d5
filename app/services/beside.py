"""Long work beside the event loop, short work on it.

A thread costs two changes of hands: half a millisecond of a processor, more when every request has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

#: Values of an answer that are summed up, or written as JSON, in about a millisecond: what other streams may wait.
SHORT: Final = 2048


async def beside(values: int, work: Callable[[], T]) -> T:
    """What `work` returns; it passes over about so many values."""
    return work() if values <= SHORT else await asyncio.to_thread(work)
