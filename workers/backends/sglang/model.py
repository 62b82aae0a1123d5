"""One SGLang server as a `LanguageModel`: what sequences ask becomes requests, which SGLang batches itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import torch

from rl_onoff.errors import InternalError, InvalidField, WorkerLost, WorkerUnavailable
from workers.backends.base import Draft, Ids
from workers.backends.sglang.endpoint import Endpoint
from workers.backends.sglang.memory import RowFiles
from workers.backends.sglang.orders import Order
from workers.wire import ModelInfo, SamplingParams

logger = logging.getLogger("rl_onoff.worker")

#: More bytes than this are filled and copied beside the event loop.
_LARGE: Final = 1 << 20
#: A broken connection is nearly always the server's end, which the system tells a moment later.
_END_SECONDS: Final = 2.0
_ABORT_SECONDS: Final = 0.2


class SGLangModel:
    """`reused` and `computed` count prompt tokens found in the server's prefix cache, and not found there."""

    def __init__(self, info: ModelInfo, server: Endpoint, sequences: int) -> None:
        self.info = info
        self.server = server
        self.steps = self.reused = self.computed = 0
        self._places = asyncio.Semaphore(sequences)
        self._files = RowFiles()
        self._serial = itertools.count()
        self._session: aiohttp.ClientSession | None = None
        self._requests: set[asyncio.Task[Any]] = set()  # those cancelled among them, until the server is done with them

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[SGLangSequence]:
        async with self._places:
            yield SGLangSequence(self)

    async def rows(self, ids: list[int], start: int, kind: str) -> torch.Tensor:
        # SGLang counts from the token whose logits they are: row t is those of token t - 1.
        request = {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": start - 1}
        rows, _ = await self._ask(ids, kind, start, len(ids) - start + 1, None, request)
        return rows

    async def draft(self, ids: list[int], count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        ends = {"stop_token_ids": sorted(eos)} if eos else {"ignore_eos": True}
        # Greedy: SGLang draws nothing, and what it picks is replaced by what the plugin has drawn.
        request = {"sampling_params": {"max_new_tokens": count, "temperature": 0.0, **ends}}
        rows, answer = await self._ask(ids, "draft", len(ids), count, params, request)
        return Draft(answer["output_ids"], rows)

    async def close(self) -> None:
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        self._files.close()

    async def _ask(
        self, ids: list[int], kind: Any, first: int, count: int, params: SamplingParams | None, request: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The rows and the server's answer; the request is aborted when we are cancelled."""
        self._check(ids, first, count)
        file = self._files.take()
        order = Order(next(self._serial), kind, file.number, file.descriptor, first, count, params)

        async def work() -> tuple[torch.Tensor, dict[str, Any]]:
            size = count, self.info.vocab_size
            shared = await _beside(4 * count * self.info.vocab_size, file.rows, *size)
            answer = await self._post("/generate", {"rid": order.request_id(), "input_ids": ids, **request})
            done = len(answer["output_ids"]) if kind == "draft" else count
            rows = await _beside(4 * done * self.info.vocab_size, _checked, shared[:done])
            self._count(answer["meta_info"], max(1, len(answer["output_ids"])))
            return rows, answer

        def finished(task: asyncio.Task[Any]) -> None:
            self._requests.discard(task)
            self._files.give_back(file)  # only now will nobody write to it any more
            if not task.cancelled():
                task.exception()  # of a request nobody waits for

        task = asyncio.create_task(work())
        self._requests.add(task)
        task.add_done_callback(finished)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                self._abort(order, task)
            raise

    def _count(self, meta: dict[str, Any], steps: int) -> None:
        self.steps += steps
        self.reused += meta["cached_tokens"]
        self.computed += meta["prompt_tokens"] - meta["cached_tokens"]

    def _check(self, ids: list[int], first: int, count: int) -> None:
        # A wrong id ends the server, and with it the requests of everyone.
        if not ids or min(ids) < 0 or max(ids) >= self.info.vocab_size:
            raise InvalidField(f"token ids must lie in [0, {self.info.vocab_size})", field="ids")
        if not 1 <= first <= len(ids) or count < 1 or first + count - 1 > self.info.max_len:
            raise InvalidField(f"rows must lie in [1, {self.info.max_len}]", field="start")

    def _abort(self, order: Order, request: asyncio.Task[Any]) -> None:
        async def abort() -> None:
            try:
                while not request.done():  # an abort that overtakes its request does nothing
                    await self._post("/abort_request", {"rid": order.request_id()})
                    await asyncio.wait({request}, timeout=_ABORT_SECONDS)
            except (WorkerLost, WorkerUnavailable, InternalError):
                logger.warning("a request of model %s could not be aborted", self.info.name)

        task = asyncio.create_task(abort())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises WorkerLost where the server has ended, WorkerUnavailable where it does not answer.

        InternalError where it answers anything but success.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                self.server.url,
                headers=self.server.headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3600),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        try:
            async with self._session.post(path, json=body) as response:
                if response.status != 200:
                    logger.error("SGLang, model %s: %s", self.info.name, (await response.text())[:1000])
                    raise InternalError(f"the SGLang server of model {self.info.name} answered {response.status}")
                if path != "/generate":
                    return {}
                answer: dict[str, Any] = await response.json()
        except (aiohttp.ClientError, OSError) as error:
            if await self.server.ends_within(_END_SECONDS):
                raise self.lost() from error
            raise WorkerUnavailable(
                f"the SGLang server of model {self.info.name} does not answer", retry_after=1
            ) from error
        reason = answer["meta_info"].get("finish_reason") or {}
        if reason.get("type") == "abort":
            logger.error("SGLang, model %s, aborted: %s", self.info.name, str(reason.get("message"))[:1000])
            raise InternalError(f"the SGLang server of model {self.info.name} gave up on a request")
        return answer

    def lost(self) -> WorkerLost:
        return WorkerLost(f"the SGLang server of model {self.info.name} {self.server.end}", retry_after=1)


class SGLangSequence:
    """A `CachedSequence`. The server finds what it has cached itself, of this sequence and of all others."""

    def __init__(self, model: SGLangModel) -> None:
        self._model = model
        self.forwards = 0

    async def rows(self, ids: Ids, start: int, *, logits: bool = False) -> torch.Tensor:
        rows = await self._model.rows(list(ids), start, "logits" if logits else "logprobs")
        self.forwards += 1
        return rows

    async def draft(self, ids: Ids, count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        prefix, parts = list(ids), []
        while True:
            draft = await self._model.draft(prefix, count - (len(prefix) - len(ids)), params, eos)
            if not draft.tokens:
                raise InternalError(f"the SGLang server of model {self._model.info.name} drafted nothing")
            parts.append(draft.rows)
            prefix += draft.tokens
            self.forwards += len(draft.tokens)
            # The model has ends of its own, which need not be among the caller's.
            if prefix[-1] in eos or len(prefix) == len(ids) + count:
                return Draft(prefix[len(ids) :], parts[0] if len(parts) == 1 else torch.cat(parts))


def _checked(shared: torch.Tensor) -> torch.Tensor:
    """A copy. Raises InternalError for NaN: a row nobody wrote, or what the model makes when its numbers overflow."""
    rows = shared.clone()
    if rows.isnan().any():
        raise InternalError("a row is missing: the model gave NaN (its numbers overflow), or the plugin was not there")
    return rows


async def _beside(size: int, function: Any, *args: Any) -> Any:
    return await asyncio.to_thread(function, *args) if size > _LARGE else function(*args)
