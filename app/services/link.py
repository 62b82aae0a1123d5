"""The app's end of the wire: one aiohttp session to one worker, over its unix socket or TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import aiohttp
import msgspec

from app.services.telemetry import Meter
from rl_onoff.errors import InternalError, WorkerLost, WorkerUnavailable
from workers import wire

_READ_BUFFER = 1 << 20
#: Connections on their way at once. A unix socket's backlog (128 here) overflows without an error asyncio would see.
_OPENING = 64
#: For answers that never wait for a model.
_PROMPT = aiohttp.ClientTimeout(total=1)

T = TypeVar("T")


class Link:
    """`lost` is set when a connection ends before its answer: the first sign of a worker's death.

    `meter` makes what counts the frames of one job. `address` is a socket's path, or host:port of a worker that
    knows `token`.
    """

    def __init__(self, address: str, meter: Callable[[], Meter] | None = None, token: str = "") -> None:
        unix = "/" in address
        self._url = "http://worker" if unix else f"http://{address}"
        self._meter = meter
        self.lost = asyncio.Event()
        self._opening = asyncio.Semaphore(_OPENING)
        self._asked: set[asyncio.Future[aiohttp.ClientResponse]] = set()
        self._answering: set[aiohttp.ClientResponse] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=address, limit=0) if unix else aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=_READ_BUFFER,
            auto_decompress=False,
        )

    @property
    def closed(self) -> bool:
        """Whether its worker has ended."""
        return self._session.closed

    async def info(self) -> wire.PairInfo:
        """Raises WorkerUnavailable until the worker has loaded its pair."""
        return await self._get("/info", wire.PairInfo)

    async def health(self) -> wire.Health:
        return await self._get("/health", wire.Health)

    async def run(self, job: wire.Job) -> AsyncGenerator[wire.Frame, None]:
        """The job's frames, `Done` last; a `Failed` frame is raised. Closing the generator cancels the job."""
        meter = self._meter() if self._meter is not None else None
        if self.closed:
            raise WorkerUnavailable("the worker is being restarted", retry_after=1)
        try:
            async with self._opening:  # the worker sends its headers at once
                response = await self._post(wire.encode(job))
            async with response:
                self._answering.add(response)
                if response.status != 200:
                    raise InternalError(f"the worker answered {response.status}")
                try:
                    async for frame in wire.read_frames(response.content):
                        if isinstance(frame, wire.Failed):
                            raise frame.error()
                        if meter is not None:
                            meter.count(frame)
                        yield frame
                    await response.read()  # to the end, so that the connection is used again
                finally:
                    self._answering.discard(response)
                    if not response.content.is_eof():
                        response.close()
        except aiohttp.ClientConnectorError as error:
            self.lost.set()
            raise WorkerUnavailable("the worker is being restarted", retry_after=1) from error
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
            self.lost.set()
            raise WorkerLost("the worker died while it held this request", retry_after=1) from error
        except msgspec.MsgspecError as error:
            raise InternalError("the worker's answer could not be read") from error

    async def _post(self, job: bytes) -> aiohttp.ClientResponse:
        asked = asyncio.ensure_future(self._session.post(f"{self._url}/run", data=job))
        self._asked.add(asked)
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                asked.result().close()  # it came in the moment of the cancellation
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise aiohttp.ClientConnectionError("the link was closed") from None
        finally:
            self._asked.discard(asked)

    async def close(self) -> None:
        """Jobs under way end with WorkerLost. Closing the session would not tell them, where the worker lives on."""
        closing = asyncio.ensure_future(self._session.close())
        for asked in list(self._asked):
            asked.cancel()
        for response in list(self._answering):
            response.close()
        await closing

    async def _get(self, path: str, kind: type[T]) -> T:
        try:
            async with self._session.get(self._url + path, timeout=_PROMPT) as response:
                if response.status != 200:
                    raise WorkerUnavailable(f"the worker answered {response.status}", retry_after=1)
                return msgspec.msgpack.decode(await response.read(), type=kind)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise WorkerUnavailable("the worker does not answer", retry_after=1) from error
