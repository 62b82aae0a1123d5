"""A key-value cache of slots: static tensors, one slot per sequence, each with its own length.

Writes go to the positions a sequence's tokens have, reads are masked by position, so rolling a sequence back is merely
forgetting: what lies beyond a sequence's length is never attended to and is overwritten when its positions come again.
Sliding-window layers keep all positions and differ only in their mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from workers.backends.hf.attention import FOLDED
from workers.backends.hf.graphs import Graphs, Recorder, Shape

_BUCKET = 64


@dataclass(slots=True)
class Slot:
    """A place in the cache: which tokens' keys and values it holds."""

    index: int
    ids: list[int] = field(default_factory=list)

    def shared_prefix(self, ids: list[int]) -> int:
        """How many leading tokens of `ids` the slot holds."""
        limit = min(len(self.ids), len(ids))
        held = self.ids[:limit]  # a copy: the engine's thread may change the slot's own meanwhile
        limit = len(held)
        if held == ids[:limit]:
            return limit
        return next(i for i in range(limit) if held[i] != ids[i])


@dataclass(slots=True)
class _Pass:
    """Where one forward pass reads and writes."""

    rows: torch.Tensor  # [n, 1]: the slot of each row
    slots: slice | torch.Tensor  # of the rows: a slice where they are neighbours, which reads without a copy
    positions: slice | torch.Tensor  # of the new tokens: a slice where all rows have the same, else [n, t]
    length: int  # positions 0..length-1 are read


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, `[slots, heads, capacity, head_dim]`."""

    is_sliding = False

    def __init__(self, store: SlotCache) -> None:
        super().__init__()
        self.store = store

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def empty(states: torch.Tensor) -> torch.Tensor:
            shape = (self.store.slots, states.shape[1], self.store.capacity, states.shape[-1])
            return torch.zeros(shape, dtype=states.dtype, device=states.device)

        self.keys, self.values = empty(key_states), empty(value_states)
        self.is_initialized = True

    def grow(self, capacity: int) -> None:
        """Nothing is changed unless both fit; a layer that has grown already is left alone."""
        if self.is_initialized and capacity > self.keys.shape[2]:
            more = capacity - self.keys.shape[2]
            keys, values = (torch.nn.functional.pad(states, (0, 0, 0, more)) for states in (self.keys, self.values))
            self.keys, self.values = keys, values

    def clear(self, slot: int) -> None:
        if self.is_initialized:
            self.keys[slot] = 0
            self.values[slot] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        if self.is_initialized:
            for states in (self.keys, self.values):
                states[target, :, :length] = states[source, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self.store.current
        for states, new in ((self.keys, key_states), (self.values, value_states)):
            if isinstance(at.positions, slice):
                states[at.slots, :, at.positions] = new
            else:
                states.transpose(1, 2)[at.rows, at.positions] = new.transpose(1, 2)
        return self.keys[at.slots, :, : at.length], self.values[at.slots, :, : at.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.store.current.length, 0

    def get_seq_length(self) -> int:
        return 0  # every pass passes its own positions and mask

    def get_max_length(self) -> int:
        return self.store.capacity


def cache_keyword(model: Any) -> str:
    """What the model's `forward` calls its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's forward names nothing
    return "cache" if "cache" in inspect.signature(plain.forward).parameters else "past_key_values"


