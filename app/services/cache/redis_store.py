"""Entries in Redis, shared by every service that serves the same models. Redis may be dead, slow, full or corrupt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from app.services.cache.breaker import Breaker
from app.services.cache.codec import Corrupt, decode, encode
from app.services.cache.counters import CacheCounters
from app.services.cache.entry import Entry
from app.services.cache.patience import Patience
from app.services.cache.writes import Batch, WriteBehind
from rl_onoff.errors import ConfigurationError

logger = logging.getLogger("rl_onoff.service")

_PREFIX = b"rl-onoff:"
#: Between probes of a Redis that did not answer, and the pause in writing to one that refuses to be written to.
_PERIOD = 2.0
#: Reads at a time. The others wait for their turn, not for Redis: their deadline begins with it.
_READS = 8
_BATCH_BYTES = 4 << 20
_WAITING_BYTES = 64 << 20
_CLOSE_SECONDS = 1.0
#: A store is taken for well again when the best of a few answers came within this many seconds.
_QUICK = 0.02
_PROBES = 3
#: Values up to this are decoded on the event loop, within a millisecond: handing them to a thread, which then holds the
#: interpreter against this one, takes longer.
_INLINE_BYTES = 5 << 18
_READ_SIZE = 1 << 18


class RedisStore:
    """`timeout` seconds for one operation, connecting included, and for what slow ones add up to (`Patience`); the
    first that fails ends them all until a probe in the background is answered, soon.

    Raises ConfigurationError for a URL that is none.
    """

    def __init__(self, url: str, *, timeout: float, ttl: int, counters: CacheCounters) -> None:
        self._timeout = timeout
        self._ttl = ttl
        self._counters = counters
        self._reads = asyncio.Semaphore(_READS)
        self._no_writes_until = 0.0
        self._patience = Patience(timeout)
        self._breaker = Breaker(self._ping, _PERIOD, self._changed)
        self._writes = WriteBehind(self._write, limit=_WAITING_BYTES, batch=_BATCH_BYTES)
        try:
            self._pool: ConnectionPool = ConnectionPool.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                socket_read_size=_READ_SIZE,
                retry=Retry(NoBackoff(), 0),
                retry_on_error=[],
                decode_responses=False,
            )
        except (ValueError, RedisError) as error:
            raise ConfigurationError(f"cache_url: {error}") from error
        self._redis = Redis(connection_pool=self._pool)

    async def get(self, keys: Sequence[bytes], *, bulky: bool = False) -> list[Entry | None]:
        found = [self._writes.get(key) for key in keys]
        absent = [index for index, entry in enumerate(found) if entry is None]
        if absent:
            read = await self._read([keys[index] for index in absent], bulky)
            if corrupt := [
                keys[index] for index, entry in zip(absent, read, strict=False) if isinstance(entry, Corrupt)
            ]:
                self._counters.blocks.labels("corrupt").inc(len(corrupt))
                await self._delete(corrupt)
            for index, entry in zip(absent, read, strict=False):
                found[index] = None if isinstance(entry, Corrupt) else entry
        return found

    def put(self, key: bytes, entry: Entry, *, bulky: bool) -> None:
        if not self._breaker.closed or time.monotonic() < self._no_writes_until:
            self._counters.dropped.labels("store").inc()
        elif not self._writes.put(key, entry):
            self._counters.dropped.labels("queue").inc()
        self._counters.held.set(self._writes.size)

    async def close(self) -> None:
        await self._writes.close(_CLOSE_SECONDS if self._breaker.closed else 0)
        await self._breaker.close()
        await self._redis.aclose()
        await self._pool.disconnect()

    async def _read(self, keys: Sequence[bytes], bulky: bool) -> list[Entry | Corrupt | None]:
        """As far as the store has answered: of bulky values, which follow one another, to the first that is missing."""
        read: list[asyncio.Future[Entry | Corrupt | None]] = []
        async with self._reads:
            try:
                # Redis sends large values sooner one by one than at once, which it would gather first.
                for part in ([key] for key in keys) if bulky else [keys]:
                    if not self._breaker.closed:
                        break
                    async with self._patience.waiting():
                        values = await self._values(part)
                    self._took(sum(len(value) for value in values if value is not None))
                    read += [self._unpacked(key, value) for key, value in zip(part, values, strict=True)]
                    if bulky and values == [None]:
                        break
            except (RedisError, OSError, TimeoutError) as error:
                self._failed("read", error)
        return await asyncio.gather(*read)

    async def _values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        names = [_PREFIX + key.hex().encode() for key in keys]
        found = [await self._redis.get(names[0])] if len(names) == 1 else await self._redis.mget(names)
        return cast(list[bytes | None], found)  # responses are not decoded

    def _took(self, size: int) -> None:
        self._counters.bytes.labels("read").inc(size)
        self._patience.came(size)

    def _unpacked(self, key: bytes, value: bytes | None) -> asyncio.Future[Entry | Corrupt | None]:
        loop = asyncio.get_running_loop()
        if value is not None and len(value) > _INLINE_BYTES:
            return loop.run_in_executor(None, _decoded, key, value)
        done: asyncio.Future[Entry | Corrupt | None] = loop.create_future()
        done.set_result(None if value is None else _decoded(key, value))
        return done

    async def _delete(self, keys: Sequence[bytes]) -> None:
        try:
            async with self._patience.waiting():
                await self._redis.unlink(*(_PREFIX + key.hex().encode() for key in keys))
        except ResponseError as error:
            self._refused(error)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("write", error)

    async def _write(self, batch: Batch) -> None:
        if not self._breaker.closed or time.monotonic() < self._no_writes_until:
            self._counters.dropped.labels("store").inc(len(batch))
            return
        values = await asyncio.to_thread(lambda: {key: encode(key, entry) for key, entry in batch.items()})
        pipeline = self._redis.pipeline(transaction=False)
        written = 0
        for key, value in values.items():
            if value is None:
                self._counters.dropped.labels("size").inc()
            else:
                pipeline.set(_PREFIX + key.hex().encode(), value, ex=self._ttl)
                written += len(value)
        try:
            async with asyncio.timeout(self._timeout):
                answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("write", error)
            return
        refusals = [answer for answer in answers if isinstance(answer, Exception)]
        if refusals:
            self._refused(refusals[0])
            self._counters.dropped.labels("store").inc(len(refusals))
        else:
            self._counters.bytes.labels("written").inc(written)
        self._counters.held.set(self._writes.size)

    async def _ping(self) -> None:
        took: list[float] = []
        while not took or (min(took) > _QUICK and len(took) < _PROBES):
            begin = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._redis.ping()
            except RedisError as error:
                raise OSError(str(error)) from error
            took.append(time.monotonic() - begin)
        if min(took) > _QUICK:
            raise TimeoutError

    def _failed(self, operation: str, error: Exception) -> None:
        self._counters.errors.labels(operation).inc()
        if self._breaker.closed:
            logger.warning("the cache does not answer (%s): going on without it", type(error).__name__)
        self._breaker.trip()
        self._patience.end()

    def _refused(self, error: Exception) -> None:
        """Out of memory under noeviction, read-only, not allowed: reading goes on, writing after a pause."""
        self._counters.errors.labels("write").inc()
        if time.monotonic() >= self._no_writes_until:
            logger.warning("the cache takes no writes (%s)", str(error).partition(" ")[0])
        self._no_writes_until = time.monotonic() + _PERIOD

    def _changed(self, available: bool) -> None:
        self._counters.available.set(available)
        if available:
            self._patience.renew()
            logger.warning("the cache answers again")


def _decoded(key: bytes, value: bytes) -> Entry | Corrupt:
    try:
        return decode(key, value)
    except Corrupt as error:
        return error
