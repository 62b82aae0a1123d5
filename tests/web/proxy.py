"""What may stand between a browser and the service: something that asks for a key, and a line that breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web

_HOP = {"connection", "content-length", "transfer-encoding", "host", "date"}


class Proxy:
    """Passes everything on. With `key`, only with this key, but for the page's own files; see `cut_after`, `down`."""

    def __init__(self, upstream: str, key: str | None = None) -> None:
        self.upstream = upstream
        self.key = key
        self.cut_after: int | None = None  # events of the next stream, once
        self.down = False  # every connection is closed without an answer
        self.streams = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        open_to_all = request.path == "/" or request.path.startswith("/web/")
        if self.key is not None and not open_to_all and request.headers.get("Authorization") != f"Bearer {self.key}":
            body = {"type": "urn:rl-onoff:problem:unauthorized", "title": "No valid API key", "status": 401}
            return web.json_response(body, status=401, content_type="application/problem+json")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        data = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, self.upstream + request.path_qs, headers=headers, data=data) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            streamed = answer.content_type == "text/event-stream"
            self.streams += streamed
            events = 0
            async for line in answer.content:
                await response.write(line)
                events += line == b"\n"
                if streamed and self.cut_after is not None and events >= self.cut_after:
                    self.cut_after = None
                    assert request.transport is not None
                    request.transport.close()
                    return response
            await response.write_eof()
            return response


@contextmanager
def proxied(upstream: str, key: str | None = None) -> Iterator[Proxy]:
    """A running proxy; its `url` is what the browser is given."""
    proxy = Proxy(upstream, key)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        proxy.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
