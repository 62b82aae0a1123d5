"""Work that ends with the client it is for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from app.record import current
from app.services.drain import Drain
from rl_onoff.errors import ShuttingDown

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is left to answer."""


class ClientStalled(TimeoutError):
    """The client reads nothing: its answer cannot be sent."""


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone. Only after the body was read whole."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def attended(work: Coroutine[Any, Any, T], request: Request, drain: Drain) -> T:
    """The result of `work`, which is cancelled when the client leaves or the service has to end.

    Raises ClientGone or ShuttingDown then, and DeadlineExceeded when the request's time is over.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request.receive))
    expired = asyncio.create_task(drain.expired.wait())
    tasks = (working, gone, expired)
    record = current()
    try:
        await asyncio.wait(tasks, timeout=record.left, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if expired.done():
            raise ShuttingDown("the service is shutting down", retry_after=5)
        if gone.done():
            raise ClientGone
        raise record.too_late()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