class SlotCache:
    """The cache of one model and the forward passes through it.

    Passes have at least `least` tokens a row, the rest filled, and attention reads multiples of `bucket` positions. Of
    a pass the model is run within `scope`. With `make_recorder` small passes are recorded and replayed.
    """

    def __init__(
        self,
        model: Any,
        slots: int,
        max_len: int,
        least: int = 1,
        bucket: int | None = None,
        scope: Callable[[], AbstractContextManager[Any]] = nullcontext,
        make_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        config = model.config.get_text_config()
        self.slots, self.max_len, self.capacity, self.least = slots, max_len, 0, least
        self.current: _Pass
        self._model, self._scope = model, scope
        self._bucket = bucket or _BUCKET
        self._layers = [_SlotLayer(self) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)
        self._keyword = cache_keyword(model)
        if config._attn_implementation not in ("sdpa", "eager", FOLDED):
            raise ValueError(f"attention {config._attn_implementation!r} takes no mask of ours; use sdpa or eager")
        self._eager = config._attn_implementation == "eager"
        self._window: int | None = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or [])
        unknown = kinds - {"full_attention", "sliding_attention"}
        if unknown:
            raise ValueError(f"its layers keep a state that cannot be rolled back: {', '.join(sorted(unknown))}")
        if "local" in getattr(config, "attention_layers", ()):
            raise ValueError("its local attention counts positions from the end of the keys, of which passes have more")
        if not kinds:
            kinds = {"sliding_attention" if self._window else "full_attention"}
        self._kinds = kinds
        self.device: torch.device = model.device
        self.graphs: Graphs | None = None
        if make_recorder is not None:
            self.graphs = Graphs(make_recorder, self._recorded_pass, self.device, self._bucket)

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        """Give `target` the first `length` tokens of `source`."""
        for layer in self._layers:
            layer.copy(source.index, target.index, length)
        target.ids = source.ids[:length]

    def forward(
        self, slots: list[Slot], tokens: list[list[int]], starts: list[int], keeps: list[int], decoder: Any = None
    ) -> list[torch.Tensor]:
        """One forward pass over the new tokens of several slots: logits `[keeps[i], columns]` of each.

        Row i's tokens take positions `starts[i]`...; they see their own sequence up to themselves. Logits of the last
        `keeps[i]` tokens come back, in the model's own dtype. Shorter rows are filled up on the right: what the filling
        writes lies beyond the row's length, where nothing attends before it is overwritten. With `decoder`, the model
        without its head, hidden states `[keeps[i], H]` come back instead.
        """
        count = max(self.least, *map(len, tokens))
        replayed = self.graphs.filled(len(slots), count) if self.graphs is not None and decoder is None else None
        count = replayed or count
        filled = [new + new[-1:] * (count - len(new)) for new in tokens]
        end = max(starts) + count
        self._reserve(end)
        indices = [slot.index for slot in slots]
        for slot, new, start in zip(slots, tokens, starts, strict=True):
            slot.ids[start:] = new
        if self.graphs is not None and replayed is not None:
            skipped = 0
            logits = self.graphs.logits(indices, starts, filled, self.capacity)
        else:
            skipped = min(len(new) - keep for new, keep in zip(tokens, keeps, strict=True))
            positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(count, device=self.device)
            rows = torch.tensor(indices, device=self.device)[:, None]
            neighbours = indices == list(range(indices[0], indices[0] + len(indices)))
            alike = starts.count(starts[0]) == len(starts)
            self.current = _Pass(
                rows,
                slice(indices[0], indices[0] + len(indices)) if neighbours else rows[:, 0],
                slice(starts[0], end) if alike else positions,
                min(-(-end // self._bucket) * self._bucket, self.capacity),
            )
            logits = self._pass(torch.tensor(filled, device=self.device), positions, skipped, decoder)
        return [
            row[len(new) - keep - skipped : len(new) - skipped]
            for row, new, keep in zip(logits, tokens, keeps, strict=True)
        ]

    def _recorded_pass(self, shape: Shape, given: torch.Tensor) -> torch.Tensor:
        """As `Graphs` wants it."""
        rows, positions = given[:, :1], given[:, 1:2] + torch.arange(shape.tokens, device=self.device)
        slots = slice(0, shape.rows) if shape.in_place else rows[:, 0]
        self.current = _Pass(rows, slots, positions, shape.length)
        return self._pass(given[:, 2:], positions, 0)

    def _pass(self, ids: torch.Tensor, positions: torch.Tensor, skipped: int, decoder: Any = None) -> torch.Tensor:
        """Logits or hidden states `[n, t - skipped, ...]` of tokens `[n, t]`, read and written where `current` says."""
        inputs = {
            "input_ids": ids,
            "attention_mask": self._masks(positions, self.current.length),
            "position_ids": positions.clamp(max=self.max_len - 1),  # of fillings alone
            "use_cache": True,
            self._keyword: self._cache,
        }
        found: torch.Tensor
        with self._scope():
            if decoder is None:
                found = self._model(**inputs, logits_to_keep=ids.shape[1] - skipped).logits
            else:
                found = decoder(**inputs).last_hidden_state[:, skipped:]
        return found

    def forget(self, slots: list[Slot]) -> None:
        """After a pass that failed half-way, nothing is known of what these slots hold."""
        for slot in slots:
            slot.ids = []

    def clear(self, slot: Slot) -> None:
        """Nothing a sequence left behind may reach another: masked away or not, NaN times 0 is NaN."""
        slot.ids = []
        for layer in self._layers:
            layer.clear(slot.index)

    def _reserve(self, length: int) -> None:
        if length > self.capacity:
            if self.graphs is not None:
                self.graphs.clear()
            wanted = max(length, 2 * self.capacity, 4 * self._bucket)
            most = max(length, self.max_len + self._bucket)
            capacity = -(-min(wanted, most) // self._bucket) * self._bucket
            for layer in self._layers:
                layer.grow(capacity)
            self.capacity = capacity  # only now: memory may have run out half-way

    def _masks(self, positions: torch.Tensor, length: int) -> Any:
        keys = torch.arange(length, device=self.device)
        seen = keys[None, None] <= positions[:, :, None]
        masks = {"full_attention": seen}
        if self._window:
            masks["sliding_attention"] = seen & (positions[:, :, None] - keys[None, None] < self._window)
        ready = {kind: self._as_bias(masks[kind][:, None]) for kind in self._kinds}
        # Models with one kind of layer take one mask, models with two a mask for each.
        return ready if len(ready) > 1 else next(iter(ready.values()))

    def _as_bias(self, mask: torch.Tensor) -> torch.Tensor:
        if not self._eager:
            return mask
        # Eager attention adds its mask.
        bias = torch.zeros(mask.shape, dtype=self._model.dtype, device=self.device)
        return bias.masked_fill_(~mask, torch.finfo(self._model.dtype).min)
