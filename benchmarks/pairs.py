"""Memory-bound pairs of random weights whose divergence is controlled.

B reads a fraction of the vocabulary ("triggers") through other input embeddings and is otherwise nearly A: after a
trigger the two diverge, elsewhere they agree, so the share of B's tokens follows the fraction. A deeper B continues
A's layers with more that hardly change the residual stream. Weights are scaled so that rows have a few nats of entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 32_000


def _model(layers: int, hidden: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def build(folder: Path, *, layers: int, hidden: int, ratio: float, triggers: float, dtype: torch.dtype) -> None:
    """Write `folder/a` and `folder/b`; B has `ratio` times A's parameters: more layers.

    A share `triggers` of B's embeddings is foreign.
    """
    a = _model(layers, hidden)
    per_layer = sum(p.numel() for p in a.model.layers[0].parameters())
    extra = round((ratio - 1) * sum(p.numel() for p in a.parameters()) / per_layer)
    a.lm_head.weight.mul_(8)
    for layer in a.model.layers:
        layer.self_attn.o_proj.weight.mul_(0.03)  # the present token dominates, so a trigger's effect stays local
    b = _model(layers + extra, hidden)
    for part in ("embed_tokens", "norm"):
        getattr(b.model, part).load_state_dict(getattr(a.model, part).state_dict())
    b.lm_head.load_state_dict(a.lm_head.state_dict())
    for index, layer in enumerate(b.model.layers):
        if index < layers:
            layer.load_state_dict(a.model.layers[index].state_dict())
        else:
            layer.self_attn.o_proj.weight.mul_(0.002)
            layer.mlp.down_proj.weight.mul_(0.002)
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randperm(VOCAB_SIZE, generator=generator)[: int(triggers * VOCAB_SIZE)]
    embeddings = b.model.embed_tokens.weight
    noise = torch.randn(len(chosen), hidden, generator=generator) * embeddings.std()
    embeddings[chosen] = 0.6 * embeddings[chosen] + 0.4 * noise
    for name, model in (("a", a), ("b", b)):
        model.to(dtype).save_pretrained(folder / name)
        _tokenizer().save_pretrained(folder / name)


def _tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB_SIZE)}, unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)
