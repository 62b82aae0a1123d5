"""Several asynchronous streams as one, a bounded number of them running at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

_BUFFER = 64


async def interleave(
    sources: Sequence[Callable[[], AsyncGenerator[T, None]]], *, at_once: int
) -> AsyncGenerator[T, None]:
    """What the sources yield, as it comes. The first exception of any of them ends all; so does closing this one."""
    queue: asyncio.Queue[T | BaseException | None] = asyncio.Queue(_BUFFER)
    waiting = iter(sources)

    async def work() -> None:
        try:
            for source in waiting:
                async with aclosing(source()) as items:
                    async for item in items:
                        await queue.put(item)
        except Exception as error:  # handed over below, to the one who reads
            await queue.put(error)
        else:
            await queue.put(None)

    workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(sources)))]
    try:
        for _ in workers:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
