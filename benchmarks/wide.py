"""Pairs of small bodies under a wide vocabulary, where the head is what a comparison costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.wire import ModelSpec, WorkerSpec


@torch.no_grad()
def write_pair(folder: Path, *, vocab_size: int, hidden: int, context: int, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/a` and `folder/b`: one layer, random weights, B's head a little off A's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=context,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config).eval().to(dtype)
    model.lm_head.weight.normal_(0, 4 / hidden**0.5)
    tokenizer = _tokenizer(vocab_size)
    for name in ("a", "b"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight).mul_(0.005))


def spec(folder: Path, **options: Any) -> WorkerSpec:
    """A worker for that pair on a processor."""
    sides = [ModelSpec(name, str(folder / name), device="cpu") for name in "ab"]
    return WorkerSpec("wide", "hf", "", *sides, sequences=2, options=options)


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)
