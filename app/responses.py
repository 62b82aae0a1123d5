"""Large answers: written beside the event loop, or never joined in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PIECE = 1 << 20


async def json_response(model: BaseModel) -> Response:
    """The model as JSON. Returned from a route it would be written on the event loop, and other streams would wait."""
    content = await asyncio.to_thread(model.model_dump_json, by_alias=True)
    return Response(content, media_type="application/json")


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
