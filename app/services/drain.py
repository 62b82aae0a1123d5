"""Shutting down without breaking promises: what runs may finish for a while, nothing new begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from rl_onoff.errors import ShuttingDown

#: For what had its time to be told so.
_LAST_WORDS_SECONDS = 0.5


class Drain:
    """Counts the requests in hand. `expired` is set when they have had their time, `hurried` if asked for twice."""

    def __init__(self) -> None:
        self.draining = False
        self.expired = asyncio.Event()
        self.hurried = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one request. Raises ShuttingDown once draining has begun."""
        if self.draining:
            raise ShuttingDown("the service is shutting down", retry_after=5)
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()

    async def finish(self, seconds: float) -> None:
        """Begin draining; return when no request is left, at the latest a moment after `seconds` or `expired`."""
        self.draining = True
        idle, expired = asyncio.create_task(self._idle.wait()), asyncio.create_task(self.expired.wait())
        await asyncio.wait({idle, expired}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.expired.set()
        await asyncio.wait({idle}, timeout=_LAST_WORDS_SECONDS)
        idle.cancel()
