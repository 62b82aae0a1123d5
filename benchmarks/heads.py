"""The product with a wide head: in tiles of the vocabulary against torch's own, in turns. JSON lines.

python -m benchmarks.heads
"""

from __future__ import annotations

import json
import time

import torch
from torch.nn.functional import linear

from workers.backends.hf.wide import product

ROUNDS = 15


def main() -> None:
    torch.set_num_threads(2)
    with torch.inference_mode():
        for vocab_size, hidden in ((32_000, 1024), (151_936, 896)):
            weight = torch.randn(vocab_size, hidden)
            for rows in (1, 2, 4, 8, 16, 32, 64, 128, 160, 256):
                states = torch.randn(rows, hidden)
                best = {"tiles": float("inf"), "torch": float("inf")}
                for _ in range(ROUNDS):
                    for name in best:
                        begin = time.perf_counter()
                        product(weight, states) if name == "tiles" else linear(states, weight)
                        best[name] = min(best[name], time.perf_counter() - begin)
                figures = {f"{name}_ms": round(1e3 * seconds, 1) for name, seconds in best.items()}
                print(json.dumps({"V": vocab_size, "H": hidden, "rows": rows, **figures}), flush=True)


if __name__ == "__main__":
    main()
