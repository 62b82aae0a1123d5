"""`Client` and `AsyncClient`: the service's API as typed methods.

    from rl_onoff import Client

    with Client("http://127.0.0.1:8000") as client:
        result = client.switch_generate("Q: 49-8-6+7=", policy={"kind": "divergence", "on": 0.1}, seed=1)
        print(result.text, result.leads, result.b_fraction)

Keyword arguments are the fields of the requests in `rl_onoff.schemas`; those of `Sampling` may be given directly.
Every failure is an `rl_onoff.errors.OnOffError`. As long as nothing of an answer was handed on, a
service that is busy, starting or cannot be reached (also by a proxy before it) is asked again for `retry_seconds`, and
a request whose connection or worker was lost is sent again `max_retries` times.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack, overload

import httpx

from rl_onoff import _calls
from rl_onoff._calls import get, parse
from rl_onoff._http import AsyncSession, Session, Settings
from rl_onoff._retry import Backoff
from rl_onoff.errors import ServiceError
from rl_onoff.fields import DistributionsFields, DivergenceFields, GenerateFields, ItemLike, SwitchFields
from rl_onoff.schemas import (
    DistributionsResponse,
    DivergenceResponse,
    GenerateResponse,
    GenerateToken,
    HealthResponse,
    ModelsResponse,
    ReadyResponse,
    Switch,
    SwitchResponse,
    SwitchToken,
    VersionResponse,
)
from rl_onoff.streams import GENERATE, SWITCH, AsyncStream, Stream
from rl_onoff.tensors import FullDistributions, map_distributions, read_distributions

DEFAULT_URL = "http://127.0.0.1:8000"

GenerateStream = Stream[GenerateToken, GenerateResponse]
AsyncGenerateStream = AsyncStream[GenerateToken, GenerateResponse]
SwitchStream = Stream[SwitchToken | Switch, SwitchResponse]
AsyncSwitchStream = AsyncStream[SwitchToken | Switch, SwitchResponse]


def _not_ready(error: ServiceError) -> ReadyResponse:
    """The answer in a 503; any other error is raised again."""
    if error.status != 503:
        raise error
    pairs = error.extensions.get("pairs")
    return ReadyResponse(ready=False, pairs=pairs if isinstance(pairs, dict) else {})


class Client:
    """A connection pool to one service. Safe to share between threads; close it, or use it as a context manager.

    `timeout` is how many seconds the service may be silent before an answer (a long generation is), `stream_timeout`
    between two bytes of a stream (the service sends one every 15 s at least).

    A service that turns a request away (429, 503) or takes no connection, from here or from a proxy (its 502 or 504),
    is asked again for `retry_seconds`, with waits of up to 8 s, or of its Retry-After where that is longer; it is not
    waited for beyond that time. A request whose connection was reset before its answer was whole, or that lost its
    worker or ran out of memory, is sent again `max_retries` times. `max_retries=0` asks once, whatever happens.

    `deadline` is what the service gets for each request, in seconds from its arrival to the end of the answer, queueing
    included: then it stops working and DeadlineExceeded is raised. Without one, the service's own limit holds.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        stream_timeout: float | None = 60.0,
        max_retries: int = 2,
        retry_seconds: float = 60.0,
        deadline: float | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = Settings(base_url, api_key, timeout, stream_timeout, Backoff(max_retries, retry_seconds), deadline)
        self._session = Session(settings, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    @overload
    def generate(
        self, prompt: str | None = None, *, stream: Literal[False] = False, **fields: Unpack[GenerateFields]
    ) -> GenerateResponse: ...
    @overload
    def generate(
        self, prompt: str | None = None, *, stream: Literal[True], **fields: Unpack[GenerateFields]
    ) -> GenerateStream: ...
    def generate(
        self, prompt: str | None = None, *, stream: bool = False, **fields: Unpack[GenerateFields]
    ) -> GenerateResponse | GenerateStream:
        """Sample from one model: `POST /generate`."""
        call = _calls.generate(prompt, fields, stream=stream)
        if stream:
            return Stream(self._session.open(call), GENERATE)
        return parse(GenerateResponse, self._session.send(call).content)

    @overload
    def distributions(
        self, items: Sequence[ItemLike], *, full: Literal[False] = False, **fields: Unpack[DistributionsFields]
    ) -> DistributionsResponse: ...
    @overload
    def distributions(
        self,
        items: Sequence[ItemLike],
        *,
        full: Literal[True],
        save_to: str | os.PathLike[str] | None = None,
        **fields: Unpack[DistributionsFields],
    ) -> list[FullDistributions]: ...
    def distributions(
        self,
        items: Sequence[ItemLike],
        *,
        full: bool = False,
        save_to: str | os.PathLike[str] | None = None,
        **fields: Unpack[DistributionsFields],
    ) -> DistributionsResponse | list[FullDistributions]:
        """What one model believes at every token: `POST /distributions`.

        `full=True` gives numpy arrays, of the whole vocabulary unless `top_k` is given; else `top_k` is needed. With
        `save_to` the answer is written to that file as it comes and the arrays are mapped from it, read-only: rows of
        any size, in little memory.
        """
        call = _calls.distributions(items, fields, full=full, saved=save_to is not None)
        if save_to is not None:
            return map_distributions(self._session.save(call, Path(save_to)))
        response = self._session.send(call)
        return read_distributions(response.content) if full else parse(DistributionsResponse, response.content)

    def divergence(self, items: Sequence[ItemLike], **fields: Unpack[DivergenceFields]) -> DivergenceResponse:
        """How far the beliefs of A and B are apart at every token: `POST /divergence`."""
        return parse(DivergenceResponse, self._session.send(_calls.divergence(items, fields)).content)

    @overload
    def switch_generate(
        self, prompt: str | None = None, *, stream: Literal[False] = False, **fields: Unpack[SwitchFields]
    ) -> SwitchResponse: ...
    @overload
    def switch_generate(
        self, prompt: str | None = None, *, stream: Literal[True], **fields: Unpack[SwitchFields]
    ) -> SwitchStream: ...
    def switch_generate(
        self, prompt: str | None = None, *, stream: bool = False, **fields: Unpack[SwitchFields]
    ) -> SwitchResponse | SwitchStream:
        """Generate while a policy decides, token by token, which model leads: `POST /switch-generate`."""
        call = _calls.switch_generate(prompt, fields, stream=stream)
        if stream:
            return Stream(
                self._session.open(call),
                SWITCH,
                lambda event_id, request_id: self._session.open(call.after(event_id, request_id)),
                self._session.retries(),
            )
        return parse(SwitchResponse, self._session.send(call).content)

    def models(self) -> ModelsResponse:
        """The models and pairs served."""
        return parse(ModelsResponse, self._session.send(get("/models")).content)

    def health(self) -> HealthResponse:
        """Whether the service is alive."""
        return parse(HealthResponse, self._session.send(get("/health")).content)

    def ready(self) -> ReadyResponse:
        """Whether every pair is loaded: asked once, without retries."""
        try:
            return parse(ReadyResponse, self._session.send(get("/ready"), retry=False).content)
        except ServiceError as error:
            return _not_ready(error)

    def version(self) -> VersionResponse:
        """The service's version."""
        return parse(VersionResponse, self._session.send(get("/version")).content)


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. A stream is opened by awaiting, then read with `async for`:

    async with await client.switch_generate("Q: 49-8-6+7=", stream=True) as stream:
        async for event in stream: ...
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        stream_timeout: float | None = 60.0,
        max_retries: int = 2,
        retry_seconds: float = 60.0,
        deadline: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = Settings(base_url, api_key, timeout, stream_timeout, Backoff(max_retries, retry_seconds), deadline)
        self._session = AsyncSession(settings, transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    @overload
    async def generate(
        self, prompt: str | None = None, *, stream: Literal[False] = False, **fields: Unpack[GenerateFields]
    ) -> GenerateResponse: ...
    @overload
    async def generate(
        self, prompt: str | None = None, *, stream: Literal[True], **fields: Unpack[GenerateFields]
    ) -> AsyncGenerateStream: ...
    async def generate(
        self, prompt: str | None = None, *, stream: bool = False, **fields: Unpack[GenerateFields]
    ) -> GenerateResponse | AsyncGenerateStream:
        """Sample from one model: `POST /generate`."""
        call = _calls.generate(prompt, fields, stream=stream)
        if stream:
            return AsyncStream(await self._session.open(call), GENERATE)
        return parse(GenerateResponse, (await self._session.send(call)).content)

    @overload
    async def distributions(
        self, items: Sequence[ItemLike], *, full: Literal[False] = False, **fields: Unpack[DistributionsFields]
    ) -> DistributionsResponse: ...
    @overload
    async def distributions(
        self,
        items: Sequence[ItemLike],
        *,
        full: Literal[True],
        save_to: str | os.PathLike[str] | None = None,
        **fields: Unpack[DistributionsFields],
    ) -> list[FullDistributions]: ...
    async def distributions(
        self,
        items: Sequence[ItemLike],
        *,
        full: bool = False,
        save_to: str | os.PathLike[str] | None = None,
        **fields: Unpack[DistributionsFields],
    ) -> DistributionsResponse | list[FullDistributions]:
        """What one model believes at every token: `POST /distributions`.

        `full=True` gives numpy arrays, of the whole vocabulary unless `top_k` is given; else `top_k` is needed. With
        `save_to` the answer is written to that file as it comes and the arrays are mapped from it, read-only: rows of
        any size, in little memory.
        """
        call = _calls.distributions(items, fields, full=full, saved=save_to is not None)
        if save_to is not None:
            return map_distributions(await self._session.save(call, Path(save_to)))
        response = await self._session.send(call)
        return read_distributions(response.content) if full else parse(DistributionsResponse, response.content)

    async def divergence(self, items: Sequence[ItemLike], **fields: Unpack[DivergenceFields]) -> DivergenceResponse:
        """How far the beliefs of A and B are apart at every token: `POST /divergence`."""
        return parse(DivergenceResponse, (await self._session.send(_calls.divergence(items, fields))).content)

    @overload
    async def switch_generate(
        self, prompt: str | None = None, *, stream: Literal[False] = False, **fields: Unpack[SwitchFields]
    ) -> SwitchResponse: ...
    @overload
    async def switch_generate(
        self, prompt: str | None = None, *, stream: Literal[True], **fields: Unpack[SwitchFields]
    ) -> AsyncSwitchStream: ...
    async def switch_generate(
        self, prompt: str | None = None, *, stream: bool = False, **fields: Unpack[SwitchFields]
    ) -> SwitchResponse | AsyncSwitchStream:
        """Generate while a policy decides, token by token, which model leads: `POST /switch-generate`."""
        call = _calls.switch_generate(prompt, fields, stream=stream)
        if stream:
            return AsyncStream(
                await self._session.open(call),
                SWITCH,
                lambda event_id, request_id: self._session.open(call.after(event_id, request_id)),
                self._session.retries(),
            )
        return parse(SwitchResponse, (await self._session.send(call)).content)

    async def models(self) -> ModelsResponse:
        """The models and pairs served."""
        return parse(ModelsResponse, (await self._session.send(get("/models"))).content)

    async def health(self) -> HealthResponse:
        """Whether the service is alive."""
        return parse(HealthResponse, (await self._session.send(get("/health"))).content)

    async def ready(self) -> ReadyResponse:
        """Whether every pair is loaded: asked once, without retries."""
        try:
            return parse(ReadyResponse, (await self._session.send(get("/ready"), retry=False)).content)
        except ServiceError as error:
            return _not_ready(error)

    async def version(self) -> VersionResponse:
        """The service's version."""
        return parse(VersionResponse, (await self._session.send(get("/version"))).content)
