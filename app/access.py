"""Around everything else: each request has a record, one line in the log, and its place in the metrics."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import FIELDS
from app.record import Record, begin, client_of
from app.services.request_metrics import RequestMetrics

logger = logging.getLogger("rl_onoff.access")

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE: Final = 499


class Access:
    """Logs and counts every request when it has ended, however it did."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(
            client=client_of((scope.get("client") or ("",))[0].encode()),
            begun=asyncio.get_running_loop().time(),
            on_token=_TokenClock(self._metrics, scope),
        )
        begin(record)
        status = _CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, watched)
        except BaseException:
            record.error = record.error or "cut-off"
            raise
        finally:
            self._metrics.in_flight.dec()
            self._ended(scope, record, status)

    def _ended(self, scope: Scope, record: Record, status: int) -> None:
        route = route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        seconds = asyncio.get_running_loop().time() - record.begun
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "queued_seconds": round(record.queued_seconds, 4),
            "tokens": record.tokens,
            "rows": record.rows,
            "pair": record.pair or None,
            "client": record.client[:8],
            "error": record.error,
        }
        told = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        logger.info("request %s: %s", record.request_id, told, extra={FIELDS: fields})


class _TokenClock:
    """Called when a stream has sent a token, `begun` being when it was asked for."""

    def __init__(self, metrics: RequestMetrics, scope: Scope) -> None:
        self._metrics = metrics
        self._scope = scope
        self._last: float | None = None

    def __call__(self, begun: float) -> None:
        now = asyncio.get_running_loop().time()
        if self._last is None:
            self._metrics.first_token.labels(route_of(self._scope)).observe(now - begun)
        else:
            self._metrics.between_tokens.labels(route_of(self._scope)).observe(now - self._last)
        self._last = now


def route_of(scope: Scope) -> str:
    """The template of the route that answers; a path itself may hold anything."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"
