"""The embedded store: in this process, bounded in bytes, the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from app.services.cache.counters import CacheCounters
from app.services.cache.entry import Entry, size_of

#: Of one entry beside its arrays: the key, the dictionary, the array objects, about.
_OVERHEAD = 800


class MemoryStore:
    """While both want room, half of it is for whole rows and half for the rest: a few rows outweigh thousands of
    top-k lists."""

    def __init__(self, limit: int, counters: CacheCounters) -> None:
        self._limit = limit
        self._counters = counters
        self._pools: dict[bool, OrderedDict[bytes, Entry]] = {True: OrderedDict(), False: OrderedDict()}
        self._sizes = {True: 0, False: 0}

    async def get(self, keys: Sequence[bytes], *, bulky: bool = False) -> list[Entry | None]:
        found = [self._pools[False].get(key) or self._pools[True].get(key) for key in keys]
        # Backwards: the blocks at the end go before those they are of no use without.
        for key in reversed(keys):
            for pool in self._pools.values():
                if key in pool:
                    pool.move_to_end(key)
        return found

    def put(self, key: bytes, entry: Entry, *, bulky: bool) -> None:
        size = size_of(entry) + _OVERHEAD
        if size > self._limit // 2:
            self._counters.dropped.labels("size").inc()
            return
        pool = self._pools[bulky]
        if key in pool:
            self._sizes[bulky] -= size_of(pool.pop(key)) + _OVERHEAD
        pool[key] = entry
        self._sizes[bulky] += size
        while sum(self._sizes.values()) > self._limit:
            self._evict(self._sizes[True] > self._limit // 2)
        self._counters.held.set(sum(self._sizes.values()))

    def _evict(self, bulky: bool) -> None:
        _, entry = self._pools[bulky].popitem(last=False)
        self._sizes[bulky] -= size_of(entry) + _OVERHEAD

    async def close(self) -> None:
        return None
