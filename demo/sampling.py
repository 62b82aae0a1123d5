"""Batched sampling at temperature 1 from one model, or from two of which a rule picks the leader at every token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from task import LENGTHS
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.backends.hf.slots import cache_keyword

Chooser = Callable[[Tensor], Tensor]
"""From the divergences `[n]` of the next token: whether the other model leads `[n]`."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Sampled solutions, padded on the right; `[n, t]` each. Pads count for nothing."""

    ids: Tensor
    by_other: Tensor
    divergence: Tensor
    written: Tensor


def max_new_tokens(length: int) -> int:
    """Room for the longest solution of so many steps (all worked out, 15 tokens a line), and some to spare."""
    return 16 * length + 12


MAX_NEW_TOKENS = max_new_tokens(max(LENGTHS))


def js_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of float32 log-probabilities, over the last axis."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return halves.sum(-1).mul(0.5).clamp_min(0)


class _Reader:
    """A model with its cache: next-token log-probabilities over the live vocabulary, one token after another."""

    def __init__(self, model: LlamaForCausalLM, vocab: int) -> None:
        self.model, self.vocab = model, vocab
        self.cache = DynamicCache(config=model.config)
        self.keyword = cache_keyword(model)

    def read(self, ids: Tensor) -> Tensor:
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self.keyword: self.cache})
        logits: Tensor = output.logits[:, -1, : self.vocab]
        return logits.float().log_softmax(-1)


@torch.no_grad()
def sample(
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    generator: torch.Generator,
    model: LlamaForCausalLM,
    other: LlamaForCausalLM | None = None,
    other_leads: Chooser | None = None,
) -> Samples:
    """Sample one solution per prompt; the prompts must have the same number of tokens.

    `model` leads, save where `other_leads` says that `other` does, from the first token on. With `other` but no
    rule the divergences are only recorded.
    """
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts])
    reader = _Reader(model, len(tokenizer))
    second = _Reader(other, len(tokenizer)) if other is not None else None
    count = len(prompts)
    done = torch.zeros(count, dtype=torch.bool)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while len(columns) < MAX_NEW_TOKENS and not done.all():
        log_p = reader.read(ids)
        divergence, by_other = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        if second is not None:
            log_q = second.read(ids)
            divergence = js_divergence(log_p, log_q)
            if other_leads is not None:
                by_other = other_leads(divergence)
                log_p = torch.where(by_other[:, None], log_q, log_p)
        token = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
        token = torch.where(done, tokenizer.pad_token_id, token)
        columns.append((token, by_other & ~done, divergence, ~done))
        done = done | (token == tokenizer.eos_token_id)
        ids = token[:, None]
    return Samples(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))


def texts(tokenizer: PreTrainedTokenizerFast, samples: Samples) -> list[str]:
    """The sampled solutions as text, special tokens left out."""
    return list(tokenizer.batch_decode(samples.ids, skip_special_tokens=True))
