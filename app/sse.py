"""Server-sent events that never end without saying why.

A stream is `token` and `switch` events and then exactly one `done` or `error`, whatever happens to the source.
FastAPI's own event stream ends cleanly when its generator raises, which a client cannot tell from success.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.config import Settings
from app.errors import problem
from app.record import current
from app.services.drain import Drain
from app.services.events import Sendable
from app.services.json_parts import parts
from app.watch import ClientStalled, disconnected
from rl_onoff.errors import InternalError, OnOffError, ShuttingDown

logger = logging.getLogger("rl_onoff.service")

_PING = b": ping\n\n"


async def begin(events: AsyncGenerator[Sendable, None], seconds: float) -> AsyncGenerator[Sendable, None]:
    """The same events, after the first has come: what fails before it is raised here, while a status can still tell.

    A first event that takes longer than `seconds` is waited for in the stream instead, where pings show life.
    """
    first = asyncio.create_task(anext(events))
    try:
        await asyncio.wait({first}, timeout=seconds)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()
        raise
    return _rejoined(first, events)


async def _rejoined(
    first: asyncio.Task[Sendable], events: AsyncGenerator[Sendable, None]
) -> AsyncGenerator[Sendable, None]:
    try:
        yield await first
        async for event in events:
            yield event
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()


class EventStream(Response):
    """Sends events as they come. A client that leaves, or that the boundary gives up on, closes the source at once."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Sendable, None],
        *,
        settings: Settings,
        drain: Drain,
        emitted: int = 0,
        superseded: asyncio.Event | None = None,
    ) -> None:
        """`emitted` tokens went out on an earlier connection; once `superseded`, the rest goes out on another."""
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events
        self._settings = settings
        self._drain = drain
        self._emitted = emitted
        self._superseded = superseded or asyncio.Event()
        self._ended = self._whole = False  # the last event: begun, and out
        self._inside = False  # an event that goes out in parts
        self._turn = asyncio.Lock()  # to write a whole event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(scope, write))
        ping = asyncio.create_task(self._ping(write))
        gone = asyncio.create_task(disconnected(receive))
        expired = asyncio.create_task(self._drain.expired.wait())
        superseded = asyncio.create_task(self._superseded.wait())
        tasks = (pump, ping, gone, expired, superseded)
        record = current()
        try:
            ends = {pump, gone, expired, superseded}
            ended, _ = await asyncio.wait(ends, timeout=record.left, return_when=asyncio.FIRST_COMPLETED)
            left = gone.done()
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()
        if left and not self._whole:
            record.error = "client-gone"
            return
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        if self._superseded.is_set() and not self._ended:
            raise ClientStalled("its stream goes on in another connection")
        over = ShuttingDown("the service is shutting down") if ended else record.too_late()
        if self._inside:
            raise over  # nothing else can follow: the connection is cut
        if not self._ended:
            await write(self._error(over, scope))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, scope: Scope, write: Any) -> None:
        record = current()
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    self._emitted += event.name == "token"
                    self._ended = event.name == "done"
                    async with self._turn:
                        if event.long:
                            await self._in_parts(event, write)
                        else:
                            await write(event.encode())
                    self._whole = self._ended
                    if event.name == "token":
                        record.token_sent()
        except OnOffError as error:
            final = error
        except ClientStalled:
            raise  # nothing more can be sent
        except Exception:
            if self._inside:
                raise
            logger.exception("request %s failed in its stream", scope["state"]["request_id"])
            final = InternalError("the service failed on this request; its log tells why under this request id")
        else:
            final = InternalError("the stream ended without a result")
        if not self._ended:
            await write(self._error(final, scope))
            self._whole = True

    async def _in_parts(self, event: Sendable, write: Any) -> None:
        self._inside = True
        async for part in parts(event.pieces()):
            await write(part)
        self._inside = False

    def _error(self, error: OnOffError, scope: Scope) -> bytes:
        self._ended = True
        return self._event(problem(error, scope, tokens_emitted=self._emitted))

    @staticmethod
    def _event(problem: dict[str, Any]) -> bytes:
        """The problem as the last event."""
        return f"event: error\ndata: {json.dumps(problem)}\n\n".encode()

    async def _ping(self, write: Any) -> None:
        with contextlib.suppress(ClientStalled):
            while True:
                await asyncio.sleep(self._settings.ping_seconds)
                async with self._turn:
                    await write(_PING)
