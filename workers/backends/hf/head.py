"""A model taken apart before its head, so that a wide vocabulary's logits need not exist all at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from workers import comparison

_FORMS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, slots=True)
class Head:
    """`decoder` gives hidden states `[n, t, H]`; `logits` of them is what the whole model gives."""

    decoder: Any
    linear: Any
    scale: float
    cap: float | None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[n, H]` -> `[n, columns]`, in the head's own dtype."""
        logits: torch.Tensor = self.linear(hidden)
        if self.scale != 1:
            logits = logits.mul_(self.scale)
        if self.cap is not None:
            logits = logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


@torch.inference_mode()
def taken_apart(model: Any, scope: Callable[[], AbstractContextManager[Any]]) -> Head | None:
    """The parts of a model, or None for one that does something else after its last layer than parts can repeat.

    Tried out on a few tokens: the same logits must come of the parts.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = inner.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    try:
        decoder = inner.get_decoder()
        head = Head(decoder, inner.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))
        ids = torch.arange(1, 9, device=model.device)[None] % config.vocab_size
        with scope():
            whole = model(input_ids=ids, use_cache=False).logits[0].float()
            parts = head.logits(decoder(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    except (AttributeError, TypeError, RuntimeError, IndexError):
        return None
    return head if whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-3) else None


def as_rows(logits: torch.Tensor) -> comparison.Rows:
    """Logits on the processor as the kernel takes them, where it takes their dtype without a copy."""
    form = _FORMS.get(logits.dtype)
    if form is None:
        logits, form = logits.float(), "float32"
    logits = logits.contiguous()
    return comparison.Rows((logits if form == "float32" else logits.view(torch.uint16)).numpy(), form)
