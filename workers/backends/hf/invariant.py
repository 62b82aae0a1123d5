"""Matrix products whose rows do not depend on what is computed beside them.

Libraries choose a kernel by the number of rows, and kernels add up in different orders: the same token gets other bits
in a pass of one than in a pass of forty. Computed in blocks of one fixed size, the last filled up, every row goes
through the same kernel, whatever else is in the pass. (He et al., "Defeating Nondeterminism in LLM Inference", 2025.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from transformers.pytorch_utils import Conv1D

from workers.backends.hf.load import Float32Head
from workers.backends.hf.packed import PackedLinear

#: Rows of a block: as many as the tiles of current processors hold, so that a few tokens cost what one does.
BLOCK: Final = 16
#: Numbers of rows that packed weights are tried with; where all give a row the same bits, others are filled up to them.
_TRIED: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


def make_invariant(model: Any) -> None:
    """Let every linear layer of `model` give a row the same bits, whatever is beside it.

    In blocks of `BLOCK` rows; packed weights, where their kernels do so by themselves, in blocks of up to 64. Doing it
    twice changes nothing more.
    """
    found: dict[tuple[Any, ...], bool] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D | Float32Head | PackedLinear) and "forward" not in vars(module):
            sizes: tuple[int, ...] = (BLOCK,)
            if isinstance(module, PackedLinear):
                kind = (*module.weight.shape, module.weight.dtype)
                if kind not in found:
                    found[kind] = _independent(module)
                sizes = _TRIED if found[kind] else sizes
            vars(module)["forward"] = _in_blocks(module.forward, sizes)


@torch.inference_mode()
def _independent(layer: PackedLinear) -> bool:
    """Whether rows come out the same beside any tried number of others: how a kernel adds up hangs on its shape."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_TRIED[-1], layer.weight.shape[1], generator=generator).to(layer.weight.dtype)
    whole = layer(inputs)
    return all(torch.equal(layer(inputs[-count:]), whole[-count:]) for count in _TRIED)


def _in_blocks(
    forward: Callable[[torch.Tensor], torch.Tensor], sizes: tuple[int, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """In blocks of the largest size; the last one filled up to the next."""

    def run(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        rest = len(rows) % sizes[-1]
        filling = next(size for size in sizes if size >= rest) - rest if rest else 0
        filled = torch.nn.functional.pad(rows, (0, 0, 0, filling)) if filling else rows
        outputs = torch.cat([forward(block) for block in torch.split(filled, sizes[-1])])[: len(rows)]
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])

    return run
