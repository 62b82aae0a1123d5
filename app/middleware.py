"""What surrounds every request, as plain ASGI: request ids, limits on what is received, draining, the last net."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import Limits
from app.errors import ProblemResponse
from app.record import current
from app.services.drain import Drain
from app.watch import ClientStalled
from rl_onoff.errors import (
    HeadersTooLarge,
    InternalError,
    InvalidField,
    LimitExceeded,
    OnOffError,
    PayloadTooLarge,
    RequestTimeout,
    ShuttingDown,
)

logger = logging.getLogger("rl_onoff.service")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TIMEOUT_HEADER = "X-Request-Timeout"
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
#: Answered even while the service drains.
_ALWAYS = frozenset({"/health", "/ready", "/metrics"})


class Head:
    """HEAD is what GET would be, as HTTP has it; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


class Boundary:
    """Every response carries a request id; whatever escapes the application becomes a problem, logged by that id.

    A client that takes nothing for `send_seconds` is not waited for.
    """

    def __init__(self, app: ASGIApp, send_seconds: float) -> None:
        self._app = app
        self._send_seconds = send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = current().request_id = request_id
        try:
            await self._answered(scope, receive, send, request_id)
        except ClientStalled as stalled:  # the server closes what has no end
            current().error = "client-stalled"
            logger.info("request %s: %s", request_id, stalled)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            try:
                async with asyncio.timeout(self._send_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientStalled(f"the client read nothing for {self._send_seconds:g} s") from None

        try:
            await self._app(scope, receive, send_with_id)
        except OnOffError as refused:  # raised by the middleware below
            await ProblemResponse(refused, scope)(scope, receive, send_with_id)
        except ClientStalled:
            raise
        except Exception:
            logger.exception("request %s failed", request_id)
            if started:
                current().error = InternalError.slug
                # The server cuts the connection, so the client sees that the answer is not whole; and it logs what is
                # raised, whose own message may quote a prompt.
                raise InternalError("the answer was cut off") from None
            error = InternalError("the service failed on this request; its log tells why under this request id")
            await ProblemResponse(error, scope)(scope, receive, send_with_id)


class Admission:
    """Limits on headers and body, also of bodies without a length and of slow ones; nothing new while draining."""

    def __init__(self, app: ASGIApp, limits: Limits, drain: Drain) -> None:
        self._app = app
        self._limits = limits
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._limits.header_bytes:
            raise HeadersTooLarge(f"the headers exceed {self._limits.header_bytes} bytes")
        current().seconds = self._seconds(Headers(scope=scope).get(TIMEOUT_HEADER))
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        with self._drain.admit() if scope["path"] not in _ALWAYS else contextlib.nullcontext():
            await self._app(scope, self._limited(receive), send)

    def _seconds(self, asked: str | None) -> float:
        """What the request has, to its end: what it asks for, at most the limit."""
        most = self._limits.request_seconds
        if asked is None:
            return most
        if not _SECONDS.fullmatch(asked) or not (seconds := float(asked)):
            raise InvalidField("must be a number of seconds above 0, as in 2.5", field=TIMEOUT_HEADER)
        if seconds > most:
            raise LimitExceeded(
                f"{seconds:g} s exceed the limit of {most:g} s", field=TIMEOUT_HEADER, limit=most, actual=seconds
            )
        return seconds

    def _limited(self, receive: Receive) -> Receive:
        received = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # only a disconnect can come
            message = await self._part(receive, deadline)
            received += len(message.get("body", b""))
            if received > self._limits.body_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return limited

    async def _part(self, receive: Receive, deadline: float) -> Message:
        """The next part of the body, if it comes before the deadline and the end of the drain."""
        receiving = asyncio.ensure_future(receive())
        expired = asyncio.create_task(self._drain.expired.wait())
        left = deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({receiving, expired}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            if expired.done():
                raise ShuttingDown("the service is shutting down", retry_after=5)
            raise RequestTimeout(f"the body did not arrive within {self._limits.body_seconds:g} s")
        finally:
            receiving.cancel()
            expired.cancel()

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body exceeds {self._limits.body_bytes} bytes", limit=self._limits.body_bytes)
