"""Single-flight: of equal jobs that run at the same time one computes, the others wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.services.cache.entry import Entry, cut
from app.services.cache.layouts import Layout


class Flight:
    """A job on its way: what it has computed so far, from `position` on. `landed` holds whether it was finished."""

    def __init__(self, layout: Layout, position: int) -> None:
        self.layout = layout
        self.position = position
        self.parts: list[Entry] = []
        self.landed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def wait(self) -> bool:
        """Whether it landed. Shielded: one who waits and leaves must not bring it down."""
        return await asyncio.shield(self.landed)

    def from_position(self, position: int) -> list[Entry]:
        """What was computed from `position` on."""
        found, start = [], self.position
        for part in self.parts:
            length = len(next(iter(part.values())))
            if start + length > position:
                found.append(cut(part, max(position - start, 0)))
            start += length
        return found


class Flights:
    def __init__(self) -> None:
        self._under_way: dict[bytes, Flight] = {}

    def serving(self, layout: Layout, position: int) -> Flight | None:
        """A flight that will have all that is missing from `position` on."""
        flight = self._under_way.get(layout.blocks[-1].key)
        return flight if flight is not None and flight.position <= position and layout.within(flight.layout) else None

    @contextmanager
    def lead(self, layout: Layout, position: int) -> Iterator[Flight]:
        """Others wait for it, until the end; whatever ends it early sends them off on their own."""
        flight = Flight(layout, position)
        key = layout.blocks[-1].key
        mine = self._under_way.setdefault(key, flight) is flight
        try:
            yield flight
        except BaseException:
            flight.landed.set_result(False)
            raise
        else:
            flight.landed.set_result(True)
        finally:
            if mine:
                del self._under_way[key]
