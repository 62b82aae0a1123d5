"""Write-behind: what waits to be stored, bounded, read by those who ask meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from app.services.cache.entry import Entry, size_of

Batch = dict[bytes, Entry]


class WriteBehind:
    """Entries on their way to `write`, which is handed a few MB at a time by one task and never raises."""

    def __init__(self, write: Callable[[Batch], Awaitable[None]], *, limit: int, batch: int) -> None:
        self._write = write
        self._limit = limit
        self._batch = batch
        self._waiting: Batch = {}
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """Bytes waiting."""
        return self._size

    def get(self, key: bytes) -> Entry | None:
        return self._waiting.get(key)

    def put(self, key: bytes, entry: Entry) -> bool:
        """Whether there was room."""
        replaced = self._waiting.get(key)
        growth = size_of(entry) - (size_of(replaced) if replaced is not None else 0)
        if self._size + growth > self._limit:
            return False
        self._waiting[key] = entry
        self._size += growth
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return True

    async def close(self, seconds: float) -> None:
        """What is waiting gets so long to be written."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next()
                await self._write(batch)
                for key, entry in batch.items():
                    self._size -= size_of(entry)
                    if self._waiting.get(key) is entry:
                        del self._waiting[key]
                    else:  # replaced meanwhile: its successor was counted by the difference
                        self._size += size_of(entry)
        finally:
            self._task = None

    def _next(self) -> Batch:
        batch: Batch = {}
        size = 0
        for key, entry in self._waiting.items():
            size += size_of(entry)
            if batch and size > self._batch:
                break
            batch[key] = entry
        return batch
