"""Large answers: written in pieces, and never joined in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.record import current
from app.services.drain import Drain
from app.services.json_parts import parts, pieces
from app.watch import disconnected
from rl_onoff.errors import ShuttingDown

_PIECE = 1 << 20


async def json_response(model: BaseModel, *, exclude_unset: bool = False) -> Response:
    """The model as JSON. Returned from a route it would be written at once, and other streams would wait."""
    body = [part async for part in parts(pieces(model, exclude_unset=exclude_unset))]
    return (
        PartsResponse(body, "application/json") if len(body) > 1 else Response(body[0], media_type="application/json")
    )


class PartsResponse(Response):
    """A body in parts."""

    def __init__(self, parts: Sequence[bytes], media_type: str) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.init_headers({"Content-Length": str(sum(map(len, parts)))})
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            for begin in range(0, len(part), _PIECE):
                piece = part[begin : begin + _PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StreamedResponse(Response):
    """A body of known length in parts that are still being made.

    What fails on the way is raised after the head is out: the connection is cut, and the client sees a body that is too
    short. A client that leaves closes the source at once.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None], length: int, media_type: str, drain: Drain) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.init_headers({"Content-Length": str(length)})
        self._parts = parts
        self._unsent = length
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(disconnected(receive))
        expired = asyncio.create_task(self._drain.expired.wait())
        tasks = (pump, gone, expired)
        record = current()
        try:
            await asyncio.wait(tasks, timeout=record.left, return_when=asyncio.FIRST_COMPLETED)
            left, ended, late = gone.done(), pump.done(), not expired.done()
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await self._parts.aclose()
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        if left:
            if self._unsent > 0:  # with the last byte its client may go, and the server calls that a disconnect too
                record.error = "client-gone"
        elif late and not ended:
            raise record.too_late()
        elif not ended:
            raise ShuttingDown("the service is shutting down")

    async def _pump(self, send: Send) -> None:
        async for part in self._parts:
            view = memoryview(part)
            for begin in range(0, len(part), _PIECE):
                piece = bytes(view[begin : begin + _PIECE])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._unsent -= len(piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
