"""Single-flight: of equal jobs that run at the same time one is computed, and all who ask read what it computes.

A flight goes on when the foremost of its readers wants more, so nobody waits for another's client. It holds what its
slowest reader has not had yet, `WINDOW_BYTES` at most: whoever falls further behind leaves it, for what the store has
by then. When its last reader leaves, so does the job.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from app.services.cache.entry import Entry, size_of
from app.services.cache.layouts import Layout
from rl_onoff.errors import InternalError
from workers.wire import Rows, Values

#: Of one flight, beside its newest chunk: two of a worker's chunks of whole rows.
WINDOW_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Positions `begin`..`end - 1` of a job: the worker's frame, and the same as an entry."""

    begin: int
    end: int
    frame: Rows | Values
    entry: Entry


Parts = AsyncGenerator[Part, None]


class Flight:
    """A job under way, from `position` on."""

    def __init__(self, layout: Layout, position: int, parts: Parts, ended: Callable[[Flight], None]) -> None:
        self.layout = layout
        self._end = position
        self._held: deque[Part] = deque()
        self._readers: dict[object, int] = {}
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._ended = ended
        self._task = asyncio.create_task(self._fly(parts))
        self._task.add_done_callback(self._landed)

    @property
    def begin(self) -> int:
        """The first position that can still be read."""
        return self._held[0].begin if self._held else self._end

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(size_of(part.entry) for part in self._held)

    async def parts(self, position: int, *, own: bool) -> Parts:
        """From `position` on; the first may begin before it. Ends early for who fell behind, and where the flight
        failed; its error is raised where the flight is the reader's `own`."""
        reader = object()
        self._readers[reader] = position
        try:
            while position < self.layout.positions:
                while position == self._end and not self._task.done():
                    self._wanted.set()
                    await self._changed.wait()
                part = next((part for part in self._held if part.begin <= position < part.end), None)
                if part is None:
                    break
                self._readers[reader] = position = part.end
                self._release()
                yield part
            if position == self._end:
                await asyncio.wait({self._task})
                if own:
                    self._task.result()
        finally:
            del self._readers[reader]
            if not self._readers:
                self._ended(self)
                self._task.cancel()
                await asyncio.wait({self._task})
            else:
                self._release()

    async def _fly(self, parts: Parts) -> None:
        async with aclosing(parts):
            async for part in parts:
                self._held.append(part)
                self._end = part.end
                self._wanted.clear()
                self._release()
                self._tell()
                if self._end < self.layout.positions:
                    await self._wanted.wait()
        if self._end != self.layout.positions:
            raise InternalError("the worker scored another number of positions than asked for")

    def _release(self) -> None:
        """The newest part stays for who comes late: blocks it has only begun are in no store yet."""
        slowest = min(self._readers.values(), default=self._end)
        while len(self._held) > 1 and (self._held[0].end <= slowest or self._beside_newest() > WINDOW_BYTES):
            self._held.popleft()

    def _beside_newest(self) -> int:
        return self.size - size_of(self._held[-1].entry)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._ended(self)
        self._tell()
        if not task.cancelled():
            task.exception()  # it may be nobody's any more

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Flights:
    def __init__(self) -> None:
        self._under_way: dict[bytes, Flight] = {}

    def serving(self, layout: Layout, position: int) -> Flight | None:
        """A flight that has or will have all from `position` on."""
        flight = self._under_way.get(layout.blocks[-1].key)
        return flight if flight is not None and flight.begin <= position and layout.within(flight.layout) else None

    def start(self, layout: Layout, position: int, parts: Parts) -> Flight:
        """The job whose `parts` begin at `position`. Read it at once: what nobody reads does not end."""
        flight = Flight(layout, position, parts, self._ended)
        self._under_way.setdefault(layout.blocks[-1].key, flight)
        return flight

    def _ended(self, flight: Flight) -> None:
        key = flight.layout.blocks[-1].key
        if self._under_way.get(key) is flight:
            del self._under_way[key]
