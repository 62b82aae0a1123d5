"""Switched generation on vLLM: one engine that holds the pair against two, interleaved.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python -m benchmarks.vllm_engines        (the environment of `make test-vllm`)

Prints lines for docs/vllm.jsonl. Both are loaded in one process and take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs import build
from workers.backends.vllm.pair import VLLMPair, load
from workers.host import answer
from workers.wire import ModelSpec, SamplingParams, SwitchGenerate, Tokens, WorkerSpec

POLICY = {"kind": "divergence", "on": 0.1, "off": 0.05}
OPTIONS: dict[str, dict[str, Any]] = {"two": {}, "one": {"engines": "one"}}


async def tokens(pair: VLLMPair, seed: int, count: int) -> list[int]:
    job = SwitchGenerate(list(range(5, 37)), count, SamplingParams(seed=seed), POLICY, ignore_eos=True)
    return [id_ async for frame in answer(pair, job) if isinstance(frame, Tokens) for id_ in frame.ids]


async def rate(pair: VLLMPair, batch: int, count: int) -> tuple[float, list[list[int]]]:
    """Tokens a second, and the tokens."""
    begin = time.perf_counter()
    written = await asyncio.gather(*(tokens(pair, seed, count) for seed in range(batch)))
    return sum(map(len, written)) / (time.perf_counter() - begin), written


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, layers=asked.layers, hidden=asked.hidden, ratio=1.0, triggers=0.05, dtype=torch.float32)
        models = ModelSpec("a", str(folder / "a")), ModelSpec("b", str(folder / "b"))
        pairs = {
            way: load(WorkerSpec(way, "vllm", "", *models, sequences=8, max_len=512, options=options))
            for way, options in OPTIONS.items()
        }
        for batch in (1, 8):
            rates: dict[str, list[float]] = {way: [] for way in pairs}
            for _ in range(1 + asked.rounds):
                written = []
                for way, pair in pairs.items():
                    measured, texts = await rate(pair, batch, asked.tokens)
                    rates[way].append(measured)
                    written.append(texts)
                assert written[0] == written[1]
            ratios = [one / two for one, two in zip(rates["one"][1:], rates["two"][1:], strict=True)]
            line: dict[str, Any] = {"engines": "one over two", "layers": asked.layers, "hidden": asked.hidden}
            line |= {"batch": batch, "ratio": round(statistics.median(ratios), 2)}
            line |= {f"tokens_per_s_{way}": round(statistics.median(them[1:]), 1) for way, them in rates.items()}
            print(json.dumps(line | {"ratios": [round(ratio, 2) for ratio in ratios]}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
