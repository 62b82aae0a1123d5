"""A Hugging Face causal language model as a `LanguageModel` with continuous batching."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import torch

from rl_onoff.errors import InternalError
from workers import device
from workers.backends.base import Draft, Ids
from workers.backends.hf.calls import DraftCall, HiddenCall, RowsCall
from workers.backends.hf.engine import Engine
from workers.backends.hf.head import Head, as_rows
from workers.backends.hf.slots import Slot, SlotCache
from workers.wire import ModelInfo, SamplingParams

#: Tokens of a long prefix computed in one forward pass.
PREFILL_CHUNK = 512
#: Two to this many new tokens of a sequence share a pass with those of others, the shorter filled up.
RAGGED = 32
#: Tokens of a pass of prefills, or of a comparison's items: on a GPU more of them are computed in little more time.
PASS_TOKENS = {"cpu": PREFILL_CHUNK, "cuda": 4 * PREFILL_CHUNK}


class HFModel:
    """One model, or one side of a LoRA pair: `scope` is entered around its head, as around the passes of its `cache`.

    Rows are handed out on the device `meeting`: those of two models on two GPUs are compared on one of them.
    """

    def __init__(
        self,
        info: ModelInfo,
        engine: Engine,
        cache: SlotCache,
        scope: Callable[[], AbstractContextManager[Any]] = nullcontext,
        head: Head | None = None,
        meeting: torch.device | None = None,
    ) -> None:
        self.info = info
        self._meeting = meeting or cache.device
        self.head = head
        self.engine = engine
        self._scope = scope
        self._cache = cache
        self._free = [Slot(i) for i in range(cache.slots)]
        self._busy: list[Slot] = []
        self._places = asyncio.Semaphore(cache.slots)
        self._clock = itertools.count()
        self.pass_tokens = PASS_TOKENS.get(cache.device.type, PREFILL_CHUNK)
        #: Whether rows of a pass are normalised together: on a GPU each kernel's launch costs more than the copy.
        self.joins = cache.device.type == "cuda"
        self._last_used: dict[int, int] = {}

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[HFSequence]:
        async with self._places:
            self.engine.opened(self)
            sequence = HFSequence(self)
            try:
                yield sequence
            finally:
                self.engine.closed(self)
                if sequence.slot is not None:
                    self._busy.remove(sequence.slot)
                    self._free.append(sequence.slot)

    def take_slot(self, ids: list[int]) -> Slot:
        """A free slot, holding as much of `ids` as any slot does. Called in the event loop.

        There is one: `sequence` admits no more sequences than there are slots.
        """
        held = {slot.index: slot.shared_prefix(ids) for slot in [*self._free, *self._busy]}
        slot = max(self._free, key=lambda s: (held[s.index], -self._last_used.get(s.index, -1)))
        self._free.remove(slot)
        self._busy.append(slot)
        self._last_used[slot.index] = next(self._clock)
        return slot

    # In the engine's thread:

    def adopt(self, slot: Slot, ids: list[int]) -> None:
        """Copy the longest prefix of `ids` another slot holds, where that is longer than the slot's own."""
        own = slot.shared_prefix(ids)
        donor = max(
            (s for s in [*self._free, *self._busy] if s is not slot), key=lambda s: s.shared_prefix(ids), default=slot
        )
        length = donor.shared_prefix(ids)
        if length > own:
            self._cache.copy(donor, slot, length)

    def shape(self, call: RowsCall) -> int:
        call.first = min(call.slot.shared_prefix(call.ids), call.start - 1)
        if call.start - 1 - call.first >= PREFILL_CHUNK:
            call.end, call.keep = call.first + PREFILL_CHUNK, 1
        else:
            call.end, call.keep = len(call.ids), call.wanted
        count = call.end - call.first
        if isinstance(call, HiddenCall):
            return -_filled(count)  # never one batch with calls that want rows
        return count if count == 1 or count > RAGGED else RAGGED

    def forward(self, calls: list[RowsCall]) -> list[torch.Tensor]:
        slots = [call.slot for call in calls]
        tokens = [call.ids[call.first : call.end] for call in calls]
        starts, keeps = [call.first for call in calls], [call.keep for call in calls]
        decoder = self.head.decoder if self.head is not None and isinstance(calls[0], HiddenCall) else None
        try:
            logits = self._cache.forward(slots, tokens, starts, keeps, decoder)
        except Exception:
            self._cache.forget(slots)
            raise
        if self.joins and not any(call.logits or isinstance(call, HiddenCall) for call in calls):
            return list(torch.split_with_sizes(self._rows(torch.cat(logits), False), [len(rows) for rows in logits]))
        return [
            row if isinstance(call, HiddenCall) else self._rows(row, call.logits)
            for row, call in zip(logits, calls, strict=True)
        ]

    def discard(self, call: RowsCall) -> None:
        self._cache.clear(call.slot)

    def logits(self, hidden: torch.Tensor) -> Any:
        """Of hidden states `[n, H]`: `[n, columns]`, as `measures.values` takes them."""
        if self.head is None:
            raise InternalError(f"model {self.info.name} was not taken apart")
        with self._scope():
            logits = self.head.logits(hidden)
        return logits if device.reaches(logits) else as_rows(logits)

    def _rows(self, logits: torch.Tensor, raw: bool) -> torch.Tensor:
        cut = logits[:, : self.info.vocab_size].float()
        return (cut if raw else cut.log_softmax(-1)).to(self._meeting)


def _filled(count: int) -> int:
    """To how many tokens an item is filled up to share a pass with others of about its length: by a quarter at most."""
    if count <= RAGGED:
        return RAGGED
    step: int = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


class HFSequence:
    """A `CachedSequence` over a slot, taken with the first call: only then is it known which slot fits best."""

    def __init__(self, model: HFModel) -> None:
        self._model = model
        self.slot: Slot | None = None
        self.forwards = 0

    async def rows(self, ids: Ids, start: int, *, logits: bool = False) -> torch.Tensor:
        own = list(ids)
        slot = await self._place(own)
        call = RowsCall(self._model, slot, own, start, logits, _future())
        rows: torch.Tensor = await self._model.engine.submit(call)
        self.forwards += call.passes
        return rows

    async def hidden(self, ids: Ids, start: int) -> torch.Tensor:
        """Hidden states from which rows `start`..`len(ids)` follow: `[len(ids) - start + 1, H]`."""
        own = list(ids)
        slot = await self._place(own)
        call = HiddenCall(self._model, slot, own, start, False, _future())
        states: torch.Tensor = await self._model.engine.submit(call)
        self.forwards += call.passes
        return states

    async def draft(self, ids: Ids, count: int, params: SamplingParams, eos: frozenset[int]) -> Draft:
        own = list(ids)
        slot = await self._place(own)
        call = DraftCall(self._model, slot, own, len(own), False, _future(), count, params, eos)
        draft: Draft = await self._model.engine.submit(call)
        self.forwards += call.passes
        return draft

    async def _place(self, ids: list[int]) -> Slot:
        if self.slot is None:
            self.slot = self._model.take_slot(ids)
            await self._model.engine.compute(self._model.adopt, self.slot, ids)
        return self.slot


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
