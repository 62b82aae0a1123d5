"""What is tried out when a pair is loaded: that rows come, that they are distributions, how far rounding moves them."""

from __future__ import annotations

from typing import Final, Protocol

import torch

from rl_onoff.errors import UnsupportedModel
from workers import noise
from workers.backends.base import LanguageModel
from workers.wire import PairInfo, SamplingParams

#: Tokens, and how many of them go into one pass, when rounding is measured.
_SAMPLE: Final = 32
_TOGETHER: Final = 8
#: In float32 the same row in two shapes of pass differs by less, unless one of them is wrong.
_WRONG: Final = 1e-2


class _Models(Protocol):
    @property
    def info(self) -> PairInfo: ...
    @property
    def a(self) -> LanguageModel: ...
    @property
    def b(self) -> LanguageModel: ...


async def noise_floors(pair: _Models) -> dict[str, float]:
    """How far signals move between passes of one token and passes of many, over a text that A writes.

    Raises InternalError for rows that do not come, UnsupportedModel for such as are none.
    """
    count = min(_SAMPLE, pair.info.a.max_len - 1, pair.info.b.max_len - 1)
    async with pair.a.sequence() as sequence:
        draft = await sequence.draft([0], count, SamplingParams(), frozenset())
        await sequence.draft([0], 1, SamplingParams(top_k=2), frozenset())  # compiles the filtered draw, for later
    text = [0, *draft.tokens[:-1]]
    both = []
    for model in (pair.a, pair.b):
        async with model.sequence() as sequence:
            if model is pair.a:
                alone = draft.rows
            else:
                alone = torch.cat([await sequence.rows(text[:t], t) for t in range(1, count + 1)])
            ends = [min(t + _TOGETHER, count) for t in range(0, count, _TOGETHER)]
            many = [await sequence.rows(text[:end], begin + 1) for begin, end in zip([0, *ends], ends, strict=False)]
        both.append((alone, torch.cat(many)))
        if (alone.double().exp().sum(-1) - 1).abs().max() > 1e-3:
            raise UnsupportedModel(f"model {model.info.name}: its rows do not sum to one")
    floors = noise.measured(*both)
    if {pair.info.a.dtype, pair.info.b.dtype} == {"float32"} and floors[noise.LOGPROB] > _WRONG:
        raise UnsupportedModel(
            f"the same row differs by {floors[noise.LOGPROB]:.2g} between two ways to compute it: SGLang does not run "
            "one of these models exactly"
        )
    return floors
