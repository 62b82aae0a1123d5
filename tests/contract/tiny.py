"""Tiny random-weight pairs of real architectures, written to disk as any Hugging Face model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 96
#: The logit matrix is wider than the tokenizer, as in real models: the columns beyond are cut.
COLUMNS = 104
MAX_LEN = 256

_COMMON: dict[str, Any] = {
    "vocab_size": COLUMNS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_LEN,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GPT2: dict[str, Any] = {
    "vocab_size": COLUMNS,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": MAX_LEN,
    "eos_token_id": 1,
    "bos_token_id": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "tie_word_embeddings": False,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "qwen2": {k: v for k, v in _COMMON.items() if k != "head_dim"},
    "qwen3": _COMMON,
    "gemma2": {**_COMMON, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_COMMON, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "mistral": {**_COMMON, "sliding_window": 16},
    "gpt2": _GPT2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, after <pad> and <eos>."""
    pieces = ["<pad>", "<eos>", *map(chr, range(32, 32 + VOCAB_SIZE - 2))]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def write_model(folder: Path, architecture: str, seed: int, **changes: Any) -> Path:
    """A random model, its weights scaled so that rows are neither flat nor one-hot."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[architecture](**{**ARCHITECTURES[architecture], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
        model.get_output_embeddings().weight.mul_(6)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_pair(folder: Path, architecture: str, **changes: Any) -> tuple[Path, Path]:
    """B is A with its first layer's weights perturbed: alike at most positions, different at some."""
    a = write_model(folder / "a", architecture, seed=1, **changes)
    model = AutoModelForCausalLM.from_pretrained(a, dtype=torch.float32)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.1)
    model.save_pretrained(folder / "b")
    tokenizer().save_pretrained(folder / "b")
    return a, folder / "b"
