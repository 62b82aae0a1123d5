"""What is tried out when a pair is loaded: that rows do not depend on how they were come by, but for rounding."""

from __future__ import annotations

from typing import Any

import torch

from rl_onoff.errors import UnsupportedModel
from workers import noise
from workers.backends.vllm.model import VLLMModel, VLLMSequence
from workers.wire import SamplingParams

#: Tokens A writes, how many of them are judged in one pass, and a text that fills several blocks of the cache.
_SAMPLE, _TOGETHER, _LONG = 32, 8, 140


async def check(a: VLLMModel, b: VLLMModel) -> dict[str, float]:
    """The noise floors (`workers.noise`) between rows come by one at a time and rows of many tokens.

    Raises UnsupportedModel where a model's rows differ by more than rounding between decoding, prefilling, and
    prefilling after a cached prefix: its architecture, or this release of vLLM, is not what `extension` expects.
    """
    count = min(_SAMPLE, a.info.max_len - 1, b.info.max_len - 1)
    async with a.sequence() as sequence:
        written = await sequence.draft([0], count - 1, SamplingParams(), frozenset())
    text = [0, *written.tokens]
    both = []
    for model in (a, b):
        async with model.sequence() as sequence:
            alone = torch.cat([await sequence.rows(text[:t], t) for t in range(1, count + 1)])
            many = torch.cat([await sequence.rows(text[: t + _TOGETHER], t + 1) for t in range(0, count, _TOGETHER)])
            _same(model, alone, many, "a pass of many")
            if model is a:
                _same(model, alone[:-1], written.rows, "decoding")
                alone = torch.cat([written.rows, alone[-1:]])
            await _check_cache(model, sequence)
        both.append((alone.cpu(), many.cpu()))
    return noise.measured(*both)


async def _check_cache(model: VLLMModel, sequence: VLLMSequence) -> None:
    generator, length = torch.Generator().manual_seed(0), min(_LONG, model.info.max_len - 1)
    ids, other = torch.randint(model.info.vocab_size, (2, length), generator=generator).tolist()
    half, last = len(ids) // 2, max(1, len(ids) - 3)
    whole = await sequence.rows(ids, 1)
    await sequence.rows(ids[:half] + other[half:], 1)
    _same(model, whole[last - 1 :], await sequence.rows(ids, last), "a cached prefix")


def _same(model: VLLMModel, want: Any, got: Any, what: str) -> None:
    tolerance = 1e-3 if model.info.dtype == "float32" else 0.1
    gap = (got.double() - want.double()).std() / want.double().std()
    if not gap <= tolerance:
        raise UnsupportedModel(
            f"model {model.info.name} cannot be run exactly by this vLLM: its rows after {what} differ by {gap:.2g} of "
            "their spread from those of a plain pass"
        )
