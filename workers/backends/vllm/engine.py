"""The one thread that drives the vLLM engines of a pair.

The engines live in this process, so rows of A and B meet on the device without a copy. vLLM keeps the context of a
forward pass in a global of the process: engines that share one are stepped in turn, never at the same time. Each
engine batches all the requests it holds; a step of an engine is one forward pass of it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import torch
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.worker import workspace

from rl_onoff.errors import InternalError, OnOffError, ShuttingDown, WorkerLost
from workers.backends.vllm.calls import Answer, ComputeCall, News, RequestCall
from workers.backends.vllm.extension import KEY
from workers.costs import FittedCosts

logger = logging.getLogger("rl_onoff.worker")

T = TypeVar("T")

Call = RequestCall | ComputeCall
Settled = tuple[Call, Any, BaseException | None]

#: How long the first call of a new round waits for those of the other sequences in flight, in seconds.
_GATHER = 0.001
#: A request for more rows than this judges no draft: its passes say nothing about those that do.
_JUDGED = 32


class Driver:
    """Works from its making to `close`; calls pending then fail, and later ones at once.

    When an engine fails, which no request of ours should bring about, nothing it holds can be trusted any more: all
    calls fail with WorkerLost, and `until_lost` returns it, for the process to end.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._in_flight: Counter[int] = Counter()  # open sequences of each model
        self._lost: concurrent.futures.Future[WorkerLost] = concurrent.futures.Future()
        self._engines: list[Any] = []
        self._costs: dict[int, FittedCosts] = {}
        self._workspaces: dict[int, Any] = {}  # vLLM keeps one for the process: that of the engine made last
        self._active: dict[str, RequestCall] = {}
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._closed: OnOffError | None = None
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self._thread.start()

    def opened(self, model: object) -> None:
        self._in_flight[id(model)] += 1

    def closed(self, model: object) -> None:
        self._in_flight[id(model)] -= 1

    async def submit(self, call: Call) -> Any:
        self._calls.put(call)
        if self._closed is not None:  # nobody may be there to take it; before that is said, all there is gets refused
            call.future.cancel()
            raise self._closed
        return await call.future  # type: ignore[misc]

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        future = asyncio.get_running_loop().create_future()
        result: T = await self.submit(ComputeCall(partial(function, *args), future))
        return result

    def here(self, function: Callable[..., T], *args: Any) -> T:
        """As `compute`, for callers without an event loop: they wait."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._calls.put(ComputeCall(partial(function, *args), future))
        return future.result()

    def add(self, engine: Any) -> None:
        """Drive an engine, from now on. Called in the thread."""
        self._engines.append(engine)
        self._workspaces[id(engine)] = workspace._manager
        self._costs[id(engine)] = FittedCosts()

    def costs(self, engine: Any) -> FittedCosts:
        """What its passes cost by the rows asked of them; what else a pass computes of a prefix counts as its base."""
        return self._costs[id(engine)]

    async def until_lost(self) -> WorkerLost:
        return await asyncio.shield(asyncio.wrap_future(self._lost))

    async def close(self) -> None:
        self.stop()
        await asyncio.to_thread(self._thread.join)

    def stop(self) -> None:
        self._closed = self._closed or ShuttingDown("the worker is shutting down", retry_after=1)
        self._calls.put(None)

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                while self._round():
                    pass
            except Exception:  # the reason is for the log
                logger.exception("vLLM failed: this worker ends")
                self._closed = lost = WorkerLost("the engine failed while it held this request", retry_after=1)
                self._refuse()
                self._lost.set_result(lost)
                return
            self._refuse()
            for engine in self._engines[:-1]:
                engine.model_executor.shutdown()
            for engine in self._engines[-1:]:
                engine.engine_core.shutdown()  # and with it what all of them hold of the process

    def _round(self) -> bool:
        calls, end = self._take()
        settled: list[Settled] = []
        for call in calls:
            if isinstance(call, ComputeCall):
                settled.append((call, *_attempt(call.run)))
            else:
                _, error = _attempt(partial(self._add, call))
                if error is not None:
                    settled.append((call, None, error))
        self._deliver(settled)
        if end:
            return False
        self._abort([call for call in self._active.values() if call.future.cancelled()])
        for engine in self._engines:
            if engine.has_unfinished_requests():
                self._step(engine)
        return True

    def _take(self) -> tuple[list[Call], bool]:
        """All calls there are, and whether the end has come.

        With nothing to do it waits for a first one, then a moment for as many as there are sequences in flight, or
        they would drift apart into ever smaller batches.
        """
        calls: list[Call] = []
        deadline = 0.0
        while True:
            idle = not self._active and not calls
            expected = max(self._in_flight.values(), default=0) - len(self._active)
            left = deadline - time.monotonic() if len(calls) < expected else 0.0
            try:
                call = self._calls.get() if idle else self._calls.get(block=left > 0, timeout=max(left, 0.0))
            except queue.Empty:
                return calls, False
            if call is None:
                return calls, True
            if not calls and not self._active:
                deadline = time.monotonic() + _GATHER
            calls.append(call)
            if isinstance(call, ComputeCall):
                return calls, False

    def _add(self, call: RequestCall) -> None:
        if call.future.cancelled():
            return
        params = SamplingParams(
            max_tokens=call.count,
            min_tokens=2 if call.wish.switch else 0,  # the first is the prompt's last, which may be a stop
            temperature=0.0,
            ignore_eos=True,
            stop_token_ids=list(call.stop),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if call.progress else RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=False,
            extra_args={KEY: msgspec.to_builtins(call.wish)},
        )
        number = str(next(self._numbers))
        prompt = {"prompt_token_ids": call.ids}
        call.request_id = call.engine.add_request(number, prompt, params, lora_request=call.adapter)
        self._active[number] = call

    def _abort(self, calls: list[RequestCall]) -> None:
        for call in calls:
            call.engine.abort_request([call.request_id], internal=True)
            call.engine.collective_rpc("onoff_drop", args=([call.request_id],))
        gone = set(map(id, calls))
        if gone:
            self._active = {number: call for number, call in self._active.items() if id(call) not in gone}

    def _step(self, engine: Any) -> None:
        self.steps += 1
        calls = [call for call in self._active.values() if call.engine is engine]
        workspace._manager = self._workspaces[id(engine)]
        begin = time.perf_counter()
        outputs = [(self._active[o.request_id], o) for o in engine.step() if o.request_id in self._active]
        settled = self._tell(engine, [(call, output) for call, output in outputs if call.progress])
        failed = {id(call) for call, *_ in settled}
        self._abort([call for call, output in outputs if id(call) in failed and not output.finished])
        for call, output in outputs:
            if output.finished:
                del self._active[output.request_id]
                if id(call) not in failed:
                    settled.append((call, *_attempt(partial(_answer, call, output))))
        self._deliver(settled)
        # A single row, as of lock-step, costs its block's other tokens too: it would pass for a slow step of a draft.
        if all(call.wish.start is None or 1 < call.wanted <= _JUDGED for call in calls):
            self._costs[id(engine)].observe(sum(call.wanted for call in calls), time.perf_counter() - begin)

    def _tell(self, engine: Any, outputs: list[tuple[RequestCall, Any]]) -> list[Settled]:
        """Hand on the latest tokens of requests that want them at once; those that failed, or can go no further."""
        if not outputs:
            return []
        failed: list[Settled] = []
        told: dict[asyncio.AbstractEventLoop, list[tuple[RequestCall, News]]] = {}
        news = engine.collective_rpc("onoff_news", args=([call.request_id for call, _ in outputs],))[0]
        for (call, output), latest in zip(outputs, news, strict=True):
            if latest.error is not None:
                failed.append((call, None, InternalError(latest.error)))
            elif latest.cut:
                failed.append((call, Answer([], None, 0), None))
            elif isinstance(call.future, asyncio.Future):
                tokens = list(output.outputs[0].token_ids)
                told.setdefault(call.future.get_loop(), []).append(
                    (call, News(tokens, latest.described, latest.rounds))
                )
        for loop, entries in told.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell_all, entries)
        return failed

    def _refuse(self) -> None:
        calls: list[Call] = list(self._active.values())
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is not None:
                calls.append(call)
        self._deliver([(call, None, self._closed) for call in calls])

    @staticmethod
    def _deliver(settled: list[Settled]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Settled]] = {}
        for entry in settled:
            future = entry[0].future
            if isinstance(future, asyncio.Future):
                loops.setdefault(future.get_loop(), []).append(entry)
            else:
                _settle([entry])
        for loop, entries in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, entries)


def _answer(call: RequestCall, output: Any) -> Answer:
    # Rank 0 has all rows; what the other ranks of a tensor-parallel engine kept is the same, and stays there.
    taken = call.engine.collective_rpc("onoff_take", args=(call.request_id,))[0]
    if taken.error is not None:
        raise InternalError(taken.error)
    if call.progress:
        return Answer([], None, taken.passes)
    tokens = list(output.outputs[0].token_ids)
    if taken.rows is None or (call.wish.sampling is not None and len(taken.rows) != len(tokens)):
        raise InternalError("vLLM ended a request without its rows")
    return Answer(tokens, taken.rows, taken.passes)


def _settle(settled: list[Settled]) -> None:
    for call, value, error in settled:
        if call.future.done():
            continue
        if error is not None:
            call.future.set_exception(error)
        else:
            call.future.set_result(value)


def _tell_all(entries: list[tuple[RequestCall, News]]) -> None:
    for call, news in entries:
        if call.progress and not call.future.done():
            call.progress(news)


def _attempt(run: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """The result, or what was raised: it belongs to the caller that asked, not to this thread."""
    try:
        return run(), None
    except StopIteration as error:  # a future refuses to carry it
        return None, RuntimeError(str(error))
    except Exception as error:
        return None, error
