"""Attention of few queries, by the same kernels as transformers', which are given more rows at a time.

Query heads that share keys become rows of one product, so that keys and values are not repeated for each (transformers
does so for single tokens, and repeats them for drafts). And on a processor in bfloat16 two rows take half to a third of
the time of one, which has a kernel of its own: the row of a single token is given twice.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: What a model's configuration calls it.
FOLDED: Final = "rl_onoff_folded"
#: Options of other kinds of attention: transformers' own function knows what to do.
_SPECIAL: Final = ("softcap", "position_bias", "s_aux")


def fold_attention(model: Any) -> None:
    """Let a model with torch's attention use `folded`; leaves any other alone."""
    AttentionInterface.register(FOLDED, folded)
    AttentionMaskInterface.register(FOLDED, sdpa_mask)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if plain.config.get_text_config()._attn_implementation == "sdpa" and plain._can_set_attn_implementation():
        plain.set_attn_implementation(FOLDED)


def folded(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `sdpa_attention_forward`: query `[n, heads, t, d]`, keys and values `[n, shared heads, length, d]` -> `[n, t,
    heads, d]`."""
    count, heads, tokens, _ = query.shape
    shared = key.shape[1]
    rows = heads // shared * tokens
    least = 2 if query.device.type == "cpu" and query.dtype == torch.bfloat16 else 1
    special = any(kwargs.get(name) is not None for name in _SPECIAL)
    if attention_mask is None or attention_mask.shape[1] > 1 or special or (heads == shared and rows >= least):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    mask = attention_mask[:, :, None].expand(-1, -1, heads // shared, -1, -1).flatten(2, 3)
    query = query.reshape(count, shared, rows, -1)
    if rows < least:
        query, mask = torch.cat((query, query), 2), mask.expand(-1, -1, least, -1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return output[:, :, :rows].reshape(count, heads, tokens, -1).transpose(1, 2).contiguous(), None
