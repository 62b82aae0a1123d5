"""Reinforcement learning of the base: GRPO, exact match of the answer as the only reward, a KL term to the base."""

from __future__ import annotations

import copy
import logging
import random
import time
from dataclasses import dataclass

import torch
from sampling import sample, texts
from task import LENGTHS, is_correct, training_problem
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RLSettings:
    """One update samples `problems` x `group` solutions, all problems of one length, the lengths in turn."""

    updates: int = 150
    problems: int = 24
    group: int = 8
    learning_rate: float = 5e-4
    warmup: int = 5
    decay_from: float = 0.6
    kl: float = 0.02
    seed: int = 2


def reinforce(tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM, settings: RLSettings) -> LlamaForCausalLM:
    """Train a copy of the base on the reward of its own samples."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    rewards: list[float] = []
    started = time.monotonic()
    for update in range(settings.updates):
        rest = (1 - update / settings.updates) / (1 - settings.decay_from)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (update + 1) / settings.warmup, rest)
        problems = [training_problem(rng, LENGTHS[update % len(LENGTHS)]) for _ in range(settings.problems)]
        repeated = [problem for problem in problems for _ in range(settings.group)]
        samples = sample(tokenizer, [problem.prompt for problem in repeated], generator, model)
        right = [
            float(is_correct(text, problem.answer))
            for text, problem in zip(texts(tokenizer, samples), repeated, strict=True)
        ]
        rewards.append(sum(right) / len(right))
        advantage = group_advantage(torch.tensor(right), settings.group)
        prompts = torch.tensor([tokenizer(p.prompt, add_special_tokens=False).input_ids for p in repeated])
        kept = advantage != 0
        if not kept.any():
            continue
        loss = grpo_loss(
            model, base, prompts[kept], samples.ids[kept], samples.written[kept], advantage[kept], settings.kl
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % 10 == 9:
            log.info("update %4d  reward %.3f  %4.0f s", update + 1, sum(rewards[-9:]) / 9, time.monotonic() - started)
    return model.eval()


def group_advantage(rewards: Tensor, group: int) -> Tensor:
    """Rewards `[n * group]` less the mean of their group, over its standard deviation; 0 in a group of equals."""
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    return (centred / (grouped.std(1, keepdim=True) + 1e-4)).flatten()


def grpo_loss(
    model: LlamaForCausalLM,
    base: LlamaForCausalLM,
    prompts: Tensor,
    solutions: Tensor,
    written: Tensor,
    advantage: Tensor,
    kl_weight: float,
) -> Tensor:
    """Policy gradient of fresh samples (so no ratio to clip), plus KL(model || base) over the whole vocabulary."""
    ids = torch.cat([prompts, solutions], dim=1)[:, :-1]
    start = prompts.shape[1] - 1
    log_p: Tensor = model(input_ids=ids, use_cache=False).logits[:, start:].log_softmax(-1)
    with torch.no_grad():
        log_base: Tensor = base(input_ids=ids, use_cache=False).logits[:, start:].log_softmax(-1)
    chosen = log_p.gather(-1, solutions[..., None])[..., 0]
    kl = (log_p.exp() * (log_p - log_base)).sum(-1)
    per_token = kl_weight * kl - chosen * advantage[:, None]
    return (per_token * written).sum() / written.sum()
