"""The one thread that touches the models of a pair.

Sequences ask from the event loop; the thread takes all that is pending, runs what can share a forward pass as one
batch, and hands the results back together, so that sequences in step stay in step.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from rl_onoff.errors import OnOffError, ShuttingDown, WorkerLost
from workers import device, threads
from workers.backends.base import is_bulk
from workers.backends.hf.calls import BatchedModel, ComputeCall, DraftCall, RowsCall, look_together

logger = logging.getLogger("rl_onoff.worker")

T = TypeVar("T")

Call = RowsCall | ComputeCall
Settled = tuple[asyncio.Future[Any], Any, BaseException | None]

#: How long a call waits for those of the other sequences in flight, in seconds.
_GATHER = 0.001
#: More new tokens than this are a prefill or a long score: no draft is judged with them.
_JUDGED = 32


class Engine:
    """Works from its making to `close`; calls pending then fail, and later ones at once.

    After an error of the accelerator itself, such as an illegal address, every later call of it fails too, and memory
    cannot be trusted: all calls fail with WorkerLost, and `until_lost` returns it, for the process to end.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._lost: concurrent.futures.Future[WorkerLost] = concurrent.futures.Future()
        self._in_flight: Counter[int] = Counter()  # open sequences of each model
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._closed: OnOffError | None = None
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    def opened(self, model: BatchedModel) -> None:
        self._in_flight[id(model)] += 1

    def closed(self, model: BatchedModel) -> None:
        self._in_flight[id(model)] -= 1

    async def submit(self, call: Call) -> Any:
        self._calls.put(call)
        if self._closed is not None:  # nobody may be there to take it; before that is said, all there is gets refused
            call.future.cancel()
            raise self._closed
        return await call.future

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        future = asyncio.get_running_loop().create_future()
        result: T = await self.submit(ComputeCall(partial(function, *args), future, is_bulk(function)))
        return result

    async def until_lost(self) -> WorkerLost:
        return await asyncio.shield(asyncio.wrap_future(self._lost))

    async def close(self) -> None:
        self._closed = self._closed or ShuttingDown("the worker is shutting down")
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        pending: list[RowsCall] = []
        bulk: list[ComputeCall] = []  # one a turn, after the pass: nobody's next token waits for it
        answered = 0  # calls just handed back: what they lead to is worth waiting for
        with torch.inference_mode():
            while True:
                fresh, end = self._take(len(pending) + len(bulk), answered)
                pending += [call for call in fresh if isinstance(call, RowsCall)]
                computes = [call for call in fresh if isinstance(call, ComputeCall) and not call.bulk]
                bulk += [call for call in fresh if isinstance(call, ComputeCall) and call.bulk]
                if end:
                    self._refuse([*pending, *computes, *bulk])
                    return
                self._deliver([(call.future, *_attempt(call.run)) for call in computes])
                answered = len(computes)
                pending = [call for call in pending if not call.future.cancelled()]
                bulk = [call for call in bulk if not call.future.cancelled()]
                if not answered and not self._lost.done():
                    if pending:
                        pending, answered = self._step(pending)
                    if bulk:
                        call = bulk.pop(0)
                        self._deliver([(call.future, *_attempt(call.run))])
                if self._lost.done():
                    self._refuse([*pending, *bulk])
                    return

    def _take(self, pending: int, answered: int) -> tuple[list[Call], bool]:
        """All calls there are, and whether the end has come.

        With nothing pending it waits for a first one; then, or after calls were answered, a moment for as many as
        sequences are in flight, or they would drift apart into ever smaller batches.
        """
        calls: list[Call] = []
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
                return calls, False
            if call is None:
                return calls, True
            calls.append(call)

    def _step(self, pending: list[RowsCall]) -> tuple[list[RowsCall], int]:
        """One pass for every shape of short calls, and of each model one of long ones; those that need more come back.

        So who decodes waits for one prefill at a time, and prefills take turns. Also returned: of how many drafts that
        are complete now others await the judging.
        """
        groups: dict[tuple[int, int], list[RowsCall]] = defaultdict(list)
        long: dict[int, int] = {}  # the shape of each model's pass of long calls
        unfinished: list[RowsCall] = []
        finished: list[Settled] = []
        drafted = 0
        planned: list[tuple[RowsCall, int]] = []
        for call in pending:
            shape, error = _attempt(partial(call.model.shape, call))
            if error is not None or shape is None:
                finished.append((call.future, None, error))
            else:
                planned.append((call, shape))
        # Of drafts whose prompt is yet to be computed nobody knows when they are complete.
        rests = [call.remaining for call, shape in planned if isinstance(call, DraftCall) and shape <= _JUDGED]
        for call, shape in planned:
            if _may_wait(call, shape, rests):
                call.waited += 1
                unfinished.append(call)
            elif abs(shape) > _JUDGED and not _has_room(groups, call, long.setdefault(id(call.model), shape), shape):
                unfinished.append(call)
            else:
                groups[id(call.model), shape].append(call)
        for calls in groups.values():
            self.steps += 1
            calls.sort(key=lambda call: call.slot.index)  # neighbouring slots are read in place
            batch, error = _attempt(partial(calls[0].model.forward, calls))
            answers = _absorbed(calls, batch) if batch is not None else []
            for call, (answer, own) in zip(calls, answers or [(None, None)] * len(calls), strict=True):
                call.passes += 1
                if error is not None:
                    finished.append((call.future, None, error))
                    continue
                if own is not None:
                    call.model.discard(call)
                if answer is None and own is None:
                    unfinished.append(call)
                else:
                    finished.append((call.future, answer, own))
                    drafted += isinstance(call, DraftCall)
        self._deliver(finished)
        return unfinished, drafted if any(call.waited for call in unfinished) else 0

    def _refuse(self, calls: Sequence[Call]) -> None:
        """These calls and all that are waiting."""
        refused = list(calls)
        while not self._calls.empty():
            call = self._calls.get()
            if call is not None:
                refused.append(call)
        self._deliver([(call.future, None, self._closed) for call in refused])

    def _deliver(self, results: list[Settled]) -> None:
        broken = [error for *_, error in results if isinstance(error, torch.AcceleratorError)]
        if broken:
            logger.error("the accelerator failed: this worker ends", exc_info=broken[0])
            self._closed = lost = WorkerLost("the accelerator failed while it held this request", retry_after=1)
            results = [(future, value, lost if error in broken else error) for future, value, error in results]

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
        if broken:
            self._lost.set_result(lost)


