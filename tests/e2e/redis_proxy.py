"""What stands between a service and its Redis: it sees every look-up, and may make the answer late or Redis ill."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RedisProxy:
    """`before(n)` is called, on the proxy's thread, before the nth look-up (from 1) is passed on. `delay`: seconds by
    which answers of Redis are late."""

    def __init__(self, socket: Path, behind: Path) -> None:
        self.url = f"unix://{socket}"
        self.lookups = 0
        self.delay = 0.0
        self.before: Callable[[int], None] = lambda _: None
        self._socket, self._behind = socket, behind

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        async with await asyncio.start_unix_server(self._connected, self._socket):
            ready.set()
            await stop.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            to_redis = None
            try:
                from_redis, to_redis = await asyncio.open_unix_connection(self._behind)
                back = asyncio.create_task(self._answers(from_redis, writer))
                while data := await reader.read(1 << 16):
                    if b"GET" in data:
                        self.lookups += 1
                        self.before(self.lookups)
                    to_redis.write(data)
                await asyncio.wait({back}, timeout=0)
                back.cancel()
            finally:
                writer.close()
                if to_redis is not None:
                    to_redis.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
        writer.close()


@contextmanager
def redis_proxy(folder: Path, behind: Path) -> Iterator[RedisProxy]:
    proxy = RedisProxy(folder / "proxy.sock", behind)
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(ready, stop)))
    thread.start()
    try:
        assert ready.wait(10)
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
