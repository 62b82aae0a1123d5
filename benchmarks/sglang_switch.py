"""Switched generation on SGLang, by lookahead and in lock-step, the shipped pair, interleaved in one run.

.venv-sglang/bin/python -m benchmarks.sglang_switch      (the environment of `make test-sglang`)
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from operator import truediv
from pathlib import Path

import msgspec
import torch
from transformers import AutoTokenizer

from workers.backends.sglang.pair import SGLangPair, load
from workers.host import answer
from workers.wire import ModelSpec, SamplingParams, SwitchGenerate, Tokens, WorkerSpec

DEMO = Path(__file__).parents[1] / "demo"
ROUNDS, TOKENS = 5, 100


async def seconds(pair: SGLangPair, job: SwitchGenerate, requests: int) -> float:
    async def run(seed: int) -> int:
        own = msgspec.structs.replace(job, sampling=SamplingParams(seed=seed))
        return sum([len(frame.ids) async for frame in answer(pair, own) if isinstance(frame, Tokens)])

    begin = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(run, range(requests))))
    assert tokens == requests * TOKENS
    return (time.perf_counter() - begin) / tokens


async def main() -> None:
    torch.set_num_threads(1)
    prompt = AutoTokenizer.from_pretrained(DEMO / "base")("Q: 17 + 25 - 9").input_ids
    a, b = (ModelSpec(name, str(DEMO / name), device="cpu", dtype="float32") for name in ("base", "rl"))
    pair = load(WorkerSpec("demo", "sglang", "", a, b, options={"server": {"log_level": "error"}}))
    job = SwitchGenerate(prompt, TOKENS, SamplingParams(), {"kind": "divergence", "on": 0.1}, ignore_eos=True)
    lockstep = msgspec.structs.replace(job, lookahead=0)
    try:
        for requests in (1, 8):
            await seconds(pair, job, requests)
            pairs = [
                (await seconds(pair, lockstep, requests), await seconds(pair, job, requests)) for _ in range(ROUNDS)
            ]
            slow, fast = zip(*pairs, strict=True)
            line = {
                "requests": requests,
                "lock-step, ms a token": round(statistics.median(slow) * 1e3, 2),
                "lookahead, ms a token": round(statistics.median(fast) * 1e3, 2),
                "ratio": round(statistics.median(map(truediv, slow, fast)), 1),
            }
            print(json.dumps(line), flush=True)
    finally:
        await pair.close()


if __name__ == "__main__":
    asyncio.run(main())
