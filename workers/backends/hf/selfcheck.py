"""What is tried out when a pair is loaded: that the cache gives the model's rows and recordings what they record, how
far rounding moves rows, and what passes cost."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from rl_onoff.errors import UnsupportedModel
from rl_onoff.policy import Lead
from workers import noise, sampling
from workers.backends.hf.slots import Slot, SlotCache
from workers.costs import MeasuredCosts
from workers.wire import ModelInfo, SamplingParams

#: Tokens, and how many of them go into one pass, when rounding is measured.
_SAMPLE, _TOGETHER = 32, 8
#: The length of a longer prompt, how many of its last rows are compared, and how much longer a sequence beside it is.
_PROMPT, _LAST, _FURTHER = 300, 16, 300
#: How far logits may be off in single and in half precision, of their spread: rounding grows with them, while a wrong
#: cache is off by all of it. Some architectures compute a softmax or a norm in float32 whatever the dtype.
_TOLERANCE, _TOLERANCE_HALF = 1e-3, 0.1
#: Passes that are recorded to see whether that works: these numbers of sequences and of tokens, from these positions,
#: so many times.
_RECORDED_ROWS, _RECORDED_TOKENS, _RECORDED_STARTS, _RECORDED_TIMES = (1, 3), (1, 4), (0, 300), 4
#: Passes that are timed: this many sequences at most, with each of these numbers of tokens.
_ROWS, _TOKENS = 8, (1, 2, 4, 8, 16)
#: They are repeated until one of these is reached.
_REPEATS, _SECONDS = 5, 3.0
#: What the cache makes of a model: how many slots it is to have.
MakeCache = Callable[[int], SlotCache]


@torch.inference_mode()
def check_cache(model: Any, info: ModelInfo) -> None:
    """Refuse an architecture whose rows through the slot cache differ from a plain forward pass.

    Random tokens go in as a prefix, then one by one, then again after rolling back to another continuation.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(info.vocab_size, (2, 12), generator=generator).tolist()
    second[:5] = first[:5]
    tolerance = _tolerance(info)
    try:
        cache, slot = SlotCache(model, 2, info.max_len), Slot(1)
        for ids, start in ((first, 0), (second, 5)):
            plain = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].double()
            rows = cache.forward([slot], [ids[start:8]], [start], [8 - start])
            rows += [cache.forward([slot], [[ids[t]]], [t], [1])[0] for t in range(8, len(ids))]
            gap = (torch.cat(rows).double() - plain[start:]).std() / plain.std()
            if not gap <= tolerance:
                raise ValueError(f"its logits differ from a plain forward pass by {gap:.2g} of their spread")
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        kind = model.config.get_text_config().model_type
        raise UnsupportedModel(
            f"model {info.name} ({kind}) cannot be run with a cache that rolls back: {error}"
        ) from error


def _tolerance(info: ModelInfo) -> float:
    return _TOLERANCE if info.dtype in ("float64", "float32") else _TOLERANCE_HALF


@torch.inference_mode()
def recordings_fail(plain: MakeCache, recorded: MakeCache, info: ModelInfo) -> str | None:
    """Why passes of this model cannot be recorded and replayed, if so: they are tried, on tokens that differ each time.

    `recorded` makes a cache that records, `plain` one that does not.
    """
    generator = torch.Generator().manual_seed(0)
    caches = plain(_RECORDED_ROWS[-1]), recorded(_RECORDED_ROWS[-1])
    if (graphs := caches[1].graphs) is not None:
        graphs.rehearses = True
    found: tuple[list[torch.Tensor], ...] = ([], [])
    for rows, tokens, base in itertools.product(_RECORDED_ROWS, _RECORDED_TOKENS, _RECORDED_STARTS):
        starts = [min(base + 3 * i, info.max_len - tokens) for i in range(rows)]
        slots = [Slot(i) for i in range(rows)]
        for _ in range(_RECORDED_TIMES):
            ids = torch.randint(info.vocab_size, (rows, tokens), generator=generator).tolist()
            for cache, logits in zip(caches, found, strict=True):
                logits += cache.forward(slots, ids, starts, [tokens] * rows)
            if graphs is not None and graphs.failure is not None:
                return graphs.failure
    want, have = (torch.cat(logits).double() for logits in found)
    gap = (have - want).std() / want.std()
    return None if gap <= _tolerance(info) else f"their logits are off by {gap:.2g} of their spread"


