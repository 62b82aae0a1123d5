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


def make_invariant(model: Any) -> None:
    """Let every linear layer of `model` work in blocks of `BLOCK` rows. Doing it twice changes nothing more."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D | Float32Head | PackedLinear) and "forward" not in vars(module):
            vars(module)["forward"] = _in_blocks(module.forward)


def _in_blocks(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % BLOCK))
        outputs = torch.cat([forward(block) for block in torch.split(filled, BLOCK)])[: len(rows)]
        return outputs.reshape(*inputs.shape[:-1], -1)

    return run
