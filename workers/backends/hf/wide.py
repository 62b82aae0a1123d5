"""The product with a wide head on a processor, in tiles of the vocabulary.

BLAS copies a matrix into an order of its own, all of it, before it multiplies. Under a wide vocabulary that costs as
much as the product itself for up to a hundred positions, unless the copy of a part is still in the cache when it is
used. A single row is not copied for. Measured: docs/divergence.md, `python -m benchmarks.products`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch

from workers.backends.hf.load import Float32Head

#: Rows of the matrix at a time: a few MB.
TILE: Final = 1024
#: Narrower heads are copied in no time.
WIDE: Final = 16 * TILE
#: With more positions than this the copy is little beside the product.
MOST: Final = 160


def tile_head(model: Any) -> None:
    """Let the model's output embedding work in tiles, where it is wide, on the processor, and float32."""
    head = model.get_output_embeddings()
    if type(head) not in (torch.nn.Linear, Float32Head) or head.bias is not None:
        return
    weight = head.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[0] >= WIDE:
        head.forward = partial(product, weight)


def product(weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`[..., H]` times the transpose of `[V, H]`: `[..., V]`."""
    rows = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype)
    if not 1 < rows.shape[0] <= MOST:
        return torch.nn.functional.linear(hidden.to(weight.dtype), weight)
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    for begin in range(0, weight.shape[0], TILE):
        part = slice(begin, begin + TILE)
        torch.mm(rows, weight[part].T, out=out[:, part])
    return out.view(*hidden.shape[:-1], weight.shape[0])
