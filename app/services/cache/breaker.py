"""A store that does not answer is left alone until it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class Breaker:
    """Open from the first failure until `probe` returns: nobody waits for the store meanwhile but the probe itself.

    `probe` raises OSError or TimeoutError (or a subclass) while there is no answer; it is tried every `period` seconds.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], period: float, changed: Callable[[bool], None]) -> None:
        self._probe = probe
        self._period = period
        self._changed = changed
        self._recovery: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._recovery is None

    def trip(self) -> None:
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover())
            self._changed(False)

    async def _recover(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            with contextlib.suppress(OSError, TimeoutError):
                await self._probe()
                break
        self._recovery = None
        self._changed(True)

    async def close(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
