"""How long requests wait for a store that answers late: in sum, not only at one look-up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

#: Between looks at what still waits; what is answered within two of them is in time.
STEP: Final = 0.005
#: Turns of the event loop before a look: what came while this process was busy is read by then.
_POLLS: Final = 4
#: What comes pays for itself at this rate, bytes a second: large blocks over a slow network are not lateness.
WORTH: Final = 100e6
#: Of all time, which is forgiven: now and then every machine is late.
_FORGIVEN: Final = 0.01


class Patience:
    """`limit` seconds for one operation, four fifths of it for the lateness of all: when that is over, all under
    way raise TimeoutError, and so do those that come after.

    Time in which any number of operations wait counts once, and not if it was this process that was late: what still
    waits after the event loop has turned a few times was not answered.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._most = 0.8 * limit
        self._left = self._most
        self._filled = 0.0
        self._charged = 0.0
        self._scopes: dict[asyncio.Timeout, float] = {}
        self._ticking = False

    @property
    def left(self) -> float:
        """Seconds of lateness that are still borne."""
        return self._left

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[None, None]:
        """Around one operation."""
        now = asyncio.get_running_loop().time()
        self._left = min(self._most, self._left + _FORGIVEN * (now - self._filled))
        self._filled = now
        async with asyncio.timeout(self._limit if self._left > 0 else 0) as scope:
            self._scopes[scope] = now
            if not self._ticking:
                self._ticking = True
                self._later()
            try:
                yield
            finally:
                del self._scopes[scope]

    def came(self, size: int) -> None:
        """So many bytes did."""
        self._left = min(self._most, self._left + size / WORTH)

    def end(self) -> None:
        """All operations under way, at once."""
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)

    def renew(self) -> None:
        """Some patience, for a store that answers again; more comes with time."""
        self._left = max(self._left, self._most / 4)

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(STEP, loop.call_soon, self._look, _POLLS)

    def _look(self, polls: int) -> None:
        loop = asyncio.get_running_loop()
        if not self._scopes:
            self._ticking = False
        elif polls:
            loop.call_soon(self._look, polls - 1)
        else:
            now, oldest = loop.time(), next(iter(self._scopes.values()))
            if now - oldest > 2 * STEP:
                self._left -= now - max(self._charged, oldest)
                self._charged = now
                if self._left <= 0:
                    self.end()
            self._later()
