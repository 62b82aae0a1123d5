"""Frames of scoring jobs, as `replay.run` gives them, from the cache as far as it has them.

A job's blocks are looked up from its beginning to the first that is missing; the rest is asked of the worker, once for
all who ask at the same time (`flights`), and stored while it passes. A request never waits for a write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from app.config import Settings
from app.record import current
from app.services import replay
from app.services.cache.counters import CacheCounters
from app.services.cache.entry import Entry, Store, cut, joined
from app.services.cache.flights import Flights, Part, Parts
from app.services.cache.layouts import Layout, MeasuresLayout, RowsLayout
from app.services.cache.memory import MemoryStore
from app.services.cache.redis_store import RedisStore
from app.services.gate import Ticket
from app.services.worker import LoadedPair
from rl_onoff.schemas import CacheUse
from workers.wire import Compare, Frame, Rows, Score, Values

#: Of one look-up, about: a request for thousands of whole rows neither holds all twice nor makes Redis wait long.
_LOOKUP_BYTES = 4 << 20


class Cache:
    """One for all requests; `open` one for each of them."""

    def __init__(self, settings: Settings, counters: CacheCounters) -> None:
        self.counters = counters
        self.flights = Flights()
        self.store: Store | None = None
        self._namespace = settings.cache_namespace
        self._row_bytes = settings.cache_row_bytes
        if (url := settings.redis_url) is not None:
            self.store = RedisStore(
                url,
                timeout=settings.cache_timeout,
                ttl=settings.cache_ttl,
                counters=counters,
            )
        elif settings.cache_bytes:
            self.store = MemoryStore(settings.cache_bytes, counters)

    def open(self, cache_control: str | None) -> CachedFrames:
        """For one request, with its `Cache-Control`: `no-store` neither looks anything up nor stores anything."""
        directives = {part.strip().lower() for part in (cache_control or "").split(",")}
        return CachedFrames(self, None if "no-store" in directives else self.store)

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()

    def layout(self, pair: LoadedPair, job: Score | Compare) -> Layout | None:
        """None for what is not cached: whole rows beyond the budget, noise floors, models that cannot be told apart."""
        if not (pair.info.a.fingerprint and pair.info.b.fingerprint):
            return None
        about = self._namespace, pair.info, pair.config.options
        if isinstance(job, Compare):
            return MeasuresLayout(job, *about) if job.floor is None else None
        rows = RowsLayout(job, *about)
        return None if rows.bulky and rows.width * rows.positions > self._row_bytes else rows


class CachedFrames:
    """One request's: counts what came from where."""

    def __init__(self, cache: Cache, store: Store | None) -> None:
        self._cache = cache
        self._store = store
        self._hit = 0
        self._computed = 0

    @property
    def use(self) -> CacheUse:
        return CacheUse(hit_rows=self._hit, computed_rows=self._computed)

    async def run(self, pair: LoadedPair, job: Score | Compare, ticket: Ticket) -> AsyncGenerator[Frame, None]:
        """As `replay.run`, but that `Done` may be missing; what the cache or another's flight has awaits no turn."""
        store = self._store
        layout = self._cache.layout(pair, job) if store is not None else None
        if store is None or layout is None:
            async with aclosing(replay.run(pair, job, ticket)) as frames:
                async for frame in frames:
                    if isinstance(frame, Rows | Values):
                        self._count(pair, frame, hit=False)
                    yield frame
            return
        position = 0
        while position < layout.positions:
            async with aclosing(self._found(store, layout, position)) as found:
                async for entry in found:
                    yield (frame := layout.answer(entry, position))
                    position += self._count(pair, frame, hit=True)
            if position == layout.positions:
                return
            flight = self._cache.flights.serving(layout, position)
            own = flight is None
            if flight is None:
                flight = self._cache.flights.start(layout, position, _computed(store, pair, layout, position, ticket))
            async with aclosing(flight.parts(position, own=own)) as parts:
                async for part in parts:
                    yield (frame := _answer(layout, part, position))
                    position += self._count(pair, frame, hit=not own)

    async def _found(self, store: Store, layout: Layout, position: int) -> AsyncGenerator[Entry, None]:
        """What can be had without a worker, from `position` on."""
        async with aclosing(self._held(store, layout, position)) as held:
            async for entry in held:
                position += _positions(entry)
                yield entry
        if layout.whole is None or position == layout.positions:
            return
        async with aclosing(self._held(store, layout.whole.layout, position)) as held:
            async for entry in held:
                if (lists := await asyncio.to_thread(layout.whole.best, entry)) is None:
                    return
                yield lists

    async def _held(self, store: Store, layout: Layout, position: int) -> AsyncGenerator[Entry, None]:
        """What the store has, from `position` to the first that is missing."""
        size = layout.blocks[0].end
        step = max(1, _LOOKUP_BYTES // (layout.width * size))
        for begin in range(position // size, len(layout.blocks), step):
            blocks = layout.blocks[begin : begin + step]
            found: list[Entry] = []
            entries = await store.get([block.key for block in blocks], bulky=layout.bulky)
            for block, entry in zip(blocks, entries, strict=True):
                if entry is None or not layout.serves(entry, block.end - block.begin):
                    break
                found.append(cut(entry, max(0, position - block.begin)))
            self._cache.counters.blocks.labels("hit").inc(len(found))
            self._cache.counters.blocks.labels("miss").inc(len(blocks) - len(found))
            if found:
                yield joined(found)
            if len(found) < len(blocks):
                return

    def _count(self, pair: LoadedPair, frame: Rows | Values, *, hit: bool) -> int:
        """Its positions."""
        count = (frame.token_logprobs if isinstance(frame, Rows) else frame.logprobs_a).shape[0]
        if hit:
            self._hit += count
            current().rows += count
        else:
            self._computed += count
        self._cache.counters.rows.labels(pair.config.name, "cache" if hit else "model").inc(count)
        return count


async def _computed(store: Store, pair: LoadedPair, layout: Layout, position: int, ticket: Ticket) -> Parts:
    """What the worker makes of the job from `position` on, put into the store while it passes."""
    blocks = _Blocks(store, layout, position)
    async with aclosing(replay.run(pair, layout.rest(position), ticket)) as frames:
        async for frame in frames:
            if isinstance(frame, Rows | Values):
                entry = layout.entry(frame)
                blocks.add(entry)
                begin = position + frame.start
                yield Part(begin, begin + _positions(entry), frame, entry)


def _answer(layout: Layout, part: Part, position: int) -> Rows | Values:
    """The part from `position` on, as the job is answered; what came as asked for is not copied."""
    frame = part.frame
    if isinstance(frame, Rows) and part.begin == position and layout.as_asked(frame):
        return msgspec.structs.replace(frame, start=position)
    return layout.answer(cut(part.entry, position - part.begin), position)


class _Blocks:
    """Computed entries, in the worker's chunks, put into the store in the layout's blocks, from `position` on.

    Every row is copied once, however many blocks a chunk holds. A block that began before `position` is left out.
    """

    def __init__(self, store: Store, layout: Layout, position: int) -> None:
        self._store = store
        self._layout = layout
        self._blocks = deque(block for block in layout.blocks if block.begin >= position)
        self._skip = (self._blocks[0].begin if self._blocks else layout.positions) - position
        self._parts: deque[Entry] = deque()
        self._held = 0

    def add(self, entry: Entry) -> None:
        if self._skip:
            skipped = min(self._skip, _positions(entry))
            self._skip -= skipped
            if not _positions(entry := cut(entry, skipped)):
                return
        self._parts.append(entry)
        self._held += _positions(entry)
        while self._blocks and self._held >= (size := self._blocks[0].end - self._blocks[0].begin):
            self._held -= size
            self._store.put(self._blocks.popleft().key, self._taken(size), bulky=self._layout.bulky)

    def _taken(self, size: int) -> Entry:
        """The first `size` positions that are held, in memory of their own."""
        taken: list[Entry] = []
        while size:
            part = self._parts.popleft()
            if _positions(part) > size:
                self._parts.appendleft(cut(part, size))
                part = cut(part, 0, size)
            taken.append(part)
            size -= _positions(part)
        return joined(taken)


def _positions(entry: Entry) -> int:
    return len(next(iter(entry.values())))