def memory_warnings(models: Sequence[Any], infos: Sequence[ModelInfo], sequences: int) -> list[str]:
    """What an operator should know of the memory the caches may come to take: all slots grow with the longest."""
    need = 0
    for model, info in zip(models, infos, strict=True):
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
        need += per_token * info.max_len * sequences
    if infos[0].device.startswith("cuda"):
        free = torch.cuda.mem_get_info(infos[0].device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need <= free:
        return []
    return [
        f"{sequences} sequences of {infos[0].max_len} tokens would take {need / 1e9:.0f} GB of key-value cache, and "
        f"{free / 1e9:.0f} GB are free: set `sequences` or `max_len` lower, or long requests may fail"
    ]


@torch.inference_mode()
def noise_floors(makers: Sequence[MakeCache], infos: Sequence[ModelInfo], sequences: int) -> dict[str, float]:
    """How far signals move with the shape of the pass, over a text that A writes.

    Passes of one token are compared with passes of several tokens of one sequence and of several sequences; and rows at
    the end of a longer prompt computed at once with those of one that is cut, and computed beside a longer sequence.
    """
    count = min(_SAMPLE, infos[0].max_len - 1, infos[1].max_len - 1)
    prompt = _prompt(infos)
    text: list[int] = [0]
    shapes, ends = [], []
    beside = min(sequences, _ROWS)
    for make, info in zip(makers, infos, strict=True):
        cache, slots = make(beside), [Slot(i) for i in range(beside)]
        rows = partial(_rows, cache, info.vocab_size)
        alone = []
        for t in range(count):
            alone.append(rows(slots[:1], text[t : t + 1], t))
            if len(text) <= count:  # A writes, B reads
                text += sampling.choose(alone[-1], SamplingParams(), [t + 1])
        parts = [(t, text[t : min(t + _TOGETHER, count)]) for t in range(0, count, _TOGETHER)]
        many = [rows(slots[:1], tokens, t) for t, tokens in parts]
        many_beside = [rows(slots, tokens, t) for t, tokens in parts]
        shapes.append([torch.cat(one).cpu() for one in (alone, many, many_beside)])
        if prompt:
            ends.append([one.cpu() for one in _ends(make, info.vocab_size, prompt, info.max_len)])
    floors = [
        noise.measured((a[0], a[i]), (b[0], b[i])) for a, b in (shapes, *([ends] if prompt else [])) for i in (1, 2)
    ]
    return {name: max(floor[name] for floor in floors) for name in floors[0]}


def _prompt(infos: Sequence[ModelInfo]) -> list[int]:
    """Tokens of no meaning, as many as the models' positions reach, up to `_PROMPT`; none if that is too few."""
    length = min(_PROMPT, *(info.max_len for info in infos))
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(infos[0].vocab_size, (length,), generator=generator).tolist()
    return ids if length > 2 * _LAST else []


def _ends(make: MakeCache, vocab_size: int, prompt: list[int], most: int) -> Iterator[torch.Tensor]:
    """The last rows of a prompt: token by token; in one pass, the prompt before them cut; beside a longer sequence."""
    cache, slots = make(2), [Slot(0), Slot(1)]
    before, last = prompt[:-_LAST], prompt[-_LAST:]
    cut, start = len(before) * 2 // 3, len(before)

    def logps(*beside: int) -> torch.Tensor:
        starts = [start, *beside]
        logits = cache.forward(slots[: len(starts)], [last] * len(starts), starts, [_LAST] * len(starts))[0]
        return logits[:, :vocab_size].float().log_softmax(-1)

    cache.forward(slots[:1], [before], [0], [1])
    yield torch.cat([_rows(cache, vocab_size, slots[:1], [token], start + i) for i, token in enumerate(last)])
    for part, at in ((before[:cut], 0), (before[cut:], cut)):
        cache.forward(slots[:1], [part], [at], [1])
    yield logps()
    yield logps(min(start + _FURTHER, most - _LAST))


def _rows(cache: SlotCache, vocab_size: int, slots: list[Slot], tokens: list[int], start: int) -> torch.Tensor:
    """The first slot's rows of a pass that gives all slots the same tokens."""
    n = len(slots)
    logits = cache.forward(slots, [tokens] * n, [start] * n, [len(tokens)] * n)[0]
    return logits[:, :vocab_size].float().log_softmax(-1)


@torch.inference_mode()
def pass_costs(makers: Sequence[MakeCache], infos: Sequence[ModelInfo], sequences: int) -> dict[Lead, MeasuredCosts]:
    """What passes of one sequence and of several cost, each the least of a few times.

    The sizes of both models take turns, so that a machine that gets busy meanwhile slows all alike: what lookahead
    chooses by are ratios.
    """
    rows = min(sequences, _ROWS)
    sizes = [(n, tokens) for n in sorted({1, rows}) for tokens in _TOKENS if tokens < min(i.max_len for i in infos)]
    caches = [make(rows) for make in makers]
    slots = [Slot(i) for i in range(rows)]
    seconds: tuple[dict[tuple[int, int], float], ...] = ({}, {})
    begin = time.perf_counter()
    for repeat in range(_REPEATS):
        for size in sizes:
            for cache, info, least_of in zip(caches, infos, seconds, strict=True):
                took = _timed_pass(cache, slots[: size[0]], size[1], info.vocab_size)
                least_of[size] = min(took, least_of.get(size, took))
        if repeat >= 2 and time.perf_counter() - begin > _SECONDS:
            break
    return {"a": MeasuredCosts(seconds[0]), "b": MeasuredCosts(seconds[1])}


def _timed_pass(cache: SlotCache, slots: list[Slot], tokens: int, vocab_size: int) -> float:
    n = len(slots)
    begin = time.perf_counter()
    for logits in cache.forward(slots, [[0] * tokens] * n, [0] * n, [tokens] * n):
        # As the engine does with every pass; to read the answer waits for the device.
        logits[:, :vocab_size].float().log_softmax(-1).amax(-1).isnan().any().item()
    return time.perf_counter() - begin
