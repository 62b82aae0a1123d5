"""What is tried out when a pair is loaded: that rows come, that they are distributions, how far rounding moves them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol

import torch
from transformers import AutoModelForCausalLM

from rl_onoff.errors import UnsupportedModel
from workers import noise
from workers.backends.base import LanguageModel
from workers.wire import ModelInfo, PairInfo, SamplingParams

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


@dataclass(frozen=True, slots=True)
class Sample:
    """A text that A wrote, and each model's rows over it in two shapes of pass."""

    text: list[int]
    alone: tuple[torch.Tensor, torch.Tensor]
    together: tuple[torch.Tensor, torch.Tensor]


async def sampled(pair: _Models) -> Sample:
    """Raises InternalError for rows that do not come."""
    count = min(_SAMPLE, pair.info.a.max_len - 1, pair.info.b.max_len - 1)
    async with pair.a.sequence() as sequence:
        draft = await sequence.draft([0], count, SamplingParams(), frozenset())
        await sequence.draft([0], 1, SamplingParams(top_k=2), frozenset())  # compiles the filtered draw, for later
    text = [0, *draft.tokens[:-1]]
    ends = [min(t + _TOGETHER, count) for t in range(0, count, _TOGETHER)]
    together = []
    for model in (pair.a, pair.b):
        async with model.sequence() as sequence:
            rows = [await sequence.rows(text[:end], begin + 1) for begin, end in pairwise([0, *ends])]
            together.append(torch.cat(rows))
    async with pair.b.sequence() as sequence:
        alone = torch.cat([await sequence.rows(text[:t], t) for t in range(1, count + 1)])
    return Sample(text, (draft.rows, alone), (together[0], together[1]))


def noise_floors(info: PairInfo, sample: Sample) -> dict[str, float]:
    """How far signals move between passes of one token and passes of many.

    Raises UnsupportedModel for rows that are no distributions, or differ by more than rounding.
    """
    for model, rows in zip((info.a, info.b), sample.alone, strict=True):
        if (rows.double().exp().sum(-1) - 1).abs().max() > 1e-3:
            raise UnsupportedModel(f"model {model.name}: its rows do not sum to one")
    (a, b), (many_a, many_b) = sample.alone, sample.together
    floors = noise.measured((a, many_a), (b, many_b))
    if {info.a.dtype, info.b.dtype} == {"float32"} and floors[noise.LOGPROB] > _WRONG:
        raise UnsupportedModel(
            f"the same row differs by {floors[noise.LOGPROB]:.2g} between two ways to compute it: SGLang does not run "
            "one of these models exactly"
        )
    return floors


@torch.inference_mode()
def check_exact(model: ModelInfo, folder: Path, text: list[int], rows: torch.Tensor) -> None:
    """Raises UnsupportedModel where SGLang's rows are not those of the model in transformers.

    Loads it once more, in float32 on the CPU: for models that are served there.
    """
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    want = plain(torch.tensor([text])).logits[0, :, : model.vocab_size].log_softmax(-1)
    gap = float((rows - want).abs().max())
    if not gap < _WRONG:
        raise UnsupportedModel(
            f"SGLang does not run model {model.name} exactly on this machine: its log-probabilities are off by "
            f"{gap:.2g} from those in transformers. The hf backend does"
        )
