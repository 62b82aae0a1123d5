"""Linear layers whose weights lie in memory as the processor's kernels read them.

A kernel wants a matrix in blocks of its own; given rows of a checkpoint it copies all of it, at every product. Packed
once, when a model is loaded, a product with a few rows takes a quarter to three quarters of the time. And kernels of
packed weights add up in one order, however many the rows. These are oneDNN's prepacked weights, by the operators that
torch.compile uses for frozen models. Measured: docs/divergence.md, `python -m benchmarks.products`.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, Final

import torch

from workers.backends.hf.load import Float32Head

#: Weights of fewer entries stay as they are: threads take longer to wake up than to multiply.
WORTH: Final = 2**19
#: Rows that the packed form is meant for; it serves any number.
_ROWS: Final = 32


class PackedLinear(torch.nn.Module):
    """A linear layer that is to give up its plain weights, `[N, K]`, for packed ones.

    Inputs of any dtype become the weights'. `weight` has shape and dtype but no values: what would read them raises.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(layer.weight.detach().to("meta"), requires_grad=False)
        self.bias = layer.bias
        self._plain: torch.Tensor | None = layer.weight.detach()
        self._packed: torch.Tensor | None = None

    def pack(self) -> None:
        if self._plain is not None:
            self._packed, self._plain = _reordered(self._plain), None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(self.weight.dtype)
        if self._plain is not None:
            return torch.nn.functional.linear(inputs, self._plain, self.bias)
        return _product(inputs, self._packed, self.bias)


@torch.inference_mode()
def pack(model: Any) -> None:
    """Pack the wide linear layers of a model on a processor, in place. Doing it twice changes nothing more.

    What stays plain: weights in a dtype that the processor has no packed kernel for; those that serve twice, as an
    output embedding tied to the input's, for they would have to be kept besides; and all of a model that uses a
    layer's weights for something else than its product.
    """
    uses = Counter(weight.data_ptr() for _, weight in model.named_parameters(remove_duplicate=False))
    places = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) in (torch.nn.Linear, Float32Head)
        and layer.weight.device.type == "cpu"
        and layer.weight.numel() >= WORTH
        and uses[layer.weight.data_ptr()] == 1
        and _has_kernel(layer.weight.dtype)
    ]
    if not places:
        return
    before = _logits(model)
    for parent, name, layer in places:
        setattr(parent, name, PackedLinear(layer))
    try:
        unharmed = torch.allclose(_logits(model), before, rtol=1e-3, atol=1e-3)
    except (RuntimeError, AttributeError, TypeError):  # it looked at a weight
        unharmed = False
    if not unharmed:
        for parent, name, layer in places:
            setattr(parent, name, layer)
        return
    places.clear()
    del layer  # from here on only the packed layers hold plain weights, and each gives them up in its turn
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.pack()


def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(1, 9)[None] % model.config.get_text_config().vocab_size
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits


@functools.cache
def _has_kernel(dtype: torch.dtype) -> bool:
    """Whether this processor, and this build of torch, multiply packed weights of a dtype. Tried out."""
    weight, inputs = (torch.linspace(-1, 1, 64 * n).view(n, 64).to(dtype) for n in (96, 3))
    try:
        product = _product(inputs, _reordered(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(product.float(), torch.nn.functional.linear(inputs, weight).float(), rtol=2e-2, atol=2e-2)


def _reordered(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return packed


def _product(inputs: torch.Tensor, packed: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    outputs: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return outputs
