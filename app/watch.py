"""Work that ends with the client it is for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

from app.services.drain import Drain
from rl_onoff.errors import DeadlineExceeded, ShuttingDown

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is left to answer."""


class ClientStalled(TimeoutError):
    """The client reads nothing: its answer cannot be sent."""


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone. Only after the body was read whole."""
    while (await receive())["type"] != "http.disconnect":
        pass


def time_left(scope: Scope) -> float | None:
    """Seconds until a request has to be answered; None where it has for ever."""
    deadline: float | None = scope["state"].get("deadline")
    return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())


def out_of_time() -> DeadlineExceeded:
    """For a request that took longer than it may."""
    return DeadlineExceeded("the request took longer than X-Request-Timeout or the service's request_seconds allow")


async def attended(work: Coroutine[Any, Any, T], request: Request, drain: Drain) -> T:
    """The result of `work`, which is cancelled when the client leaves, its time is over or the service has to end.

    Raises ClientGone, DeadlineExceeded or ShuttingDown then.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request.receive))
    expired = asyncio.create_task(drain.expired.wait())
    tasks = (working, gone, expired)
    try:
        await asyncio.wait(tasks, timeout=time_left(request.scope), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if expired.done():
            raise ShuttingDown("the service is shutting down", retry_after=5)
        if gone.done():
            raise ClientGone
        raise out_of_time()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
