"""A model in a vLLM engine as a `LanguageModel`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import torch

from workers.backends.base import Draft, Ids
from workers.backends.vllm.calls import Answer, News, RequestCall
from workers.backends.vllm.engine import Driver
from workers.backends.vllm.extension import Wish
from workers.wire import ModelInfo, SamplingParams


class VLLMModel:
    """One engine's model, or with `adapter` (a LoRARequest) an adapter over it."""

    def __init__(self, engine: Any, info: ModelInfo, driver: Driver, sequences: int, adapter: Any = None) -> None:
        self.info = info
        self._engine, self._driver, self._adapter = engine, driver, adapter
        self.costs = driver.costs(engine)
        self._places = asyncio.Semaphore(sequences)

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[VLLMSequence]:
        async with self._places:
            self._driver.opened(self)
            try:
                yield VLLMSequence(self)
            finally:
                self._driver.closed(self)

    async def ask(self, ids: Ids, wish: Wish, count: int = 1, stop: frozenset[int] = frozenset()) -> Answer:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = RequestCall(self._engine, list(ids), wish, future, count, tuple(sorted(stop)), self._adapter)
        answer: Answer = await self._driver.submit(call)
        return answer

    async def stream(
        self, ids: Ids, wish: Wish, count: int, stop: frozenset[int]
    ) -> AsyncGenerator[News | Answer, None]:
        """The tokens as they are drawn, then the answer. Closing the generator ends the request."""
        news: asyncio.Queue[News | None] = asyncio.Queue()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = RequestCall(
            self._engine, list(ids), wish, future, count, tuple(sorted(stop)), self._adapter, news.put_nowait
        )
        answer = asyncio.ensure_future(self._driver.submit(call))
        answer.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (new := await news.get()) is not None:
                yield new
            yield await answer
        finally:
            answer.cancel()


class VLLMSequence:
    """A `CachedSequence` that holds nothing: the engine finds what it has of a prefix, in whole blocks."""

    def __init__(self, model: VLLMModel) -> None:
        self._model = model
        self.forwards = 0

    async def rows(self, ids: Ids, start: int, *, logits: bool = False) -> torch.Tensor:
        answer = await self._model.ask(ids, Wish(start=start, logits=logits))
        self.forwards += answer.passes
        rows: torch.Tensor = answer.rows
        return rows

    async def draft(self, ids: Ids, count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        answer = await self._model.ask(ids, Wish(sampling=params), count, eos)
        self.forwards += answer.passes
        return Draft(answer.tokens, answer.rows)
