"""The one thread that touches the models of a pair.

Sequences ask from the event loop; the thread takes all that is pending, runs what can share a forward pass as one
batch, and hands the results back together, so that sequences in step stay in step.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from workers.backends.base import Draft
from workers.sampling import choose
from workers.wire import SamplingParams

T = TypeVar("T")

#: How long a call waits for those of the other sequences in flight, in seconds.
_GATHER = 0.001


#: Steps a call of several tokens waits for drafts in the making.
_PATIENCE = 16


class BatchedModel(Protocol):
    """A model that can run calls of one shape as one forward pass."""

    def shape(self, call: RowsCall) -> int:
        """Calls of equal shape share a pass; 1 is a single new token. Called in the engine's thread, once per pass."""
        ...

    def forward(self, calls: list[RowsCall]) -> list[torch.Tensor | None]:
        """One pass for calls of one shape: their rows, or None for a call that needs further passes."""
        ...


@dataclass(slots=True, eq=False)
class RowsCall:
    """Rows `start`..`len(ids)` of one sequence."""

    model: BatchedModel
    slot: Any
    ids: list[int]
    start: int
    logits: bool
    future: asyncio.Future[Any]
    waited: int = field(default=0, init=False)

    def absorb(self, rows: torch.Tensor) -> Any:
        """The answer, once these rows complete it; None if the call goes on."""
        return rows


@dataclass(slots=True, eq=False)
class DraftCall(RowsCall):
    """The next `count` tokens, each drawn here as soon as its row is there."""

    count: int
    params: SamplingParams
    eos: frozenset[int]
    drawn: list[torch.Tensor] = field(default_factory=list)

    def absorb(self, rows: torch.Tensor) -> Draft | None:
        token = choose(rows, self.params, [len(self.ids)])[0]
        self.drawn.append(rows)
        self.ids.append(token)
        self.start = len(self.ids)
        if len(self.drawn) < self.count and token not in self.eos:
            return None
        return Draft(self.ids[-len(self.drawn) :], torch.cat(self.drawn))


@dataclass(slots=True, eq=False)
class ComputeCall:
    run: Callable[[], Any]
    future: asyncio.Future[Any]


class Engine:
    """Start it with the first call, `close` it at the end; calls pending then are cancelled."""

    def __init__(self) -> None:
        self.steps = 0
        self._in_flight: Counter[int] = Counter()  # open sequences of each model
        self._calls: queue.SimpleQueue[RowsCall | ComputeCall | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    def opened(self, model: BatchedModel) -> None:
        self._in_flight[id(model)] += 1

    def closed(self, model: BatchedModel) -> None:
        self._in_flight[id(model)] -= 1

    async def submit(self, call: RowsCall) -> Any:
        self._calls.put(call)
        return await call.future

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put(ComputeCall(partial(function, *args), future))
        return await future

    async def close(self) -> None:
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        pending: list[RowsCall] = []
        answered = 0  # computations just handed back: what they lead to is worth waiting for
        with torch.inference_mode():
            while True:
                fresh = self._take(len(pending), answered)
                if fresh is None:
                    return
                computes = [call for call in fresh if isinstance(call, ComputeCall)]
                self._deliver([(call.future, *_attempt(call.run)) for call in computes])
                answered = len(computes)
                pending += [call for call in fresh if isinstance(call, RowsCall)]
                pending = [call for call in pending if not call.future.cancelled()]
                if pending and not answered:
                    pending = self._step(pending)

    def _take(self, pending: int, answered: int) -> list[RowsCall | ComputeCall] | None:
        """All calls there are. None: the end.

        With nothing pending it waits for a first one; then, or after computations were answered, a moment for as many
        as sequences are in flight, or they would drift apart into ever smaller batches.
        """
        calls: list[RowsCall | ComputeCall] = []
        deadline = time.monotonic() + _GATHER if answered else 0.0
        while True:
            expected = max(self._in_flight.values(), default=0)
            left = deadline - time.monotonic() if pending + len(calls) < expected else 0.0
            try:
                if not pending and not calls:
                    call = self._calls.get()
                    deadline = time.monotonic() + _GATHER
                else:
                    call = self._calls.get(block=left > 0, timeout=max(left, 0.0))
            except queue.Empty:
                return calls
            if call is None:
                return None
            calls.append(call)

    def _step(self, pending: list[RowsCall]) -> list[RowsCall]:
        """One pass for every shape among the calls; those that need more passes come back."""
        groups: dict[tuple[int, int], list[RowsCall]] = defaultdict(list)
        unfinished: list[RowsCall] = []
        drafting = any(isinstance(call, DraftCall) for call in pending)
        for call in pending:
            shape = call.model.shape(call)
            # A draft is judged once the others in the making are there: one pass for all instead of one for each.
            if drafting and shape > 1 and call.waited < _PATIENCE and not isinstance(call, DraftCall):
                call.waited += 1
                unfinished.append(call)
            else:
                groups[id(call.model), shape].append(call)
        finished: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        for calls in groups.values():
            self.steps += 1
            calls.sort(key=lambda call: call.slot.index)  # neighbouring slots are read in place
            results, error = _attempt(partial(self._advance, calls))
            for call, answer in zip(calls, results or [None] * len(calls), strict=True):
                if answer is None and error is None:
                    unfinished.append(call)
                else:
                    finished.append((call.future, answer, error))
        self._deliver(finished)
        return unfinished

    @staticmethod
    def _advance(calls: list[RowsCall]) -> list[Any]:
        """One pass for calls of one shape: the answers it completes, None for those that go on."""
        batch = calls[0].model.forward(calls)
        return [None if rows is None else call.absorb(rows) for call, rows in zip(calls, batch, strict=True)]

    @staticmethod
    def _deliver(results: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
        def settle() -> None:
            for future, value, error in results:
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)

        if results:
            results[0][0].get_loop().call_soon_threadsafe(settle)


def _attempt(run: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """The result, or what was raised: it belongs to the caller that asked, not to this thread."""
    try:
        return run(), None
    except Exception as error:
        return None, error
