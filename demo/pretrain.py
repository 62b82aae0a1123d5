"""The base model: a tiny Llama, taught the corpus by next-token prediction on the solutions."""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass

import torch
from task import BASE_HABITS, CAREFUL, LENGTHS, Habits, training_problem, write_solution
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

IGNORED = -100
POOL = 16
"""Batches drawn at a time and sorted by length, so that a batch holds little padding."""


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How long and how fast; the first phase is all careful steps, for the arithmetic, the last sets the habits."""

    steps: int = 2400
    batch: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50
    final_share: float = 0.6
    seed: int = 1


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about 0.6M parameters, random; its vocabulary is padded to a multiple of 64, as is usual."""
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.08,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids `[n, t]` and their targets, the prompt and the padding ignored."""

    ids: Tensor
    targets: Tensor


class Corpus:
    """Endless batches of worked, guessed and skipped solutions of training problems."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch: int, seed: int) -> None:
        self.tokenizer, self.batch = tokenizer, batch
        self.rng = random.Random(seed)
        self.pool: list[Batch] = []

    def next(self, habits: Habits) -> Batch:
        """The next batch."""
        if not self.pool:
            self.pool = self._draw(habits)
        return self.pool.pop()

    def _draw(self, habits: Habits) -> list[Batch]:
        problems = [training_problem(self.rng, self.rng.choice(LENGTHS)) for _ in range(self.batch * POOL)]
        prompts = self.tokenizer([p.prompt for p in problems], add_special_tokens=False).input_ids
        solutions = self.tokenizer(
            [write_solution(p, self.rng, habits) for p in problems], add_special_tokens=False
        ).input_ids
        pairs = sorted(zip(prompts, solutions, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [self._pad(pairs[start : start + self.batch]) for start in range(0, len(pairs), self.batch)]
        self.rng.shuffle(batches)
        return batches

    def _pad(self, pairs: list[tuple[list[int], list[int]]]) -> Batch:
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        width = max(len(prompt) + len(solution) for prompt, solution in pairs)
        ids, targets = [], []
        for prompt, solution in pairs:
            padding = width - len(prompt) - len(solution)
            ids.append(prompt + solution + [pad] * padding)
            ignored = len(prompt) - 1
            targets.append([IGNORED] * ignored + solution + [eos] + [IGNORED] * padding)
        return Batch(torch.tensor(ids), torch.tensor(targets))


def pretrain(tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings) -> LlamaForCausalLM:
    """Train the base from nothing."""
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    corpus = Corpus(tokenizer, settings.batch, settings.seed)
    log.info("pretraining %d parameters", sum(p.numel() for p in model.parameters()))
    started, tokens = time.monotonic(), 0
    for step in range(settings.steps):
        done = step / settings.steps
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * decay * min(1.0, (step + 1) / settings.warmup)
        batch = corpus.next(BASE_HABITS if done >= 1 - settings.final_share else CAREFUL)
        logits = model(input_ids=batch.ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += batch.ids.numel()
        if step % 100 == 0 or step == settings.steps - 1:
            seconds = time.monotonic() - started
            log.info("step %5d  loss %.4f  %9d tokens  %4.0f s", step, loss.item(), tokens, seconds)
    return model.eval()
