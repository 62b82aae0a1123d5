"""Streams of typed events, from server-sent events.

A stream ends with its result as the last event, or with an exception: the problem the service reported, or
`StreamTruncated` when the connection ended without a word (and no other could be opened).

    with client.switch_generate("Q: 49-8-6+7=", stream=True) as stream:
        for event in stream:
            match event:
                case SwitchToken():
                    print(event.text, end="")
                case Switch():
                    print(f"[{event.to}]", end="")
    print(stream.result.b_fraction)

A stream of `switch_generate` whose connection breaks is opened again where it was, with the retries of the client: the
events go on as though nothing had happened.

Reading may stop at any event: leaving the block closes the connection, and the service stops generating.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from rl_onoff._calls import parse
from rl_onoff._retry import Retries
from rl_onoff.errors import OnOffError, ServiceError, StreamTruncated, from_problem
from rl_onoff.schemas import (
    GenerateResponse,
    GenerateToken,
    Problem,
    Response,
    Switch,
    SwitchResponse,
    SwitchToken,
)

EventT = TypeVar("EventT", bound=Response)
ResultT = TypeVar("ResultT", bound=Response)


@dataclass(frozen=True, slots=True)
class Kinds(Generic[EventT, ResultT]):
    """The events of one endpoint by name, and the model of its `done`."""

    events: Mapping[str, type[EventT]]
    result: type[ResultT]


GENERATE: Kinds[GenerateToken, GenerateResponse] = Kinds({"token": GenerateToken}, GenerateResponse)
SWITCH: Kinds[SwitchToken | Switch, SwitchResponse] = Kinds({"token": SwitchToken, "switch": Switch}, SwitchResponse)


_OTHER_TEXT = (
    "the service went on with another text than it had begun: its models are no longer those that answered first"
)


class _Stream(Generic[EventT, ResultT]):
    """What both kinds of stream share: all but reading from the connection."""

    def __init__(self, response: httpx.Response, kinds: Kinds[EventT, ResultT], retries: Retries | None) -> None:
        self._response = response
        self._kinds = kinds
        self._result: ResultT | None = None
        self._events = 0
        self._last_id: str | None = None
        self._tokens: list[int] = []
        self._retries = retries
        self._was_closed = False
        self._reopened = False

    @property
    def request_id(self) -> str | None:
        """The service's name for this request, for its logs."""
        header: str | None = self._response.headers.get("X-Request-Id")
        return header

    @property
    def result(self) -> ResultT:
        """The whole result, once the stream has ended."""
        if self._result is None:
            raise RuntimeError("the result of a stream is known when it has been read to its end")
        return self._result

    def _begin(self) -> EventSource:
        if self._response.is_closed or self._response.is_stream_consumed:
            raise RuntimeError("a stream can be read only once, while it is open")
        return EventSource(self._response)

    def _decode(self, sse: ServerSentEvent) -> EventT | ResultT | None:
        """The event, None for one this version does not know; `error` raises."""
        if sse.event == "done":
            result = parse(self._kinds.result, sse.data)
            if self._reopened and isinstance(result, SwitchResponse) and result.token_ids != self._tokens:
                raise ServiceError(_OTHER_TEXT, request_id=self.request_id)
            self._result = result
            return self._result
        if sse.event == "error":
            raise from_problem(parse(Problem, sse.data).model_dump())
        model = self._kinds.events.get(sse.event)
        if model is None:
            return None
        self._events += 1
        event = parse(model, sse.data)
        if isinstance(event, SwitchToken):
            if self._reopened and event.index != len(self._tokens):
                raise ServiceError("the service did not go on where its stream broke off", request_id=self.request_id)
            self._tokens.append(event.id)
        self._last_id = sse.id or self._last_id
        if self._retries is not None:
            self._retries.went_on()
        return event

    def _wait(self, error: OnOffError) -> float | None:
        """Seconds until the stream is opened again, None to give up."""
        return None if self._retries is None or self._was_closed else self._retries.wait(error)

    def _broken(self, failure: Exception | None) -> OnOffError:
        if isinstance(failure, SSEError):
            return ServiceError(f"the answer is no event stream: {failure}", request_id=self.request_id)
        reason = "" if failure is None else f": {str(failure) or type(failure).__name__}"
        return StreamTruncated(
            f"the stream ended after {self._events} events without a result{reason}", request_id=self.request_id
        )


class Stream(_Stream[EventT, ResultT]):
    """The events of a running request. Iterate once; use as a context manager to be sure that it is closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __init__(
        self,
        response: httpx.Response,
        kinds: Kinds[EventT, ResultT],
        reopen: Callable[[str | None, str | None], httpx.Response] | None = None,
        retries: Retries | None = None,
    ) -> None:
        """`reopen` makes the same call for what follows an event of that id, in a request of that id."""
        super().__init__(response, kinds, retries)
        self._reopen = reopen

    def __iter__(self) -> Iterator[EventT | ResultT]:
        source = self._begin()
        try:
            while self._result is None:
                try:
                    yield from self._connected(source)
                except OnOffError as error:
                    delay = self._wait(error)
                    if delay is None or self._reopen is None:
                        raise
                    self._response.close()
                    time.sleep(delay)
                    self._response = self._reopen(self._last_id, self.request_id)
                    self._reopened = True
                    source = self._begin()
        finally:
            self.close()

    def _connected(self, source: EventSource) -> Iterator[EventT | ResultT]:
        """The events that one connection brings."""
        try:
            for sse in source.iter_sse():
                event = self._decode(sse)
                if event is not None:
                    yield event
                if self._result is not None:
                    return
            raise self._broken(None)
        except (httpx.RequestError, SSEError) as failure:
            raise self._broken(failure) from failure

    def until_done(self) -> ResultT:
        """Read to the end and return the result."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Close the connection; the service stops working on the request."""
        self._was_closed = True
        self._response.close()


class AsyncStream(_Stream[EventT, ResultT]):
    """The events of a running request. Iterate once; use as a context manager to be sure that it is closed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __init__(
        self,
        response: httpx.Response,
        kinds: Kinds[EventT, ResultT],
        reopen: Callable[[str | None, str | None], Awaitable[httpx.Response]] | None = None,
        retries: Retries | None = None,
    ) -> None:
        """`reopen` makes the same call for what follows an event of that id, in a request of that id."""
        super().__init__(response, kinds, retries)
        self._reopen = reopen

    async def __aiter__(self) -> AsyncIterator[EventT | ResultT]:
        source = self._begin()
        try:
            while self._result is None:
                try:
                    async with aclosing(self._connected(source)) as events:
                        async for event in events:
                            yield event
                except OnOffError as error:
                    delay = self._wait(error)
                    if delay is None or self._reopen is None:
                        raise
                    await self._response.aclose()
                    await asyncio.sleep(delay)
                    self._response = await self._reopen(self._last_id, self.request_id)
                    self._reopened = True
                    source = self._begin()
        finally:
            await self.close()

    async def _connected(self, source: EventSource) -> AsyncGenerator[EventT | ResultT, None]:
        """The events that one connection brings."""
        try:
            async for sse in source.aiter_sse():
                event = self._decode(sse)
                if event is not None:
                    yield event
                if self._result is not None:
                    return
            raise self._broken(None)
        except (httpx.RequestError, SSEError) as failure:
            raise self._broken(failure) from failure

    async def until_done(self) -> ResultT:
        """Read to the end and return the result."""
        async for _ in self:
            pass
        return self.result

    async def close(self) -> None:
        """Close the connection; the service stops working on the request."""
        self._was_closed = True
        await self._response.aclose()
