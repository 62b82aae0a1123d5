"""Folded attention: transformers' own, whatever heads share keys, in whatever kind of pass."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.contract import tiny
from tests.contract.conftest import spec
from workers.backends import load_pair
from workers.backends.hf.attention import FOLDED, fold_attention, folded


class Module(torch.nn.Module):
    """What attention reads of the layer it belongs to."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize("tokens", [1, 2, 7])
@torch.inference_mode()
def test_folded_attention_is_plain_attention(dtype: torch.dtype, shared: int, tokens: int) -> None:
    """With a mask of lengths of their own, as the cache of slots gives it, and keys that are a view of it."""
    torch.manual_seed(0)
    query = torch.randn(3, tokens, 6, 16).transpose(1, 2).to(dtype)
    key, value = (torch.randn(3, shared, 40, 16).to(dtype)[:, :, :33] for _ in "kv")
    ends = torch.tensor([5, 20, 33 - tokens])[:, None] + torch.arange(tokens)
    mask = (torch.arange(33) <= ends[:, :, None])[:, None]
    module = Module(6 // shared)
    want = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)[0]
    have = folded(module, query, key, value, mask, scaling=0.3)[0]
    assert have.shape == want.shape == (3, tokens, 6, 16)
    assert have.is_contiguous()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(have, want, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_what_is_not_a_mask_for_all_heads_is_transformers_matter() -> None:
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    each = torch.rand(1, 4, 3, 9) < 0.7
    each[..., 0] = True
    bias = torch.randn(1, 4, 3, 9)
    for mask, special in ((None, {}), (each, {}), (each[:, :1], {"position_bias": bias})):
        want = sdpa_attention_forward(Module(2), query, key, value, mask, **special)[0]
        have = folded(Module(2), query, key, value, mask, **special)[0]
        torch.testing.assert_close(have, want, rtol=0, atol=0)
    with pytest.raises(ValueError, match="softcap"):
        folded(Module(2), query, key, value, each[:, :1], softcap=30.0)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "mistral", "gpt2"])
@torch.inference_mode()
def test_a_model_gives_the_same_logits(architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny.write_model(tmp_path, architecture, seed=1)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.arange(5, 45)[None]
    before = model(input_ids=ids, use_cache=False).logits
    with caplog.at_level(logging.WARNING):
        fold_attention(model)
    assert not caplog.records
    assert model.config.get_text_config()._attn_implementation == FOLDED
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
async def test_a_pair_that_promises_bits_keeps_transformers_own(
    strict: bool, folders: dict[str, tuple[Path, Path]]
) -> None:
    pair: Any = load_pair(spec(*folders["llama"], options={"strict": strict}))
    names = {side._cache._model.config._attn_implementation for side in (pair.a, pair.b)}
    await pair.close()
    assert names == {"sdpa" if strict else FOLDED}


def test_eager_attention_stays(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path, "llama", seed=1)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    fold_attention(model)
    assert model.config._attn_implementation == "eager"
