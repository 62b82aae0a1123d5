"""Around everything else: who asks."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.record import Record, begin, client_of


class Access:
    """Gives each request its record."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            begin(Record(client=client_of((scope.get("client") or ("",))[0].encode())))
        await self._app(scope, receive, send)