def _has_room(groups: dict[tuple[int, int], list[RowsCall]], call: RowsCall, chosen: int, shape: int) -> bool:
    """Whether a pass of long calls of shape `chosen` can take one of `shape`, too."""
    beside = len(groups[id(call.model), chosen])
    return shape == chosen and (beside + 1) * abs(shape) <= max(abs(shape), call.model.pass_tokens)


def _may_wait(call: RowsCall, shape: int, rests: list[int]) -> bool:
    """Whether a draft is better judged a little later, in one pass with others that are about to be complete.

    It waits no longer than it took to draft it, and never for drafts that take longer than that.
    """
    judges = call.wanted > 1 and 1 < shape <= _JUDGED and not isinstance(call, DraftCall)
    return judges and call.waited < call.wanted and any(rest <= call.wanted for rest in rests)


def _absorbed(calls: list[RowsCall], batch: list[torch.Tensor]) -> list[tuple[Any, BaseException | None]]:
    """What each call makes of its rows: drawing from them is done side by side."""

    def look(begin: int, end: int) -> list[BaseException | None]:
        return [
            _attempt(partial(call.look, rows))[1] for call, rows in zip(calls[begin:end], batch[begin:end], strict=True)
        ]

    drafts = zip(calls, batch, strict=True)
    entries = sum(rows.numel() for call, rows in drafts if isinstance(call, DraftCall) and call.complete)
    worth = entries >= 4 * threads.WORTH  # after a pass the library's own threads keep the processors for a while
    if all(device.reaches(rows) for rows in batch):
        looked, failed = _attempt(partial(look_together, calls, batch))
        errors = [failed] * len(calls) if looked is None else looked
    else:
        parts = threads.in_parts(look, len(calls), threads.processors() if worth else 1)
        errors = [error for part in parts for error in part]
    return [
        (None, error) if error is not None else _attempt(partial(call.absorb, rows))
        for call, rows, error in zip(calls, batch, errors, strict=True)
    ]


def _attempt(run: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """The result, or what was raised: it belongs to the caller that asked, not to this thread."""
    try:
        return run(), None
    except StopIteration as error:  # a future refuses to carry it
        return None, RuntimeError(str(error))
    except Exception as error:
        return None, error
