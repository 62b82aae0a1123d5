"""Products with a layer's or a head's weights: packed, in tiles of the vocabulary, and torch's own, in turns.

Weights come from memory, as those of a model with many layers do: each product is with another matrix of the same
shape. JSON lines.

    python -m benchmarks.products > docs/products.jsonl
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable

import torch

from workers.backends.hf.packed import PackedLinear
from workers.backends.hf.wide import WIDE, product
from workers.memory import keep_freed_memory

ROUNDS = 15
#: So much weight of a shape that no cache holds it, MB.
WEIGHT_MB = 128
SHAPES = ((768, 768), (2048, 768), (768, 2048), (4864, 896), (32_000, 1024), (151_936, 896))

Product = Callable[[torch.Tensor], torch.Tensor]


def methods(weight: torch.Tensor) -> dict[str, Product]:
    layer = torch.nn.Linear(*weight.T.shape, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    packed = PackedLinear(layer)
    packed.pack()
    found: dict[str, Product] = {"packed": packed, "torch": layer}
    if weight.dtype == torch.float32 and weight.shape[0] >= WIDE:
        found["tiles"] = lambda states: product(weight, states)
    return found


def main() -> None:
    keep_freed_memory()  # as a worker does
    torch.set_num_threads(2)
    with torch.inference_mode():
        for dtype, (columns, hidden) in itertools.product((torch.float32, torch.bfloat16), SHAPES):
            size = columns * hidden * dtype.itemsize
            count = max(2, round(WEIGHT_MB * 1e6 / size))
            layers = [methods(torch.randn(columns, hidden).to(dtype)) for _ in range(count)]
            for rows in (1, 2, 4, 8, 16, 32, 64, 128, 512):
                states = torch.randn(rows, hidden).to(dtype)
                best = dict.fromkeys(layers[0], float("inf"))
                for name in [name for _ in range(ROUNDS if rows < 128 else 5) for name in best]:
                    begin = time.perf_counter()
                    for layer in layers:
                        layer[name](states)
                    best[name] = min(best[name], (time.perf_counter() - begin) / count)
                figures = {f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in best.items()}
                shape = {"dtype": str(dtype).removeprefix("torch."), "N": columns, "K": hidden, "rows": rows}
                print(json.dumps({**shape, **figures}), flush=True)


if __name__ == "__main__":
    main()
