"""What judging a position costs on one core, compiled and in array code: best of many, milliseconds.

python -m benchmarks.judging
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rl_onoff import divergence
from workers import kernels, sampling
from workers.wire import SamplingParams


def best_ms(run: Callable[[], Any], repeats: int = 30) -> float:
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return round(min(times) * 1e3, 4)


def main() -> None:
    torch.set_num_threads(1)
    params, places = SamplingParams(seed=1), np.arange(1)
    for vocab_size in (287, 32_000, 151_936):
        torch.manual_seed(0)
        a = torch.randn(1, vocab_size).mul(3).log_softmax(-1)
        b = (a + torch.randn(1, vocab_size) * 0.1).log_softmax(-1)
        line = {
            "vocab_size": vocab_size,
            "draw": best_ms(lambda a=a: kernels.draw_rows(a.numpy(), 1.0, 1, places)),
            "draw_in_arrays": best_ms(lambda a=a: sampling.draw_by_arrays(a, params, [0])),
            "js": best_ms(lambda a=a, b=b: kernels.js_rows(a.numpy(), b.numpy())),
            "js_in_arrays": best_ms(lambda a=a, b=b: divergence.js(a, b)),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
