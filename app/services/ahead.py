"""One asynchronous stream, read one item ahead: the next is made while this one is in use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What `items` yields. Two are there at most: the reader's, and the next. Closing this one closes `items`."""
    ready: asyncio.Queue[T | None] = asyncio.Queue()
    taken = asyncio.Semaphore(0)

    async def read() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    ready.put_nowait(item)
                    await taken.acquire()
        finally:
            ready.put_nowait(None)

    reading = asyncio.create_task(read())
    try:
        while (item := await ready.get()) is not None:
            taken.release()
            yield item
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
