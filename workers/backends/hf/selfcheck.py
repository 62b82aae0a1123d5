"""What is tried out when a pair is loaded: that the cache gives the model's rows, and how far rounding moves them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from rl_onoff.errors import UnsupportedModel
from workers import noise, sampling
from workers.backends.hf.slots import Slot, SlotCache
from workers.wire import ModelInfo, SamplingParams

#: Tokens, and how many of them go into one pass, when rounding is measured.
_SAMPLE, _TOGETHER = 32, 8


@torch.inference_mode()
def check_cache(model: Any, info: ModelInfo) -> None:
    """Refuse an architecture whose rows through the slot cache differ from a plain forward pass.

    Random tokens go in as a prefix, then one by one, then again after rolling back to another continuation.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(info.vocab_size, (2, 12), generator=generator).tolist()
    second[:5] = first[:5]
    # Relative to the spread of the logits: rounding grows with them, while a wrong cache is off by all of it. Some
    # architectures compute a softmax or a norm in float32 whatever the dtype.
    tolerance = 1e-3 if info.dtype in ("float64", "float32") else 0.1
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
def noise_floors(
    models: Sequence[Any],
    infos: Sequence[ModelInfo],
    scopes: Sequence[Callable[[], AbstractContextManager[Any]]],
    least: int,
) -> dict[str, float]:
    """How far signals move between passes of one token and passes of many, over a text that A writes."""
    count = min(_SAMPLE, infos[0].max_len - 1, infos[1].max_len - 1)
    text: list[int] = [0]
    both = []
    for model, info, scope in zip(models, infos, scopes, strict=True):
        rows = partial(_rows, SlotCache(model, 1, info.max_len, least), Slot(0), info.vocab_size)
        with scope():
            alone = []
            for t in range(count):
                alone.append(rows(text[t : t + 1], t))
                if len(text) <= count:  # A writes, B reads
                    text += sampling.choose(alone[-1], SamplingParams(), [t + 1])
            many = [rows(text[t : min(t + _TOGETHER, count)], t) for t in range(0, count, _TOGETHER)]
        both.append((torch.cat(alone).cpu(), torch.cat(many).cpu()))
    return noise.measured(*both)


def _rows(cache: SlotCache, slot: Slot, vocab_size: int, tokens: list[int], start: int) -> torch.Tensor:
    logits = cache.forward([slot], [tokens], [start], [len(tokens)])[0]
    return logits[:, :vocab_size].float().log_softmax(-1)
